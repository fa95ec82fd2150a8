"""Parts of a ViT that may stay in FP32 by name, and parts that must: found by what is computed, not by names of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import onnx_ir as ir

from vitdeploy.graph.half.forms import is_constant, read

CONTRACTIONS = frozenset(("MatMul", "Gemm", "Conv", "Einsum", "Attention", "MatMulNBits", "MatMulInteger", "QLinearMatMul"))
"""Operators that sum products over channels."""
_VIEWS = frozenset(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Tile"))
MOVES = _VIEWS | frozenset(("Split", "Slice", "Gather", "Concat", "Pad", "Where"))
"""Operators that move numbers and compute none."""
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Abs"))
_POINTWISE = _ARITHMETIC | frozenset(("Sqrt", "Reciprocal", "Max", "Min", "Clip", "Exp"))
_SHAPES = frozenset(("Shape", "Size"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization"))
_ACTIVATIONS = frozenset(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish"))
_CURVES = frozenset(("Erf", "Tanh", "Sigmoid"))
_FUSED_SQUARES = frozenset(("ReduceL2", "ReduceSumSquare", "LpNormalization", "InstanceNormalization", "GroupNormalization"))
_MEANS = frozenset(("ReduceMean", "ReduceSum", "GlobalAveragePool"))
_FAR = 12
"""Nodes in one decomposed function, at most."""


class Flow:
    """Which node of a graph is above which, that is, computes something the other one needs."""

    def __init__(self, graph: ir.Graph) -> None:
        """Of a graph whose nodes are in an order in which they can run."""
        self.nodes = list(graph)
        self._place = {node: place for place, node in enumerate(self.nodes)}
        self._above: list[int] = []  # bit i of entry k: node i is above node k
        for node in self.nodes:
            bits = 0
            for maker in makers(node):
                if maker in self._place:
                    bits |= self._above[self._place[maker]] | 1 << self._place[maker]
            self._above.append(bits)

    def is_above(self, node: ir.Node | None, other: ir.Node) -> bool:
        """Whether ``other`` needs ``node``; the graph's inputs, None, are above everything."""
        return node is None or bool(self._above[self._place[other]] >> self._place[node] & 1)

    def above(self, node: ir.Node) -> Iterator[ir.Node]:
        """Everything that a node needs, in the order of the graph."""
        bits = self._above[self._place[node]]
        return (other for place, other in enumerate(self.nodes) if bits >> place & 1)

    def residuals(self) -> list[tuple[ir.Node, ir.Value, bool]]:
        """Residual connections: the Add, the tensor that goes around, and whether it goes around an attention."""
        found = []
        for add in self.nodes:
            first, second = add.inputs[:2] if add.op_type == "Add" else (None, None)
            if first is None or second is None or is_constant(first) or is_constant(second):
                continue
            for skip, branch in ((first, second), (second, first)):
                around = self._between(skip.producer(), branch.producer())
                if around & CONTRACTIONS:
                    found.append((add, skip, bool(around & {"Softmax", "Attention"})))
                    break
        return found

    def _between(self, top: ir.Node | None, bottom: ir.Node | None) -> set[str]:
        """Operators of the nodes below ``top`` on the ways to ``bottom``, with ``bottom``."""
        if bottom is None or not self.is_above(top, bottom):
            return set()
        return {node.op_type for node in (*self.above(bottom), bottom) if self.is_above(top, node)}


class Island(NamedTuple):
    """A named part of a ViT.

    Attributes:
        meaning: What it covers, for people.
        find: Its nodes.
    """

    meaning: str
    find: Callable[[Flow], set[ir.Node]]


