"""Numbers sent through the operators of a graph that only move them: where an element of one tensor stands in another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.evaluate import evaluate
from vitdeploy.graph.query import Array, constant, number, whole

MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
"""Operators that move numbers and compute none."""
FAR = 24
"""Nodes between a linear layer and the attention it feeds, at most (rotary positions are the longest way)."""


def trace_path(value: ir.Value, start: ir.Value) -> Iterator[ir.Node]:
    """Nodes from ``start`` down to ``value`` along first inputs, in the order of the graph; nothing else is on it."""
    nodes: list[ir.Node] = []
    while value is not start and len(nodes) < FAR:
        node = value.producer()
        above = None if node is None else node.inputs[0]
        if node is None or above is None:
            break
        nodes.append(node)
        value = above
    return reversed(nodes)


def move(numbers: Array, start: ir.Value, way: Iterable[ir.Node], end: ir.Value) -> Array | None:
    """Send the numbers of one image through moving operators (and past factors); None where one can't be followed.

    Args:
        numbers: What stands at ``start``, with a batch of 1 whatever the file's batch is.
        start: A tensor with the batch first.
        way: The nodes, in their order.
        end: The tensor to arrive at.
    """
    values: dict[ir.Value, Array] = {start: numbers}
    batch = start.shape[0] if start.shape is not None and len(start.shape) else 1
    for node in way:
        source = None if node.inputs[0] is None else values.get(node.inputs[0])
        if source is None:
            return None
        if is_scale(node):
            values[node.outputs[0]] = source
            continue
        inputs = [source, *(constant(value) for value in node.inputs[1:])]
        missing = any(part is None and value is not None for part, value in zip(inputs, node.inputs, strict=True))
        target = inputs[1] if node.op_type == "Reshape" and len(inputs) > 1 else None
        if target is not None and isinstance(batch, int) and batch > 1 and target.size and target[0] % batch == 0:
            inputs[1] = np.array([target[0] // batch, *target[1:]])  # one image of the one batch size that the file takes
        results = evaluate(node, inputs) if node.op_type in MOVES and not missing else None
        if results is None:
            return None
        values.update(zip(node.outputs, results, strict=True))
    return values.get(end)


def is_scale(node: ir.Node) -> bool:
    """Whether a node multiplies by, or divides by, one number."""
    return node.op_type in ("Mul", "Div") and number(node.inputs[1]) is not None


def find_root(value: ir.Value) -> ir.Value:
    """The tensor that a selection of its tokens was taken from, or the tensor itself."""
    node = value.producer()
    along = node is not None and node.op_type == "Slice" and whole(node, "axes", 3) == (1,)
    above = node.inputs[0] if node is not None and along else None
    return value if above is None else above
