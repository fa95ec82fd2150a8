"""What is what in the graph of a Vision Transformer: its linear layers, attentions, MLPs and the norms before them.

Recognition goes by what is computed, not by names: attention is a softmax between two products of activations, whoever
exported it. Which column of a weight belongs to which head is found by sending column numbers through the graph's own
reshapes and transposes, so that any packing of q, k and v is understood, or is said not to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import InputError
from vitdeploy.graph.linear import Linear, is_linear
from vitdeploy.graph.moves import FAR, MOVES, find_root, is_scale, move, trace_path
from vitdeploy.graph.query import Array, constant, integer, maker, only_user, sizes

_POINTWISE = frozenset(
    ("Gelu", "Sigmoid", "Mul", "Relu", "Tanh", "Erf", "Split", "Slice", "LayerNormalization", "Reshape", "Div")
)


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
    linears = {node: Linear(node) for node in model.graph if is_linear(node)}
    around = (_read_attention(node, linears) for node in model.graph if node.op_type == "Softmax")
    attentions = [attention for attention in around if attention is not None]
    inside: dict[Linear, None] = {}
    for attention in attentions:
        known = [linear for linear in (*attention.linears, attention.projection) if linear is not None]
        inside.update(dict.fromkeys(known))
    if not inside:
        absence, fix = _explain_absence(model)
        raise InputError("VD3023", "has no block of a Vision Transformer: " + absence, fix=fix)
    for first, second in _pair_layers(linears):
        inside.update(dict.fromkeys((first, second)))
    contexts = {attention.context.outputs[0] for attention in attentions}
    inside.update(
        dict.fromkeys(
            linear for linear in linears.values() if _is_own_branch(linear) or _joins_heads(linear, contexts) or _is_map(linear)
        )
    )
    sites = _collect_sites([linear for linear in linears.values() if linear in inside], attentions)
    return Structure(attentions, sites, [linear for linear in linears.values() if linear not in inside])


def _explain_absence(model: ir.Model) -> tuple[str, str]:
    """What was looked for and is not there, and what to do about it."""
    looked = "MatMul, Softmax, MatMul between linear layers was looked for"
    other_tool = "quantize it with NNCF or another tool for any network, and compile what it gives"
    nearest = {node.op_type: node for node in reversed(list(model.graph))}
    operator = next((name for name in ("Softmax", "Attention", "MultiHeadAttention", "MatMul") if name in nearest), None)
    if operator is None:
        return f"{looked}; it has no MatMul at all", other_tool
    if operator == "MatMul":
        return f"{looked}; it has no attention, the nearest is MatMul {nearest[operator].name!r}", other_tool
    return f"{looked}; the nearest is {operator} {nearest[operator].name!r}", other_tool


def _read_attention(softmax: ir.Node, linears: dict[ir.Node, Linear]) -> Attention | None:
    """The attention around a softmax; None when it is another softmax (of a head, of top-k)."""
    shape = softmax.outputs[0].shape
    last = (-1,) if shape is None else (-1, len(shape) - 1)
    scores, scale = _trace_scores(softmax)
    users = list(softmax.outputs[0].uses())
    if scores is None or len(users) != 1 or users[0].node.op_type != "MatMul" or users[0].idx != 0:
        return None
    context = users[0].node
    parts = [part for part in (scores.inputs[0], scores.inputs[1], context.inputs[1]) if part is not None]
    layers = [_find_source(part, linears) for part in parts]
    if len(parts) != 3 or (layers[2] is None and layers[1] is None) or integer(softmax, "axis", -1) not in last:
        return None
    columns = [
        None if linear is None else _locate_columns(part, linear, turned=place == 1)
        for place, (part, linear) in enumerate(zip(parts, layers, strict=True))
    ]
    if layers[2] is not None and any(node.op_type not in MOVES for node in trace_path(parts[2], layers[2].output)):
        columns[2] = None  # what scales values outside their layer is not undone by the projection
    projection = _find_taker(context.outputs[0], linears)
    rows = None if projection is None or columns[2] is None else _locate_rows(context, projection, columns[2].shape)
    known, sources = (columns[0], columns[1], columns[2]), (layers[0], layers[1], layers[2])
    return Attention(softmax, scores, context, sources, known, projection, rows, tuple(scale))


def _trace_scores(softmax: ir.Node) -> tuple[ir.Node | None, list[ir.Node]]:
    """The product of q and k, and the multiplications by a number that it alone goes through, or q before it."""
    value, scale = softmax.inputs[0], list[ir.Node]()
    for _ in range(8):
        node = None if value is None else value.producer()
        if node is not None and node.op_type == "Reshape" and _keeps_last(node):
            value = node.inputs[0]  # windows and images part, and join
            continue
        if node is None or node.op_type not in ("MatMul", "Add", "Mul", "Div"):
            return None, []
        if node.op_type == "MatMul":
            first = node.inputs[0]
            above = None if first is None else first.producer()
            if above is not None and is_scale(above) and only_user(above.outputs[0]):
                scale.append(above)
            return node, scale
        if node.op_type == "Add":
            scale.clear()  # what follows it scales the bias, too
        elif is_scale(node) and only_user(node.outputs[0]):
            scale.append(node)
        value = next((each for each in node.inputs if each is not None and constant(each) is None), None)
    return None, []


def _keeps_last(node: ir.Node) -> bool:
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    return before is not None and after is not None and isinstance(before[-1], int) and before[-1] == after[-1]


def _find_source(value: ir.Value, linears: dict[ir.Node, Linear]) -> Linear | None:
    """The nearest linear layer above a tensor, breadth first."""
    ends = {linear.output: linear for linear in linears.values()}
    queue, seen = [value], {value}
    for _ in range(FAR * 4):
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


def _find_taker(value: ir.Value, linears: dict[ir.Node, Linear]) -> Linear | None:
    """The linear layer that takes a tensor, behind moves and a norm."""
    for _ in range(8):
        node = only_user(value)
        if node is None:
            return None
        if node in linears:
            return linears[node]
        if node.op_type not in MOVES and node.op_type != "LayerNormalization":
            return None
        value = node.outputs[0]
    return None


def _locate_columns(value: ir.Value, linear: Linear, *, turned: bool) -> Array | None:
    """Which column of a layer's output is channel i of head h in ``value``: int64 [h, d], or None.

    None also where another node reads one of these columns: who changed them would change what that node sees.
    ``value`` is [N, h, T, d] or [N h, T, d], or with the last two axes exchanged when ``turned``.
    """
    way = list(trace_path(value, linear.output))
    tokens = _read_token_axes(linear)
    if tokens is None or any(node.op_type not in MOVES and not is_scale(node) for node in way):
        return None
    numbers = np.broadcast_to(np.arange(linear.shape[1]), (*tokens, linear.shape[1]))
    moved = move(numbers, linear.output, way, value)
    if moved is None or moved.ndim not in (3, 4):
        return None
    moved = np.moveaxis(moved, -2, -1) if turned else moved  # [.., T, d]
    moved = moved if moved.ndim == 4 else moved[None]  # of one image, the axis of images and heads is that of heads
    chosen = moved[0, :, 0].copy()  # [h, d]
    same = (moved == moved[:1, :, :1]).all() and len(np.unique(chosen)) == chosen.size
    return chosen if same and _is_private(chosen, numbers, linear.output, way, value) else None


def _is_private(chosen: Array, numbers: Array, start: ir.Value, way: list[ir.Node], end: ir.Value) -> bool:
    """Whether no node beside a way reads one of the chosen columns."""
    values = [start, *(value for node in way[1:] if (value := node.inputs[0]) is not None), end]
    for place, (node, here) in enumerate(zip(way, values, strict=False)):
        for use in here.uses():
            if use.node is not node:
                taken = [move(numbers, start, [*way[:place], use.node], out) for out in use.node.outputs]
                if use.idx or any(part is None or np.isin(chosen, part).any() for part in taken):
                    return False
    return len(list(end.uses())) == 1 and not any(value.is_graph_output() for value in values)


def _read_token_axes(linear: Linear) -> tuple[int, ...] | None:
    """The axes before the channels, with 1 for the batch; None when the file does not say."""
    shape = linear.output.shape if linear.output.shape is not None else linear.input.shape
    if shape is None or len(shape) < 2:
        return None
    sizes = [size for size in list(shape)[1:-1] if isinstance(size, int)]
    return (1, *sizes) if len(sizes) == len(shape) - 2 else None


def _locate_rows(context: ir.Node, projection: Linear, shape: tuple[int, ...]) -> Array | None:
    """Which row of the projection's weight takes channel i of head h: int64 [h, d], or None."""
    heads, size = shape
    way = list(trace_path(projection.input, context.outputs[0]))
    known = context.outputs[0].shape
    if known is None or not isinstance(known[-2], int) or projection.shape[0] != heads * size:
        return None
    numbers = np.arange(heads * size).reshape(1, heads, 1, size)
    numbers = np.broadcast_to(numbers, (1, heads, known[-2], size))
    moved = move(numbers if len(known) == 4 else numbers[0], context.outputs[0], way, projection.input)
    if moved is None or moved.shape[-1] != heads * size:
        return None
    flat = moved.reshape(-1, heads * size)
    if not (flat == flat[:1]).all() or len(np.unique(flat[0])) != heads * size:
        return None
    return np.argsort(flat[0]).reshape(heads, size)


