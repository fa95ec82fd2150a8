"""Attention in an ONNX graph, read without onnx: where it is, and in how many of the places that matter it is quantized.

Source: NVIDIA, TensorRT developer guide on multi-head attention fusion: Q/DQ before the first product, after the softmax and
after the second product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vitdeploy.onnxfile.model import Node
from vitdeploy.onnxfile.nodes import Nodes

_MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast"))
_POINTWISE = frozenset(("Add", "Mul", "Div", "Sub", "Where", "Clip"))
_PAIR = frozenset(("QuantizeLinear", "DequantizeLinear"))
_FAR = 12
"""Nodes between a softmax and its products, at most."""


class Attention(NamedTuple):
    """Softmax of a product, times values.

    Attributes:
        name: Of the softmax.
        queries: The first product's first factor, a value.
        scores: The first product, a value.
        makers: Of the four factors: queries, keys, probabilities, values; DequantizeLinear where one is quantized.
        follows: 1 when what follows the second product is quantized, else 0.
    """

    name: str
    queries: str
    scores: str
    makers: tuple[Node | None, ...]
    follows: int

    @property
    def places(self) -> int:
        """How many of the five places are quantized."""
        return self.follows + sum(maker is not None for maker in self.makers)

    def dtype(self, codes: Callable[[Node], str]) -> str:
        """Element type of its codes, "" when they differ or there are none; ``codes`` tells that of a DequantizeLinear."""
        dtypes = {codes(maker) for maker in self.makers if maker is not None}
        return dtypes.pop() if len(dtypes) == 1 else ""


def find_attentions(nodes: Nodes) -> tuple[Attention, ...]:
    """All attentions of a graph, in its order."""
    users: dict[str, list[Node]] = {}
    for node in nodes.all:
        for value in node.inputs:
            users.setdefault(value, []).append(node)
    candidates = (_read_attention(node, nodes, users) for node in nodes.all if node.operator == "Softmax" and node.inputs)
    return tuple(attention for attention in candidates if attention is not None)


def _read_attention(softmax: Node, nodes: Nodes, users: dict[str, list[Node]]) -> Attention | None:
    first, second = _find_above(softmax, nodes), _find_below(softmax, users, _MOVES | _POINTWISE | _PAIR, "MatMul")
    if first is None or second is None or len(first.inputs) < 2 or len(second.inputs) < 2:
        return None
    factors = (*first.inputs[:2], *second.inputs[:2])
    makers = tuple(_find_dequantizer(value, nodes) for value in factors)
    follows = _find_below(second, users, _MOVES, "QuantizeLinear") is not None
    return Attention(softmax.name, first.inputs[0], first.outputs[0], makers, int(follows))


def _find_above(node: Node, nodes: Nodes) -> Node | None:
    """The product whose result reaches a node point by point."""
    queue, seen = [value for value in node.inputs], 0
    while queue and seen < 2 * _FAR:
        seen += 1
        maker = nodes.maker(queue.pop(0))
        if maker is None:
            continue
        if maker.operator == "MatMul":
            return maker
        if maker.operator in _MOVES | _POINTWISE | _PAIR:
            queue += maker.inputs
    return None


def _find_below(node: Node, users: dict[str, list[Node]], through: frozenset[str], wanted: str) -> Node | None:
    """The first node of an operator below, with only some operators between."""
    queue, seen = list(users.get(node.outputs[0], ())), 0
    while queue and seen < 2 * _FAR:
        seen += 1
        user = queue.pop(0)
        if user.operator == wanted:
            return user
        if user.operator in through:
            queue += users.get(user.outputs[0], ())
    return None


def _find_dequantizer(value: str, nodes: Nodes) -> Node | None:
    """The DequantizeLinear that a factor comes from, straight or through moves."""
    for _ in range(_FAR):
        maker = nodes.maker(value)
        if maker is None or maker.operator == "DequantizeLinear":
            return maker
        if maker.operator not in _MOVES or not maker.inputs:
            return None
        value = maker.inputs[0]
    return None
