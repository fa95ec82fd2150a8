"""Exact rewrites of a recognised ViT: the same function with fewer operations, or with numbers that quantize better.

Every rewrite holds in real numbers; what is left is float rounding. Row vectors: y = x W + b.

Sources: LayerNorm's affine into its consumers: Wei et al. 2022, arXiv:2209.13325, section 4.1. Centred keys: softmax ignores
a number added to all its logits (Zhang et al. 2024, arXiv:2410.02367, section 4.2). Rotation of the residual stream: Ashkboos et
al. 2024, arXiv:2404.00456, section 3; the rotations here leave the vector of ones in place, so that the mean, and with it
LayerNorm itself, stays what it was: LN(x R) = LN(x) R when R is orthogonal and R 1 = 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.structure import (
    Attention,
    Linear,
    Site,
    Structure,
    add_constant,
    constant,
    insert_linear,
    insert_split,
    ints,
    own,
)

Array = NDArray[Any]
Double = NDArray[np.float64]


def normalisation(model: ir.Model) -> list[str]:
    """(x - mean) / std of the pixels into the patch embedding's weights; the nodes that went.

    Understood between the input and an unpadded convolution: Sub, Add, Mul and Div by a number or by [C, 1, 1] numbers.
    """
    conv = next((node for node in model.graph if node.op_type == "Conv"), None)
    if conv is None or any(ints(conv, "pads") or ()) or conv.inputs[0] is None:
        return []
    factor, offset, gone = np.ones(1), np.zeros(1), list[ir.Node]()  # what the convolution sees: x * factor + offset
    value = conv.inputs[0]
    for node in _upwards(value):
        number = constant(node.inputs[1]) if len(node.inputs) == 2 else None
        flat = None if number is None else _channels(number)
        if flat is None or node.op_type not in ("Sub", "Add", "Mul", "Div") or len(list(node.outputs[0].uses())) != 1:
            break
        if node.op_type in ("Mul", "Div"):
            factor = factor * (flat if node.op_type == "Mul" else 1 / flat)
        else:
            offset = offset + factor * (flat if node.op_type == "Add" else -flat)
        gone.append(node)
    weight = constant(conv.inputs[1])
    if not gone or weight is None:
        return []
    channels = weight.shape[1]
    factor, offset = np.broadcast_to(factor, channels), np.broadcast_to(offset, channels)
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    total = np.einsum("mchw,c->m", weight.astype(np.float64), offset) + (0 if bias is None else bias)
    own(conv, 1, (weight * factor[None, :, None, None]).astype(np.float32))
    if bias is None:
        conv.resize_inputs(3)
        conv.replace_input_with(2, add_constant(conv, f"{conv.name}.bias", total.astype(np.float32)))
    else:
        own(conv, 2, total.astype(np.float32))
    first = gone[-1].inputs[0]
    assert first is not None
    conv.replace_input_with(0, first)
    return _remove(gone)


def _upwards(value: ir.Value) -> Iterator[ir.Node]:
    node = value.producer()
    while node is not None and node.inputs[0] is not None:
        yield node
        node = node.inputs[0].producer()


def _channels(number: Array) -> Double | None:
    """One number, or one a channel of [N, C, H, W]; None for anything else."""
    if number.size == 1:
        return number.reshape(1).astype(np.float64)
    shape = number.shape if number.ndim < 4 else number.shape[1:]
    return number.reshape(-1).astype(np.float64) if len(shape) == 3 and shape[1:] == (1, 1) else None


def layer_scale(structure: Structure) -> list[str]:
    """The factors behind a layer (LayerScale) into its weight and bias; the nodes that went."""
    gone = []
    for linear in structure.linears:
        users = list(linear.output.uses())
        scale = users[0].node if len(users) == 1 else None
        if scale is None or scale.op_type != "Mul" or linear.output.is_graph_output():
            continue
        other = scale.inputs[1 - users[0].idx]
        gamma = constant(other)
        if gamma is None or gamma.size not in (1, linear.shape[1]) or gamma.reshape(-1).size != gamma.shape[-1:][0] * 1:
            continue
        gamma = gamma.reshape(-1).astype(np.float64)
        linear.write(linear.weight * gamma, linear.bias * gamma)
        scale.outputs[0].replace_all_uses_with(linear.output, replace_graph_outputs=True)
        gone += _remove([scale])
    return gone


def query_scale(structure: Structure) -> list[str]:
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
            node.outputs[0].replace_all_uses_with(above)
        weight, bias, chosen = query.weight, query.bias, columns.reshape(-1)
        weight[:, chosen] *= factor
        bias[chosen] *= factor
        query.write(weight, bias)
        gone += _remove(list(attention.scale))
        attention.scale = ()
    return gone


def pack(structure: Structure) -> list[str]:
    """Three layers for q, k and v of one tensor become one layer and a Split; the layers' names."""
    packed = []
    for attention in structure.attentions:
        found = attention.linears
        if any(linear is None for linear in found) or len({id(linear) for linear in found}) < 3:
            continue
        parts = [linear for linear in found if linear is not None]
        if any(part.input is not parts[0].input for part in parts):
            continue
        _pack(attention, parts)
        packed.append(parts[0].name)
    return packed


