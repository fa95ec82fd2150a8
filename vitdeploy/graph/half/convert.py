"""FP16 that cannot overflow: a graph in half precision, with what must stay in FP32 left there, and why.

FP16 ends at 65504, and a tensor that passes it becomes infinite, then NaN, without a word. So a node goes to FP16 only when
its operator has such a form, its constants fit, its tensors stayed below half the limit on the calibration images, and what
it sums inside stays below it too. Products (MatMul, Gemm, Conv) are taken to sum in FP32, as tensor cores and CPUs do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from vitdeploy.errors import InputError
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.half.forms import (
    LARGEST,
    SMALLEST,
    SMALLEST_NORMAL,
    Form,
    choose_form,
    fill_types,
    measure_loss,
    rewrite,
)
from vitdeploy.graph.half.keep import MEANS, MOVES, NORMS, QUANTIZERS, Flow, find_kept
from vitdeploy.graph.half.ranges import bound_tensors, largest
from vitdeploy.graph.query import Array, constant, integer, real, whole
from vitdeploy.record import HalfResult, Loss, Overflow

LIMIT = LARGEST / 2
"""Largest |x| on calibration images with which a tensor may be FP16: other images may have larger ones."""
_FLEXIBLE = MOVES | QUANTIZERS | {"Cast", "ConstantOfShape", "Shape", "Size"}


def to_half(model: ir.Model, *, keep: Collection[str] = (), ranges: Mapping[str, float] | None = None) -> HalfResult:
    """Turn a float32 graph to FP16, in place; its inputs and outputs keep their types.

    Args:
        model: A ViT in float32, possibly with QuantizeLinear and DequantizeLinear; Constant nodes become initializers.
        keep: What stays in FP32: names of `keep.ISLANDS`, or of nodes.
        ranges: Largest |x| on calibration images by name of tensor, for all of `ranges.choose_tensors`. Without it nothing
            is known of activations, and only the constants are sure to fit.

    Returns:
        What was done. A decomposed norm, a sum of squares, angles and shape arithmetic always stay in FP32.

    Raises:
        UsageError: VD2003, ``keep`` names neither an island nor a node.
        InputError: VD3024, the graph has 16-bit floats already, or no float32; VD3025, the type of a tensor can't be told;
            VD3109, the ranges are of another model.
    """
    editor = _prepare(model)
    graph = model.graph
    known = bound_tensors(model, ranges or {})
    forms = {node: form for node in graph if (form := choose_form(node, model.opset_imports)) is not None}
    kept = {node: form.obstacle for node, form in forms.items() if form.obstacle}
    overflow = _find_overflow(graph, known, forms, kept)
    checked = dict[ir.Value, str]()
    for node, form in forms.items():
        reason = _explain_constants(node, form, checked) or _explain_inside(node, known)
        if reason:
            kept.setdefault(node, reason)
    kept = find_kept(Flow(graph), keep) | kept
    half = {node: form for node, form in forms.items() if node not in kept}
    for node in _between(half):
        kept[node] = "has only FP32 around it"
        del half[node]
    losses = _losses(half)
    unranged = sum(node.outputs[index] not in known for node, form in half.items() for index in form.outputs)
    casts = rewrite(editor, half) if half else 0
    editor.check_interface("half")
    return HalfResult(
        islands=tuple(sorted(keep)),
        half=len(half),
        kept={str(node.name): kept[node] for node in forms if node in kept and node.graph is not None},
        casts=casts,
        overflow=tuple(overflow),
        unranged=unranged,
        losses=losses,
        epsilons={str(node.name): epsilon for node in half if 0 < (epsilon := real(node, "epsilon", 1.0)) < SMALLEST},
    )


def _prepare(model: ir.Model) -> Editor:
    """Check that the graph is one in float32, whose tensors all have types; constants become initializers, nodes get names."""
    sixteen = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fill_types(model)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)]
    narrow = next((value for value in values if value.dtype in sixteen), None)
    if narrow is not None:
        raise InputError("VD3024", f"has 16-bit floats already, such as {narrow.name!r}", fix="give the float32 model")
    if not any(value.dtype == ir.DataType.FLOAT for value in values):
        raise InputError("VD3024", "has no float32 tensor", fix="give the float32 model")
    return Editor(model)


def _find_overflow(
    graph: ir.Graph, known: Mapping[ir.Value, float], forms: Mapping[ir.Node, Form], kept: dict[ir.Node, str]
) -> list[Overflow]:
    """Tensors beyond the limit; the nodes that make and take them are marked as kept."""
    overflow = []
    for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
        if value.dtype != ir.DataType.FLOAT or known.get(value, 0) <= LIMIT:
            continue
        maker = value.producer()
        overflow.append(Overflow("" if maker is None else str(maker.name), str(value.name), known[value]))
        for node in (maker, *(use.node for use in value.uses() if use.idx in _inputs(use.node, forms))):
            if node is not None and node in forms:
                kept.setdefault(node, f"{value.name} reaches {known[value]:.4g}")
    return overflow


def _inputs(node: ir.Node, forms: Mapping[ir.Node, Form]) -> frozenset[int]:
    return forms[node].inputs if node in forms else frozenset()


def _explain_constants(node: ir.Node, form: Form, checked: dict[ir.Value, str]) -> str:
    """Why a node's constants are not for FP16, or ""; each constant is read once."""
    for index in sorted(form.inputs):
        value = node.inputs[index]
        array = constant(value)
        if value is None or array is None:
            continue
        if value not in checked:
            checked[value] = _explain_numbers(str(value.name), largest(array))
        if checked[value]:
            return checked[value]
        if node.op_type in QUANTIZERS and index == 1 and (smallest := _smallest(array)) < SMALLEST_NORMAL:
            return f"scale {value.name} is {smallest:.3g}, too small for FP16"
    return ""


