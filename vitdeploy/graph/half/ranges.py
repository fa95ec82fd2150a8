"""How large the tensors of a graph get: which ones have to be looked at, how to look, and what follows for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import InputError
from vitdeploy.graph.half.forms import fill_types, is_used
from vitdeploy.graph.query import Array, constant

_SAME = frozenset(
    ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Expand", "Tile", "Cast", "Concat", "Pad")
)
"""Give all the numbers they are given, and no others."""
_PARTS = frozenset(("Slice", "Gather", "Split"))
_POOLS = frozenset(("ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "MaxPool", "AveragePool", "TopK"))
_NO_LARGER = _SAME | _PARTS | _POOLS | frozenset(("Relu", "Neg", "Abs", "Gelu", "Dropout"))
"""Give no number that is larger than all they are given."""
_WITHIN_ONE = frozenset(("Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Sin", "Cos"))
_HIDE = _SAME | _PARTS | frozenset(("Add", "Where"))
"""What a mask of -inf goes through on its way to a Softmax."""


class Taps(NamedTuple):
    """A graph that tells how large its tensors get.

    Attributes:
        model: The graph with one more output for each tensor looked at: its largest |x| over the whole batch, float32 [];
            NaN when any element is NaN.
        outputs: Name of each of these outputs to the name of its tensor.
    """

    model: ir.Model
    outputs: dict[str, str]


def choose_tensors(model: ir.Model) -> list[ir.Value]:
    """The float32 tensors whose largest |x| has to be measured, in the order of the graph.

    Left out is what follows from the others (a reshaped tensor), or is known (a softmax, a constant, a dequantized tensor).

    Args:
        model: Types of tensors that it leaves out are filled in.

    Raises:
        InputError: VD3025, the type of a tensor can't be told.
    """
    fill_types(model)
    known = _SAME | _WITHIN_ONE | {"DequantizeLinear"}
    made = [value for node in model.graph if node.op_type not in known or _makes_floats(node) for value in node.outputs]
    return [value for value in (*model.graph.inputs, *made) if value.dtype == ir.DataType.FLOAT and is_used(value)]


def _makes_floats(node: ir.Node) -> bool:
    """Whether a Cast makes floats out of something else."""
    return node.op_type == "Cast" and (node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT)


def tap(model: ir.Model) -> Taps:
    """A copy of a graph that also gives the largest |x| of its tensors, one number for each and run.

    Engines drop NaN from maxima (ONNX Runtime does, unless it comes first), but not from sums: where the sum is NaN, the
    output is. Infinities of both signs count as NaN. The -inf of a mask does not count: FP16 has it too.

    Args:
        model: Not changed, but for types that it leaves out; its weights are shared with the copy.

    Raises:
        InputError: VD3025, the type of a tensor can't be told.
    """
    copy = model.clone()
    graph, hidden = copy.graph, _hidden(copy.graph)
    taken = {str(value.name) for node in graph for value in node.outputs}
    outputs: dict[str, str] = {}
    for value in choose_tensors(copy):
        name = f"max_abs/{value.name}"
        while name in taken:
            name += "_"
        nodes = list(_measure(value, name, masked=value in hidden))
        graph.extend(nodes)
        graph.outputs.append(nodes[-1].outputs[0])
        outputs[name] = str(value.name)
    return Taps(copy, outputs)


def _hidden(graph: ir.Graph) -> set[ir.Value]:
    """Tensors with the -inf of a mask: a constant says what a softmax shall not see."""
    hidden: set[ir.Value] = set()
    for node in graph:
        if node.op_type in _HIDE and any(value in hidden or _has_hidden(value) for value in node.inputs):
            hidden.update(node.outputs)
    return hidden


def _has_hidden(value: ir.Value | None) -> bool:
    array = constant(value) if value is not None and value.dtype == ir.DataType.FLOAT else None
    return array is not None and bool((array == -np.inf).any())


def _measure(value: ir.Value, name: str, *, masked: bool) -> Iterator[ir.Node]:
    """Nodes that give max |x|, or NaN; only the three reductions see the whole tensor, and none of them copies it."""
    if masked:
        infinite = ir.node("IsInf", [value], {"detect_positive": 0}, name=f"{name}/IsInf")
        zero = ir.node("Constant", [], {"value_float": 0.0}, name=f"{name}/Constant")
        shown = ir.node("Where", [infinite.outputs[0], zero.outputs[0], value], name=f"{name}/Where_shown")
        for node in (infinite, zero, shown):
            node.outputs[0].name = f"{node.name}_out"
        yield from (infinite, zero, shown)
        value = shown.outputs[0]
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


def bound_tensors(model: ir.Model, ranges: Mapping[str, float]) -> dict[ir.Value, float]:
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
        return _bound_codes(node)
    if node.op_type not in _NO_LARGER or _makes_floats(node):
        return None
    sizes = []
    for value in node.inputs:
        if value is not None and value.dtype == ir.DataType.FLOAT:
            array = constant(value)
            size = known.get(value) if array is None else largest(array)
            if size is None:
                return None
            sizes.append(size)
    return max(sizes, default=None)


def largest(array: Array) -> float:
    """The largest finite |x|; infinities are numbers of FP16 as they are."""
    return float(np.abs(array).max(initial=0, where=np.isfinite(array)))


def _bound_codes(node: ir.Node) -> float | None:
    """The largest |(q - z) s| that a DequantizeLinear can give."""
    numbers, scale, zero = (*node.inputs, None)[:3]
    codes, steps, zeros = constant(numbers), constant(scale), np.zeros(1) if zero is None else constant(zero)
    if codes is None and numbers is not None and numbers.dtype is not None and numbers.dtype.is_integer():
        bits, signed = numbers.dtype.bitwidth, numbers.dtype.is_signed()
        codes = np.array((-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1))
    if codes is None or steps is None or zeros is None:
        return None
    high, low, zeros = float(codes.max()), float(codes.min()), zeros.astype(np.float64)
    return float(max(abs(high - zeros.min()), abs(low - zeros.max())) * np.abs(steps).max())
