"""Convolutions of 1 x 1 pixels as the linear layers that they are, on channels that come last: [N, H, W, C].

Each is turned before and behind. What treats each pixel alone is then put before the Transpose behind it, as in `turns`, until
the two of neighbours meet: a block of such convolutions needs none in the end. What comes of another convolution is turned once,
before positions are added.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import Array, constant, integer, is_constant, maker, maker_name, number, only_user, sizes, text, whole

_ALONE = frozenset(("Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "HardSigmoid", "Clip"))
_FROM_PIXELS = frozenset(("Cast", "Transpose", "Reshape", "Sub", "Add", "Mul", "Div", "Identity"))


def split_pointwise(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write a convolution of 1 x 1 pixels, but for one that takes the image itself, as MatMul and Add between two Transposes.

    Yields:
        The nodes that took its place.
    """
    for node in list(editor.graph):
        shape, value, out = sizes(node.outputs[0]), node.inputs[0] if node.inputs else None, node.outputs[0]
        if value is None or shape is None or not is_pointwise(node) or _is_image(value):
            continue
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        numbers = constant(weight)
        if weight is None or numbers is None or (bias is not None and not is_constant(bias)) or sizes(value) is None:
            continue
        last, second = _axes(len(shape))
        turned = editor.add(node, "Transpose", [value], perm=last)
        matrix = np.ascontiguousarray(numbers.reshape(numbers.shape[:2]).T)
        product = editor.add(node, "MatMul", [turned, editor.derive(weight, "pointwise", matrix)])
        made = [maker_name(product)]
        if bias is not None:
            product = editor.add(node, "Add", [product, bias])
            made.append(maker_name(product))
        result = editor.add(node, "Transpose", [product], perm=second)
        result.type, result.shape = out.type, out.shape
        editor.replace(out, result)
        yield tuple(made)


def sink_channels(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Put what treats each pixel alone before the Transpose that takes the channels from the last place to the second.

    Yields:
        The node.
    """
    for node in list(editor.graph):
        shape = sizes(node.outputs[0]) if node.domain == "" and node.graph is not None else None
        if shape is None:
            continue
        if node.op_type == "Transpose":
            done = _join_pixels(editor, node)
        elif node.op_type == "ReduceMean":
            done = _pool(editor, node)
        else:
            done = node.op_type in _ALONE and len(shape) > 3 and (_lift(editor, node, shape) or _sink(editor, node, shape))
        if done:
            yield (str(node.name),)


def is_pointwise(node: ir.Node) -> bool:
    """Whether a node is a convolution of 1 x 1 pixels, each with all channels."""
    if node.op_type != "Conv" or node.domain != "":
        return False
    kernel = sizes(node.inputs[1])
    plain = all(each == 1 for each in whole(node, "strides") or ()) and not any(whole(node, "pads") or ())
    known = kernel is not None and all(size == 1 for size in kernel[2:]) and text(node, "auto_pad", "NOTSET") != "SAME_LOWER"
    return plain and known and integer(node, "group", 1) == 1


def _axes(rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the Transposes that bring the channels to the last place, and back to the second."""
    return (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))


def _is_image(value: ir.Value) -> bool:
    """Whether a tensor is the graph's input, moved and normalised."""
    here: ir.Value | None = value
    while here is not None and (node := here.producer()) is not None and node.op_type in _FROM_PIXELS:
        here = node.inputs[0]
    return here is not None and here.is_graph_input()


def _is_turned(value: ir.Value | None) -> bool:
    """Whether a value was made by the Transpose that brings channels from the last place to the second.

    Of three axes both ways are the same one, so that what is a map and what are tokens can't be told: those stay.
    """
    node = maker(value, "Transpose")
    shape = sizes(value)
    return node is not None and shape is not None and whole(node, "perm") == _axes(len(shape))[1] and len(shape) > 3


def _sink(editor: Editor, node: ir.Node, shape: tuple[int | str | None, ...]) -> bool:
    tables = {place: table for place, value in enumerate(node.inputs) if (table := constant(value)) is not None}
    computed = [value for place, value in enumerate(node.inputs) if value is not None and place not in tables]
    if not any(_is_turned(value) for value in computed) or any(len(sizes(value) or ()) != len(shape) for value in computed):
        return False
    if node.op_type in ("Clip", "HardSwish") and any(table.ndim for table in tables.values()):
        return False
    if not all(_is_turned(value) for value in computed) and node.op_type != "Add":
        return False  # only a residual stream is worth a Transpose of its own
    last, second = _axes(len(shape))
    for place, value in enumerate(list(node.inputs)):
        if value is not None and place not in tables:
            editor.rewire(node, place, _channels_last(editor, node, value))
        elif value is not None and number(value) is None:
            editor.rewire(node, place, editor.derive(value, "channels last", _turn(tables[place], len(shape))))
    out = node.outputs[0]
    editor.turn(node, second)
    out.shape = ir.Shape([shape[axis] for axis in last])
    return True