def _explain_numbers(name: str, size: float) -> str:
    if size > LARGEST:
        return f"constant {name} reaches {size:.4g}"
    return f"constant {name} would become 0" if 0 < size <= SMALLEST / 2 else ""


def _smallest(array: Array) -> float:
    """The smallest |x| other than 0."""
    sizes = np.abs(array)
    return float(sizes.min(initial=math.inf, where=sizes > 0))


def _explain_inside(node: ir.Node, known: Mapping[ir.Value, float]) -> str:
    """Why a node may overflow inside although its tensors fit, or ""."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type in NORMS and integer(node, "stash_type", 1) != ir.DataType.FLOAT.value:
        return "its sums are not in FP32 (stash_type)"
    if value is None or value not in known:
        return ""
    size = known[value]
    if node.op_type in NORMS and not size**2 <= LIMIT:
        return f"squares of {value.name} reach {size**2:.4g}"
    if node.op_type in MEANS and not (total := _count_summed(node, value) * size) <= LIMIT:
        return f"the sum of {value.name} may reach {total:.4g}"
    if node.op_type == "Attention":
        return _explain_scores(node, known)
    scale = constant(node.inputs[1]) if node.op_type == "QuantizeLinear" else None
    if scale is not None and not (steps := size / _smallest(scale)) <= LARGEST:
        return f"{value.name} divided by its scale reaches {steps:.4g}"
    return ""


def _explain_scores(node: ir.Node, known: Mapping[ir.Value, float]) -> str:
    """Whether the scores inside an Attention may overflow: |q k| is at most the head size times both maxima."""
    queries, keys = node.inputs[:2]
    if queries is None or keys is None or keys not in known or queries.shape is None:
        return ""
    size = queries.shape[-1] if isinstance(queries.shape[-1], int) else math.inf
    heads = integer(node, "q_num_heads", 1) if len(queries.shape) == 3 else 1
    reach = size / (heads or 1) * known[queries] * known[keys]
    return "" if reach <= LIMIT else f"the scores of {queries.name} and {keys.name} may reach {reach:.4g}"


def _count_summed(node: ir.Node, value: ir.Value) -> float:
    """How many elements a reduction sums; infinite when the file does not say."""
    if value.shape is None:
        return math.inf
    shape = [size if isinstance(size, int) else math.inf for size in value.shape]
    if node.op_type == "GlobalAveragePool":
        return math.prod(shape[2:])
    axes: Iterable[int] | None = whole(node, "axes", 1)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        return math.inf
    return math.prod(shape[axis] for axis in axes) if axes else math.prod(shape)


def _between(half: Mapping[ir.Node, Form]) -> list[ir.Node]:
    """Nodes that compute nothing and have only FP32 around them: in FP16 they would cost two Casts and precision."""
    queue = [node for node in half if node.op_type not in _FLEXIBLE]
    reached = set(queue)
    while queue:
        for other in _neighbours(queue.pop(), half):
            if other not in reached:
                reached.add(other)
                queue.append(other)
    return [node for node in half if node not in reached]


def _neighbours(node: ir.Node, half: Mapping[ir.Node, Form]) -> list[ir.Node]:
    """FP16 nodes that share an FP16 tensor with a node."""
    inputs = [value for index in half[node].inputs if (value := node.inputs[index]) is not None]
    makers = [(maker, value.index()) for value in inputs if (maker := value.producer()) is not None]
    above = [maker for maker, index in makers if maker in half and index in half[maker].outputs]
    uses = (use for index in half[node].outputs for use in node.outputs[index].uses())
    return above + [use.node for use in uses if use.idx in _inputs(use.node, half)]


def _losses(half: Mapping[ir.Node, Form]) -> dict[str, Loss]:
    """What FP16 takes from the constants, where there is something to tell."""
    turned = dict.fromkeys(node.inputs[index] for node, form in half.items() for index in sorted(form.inputs))
    arrays = {str(value.name): array for value in turned if value is not None and (array := constant(value)) is not None}
    losses = {name: measure_loss(array) for name, array in arrays.items()}
    return {name: loss for name, loss in losses.items() if loss.subnormal or loss.vanished}