def _pair_layers(linears: dict[ir.Node, Linear]) -> Iterator[tuple[Linear, Linear]]:
    """Pairs of linear layers with only an activation between them: the MLPs, gated ones too."""
    for first in linears.values():
        queue, seen, computes = [first.output], {first.output}, False
        while queue and len(seen) < FAR:
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


def _is_own_branch(linear: Linear) -> bool:
    """Whether a layer is a residual branch of its own: x + LN(x) W, an MLP of one layer."""
    norm = linear.input.producer()
    value = linear.output
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type == "Mul":  # LayerScale
        value = users[0].outputs[0]
        users = [use.node for use in value.uses()]
    if norm is None or norm.op_type != "LayerNormalization" or len(users) != 1 or users[0].op_type != "Add":
        return False
    return norm.inputs[0] in users[0].inputs


def _joins_heads(linear: Linear, contexts: set[ir.Value]) -> bool:
    """Whether a layer takes what several attentions give, one beside the other: heads that were written one by one."""
    join = maker(linear.input, "Concat")
    return join is not None and all(_trace_moves(value) in contexts for value in join.inputs)


def _is_map(linear: Linear) -> bool:
    """Whether a layer takes a map of pixels, [N, H, W, C], or many tokens behind a norm: between the stages of a network."""
    shape = sizes(linear.input)
    if shape is None or any(size == 1 for size in shape[1:-1]) or _is_rotation(linear):
        return False
    return len(shape) == 4 or (len(shape) == 3 and maker(linear.input, "LayerNormalization") is not None)