def _pack(attention: Attention, parts: list[Linear]) -> None:
    widths = [part.shape[1] for part in parts]
    weight, bias = np.concatenate([part.weight for part in parts], 1), np.concatenate([part.bias for part in parts])
    before = min(parts, key=lambda part: _place(part.matmul)).matmul
    stem = f"{str(before.name).removesuffix('/MatMul')}.packed"
    outputs, nodes = [part.output for part in parts], [node for part in parts for node in (part.add, part.matmul) if node]
    linear = insert_linear(before, parts[0].input, weight, bias, stem)
    for old, new in zip(outputs, insert_split(before, linear.output, widths, stem), strict=True):
        old.replace_all_uses_with(new)
    _remove(nodes)
    starts = np.cumsum([0, *widths[:-1]])
    attention.linears = (linear, linear, linear)
    columns = [None if own is None else own + start for own, start in zip(attention.columns, starts, strict=True)]
    attention.columns = (columns[0], columns[1], columns[2])


def _place(node: ir.Node) -> int:
    assert isinstance(node.graph, ir.Graph)
    return next(index for index, each in enumerate(node.graph) if each is node)


def norm_affine(site: Site) -> bool:
    """LayerNorm's weight and bias into the layers that take it; False when it has other users or no affine.

    W' = diag(gamma) W, b' = b + beta W; then gamma = 1 and beta = 0.
    """
    if site.kind != "norm" or not site.only or site.maker is None:
        return False
    gamma, beta = affine(site.maker)
    for linear in site.linears:
        weight = linear.weight.astype(np.float64)
        linear.write(gamma[:, None] * weight, linear.bias + beta @ weight)
    write_affine(site.maker, np.ones_like(gamma), np.zeros_like(beta))
    return True


def affine(norm: ir.Node) -> tuple[Double, Double]:
    """Weight and bias of a LayerNormalization, float64 [C] each."""
    gamma = constant(norm.inputs[1])
    assert gamma is not None
    beta = constant(norm.inputs[2]) if len(norm.inputs) > 2 else None
    return gamma.astype(np.float64), np.zeros(gamma.shape) if beta is None else beta.astype(np.float64)


def write_affine(norm: ir.Node, gamma: Array, beta: Array) -> None:
    """New weight and bias of a LayerNormalization."""
    own(norm, 1, gamma.astype(np.float32))
    if len(norm.inputs) > 2 and norm.inputs[2] is not None:
        own(norm, 2, beta.astype(np.float32))
    else:
        norm.resize_inputs(3)
        norm.replace_input_with(2, add_constant(norm, f"{norm.name}.bias", beta.astype(np.float32)))


def rescale_input(site: Site, factor: Array, shift: Array) -> None:
    """Make a site's tensor (x - shift) / factor instead of x, and its layers undo it; free for ``norm`` and ``context``.

    Args:
        site: Of kind ``norm``, with no other users; or ``activation``, where a Mul is inserted and no shift is possible.
        factor: float [K], above 0.
        shift: float [K]; zeros for an ``activation``.
    """
    for linear in site.linears:
        weight = linear.weight.astype(np.float64)
        linear.write(factor[:, None] * weight, linear.bias + shift @ weight)
    if site.kind == "norm":
        assert site.maker is not None
        gamma, beta = affine(site.maker)
        write_affine(site.maker, gamma / factor, (beta - shift) / factor)
        return
    matmul = site.linears[0].matmul
    graph, stem = matmul.graph, str(matmul.name).removesuffix("/MatMul")
    assert isinstance(graph, ir.Graph)
    divisor = add_constant(matmul, f"{stem}.equalise", (1 / factor).astype(np.float32))
    scaled = ir.node("Mul", [site.value, divisor], name=f"{stem}.equalise/Mul")
    value = scaled.outputs[0]
    value.name, value.type, value.shape = f"{scaled.name}_out", site.value.type, site.value.shape
    graph.insert_before(min((linear.matmul for linear in site.linears), key=_place), scaled)
    for linear in site.linears:
        linear.matmul.replace_input_with(0, value)
    site.value = value


