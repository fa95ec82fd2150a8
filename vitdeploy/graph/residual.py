"""Rewrites of the residual stream: turned as a whole, and cut down to the class token in the last block.

What reads the stream and what writes to it is found in the graph. A writer is turned with its weights, a reader that is a
block's LayerNorm needs nothing (its layers turn back), and any other reader gets the stream turned back: for a model that
pools its class token this is one product of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.structure import (
    MOVES,
    Attention,
    Linear,
    Structure,
    add_constant,
    constant,
    insert_linear,
    insert_split,
    ints,
    move,
    own,
    path,
)

Array = NDArray[Any]
Double = NDArray[np.float64]
_KEEPING = MOVES | {"Concat", "Pad", "Expand"}


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


def rotate(structure: Structure, turn: Double) -> bool:
    """Turn the residual stream: x R in place of x everywhere; False (and nothing changed) when it can't be followed.

    Args:
        structure: Every norm site with gamma 1 and beta 0, and with no other users than its layers.
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
        _insert(value, turn, "rotate", set(value.uses()))
    back: dict[ir.Value, ir.Value] = {}
    for (node, index), value in stream.readers.items():
        if value not in back:
            back[value] = _insert(value, turn.T, "rotate_back", set())
        node.replace_input_with(index, back[value])
    for site in structure.sites:
        if site.kind == "norm":
            for linear in site.linears:
                linear.write(turn.T @ linear.weight)
    return True


def _insert(value: ir.Value, turn: Double, name: str, uses: set[Any]) -> ir.Value:
    """A product with a constant matrix behind a value, put into the given uses."""
    maker = value.producer()
    assert maker is not None and isinstance(maker.graph, ir.Graph)
    stem = f"{str(maker.name).rpartition('/')[0] or maker.name}.{name}"
    matrix = add_constant(maker, f"{stem}.weight", turn.astype(np.float32))
    node = ir.node("MatMul", [value, matrix], name=f"{stem}/MatMul")
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{node.name}_out", value.type, value.shape
    maker.graph.insert_after(maker, node)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    return result


def _follow(structure: Structure, width: int) -> _Stream | None:
    stream = _Stream(width)
    norms = {site.maker for site in structure.sites if site.kind == "norm"}
    outputs = {linear.output: linear for linear in (*structure.linears, *structure.outside)}
    queue = [norm.inputs[0] for norm in norms if norm is not None and norm.inputs[0] is not None]
    if not queue or any(not site.only for site in structure.sites if site.kind == "norm"):
        return None
    while queue:
        value = queue.pop()
        if value in stream.values:
            continue
        if value.is_graph_output() or value.is_graph_input():
            return None
        stream.values[value] = None
        above = _above(value, stream, outputs)
        if above is None:
            return None
        queue += above
        queue += _below(value, stream, norms)
    stream.readers = {use: value for use, value in stream.readers.items() if use[0].outputs[0] not in stream.values}
    return stream


def _above(value: ir.Value, stream: _Stream, outputs: dict[ir.Value, Linear]) -> list[ir.Value] | None:
    """What a value of the stream is made of: further values, or writers, which are noted."""
    if value in outputs:
        stream.linears[outputs[value]] = None
        return []
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "LayerNormalization":
        stream.turned[value] = None
        return []
    conv = _patches(value, stream.width)
    if conv is not None:
        stream.patches[conv] = None
        return []
    if node.op_type not in _KEEPING and node.op_type != "Add":
        return None
    found = []
    for index, part in enumerate(node.inputs):
        if part is None or (index and node.op_type not in ("Add", "Concat")):
            continue
        table = constant(part)
        if table is None:
            found.append(part)
        elif table.ndim and table.shape[-1] == stream.width:
            stream.tables[node, index] = None
        else:
            return None
    return found if node.op_type == "Add" or all(_keeps(part, value, stream.width) for part in found) else None


def _below(value: ir.Value, stream: _Stream, norms: set[ir.Node | None]) -> Iterator[ir.Value]:
    """Values further down that carry the stream; any other user is noted as a reader."""
    for use in value.uses():
        node = use.node
        if node in norms:
            continue
        carries = node.op_type == "Add" or ((node.op_type in _KEEPING and use.idx == 0) or node.op_type == "Concat")
        if carries and (node.op_type == "Add" or _keeps(value, node.outputs[0], stream.width)):
            yield from node.outputs
        else:
            stream.readers[node, use.idx] = value


