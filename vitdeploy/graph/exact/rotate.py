"""Exact rotations: of the residual stream as a whole, and of the channels of each head.

What reads the stream and what writes to it is found in the graph. A writer is turned with its weights, a reader that is a
block's LayerNorm needs nothing (its layers turn back), and any other reader gets the stream turned back: for a model that
pools its class token this is one product of one row.

Source: Ashkboos et al. 2024, arXiv:2404.00456, section 3. The rotations here leave the vector of ones in place, so that the mean,
and with it LayerNorm itself, stays what it was: LN(x R) = LN(x) R when R is orthogonal and R 1 = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.linear import Linear
from vitdeploy.graph.moves import MOVES, move, trace_path
from vitdeploy.graph.query import Array, constant, integer, whole
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


def rotate_stream(editor: Editor, structure: Structure, turn: Double) -> bool:
    """Turn the residual stream: x R in place of x everywhere; False (and nothing changed) when it can't be followed.

    Args:
        editor: Of the graph.
        structure: Every norm of the stream with gamma 1 and beta 0, and with no other users than its layers.
        turn: R, float64 [C, C], orthogonal with R 1 = 1.
    """
    stream = _follow_stream(structure, len(turn))
    if stream is None:
        return False
    for linear in stream.linears:
        linear.write(editor, linear.weight @ turn, linear.bias @ turn)
    for node, index in stream.tables:
        table = constant(node.inputs[index])
        assert table is not None
        editor.own(node, index, (table.astype(np.float64) @ turn).astype(np.float32))
    for conv in stream.patches:
        weight, bias = constant(conv.inputs[1]), constant(conv.inputs[2] if len(conv.inputs) > 2 else None)
        assert weight is not None
        editor.own(conv, 1, np.einsum("mchw,mn->nchw", weight.astype(np.float64), turn).astype(np.float32))
        if bias is not None:
            editor.own(conv, 2, (bias.astype(np.float64) @ turn).astype(np.float32))
    for value in stream.turned:
        kept = {key for key, read in stream.readers.items() if read is value}
        _insert_turn(
            editor, value, turn, "rotate", [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in kept]
        )
    for value in dict.fromkeys(stream.readers.values()):
        if value not in stream.turned:
            _insert_turn(editor, value, turn.T, "rotate_back", [key for key, read in stream.readers.items() if read is value])
    for site in structure.sites:
        if site.maker in stream.norms:
            for linear in site.linears:
                linear.write(editor, turn.T @ linear.weight)
    return True


def _insert_turn(editor: Editor, value: ir.Value, turn: Double, name: str, uses: Iterable[tuple[ir.Node, int]]) -> None:
    """A product with a constant matrix behind a value, put into the given uses."""
    maker, uses = value.producer(), list(uses)
    assert maker is not None
    stem = f"{str(maker.name).rpartition('/')[0] or maker.name}.{name}"
    matrix = editor.constant(f"{stem}.weight", turn.astype(np.float32))
    node = ir.node("MatMul", [value, matrix], name=f"{stem}/MatMul")
    declare(node.outputs[0], value.type, value.shape)
    editor.insert([node], maker, behind=True)
    for user, index in uses:
        user.replace_input_with(index, node.outputs[0])


def _follow_stream(structure: Structure, width: int) -> _Stream | None:
    """All of the stream, from the norms before attentions; None when something on it is not understood."""
    stream = _Stream(width)
    sites = [site for site in structure.sites if site.kind == "norm" and site.linears[0].shape[0] == width]
    norms = {site.maker: site for site in sites if site.maker is not None}
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
        above = _note_writers(value, stream, outputs)
        if above is None:
            return None
        queue += [*above, *_note_readers(value, stream, norms)]
    stream.readers = {use: value for use, value in stream.readers.items() if use[0].outputs[0] not in stream.values}
    understood = len(stream.turned) <= _TURNED and all(norms[node].only and _is_bare(node) for node in stream.norms)
    return stream if stream.norms and understood else None


def _is_bare(norm: ir.Node) -> bool:
    """Whether a norm has weight 1 and bias 0, as far as it has them."""
    weight, bias = constant(norm.inputs[1]), constant(norm.inputs[2]) if len(norm.inputs) > 2 else None
    return weight is not None and bool((weight == 1).all()) and (bias is None or not bias.any())


def _note_writers(value: ir.Value, stream: _Stream, outputs: dict[ir.Value, Linear]) -> list[ir.Value] | None:
    """What a value of the stream is made of: further values; writers are noted; None for what can't be turned."""
    if value in outputs:
        stream.linears[outputs[value]] = None
        return [] if outputs[value].shape[1] == stream.width else None
    node, conv = value.producer(), _find_patches(value, stream.width)
    if conv is not None:
        stream.patches[conv] = None
        return []
    parts = None if node is None else _read_parts(node, stream)
    if parts is None:
        stream.turned[value] = None  # a writer that no weights turn: the product with R is computed
        return [] if value.shape is not None and len(value.shape) and value.shape[-1] == stream.width else None
    return parts