def makers(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes that make a node's inputs."""
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None:
            yield maker


def _computed(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def _user(value: ir.Value) -> ir.Node | None:
    """The only node that uses a tensor, or None."""
    users = {use.node: None for use in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None


def _of(*operators: str) -> Callable[[Flow], set[ir.Node]]:
    return lambda flow: {node for node in flow.nodes if node.op_type in operators}


def _residual(flow: Flow) -> set[ir.Node]:
    return {add for add, _, _ in flow.residuals()}


def _head(flow: Flow) -> set[ir.Node]:
    """What follows the last residual connection; in a graph without any, the last product and what follows it."""
    residuals = [add for add, _, _ in flow.residuals()]
    ends = residuals or [node for node in flow.nodes if node.op_type in CONTRACTIONS]
    inner = {node for end in ends for node in flow.above(end)} | set(residuals)
    return {node for node in flow.nodes if node not in inner and any(node is end or flow.is_above(end, node) for end in ends)}


def _embedding(flow: Flow) -> set[ir.Node]:
    """What makes the tokens that the first block takes."""
    residuals = flow.residuals()
    skips = [skip for _, skip, attends in residuals if attends] + [skip for _, skip, _ in residuals]
    first = skips[0].producer() if skips else next((node for node in flow.nodes if node.op_type in CONTRACTIONS), None)
    return set() if first is None else {*flow.above(first), first}


def _attention(flow: Flow) -> set[ir.Node]:
    """From the product of queries and keys to the product of probabilities and values."""
    found = _of("Attention", "MultiHeadAttention")(flow)
    for softmax in _of("Softmax")(flow):
        below = list(_down(softmax))
        if below and below[-1].op_type in CONTRACTIONS:
            found |= {softmax, *below, *_up_to_product(softmax)}
    return found


def _down(node: ir.Node) -> Iterator[ir.Node]:
    """From a node through moves and point by point to the first product, with it."""
    for _ in range(_FAR):
        user = _user(node.outputs[0])
        if user is None or user.op_type not in MOVES | _POINTWISE | CONTRACTIONS | {"QuantizeLinear", "DequantizeLinear"}:
            return
        yield user
        if user.op_type in CONTRACTIONS:
            return
        node = user


def _up_to_product(node: ir.Node) -> set[ir.Node]:
    """Nodes between a node and the products above it, with them."""
    found, queue = set[ir.Node](), [node]
    while queue:
        for maker in makers(queue.pop()):
            if maker in found or maker.op_type not in MOVES | _POINTWISE | CONTRACTIONS:
                continue
            found.add(maker)
            if maker.op_type not in CONTRACTIONS:
                queue.append(maker)
    return found


def _activation(flow: Flow) -> set[ir.Node]:
    """GELU, SiLU and quick GELU, as one operator or as several around an Erf, Tanh or Sigmoid."""
    found = _of(*_ACTIVATIONS)(flow)
    for curve in _of(*_CURVES)(flow):
        found |= {curve, *_around(curve)}
    return found


def _around(curve: ir.Node) -> set[ir.Node]:
    """The nodes that with a curve make x times a function of x; none when nothing multiplies."""
    below = [curve]
    for _ in range(4):
        user = _user(below[-1].outputs[0])
        if user is None or user.op_type not in _POINTWISE:
            return set()
        below.append(user)
        if user.op_type == "Mul" and len(_computed(user)) == 2:
            break
    else:
        return set()
    other = next((value.producer() for value in _computed(below[-1]) if value.producer() is not below[-2]), None)
    side = [other] if other is not None and _scales(other) and _user(other.outputs[0]) is below[-1] else []
    last = _user(below[-1].outputs[0])
    return {*below, *side, *_private(curve), *([last] if last is not None and _scales(last) else [])}


def _scales(node: ir.Node) -> bool:
    """Whether a node multiplies by one constant number."""
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    return node.op_type in ("Mul", "Div") and len(constants) == 1 and read(constants[0]).size == 1


def _private(node: ir.Node) -> set[ir.Node]:
    """Nodes above that compute point by point, and only for this one."""
    found, queue = set[ir.Node](), [node]
    while queue and len(found) < _FAR:
        for value in _computed(queue.pop()):
            maker = value.producer()
            if maker is not None and maker.op_type in _POINTWISE and _user(value) is not None:
                found.add(maker)
                queue.append(maker)
    return found


def squares(flow: Flow) -> set[ir.Node]:
    """Nodes that sum squares: norms written out in several operators, and L2 lengths. FP16 holds no square above 255.

    A LayerNormalization keeps its sums in float32 by itself (``stash_type``); the operators it is written out in do not.
    """
    found: set[ir.Node] = set()
    for node in flow.nodes:
        if node.op_type in _FUSED_SQUARES:
            found |= {node, *(_quotient(node) if node.op_type.startswith("Reduce") else ())}
            continue
        square = node.inputs[0].producer() if node.op_type in _MEANS and node.inputs[0] is not None else None
        if square is None or not _squares(square):
            continue
        found |= {node, square, *_quotient(node)}
        centre = square.inputs[0].producer() if square.inputs[0] is not None else None
        if centre is not None and centre.op_type == "Sub":
            found |= {centre, *(maker for maker in makers(centre) if maker.op_type in _MEANS)}
    return found


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    power = node.inputs[1] if node.op_type == "Pow" else None
    return power is not None and is_constant(power) and bool((read(power) == 2).all())


def _quotient(mean: ir.Node) -> list[ir.Node]:
    """From a mean of squares to the division by its root.

    The affine part behind it is no sum, and must not be in FP32 where the tensor before the norm is FP16: ONNX Runtime
    looks through the Casts, makes one LayerNormalization of all of it, and refuses its own node for mixed types.
    """
    found, node = list[ir.Node](), mean
    for _ in range(_FAR):
        user = _user(node.outputs[0])
        if user is None or user.op_type not in _POINTWISE | MOVES:
            break
        found.append(user)
        node = user
        if user.op_type in ("Div", "Mul") and len(_computed(user)) == 2:
            break
    return found


def of_shapes(flow: Flow) -> set[ir.Node]:
    """Nodes that compute sizes, positions or angles as floats at run time: FP16 counts no further than 2048."""
    pixels: dict[ir.Value, bool] = {}  # whether a tensor depends on what the graph is fed, other than its shape
    sizes: set[ir.Value] = set()  # depends on a shape alone
    found: set[ir.Node] = set()
    for node in flow.nodes:
        computed = _computed(node)
        fed = node.op_type not in _SHAPES and any(pixels.get(value, value.producer() is None) for value in computed)
        pixels.update(dict.fromkeys(node.outputs, fed))
        if fed or not (node.op_type in _SHAPES | {"Range"} or any(value in sizes for value in computed)):
            continue
        numbers = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]
        if node.op_type not in _SHAPES and numbers and not any(value in sizes for value in numbers):
            continue  # a constant table, reshaped or repeated to a size
        if node.op_type != "ConstantOfShape":
            sizes.update(node.outputs)
            found.add(node)
    return {node for node in found if node.op_type not in _SHAPES}


def angles(flow: Flow) -> set[ir.Node]:
    """Sines and cosines, and what computes their angles without looking at pixels."""
    found = _of("Sin", "Cos")(flow)
    for node in list(found):
        found |= {other for other in flow.above(node) if not _sees_input(flow, other)}
    return found


def _sees_input(flow: Flow, node: ir.Node) -> bool:
    return any(value.is_graph_input() for other in (*flow.above(node), node) for value in _computed(other))


ISLANDS: Mapping[str, Island] = {
    "layernorm": Island("LayerNorm and RMSNorm", _of(*_NORMS)),
    "softmax": Island("every softmax", _of("Softmax", "LogSoftmax")),
    "attention": Island("products of queries, keys, probabilities and values, and the softmax between them", _attention),
    "gelu": Island("activation functions of the MLPs", _activation),
    "residual": Island("the additions of the residual stream", _residual),
    "embedding": Island("from the image to the tokens of the first block", _embedding),
    "head": Island("what follows the last block: norm, pooling, classifier, top-k", _head),
}
"""Parts of a ViT that can be kept in FP32 by name."""
