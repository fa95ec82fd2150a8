"""Streams that put their tokens before the batch, [T, N, C], with the batch first: [N, T, C].

`torch.nn.MultiheadAttention` and what is built of it (CLIP's original code, `torch.nn.TransformerEncoder`) take tokens first
unless told otherwise. What treats each token alone gives the same before and behind a Transpose: it is put before it, until
the Transpose meets the one that turns back, or the tokens are pooled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import Array, constant, integer, maker, sizes, whole

_TURN = (1, 0, 2)
_FROM_CHANNELS = (2, 0, 1)
"""Of what a convolution gives, [N, C, T]."""
_ALONE = frozenset(("Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish", "LayerNormalization"))
"""Operators that treat each token alone, as far as their constants do."""


def sink_turns(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Put what treats each token alone, joins or pools tokens before the Transpose that takes the batch from the first place.

    Yields:
        The node.
    """
    batch = {shape[0] for value in editor.graph.inputs if (shape := sizes(value))} - {None}
    for node in list(editor.graph):
        shape = sizes(node.outputs[0]) if node.domain == "" and node.graph is not None else None
        if shape is None:
            continue
        if node.op_type in ("Gather", "ReduceMean", "ReduceMax"):
            done = _pool(editor, node, batch)
        elif len(shape) != 3 or shape[1] not in batch:
            continue
        elif node.op_type == "Concat" and integer(node, "axis", 0) == 0:
            done = any(_is_turned(value, batch) for value in node.inputs) and _join(editor, node)
        else:
            done = node.op_type in _ALONE and _sink(editor, node, batch)
        if done:
            yield (str(node.name),)


def _pool(editor: Editor, node: ir.Node, batch: Collection[int | str | None]) -> bool:
    """One token, or the mean of all: what is left is [N, C] either way."""
    if not _is_turned(node.inputs[0], batch):
        return False
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        if integer(node, "axis", 0) != 0 or index is None or index.ndim:
            return False
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
    else:
        if whole(node, "axes", 1) != (0,) or integer(node, "keepdims", 1):
            return False
        if "axes" in node.attributes:
            node.attributes["axes"] = ir.AttrInt64s("axes", (1,))
        else:
            editor.rewire(node, 1, editor.constant(f"{node.name}.axes", np.array([1], np.int64)))
    editor.rewire(node, 0, _unturn(editor, node, node.inputs[0]))
    return True


def _join(editor: Editor, node: ir.Node) -> bool:
    """Tokens and patches joined along the first axis are turned, and joined along the second."""
    for place, value in enumerate(list(node.inputs)):
        shape, table, expand = sizes(value), constant(value), maker(value, "Expand")
        tokens = None if expand is None else constant(expand.inputs[0])
        if value is None or shape is None or len(shape) != 3:
            return False
        if table is not None:
            turned = editor.derive(value, "turned", _turn(table))
        elif expand is not None and expand.inputs[0] is not None and tokens is not None and tokens.ndim <= 3:
            order = editor.constant(f"{node.name}.order", np.array(_TURN, np.int64))
            size = editor.add(node, "Gather", [expand.inputs[1], order], axis=0)
            turned = editor.add(node, "Expand", [editor.derive(expand.inputs[0], "turned", _turn(tokens)), size])
        else:
            turned = editor.add(node, "Transpose", [value], perm=_TURN)
        turned.type, turned.shape = value.type, ir.Shape([shape[1], shape[0], shape[2]])
        editor.rewire(node, place, turned)
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    _turn_behind(editor, node)
    return True


def _sink(editor: Editor, node: ir.Node, batch: Collection[int | str | None]) -> bool:
    tables = {place: table for place, value in enumerate(node.inputs) if (table := constant(value)) is not None}
    computed = [value for place, value in enumerate(node.inputs) if value is not None and place not in tables]
    shape = sizes(node.outputs[0])
    if not computed or not all(_is_turned(value, batch) and sizes(value) == shape for value in computed):
        return False
    if node.op_type == "LayerNormalization":
        along = integer(node, "axis", -1) in (-1, 2) and all(table.ndim <= 1 for table in tables.values())
        if not along or any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
            return False
    for place, value in enumerate(list(node.inputs)):
        if value in computed:
            editor.rewire(node, place, _unturn(editor, node, value))
        elif value is not None and tables[place].ndim > 1:
            editor.rewire(node, place, editor.derive(value, "turned", _turn(tables[place])))
    _turn_behind(editor, node)
    return True


def _turn_behind(editor: Editor, node: ir.Node) -> None:
    """Put the Transpose behind a node whose output is said to be [T, N, C], and from now on is [N, T, C]."""
    out = node.outputs[0]
    shape = sizes(out)
    assert shape is not None
    editor.turn(node, _TURN)
    out.shape = ir.Shape([shape[1], shape[0], shape[2]])


def _is_turned(value: ir.Value | None, batch: Collection[int | str | None]) -> bool:
    """Whether a value was made by a Transpose that puts the batch behind the tokens."""
    turn = maker(value, "Transpose")
    shape = None if turn is None else sizes(turn.inputs[0])
    if turn is None or shape is None or len(shape) != 3 or shape[0] not in batch:
        return False
    axes = whole(turn, "perm")
    return axes in (_TURN, _FROM_CHANNELS) and isinstance(shape[axes[0]], int)


def _unturn(editor: Editor, node: ir.Node, value: ir.Value | None) -> ir.Value:
    """What `_is_turned` found, with the batch first and the channels last."""
    turn = None if value is None else value.producer()
    assert turn is not None and turn.inputs[0] is not None
    source = turn.inputs[0]
    if whole(turn, "perm") == _TURN:
        return source
    shape, inner = sizes(source), editor.add(node, "Transpose", [source], perm=(0, 2, 1))
    assert shape is not None
    inner.type, inner.shape = source.type, ir.Shape([shape[0], shape[2], shape[1]])
    return inner


def _turn(table: Array) -> Array:
    """A constant that goes with [T, N, C] as it goes with [N, T, C]."""
    return np.ascontiguousarray(table.reshape((1,) * (3 - table.ndim) + table.shape).transpose(_TURN))
