"""FP16 forms of operators, and the rewriting of a graph once it is known which of its nodes take them.

What an operator can take is asked of its ONNX schema, not of a list, so that a new operator is right or is left alone.
The result is strongly typed, as TensorRT 10 and 11 want: every tensor has one type, and every change of type is a Cast
that can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import InputError
from vitdeploy.graph.editor import free_name

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


class Loss(msgspec.Struct, frozen=True):
    """What FP16 takes from a constant.

    Attributes:
        subnormal: Elements that become FP16 subnormals: kept, with fewer than 11 bits.
        vanished: Elements other than 0 that become 0.
        error: Length of the rounding error over length of the constant (Euclidean); 2e-4 is usual.
    """

    subnormal: int
    vanished: int
    error: float


def is_constant(value: ir.Value | None) -> bool:
    """Whether a tensor is an initializer that no caller can replace."""
    return value is not None and value.producer() is None and value.const_value is not None and not value.is_graph_input()


def read(value: ir.Value) -> NDArray[Any]:
    """The numbers of a constant."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def fill_types(model: ir.Model) -> None:
    """Find the types and shapes that a file leaves out by ONNX's inference, in place; nothing is computed differently.

    Raises:
        InputError: VD3025, the type of a tensor can't be told.
    """
    if any(_untyped(node) for node in model.graph):
        ShapeInferencePass()(model)
    for node in model.graph:
        if _untyped(node):
            message = f"the types of what {node.op_type} {label(node)!r} makes can't be told"
            raise InputError("VD3025", message, fix="export the model again in ONNX's own operators")


def _untyped(node: ir.Node) -> bool:
    return any(value.dtype is None and value.uses() for value in node.outputs)


def half_form(node: ir.Node, opsets: Mapping[str, int]) -> Form | None:
    """The FP16 form of a node by its ONNX schema; None for a node without a float32 tensor.

    Args:
        node: Of a graph whose tensors have types.
        opsets: Operator set domain to version, as the model imports them.
    """
    fed = [index for index, value in enumerate(node.inputs) if _is_full(value)]
    made = [index for index, value in enumerate(node.outputs) if _is_full(value)]
    if not fed and not made:
        return None
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
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


def loss(array: NDArray[Any]) -> Loss:
    """What FP16 takes from a constant; infinities are numbers of FP16 too and cost nothing.

    Args:
        array: float32, any shape, finite parts at most `LARGEST`.
    """
    finite = np.where(np.isfinite(array), array, 0).astype(np.float32).reshape(-1)
    rounded = finite.astype(np.float16).astype(np.float32)
    size = np.abs(rounded)
    length = _length(finite)
    return Loss(
        subnormal=int(np.count_nonzero((size > 0) & (size < SMALLEST_NORMAL))),
        vanished=int(np.count_nonzero((finite != 0) & (size == 0))),
        error=_length(finite - rounded) / length if length else 0.0,
    )


def _length(array: NDArray[np.float32]) -> float:
    """Euclidean length, summed in float64: float32 can't square 1e-25."""
    return math.sqrt(float(np.einsum("i,i->", array, array, dtype=np.float64)))


def rewrite(graph: ir.Graph, half: Mapping[ir.Node, Form]) -> int:
    """Give nodes their FP16 form: constants, types, and one Cast for each tensor that is needed in its other type.

    Args:
        graph: Changed in place.
        half: The nodes that become FP16, with their forms; all others stay.

    Returns:
        How many Casts were added.
    """
    names = {str(value.name) for value in _values(graph)} | {str(node.name) for node in graph}
    for value in list(graph.initializers.values()):
        if is_constant(value) and _is_full(value):
            _turn_constant(graph, value, half, names)
    made = [value for node in graph for value in node.outputs if _is_full(value)]
    given = {value for node, form in half.items() for value in (node.outputs[index] for index in form.outputs)}
    for node in half:
        _turn_attribute(node)
    first, casts = graph[0], 0
    for value in (*graph.inputs, *made):
        if value in given:
            value.type = ir.TensorType(_HALF)
        if value in given or _is_full(value):
            casts += _cast(graph, value, half, (names, first))
    return casts


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _wants_half(node: ir.Node, index: int, half: Mapping[ir.Node, Form]) -> bool:
    return node in half and index in half[node].inputs


def _turn_constant(graph: ir.Graph, value: ir.Value, half: Mapping[ir.Node, Form], names: set[str]) -> None:
    """A constant for FP16 nodes: the same one when no other node uses it, else a copy beside it."""
    turned = [use for use in value.uses() if use.node.op_type != "Cast" and _wants_half(use.node, use.idx, half)]
    if not turned:
        return
    rounded = read(value).astype(np.float16)  # numpy rounds to nearest even and keeps subnormals
    if len(turned) == len(list(value.uses())) and not value.is_graph_output():
        value.const_value = ir.tensor(rounded, name=value.name)
        value.type = ir.TensorType(_HALF)
        return
    name = free_name(f"{value.name}/fp16", names)
    copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(_HALF), const_value=ir.tensor(rounded, name=name))
    graph.register_initializer(copy)
    for use in turned:
        use.node.replace_input_with(use.idx, copy)


def _turn_attribute(node: ir.Node) -> None:
    """Where an attribute says the type of the result, it must say FP16 now."""
    name = _TYPED_BY_ATTRIBUTE.get(node.op_type)
    if name is None or node.outputs[0].dtype != _FULL:
        return
    if node.op_type == "ConstantOfShape":
        old = node.attributes[name].as_tensor().numpy() if name in node.attributes else np.zeros(1, np.float32)
        node.attributes[name] = ir.AttrTensor(name, ir.tensor(np.asarray(old).astype(np.float16)))
    elif name in node.attributes and node.attributes[name].value == _FULL.value:
        node.attributes[name] = ir.AttrInt64(name, _HALF.value)


def _cast(graph: ir.Graph, value: ir.Value, half: Mapping[ir.Node, Form], where: tuple[set[str], ir.Node]) -> int:
    """Add the Cast that the other users of a tensor need, if any do; a Cast takes every type as it is."""
    names, first = where
    is_half, maker = value.dtype == _HALF, value.producer()
    others = [use for use in value.uses() if use.node.op_type != "Cast" and _wants_half(use.node, use.idx, half) != is_half]
    leaves = is_half and value.is_graph_output()
    if not others and not leaves:
        return 0
    target = _FULL if is_half else _HALF
    suffix = "fp32" if is_half else "fp16"
    source = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else value  # never a Cast of a Cast
    cast = ir.node("Cast", [source], {"to": target.value}, name=free_name(f"{value.name}/to_{suffix}", names))
    result = cast.outputs[0]
    result.shape, result.type = value.shape, ir.TensorType(target)
    for use in others:
        use.node.replace_input_with(use.idx, result)
    if leaves:  # the name of an output is part of the interface
        result.name, value.name = value.name, free_name(f"{value.name}/fp16", names)
        for place, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[place] = result
    else:
        result.name = free_name(f"{value.name}/{suffix}", names)
    if maker is None:
        graph.insert_before(first, cast)
    else:
        graph.insert_after(maker, cast)
        if not is_used(value):  # a Cast whose result is needed in the other type only
            graph.remove(maker, safe=True)
    return 1


def is_used(value: ir.Value) -> bool:
    """Whether a node or the caller takes a tensor."""
    return bool(value.uses()) or value.is_graph_output()


def label(node: ir.Node) -> str:
    """A node's name; one without a name is called by its operator and its first result."""
    return str(node.name) if node.name else f"{node.op_type} of {node.outputs[0].name}"
