"""Heads on an axis of their own: [N, h, T, d], whatever way the exporter went.

`torch.nn.MultiheadAttention` that also gives its probabilities counts images and heads on one axis, [N h, T, d], and moves its
axes seven times on the way there; so do exporters of its fused form. Steps that treat a head, or one token, alone want the two
apart, engines' kernels too, and every move is time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.linear import Linear, insert_split
from vitdeploy.graph.moves import MOVES, trace_path
from vitdeploy.graph.query import Array, constant, find_first, only_user, sizes
from vitdeploy.graph.structure import Attention, Structure

_MOST_MOVES = 7
"""Nodes from the layers to the products and behind them that are no roundabout way: a Split, then two for each of q, k and v."""
_ORDERS = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
"""Of the axes of q, k and v: [N, T, h, d] as the two products take them."""


def give_heads_an_axis(editor: Editor, structure: Structure) -> list[str]:
    """Lead q, k and v straight to the heads where images and heads share an axis, or the way is long; the Softmaxes' names.

    Where a factor still stands between a layer and a product (the rewrite query-scale was left out), all is left as it is.
    """
    done = []
    for attention in structure.attentions:
        if _is_known(attention) and (_is_flat(attention) or _count_moves(attention) > _MOST_MOVES) and _is_free(attention):
            _split_all(editor, attention)
            _declare_between(attention)
            merge_heads(editor, attention)
            done.append(attention.name)
    return done


def _is_known(attention: Attention) -> bool:
    """Whether all of its layers are known with their columns, and take the tokens in the place before the channels."""
    if any(part is None for part in (*attention.linears, *attention.columns, attention.projection, attention.rows)):
        return False
    scores = sizes(attention.scores.outputs[0])
    counts = (None, None) if scores is None else scores[-2:]
    tokens = [
        shape[1] for linear in attention.linears if linear is not None and (shape := sizes(linear.output)) and len(shape) == 3
    ]
    return tokens == [counts[0], counts[1], counts[1]] and all(isinstance(count, int) for count in counts)


def _is_flat(attention: Attention) -> bool:
    """Whether images and heads share an axis, or there is one head and no axis for it."""
    shape = attention.context.outputs[0].shape
    return shape is not None and len(shape) == 3


def _list_ways(attention: Attention) -> list[tuple[ir.Value, Linear, list[ir.Node]]]:
    """For each of q, k and v: what the product takes, the layer, and the nodes between."""
    ways = []
    for part, linear in zip((*attention.scores.inputs, attention.context.inputs[1]), attention.linears, strict=True):
        assert part is not None and linear is not None
        ways.append((part, linear, list(trace_path(part, linear.output))))
    return ways


def _count_moves(attention: Attention) -> int:
    assert attention.projection is not None
    behind = len(list(trace_path(attention.projection.input, attention.context.outputs[0])))
    return len({node for _, _, way in _list_ways(attention) for node in way}) + max(0, behind - 2)


def _is_free(attention: Attention) -> bool:
    """Whether every column of its layers is its own, only moved on the way, and what is added to its scores has heads first."""
    heads = len(_columns(attention, 2))
    for linear, places in _group(attention).items():
        chosen = np.concatenate([_columns(attention, place).reshape(-1) for place in places])
        if len(chosen) != linear.shape[1] or len(np.unique(chosen)) != len(chosen):
            return False
    if any(node.op_type not in MOVES for _, _, way in _list_ways(attention) for node in way):
        return False
    for node in list_between(attention):
        tables = [table for part in node.inputs if (table := constant(part)) is not None]
        if (
            only_user(node.outputs[0]) is None
            or node.op_type == "Reshape"
            or (node.op_type != "MatMul" and len(node.inputs) - len(tables) != 1)
        ):
            return False
        if _is_flat(attention) and any(table.ndim == 3 and table.shape[0] not in (1, heads) for table in tables):
            return False
    return True


def _columns(attention: Attention, place: int) -> Array:
    columns = attention.columns[place]
    assert columns is not None
    return columns


def _group(attention: Attention) -> dict[Linear, list[int]]:
    """The layers, and which of q (0), k (1) and v (2) each makes."""
    groups: dict[Linear, list[int]] = {}
    for place, linear in enumerate(attention.linears):
        assert linear is not None
        groups.setdefault(linear, []).append(place)
    return groups


def _split_all(editor: Editor, attention: Attention) -> None:
    """Lead each layer's columns to the products in three nodes at most."""
    ends = ((attention.scores, 0), (attention.scores, 1), (attention.context, 1))
    for linear, places in _group(attention).items():
        flat = [_columns(attention, place).reshape(-1) for place in places]
        order = np.concatenate(flat)
        if (order != np.arange(len(order))).any():
            linear.write(editor, linear.weight[:, order], linear.bias[order])
        before, stem = find_first(use.node for use in linear.output.uses()), linear.name.removesuffix("/MatMul")
        parts = [linear.output]
        if len(flat) > 1:
            parts = insert_split(editor, before, linear.output, [len(part) for part in flat], stem)
        values = [
            split_heads(editor, before, part, (_columns(attention, place).shape, _ORDERS[place]))
            for place, part in zip(places, parts, strict=True)
        ]
        for place, value in zip(places, values, strict=True):
            editor.rewire(*ends[place], value)


