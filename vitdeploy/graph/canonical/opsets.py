"""Operator sets: any from 13 to 25 becomes 20, which TensorRT 10, ONNX Runtime and OpenVINO all read.

Most versions of an operator only allow more element types. Which ones change more is read from ONNX's own definitions: an
attribute that became an input, a new one whose default changes the result. Weights are not touched, so a model of any size
will do.

Source: github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedOpsetsPass

from vitdeploy.errors import InputError, library
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import constant, integer, whole

TARGET = 20
"""The operator set of every canonical graph."""
OLDEST, NEWEST = 13, 25
"""Operator sets that are read; before 13, Softmax meant something else."""
_CHANGED = {"GridSample": 20, "RoiAlign": 16, "GroupNormalization": 21, "BatchNormalization": 14, "DFT": 20}
"""Operators that mean something else from this operator set on, though nodes look the same."""
_UNIT = {"one": np.ones, "zero": np.zeros}


def check_opset(model: ir.Model) -> None:
    """Refuse an operator set that is not read.

    Raises:
        InputError: VD3025, older than 13, newer than 25, or none.
    """
    version = model.graph.opset_imports.get("")
    if version is None or not OLDEST <= version <= NEWEST:
        said = "names no operator set" if version is None else f"has operator set {version}"
        fix = f"export it again with an operator set from {OLDEST} to {NEWEST}"
        raise InputError("VD3025", f"the model {said}, {OLDEST} to {NEWEST} can be edited", fix=fix)


def make_refusal(node: ir.Node, why: str) -> InputError:
    """The error for a node that can't be edited, VD3025.

    Args:
        node: The node.
        why: Said of it.
    """
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    fix = "export the model again with plain ONNX operators"
    return InputError("VD3025", f"node {node.name!r} ({operator}) {why}", fix=fix)


def inline_functions(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Put the bodies of the model's own functions in the place of their calls.

    Yields:
        The functions' names.
    """
    model = editor.model
    if not model.functions:
        return
    names = tuple(sorted(f"{domain}::{name}" for domain, name, _ in model.functions))
    with library("onnx"):
        InlinePass()(model)
    RemoveUnusedOpsetsPass()(model)
    editor.refresh()
    yield names


def convert(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Bring the graph to operator set 20.

    Yields:
        The nodes that were changed; most only get another version.

    Raises:
        InputError: VD3025, an operator that operator set 20 does not have, or that means something else there.
    """
    graph = editor.graph
    version = graph.opset_imports[""]
    if version == TARGET:
        return
    changed = []
    for node in [node for node in graph if node.domain == ""]:
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
            raise make_refusal(node, f"holds a graph of its own, which can't be brought to operator set {TARGET}")
        if _convert(editor, node, version):
            changed.append(str(node.name))
    graph.opset_imports[""] = TARGET
    yield tuple(changed)


def leave_domains(model: ir.Model) -> None:
    """Drop the operator sets that no node uses any more.

    Raises:
        InputError: VD3025, a node of an operator set other than ONNX's own.
    """
    for node in model.graph:
        if node.domain != "":
            raise make_refusal(node, "is of no operator set that all engines read")
    RemoveUnusedOpsetsPass()(model)


def _convert(editor: Editor, node: ir.Node, version: int) -> bool:
    """Bring one node to the target; whether anything but its version had to change."""
    new = _find_schema(node, TARGET)
    if new is None:
        raise make_refusal(node, f"does not exist in operator set {TARGET}")
    old = _find_schema(node, version)
    if old is None or old.since_version == new.since_version:
        return False
    if node.op_type == "GroupNormalization" and version > TARGET and _write_group_norm(editor, node):
        return True
    low, high = sorted((version, TARGET))
    if low < _CHANGED.get(node.op_type, 0) <= high and not (node.op_type == "BatchNormalization" and len(node.outputs) == 1):
        raise make_refusal(node, f"means something else in operator set {TARGET} than in {version}")
    _check_types(node, new)
    changed = _move_attributes(editor, node, old, new)
    if node.op_type == "Split" and version < 18 <= TARGET and (len(node.inputs) < 2 or node.inputs[1] is None):
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
        changed = True
    return changed


def _write_group_norm(editor: Editor, node: ir.Node) -> bool:
    """Write a GroupNormalization as torch did before there was one: up to operator set 20 its factors are those of groups.

    The shape need not be known: of this operator's output, ONNX infers none.

    Returns:
        Whether it was done; not where the number of groups or the factors are not known.
    """
    value, groups = node.inputs[0], integer(node, "num_groups", 0)
    factors = [constant(each) for each in node.inputs[1:]]
    if value is None or groups < 1 or any(each is None for each in factors):
        return False
    name, epsilon = str(node.name), node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    wide = editor.add(node, "Reshape", [value, editor.constant(f"{name}.groups", np.array([0, groups, -1]))])
    ones, zeros = (editor.constant(f"{name}.{what}", make(groups, np.float32)) for what, make in _UNIT.items())
    even = editor.add(node, "InstanceNormalization", [wide, ones, zeros], epsilon=epsilon)
    channels = editor.constant(f"{name}.channels", np.array([0, len(factors[0]), -1]))  # type: ignore[arg-type]
    even = editor.add(node, "Reshape", [even, channels])
    for operator, given, factor in zip(("Mul", "Add"), node.inputs[1:], factors, strict=True):
        assert given is not None and factor is not None
        even = editor.add(node, operator, [even, editor.derive(given, "column", factor[:, None])])
    return editor.replace(node.outputs[0], editor.add(node, "Reshape", [even, editor.add(node, "Shape", [value])]))


def _find_schema(node: ir.Node, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _check_types(node: ir.Node, schema: onnx.defs.OpSchema) -> None:
    """Refuse an element type that the older definition did not allow."""
    if len(node.inputs) > schema.max_input or len(node.outputs) > schema.max_output:
        raise make_refusal(node, f"has inputs or outputs that it has not in operator set {TARGET}")
    for place, value in enumerate(node.inputs):
        allowed = schema.inputs[min(place, len(schema.inputs) - 1)].types
        if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        name = value.dtype.name.lower()
        if f"tensor({name})" not in allowed:
            raise make_refusal(node, f"takes {name}, which it does not in operator set {TARGET}")


def _move_attributes(editor: Editor, node: ir.Node, old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Attributes that the target does not have become inputs, or go when they say the default."""
    formal = [each.name for each in new.inputs]
    gone = [name for name in node.attributes if name not in new.attributes]
    for name in gone:
        numbers = whole(node, name) if name in formal else None
        if numbers is not None and formal.index(name) >= len(node.inputs):
            node.resize_inputs(formal.index(name) + 1)
            node.replace_input_with(formal.index(name), editor.constant(f"{node.name}.{name}", np.array(numbers, np.int64)))
        elif not _is_default(node.attributes[name], old):
            raise make_refusal(node, f"has {name!r}, which it has not in operator set {TARGET}")
        node.attributes.pop(name)
    return bool(gone)


def _is_default(attribute: ir.Attr, schema: onnx.defs.OpSchema) -> bool:
    formal = schema.attributes.get(attribute.name)
    if formal is None or formal.default_value.type == onnx.AttributeProto.UNDEFINED:
        return False
    default = onnx.helper.get_attribute_value(formal.default_value)
    return bool(attribute.value == (default.decode() if isinstance(default, bytes) else default))