def _read_parts(node: ir.Node, stream: _Stream) -> list[ir.Value] | None:
    """The operands of an Add, or of a node that moves rows of channels, tables noted; None for any other node."""
    parts, tables = list[ir.Value](), list[int]()
    for index, part in enumerate(node.inputs):
        if part is None or (index and node.op_type not in ("Add", "Concat")):
            continue
        table = constant(part)
        if table is None:
            parts.append(part)
        elif table.ndim and table.shape[-1] == stream.width:
            tables.append(index)
        elif node.op_type != "Add" or (table.ndim and table.shape[-1] != 1):  # one number for all channels: R leaves it
            return None
    if node.op_type != "Add" and not all(_is_keeping(node, part, stream.width) for part in parts):
        return None
    stream.tables.update({(node, index): None for index in tables})
    return parts


def _note_readers(value: ir.Value, stream: _Stream, norms: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """Values further down that carry the stream; any other user is noted as a reader."""
    for use in value.uses():
        node = use.node
        if node in norms and use.idx == 0:
            stream.norms[node] = None
        elif node.op_type == "Add" or (_is_keeping(node, value, stream.width) and (use.idx == 0 or node.op_type == "Concat")):
            yield from node.outputs
        else:
            stream.readers[node, use.idx] = value


def _is_keeping(node: ir.Node, value: ir.Value, width: int) -> bool:
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


def _find_patches(value: ir.Value, width: int) -> ir.Node | None:
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
    moved = move(numbers, node.outputs[0], trace_path(value, node.outputs[0]), value)
    return node if moved is not None and moved.shape[-1] == width and (moved == np.arange(width)).all() else None


def rotate_values(editor: Editor, attention: Attention, turn: Double) -> None:
    """V R in each head, and the projection undoes it; ``turn`` is R, orthogonal, float64 [d, d]."""
    value, columns = attention.linears[2], attention.columns[2]
    projection, rows = attention.projection, attention.rows
    assert value is not None and columns is not None and projection is not None and rows is not None
    _turn_columns(editor, value, columns, turn)
    weight = projection.weight.astype(np.float64)
    weight[rows] = np.einsum("ij,hjm->him", turn.T, weight[rows])
    projection.write(editor, weight)


def rotate_keys(editor: Editor, attention: Attention, turn: Double) -> None:
    """Q R and k R in each head: (q R)(k R)^T = q k^T; ``turn`` is R, orthogonal, float64 [d, d]."""
    for linear, columns in zip(attention.linears[:2], attention.columns[:2], strict=True):
        assert linear is not None and columns is not None
        _turn_columns(editor, linear, columns, turn)


def _turn_columns(editor: Editor, linear: Linear, columns: Array, turn: Double) -> None:
    weight, bias = linear.weight.astype(np.float64), linear.bias.astype(np.float64)
    weight[:, columns] = weight[:, columns] @ turn
    bias[columns] = bias[columns] @ turn
    linear.write(editor, weight, bias)


def make_rotation(width: int, seed: int = 0) -> Double:
    """An orthogonal matrix that leaves the vector of ones in place and spreads every other direction over all channels.

    R = B diag(1, D) B: B is the reflection that takes the first unit vector to 1/sqrt(C), D a cosine transform (DCT-II) with
    random signs.

    Args:
        width: C.
        seed: Of the signs.

    Returns:
        R, float64 [C, C], R R^T = I and R 1 = 1.
    """
    if width == 1:
        return np.ones((1, 1))
    inner = np.eye(width)
    inner[1:, 1:] = make_head_rotation(width - 1, seed)
    axis = np.full(width, -1 / np.sqrt(width))
    axis[0] += 1
    reflection = np.eye(width) - 2 * np.outer(axis, axis) / (axis @ axis)
    return np.asarray(reflection @ inner @ reflection)


def make_head_rotation(size: int, seed: int = 0) -> Double:
    """An orthogonal cosine transform (DCT-II) with random signs, float64 [d, d]."""
    place = np.arange(size)
    cosine = np.sqrt(2 / size) * np.cos(np.pi * (2 * place[:, None] + 1) * place[None] / (2 * size))
    cosine[:, 0] /= np.sqrt(2)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (2, size))
    return np.asarray(signs[0][:, None] * cosine * signs[1])