def _keeps(before: ir.Value, after: ir.Value, width: int) -> bool:
    """Whether both ends of a move have the channels last."""
    return all(value.shape is not None and len(value.shape) > 0 and value.shape[-1] == width for value in (before, after))


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
    if node is None or node.op_type != "Conv" or (ints(node, "group") or (1,))[0] != 1:
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

    The model must pool by taking tokens from the start of the sequence (class token, distillation token). Needs packed q, k, v.
    """
    attention = structure.attentions[-1] if structure.attentions else None
    cut = None if attention is None else _cut(attention, structure)
    if attention is None or cut is None:
        return []
    packed, count, tokens, add = cut
    query = _own_query(attention, packed, count)
    changed = [query.name]
    assert attention.projection is not None
    for node in [
        *_way(attention.scores.inputs[0], query.output),
        *_way(attention.projection.input, attention.context.outputs[0]),
    ]:
        target = ints(node, "shape", 1) if node.op_type == "Reshape" else None
        if target is not None:
            own(node, 1, np.array([count if size == tokens else size for size in target], np.int64))
        _resize(node, tokens, count)
        changed.append(str(node.name))
    for node in _between(attention.scores, attention.softmax):
        for index, part in enumerate(node.inputs):
            bias = constant(part)
            if bias is not None and bias.ndim >= 2 and bias.shape[-2] == tokens:
                own(node, index, np.ascontiguousarray(bias[..., :count, :]))
    index = next(place for place, part in enumerate(add.inputs) if part is not attention.projection.output)
    before = add.inputs[index]
    assert before is not None
    add.replace_input_with(index, _first(before, count, add))
    _shrink(add, tokens, count)
    return changed


def _cut(attention: Attention, structure: Structure) -> tuple[Linear, int, int, ir.Node] | None:
    """The packed layer, how many tokens are read, how many there are, and the first residual Add of the last block."""
    packed, projection = attention.packed, attention.projection
    if packed is None or projection is None or attention.rows is None or any(part is None for part in attention.columns):
        return None
    if structure.sites and not any(packed in site.linears and site.kind == "norm" and site.only for site in structure.sites):
        return None
    shape = packed.output.shape
    users = [use.node for use in projection.output.uses()]
    if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or len(users) != 1 or users[0].op_type != "Add":
        return None
    tokens, add = shape[1], users[0]
    widths = {size for part in attention.columns if part is not None for size in part.shape}
    if tokens in widths.union(*(linear.shape for linear in structure.linears)):
        return None  # which axis is the tokens' could not be told by its size
    count = _read(add.outputs[0], tokens)
    nodes = [_way(attention.scores.inputs[0], packed.output), _way(projection.input, attention.context.outputs[0])]
    if (
        not nodes[0]
        or nodes[0][0].op_type != "Split"
        or any(node.op_type not in ("Split", "Reshape", "Transpose") for way in nodes for node in way)
    ):
        return None
    return None if count is None or 2 * count > tokens else (packed, count, tokens, add)


def _read(value: ir.Value, tokens: int) -> int | None:
    """How many tokens from the start are read of a stream; None when it is read otherwise."""
    most, queue, seen = 0, [value], {value}
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
            pointwise = node.op_type in ("LayerNormalization", "Add", "Mul", "Gelu", "Sigmoid", "Tanh", "Relu", "Div")
            if not pointwise and not (Linear.of(node) and use.idx == 0):
                return None
            for out in node.outputs[:1]:
                if out not in seen:
                    seen.add(out)
                    queue.append(out)
    return most or None


def _taken(node: ir.Node, tokens: int) -> int | None:
    """One more than the last token that a Gather or Slice along the tokens takes."""
    if node.op_type == "Gather" and (ints(node, "axis") or (0,))[0] == 1:
        index = constant(node.inputs[1])
        return None if index is None or index.min() < 0 else int(index.max()) + 1
    if node.op_type == "Slice" and ints(node, "axes", 3) == (1,) and (ints(node, "steps", 4) or (1,)) == (1,):
        ends, starts = ints(node, "ends", 2), ints(node, "starts", 1)
        if ends is not None and starts is not None and starts[0] >= 0 and 0 < ends[0] < tokens:
            return ends[0]
    return None


def _own_query(attention: Attention, packed: Linear, count: int) -> Linear:
    """Give q a layer of its own on the first tokens; k and v stay packed."""
    first, *others = attention.columns
    assert first is not None
    split = _way(attention.scores.inputs[0], packed.output)[0]
    place = next(index for index, out in enumerate(split.outputs) if _leads(out, attention.scores))
    sizes = list(ints(split, "split", 1) or (packed.shape[1] // len(split.outputs),) * len(split.outputs))
    start = sum(sizes[:place])
    chosen = np.arange(start, start + sizes[place])
    rest = np.setdiff1d(np.arange(packed.shape[1]), chosen)
    weight, bias, stem = packed.weight, packed.bias, str(packed.matmul.name).removesuffix("/MatMul")
    query = insert_linear(
        packed.matmul, _first(packed.input, count, packed.matmul), weight[:, chosen], bias[chosen], f"{stem}.query"
    )
    packed.write(weight[:, rest], bias[rest])
    for node in (packed.matmul, packed.add):
        known = None if node is None else node.outputs[0].shape
        if node is not None and known is not None:
            node.outputs[0].shape = ir.Shape([*list(known)[:-1], len(rest)])
    left = [out for out in split.outputs if out is not split.outputs[place]]
    widths = [size for index, size in enumerate(sizes) if index != place]
    for old, new in zip(left, insert_split(split, packed.output, widths, f"{stem}.rest"), strict=True):
        old.replace_all_uses_with(new)
    split.outputs[place].replace_all_uses_with(query.output)
    assert isinstance(split.graph, ir.Graph)
    split.graph.remove(split, safe=True)
    attention.linears = (query, packed, packed)
    key, value = (None if part is None else np.searchsorted(rest, part) for part in others)
    attention.columns = (first - start, key, value)
    return query


def _way(value: ir.Value | None, start: ir.Value) -> list[ir.Node]:
    """Nodes from ``start`` down to ``value``."""
    return [] if value is None else list(path(value, start))


def _leads(value: ir.Value, scores: ir.Node) -> bool:
    return value in {value for node in path_up(scores.inputs[0]) for value in node.inputs}


def path_up(value: ir.Value | None) -> Iterator[ir.Node]:
    """Nodes above a value along first inputs, nearest first."""
    for _ in range(8):
        node = None if value is None else value.producer()
        if node is None or not node.inputs:
            return
        yield node
        value = node.inputs[0]


def _first(value: ir.Value, count: int, before: ir.Node) -> ir.Value:
    """The first tokens of [N, T, C], put before a node."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    name = f"{before.name}.tokens"
    bounds = [
        add_constant(before, f"{name}.{what}", np.array([number], np.int64))
        for what, number in (("starts", 0), ("ends", count), ("axes", 1))
    ]
    node = ir.node("Slice", [value, *bounds], name=f"{name}/Slice")
    shape = value.shape
    result = node.outputs[0]
    result.name, result.type = f"{node.name}_out", value.type
    result.shape = None if shape is None else ir.Shape([shape[0], count, shape[2]])
    graph.insert_before(before, node)
    return result


def _between(scores: ir.Node, softmax: ir.Node) -> Iterator[ir.Node]:
    value = softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None and node is not scores:
        yield node
        value = next((part for part in node.inputs if part is not None and constant(part) is None), None)


def _shrink(start: ir.Node, tokens: int, count: int) -> None:
    """Declare the new number of tokens on everything below."""
    queue, seen = [start], {start}
    while queue:
        node = queue.pop()
        _resize(node, tokens, count)
        for out in node.outputs:
            for use in out.uses():
                if use.node not in seen:
                    seen.add(use.node)
                    queue.append(use.node)


def _resize(node: ir.Node, tokens: int, count: int) -> None:
    for out in node.outputs:
        if out.shape is not None:
            out.shape = ir.Shape([count if place and size == tokens else size for place, size in enumerate(out.shape)])
