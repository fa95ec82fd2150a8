"""Normalisation over the last axis: one LayerNormalization instead of nine nodes, or of a fused node of one engine's own.

Source: Ba et al., Layer Normalization, https://arxiv.org/abs/1607.06450:
y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * weight + bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.canonical.shapes import is_last_axis
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import (
    MICROSOFT,
    constant,
    integer,
    is_constant,
    maker,
    maker_name,
    number,
    only_user,
    other,
    real,
    sizes,
    whole,
)


class _Norm(NamedTuple):
    source: ir.Value
    result: ir.Value
    epsilon: float


def fuse_layer_norm(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write mean, variance, division, weight and bias as one LayerNormalization.

    Yields:
        The node that took their place.
    """
    if editor.opset < 17:  # the operator is not there
        return
    for node in list(editor.graph):
        norm = None if node.graph is None else _read_norm(node)
        width = None if norm is None else (sizes(norm.source) or (None,))[-1]
        if norm is None or not isinstance(width, int):
            continue
        result, weight = _read_applied(norm.result, "Mul", width)
        result, bias = _read_applied(result, "Add", width)
        last = result.producer()
        assert last is not None
        inputs = [norm.source, _flatten(editor, weight, last, width)]
        if bias is not None:
            inputs.append(_flatten(editor, bias, last, width))
        fused = editor.add(last, "LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon)
        fused.type, fused.shape = result.type, norm.source.shape
        editor.replace(result, fused)
        yield (maker_name(fused),)


def _read_norm(node: ir.Node) -> _Norm | None:
    """The normalisation that ends in this node: deviation times 1/sqrt, in any of the ways to write it."""
    if node.domain != "" or node.op_type not in ("Div", "Mul"):
        return None
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op_type == "Mul":
        pairs.append((node.inputs[1], node.inputs[0]))
    for deviation, factor in pairs:
        variance = _read_root(factor, inverse=node.op_type == "Mul")
        parts = None if variance is None or deviation is None else _read_deviation(deviation, variance)
        if parts is not None:
            return _Norm(parts[0], node.outputs[0], parts[1])
    return None


def _read_root(value: ir.Value | None, *, inverse: bool) -> ir.Value | None:
    """What a square root, or its inverse, is taken of."""
    if not inverse:
        root = maker(value, "Sqrt")
        power = maker(value, "Pow")
        if power is not None and _is_close(number(power.inputs[1]), 0.5):
            return power.inputs[0]
        return None if root is None else root.inputs[0]
    node = maker(value, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        return _read_root(node.inputs[0], inverse=False)
    if node.op_type == "Div":
        return _read_root(node.inputs[1], inverse=False) if _is_close(number(node.inputs[0]), 1.0) else None
    return node.inputs[0] if _is_close(number(node.inputs[1]), -0.5) else None


def _is_close(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= 1e-6 * abs(wanted)


def _read_deviation(deviation: ir.Value, variance: ir.Value) -> tuple[ir.Value, float] | None:
    """Source x and epsilon, when ``deviation`` is x - mean(x), and ``variance`` the mean of its square plus epsilon."""
    plus = maker(variance, "Add")
    if plus is None:
        return None
    epsilon, mean = number(plus.inputs[1]), maker(plus.inputs[0], "ReduceMean")
    if epsilon is None or mean is None or not _is_over_last(mean):
        return None
    source = _read_centred(deviation)
    squared = maker(mean.inputs[0], "Pow", "Mul")
    if source is None or squared is None:
        return None
    first, second = squared.inputs[:2]
    twice = second is first if squared.op_type == "Mul" else _is_close(number(second), 2.0)
    return (source, epsilon) if twice and first is not None and _read_centred(first) is source else None


def _read_centred(value: ir.Value | None) -> ir.Value | None:
    """The x of x - mean(x)."""
    node = maker(value, "Sub")
    mean = None if node is None else maker(node.inputs[1], "ReduceMean")
    if node is None or mean is None or not _is_over_last(mean) or mean.inputs[0] is not node.inputs[0]:
        return None
    return node.inputs[0]


def _is_over_last(node: ir.Node) -> bool:
    """Whether a ReduceMean goes over the last axis alone, and keeps it."""
    axes = whole(node, "axes", 1)
    return axes is not None and len(axes) == 1 and is_last_axis(node, axes[0]) and integer(node, "keepdims", 1) == 1


def _read_applied(value: ir.Value, operator: str, width: int) -> tuple[ir.Value, ir.Value | None]:
    """The next node's result, when it applies a constant vector along the last axis, and that vector."""
    node = only_user(value, operator)
    operand = None if node is None else other(node, value)
    numbers = constant(operand)
    if node is None or operand is None or numbers is None or numbers.size != width or numbers.shape[-1:] != (width,):
        return value, None
    return node.outputs[0], operand


def _flatten(editor: Editor, vector: ir.Value | None, node: ir.Node, width: int) -> ir.Value:
    """A vector as LayerNormalization takes it; ones when there is none."""
    if vector is None:
        dtype = node.outputs[0].dtype or ir.DataType.FLOAT
        return editor.constant(f"{node.name}.weight", np.ones(width, dtype.numpy()))
    numbers = constant(vector)
    assert numbers is not None
    return vector if numbers.ndim == 1 else editor.derive(vector, "flat", numbers.reshape(-1))


def split_skip_norm(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write com.microsoft's SkipLayerNormalization as the sum and the LayerNormalization that it joins.

    Yields:
        The nodes that took its place.

    Source: github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization.
    """
    if editor.opset < 17:
        return
    for node in list(editor.graph):
        if node.domain != MICROSOFT or node.op_type != "SkipLayerNormalization" or len(node.inputs) < 3:
            continue
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:3]):
            continue  # mean and deviation, which are for training
        source, skip, weight, bias, more = (*node.inputs, None, None)[:5]
        total = editor.add(node, "Add", [source, skip])
        made = [total]
        if more is not None:
            total = editor.add(node, "Add", [total, more])
            made.append(total)
        inputs = [total, weight] if bias is None else [total, weight, bias]
        result = editor.add(node, "LayerNormalization", inputs, axis=-1, epsilon=real(node, "epsilon", 1e-12))
        outputs = list(node.outputs)
        if len(outputs) > 3:
            editor.replace(outputs[3], total)
        editor.replace(outputs[0], result)
        yield tuple(maker_name(value) for value in (*made, result))


def split_root_norm(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write opset 23's RMSNormalization, over the last axis, in parts that opset 20 has.

    Yields:
        The nodes that took its place.

    Source: Zhang and Sennrich, https://arxiv.org/abs/1910.07467: y = x / sqrt(mean(x^2) + epsilon) * weight.
    """
    for node in list(editor.graph):
        if node.domain != "" or node.op_type != "RMSNormalization" or not is_last_axis(node, integer(node, "axis", -1)):
            continue
        source, weight = node.inputs[:2]
        if source is None or source.dtype != ir.DataType.FLOAT or not is_constant(weight):
            continue
        square = editor.add(node, "Mul", [source, source])
        axes = editor.constant(f"{node.name}.axes", np.array([-1], np.int64))
        mean = editor.add(node, "ReduceMean", [square, axes])
        epsilon = editor.constant(f"{node.name}.epsilon", np.array(real(node, "epsilon", 1e-5), np.float32))
        root = editor.add(node, "Sqrt", [editor.add(node, "Add", [mean, epsilon])])
        scaled = editor.add(node, "Mul", [editor.add(node, "Div", [source, root]), weight])
        nodes = [scaled, root, mean, square]
        editor.replace(node.outputs[0], scaled)
        yield tuple(maker_name(value) for value in nodes)
