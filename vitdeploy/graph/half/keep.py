"""Parts of a ViT that may stay in FP32 by name, and parts that must: recognised by what is computed, not by names of nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import onnx_ir as ir

from vitdeploy.errors import UsageError, nearest
from vitdeploy.graph.moves import MOVES as SINGLE_MOVES
from vitdeploy.graph.query import constant, is_constant, maker, number, only_user

CONTRACTIONS = frozenset(("MatMul", "Gemm", "Conv", "Einsum", "Attention", "MatMulNBits", "MatMulInteger", "QLinearMatMul"))
"""Operators that sum products over channels."""
MOVES = SINGLE_MOVES | {"Expand", "Tile", "Concat", "Pad", "Where"}
"""Operators that move numbers of one tensor or several and compute none."""
NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"))
MEANS = frozenset(("ReduceMean", "ReduceSum", "GlobalAveragePool"))
QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_ACTIVATIONS = frozenset(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish"))
_SHAPES = frozenset(("Shape", "Size"))
_WAVES = frozenset(("Sin", "Cos"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs"))
_POINTWISE = _ARITHMETIC | {"Sqrt", "Reciprocal", "Max", "Min", "Clip", "Exp"}
_FUSED_SQUARES = frozenset(("ReduceL2", "ReduceSumSquare", "LpNormalization", "InstanceNormalization", "GroupNormalization"))
_FAR = 12
"""Nodes in one decomposed function, at most."""

Nodes = set[ir.Node]


class Flow:
    """Which node of a graph is above which, that is, computes something the other one needs."""

    def __init__(self, graph: ir.Graph) -> None:
        """Of a graph whose nodes are in an order in which they can run."""
        self.nodes = list(graph)
        self._place = {node: place for place, node in enumerate(self.nodes)}
        self._above: list[int] = []  # bit i of entry k: node i is above node k
        for node in self.nodes:
            bits = 0
            for each in _makers(node):
                if each in self._place:
                    bits |= self._above[self._place[each]] | 1 << self._place[each]
            self._above.append(bits)

    def is_above(self, node: ir.Node | None, other: ir.Node) -> bool:
        """Whether ``other`` needs ``node``; the graph's inputs, None, are above everything."""
        return node is None or bool(self._above[self._place[other]] >> self._place[node] & 1)

    def above(self, node: ir.Node) -> Iterator[ir.Node]:
        """Everything that a node needs, in the order of the graph."""
        bits = self._above[self._place[node]]
        return (other for place, other in enumerate(self.nodes) if bits >> place & 1)

    def pick(self, operators: Collection[str]) -> Nodes:
        """All nodes with one of these operators."""
        return {node for node in self.nodes if node.op_type in operators}

    def residuals(self) -> list[tuple[ir.Node, ir.Value, bool]]:
        """Residual connections: the Add, the tensor that goes around, and whether it goes around an attention."""
        connections = []
        for add in self.nodes:
            operands = _find_computed(add) if add.op_type == "Add" else []
            for skip, branch in zip(operands, reversed(operands), strict=True) if len(operands) == 2 else ():
                around = self._between(skip.producer(), branch.producer())
                if around & CONTRACTIONS:
                    connections.append((add, skip, bool(around & {"Softmax", "Attention"})))
                    break
        return connections

    def _between(self, top: ir.Node | None, bottom: ir.Node | None) -> set[str]:
        """Operators of the nodes below ``top`` on the ways to ``bottom``, with ``bottom``."""
        if bottom is None or not self.is_above(top, bottom):
            return set()
        return {node.op_type for node in (*self.above(bottom), bottom) if self.is_above(top, node)}