def _lift(editor: Editor, node: ir.Node, shape: tuple[int | str | None, ...]) -> bool:
    """What is turned to channels last by all that use it is computed that way: positions added to what a convolution gives."""
    last, out = _axes(len(shape))[0], node.outputs[0]
    computed = [place for place, value in enumerate(node.inputs) if value is not None and constant(value) is None]
    turns = list(dict.fromkeys(use.node for use in out.uses()))
    if len(computed) != 1 or not turns or out.is_graph_output() or sizes(node.inputs[computed[0]]) != shape:
        return False
    if not all(maker(turn.outputs[0], "Transpose") and whole(turn, "perm") == last for turn in turns):
        return False
    for place, value in enumerate(list(node.inputs)):
        table = constant(value)
        if place in computed and value is not None:
            editor.rewire(node, place, _channels_last(editor, node, value))
        elif value is not None and table is not None and number(value) is None:
            editor.rewire(node, place, editor.derive(value, "channels last", _turn(table, len(shape))))
    out.shape = ir.Shape([shape[axis] for axis in last])
    for turn in turns:
        editor.replace(turn.outputs[0], out)
    return True


def _channels_last(editor: Editor, node: ir.Node, value: ir.Value) -> ir.Value:
    above = value.producer()
    if _is_turned(value) and above is not None and above.inputs[0] is not None:
        return above.inputs[0]
    shape = sizes(value)
    assert shape is not None
    axes = _axes(len(shape))[0]
    turned = editor.add(node, "Transpose", [value], perm=axes)
    turned.type, turned.shape = value.type, ir.Shape([shape[axis] for axis in axes])
    return turned


def _pool(editor: Editor, node: ir.Node) -> bool:
    """The mean over all pixels: what is left is [N, C] either way."""
    value = node.inputs[0]
    shape = sizes(value)
    if value is None or shape is None or not _is_turned(value) or integer(node, "keepdims", 1):
        return False
    axes, rank = whole(node, "axes", 1), len(shape)
    if axes is None or {axis % rank for axis in axes} != set(range(2, rank)):
        return False
    places = tuple(range(1, rank - 1))
    if "axes" in node.attributes:
        node.attributes["axes"] = ir.AttrInt64s("axes", places)
    else:
        editor.rewire(node, 1, editor.constant(f"{node.name}.axes", np.array(places, np.int64)))
    editor.rewire(node, 0, _channels_last(editor, node, value))
    return True


def _join_pixels(editor: Editor, node: ir.Node) -> bool:
    """[N, H, W, C] -> [N, C, H, W] -> [N, C, H W] -> [N, H W, C] is one Reshape."""
    join = maker(node.inputs[0], "Reshape")
    value = None if join is None else join.inputs[0]
    shape, joined, target = sizes(value), sizes(node.inputs[0]), sizes(node.outputs[0])
    if value is None or shape is None or joined is None or target is None or whole(node, "perm") != (0, 2, 1):
        return False
    if len(shape) != 4 or len(joined) != 3 or not _is_turned(value) or joined[:2] != shape[:2] or only_user(value) is None:
        return False
    if not isinstance(target[1], int) or not isinstance(target[2], int):
        return False
    tokens = editor.constant(
        f"{node.name}.shape", np.array([target[0] if isinstance(target[0], int) else -1, *target[1:]], np.int64)
    )
    flat = editor.add(node, "Reshape", [_channels_last(editor, node, value), tokens])
    flat.type, flat.shape = node.outputs[0].type, node.outputs[0].shape
    return editor.replace(node.outputs[0], flat)


def _turn(table: Array, rank: int) -> Array:
    """A constant that goes with [N, C, ...] as it goes with [N, ..., C]; a vector where it has a number a channel."""
    turned = table.reshape((1,) * (rank - table.ndim) + table.shape).transpose(_axes(rank)[0])
    return np.ascontiguousarray(turned.reshape(-1) if turned.size == turned.shape[-1] else turned)
