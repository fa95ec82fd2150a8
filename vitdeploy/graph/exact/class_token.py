"""The last block cut down to the class token: nothing behind it reads any other.

What is computed for a token alone (queries, the projection, the MLP) is computed for the tokens that are read; keys and values
stay, for those tokens look at all others.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.exact.head_axes import list_between, merge_heads, split_heads
from vitdeploy.graph.linear import insert_linear, insert_split, is_linear
from vitdeploy.graph.query import constant, integer, only_user, resize_axis, sizes, whole
from vitdeploy.graph.structure import Attention, Structure


def keep_class_token(editor: Editor, structure: Structure) -> list[str]:
    """Compute the last block for the tokens that are read alone, after keys and values; the names of the nodes cut down.

    The model must pool by taking tokens from the start of the sequence (class token, distillation token).
    """
    attention = structure.attentions[-1] if structure.attentions else None
    cut = None if attention is None else _find_cut(attention)
    if attention is None or cut is None:
        return []
    add, count, tokens, below = cut
    _own_query(editor, attention, count)
    for node in list_between(attention):
        for index, part in enumerate(node.inputs):
            bias = constant(part)
            if bias is not None and bias.ndim >= 2 and bias.shape[-2] == tokens:
                editor.own(node, index, np.ascontiguousarray(bias[..., :count, :]))
        declare(node.outputs[0], node.outputs[0].type, resize_axis(node.outputs[0], -2, count))
    merge_heads(editor, attention)
    assert attention.projection is not None
    product = attention.projection.matmul.outputs[0]
    index = next(place for place, part in enumerate(add.inputs) if part is not attention.projection.output)
    before = add.inputs[index]
    assert before is not None
    editor.rewire(add, index, _first_tokens(editor, before, count, add))
    for value in dict.fromkeys((product, attention.projection.output, *below)):
        declare(value, value.type, resize_axis(value, 1, count))
    return [str(node.name) for node in editor.graph if any(value in below or value is product for value in node.outputs)]


def _find_cut(attention: Attention) -> tuple[ir.Node, int, int, dict[ir.Value, None]] | None:
    """The first residual Add of the last block, how many tokens are read, how many there are, and what is below."""
    query, projection = attention.linears[0], attention.projection
    if query is None or projection is None or attention.rows is None or any(part is None for part in attention.columns):
        return None
    shape, users = query.output.shape, [use.node for use in projection.output.uses()]
    known = attention.context.outputs[0].shape
    if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or known is None or len(known) != 4:
        return None
    if len(users) != 1 or users[0].op_type != "Add" or any(constant(part) is not None for part in users[0].inputs):
        return None
    mixed = query is attention.linears[1], query is attention.linears[2]
    if mixed[0] != mixed[1] or not all(_is_private(node, shape[1]) for node in list_between(attention)):
        return None
    below = _find_readers(users[0], shape[1])
    return None if below is None or 2 * below[0] > shape[1] else (users[0], below[0], shape[1], below[1])


def _is_private(node: ir.Node, tokens: int) -> bool:
    """Whether a node between q k^T and the context has one user, and beside the scores only what is one for all queries."""
    others = [part for part in node.inputs if part is not None and not _is_one_for_all(node, part)]
    tables = [table for part in others if (table := constant(part)) is not None]
    return (
        only_user(node.outputs[0]) is not None
        and node.op_type != "Reshape"  # of windows
        and (node.op_type == "MatMul" or len(others) - len(tables) == 1)
        and all(table.ndim < 2 or table.shape[-2] in (1, tokens) for table in tables)
    )


def _is_one_for_all(node: ir.Node, part: ir.Value) -> bool:
    """Whether an Add gives every query the same of something that is computed, as what merged tokens stand for."""
    shape = sizes(part)
    return node.op_type == "Add" and constant(part) is None and shape is not None and len(shape) > 1 and shape[-2] == 1


def _find_readers(start: ir.Node, tokens: int) -> tuple[int, dict[ir.Value, None]] | None:
    """How many tokens from the start are read below an Add, and all tensors from it to there; None when read otherwise."""
    most, seen = 0, {start.outputs[0]: None}
    queue, inner = [start.outputs[0]], dict[ir.Node, None]()
    while queue:
        here = queue.pop()
        if here.is_graph_output():
            return None
        for use in here.uses():
            node = use.node
            taken = _count_taken(node, tokens) if use.idx == 0 else None
            if taken is not None:
                most = max(most, taken)
                continue
            if not _is_pointwise(node, tokens) and not (is_linear(node) and use.idx == 0):
                return None
            inner[node] = None
            outs = node.outputs if node.op_type == "Split" else node.outputs[:1]
            queue += [out for out in outs if out not in seen]
            seen.update(dict.fromkeys(outs))
    parts = [part for node in inner for part in node.inputs if part is not None and constant(part) is None]
    return (most, seen) if most and all(part in seen for part in parts) else None


def _is_pointwise(node: ir.Node, tokens: int) -> bool:
    """Whether a node treats each token alone, and with the same constants."""
    tables = [table for part in node.inputs[1:] if (table := constant(part)) is not None]
    if node.op_type == "Split":
        return integer(node, "axis", 0) in (-1, 2)
    if node.op_type == "Slice":
        return whole(node, "axes", 3) in ((-1,), (2,))
    if any(table.ndim >= 2 and table.shape[-2] == tokens for table in tables):
        return False
    if node.op_type == "LayerNormalization":
        return integer(node, "axis", -1) in (-1, 2) and not any(out.uses() for out in node.outputs[1:])
    return node.op_type in ("Add", "Mul", "Gelu", "Sigmoid", "Tanh", "Relu", "Div")


def _count_taken(node: ir.Node, tokens: int) -> int | None:
    """One more than the last token that a Gather or Slice along the tokens takes."""
    if node.op_type == "Gather" and integer(node, "axis", 0) == 1:
        index = constant(node.inputs[1])
        return None if index is None or not index.size or index.min() < 0 else int(index.max()) + 1
    if node.op_type == "Slice" and whole(node, "axes", 3) == (1,) and (whole(node, "steps", 4) or (1,)) == (1,):
        ends, starts = whole(node, "ends", 2), whole(node, "starts", 1)
        if ends is not None and starts is not None and 0 <= starts[0] < ends[0] < tokens:
            return ends[0]
    return None


def _own_query(editor: Editor, attention: Attention, count: int) -> None:
    """Give q a layer of its own on the first tokens; k and v, if they were packed with it, stay together."""
    query, key, value = attention.linears
    columns, *others = (part for part in attention.columns if part is not None)
    assert query is not None and key is not None and value is not None
    before, stem = query.matmul, query.name.removesuffix("/MatMul")
    weight, bias = query.weight, query.bias
    chosen = columns.reshape(-1)
    own_layer = insert_linear(
        editor, before, _first_tokens(editor, query.input, count, before), (weight[:, chosen], bias[chosen]), f"{stem}.query"
    )
    ends = [(attention.scores, 0, own_layer.output, columns, (0, 2, 1, 3))]
    if key is query:
        flat = [part.reshape(-1) for part in others]
        rest = np.concatenate(flat)
        both = insert_linear(editor, before, query.input, (weight[:, rest], bias[rest]), f"{stem}.rest")
        parts = insert_split(editor, before, both.output, [len(part) for part in flat], f"{stem}.rest")
        ends += [
            (attention.scores, 1, parts[0], others[0], (0, 2, 3, 1)),
            (attention.context, 1, parts[1], others[1], (0, 2, 1, 3)),
        ]
    for node, index, part, shape, order in ends:
        editor.rewire(node, index, split_heads(editor, before, part, (shape.shape, order)))


def _first_tokens(editor: Editor, value: ir.Value, count: int, before: ir.Node) -> ir.Value:
    """The first tokens of [N, T, C], put before a node."""
    name = f"{before.name}.tokens"
    bounds = [
        editor.constant(f"{name}.{what}", np.array([number], np.int64))
        for what, number in (("starts", 0), ("ends", count), ("axes", 1))
    ]
    node = ir.node("Slice", [value, *bounds], name=f"{name}/Slice")
    declare(node.outputs[0], value.type, resize_axis(value, 1, count))
    editor.insert([node], before)
    return node.outputs[0]
