"""GELU in the one form that later steps know, recognised by what it computes.

A GELU is exported as five to eight nodes in many orders. Whatever lies between a value and a later one, made of sums,
products and one Erf or Tanh with constant numbers, is a function of one variable: it is computed at a few points and
compared with GELU, so that no order is forgotten and none is mistaken.

Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415: x/2 (1 + erf(x/sqrt 2)), and
x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import MICROSOFT, Array, maker, maker_name, number, real

_POINTS = np.concatenate([np.linspace(-7, 7, 29), [-0.1, 0.03, 0.3]])
_STEPS = 8
"""Nodes from the Erf or Tanh to the end of a GELU, at most."""
_DEPTH = 12
"""Nodes above each other inside one, at most."""
_TOLERANCE = {ir.DataType.FLOAT16: 2e-3}
"""Of the constants' rounding, relative to x."""
_GELUS = {"Gelu": "none", "BiasGelu": "none", "FastGelu": "tanh"}
"""Of com.microsoft, and their form."""
_GATES = {(MICROSOFT, "QuickGelu"): 1.702, ("", "Swish"): 1.0}
"""x sigmoid(alpha x), and the default alpha."""
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Neg": np.negative,
    "Tanh": np.tanh,
    "Erf": lambda points: np.vectorize(math.erf, otypes=[np.float64])(points),
}


def _gelu(points: Array) -> Array:
    return np.asarray(points / 2 * (1 + _FUNCTIONS["Erf"](points / math.sqrt(2))))


def _gelu_tanh(points: Array) -> Array:
    return np.asarray(points / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (points + 0.044715 * points**3))))


def fuse_gelu(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write every decomposed GELU as one Gelu.

    Yields:
        The node that took the others' place.
    """
    if editor.opset < 20:  # the operator is not there
        return
    for node in list(editor.graph):
        if node.graph is None or node.domain != "" or node.op_type not in ("Erf", "Tanh"):
            continue
        ends = _find_gelu(node)
        if ends is None:
            continue
        source, result = ends
        last = result.producer()
        assert last is not None
        fused = editor.add(last, "Gelu", [source], approximate="none" if node.op_type == "Erf" else "tanh")
        fused.shape, fused.type = result.shape, result.type
        editor.replace(result, fused)
        yield (maker_name(fused),)


def _find_gelu(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The input and the result of the GELU around an Erf or Tanh."""
    wanted = _gelu if node.op_type == "Erf" else _gelu_tanh
    for source in _list_sources(node):
        tolerance = _TOLERANCE.get(source.dtype or ir.DataType.FLOAT, 3e-6)
        value = node.outputs[0]
        for _ in range(_STEPS):
            users = [use.node for use in value.uses()]
            if len(users) != 1 or value.is_graph_output() or users[0].op_type not in ("Add", "Mul", "Div"):
                break
            value = users[0].outputs[0]
            numbers = _compute(value, source, _DEPTH)
            if numbers is not None and np.allclose(numbers, wanted(_POINTS), rtol=0, atol=tolerance):
                return source, value
    return None


def _list_sources(node: ir.Node) -> list[ir.Value]:
    """Values above a node through sums and products: the nearest first."""
    sources: list[ir.Value] = []
    queue = [value for value in node.inputs if value is not None]
    while queue and len(sources) < _DEPTH:
        value = queue.pop(0)
        if number(value) is not None or value in sources:
            continue
        sources.append(value)
        above = maker(value, *_FUNCTIONS)
        queue += [] if above is None else [each for each in above.inputs if each is not None]
    return sources


def _compute(value: ir.Value, source: ir.Value, depth: int) -> Array | None:
    """A value as a function of another at the points, float64; None when it depends on anything else."""
    if value is source:
        return _POINTS
    known = number(value)
    if known is not None:
        return np.asarray(known, np.float64)
    node = maker(value, *_FUNCTIONS)
    if node is None or depth == 0:
        return None
    operands = [None if each is None else _compute(each, source, depth - 1) for each in node.inputs]
    if any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(_FUNCTIONS[node.op_type](*operands), np.float64)


def split_gelu(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write com.microsoft's Gelu, FastGelu, BiasGelu and QuickGelu, and opset 24's Swish, in operators of opset 20.

    Yields:
        The nodes that took its place.

    Source: github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
    """
    for node in list(editor.graph):
        gate = _GATES.get((node.domain, node.op_type))
        value = node.inputs[0] if node.inputs else None
        if value is None or (gate is None and (node.domain != MICROSOFT or node.op_type not in _GELUS or editor.opset < 20)):
            continue
        made = []
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            value = editor.add(node, "Add", [value, node.inputs[1]])
            made.append(value)
        if gate is not None:
            dtype = value.dtype or ir.DataType.FLOAT
            alpha = editor.constant(f"{node.name}.alpha", np.array(real(node, "alpha", gate), dtype.numpy()))
            scaled = value if real(node, "alpha", gate) == 1 else editor.add(node, "Mul", [value, alpha])
            editor.drop(alpha)
            made.append(editor.add(node, "Sigmoid", [scaled]))
            result = editor.add(node, "Mul", [value, made[-1]])
        else:
            result = editor.add(node, "Gelu", [value], approximate=_GELUS[node.op_type])
        made.append(result)
        editor.replace(node.outputs[0], result)
        yield tuple(maker_name(each) for each in made)
