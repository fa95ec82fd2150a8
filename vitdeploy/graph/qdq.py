"""Q/DQ pairs in an ONNX graph: what a tensor or a weight is rounded to is written between its maker and its user.

Forms are those that ONNX Runtime, OpenVINO and TensorRT all read: per-tensor activations, weights int8 with one step an output
channel and an explicit zero point of 0 (without it ONNX Runtime computes a static batch in float), nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.structure import Linear, add_constant

Array = NDArray[Any]
LARGEST_BIAS = 1 << 30
"""Codes of an int32 bias stay below this, so that the sum of products beside it can't overflow."""


def quantize(value: ir.Value, scale: float, zero: int, dtype: type[np.generic], uses: Iterable[tuple[ir.Node, int]]) -> None:
    """Put a Q/DQ pair into some uses of a tensor.

    Args:
        value: The tensor.
        scale: Step.
        zero: Code of 0.
        dtype: ``np.uint8`` or ``np.int8``.
        uses: Node and input index of each use that shall see the rounded tensor.
    """
    uses = list(uses)
    before = first(node for node, _ in uses)
    graph, name = before.graph, str(value.name)
    assert isinstance(graph, ir.Graph)
    constants = [
        add_constant(before, f"{name}.scale", np.array(scale, np.float32)),
        add_constant(before, f"{name}.zero", np.array(zero, dtype)),
    ]
    down = ir.node("QuantizeLinear", [value, *constants], name=f"{name}/QuantizeLinear")
    up = ir.node("DequantizeLinear", [down.outputs[0], *constants], name=f"{name}/DequantizeLinear")
    kind = ir.DataType.UINT8 if dtype is np.uint8 else ir.DataType.INT8
    for node, suffix, type_ in ((down, "quantized", ir.TensorType(kind)), (up, "dequantized", value.type)):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{name}.{suffix}", value.shape, type_
    graph.insert_before(before, [down, up])
    for node, index in uses:
        node.replace_input_with(index, up.outputs[0])


def quantize_weight(linear: Linear, codes: NDArray[np.int8], scale: Array) -> None:
    """Store a layer's weight as int8 with a DequantizeLinear behind it.

    Args:
        linear: The layer.
        codes: int8 [K, M].
        scale: Step of each output channel, float [M].
    """
    node = linear.matmul
    weight = node.inputs[1]
    assert weight is not None and isinstance(node.graph, ir.Graph)
    name = str(weight.name)
    constants = [
        add_constant(node, f"{name}.codes", codes),
        add_constant(node, f"{name}.scale", scale.astype(np.float32)),
        add_constant(node, f"{name}.zero", np.zeros(len(scale), np.int8)),
    ]
    up = ir.node("DequantizeLinear", constants, {"axis": 1}, name=f"{name}/DequantizeLinear")
    result = up.outputs[0]
    result.name, result.shape, result.type = f"{name}.dequantized", ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    node.graph.insert_before(node, up)
    node.replace_input_with(1, result)


def quantize_bias(linear: Linear, scale: Array) -> bool:
    """Store a layer's bias as int32 with a DequantizeLinear behind it; False, and float, where a code would be too large.

    Args:
        linear: The layer.
        scale: Step of the input times that of each output channel, float [M].
    """
    add = linear.add
    if add is None:
        return False
    step = scale.astype(np.float32).astype(np.float64)
    codes = np.rint(linear.bias.astype(np.float64) / step)
    if np.abs(codes).max(initial=0.0) > LARGEST_BIAS:
        return False
    bias = add.inputs[1]
    assert bias is not None and isinstance(add.graph, ir.Graph)
    name = str(bias.name)
    constants = [
        add_constant(add, f"{name}.codes", codes.astype(np.int32)),
        add_constant(add, f"{name}.scale", step.astype(np.float32)),
        add_constant(add, f"{name}.zero", np.zeros(len(step), np.int32)),
    ]
    up = ir.node("DequantizeLinear", constants, {"axis": 0}, name=f"{name}/DequantizeLinear")
    result = up.outputs[0]
    result.name, result.shape, result.type = f"{name}.dequantized", ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    add.graph.insert_before(add, up)
    add.replace_input_with(1, result)
    return True


def quantize_at_run_time(linear: Linear, codes: NDArray[np.int8], scale: Array) -> None:
    """Quantize a layer's input by its own range in every run: DynamicQuantizeLinear, MatMulInteger, and the steps behind.

    Args:
        linear: The layer.
        codes: int8 [K, M].
        scale: Step of each output channel, float [M].
    """
    node, name = linear.matmul, linear.name
    graph, result = node.graph, linear.matmul.outputs[0]
    assert isinstance(graph, ir.Graph)
    value = linear.input
    shared = next((use.node for use in value.uses() if use.node.op_type == "DynamicQuantizeLinear"), None)
    down = shared or ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}/DynamicQuantizeLinear")
    weight = add_constant(node, f"{name}.codes", codes)
    steps = add_constant(node, f"{name}.scale", scale.astype(np.float32))
    product = ir.node("MatMulInteger", [down.outputs[0], weight, down.outputs[2]], name=f"{name}Integer")
    cast = ir.node("Cast", [product.outputs[0]], {"to": 1}, name=f"{name}/Cast")
    step = ir.node("Mul", [down.outputs[1], steps], name=f"{name}/Mul_scale")
    scaled = ir.node("Mul", [cast.outputs[0], step.outputs[0]], name=f"{name}/Mul")
    fresh = [product, cast, step, scaled] if shared is not None else [down, product, cast, step, scaled]
    for each in fresh:
        for index, out in enumerate(each.outputs):
            out.name = f"{each.name}_out{index or ''}"
    scaled.outputs[0].shape, scaled.outputs[0].type = result.shape, result.type
    graph.insert_before(node, fresh)
    result.replace_all_uses_with(scaled.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def first(nodes: Iterable[ir.Node]) -> ir.Node:
    """The node that comes first in its graph."""
    wanted = set(nodes)
    graph = next(iter(wanted)).graph
    assert isinstance(graph, ir.Graph)
    return next(node for node in graph if node in wanted)
