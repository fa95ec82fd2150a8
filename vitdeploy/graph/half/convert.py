"""FP16 that cannot overflow: a graph in half precision, with what must stay in FP32 left there, and why.

FP16 ends at 65504, and a tensor that passes it becomes infinite, then NaN, without a word. So a node goes to FP16 only when
its operator has such a form, its constants fit, its tensors stayed below half the limit on the calibration images, and what
it sums inside stays below it too. Products (MatMul, Gemm, Conv) are taken to sum in FP32, as tensor cores and CPUs do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.graph.half.forms import (
    LARGEST,
    SMALLEST,
    SMALLEST_NORMAL,
    Form,
    Loss,
    fill_types,
    half_form,
    is_constant,
    label,
    loss,
    read,
    rewrite,
)
from vitdeploy.graph.half.keep import ISLANDS, MOVES, Flow, angles, of_shapes, squares
from vitdeploy.graph.half.ranges import Taps, bounds, tapped, wanted

__all__ = ["ISLANDS", "LIMIT", "HalfResult", "Loss", "Overflow", "Taps", "tapped", "to_half", "wanted"]

LIMIT = LARGEST / 2
"""Largest |x| on calibration images with which a tensor may be FP16: other images may have larger ones."""
_QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_FLEXIBLE = MOVES | _QUANTIZERS | {"Cast", "ConstantOfShape", "Shape", "Size"}
_NORMS = frozenset(("LayerNormalization", "RMSNormalization"))
_SUMS = frozenset(("ReduceMean", "ReduceSum", "GlobalAveragePool"))


class Overflow(msgspec.Struct, frozen=True):
    """A tensor that FP16 does not hold with room to spare.

    Attributes:
        node: The node that makes it; "" for an input of the graph.
        tensor: Its name.
        max_abs: Its largest |x| on the calibration images, or what follows from another tensor's.
    """

    node: str
    tensor: str
    max_abs: float


class HalfResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became FP16 and what did not.

    Attributes:
        islands: What was asked to stay in FP32.
        half: Nodes in FP16.
        kept: Nodes in FP32, by name, and why.
        casts: Casts that were added.
        overflow: Tensors beyond `LIMIT`, in the order of the graph.
        unranged: FP16 tensors of which no largest value is known: nothing is promised about them.
        losses: Constants in FP16 that have subnormal or vanished elements, by name.
        epsilons: Epsilons of FP16 nodes that FP16 itself can't hold, by node; a kernel that keeps them in FP32 is not harmed.
    """

    islands: tuple[str, ...]
    half: int
    kept: dict[str, str]
    casts: int
    overflow: tuple[Overflow, ...] = ()
    unranged: int = 0
    losses: dict[str, Loss] = {}
    epsilons: dict[str, float] = {}


def to_half(
    model: ir.Model,
    *,
    keep: Collection[str] = (),
    ranges: Mapping[str, float] | None = None,
    dtype: Literal["fp16"] = "fp16",
) -> HalfResult:
    """Turn a float32 graph to FP16, in place; its inputs and outputs keep their types.

    Args:
        model: A ViT in float32, possibly with QuantizeLinear and DequantizeLinear; Constant nodes become initializers.
        keep: What stays in FP32: names of `ISLANDS`, or of nodes.
        ranges: Largest |x| on calibration images by name of tensor, for all that `wanted` names. Without it nothing is known
            of activations, and only the constants are sure to fit.
        dtype: The only 16-bit type that is written into files; bfloat16 is a hint to an engine.

    Returns:
        What was done. A decomposed norm, a sum of squares, angles and shape arithmetic always stay in FP32.

    Raises:
        UsageError: VD2003, ``keep`` names neither an island nor a node; VD2011, another ``dtype``.
        InputError: VD3024, the graph has 16-bit floats already, or no float32; VD3025, the type of a tensor can't be told;
            VD3109, the ranges are of another model.
    """
    if dtype != "fp16":
        raise UsageError("VD2011", f"no file can be written in {dtype!r}", fix="use fp16")
    _prepare(model)
    graph, flow = model.graph, Flow(model.graph)
    known = bounds(model, ranges or {})
    forms = {node: form for node in graph if (form := half_form(node, model.opset_imports)) is not None}
    kept = {node: form.obstacle for node, form in forms.items() if form.obstacle}
    overflow = _overflowing(model, known, forms, kept)
    checked = dict[ir.Value, str]()
    for node, form in forms.items():
        reason = _constants(node, form, checked) or _inside(node, known)
        if reason:
            kept.setdefault(node, reason)
    _keep_always(flow, kept)
    _keep_named(flow, keep, kept)
    half = {node: form for node, form in forms.items() if node not in kept}
    for node in _between(half):
        kept[node] = "has only FP32 around it"
        del half[node]
    losses = _losses(half)
    unranged = sum(node.outputs[index] not in known for node, form in half.items() for index in form.outputs)
    casts = rewrite(graph, half) if half else 0
    return HalfResult(
        islands=tuple(sorted(keep)),
        half=len(half),
        kept={label(node): kept[node] for node in forms if node in kept and node.graph is not None},
        casts=casts,
        overflow=tuple(overflow),
        unranged=unranged,
        losses=losses,
        epsilons={label(node): epsilon for node in half if 0 < (epsilon := _epsilon(node)) < SMALLEST},
    )