def _declare_between(attention: Attention) -> None:
    value = attention.scores.inputs[0]
    assert value is not None and value.shape is not None
    for node in list_between(attention):
        out = node.outputs[0]
        assert out.shape is not None
        declare(out, out.type, [*value.shape[:2], *list(out.shape)[-2:]])


def list_between(attention: Attention) -> list[ir.Node]:
    """From the product with the values up to that of q and k."""
    nodes, value = [attention.context, attention.softmax], attention.softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        nodes.append(node)
        if node is attention.scores:
            break
        value = next((part for part in node.inputs if part is not None and constant(part) is None), None)
    return nodes


def split_heads(editor: Editor, before: ir.Node, value: ir.Value, layout: tuple[tuple[int, ...], tuple[int, ...]]) -> ir.Value:
    """[N, T, h d] as [N, T, h, d], then with its axes in another order; ``layout`` is h and d, and the order."""
    shape, order = layout
    assert value.shape is not None
    stem, shape_of = str(value.name).removesuffix("_out"), [value.shape[0], value.shape[1], *shape]
    target = editor.constant(f"{stem}.shape", np.array([-1, *shape_of[1:]], np.int64))
    cut = ir.node("Reshape", [value, target], name=f"{stem}/Reshape")
    turned = ir.node("Transpose", cut.outputs, {"perm": order}, name=f"{stem}/Transpose")
    declare(cut.outputs[0], value.type, shape_of)
    declare(turned.outputs[0], value.type, [shape_of[axis] for axis in order])
    editor.insert([cut, turned], before)
    return turned.outputs[0]


def merge_heads(editor: Editor, attention: Attention) -> None:
    """The context [N, h, T, d] as [N, T, h d], into the projection."""
    projection, rows, context = attention.projection, attention.rows, attention.context.outputs[0]
    assert projection is not None and rows is not None and context.shape is not None
    stem, (heads, size), count = str(attention.context.name), rows.shape, context.shape[2]
    target = editor.constant(f"{stem}.merged", np.array([-1, count, heads * size], np.int64))
    turned = ir.node("Transpose", [context], {"perm": (0, 2, 1, 3)}, name=f"{stem}/Transpose")
    merged = ir.node("Reshape", [turned.outputs[0], target], name=f"{stem}/Reshape")
    declare(turned.outputs[0], context.type, [context.shape[0], count, heads, size])
    declare(merged.outputs[0], context.type, [context.shape[0], count, heads * size])
    editor.insert([turned, merged], attention.context, behind=True)
    editor.rewire(projection.matmul, 0, merged.outputs[0])
    if (rows.reshape(-1) != np.arange(heads * size)).any():
        projection.write(editor, projection.weight[rows.reshape(-1)])
