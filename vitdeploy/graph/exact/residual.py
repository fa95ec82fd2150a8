"""Rewrites of the residual stream: turned as a whole, and cut down to the class token in the last block.

What reads the stream and what writes to it is found in the graph. A writer is turned with its weights, a reader that is a
block's LayerNorm needs nothing (its layers turn back), and any other reader gets the stream turned back: for a model that
pools its class token this is one product of one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import constant, integer, whole
from vitdeploy.graph.layers import Linear, add_constant, declare, insert, insert_linear, insert_split, own, release, resized
from vitdeploy.graph.moves import MOVES, move, path
from vitdeploy.graph.structure import Attention, Structure

Double = NDArray[np.float64]
_KEEPING = MOVES | {"Concat", "Pad", "Expand"}
_TURNED = 2
"""Writers that have no weights to turn (a norm before the first block, convolved positions), at most: each costs a product."""


@dataclass
class _Stream:
    """The residual stream as far as it was followed."""

    width: int
    values: dict[ir.Value, None] = field(default_factory=dict)
    linears: dict[Linear, None] = field(default_factory=dict)
    tables: dict[tuple[ir.Node, int], None] = field(default_factory=dict)
    patches: dict[ir.Node, None] = field(default_factory=dict)
    turned: dict[ir.Value, None] = field(default_factory=dict)
    readers: dict[tuple[ir.Node, int], ir.Value] = field(default_factory=dict)
    norms: dict[ir.Node, None] = field(default_factory=dict)


def rotate(structure: Structure, turn: Double) -> bool:
    """Turn the residual stream: x R in place of x everywhere; False (and nothing changed) when it can't be followed.

    Args:
        structure: Every norm of the stream with gamma 1 and beta 0, and with no other users than its layers.
        turn: R, float64 [C, C], orthogonal with R 1 = 1.
    """
    stream = _follow(structure, len(turn))
    if stream is None:
        return False
    for linear in stream.linears:
        linear.write(linear.weight @ turn, linear.bias @ turn)
    for node, index in stream.tables:
        table = constant(node.inputs[index])
        assert table is not None
        own(node, index, (table.astype(np.float64) @ turn).astype(np.float32))
    for conv in stream.patches:
        weight, bias = constant(conv.inputs[1]), constant(conv.inputs[2] if len(conv.inputs) > 2 else None)
        assert weight is not None
        own(conv, 1, np.einsum("mchw,mn->nchw", weight.astype(np.float64), turn).astype(np.float32))
        if bias is not None:
            own(conv, 2, (bias.astype(np.float64) @ turn).astype(np.float32))
    for value in stream.turned:
        kept = {key for key, read in stream.readers.items() if read is value}
        _insert(value, turn, "rotate", [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in kept])
    for value in dict.fromkeys(stream.readers.values()):
        if value not in stream.turned:
            _insert(value, turn.T, "rotate_back", [key for key, read in stream.readers.items() if read is value])
    for site in structure.sites:
        if site.maker in stream.norms:
            for linear in site.linears:
                linear.write(turn.T @ linear.weight)
    return True


def _insert(value: ir.Value, turn: Double, name: str, uses: Iterable[tuple[ir.Node, int]]) -> None:
    """A product with a constant matrix behind a value, put into the given uses."""
    maker, uses = value.producer(), list(uses)
    assert maker is not None
    stem = f"{str(maker.name).rpartition('/')[0] or maker.name}.{name}"
    matrix = add_constant(maker, f"{stem}.weight", turn.astype(np.float32))
    node = ir.node("MatMul", [value, matrix], name=f"{stem}/MatMul")
    declare(node.outputs[0], value.type, value.shape)
    insert([node], maker, behind=True)
    for user, index in uses:
        user.replace_input_with(index, node.outputs[0])


def _follow(structure: Structure, width: int) -> _Stream | None:
    """All of the stream, from the norms before attentions; None when something on it is not understood."""
    stream = _Stream(width)
    norms = {site.maker: site for site in structure.sites if site.kind == "norm" and site.maker is not None}
    outputs = {linear.output: linear for linear in (*structure.linears, *structure.outside)}
    first = {linear for attention in structure.attentions for linear in attention.linears}
    queue = [node.inputs[0] for node, site in norms.items() if first.intersection(site.linears)]
    while queue:
        value = queue.pop()
        if value is None or value.is_graph_output() or value.is_graph_input():
            return None
        if value in stream.values:
            continue
        stream.values[value] = None
        above = _above(value, stream, outputs)
        if above is None:
            return None
        queue += [*above, *_below(value, stream, norms)]
    stream.readers = {use: value for use, value in stream.readers.items() if use[0].outputs[0] not in stream.values}
    understood = len(stream.turned) <= _TURNED and all(norms[node].only and _bare(node) for node in stream.norms)
    return stream if stream.norms and understood else None


def _bare(norm: ir.Node) -> bool:
    """Whether a norm has weight 1 and bias 0, as far as it has them."""
    weight, bias = constant(norm.inputs[1]), constant(norm.inputs[2]) if len(norm.inputs) > 2 else None
    return weight is not None and bool((weight == 1).all()) and (bias is None or not bias.any())


def _above(value: ir.Value, stream: _Stream, outputs: dict[ir.Value, Linear]) -> list[ir.Value] | None:
    """What a value of the stream is made of: further values; writers are noted; None for what can't be turned."""
    if value in outputs:
        stream.linears[outputs[value]] = None
        return []
    node, conv = value.producer(), _patches(value, stream.width)
    if conv is not None:
        stream.patches[conv] = None
        return []
    parts = None if node is None else _parts(node, stream)
    if parts is None:
        stream.turned[value] = None  # a writer that no weights turn: the product with R is computed
        return [] if value.shape is not None and len(value.shape) and value.shape[-1] == stream.width else None
    return parts


