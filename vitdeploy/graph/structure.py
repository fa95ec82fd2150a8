"""What is what in the graph of a Vision Transformer: its linear layers, attentions, MLPs and the norms before them.

Recognition goes by what is computed, not by names: attention is a softmax between two products of activations, whoever
exported it. Which column of a weight belongs to which head is found by sending column numbers through the graph's own
reshapes and transposes, so that any packing of q, k and v is understood, or is said not to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import InputError

Array = NDArray[Any]
MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
"""Operators that move numbers and compute none."""
_POINTWISE = frozenset(("Gelu", "Sigmoid", "Mul", "Relu", "Tanh", "Erf", "Split", "LayerNormalization", "Reshape", "Div"))
_FAR = 24
"""Nodes between a linear layer and the attention it feeds, at most (rotary positions are the longest way)."""


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer, or None for anything that is computed or fed."""
    if value is None or value.producer() is not None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def ints(node: ir.Node, name: str, index: int | None = None) -> tuple[int, ...] | None:
    """Whole numbers of an attribute, or of the constant input that newer operator sets have in its place."""
    if name in node.attributes:
        found = node.attributes[name].value
        return (int(found),) if isinstance(found, int) else tuple(int(number) for number in found)
    if index is None or index >= len(node.inputs):
        return None
    numbers = constant(node.inputs[index])
    return None if numbers is None else tuple(int(number) for number in numbers.reshape(-1))


class Linear:
    """One linear layer, x W + b: a MatMul with a constant matrix, and the Add of a constant vector behind it, if any."""

    def __init__(self, matmul: ir.Node) -> None:
        """Of a node that `Linear.of` accepts."""
        self.matmul = matmul
        self.add = _bias_of(matmul)

    @staticmethod
    def of(node: ir.Node | None) -> bool:
        """Whether a node is the product of a linear layer."""
        if node is None or node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            return False
        weight = node.inputs[1]
        return (
            weight is not None
            and weight.producer() is None
            and weight.const_value is not None
            and len(weight.const_value.shape) == 2
        )

    @property
    def name(self) -> str:
        """The MatMul's name."""
        return str(self.matmul.name)

    @property
    def input(self) -> ir.Value:
        """What it multiplies, float [..., K]."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """Its result with the bias, float [..., M]."""
        return (self.add or self.matmul).outputs[0]

    @property
    def shape(self) -> tuple[int, int]:
        """K and M, without loading the weight."""
        weight = self.matmul.inputs[1]
        assert weight is not None and weight.const_value is not None
        rows, columns = weight.const_value.shape.numpy()
        return rows, columns

    @property
    def weight(self) -> NDArray[np.float32]:
        """W, float32 [K, M]; a copy."""
        found = constant(self.matmul.inputs[1])
        assert found is not None
        return found.astype(np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        """b, float32 [M]; zeros when there is none."""
        found = None if self.add is None else constant(self.add.inputs[1])
        if found is None:
            return np.zeros(self.shape[1], np.float32)
        return np.broadcast_to(found.astype(np.float32).reshape(-1), (self.shape[1],)).copy()

    def write(self, weight: Array | None = None, bias: Array | None = None) -> None:
        """Replace the numbers. A weight that another node uses too is left to it; a missing bias is added when needed."""
        if weight is not None:
            own(self.matmul, 1, weight.astype(np.float32))
        if bias is None or (self.add is None and not np.any(bias)):
            return
        if self.add is None:
            self.add = _append_bias(self.matmul, bias.astype(np.float32))
        else:
            own(self.add, 1, bias.astype(np.float32))


@dataclass
class Attention:
    """One multi-head attention: softmax(q k^T) v, and what feeds it and takes it.

    Attributes:
        softmax: The node.
        scores: The product of queries and keys.
        context: The product of probabilities and values.
        linears: Where queries, keys and values come from; the same object thrice when they are packed.
        columns: Columns of those layers' outputs, int64 [heads, d] each for q, k and v; None where something that computes
            lies between (a norm, rotary positions).
        projection: The layer behind, or None.
        rows: Rows of its weight, int64 [heads, d], that take each head's channels; None where something computes between.
        scale: Factor on the scores outside the linear layers.
    """

    softmax: ir.Node
    scores: ir.Node
    context: ir.Node
    linears: tuple[Linear | None, Linear | None, Linear | None]
    columns: tuple[Array | None, Array | None, Array | None]
    projection: Linear | None
    rows: Array | None
    scale: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        """The softmax node's name."""
        return str(self.softmax.name)

    @property
    def packed(self) -> Linear | None:
        """The one layer that makes q, k and v, if one does."""
        first = self.linears[0]
        return first if first is not None and all(other is first for other in self.linears) else None


