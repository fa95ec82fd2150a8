"""Exact rewrites of a recognised ViT: the same function with fewer operations, or with numbers that quantize better.

Every rewrite holds in real numbers; what is left is float rounding. Row vectors: y = x W + b.

Sources: LayerNorm's affine into its consumers: Wei et al. 2022, arXiv:2209.13325, section 4.1. Centred keys: softmax ignores
a number added to all its logits (Zhang et al. 2024, arXiv:2410.02367, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.linear import Linear, insert_linear, insert_split
from vitdeploy.graph.query import Array, constant, find_first, integer, only_user, other, text, whole
from vitdeploy.graph.structure import Attention, Site, Structure

Double = NDArray[np.float64]


def fold_normalisation(editor: Editor) -> list[str]:
    """(x - mean) / std of the pixels into the patch embedding's weights; the nodes that went.

    Understood between the input and an unpadded convolution: Sub, Add, Mul and Div by a number or by [C, 1, 1] numbers.
    """
    conv = next((node for node in editor.graph if node.op_type == "Conv"), None)
    weight = None if conv is None else constant(conv.inputs[1])
    if conv is None or weight is None or not _is_unpadded(conv):
        return []
    factor, offset, gone = np.ones(1), np.zeros(1), list[ir.Node]()  # what the convolution sees: x * factor + offset
    for node in _walk_up(conv.inputs[0]):
        flat = _read_channels(constant(node.inputs[1])) if len(node.inputs) == 2 else None
        if (
            flat is None
            or node.op_type not in ("Sub", "Add", "Mul", "Div")
            or only_user(node.outputs[0]) is None
            or _is_widening(node)
        ):
            break
        if node.op_type in ("Mul", "Div"):
            factor = factor * (flat if node.op_type == "Mul" else 1 / flat)
        else:
            offset = offset + factor * (flat if node.op_type == "Add" else -flat)
        gone.append(node)
    if not gone:
        return []
    factor, offset = (np.broadcast_to(part, weight.shape[1]) for part in (factor, offset))
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    total = np.einsum("mchw,c->m", weight.astype(np.float64), offset) + (0 if bias is None else bias)
    editor.own(conv, 1, (weight * factor[None, :, None, None]).astype(np.float32))
    editor.own(conv, 2, total.astype(np.float32))
    above = gone[-1].inputs[0]
    assert above is not None
    editor.rewire(conv, 0, above)
    return [str(node.name) for node in gone]


def _is_unpadded(conv: ir.Node) -> bool:
    """Whether a convolution sees nothing but pixels: behind padding, zeros would have to become means."""
    known = len(conv.inputs) < 3 or conv.inputs[2] is None or constant(conv.inputs[2]) is not None
    plain = text(conv, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(whole(conv, "pads") or ())
    return known and plain and integer(conv, "group", 1) == 1


def _walk_up(value: ir.Value | None) -> Iterator[ir.Node]:
    node = None if value is None else value.producer()
    while node is not None and node.inputs[0] is not None:
        yield node
        node = node.inputs[0].producer()


def _is_widening(node: ir.Node) -> bool:
    """Whether one channel of the input may become several by broadcasting."""
    before, after = (None if value is None else value.shape for value in (node.inputs[0], node.outputs[0]))
    return before is None or after is None or len(before) != 4 or len(after) != 4 or before[1] != after[1]


def _read_channels(number: Array | None) -> Double | None:
    """One number, or one a channel of [N, C, H, W]; None for anything else."""
    if number is None or number.size == 1:
        return None if number is None else number.reshape(1).astype(np.float64)
    shape = number.shape[1:] if number.ndim == 4 and number.shape[0] == 1 else number.shape
    return number.reshape(-1).astype(np.float64) if len(shape) == 3 and shape[1:] == (1, 1) else None


def fold_layer_scale(editor: Editor, structure: Structure) -> list[str]:
    """The factors behind a layer (LayerScale) into its weight and bias; the nodes that went."""
    gone = []
    for linear in structure.linears:
        scale = only_user(linear.output, "Mul")
        gamma = None if scale is None else constant(other(scale, linear.output))
        if (
            scale is None
            or gamma is None
            or (gamma.size > 1 and not gamma.size == linear.shape[1] == gamma.shape[-1])
            or gamma.ndim > 3
        ):
            continue
        gamma = gamma.reshape(-1).astype(np.float64)
        linear.write(editor, linear.weight * gamma, linear.bias * gamma)
        editor.replace(scale.outputs[0], linear.output)
        gone.append(str(scale.name))
    return gone


def fold_query_scale(editor: Editor, structure: Structure) -> list[str]:
    """Factors on q or on the scores (1/sqrt(d)) into q's weights; the nodes that went."""
    gone = []
    for attention in structure.attentions:
        query, columns = attention.linears[0], attention.columns[0]
        if query is None or columns is None or not attention.scale:
            continue
        factor = 1.0
        for node in attention.scale:
            number = constant(node.inputs[1])
            assert number is not None
            factor *= float(number.reshape(())) if node.op_type == "Mul" else 1 / float(number.reshape(()))
            above = node.inputs[0]
            assert above is not None
            editor.replace(node.outputs[0], above)
        weight, bias, chosen = query.weight, query.bias, columns.reshape(-1)
        weight[:, chosen] *= factor
        bias[chosen] *= factor
        query.write(editor, weight, bias)
        gone += [str(node.name) for node in attention.scale]
        attention.scale = ()
    return gone