def find_kept(flow: Flow, names: Collection[str]) -> dict[ir.Node, str]:
    """Nodes that stay in FP32 whatever their numbers are, and why: those that must, and those that are named.

    Args:
        flow: Of the graph.
        names: Keys of `ISLANDS`, or names of nodes.

    Raises:
        UsageError: VD2003, a name is neither.
    """
    kept: dict[ir.Node, str] = {}
    reasons = (_squares, "sums squares"), (_sizes, "computes with sizes"), (_angles, "angles need FP32")
    for find, reason in reasons:
        for node in find(flow):
            kept.setdefault(node, reason)
    named = {str(node.name): node for node in flow.nodes}
    for name in names:
        if name not in ISLANDS and name not in named:
            fix = nearest(name, [*ISLANDS, *named]) or f"use {', '.join(ISLANDS)}, or the name of a node"
            raise UsageError("VD2003", f"{name!r} is neither a part of a ViT nor a node of the graph", fix=fix)
        for node in ISLANDS[name](flow) if name in ISLANDS else (named[name],):
            kept.setdefault(node, f"keep {name}")
    return kept


def _makers(node: ir.Node) -> list[ir.Node]:
    """Nodes that make a node's inputs."""
    return [above for value in node.inputs if value is not None and (above := value.producer()) is not None]