@dataclass
class Site:
    """A tensor that linear layers multiply: what a Q would be put on.

    Attributes:
        value: The tensor, float [..., K].
        linears: Its linear layers.
        kind: What makes it: ``norm``, ``context`` (of attention), ``activation`` (of an MLP), ``other``.
        maker: The LayerNormalization, or the attention's product with the values.
        only: Whether nothing but these layers uses it.
    """

    value: ir.Value
    linears: list[Linear]
    kind: str
    maker: ir.Node | None
    only: bool

    @property
    def name(self) -> str:
        """The tensor's name."""
        return str(self.value.name)


@dataclass
class Structure:
    """A recognised ViT.

    Attributes:
        attentions: In the order of the graph.
        sites: Inputs of the linear layers inside the blocks, in the order of the graph.
        outside: Linear layers that are not in a block: patch embedding, head.
    """

    attentions: list[Attention]
    sites: list[Site]
    outside: list[Linear] = field(default_factory=list)

    @property
    def linears(self) -> list[Linear]:
        """All linear layers inside the blocks."""
        return [linear for site in self.sites for linear in site.linears]


def recognise(model: ir.Model) -> Structure:
    """Find the blocks of a ViT in a canonical graph.

    Raises:
        InputError: VD3023, no attention between linear layers.
    """
    linears = {node: Linear(node) for node in model.graph if Linear.of(node)}
    attentions = [found for node in model.graph if node.op_type == "Softmax" and (found := _attention(node, linears))]
    inside: dict[Linear, None] = {}
    for attention in attentions:
        known = [linear for linear in (*attention.linears, attention.projection) if linear is not None]
        inside.update(dict.fromkeys(known))
    if not inside:
        raise InputError("VD3023", "has no block of a Vision Transformer: " + _looked_for(model))
    for first, second in _feeds(linears):
        inside.update(dict.fromkeys((first, second)))
    sites = _sites([linear for linear in linears.values() if linear in inside], attentions)
    return Structure(attentions, sites, [linear for linear in linears.values() if linear not in inside])


def _looked_for(model: ir.Model) -> str:
    nearest = next(
        (node for node in model.graph if node.op_type in ("Softmax", "Attention", "MultiHeadAttention", "MatMul")), None
    )
    looked = "MatMul, Softmax, MatMul between linear layers was looked for"
    return looked + (
        f"; the nearest is {nearest.op_type} {nearest.name!r}" if nearest is not None else "; it has no MatMul at all"
    )


def _attention(softmax: ir.Node, linears: dict[ir.Node, Linear]) -> Attention | None:
    """The attention around a softmax; None when it is another softmax (of a head, of top-k)."""
    scores, scale = _above_softmax(softmax)
    users = list(softmax.outputs[0].uses())
    if scores is None or len(users) != 1 or users[0].node.op_type != "MatMul" or users[0].idx != 0:
        return None
    context = users[0].node
    parts = (scores.inputs[0], scores.inputs[1], context.inputs[1])
    if any(part is None for part in parts):
        return None
    found = [_source(part, linears) for part in parts if part is not None]
    if found[2] is None and found[1] is None:
        return None
    columns = [
        None if linear is None or part is None else _columns(part, linear, turned=place == 1)
        for place, (part, linear) in enumerate(zip(parts, found, strict=True))
    ]
    values = columns[2]
    projection = _taker(context.outputs[0], linears)
    rows = None if projection is None or values is None else _rows(context, projection, values.shape)
    known = columns[0], columns[1], columns[2]
    return Attention(softmax, scores, context, (found[0], found[1], found[2]), known, projection, rows, tuple(scale))


def _above_softmax(softmax: ir.Node) -> tuple[ir.Node | None, list[ir.Node]]:
    """The product of q and k, and the multiplications by a number on the way to it and on q."""
    value, scale = softmax.inputs[0], list[ir.Node]()
    for _ in range(4):
        node = None if value is None else value.producer()
        if node is None:
            return None, []
        if node.op_type == "MatMul":
            first = node.inputs[0]
            above = None if first is None else first.producer()
            if above is not None and above.op_type == "Mul" and _scalar(above.inputs[1]) is not None:
                scale.append(above)
            return node, scale
        if node.op_type not in ("Add", "Mul", "Div"):
            return None, []
        if node.op_type in ("Mul", "Div") and _scalar(node.inputs[1]) is not None:
            scale.append(node)
        value = next((each for each in node.inputs if each is not None and constant(each) is None), None)
    return None, []


