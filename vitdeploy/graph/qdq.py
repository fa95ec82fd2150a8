"""Q/DQ pairs in an ONNX graph: what a tensor or a weight is rounded to is written between its maker and its user.

Forms are those that ONNX Runtime, OpenVINO and TensorRT all read: per-tensor activations, weights int8 with one step an output
channel and an explicit zero point of 0 (without it ONNX Runtime computes a static batch in float), nothing else. For TensorRT
alone both may be 8-bit floats (E4M3) instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.linear import Linear
from vitdeploy.graph.query import Array, find_first, integer, only_user

E4M3: np.dtype[Any] = ir.DataType.FLOAT8E4M3FN.numpy()
"""8-bit floats, 4 bits of exponent and 3 of mantissa. A cast to them rounds to even, and makes NaN of what is too large."""
LARGEST_E4M3 = 448
"""Their largest number."""
LARGEST_BIAS = 1 << 30
"""Codes of an int32 bias stay below this, so that the sum of products beside it can't overflow."""


class Codes(NamedTuple):
    """What a tensor is rounded to.

    Attributes:
        scale: Step.
        zero: Code of 0.
        dtype: ``np.uint8``, ``np.int8`` or `E4M3`.
    """

    scale: float
    zero: int
    dtype: type[np.generic] | np.dtype[Any]


def quantize(editor: Editor, value: ir.Value, codes: Codes, uses: Iterable[tuple[ir.Node, int]]) -> None:
    """Put a Q/DQ pair into some uses of a tensor.

    A tensor that is joined of parts, as of a class token and patches, is joined of their codes: OpenVINO moves the pair before
    the parts, and fails over the zero point of each.

    Args:
        editor: Of the graph.
        value: The tensor.
        codes: What it is rounded to.
        uses: Node and input index of each use that shall see the rounded tensor.
    """
    uses = list(uses)
    before, name = find_first(node for node, _ in uses), str(value.name)
    constants = [
        editor.constant(f"{name}.scale", np.array(codes.scale, np.float32)),
        editor.constant(f"{name}.zero", np.array(codes.zero, codes.dtype)),
    ]
    rounded = _round(editor, before, value, constants)
    up = ir.node("DequantizeLinear", [rounded, *constants], name=f"{name}/DequantizeLinear")
    up.outputs[0].name = f"{name}.dequantized"
    declare(up.outputs[0], value.type, value.shape)
    editor.insert([up], before)
    for node, index in uses:
        node.replace_input_with(index, up.outputs[0])


def _round(editor: Editor, before: ir.Node, value: ir.Value, constants: list[ir.Value]) -> ir.Value:
    """The codes of a tensor, joined where it is joined and 0 has a code of its own."""
    join, zero = value.producer(), constants[1].const_value
    assert zero is not None
    if join is None or join.op_type != "Concat" or not zero.numpy():
        node = ir.node("QuantizeLinear", [value, *constants], name=f"{value.name}/QuantizeLinear")
    else:
        parts = [_round(editor, before, part, constants) for part in join.inputs if part is not None]
        node = ir.node("Concat", parts, {"axis": integer(join, "axis", 0)}, name=f"{value.name}/Concat")
    node.outputs[0].name = f"{value.name}.quantized"
    declare(node.outputs[0], ir.TensorType(zero.dtype), value.shape)
    editor.insert([node], before)
    return node.outputs[0]


def quantize_weight(editor: Editor, linear: Linear, codes: Array, scale: Array) -> None:
    """Store a layer's weight in 8 bits with a DequantizeLinear behind it.

    Args:
        editor: Of the graph.
        linear: The layer.
        codes: int8 or `E4M3` [K, M].
        scale: Step of each output channel, float [M]; one step for all when it is 0-dimensional.
    """
    _dequantize(editor, linear.matmul, codes, scale, axis=1)


def quantize_convolution(editor: Editor, conv: ir.Node, codes: NDArray[np.int8], scale: Array) -> None:
    """Store a convolution's weight as int8 with a DequantizeLinear behind it; its bias stays float.

    Args:
        editor: Of the graph.
        conv: A Conv with a constant weight.
        codes: int8 [M, C, kh, kw].
        scale: Step of each output channel, float [M].
    """
    _dequantize(editor, conv, codes, scale, axis=0)