def shift_values(attention: Attention, factor: Array, shift: Array) -> None:
    """Values become (v - shift) / factor, and the projection undoes it: rows of probabilities sum to one.

    Args:
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
    value.write(weight, bias)
    outer = projection.weight.astype(np.float64)
    total = projection.bias + shift.reshape(-1) @ outer[rows.reshape(-1)]
    outer[rows] = outer[rows] * factor[..., None]
    projection.write(outer, total)


def shift_keys(attention: Attention, factor: Array, shift: Array) -> None:
    """Keys become (k - shift) / factor and queries q * factor: the scores change by a number a row, which softmax ignores.

    Args:
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
    key.write(weight, bias)
    weight, bias = query.weight.astype(np.float64), query.bias.astype(np.float64)
    weight[:, columns] *= factor
    bias[columns] *= factor
    query.write(weight, bias)


def rotate_values(attention: Attention, turn: Double) -> None:
    """V R in each head, and the projection undoes it; ``turn`` is R, orthogonal, float64 [d, d]."""
    value, columns = attention.linears[2], attention.columns[2]
    projection, rows = attention.projection, attention.rows
    assert value is not None and columns is not None and projection is not None and rows is not None
    _turn_columns(value, columns, turn)
    weight = projection.weight.astype(np.float64)
    weight[rows] = np.einsum("ij,hjm->him", turn.T, weight[rows])
    projection.write(weight)


def rotate_keys(attention: Attention, turn: Double) -> None:
    """Q R and k R in each head: (q R)(k R)^T = q k^T; ``turn`` is R, orthogonal, float64 [d, d]."""
    for linear, columns in zip(attention.linears[:2], attention.columns[:2], strict=True):
        assert linear is not None and columns is not None
        _turn_columns(linear, columns, turn)


def _turn_columns(linear: Linear, columns: Array, turn: Double) -> None:
    weight, bias = linear.weight.astype(np.float64), linear.bias.astype(np.float64)
    weight[:, columns] = weight[:, columns] @ turn
    bias[columns] = bias[columns] @ turn
    linear.write(weight, bias)


def rotation(width: int, seed: int = 0) -> Double:
    """An orthogonal matrix that leaves the vector of ones in place and spreads every other direction over all channels.

    R = B diag(1, D) B: B is the reflection that takes the first unit vector to 1/sqrt(C), D a cosine transform (DCT-II) with
    random signs. Made of closed formulas: the same on every machine.

    Args:
        width: C.
        seed: Of the signs.

    Returns:
        R, float64 [C, C], R R^T = I and R 1 = 1.
    """
    size = width - 1
    place = np.arange(size)
    cosine = np.sqrt(2 / size) * np.cos(np.pi * (2 * place[:, None] + 1) * place[None] / (2 * size))  # [C-1, C-1]
    cosine[:, 0] /= np.sqrt(2)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (2, size))
    inner = np.zeros((width, width))
    inner[0, 0] = 1
    inner[1:, 1:] = signs[0][:, None] * cosine * signs[1]
    axis = np.full(width, -1 / np.sqrt(width))
    axis[0] += 1
    reflection = np.eye(width) - 2 * np.outer(axis, axis) / (axis @ axis) if width > 1 else np.eye(1)
    return np.asarray(reflection @ inner @ reflection)


def head_rotation(size: int, seed: int = 0) -> Double:
    """An orthogonal cosine transform with random signs, float64 [d, d]."""
    place = np.arange(size)
    cosine = np.sqrt(2 / size) * np.cos(np.pi * (2 * place[:, None] + 1) * place[None] / (2 * size))
    cosine[:, 0] /= np.sqrt(2)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (2, size))
    return np.asarray(signs[0][:, None] * cosine * signs[1])


def _remove(nodes: Sequence[ir.Node]) -> list[str]:
    """Take nodes that nothing uses out of the graph; their names."""
    names = [str(node.name) for node in nodes]
    for node in nodes:
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node, safe=True)
    return names
