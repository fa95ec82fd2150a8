"""FP16 forms of operators, and the rewriting of a graph once it is known which of its nodes take them.

What an operator can take is asked of its ONNX schema, not of a list, so that a new operator is right or is left alone.
The result is strongly typed, as TensorRT 10 and 11 want: every tensor has one type, and every change of type is a Cast
that can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import InputError
from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.query import Array, constant
from vitdeploy.record import Loss

LARGEST = 65504.0
"""The largest finite FP16 number."""
SMALLEST_NORMAL = 2.0**-14
"""The smallest FP16 number with all its 11 bits; below it the spacing stays 2^-24."""
SMALLEST = 2.0**-24
"""The smallest positive FP16 number; what is at most half of it becomes 0."""

_STAY = frozenset((("Resize", 1),))  # a region in image coordinates: no pixels, and engines want it as it is
_TYPED_BY_ATTRIBUTE = {"Cast": "to", "ConstantOfShape": "value", "DequantizeLinear": "output_dtype"}
_FULL, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class Form(NamedTuple):
    """Which of a node's tensors become FP16 with it.

    Attributes:
        inputs: Indices of the inputs.
        outputs: Indices of the outputs.
        obstacle: Why none do, or "".
    """

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    obstacle: str = ""


def fill_types(model: ir.Model) -> None:
    """Find the types and shapes that a file leaves out by ONNX's inference, in place; nothing is computed differently.

    Raises:
        InputError: VD3025, the type of a tensor can't be told.
    """
    if any(_is_untyped(node) for node in model.graph):
        ShapeInferencePass()(model)
    for node in model.graph:
        if _is_untyped(node):
            message = f"the types of what {node.op_type} {node.name!r} makes can't be told"
            raise InputError("VD3025", message, fix="export the model again in ONNX's own operators")


def _is_untyped(node: ir.Node) -> bool:
    return any(value.dtype is None and value.uses() for value in node.outputs)


def choose_form(node: ir.Node, opsets: Mapping[str, int]) -> Form | None:
    """The FP16 form of a node by its ONNX schema; None for a node without a float32 tensor.

    Args:
        node: Of a graph whose tensors have types.
        opsets: Operator set domain to version, as the model imports them.
    """
    fed = [index for index, value in enumerate(node.inputs) if _is_full(value)]
    made = [index for index, value in enumerate(node.outputs) if _is_full(value)]
    if not fed and not made:
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return Form(obstacle="operator has no FP16 form")
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
        return Form(obstacle="has a sub-graph")
    halves = {entry.type_param_str for entry in schema.type_constraints if "tensor(float16)" in entry.allowed_type_strs}
    inputs = {index: _parameter(schema.inputs, index) for index in fed if (node.op_type, index) not in _STAY}
    outputs = {index: _parameter(schema.outputs, index) for index in made}
    turned = frozenset(index for index, parameter in inputs.items() if parameter in halves)
    given = frozenset(index for index, parameter in outputs.items() if parameter in halves)
    if not turned and not given:
        return Form(obstacle="operator has no FP16 form")
    carried = {inputs[index] for index in turned}
    if node.op_type not in _TYPED_BY_ATTRIBUTE and any(outputs[index] not in carried for index in given):
        return Form(obstacle="the type of its result is an attribute")
    return Form(turned, given)


def _is_full(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == _FULL


def _parameter(formals: Any, index: int) -> str:  # noqa: ANN401 (onnx's own sequence type is not public)
    """The schema's name for the type of an input or output; the last one may stand for many."""
    return str(formals[min(index, len(formals) - 1)].type_str)


def measure_loss(array: Array) -> Loss:
    """What FP16 takes from a constant; infinities are numbers of FP16 too and cost nothing.

    Args:
        array: float32, any shape, finite parts at most `LARGEST`.
    """
    finite = np.where(np.isfinite(array), array, 0).astype(np.float64)  # float32 can't square 1e-25
    rounded = finite.astype(np.float16).astype(np.float64)
    size, length = np.abs(rounded), np.linalg.norm(finite)
    return Loss(
        subnormal=int(np.count_nonzero((size > 0) & (size < SMALLEST_NORMAL))),
        vanished=int(np.count_nonzero((finite != 0) & (size == 0))),
        error=float(np.linalg.norm(finite - rounded) / length) if length else 0.0,
    )


def rewrite(editor: Editor, half: Mapping[ir.Node, Form]) -> int:
    """Give nodes their FP16 form: constants, types, and one Cast for each tensor that is needed in its other type.

    Args:
        editor: Of the graph that is changed.
        half: The nodes that become FP16, with their forms; all others stay.

    Returns:
        How many Casts were added.
    """
    graph = editor.graph
    floats = [value for value in (*graph.inputs, *(out for node in graph for out in node.outputs)) if _is_full(value)]
    for node, form in half.items():
        for index, value in enumerate(node.inputs):
            array = constant(value) if _takes_half(node, index, half) else None
            if value is not None and array is not None:  # numpy rounds to nearest even and keeps subnormals
                editor.rewire(node, index, editor.derive(value, "fp16", array.astype(np.float16)))
        _turn_attribute(node)
        for index in form.outputs:
            node.outputs[index].type = ir.TensorType(_HALF)
    editor.restore_names()
    return sum(_cast(editor, value, half) for value in floats)


def _takes_half(node: ir.Node, index: int, half: Mapping[ir.Node, Form]) -> bool:
    """Whether a node must be given an input in FP16; a Cast takes every type as it is."""
    return node in half and index in half[node].inputs and node.op_type != "Cast"


def _turn_attribute(node: ir.Node) -> None:
    """Where an attribute says the type of the result, it must say FP16 now."""
    name = _TYPED_BY_ATTRIBUTE.get(node.op_type, "")
    if node.op_type == "ConstantOfShape":
        old = node.attributes[name].as_tensor().numpy() if name in node.attributes else np.zeros(1, np.float32)
        node.attributes[name] = ir.AttrTensor(name, ir.tensor(np.asarray(old).astype(np.float16)))
    elif name in node.attributes and node.attributes[name].value == _FULL.value:
        node.attributes[name] = ir.AttrInt64(name, _HALF.value)


def _cast(editor: Editor, value: ir.Value, half: Mapping[ir.Node, Form]) -> int:
    """Add the Cast that the other users of a tensor need, if any do; how many were added."""
    graph, is_half, maker = editor.graph, value.dtype == _HALF, value.producer()
    uses = [use for use in value.uses() if use.node.op_type != "Cast" and _takes_half(use.node, use.idx, half) != is_half]
    leaves = is_half and value.is_graph_output()
    if not uses and not leaves:
        return 0
    source = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else value  # never a Cast of a Cast
    target = _FULL if is_half else _HALF
    cast = ir.node("Cast", [source], {"to": target.value}, name=f"{value.name}/to_{'fp32' if is_half else 'fp16'}")
    result = cast.outputs[0]
    declare(result, ir.TensorType(target), value.shape)
    editor.insert([cast], graph[0] if maker is None else maker, behind=maker is not None)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    if leaves:  # the name of an output is part of the interface
        result.name, value.name = value.name, result.name
        graph.outputs[list(graph.outputs).index(value)] = result
    if source is not value and maker is not None:  # a Cast whose result may be needed in the other type only
        editor.sweep(maker)
    return 1


def is_used(value: ir.Value) -> bool:
    """Whether a node or the caller takes a tensor."""
    return bool(value.uses()) or value.is_graph_output()