def _scalar(value: ir.Value | None) -> float | None:
    found = constant(value)
    return float(found.reshape(())) if found is not None and found.size == 1 else None


def _source(value: ir.Value, linears: dict[ir.Node, Linear]) -> Linear | None:
    """The nearest linear layer above a tensor, breadth first."""
    ends = {linear.output: linear for linear in linears.values()}
    queue, seen = [value], {value}
    for _ in range(_FAR * 4):
        if not queue:
            return None
        here = queue.pop(0)
        if here in ends:
            return ends[here]
        node = here.producer()
        if node is None or node.op_type in ("Softmax", "Conv"):
            continue
        for above in node.inputs:
            if above is not None and above not in seen and constant(above) is None:
                seen.add(above)
                queue.append(above)
    return None


def _taker(value: ir.Value, linears: dict[ir.Node, Linear]) -> Linear | None:
    """The linear layer that takes a tensor, behind moves and a norm."""
    for _ in range(8):
        users = [use.node for use in value.uses()]
        if len(users) != 1:
            return None
        if users[0] in linears:
            return linears[users[0]]
        if users[0].op_type not in MOVES and users[0].op_type != "LayerNormalization":
            return None
        value = users[0].outputs[0]
    return None


def _columns(value: ir.Value, linear: Linear, *, turned: bool) -> Array | None:
    """Which column of a layer's output is channel i of head h in ``value``: int64 [h, d], or None.

    ``value`` is [N, h, T, d], or [N, h, d, T] when ``turned``; a layout without heads ([N, T, d]) counts as one head.
    """
    way = list(path(value, linear.output))
    tokens = _tokens(linear)
    if tokens is None or any(node.op_type not in MOVES and not _scales(node) for node in way):
        return None
    numbers = np.broadcast_to(np.arange(linear.shape[1]), (*tokens, linear.shape[1]))
    moved = move(numbers, linear.output, way, value)
    if moved is None or moved.ndim not in (3, 4):
        return None
    moved = np.moveaxis(moved, -2, -1) if turned else moved  # [.., T, d]
    moved = moved.reshape(-1, *moved.shape[-3:]) if moved.ndim == 4 else moved[:, None]
    first = moved[0, :, 0]  # [h, d]
    return first.copy() if (moved == moved[:1, :, :1]).all() else None


def _scales(node: ir.Node) -> bool:
    return node.op_type in ("Mul", "Div") and _scalar(node.inputs[1]) is not None


def _tokens(linear: Linear) -> tuple[int, ...] | None:
    """The axes before the channels, with 1 for a batch that varies; None when the file does not say."""
    shape = linear.output.shape if linear.output.shape is not None else linear.input.shape
    if shape is None or len(shape) < 2:
        return None
    sizes = [size if isinstance(size, int) else None for size in list(shape)[:-1]]
    if any(size is None for size in sizes[1:]):
        return None
    return (1, *(int(size) for size in sizes[1:] if size is not None))


def path(value: ir.Value, start: ir.Value) -> Iterator[ir.Node]:
    """Nodes from ``start`` down to ``value`` along first inputs, in the order of the graph; nothing else is on it."""
    found: list[ir.Node] = []
    while value is not start and len(found) < _FAR:
        node = value.producer()
        above = None if node is None else node.inputs[0]
        if node is None or above is None:
            break
        found.append(node)
        value = above
    return reversed(found)


def _rows(context: ir.Node, projection: Linear, shape: tuple[int, ...]) -> Array | None:
    """Which row of the projection's weight takes channel i of head h: int64 [h, d], or None."""
    heads, size = shape
    way = list(path(projection.input, context.outputs[0]))
    if any(node.op_type not in MOVES for node in way):
        return None
    known = context.outputs[0].shape
    if known is None or not isinstance(known[-2], int) or projection.shape[0] != heads * size:
        return None
    numbers = np.arange(heads * size).reshape(1, heads, 1, size)
    numbers = np.broadcast_to(numbers, (1, heads, int(known[-2]), size))
    moved = move(numbers if len(known) == 4 else numbers[:, 0], context.outputs[0], way, projection.input)
    if moved is None or moved.shape[-1] != heads * size:
        return None
    flat = moved.reshape(-1, heads * size)
    if not (flat == flat[:1]).all():
        return None
    return np.argsort(flat[0]).reshape(heads, size)


