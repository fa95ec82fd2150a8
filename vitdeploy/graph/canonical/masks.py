"""Attention masks that hide nothing: a ViT sees all patches, yet some exporters write the mask of a library's general code.

The mask is a constant, expanded to the batch at run time, that is true everywhere; behind the Softmax stands a guard for rows
of which everything is hidden. Both go: adding 0 changes nothing, and a Softmax of finite numbers is never NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.evaluate import evaluate
from vitdeploy.graph.query import Array, constant, is_constant, maker, number, sizes

_SPREADS = ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Tile", "Slice", "Identity")
_POINTWISE = ("Add", "Sub", "Mul", "Cast", "Not", "And", "Or", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_DEPTH = 16


def uniform(value: ir.Value | None, depth: int = _DEPTH) -> Array | None:
    """The one number that a tensor holds in every place, of no axes; None when that is not known.

    Args:
        value: The tensor, computed or not.
        depth: Nodes above it that are looked at.
    """
    numbers = constant(value)
    if numbers is not None:
        return numbers.reshape(-1)[0].reshape(()) if numbers.size and (numbers == numbers.reshape(-1)[0]).all() else None
    node = maker(value, "Where", *_SPREADS, *_POINTWISE)
    if node is None or depth == 0:
        return None
    if node.op_type in _SPREADS:
        return uniform(node.inputs[0], depth - 1)
    operands = [uniform(each, depth - 1) for each in node.inputs]
    if node.op_type == "Where":
        return None if operands[0] is None else operands[1] if operands[0] else operands[2]
    if any(operand is None for operand in operands):
        return None
    found = evaluate(node, operands)
    return None if found is None else found[0]


def drop_masks(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Leave out masks of zeros, and the guards against NaN behind a Softmax that has no mask.

    Yields:
        The Softmax.
    """
    for softmax in list(editor.graph):
        if softmax.op_type == "Softmax" and softmax.domain == "":
            changed = _drop_mask(editor, softmax)
            changed |= _finite(softmax.inputs[0]) and _drop_guard(editor, softmax)
            if changed:
                yield (str(softmax.name),)


def _drop_mask(editor: Editor, softmax: ir.Node) -> bool:
    node = maker(softmax.inputs[0], "Add")
    if node is None or len(node.inputs) != 2:
        return False
    for scores, mask in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        found = uniform(mask)
        shape = sizes(scores)
        if scores is None or found is None or found != 0 or shape is None or None in shape or shape != sizes(node.outputs[0]):
            continue
        return editor.replace(node.outputs[0], scores)
    return False


def _finite(value: ir.Value | None) -> bool:
    """Whether scores are a product of activations, times a number, plus a finite constant."""
    node = maker(value, "MatMul", "Mul", "Div", "Add")
    if node is None or node.op_type == "MatMul":
        return node is not None
    first, second = node.inputs[:2]
    if is_constant(first):
        first, second = second, first
    numbers = constant(second)
    if numbers is None or not np.isfinite(numbers).all() or (node.op_type != "Add" and number(second) is None):
        return False
    return _finite(first)


def _drop_guard(editor: Editor, softmax: ir.Node) -> bool:
    """Where(IsNaN(p), 0, p) is p."""
    probabilities = softmax.outputs[0]
    for use in list(probabilities.uses()):
        node = use.node
        if node.op_type != "Where" or use.idx != 2:
            continue
        test = maker(node.inputs[0], "IsNaN")
        if test is not None and test.inputs[0] is probabilities and number(node.inputs[1]) is not None:
            return editor.replace(node.outputs[0], probabilities)
    return False