def _prepare(model: ir.Model) -> None:
    """Check that the graph is one in float32, whose tensors all have types; constants become initializers."""
    sixteen = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fill_types(model)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)]
    found = next((value for value in values if value.dtype in sixteen), None)
    if found is not None:
        raise InputError("VD3024", f"has 16-bit floats already, such as {found.name!r}", fix="give the float32 model")
    if not any(value.dtype == ir.DataType.FLOAT for value in values):
        raise InputError("VD3024", "has no float32 tensor", fix="give the float32 model")


def _overflowing(
    model: ir.Model, known: Mapping[ir.Value, float], forms: Mapping[ir.Node, Form], kept: dict[ir.Node, str]
) -> list[Overflow]:
    """Tensors beyond the limit; the nodes that make and take them are marked as kept."""
    found = []
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        if value.dtype != ir.DataType.FLOAT or value not in known or known[value] <= LIMIT:
            continue
        maker = value.producer()
        found.append(Overflow("" if maker is None else label(maker), str(value.name), known[value]))
        for node in (maker, *(use.node for use in value.uses() if use.idx in _inputs(use.node, forms))):
            if node is not None and node in forms:
                kept.setdefault(node, f"{value.name} reaches {known[value]:.4g}")
    return found


def _inputs(node: ir.Node, forms: Mapping[ir.Node, Form]) -> frozenset[int]:
    return forms[node].inputs if node in forms else frozenset()


def _constants(node: ir.Node, form: Form, checked: dict[ir.Value, str]) -> str:
    """Why a node's constants are not for FP16, or ""; each constant is read once."""
    for index in sorted(form.inputs):
        value = node.inputs[index]
        if value is None or not is_constant(value):
            continue
        if value not in checked:
            checked[value] = _unfit(value)
        if checked[value]:
            return checked[value]
        if node.op_type in _QUANTIZERS and index == 1 and (smallest := _smallest(value)) < SMALLEST_NORMAL:
            return f"scale {value.name} is {smallest:.3g}, too small for FP16"
    return ""


def _unfit(value: ir.Value) -> str:
    array = np.abs(read(value))
    largest = float(array.max(initial=0, where=np.isfinite(array)))
    if largest > LARGEST:
        return f"constant {value.name} reaches {largest:.4g}"
    if 0 < largest <= SMALLEST / 2:
        return f"constant {value.name} would become 0"
    return ""


def _smallest(value: ir.Value) -> float:
    array = np.abs(read(value))
    return float(array.min(initial=math.inf, where=array > 0))