def move(numbers: Array, start: ir.Value, path: Iterable[ir.Node], end: ir.Value) -> Array | None:
    """Send numbers through moving operators; None where one can't be followed."""
    values: dict[ir.Value, Array] = {start: numbers}
    try:
        for node in path:
            first = node.inputs[0]
            assert first is not None
            source = values[first]
            if node.op_type == "Split":
                values.update(zip(node.outputs, _split(node, source), strict=True))
            elif node.op_type in ("Mul", "Div"):
                values[node.outputs[0]] = source
            else:
                values[node.outputs[0]] = _MOVERS[node.op_type](node, source)
        return values[end]
    except (KeyError, ValueError, IndexError, TypeError):
        return None


def _split(node: ir.Node, source: Array) -> list[Array]:
    axis = (ints(node, "axis") or (0,))[0]
    sizes = ints(node, "split", 1)
    if sizes is None:
        return np.split(source, len(node.outputs), axis)
    return np.split(source, np.cumsum(sizes)[:-1], axis)


def _reshape(node: ir.Node, source: Array) -> Array:
    target = ints(node, "shape", 1)
    if target is None:
        raise ValueError("a shape that is computed")
    sizes = [source.shape[place] if size == 0 else size for place, size in enumerate(target)]
    if -1 not in sizes and np.prod(sizes) != source.size and sizes[0] > 1:
        sizes[0] = -1  # the one batch size that the file takes; the numbers are followed for one image
    return source.reshape(sizes)


def _slice(node: ir.Node, source: Array) -> Array:
    starts, ends = ints(node, "starts", 1), ints(node, "ends", 2)
    if starts is None or ends is None:
        raise ValueError("bounds that are computed")
    axes = ints(node, "axes", 3) or tuple(range(len(starts)))
    steps = ints(node, "steps", 4) or (1,) * len(starts)
    index = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, min(end, 1 << 40) if end >= 0 else end, step)
    return source[tuple(index)]


def _gather(node: ir.Node, source: Array) -> Array:
    index = constant(node.inputs[1])
    if index is None:
        raise ValueError("an index that is computed")
    return np.take(source, index, axis=(ints(node, "axis") or (0,))[0])


def _squeeze(node: ir.Node, source: Array) -> Array:
    return np.squeeze(source, ints(node, "axes", 1))


def _unsqueeze(node: ir.Node, source: Array) -> Array:
    axes = ints(node, "axes", 1)
    if axes is None:
        raise ValueError("axes that are computed")
    return np.expand_dims(source, axes)


def _transpose(node: ir.Node, source: Array) -> Array:
    return np.transpose(source, ints(node, "perm"))


def _flatten(node: ir.Node, source: Array) -> Array:
    axis = (ints(node, "axis") or (1,))[0]
    return source.reshape(int(np.prod(source.shape[:axis])), -1)


_MOVERS: dict[str, Callable[[ir.Node, Array], Array]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Gather": _gather,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Identity": lambda _, source: source,
}


def _feeds(linears: dict[ir.Node, Linear]) -> Iterator[tuple[Linear, Linear]]:
    """Pairs of linear layers with only an activation between them: the MLPs, gated ones too."""
    for first in linears.values():
        queue, seen, computes = [first.output], {first.output}, False
        while queue and len(seen) < _FAR:
            value = queue.pop(0)
            for use in value.uses():
                node = use.node
                if node in linears and use.idx == 0 and computes:
                    yield first, linears[node]
                if node.op_type in _POINTWISE and not (node.op_type == "LayerNormalization" and not computes):
                    computes = computes or node.op_type in ("Gelu", "Sigmoid", "Relu")
                    fresh = [out for out in node.outputs if out not in seen]
                    seen.update(fresh)
                    queue += fresh


def root(value: ir.Value) -> ir.Value:
    """The tensor that a selection of its tokens was taken from, or the tensor itself."""
    node = value.producer()
    along = node is not None and node.op_type == "Slice" and ints(node, "axes", 3) == (1,)
    above = node.inputs[0] if node is not None and along else None
    return value if above is None else above