def _find_computed(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def _joins(node: ir.Node, *operators: str) -> bool:
    """Whether a node is one of these operators, of two tensors that are computed."""
    return node.op_type in operators and len(_find_computed(node)) == 2


def _run_down(node: ir.Node, through: Collection[str]) -> Iterator[ir.Node]:
    """The only user of a node's result, that one's, and so on, as long as they are of these operators."""
    for _ in range(_FAR):
        user = only_user(node.outputs[0])
        if user is None or user.op_type not in through:
            return
        yield user
        node = user


def _climb(node: ir.Node, through: Callable[[ir.Node], bool], ends: Collection[str] = ()) -> Nodes:
    """Nodes above a node that a condition holds for, up to the first with one of the operators ``ends``, with them."""
    reached, queue = set[ir.Node](), [node]
    while queue:
        for above in _makers(queue.pop()):
            if above not in reached and (above.op_type in ends or through(above)):
                reached.add(above)
                queue += [] if above.op_type in ends else [above]
    return reached


def _residual(flow: Flow) -> Nodes:
    return {add for add, _, _ in flow.residuals()}


def _head(flow: Flow) -> Nodes:
    """What follows the last residual connection; in a graph without any, the last product and what follows it."""
    residuals = _residual(flow)
    ends = residuals or flow.pick(CONTRACTIONS)
    inner = {node for end in ends for node in flow.above(end)} | residuals
    return {node for node in flow.nodes if node not in inner and any(node is end or flow.is_above(end, node) for end in ends)}


def _embedding(flow: Flow) -> Nodes:
    """What makes the tokens that the first block takes."""
    residuals = flow.residuals()
    skips = [skip for _, skip, attends in residuals if attends] + [skip for _, skip, _ in residuals]
    first = skips[0].producer() if skips else next((node for node in flow.nodes if node.op_type in CONTRACTIONS), None)
    return set() if first is None else {*flow.above(first), first}


def _attention(flow: Flow) -> Nodes:
    """From the product of queries and keys to the product of probabilities and values, also where Q/DQ lie between."""
    nodes = flow.pick(("Attention", "MultiHeadAttention"))
    for softmax in flow.pick(("Softmax",)):
        below: list[ir.Node] = []
        for user in _run_down(softmax, MOVES | _POINTWISE | CONTRACTIONS | QUANTIZERS):
            below.append(user)
            if user.op_type in CONTRACTIONS:
                scores = _climb(softmax, lambda above: above.op_type in MOVES | _POINTWISE, CONTRACTIONS)
                nodes |= {softmax, *below, *scores}
                break
    return nodes


def _activation(flow: Flow) -> Nodes:
    """GELU, SiLU and quick GELU, as one operator or as several around an Erf, Tanh or Sigmoid."""
    curves = flow.pick(("Erf", "Tanh", "Sigmoid"))
    return flow.pick(_ACTIVATIONS) | curves.union(*(_around(curve) for curve in curves))


def _around(curve: ir.Node) -> Nodes:
    """The nodes that with a curve make x times a function of x; none when nothing multiplies."""
    below: list[ir.Node] = []
    for user in _run_down(curve, _POINTWISE):
        below.append(user)
        if _joins(user, "Mul"):
            break
    if not below or not _joins(below[-1], "Mul"):
        return set()
    product, last = below[-1], only_user(below[-1].outputs[0])
    side = [above for above in _makers(product) if _scales(above) and only_user(above.outputs[0]) is product]
    inner = _climb(curve, lambda above: above.op_type in _POINTWISE and only_user(above.outputs[0]) is not None)
    return {*below, *side, *inner, *([last] if last is not None and _scales(last) else [])}


def _scales(node: ir.Node) -> bool:
    """Whether a node multiplies by one constant number."""
    return node.op_type in ("Mul", "Div") and sum(number(value) is not None for value in node.inputs) == 1


def _squares(flow: Flow) -> Nodes:
    """Nodes that sum squares: norms written out in several operators, and L2 lengths. FP16 holds no square above 255.

    A LayerNormalization keeps its sums in float32 by itself (``stash_type``); the operators it is written out in do not.
    The affine part behind a norm is no sum, and must not be in FP32 where the tensor before the norm is FP16: ONNX Runtime
    looks through the Casts, makes one LayerNormalization of all of it, and refuses its own node for mixed types.
    """
    nodes = flow.pick(_FUSED_SQUARES)
    sums = [node for node in nodes if node.op_type.startswith("Reduce")]
    for mean in flow.pick(MEANS):
        square = maker(mean.inputs[0], "Mul", "Pow")
        if square is None or not _is_square(square):
            continue
        sums.append(mean)
        nodes |= {mean, square}
        centre = maker(square.inputs[0], "Sub")
        if centre is not None:
            nodes |= {centre, *(above for above in _makers(centre) if above.op_type in MEANS)}
    for total in sums:
        for user in _run_down(total, _POINTWISE | MOVES):  # to the division by the root
            nodes.add(user)
            if _joins(user, "Div", "Mul"):
                break
    return nodes


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    power = constant(node.inputs[1])
    return power is not None and bool((power == 2).all())


def _sees_pixels(flow: Flow) -> set[ir.Value]:
    """Tensors that depend on what the graph is fed, other than on its shape."""
    seen: set[ir.Value] = set()
    for node in flow.nodes:
        if node.op_type not in _SHAPES and any(value in seen or value.producer() is None for value in _find_computed(node)):
            seen.update(node.outputs)
    return seen


def _sizes(flow: Flow) -> Nodes:
    """Nodes that compute sizes or positions as floats at run time: FP16 counts no further than 2048."""
    pixels, nodes = _sees_pixels(flow), set[ir.Node]()
    sizes: set[ir.Value] = set()  # depends on a shape alone
    for node in flow.nodes:
        if node.op_type in _SHAPES:
            sizes.update(node.outputs)
        numbers = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT] or node.inputs
        counts = node.op_type == "Range" or any(value in sizes for value in numbers)  # else a constant table, repeated
        if counts and node.op_type not in _SHAPES | {"ConstantOfShape"} and not pixels.intersection(node.outputs):
            sizes.update(node.outputs)
            nodes.add(node)
    return {node for node in nodes if node.op_type not in _WAVES}


def _angles(flow: Flow) -> Nodes:
    """Sines and cosines, and what computes their angles without looking at pixels."""
    pixels, waves = _sees_pixels(flow), flow.pick(_WAVES)
    above = {node for wave in waves for node in flow.above(wave) if node.op_type not in _SHAPES}
    return waves | {node for node in above if not pixels.intersection(node.outputs)}


ISLANDS: Mapping[str, Callable[[Flow], Nodes]] = {
    "layernorm": lambda flow: flow.pick(NORMS),
    "softmax": lambda flow: flow.pick(("Softmax", "LogSoftmax")),
    "attention": _attention,
    "gelu": _activation,
    "residual": _residual,
    "embedding": _embedding,
    "head": _head,
}
"""Parts of a ViT that can be kept in FP32 by name, and what finds their nodes."""