def pack_qkv(editor: Editor, structure: Structure) -> list[str]:
    """Three layers for q, k and v of one tensor become one layer and a Split; the layers' names."""
    packed = []
    for attention in structure.attentions:
        parts = [linear for linear in dict.fromkeys(attention.linears) if linear is not None]
        if len(parts) < 3 or any(part.input is not parts[0].input or part.output.is_graph_output() for part in parts):
            continue
        _pack(editor, attention, parts)
        packed.append(parts[0].name)
    return packed


def _pack(editor: Editor, attention: Attention, parts: list[Linear]) -> None:
    widths = [part.shape[1] for part in parts]
    weight, bias = np.concatenate([part.weight for part in parts], 1), np.concatenate([part.bias for part in parts])
    before = find_first(part.matmul for part in parts)
    stem = f"{str(before.name).removesuffix('/MatMul')}.packed"
    linear = insert_linear(editor, before, parts[0].input, (weight, bias), stem)
    for part, new in zip(parts, insert_split(editor, before, linear.output, widths, stem), strict=True):
        editor.replace(part.output, new)
    starts = np.cumsum([0, *widths[:-1]])
    attention.linears = (linear, linear, linear)
    columns = [None if own is None else own + start for own, start in zip(attention.columns, starts, strict=True)]
    attention.columns = (columns[0], columns[1], columns[2])


def fold_norm_affine(editor: Editor, site: Site) -> bool:
    """LayerNorm's weight and bias into the layers that take it; False when it has other users, or 1 and 0 already.

    W' = diag(gamma) W, b' = b + beta W; then gamma = 1 and beta = 0.
    """
    if site.kind != "norm" or not site.only or site.maker is None:
        return False
    gamma, beta = read_affine(site.maker)
    if (gamma == 1).all() and not beta.any():
        return False
    for linear in site.linears:
        weight = linear.weight.astype(np.float64)
        linear.write(editor, gamma[:, None] * weight, linear.bias + beta @ weight)
    write_affine(editor, site.maker, np.ones_like(gamma), np.zeros_like(beta))
    return True


def read_affine(norm: ir.Node) -> tuple[Double, Double]:
    """Weight and bias of a LayerNormalization, float64 [C] each."""
    gamma = constant(norm.inputs[1])
    assert gamma is not None
    beta = constant(norm.inputs[2]) if len(norm.inputs) > 2 else None
    return gamma.astype(np.float64), np.zeros(gamma.shape) if beta is None else beta.astype(np.float64)


