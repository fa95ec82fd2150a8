"""Constants: nodes that compute the same for every image are replaced by what they compute, nodes that compute nothing go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.evaluate import LARGEST, evaluate
from vitdeploy.graph.query import Array, constant, integer, is_constant

_NUMBERS = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


def fold_constants(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Make every value that depends on no input an initializer; leave out nodes that copy their input, and empty parts.

    Args:
        editor: Of a graph whose types are inferred.

    Yields:
        The node that is gone.
    """
    for node in list(editor.graph):
        if node.graph is None or node.domain != "":
            continue
        name = str(node.name)
        if _is_copy(node):
            source = node.inputs[0]
            if source is not None and editor.replace(node.outputs[0], source):
                yield (name,)
            continue
        if node.op_type == "Concat" and _drop_empty(editor, node):
            yield (name,)
            continue
        if node.op_type == "If":
            if _take_branch(editor, node):
                yield (name,)
            continue
        arrays = _compute(node)
        if arrays is not None and _write(editor, node, arrays):
            yield (name,)


def _take_branch(editor: Editor, node: ir.Node) -> bool:
    """Put the branch of an If in its place when the condition is a constant."""
    condition = constant(node.inputs[0])
    if condition is None or any(value.is_graph_output() for value in node.outputs):
        return False
    branch = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].as_graph()
    results = list(branch.outputs)
    branch.outputs.clear()
    editor.move_in(branch, node)
    for old, new in zip(list(node.outputs), results, strict=True):
        if old.uses():
            editor.replace(old, new)
    return True


def _drop_empty(editor: Editor, node: ir.Node) -> bool:
    """Leave out what has no numbers, as the register tokens of a model without any."""
    kept = [value for value in node.inputs if value is None or value.shape is None or 0 not in value.shape]
    if not 0 < len(kept) < len(node.inputs):
        return False
    result = kept[0] if len(kept) == 1 else editor.add(node, "Concat", kept, axis=integer(node, "axis", 0))
    return result is not None and editor.replace(node.outputs[0], result)


def _is_copy(node: ir.Node) -> bool:
    """Whether a node gives what it takes."""
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        unused = all(not value.uses() and not value.is_graph_output() for value in node.outputs[1:])
        known = constant(training)
        return unused and (training is None or (known is not None and not known.any()))
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype is not None and source.dtype == integer(node, "to", 0)
    return False


def _compute(node: ir.Node) -> list[Array] | None:
    """What a node computes from constants alone; None when it takes anything else, or is not to be computed here."""
    if node.op_type == "Constant":
        return _read_literal(node)
    present = [value for value in node.inputs if value is not None]
    if not present or not all(is_constant(value) for value in present):
        return None
    known = sum(value.const_value.size for value in present if value.const_value is not None)
    shapes = [value.shape for value in node.outputs if value.shape is not None and value.shape.is_static()]
    if any(int(np.prod(shape.numpy(), dtype=np.float64)) > max(LARGEST, 2 * known) for shape in shapes):
        return None
    return evaluate(node, [constant(value) for value in node.inputs])


def _read_literal(node: ir.Node) -> list[Array] | None:
    if "value" in node.attributes:
        return [node.attributes["value"].as_tensor().numpy()]
    for name, dtype in _NUMBERS.items():
        if name in node.attributes:
            return [np.array(node.attributes[name].value, dtype)]
    return None


def _write(editor: Editor, node: ir.Node, arrays: list[Array]) -> bool:
    """Initializers in the place of a node's outputs; a weight that is only turned round keeps its name."""
    if any(value.is_graph_output() for value in node.outputs):
        return False
    sources = [value for value in node.inputs if value is not None and value.const_value is not None]
    heavy = max(sources, key=lambda value: value.const_value.size if value.const_value is not None else 0, default=None)
    for value, array in zip(list(node.outputs), arrays, strict=False):
        if not value.uses():
            continue
        if node.op_type == "Transpose" and heavy is not None:
            editor.replace(value, editor.derive(heavy, f"Transpose {node.attributes.get('perm')}", array))
        else:
            editor.freeze(value, array)
    return True


def strip_inputs(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Remove empty optional inputs behind the last one that is given: some engines count them.

    Yields:
        The node that was changed.
    """
    for node in editor.graph:
        count = len(node.inputs)
        while count and node.inputs[count - 1] is None:
            count -= 1
        if count != len(node.inputs):
            node.resize_inputs(count)
            yield (str(node.name),)


def order_operands(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Put the constant of a sum or product behind what is computed.

    Yields:
        The node that was changed.
    """
    for node in editor.graph:
        if node.op_type not in ("Add", "Mul") or node.domain != "":
            continue
        first, second = node.inputs
        if is_constant(first) and not is_constant(second):
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            yield (str(node.name),)


def remove_dead(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Remove nodes and initializers that no output needs, and sort what is left.

    Yields:
        The node or the initializer that is gone.
    """
    for node in reversed(list(editor.graph)):
        name = str(node.name)
        if node.graph is not None and editor.sweep(node):
            yield (name,)
    for value in list(editor.graph.initializers.values()):
        if editor.drop(value):
            yield (str(value.name),)
    names = [node.name for node in editor.graph]
    editor.graph.sort()
    if names != [node.name for node in editor.graph]:
        yield tuple(str(node.name) for node in editor.graph)
