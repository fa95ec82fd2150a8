"""The patch embedding in INT8: the one input whose values are known beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph import qdq
from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.query import constant, whole
from vitdeploy.quant import rounding

Array = NDArray[Any]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in units of one of a pixel's 256 values."""
_MIDDLE = 128


def quantize_patches(editor: Editor, contract: Normalisation, pixels: Iterable[Array], *, codes: int) -> list[str]:
    """Quantize the convolution that takes the pixels, in place.

    A pixel has 256 values. So the input is brought back to them and rounded with a step of 1, which loses nothing, and the
    normalisation goes into the weights. The zero point is the mean pixel: what rounding does to the weights is multiplied by the
    distance from it. All this stands before the axes are moved, where there are pixels with channels last: OpenVINO takes a
    Transpose behind the Q/DQ pair into the convolution, and leaves a convolution float whose pair stands behind the Transpose.

    Args:
        editor: Of the graph.
        contract: Mean and standard deviation that were taken from the pixels.
        pixels: Some images as the model takes them.
        codes: Greatest code of a weight.

    Returns:
        The convolution's name, if there is one that can be quantized.
    """
    conv = next((node for node in editor.graph if node.op_type == "Conv"), None)
    weight = None if conv is None else constant(conv.inputs[1])
    if conv is None or weight is None or any(whole(conv, "pads") or ()):
        return []
    value, bias = conv.inputs[0], constant(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weight))
    mean, std = (np.asarray(each, np.float64)[:, None, None] for each in contract)  # [C, 1, 1]
    if value is None or bias is None or not _from_pixels(value) or weight.shape[1] != len(mean):
        return []
    zero = int(np.clip(np.rint(mean.mean()), 0, 255)) if np.any(mean) else _MIDDLE
    reader, order = _find_reader(conv)
    value = _scale(editor, reader, _move(std, order), _move(mean - zero, order))
    shifted = (bias - (weight * ((mean - zero) / std)).sum((1, 2, 3))).astype(np.float32)
    editor.own(conv, 2, shifted)
    flat = (weight / std).reshape(len(weight), -1).T  # [C kh kw, M]
    scale = rounding.steps(flat, codes=codes)
    second = _patch_moments(pixels, weight.shape, (std, mean - zero))
    rounded = rounding.compensate(flat, scale, second, codes=codes).T.reshape(weight.shape)
    qdq.quantize(editor, value, qdq.Codes(1.0, zero, np.uint8), [(reader, 0)])
    qdq.quantize_convolution(editor, conv, np.ascontiguousarray(rounded), scale)
    return [str(conv.name)]


def _patch_moments(pixels: Iterable[Array], shape: tuple[int, ...], affine: tuple[Array, Array]) -> Array:
    """E[x x^T] of the patches as the convolution will see them, float64 [K, K]; the identity without images."""
    _, channels, height, width = shape
    total, count = np.zeros((channels * height * width,) * 2), 0
    for batch in pixels:
        images = batch if batch.shape[1] == channels else np.moveaxis(batch, -1, 1)  # [n, C, H, W]
        images = (images * affine[0] + affine[1]).astype(np.float32)
        rows, columns = images.shape[2] // height, images.shape[3] // width
        cut = images[:, :, : rows * height, : columns * width].reshape(len(images), channels, rows, height, columns, width)
        patches = cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, len(total))
        total += patches.T @ patches
        count += len(patches)
    return total / count if count else np.eye(len(total))


def _find_reader(conv: ir.Node) -> tuple[ir.Node, tuple[int, ...]]:
    """The first node that moves the axes of the pixels, or the convolution; and which axis of its input each of the last is."""
    reader, order = conv, tuple(range(4))
    while (value := reader.inputs[0]) is not None and (node := value.producer()) is not None and node.op_type == "Transpose":
        axes = whole(node, "perm")
        if axes is None or axes[0] != 0 or len(list(value.uses())) > 1:
            break
        reader, order = node, tuple(axes[axis] for axis in order)
    return reader, order


def _move(numbers: Array, order: tuple[int, ...]) -> Array:
    """Numbers for the convolution's input [C, 1, 1] as `_find_reader`'s input has its axes."""
    moved: Array = np.transpose(numbers[None], np.argsort(order))[0]
    return moved


def _scale(editor: Editor, reader: ir.Node, factor: Array, offset: Array) -> ir.Value:
    """A node's input times a factor plus an offset, which it takes from now on."""
    value = reader.inputs[0]
    assert value is not None
    mul = ir.node("Mul", [value, editor.constant("pixels.factor", factor.astype(np.float32))], name="pixels/Mul")
    add = ir.node("Add", [mul.outputs[0], editor.constant("pixels.offset", offset.astype(np.float32))], name="pixels/Add")
    for node in (mul, add):
        declare(node.outputs[0], value.type, value.shape)
    editor.insert([mul, add], reader)
    editor.rewire(reader, 0, add.outputs[0])
    return add.outputs[0]


def _from_pixels(value: ir.Value) -> bool:
    """Whether only casts and moves stand between the graph's input and a tensor."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Transpose") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value.is_graph_input()