def _sites(linears: list[Linear], attentions: list[Attention]) -> list[Site]:
    grouped: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        grouped.setdefault(root(linear.input), []).append(linear)
    contexts = {
        attention.projection: attention for attention in attentions if attention.projection and attention.rows is not None
    }
    sites = []
    for value, users in grouped.items():
        maker = value.producer()
        takers = {linear.matmul for linear in users} | {linear.input.producer() for linear in users if linear.input is not value}
        only = all(use.node in takers for use in value.uses()) and not value.is_graph_output()
        kind = "other"
        if maker is not None and maker.op_type == "LayerNormalization":
            kind = "norm"
        elif users[0] in contexts:
            kind, maker = "context", contexts[users[0]].context
        elif maker is not None and maker.op_type in ("Gelu", "Mul", "Relu"):
            kind = "activation"
        sites.append(Site(value, users, kind, maker, only))
    return sites


def own(node: ir.Node, index: int, array: Array) -> ir.Value:
    """Give a node's constant input new numbers; other nodes that use the old ones keep them."""
    value = node.inputs[index]
    assert value is not None and node.graph is not None
    if len(list(value.uses())) == 1 and not value.is_graph_output():
        value.const_value = ir.tensor(array, name=value.name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        return value
    fresh = add_constant(node, f"{value.name}.{node.name}", array)
    node.replace_input_with(index, fresh)
    return fresh


def add_constant(node: ir.Node, name: str, array: Array) -> ir.Value:
    """A new initializer in the graph of ``node``; the name is made free by a number behind it."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert_linear(before: ir.Node, value: ir.Value, weight: Array, bias: Array, stem: str) -> Linear:
    """A new linear layer on a tensor, put before a node.

    Args:
        before: The node.
        value: float [..., K].
        weight: float [K, M].
        bias: float [M].
        stem: What its nodes and constants are called.
    """
    matmul = ir.node("MatMul", [value, add_constant(before, f"{stem}.weight", weight.astype(np.float32))], name=f"{stem}/MatMul")
    product = matmul.outputs[0]
    add = ir.node("Add", [product, add_constant(before, f"{stem}.bias", bias.astype(np.float32))], name=f"{stem}/Add")
    shape = None if value.shape is None else ir.Shape([*list(value.shape)[:-1], weight.shape[1]])
    for node in (matmul, add):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = f"{node.name}_out", value.type, shape
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, [matmul, add])
    return Linear(matmul)


def insert_split(before: ir.Node, value: ir.Value, widths: Sequence[int], stem: str) -> list[ir.Value]:
    """The channels of a tensor in parts, put before a node.

    Args:
        before: The node.
        value: float [..., K].
        widths: Channels of each part; their sum is K.
        stem: What the node is called.
    """
    sizes = add_constant(before, f"{stem}/Split.split", np.array(widths, np.int64))
    split = ir.node("Split", [value, sizes], {"axis": -1}, num_outputs=len(widths), name=f"{stem}/Split")
    for index, (part, width) in enumerate(zip(split.outputs, widths, strict=True)):
        part.name, part.type = f"{split.name}_out_{index}", value.type
        part.shape = None if value.shape is None else ir.Shape([*list(value.shape)[:-1], width])
    assert isinstance(before.graph, ir.Graph)
    before.graph.insert_before(before, split)
    return list(split.outputs)


def _bias_of(matmul: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone takes the product."""
    users = list(matmul.outputs[0].uses())
    if len(users) != 1 or matmul.outputs[0].is_graph_output():
        return None
    add = users[0].node
    if add.op_type != "Add" or len(add.inputs) != 2:
        return None
    bias = constant(add.inputs[1])
    weight = matmul.inputs[1]
    assert weight is not None and weight.const_value is not None
    return add if bias is not None and bias.size in (1, weight.const_value.shape.numpy()[1]) and bias.ndim <= 1 else None


def _append_bias(matmul: ir.Node, bias: Array) -> ir.Node:
    value = matmul.outputs[0]
    stem = str(matmul.name).removesuffix("/MatMul")
    add = ir.node("Add", [value, add_constant(matmul, f"{stem}.bias", bias)], name=f"{stem}/Add")
    add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = f"{add.name}_out", value.shape, value.type
    value.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, value)
    assert isinstance(matmul.graph, ir.Graph)
    matmul.graph.insert_after(matmul, add)
    return add
