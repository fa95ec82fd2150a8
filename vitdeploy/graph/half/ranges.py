"""How large the tensors of a graph get: which ones have to be looked at, how to look, and what follows for the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import InputError
from vitdeploy.graph.half.forms import fill_types, is_constant, is_used, read

_SAME = frozenset(
    ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile", "Cast", "Concat", "Pad")
)
"""Give all the numbers they are given, and no others."""
_POOLS = frozenset(("ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "MaxPool", "AveragePool", "TopK"))
_NO_LARGER = _SAME | _POOLS | frozenset(("Slice", "Gather", "Split", "Relu", "Neg", "Abs", "Gelu", "Dropout"))
"""Give no number that is larger than all they are given."""
_WITHIN_ONE = frozenset(("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sin", "Cos"))
_OLDEST = 13


class Taps(NamedTuple):
    """A graph that tells how large its tensors get.

    Attributes:
        model: The graph with one more output for each tensor looked at: its largest |x| over the whole batch, float32 [];
            NaN when any element is NaN.
        outputs: Name of each of these outputs to the name of its tensor.
    """

    model: ir.Model
    outputs: dict[str, str]


def wanted(model: ir.Model) -> list[str]:
    """Names of the float32 tensors whose largest |x| has to be measured, in the order of the graph.

    Left out is what follows from the others (a reshaped tensor), or is known (a softmax, a constant, a dequantized tensor).

    Args:
        model: Types of tensors that it leaves out are filled in.

    Raises:
        InputError: VD3025, the type of a tensor can't be told.
    """
    fill_types(model)
    known = _SAME | _WITHIN_ONE | {"DequantizeLinear"}
    made = [value for node in model.graph if node.op_type not in known or _turns(node) for value in node.outputs]
    fed = [value for value in model.graph.inputs if value.const_value is None]
    return [str(value.name) for value in (*fed, *made) if value.dtype == ir.DataType.FLOAT and is_used(value)]


def _turns(node: ir.Node) -> bool:
    """Whether a Cast makes floats out of something else."""
    return node.op_type == "Cast" and (node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT)


def tapped(model: ir.Model, names: Collection[str] | None = None) -> Taps:
    """A copy of a graph that also gives the largest |x| of its tensors, one number for each and run.

    Engines drop NaN from maxima (ONNX Runtime does, unless it comes first), but not from sums: where the sum is NaN, the
    output is. Infinities of both signs count as NaN.

    Args:
        model: Not changed, but for types that it leaves out; its weights are shared with the copy.
        names: Tensors to look at; those of `wanted` when not given.

    Raises:
        InputError: VD3025, the operator set is older than 13, or the type of a tensor can't be told.
    """
    version = model.opset_imports.get("", 1)
    if version < _OLDEST:
        raise InputError("VD3025", f"operator set {version} is older than {_OLDEST}", fix="export the model again")
    chosen = set(wanted(model) if names is None else names)
    copy = model.clone()
    graph = copy.graph
    values = [value for value in (*graph.inputs, *(out for node in graph for out in node.outputs)) if value.name in chosen]
    taken = {str(value.name) for node in graph for value in node.outputs}
    outputs: dict[str, str] = {}
    for value in values:
        name = f"max_abs/{value.name}"
        while name in taken:
            name += "_"
        nodes = list(_measure(value, name))
        graph.extend(nodes)
        graph.outputs.append(nodes[-1].outputs[0])
        outputs[name] = str(value.name)
    return Taps(copy, outputs)


def _measure(value: ir.Value, name: str) -> Iterator[ir.Node]:
    """Nodes that give max |x|, or NaN; only the three reductions see the whole tensor, and none of them copies it."""
    reductions = [
        _scalar(operator, [value], f"{name}/{operator}", keepdims=0) for operator in ("ReduceMax", "ReduceMin", "ReduceSum")
    ]
    highest, lowest, total = (node.outputs[0] for node in reductions)
    negative = _scalar("Neg", [lowest], f"{name}/Neg")
    largest = _scalar("Max", [highest, negative.outputs[0]], f"{name}/Max")
    bad = _scalar("IsNaN", [total], f"{name}/IsNaN")
    bad.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    result = _scalar("Where", [bad.outputs[0], total, largest.outputs[0]], f"{name}/Where")
    result.outputs[0].name = name
    yield from (*reductions, negative, largest, bad, result)


def _scalar(operator: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
    """A node that gives one float32 number."""
    node = ir.node(operator, inputs, attributes, name=name)
    node.outputs[0].name = f"{name}_out"
    node.outputs[0].shape, node.outputs[0].type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
    return node


def bounds(model: ir.Model, ranges: Mapping[str, float]) -> dict[ir.Value, float]:
    """The largest |x| of every float32 tensor for which it was measured or follows from what was measured.

    Args:
        model: The graph.
        ranges: Largest |x| by name of tensor.

    Raises:
        InputError: VD3109, there are ranges and none is of a tensor of this graph.
    """
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)]
    known = {value: float(ranges[name]) for value in values if (name := str(value.name)) in ranges}
    if ranges and not known:
        message = f"ranges of {len(ranges)} tensors, none of which the graph has, such as {next(iter(ranges))!r}"
        raise InputError("VD3109", message, fix="calibrate this model")
    for node in model.graph:
        bound = _bound(node, known)
        if bound is not None:
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    known.setdefault(value, bound)
    return known


def _bound(node: ir.Node, known: Mapping[ir.Value, float]) -> float | None:
    if node.op_type in _WITHIN_ONE:
        return 1.0
    if node.op_type == "DequantizeLinear":
        return _dequantized(node)
    if node.op_type not in _NO_LARGER or _turns(node):
        return None
    found = []
    for value in node.inputs:
        if value is not None and value.dtype == ir.DataType.FLOAT:
            found.append(float(np.abs(read(value)).max(initial=0)) if is_constant(value) else known.get(value))
    sizes = [size for size in found if size is not None]
    return max(sizes) if sizes and len(sizes) == len(found) else None


def _dequantized(node: ir.Node) -> float | None:
    """The largest |(q - z) s| that a DequantizeLinear can give."""
    numbers, scale = node.inputs[:2]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if numbers is None or scale is None or not is_constant(scale) or (zero is not None and not is_constant(zero)):
        return None
    if not is_constant(numbers) and not (numbers.dtype and numbers.dtype.is_integer()):
        return None
    ends = read(numbers) if is_constant(numbers) else np.array(_limits(numbers))
    low, high = float(ends.min()), float(ends.max())
    zeros = read(zero).astype(np.float64) if zero is not None else np.zeros(1)
    return float(max(abs(high - zeros.min()), abs(low - zeros.max())) * np.abs(read(scale)).max())


def _limits(value: ir.Value) -> tuple[int, int]:
    assert value.dtype is not None
    bits, signed = value.dtype.bitwidth, value.dtype.is_signed()
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
