"""What a quantized ONNX file is meant to run in integers, read from the file itself and without the package onnx."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.onnxfile.model import Node
from vitdeploy.onnxfile.nodes import Nodes, read_nodes
from vitdeploy.proof.census import Plan

_MICROSOFT = "com.microsoft::"
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_STATIC = (f"{_MICROSOFT}MatMulIntegerToFloat", f"{_MICROSOFT}QGemm", f"{_MICROSOFT}QLinearMatMul", "QLinearMatMul")
_DYNAMIC = (f"{_MICROSOFT}DynamicQuantizeMatMul", f"{_MICROSOFT}MatMulNBits")
_RANGED = "DynamicQuantizeLinear"
_DEQUANTIZED = "DequantizeLinear"


def read_plan(path: Path) -> Plan:
    """The products (MatMul, Gemm, Conv) of an ONNX file whose factors are quantized.

    Args:
        path: The file. A float model plans nothing.

    Returns:
        Their names: with quantized weights and inputs (``gemms``), with inputs that are quantized at run time or not at all
        (``dynamic``), of two activations (``attention``).

    Raises:
        InputError: VD3011, the file is not a whole ONNX model.
    """
    graph = read_nodes(path)
    parts: dict[str, list[str]] = {"gemms": [], "dynamic": [], "attention": []}
    for node in graph.all:
        if part := _choose_part(node, graph):
            parts[part].append(node.name)
    return Plan(gemms=tuple(parts["gemms"]), dynamic=tuple(parts["dynamic"]), attention=tuple(parts["attention"]))


def _choose_part(node: Node, graph: Nodes) -> str:
    """The part of the plan that a node belongs to, "" for none."""
    if node.operator in _DYNAMIC or (node.operator == "MatMulInteger" and _is_ranged(node, graph)):
        return "dynamic"
    if node.operator in _STATIC or node.operator == "MatMulInteger":
        return "dynamic" if _is_ranged(node, graph) else "gemms"
    if node.operator not in _PRODUCTS or len(node.inputs) < 2:
        return ""
    quantized = [_is_quantized(value, graph) for value in node.inputs[:2]]
    weights = any(graph.is_constant(value) for value in node.inputs[:2])
    if all(quantized):
        return "gemms" if weights else "attention"
    return "dynamic" if weights and any(quantized) else ""


def _is_quantized(value: str, graph: Nodes) -> bool:
    maker = graph.origin(value)
    return maker is not None and maker.operator == _DEQUANTIZED


def _is_ranged(node: Node, graph: Nodes) -> bool:
    maker = graph.origin(node.inputs[0]) if node.inputs else None
    return maker is not None and maker.operator == _RANGED
