"""The nodes that merge tokens behind one attention: two sets, the nearest partners, a mean weighted by size.

The same function as `models.merging.merge`, in nothing but operators that ONNX Runtime, OpenVINO and TensorRT have, without a
shape that is computed at run time. Tokens that stay are fetched as whole rows (GatherND); the few that become part of others
are added by a product with ones and zeros. One such product for all tokens was slower in both engines.

Source: Bolya et al. 2023 (ToMe), arXiv:2210.09461, algorithm 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import Array
from vitdeploy.schedule import LEAST_LENGTH

_END = np.iinfo(np.int32).max


class Merge(NamedTuple):
    """What one block merges.

    Attributes:
        tokens: T, how many there are.
        protected: Those at the start that stay as they are.
        merged: r, how many become part of others.
    """

    tokens: int
    protected: int
    merged: int

    @property
    def first(self) -> int:
        """Tokens of the first set, which merge into the second."""
        return (self.tokens - self.protected + 1) // 2

    @property
    def second(self) -> int:
        """Tokens of the second set."""
        return (self.tokens - self.protected) // 2


class Writer:
    """Writes nodes in front of another, named after a module.

    Args:
        editor: Of the graph.
        before: The node.
        stem: Of the names.
    """

    def __init__(self, editor: Editor, before: ir.Node, stem: str) -> None:
        self._editor, self._before, self._stem = editor, before, stem

    def add(self, operator: str, *inputs: ir.Value, outputs: int, **attributes: int | list[int]) -> list[ir.Value]:
        """A node, and its outputs."""
        node = ir.node(operator, inputs, dict(attributes), num_outputs=outputs, name=f"{self._stem}/{operator}")
        self._editor.insert([node], self._before)
        return list(node.outputs)

    def give(self, operator: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        """A node of one output, and that."""
        return self.add(operator, *inputs, outputs=1, **attributes)[0]

    def constant(self, array: Array) -> ir.Value:
        """A constant."""
        return self._editor.constant(f"{self._stem}.constant", array)

    def integers(self, *numbers: int) -> ir.Value:
        """A vector of whole numbers."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float) -> ir.Value:
        """A float."""
        return self.constant(np.array(number, np.float32))

    def slice(self, value: ir.Value, start: int, end: int = _END, step: int = 1) -> ir.Value:
        """Part of the axis of tokens, 1."""
        steps = [] if step == 1 else [self.integers(step)]
        return self.give("Slice", value, self.integers(start), self.integers(end), self.integers(1), *steps)

    def widen(self, value: ir.Value, *axes: int) -> ir.Value:
        """The value with new axes of size 1."""
        return self.give("Unsqueeze", value, self.integers(*axes))


def write_merge(write: Writer, x: ir.Value, keys: ir.Value, sizes: ir.Value | None, merge: Merge) -> tuple[ir.Value, ir.Value]:
    """Merge tokens.

    Args:
        write: Where.
        x: The tokens, float [N, T, C].
        keys: Float [N, h, d, T].
        sizes: How many patches each token stands for, float [N, T]; None is one each.
        merge: What.

    Returns:
        The tokens, float [N, T - r, C], and their sizes, float [N, T - r].
    """
    start = merge.protected
    order, partner = _match(write, keys, merge)  # [N, A] each
    merged = write.slice(order, 0, merge.merged)  # [N, r]
    into = write.widen(write.give("GatherElements", partner, merged, axis=1), 1)  # [N, 1, r]
    second = write.constant(np.arange(merge.second)[None, :, None])  # [1, B, 1]
    share = write.give("Where", write.give("Equal", into, second), write.number(1), write.number(0))  # [N, B, r]
    own = write.slice(x, start + 1, step=2)  # [N, B, C]
    if sizes is None:
        whole = write.give("Add", write.give("ReduceSum", share, write.integers(2), keepdims=0), write.number(1))  # [N, B]
        pads = write.integers(0, merge.tokens - merge.merged - merge.second, 0, 0)
        behind = write.give("Pad", whole, pads, write.number(1))
    else:
        first, before = write.slice(sizes, start, step=2), write.slice(sizes, start + 1, step=2)  # [N, A], [N, B]
        share = write.give("Mul", share, write.widen(write.give("GatherElements", first, merged, axis=1), 1))
        whole = write.give("Add", before, write.give("ReduceSum", share, write.integers(2), keepdims=0))
        own = write.give("Mul", own, write.widen(before, 2))
        kept = [write.give("GatherElements", first, write.slice(order, merge.merged), axis=1), whole]
        behind = write.give("Concat", *([write.slice(sizes, 0, start)] if start else []), *kept, axis=1)
    places = write.widen(write.give("Add", write.give("Mul", order, write.integers(2)), write.integers(start)), 2)  # [N, A, 1]
    from_, stay = (
        write.give("GatherND", x, part, batch_dims=1)
        for part in (write.slice(places, 0, merge.merged), write.slice(places, merge.merged))
    )
    mean = write.give("Div", write.give("Add", own, write.give("MatMul", share, from_)), write.widen(whole, 2))
    return write.give("Concat", *([write.slice(x, 0, start)] if start else []), stay, mean, axis=1), behind


def _match(write: Writer, keys: ir.Value, merge: Merge) -> tuple[ir.Value, ir.Value]:
    """The first set's tokens, the most alike first, and the place of each one's partner in the second: int64 [N, A] each."""
    mean = write.give("Transpose", write.give("ReduceMean", keys, write.integers(1), keepdims=0), perm=[0, 2, 1])  # [N, T, d]
    length = write.give("Max", write.give("ReduceL2", mean, write.integers(2), keepdims=1), write.number(LEAST_LENGTH))
    unit = write.give("Div", mean, length)
    first, second = write.slice(unit, merge.protected, step=2), write.slice(unit, merge.protected + 1, step=2)
    alike = write.give("MatMul", first, write.give("Transpose", second, perm=[0, 2, 1]))  # [N, A, B]
    best = write.give("ReduceMax", alike, write.integers(2), keepdims=0)
    _, order = write.add("TopK", best, write.integers(merge.first), outputs=2, axis=1)
    return order, write.give("ArgMax", alike, axis=2, keepdims=0)
