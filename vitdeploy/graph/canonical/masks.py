"""Attention masks that hide nothing: a ViT sees all patches, yet some exporters write the mask of a library's general code.

The mask is a constant, expanded to the batch at run time, that is true everywhere; behind the Softmax stands a guard for rows
of which everything is hidden. Both go: adding 0 changes nothing, and a Softmax of finite numbers is never NaN. A mask that does
hide keys, and fills their scores in, is added instead: the one form that later steps know.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.evaluate import evaluate
from vitdeploy.graph.query import Array, constant, maker, number, only_user, sizes

_SPREADS = ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Tile", "Slice", "Identity")
_POINTWISE = ("Add", "Sub", "Mul", "Cast", "Not", "And", "Or", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_DEPTH = 16
_HIDDEN = -1e9
"""Scores as low as this weigh nothing beside any that are computed."""


def find_uniform(value: ir.Value | None, depth: int = _DEPTH) -> Array | None:
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
        return find_uniform(node.inputs[0], depth - 1)
    operands = [find_uniform(each, depth - 1) for each in node.inputs]
    if node.op_type == "Where":
        return None if operands[0] is None else operands[1] if operands[0] else operands[2]
    if any(operand is None for operand in operands):
        return None
    results = evaluate(node, operands)
    return None if results is None else results[0]


def drop_masks(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Leave out masks that hide nothing, add those that fill scores in, leave out guards against NaN where there is no mask.

    Yields:
        The Softmax.
    """
    for softmax in list(editor.graph):
        if softmax.op_type == "Softmax" and softmax.domain == "":
            changed = _drop_mask(editor, softmax) or _add_filled(editor, softmax)
            changed |= _is_finite(softmax.inputs[0]) and _drop_guard(editor, softmax)
            if changed:
                yield (str(softmax.name),)


def _drop_mask(editor: Editor, softmax: ir.Node) -> bool:
    node = maker(softmax.inputs[0], "Add")
    if node is None:
        return False
    for scores, mask in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        added = find_uniform(mask)
        shape = sizes(scores)
        if scores is None or added is None or added != 0 or shape is None or None in shape or shape != sizes(node.outputs[0]):
            continue
        return editor.replace(node.outputs[0], scores)
    return False


def _add_filled(editor: Editor, softmax: ir.Node) -> bool:
    """Where(hidden, -1e9, scores) of a constant mask that leaves each row a key is scores - infinity where it hides."""
    node = maker(softmax.inputs[0], "Where")
    if node is None:
        return False
    condition, first, second = node.inputs
    for filled, scores, fills in ((first, second, True), (second, first, False)):
        level, shape, everywhere = find_uniform(filled), sizes(scores), find_uniform(condition)
        if level is None or not float(level) <= _HIDDEN or shape is None or None in shape or shape != sizes(node.outputs[0]):
            continue
        assert scores is not None
        if everywhere is not None:
            return bool(everywhere) != fills and editor.replace(node.outputs[0], scores)
        mask = constant(condition)
        hidden = None if mask is None else mask == fills
        if hidden is None or hidden.ndim == 0 or hidden.all(-1).any() or only_user(node.outputs[0]) is None:
            return False
        table = np.where(hidden, -np.inf, 0).astype((scores.dtype or ir.DataType.FLOAT).numpy())
        added = editor.add(node, "Add", [scores, editor.constant(f"{node.name}.mask", table)])
        added.shape, added.type = scores.shape, scores.type
        return editor.replace(node.outputs[0], added)
    return False


def _is_finite(value: ir.Value | None) -> bool:
    """Whether scores are a product of activations, times a number, plus a finite constant."""
    node = maker(value, "MatMul", "Mul", "Div", "Add")
    if node is None or node.op_type == "MatMul":
        return node is not None
    first, second = node.inputs[:2]
    numbers = constant(second)
    if numbers is None or not np.isfinite(numbers).all() or (node.op_type != "Add" and number(second) is None):
        return False
    return _is_finite(first)


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