def _is_rotation(linear: Linear) -> bool:
    """Whether a layer turns channels and nothing else, as the exact rewrites do: what it gives is read in float."""
    rows, columns = linear.shape
    if linear.add is not None or rows != columns:
        return False
    weight = linear.weight
    return bool(np.abs(weight @ weight.T - np.eye(rows, dtype=np.float32)).max() < 1e-3)


def _trace_moves(value: ir.Value | None) -> ir.Value | None:
    """Where the numbers of a tensor were computed."""
    while (node := maker(value, *MOVES)) is not None:
        value = node.inputs[0]
    return value


def _collect_sites(linears: list[Linear], attentions: list[Attention]) -> list[Site]:
    grouped: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        grouped.setdefault(find_root(linear.input), []).append(linear)
    contexts = {
        attention.projection: attention for attention in attentions if attention.projection and attention.rows is not None
    }
    sites = []
    for value, users in grouped.items():
        maker = value.producer()
        kind = "other"
        if _is_norm(maker, users[0].shape[0]):
            kind = "norm"
        elif users[0] in contexts:
            kind, maker = "context", contexts[users[0]].context
        elif maker is not None and maker.op_type in ("Gelu", "Mul", "Relu"):
            kind = "activation"
        sites.append(Site(value, users, kind, maker, _has_no_other_users(value, users)))
    return sites


def _has_no_other_users(value: ir.Value, linears: list[Linear]) -> bool:
    """Whether nothing uses a tensor, or what is selected from it, but these layers."""
    takers = {linear.matmul for linear in linears}
    taken = [value, *dict.fromkeys(linear.input for linear in linears if linear.input is not value)]
    cuts = {part.producer() for part in taken[1:]}
    return all(use.node in takers or use.node in cuts for part in taken for use in part.uses()) and not any(
        part.is_graph_output() for part in taken
    )


def _is_norm(node: ir.Node | None, width: int) -> bool:
    """Whether a node is a LayerNormalization of the channels with constant weights."""
    if node is None or node.op_type != "LayerNormalization" or any(len(list(out.uses())) for out in node.outputs[1:]):
        return False
    weights = [constant(value) for value in node.inputs[1:] if value is not None]
    return bool(weights) and all(weight is not None and weight.shape == (width,) for weight in weights)