def _dequantize(editor: Editor, node: ir.Node, codes: Array, scale: Array, *, axis: int) -> None:
    """A DequantizeLinear of constant codes in the place of a node's second input, with one step for each index of an axis."""
    old = node.inputs[1]
    assert old is not None
    name = str(old.name)
    constants = [
        editor.constant(f"{name}.codes", codes),
        editor.constant(f"{name}.scale", scale.astype(np.float32)),
        editor.constant(f"{name}.zero", np.zeros(scale.shape, codes.dtype)),
    ]
    up = ir.node("DequantizeLinear", constants, {"axis": axis} if scale.ndim else {}, name=f"{name}/DequantizeLinear")
    up.outputs[0].name = f"{name}.dequantized"
    declare(up.outputs[0], ir.TensorType(ir.DataType.FLOAT), codes.shape)
    editor.insert([up], node)
    editor.rewire(node, 1, up.outputs[0])


def quantize_bias(editor: Editor, linear: Linear, scale: Array) -> bool:
    """Store a layer's bias as int32 with a DequantizeLinear behind it; False, and float, where a code would be too large.

    Args:
        editor: Of the graph.
        linear: The layer.
        scale: Step of the input times that of each output channel, float [M].
    """
    add = linear.add
    if add is None:
        return False
    step = scale.astype(np.float32).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(linear.bias.astype(np.float64) / step)
    if not (np.abs(codes) <= LARGEST_BIAS).all():  # not a number is too large as well: a step that is 0 in float32
        return False
    _dequantize(editor, add, codes.astype(np.int32), step, axis=0)
    return True


def separate_relu(editor: Editor, linear: Linear) -> bool:
    """Write the Relu that alone takes a layer's output as Max(x, 0): ONNX Runtime makes a Gemm and a Relu one float operator.

    Returns:
        Whether there was one.
    """
    relu = only_user(linear.output, "Relu")
    if relu is None:
        return False
    largest = editor.add(relu, "Max", [linear.output, editor.constant(f"{relu.name}.zero", np.zeros(1, np.float32))])
    declare(largest, linear.output.type, linear.output.shape)
    return editor.replace(relu.outputs[0], largest)


def quantize_at_run_time(editor: Editor, linear: Linear, codes: NDArray[np.int8], scale: Array) -> None:
    """Quantize a layer's input by its own range in every run: DynamicQuantizeLinear, MatMulInteger, and the steps behind.

    Args:
        editor: Of the graph.
        linear: The layer.
        codes: int8 [K, M].
        scale: Step of each output channel, float [M].
    """
    node, stem = linear.matmul, linear.name
    result, float32 = node.outputs[0], ir.TensorType(ir.DataType.FLOAT)
    quantized, step, zero = _share_range(editor, linear.input)
    weight = editor.constant(f"{stem}.codes", codes)
    steps = editor.constant(f"{stem}.scale", scale.astype(np.float32))
    product = ir.node("MatMulInteger", [quantized, weight, zero], name=f"{stem}Integer")
    cast = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{stem}/Cast")
    whole = ir.node("Mul", [step, steps], name=f"{stem}/Mul_scale")
    scaled = ir.node("Mul", [cast.outputs[0], whole.outputs[0]], name=f"{stem}/Mul")
    declare(product.outputs[0], ir.TensorType(ir.DataType.INT32), result.shape)
    declare(whole.outputs[0], float32, scale.shape)
    for each in (cast, scaled):
        declare(each.outputs[0], float32, result.shape)
    editor.insert([product, cast, whole, scaled], node)
    editor.replace(result, scaled.outputs[0])


def _share_range(editor: Editor, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes, step and zero of a tensor: one DynamicQuantizeLinear for all layers, before the first user of the tensor."""
    users = [use.node for use in value.uses()]
    node = next((user for user in users if user.op_type == "DynamicQuantizeLinear"), None)
    if node is None:
        node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}/DynamicQuantizeLinear")
        codes = ir.TensorType(ir.DataType.UINT8)
        shapes = ((codes, value.shape), (ir.TensorType(ir.DataType.FLOAT), ()), (codes, ()))
        for out, (type_, shape) in zip(node.outputs, shapes, strict=True):
            declare(out, type_, shape)
        editor.insert([node], find_first(users))
    return node.outputs[0], node.outputs[1], node.outputs[2]