def _inside(node: ir.Node, known: Mapping[ir.Value, float]) -> str:
    """Why a node may overflow inside although its tensors fit, or ""."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type in _NORMS and node.attributes.get_int("stash_type", 1) != ir.DataType.FLOAT.value:
        return "its sums are not in FP32 (stash_type)"
    if value is None or value not in known:
        return ""
    largest = known[value]
    if node.op_type in _NORMS and not largest**2 <= LIMIT:
        return f"squares of {value.name} reach {largest**2:.4g}"
    if node.op_type in _SUMS:
        count = _summed(node, value)
        if not count * largest <= LIMIT:
            return f"the sum of {value.name} may reach {count * largest:.4g}"
    if node.op_type == "Attention":
        return _scores(node, known)
    scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
    if scale is not None and is_constant(scale) and not largest / _smallest(scale) <= LARGEST:
        return f"{value.name} divided by its scale reaches {largest / _smallest(scale):.4g}"
    return ""


def _scores(node: ir.Node, known: Mapping[ir.Value, float]) -> str:
    """Whether the scores inside an Attention may overflow: |q k| is at most the head size times both maxima."""
    queries, keys = node.inputs[:2]
    if queries is None or keys is None or keys not in known or queries.shape is None:
        return ""
    size = queries.shape[-1] if isinstance(queries.shape[-1], int) else math.inf
    heads = node.attributes.get_int("q_num_heads", 1) if len(queries.shape) == 3 else 1
    largest = size / (heads or 1) * known[queries] * known[keys]
    return "" if largest <= LIMIT else f"the scores of {queries.name} and {keys.name} may reach {largest:.4g}"


def _summed(node: ir.Node, value: ir.Value) -> float:
    """How many elements a reduction sums; infinite when the file does not say."""
    shape = [] if value.shape is None else [size if isinstance(size, int) else math.inf for size in value.shape]
    if value.shape is None:
        return math.inf
    if node.op_type == "GlobalAveragePool":
        return math.prod(shape[2:])
    axes: Iterable[int] | None = node.attributes.get_ints("axes")
    if axes is None and len(node.inputs) > 1 and (given := node.inputs[1]) is not None:
        if not is_constant(given):
            return math.inf
        axes = [int(axis) for axis in read(given).reshape(-1)]
    return math.prod(shape[axis] for axis in axes) if axes else math.prod(shape)


def _keep_always(flow: Flow, kept: dict[ir.Node, str]) -> None:
    reasons = (
        (squares(flow), "sums squares"),
        (angles(flow), "angles need FP32"),
        (of_shapes(flow), "computes with sizes"),
    )
    for nodes, reason in reasons:
        for node in nodes:
            kept.setdefault(node, reason)


def _keep_named(flow: Flow, keep: Collection[str], kept: dict[ir.Node, str]) -> None:
    named = {label(node): node for node in flow.nodes}
    for name in keep:
        if name not in ISLANDS and name not in named:
            fix = nearest(name, [*ISLANDS, *named]) or f"use {', '.join(ISLANDS)}, or the name of a node"
            raise UsageError("VD2003", f"{name!r} is neither a part of a ViT nor a node of the graph", fix=fix)
        for node in ISLANDS[name].find(flow) if name in ISLANDS else (named[name],):
            kept.setdefault(node, f"keep {name}")


def _between(half: Mapping[ir.Node, Form]) -> list[ir.Node]:
    """Nodes that compute nothing and have only FP32 around them: in FP16 they would cost two Casts and precision."""
    groups: list[tuple[set[ir.Node], bool]] = []
    seen: set[ir.Node] = set()
    for node in half:
        if node.op_type not in _FLEXIBLE or node in seen:
            continue
        group, queue, computes = {node}, [node], False
        while queue:
            for other in _neighbours(queue.pop(), half):
                if other.op_type not in _FLEXIBLE:
                    computes = True
                elif other not in group:
                    group.add(other)
                    queue.append(other)
        seen |= group
        groups.append((group, computes))
    idle = set().union(*(group for group, computes in groups if not computes))
    return [node for node in half if node in idle]


def _neighbours(node: ir.Node, half: Mapping[ir.Node, Form]) -> list[ir.Node]:
    """FP16 nodes that share an FP16 tensor with a node."""
    found = []
    for index in half[node].inputs:
        value = node.inputs[index]
        maker = None if value is None else value.producer()
        if value is not None and maker is not None and maker in half and value.index() in half[maker].outputs:
            found.append(maker)
    for index in half[node].outputs:
        found += [use.node for use in node.outputs[index].uses() if use.idx in _inputs(use.node, half)]
    return found


def _losses(half: Mapping[ir.Node, Form]) -> dict[str, Loss]:
    """What FP16 takes from the constants, where there is something to tell."""
    turned = {
        value: None
        for node, form in half.items()
        for index in sorted(form.inputs)
        if (value := node.inputs[index]) is not None and is_constant(value)
    }
    found = {str(value.name): loss(read(value)) for value in turned}
    return {name: one for name, one in found.items() if one.subnormal or one.vanished}


def _epsilon(node: ir.Node) -> float:
    return float(node.attributes.get_float("epsilon", 1.0)) if "epsilon" in node.attributes else 1.0