def _parts(node: ir.Node, stream: _Stream) -> list[ir.Value] | None:
    """The operands of an Add, or of a node that moves rows of channels, tables noted; None for any other node."""
    found, tables = list[ir.Value](), list[int]()
    for index, part in enumerate(node.inputs):
        if part is None or (index and node.op_type not in ("Add", "Concat")):
            continue
        table = constant(part)
        if table is None:
            found.append(part)
        elif table.ndim and table.shape[-1] == stream.width:
            tables.append(index)
        elif node.op_type != "Add" or (table.ndim and table.shape[-1] != 1):  # one number for all channels: R leaves it
            return None
    if node.op_type != "Add" and not all(_keeps(node, part, stream.width) for part in found):
        return None
    stream.tables.update({(node, index): None for index in tables})
    return found


def _below(value: ir.Value, stream: _Stream, norms: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """Values further down that carry the stream; any other user is noted as a reader."""
    for use in value.uses():
        node = use.node
        if node in norms and use.idx == 0:
            stream.norms[node] = None
        elif node.op_type == "Add" or (_keeps(node, value, stream.width) and (use.idx == 0 or node.op_type == "Concat")):
            yield from node.outputs
        else:
            stream.readers[node, use.idx] = value


def _keeps(node: ir.Node, value: ir.Value, width: int) -> bool:
    """Whether a node moves an input as a whole row of channels: they are the last axis before and after, in their order."""
    shapes = [part.shape for part in (value, *node.outputs)]
    if node.op_type not in _KEEPING or any(shape is None or not len(shape) or shape[-1] != width for shape in shapes):
        return False
    rank = len(value.shape or ())
    if node.op_type == "Transpose":
        return (whole(node, "perm") or (0,))[-1] == rank - 1
    if node.op_type == "Slice":
        axes = whole(node, "axes", 3)
        return axes is not None and not {-1, rank - 1}.intersection(axes)
    return node.op_type not in ("Gather", "Split", "Concat") or integer(node, "axis", 0) not in (-1, rank - 1)


def _patches(value: ir.Value, width: int) -> ir.Node | None:
    """The convolution whose channels are a value's last axis, with only moves between, used by nothing else."""
    node, here = value.producer(), value
    for _ in range(6):
        if node is None or node.inputs[0] is None:
            return None
        if node.op_type == "Conv":
            break
        if node.op_type not in ("Reshape", "Transpose", "Flatten") or len(list(node.inputs[0].uses())) != 1:
            return None
        here = node.inputs[0]
        node = here.producer()
    if node is None or node.op_type != "Conv" or integer(node, "group", 1) != 1:
        return None
    shape = node.outputs[0].shape
    sizes = [] if shape is None else [size for size in list(shape)[1:] if isinstance(size, int)]
    if len(sizes) != 3 or sizes[0] != width:
        return None
    numbers = np.broadcast_to(np.arange(width)[None, :, None, None], (1, *sizes))
    moved = move(numbers, node.outputs[0], path(value, node.outputs[0]), value)
    return node if moved is not None and moved.shape[-1] == width and (moved == np.arange(width)).all() else None


def class_token(model: ir.Model, structure: Structure) -> list[str]:
    """Compute the last block for the tokens that are read alone, after keys and values; the names of the nodes cut down.

    The model must pool by taking tokens from the start of the sequence (class token, distillation token).
    """
    attention = structure.attentions[-1] if structure.attentions else None
    cut = None if attention is None else _cut(attention)
    if attention is None or cut is None:
        return []
    add, count, tokens, below = cut
    _own_query(attention, count)
    for node in _between(attention):
        for index, part in enumerate(node.inputs):
            bias = constant(part)
            if bias is not None and bias.ndim >= 2 and bias.shape[-2] == tokens:
                own(node, index, np.ascontiguousarray(bias[..., :count, :]))
        declare(node.outputs[0], node.outputs[0].type, resized(node.outputs[0], -2, count))
    _merge_heads(attention, count)
    assert attention.projection is not None
    product = attention.projection.matmul.outputs[0]
    index = next(place for place, part in enumerate(add.inputs) if part is not attention.projection.output)
    before = add.inputs[index]
    assert before is not None
    add.replace_input_with(index, _first(before, count, add))
    for value in dict.fromkeys((product, attention.projection.output, *below)):
        declare(value, value.type, resized(value, 1, count))
    return [str(node.name) for node in model.graph if any(value in below or value is product for value in node.outputs)]


def _cut(attention: Attention) -> tuple[ir.Node, int, int, dict[ir.Value, None]] | None:
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
    if mixed[0] != mixed[1] or not all(_private(node, shape[1]) for node in _between(attention)):
        return None
    below = _read(users[0], shape[1])
    return None if below is None or 2 * below[0] > shape[1] else (users[0], below[0], shape[1], below[1])


def _private(node: ir.Node, tokens: int) -> bool:
    """Whether a node between q k^T and the context has one user, and nothing but constants beside the scores."""
    others = [part for part in node.inputs if part is not None]
    tables = [table for part in others if (table := constant(part)) is not None]
    alone = len(list(node.outputs[0].uses())) == 1 and not node.outputs[0].is_graph_output()
    return (
        alone
        and (node.op_type == "MatMul" or len(others) - len(tables) == 1)
        and all(table.ndim < 2 or table.shape[-2] in (1, tokens) for table in tables)
    )


def _between(attention: Attention) -> list[ir.Node]:
    """From the product of q and k to that with the values."""
    found, value = [attention.context, attention.softmax], attention.softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        found.append(node)
        if node is attention.scores:
            break
        value = next((part for part in node.inputs if part is not None and constant(part) is None), None)
    return found


def _read(start: ir.Node, tokens: int) -> tuple[int, dict[ir.Value, None]] | None:
    """How many tokens from the start are read below an Add, and all tensors from it to there; None when read otherwise."""
    most, seen = 0, {start.outputs[0]: None}
    queue, inner = [start.outputs[0]], dict[ir.Node, None]()
    while queue:
        here = queue.pop()
        if here.is_graph_output():
            return None
        for use in here.uses():
            node = use.node
            taken = _taken(node, tokens) if use.idx == 0 else None
            if taken is not None:
                most = max(most, taken)
                continue
            if not _pointwise(node, tokens) and not (Linear.of(node) and use.idx == 0):
                return None
            inner[node] = None
            outs = node.outputs if node.op_type == "Split" else node.outputs[:1]
            queue += [out for out in outs if out not in seen]
            seen.update(dict.fromkeys(outs))
    parts = [part for node in inner for part in node.inputs if part is not None and constant(part) is None]
    return (most, seen) if most and all(part in seen for part in parts) else None


def _pointwise(node: ir.Node, tokens: int) -> bool:
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


def _taken(node: ir.Node, tokens: int) -> int | None:
    """One more than the last token that a Gather or Slice along the tokens takes."""
    if node.op_type == "Gather" and integer(node, "axis", 0) == 1:
        index = constant(node.inputs[1])
        return None if index is None or not index.size or index.min() < 0 else int(index.max()) + 1
    if node.op_type == "Slice" and whole(node, "axes", 3) == (1,) and (whole(node, "steps", 4) or (1,)) == (1,):
        ends, starts = whole(node, "ends", 2), whole(node, "starts", 1)
        if ends is not None and starts is not None and 0 <= starts[0] < ends[0] < tokens:
            return ends[0]
    return None


def _own_query(attention: Attention, count: int) -> None:
    """Give q a layer of its own on the first tokens; k and v, if they were packed with it, stay together."""
    query, key, value = attention.linears
    columns, *others = (part for part in attention.columns if part is not None)
    assert query is not None and key is not None and value is not None
    before, stem = query.matmul, query.name.removesuffix("/MatMul")
    weight, bias = query.weight, query.bias
    chosen = columns.reshape(-1)
    own_layer = insert_linear(before, _first(query.input, count, before), weight[:, chosen], bias[chosen], f"{stem}.query")
    ends = [(attention.scores, 0, own_layer.output, columns, (0, 2, 1, 3))]
    if key is query:
        flat = [part.reshape(-1) for part in others]
        rest = np.concatenate(flat)
        both = insert_linear(before, query.input, weight[:, rest], bias[rest], f"{stem}.rest")
        parts = insert_split(before, both.output, [len(part) for part in flat], f"{stem}.rest")
        ends += [
            (attention.scores, 1, parts[0], others[0], (0, 2, 3, 1)),
            (attention.context, 1, parts[1], others[1], (0, 2, 1, 3)),
        ]
    for node, index, part, shape, order in ends:
        old = node.inputs[index]
        node.replace_input_with(index, _heads(before, part, shape.shape, order))
        if old is not None:
            release(old)


def _heads(before: ir.Node, value: ir.Value, shape: tuple[int, ...], order: tuple[int, ...]) -> ir.Value:
    """[N, T, h d] as [N, T, h, d], then with its axes in another order."""
    assert value.shape is not None
    stem, sizes = str(value.name).removesuffix("_out"), [value.shape[0], value.shape[1], *shape]
    target = add_constant(before, f"{stem}.shape", np.array([-1, *sizes[1:]], np.int64))
    cut = ir.node("Reshape", [value, target], name=f"{stem}/Reshape")
    turned = ir.node("Transpose", cut.outputs, {"perm": order}, name=f"{stem}/Transpose")
    declare(cut.outputs[0], value.type, sizes)
    declare(turned.outputs[0], value.type, [sizes[axis] for axis in order])
    insert([cut, turned], before)
    return turned.outputs[0]


def _merge_heads(attention: Attention, count: int) -> None:
    """The context of the first tokens as [N, count, h d], into the projection."""
    projection, rows, context = attention.projection, attention.rows, attention.context.outputs[0]
    assert projection is not None and rows is not None and context.shape is not None
    stem, (heads, size) = str(attention.context.name), rows.shape
    target = add_constant(attention.context, f"{stem}.merged", np.array([-1, count, heads * size], np.int64))
    turned = ir.node("Transpose", [context], {"perm": (0, 2, 1, 3)}, name=f"{stem}/Transpose")
    merged = ir.node("Reshape", [turned.outputs[0], target], name=f"{stem}/Reshape")
    declare(turned.outputs[0], context.type, [context.shape[0], count, heads, size])
    declare(merged.outputs[0], context.type, [context.shape[0], count, heads * size])
    insert([turned, merged], attention.context, behind=True)
    old = projection.input
    projection.matmul.replace_input_with(0, merged.outputs[0])
    release(old)
    if (rows.reshape(-1) != np.arange(heads * size)).any():
        projection.write(projection.weight[rows.reshape(-1)])


def _first(value: ir.Value, count: int, before: ir.Node) -> ir.Value:
    """The first tokens of [N, T, C], put before a node."""
    name = f"{before.name}.tokens"
    bounds = [
        add_constant(before, f"{name}.{what}", np.array([number], np.int64))
        for what, number in (("starts", 0), ("ends", count), ("axes", 1))
    ]
    node = ir.node("Slice", [value, *bounds], name=f"{name}/Slice")
    declare(node.outputs[0], value.type, resized(value, 1, count))
    insert([node], before)
    return node.outputs[0]