def write_affine(editor: Editor, norm: ir.Node, gamma: Array, beta: Array) -> None:
    """New weight and bias of a LayerNormalization."""
    editor.own(norm, 1, gamma.astype(np.float32))
    if np.any(beta) or (len(norm.inputs) > 2 and norm.inputs[2] is not None):
        editor.own(norm, 2, beta.astype(np.float32))


def rescale_input(editor: Editor, site: Site, factor: Array, shift: Array) -> None:
    """Make a site's tensor (x - shift) / factor instead of x, and its layers undo it; free behind a norm, else one Mul.

    Args:
        editor: Of the graph.
        site: Of kind ``norm``, with no other users; or any other kind, where a Mul is inserted and no shift is possible.
        factor: float [K], above 0.
        shift: float [K]; zeros unless the kind is ``norm``.
    """
    norm = site.maker if site.kind == "norm" else None
    assert site.only if norm is not None else not np.any(shift)
    for linear in site.linears:
        weight = linear.weight.astype(np.float64)
        linear.write(editor, factor[:, None] * weight, linear.bias + shift @ weight)
    if norm is not None:
        gamma, beta = read_affine(norm)
        write_affine(editor, norm, gamma / factor, (beta - shift) / factor)
        return
    takers = [linear.matmul if linear.input is site.value else linear.input.producer() for linear in site.linears]
    users = [node for node in dict.fromkeys(takers) if node is not None]
    place = find_first(users)
    stem = f"{site.linears[0].name.removesuffix('/MatMul')}.equalise"
    divisor = editor.constant(f"{stem}.weight", (1 / factor).astype(np.float32))
    scaled = ir.node("Mul", [site.value, divisor], name=f"{stem}/Mul")
    declare(scaled.outputs[0], site.value.type, site.value.shape)
    editor.insert([scaled], place)
    for node in users:
        node.replace_input_with(0, scaled.outputs[0])
    site.value = scaled.outputs[0]


def shift_values(editor: Editor, attention: Attention, factor: Array, shift: Array) -> None:
    """Values become (v - shift) / factor, and the projection undoes it: rows of probabilities sum to one.

    Args:
        editor: Of the graph.
        attention: With a layer for v, columns and rows known.
        factor: float [h, d], above 0.
        shift: float [h, d].
    """
    value, columns = attention.linears[2], attention.columns[2]
    projection, rows = attention.projection, attention.rows
    assert value is not None and columns is not None and projection is not None and rows is not None
    weight, bias = value.weight.astype(np.float64), value.bias.astype(np.float64)
    weight[:, columns] = weight[:, columns] / factor
    bias[columns] = (bias[columns] - shift) / factor
    value.write(editor, weight, bias)
    outer = projection.weight.astype(np.float64)
    total = projection.bias + shift.reshape(-1) @ outer[rows.reshape(-1)]
    outer[rows] = outer[rows] * factor[..., None]
    projection.write(editor, outer, total)


def shift_keys(editor: Editor, attention: Attention, factor: Array, shift: Array) -> None:
    """Keys become (k - shift) / factor and queries q * factor: the scores change by a number a row, which softmax ignores.

    Args:
        editor: Of the graph.
        attention: With layers for q and k, columns known (nothing computes between them and the scores).
        factor: float [h, d], above 0.
        shift: float [h, d].
    """
    query, key = attention.linears[0], attention.linears[1]
    columns, others = attention.columns[0], attention.columns[1]
    assert query is not None and key is not None and columns is not None and others is not None
    weight, bias = key.weight.astype(np.float64), key.bias.astype(np.float64)
    weight[:, others] /= factor
    bias[others] = (bias[others] - shift) / factor
    key.write(editor, weight, bias)
    weight, bias = query.weight.astype(np.float64), query.bias.astype(np.float64)
    weight[:, columns] *= factor
    bias[columns] *= factor
    query.write(editor, weight, bias)
