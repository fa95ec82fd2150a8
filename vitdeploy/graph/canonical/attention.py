"""Attention in the one form that later steps know: q times a number, MatMul with k^T, Softmax, MatMul with v.

Source: Vaswani et al., https://arxiv.org/abs/1706.03762: softmax(q k^T / sqrt(d)) v;
github.com/onnx/onnx/blob/main/docs/Operators.md#Attention;
github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.canonical.masks import find_uniform
from vitdeploy.graph.canonical.opsets import make_refusal
from vitdeploy.graph.canonical.shapes import is_last_axis
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import (
    MICROSOFT,
    constant,
    integer,
    is_constant,
    maker,
    maker_name,
    number,
    only_user,
    real,
    sizes,
    whole,
)

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")


class _Parts(NamedTuple):
    """What attention computes with.

    Attributes:
        tensors: q, k and v, float [N, T, heads * d], or [N, heads, T, d].
        heads: Their number; 0 when the tensors have their own axis for them.
        scale: Factor on the scores, or None for 1/sqrt(d).
        mask: Added to the scores, or None.
    """

    tensors: tuple[ir.Value, ir.Value, ir.Value]
    heads: int
    scale: float | None
    mask: ir.Value | None


def split_attention(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write fused attention (ONNX's own, and two of com.microsoft) as its parts.

    Yields:
        The two MatMuls and the Softmax.

    Raises:
        InputError: VD3025, a kind of attention that is not that of a ViT: causal, with a past, with fewer keys than heads.
    """
    for node in list(editor.graph):
        read = _READERS.get((node.domain, node.op_type))
        if read is not None and node.inputs and sizes(node.inputs[0]) is not None:  # or not yet
            if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
                raise make_refusal(node, "gives more than its result")
            parts = read(editor, node)
            scale = parts.scale if parts.scale is not None else 1 / math.sqrt(_read_width(node, parts))
            yield _attend(editor, node, parts, scale)


def _attend(editor: Editor, node: ir.Node, parts: _Parts, scale: float) -> tuple[str, ...]:
    dtype = parts.tensors[0].dtype or ir.DataType.FLOAT
    query, key, value = (_split_heads(editor, node, tensor, parts.heads) for tensor in parts.tensors)
    factor = editor.constant(f"{node.name}.scale", np.array(scale, dtype.numpy()))
    turned = editor.add(node, "Transpose", [key], perm=(0, 1, 3, 2))
    scores = editor.add(node, "MatMul", [editor.add(node, "Mul", [query, factor]), turned])
    masked = scores if parts.mask is None else editor.add(node, "Add", [scores, parts.mask])
    probabilities = editor.add(node, "Softmax", [masked], axis=-1)
    context = editor.add(node, "MatMul", [probabilities, value])
    result = context
    if parts.heads:
        rows = editor.constant(f"{node.name}.shape", np.array([0, 0, -1], np.int64))
        result = editor.add(node, "Reshape", [editor.add(node, "Transpose", [context], perm=(0, 2, 1, 3)), rows])
    editor.replace(node.outputs[0], result)
    return tuple(maker_name(each) for each in (scores, probabilities, context))


def _split_heads(editor: Editor, node: ir.Node, tensor: ir.Value, heads: int) -> ir.Value:
    """[N, T, heads * d] as [N, heads, T, d]."""
    if not heads:
        return tensor
    shape = editor.constant(f"{node.name}.heads", np.array([0, 0, heads, -1], np.int64))
    return editor.add(node, "Transpose", [editor.add(node, "Reshape", [tensor, shape])], perm=(0, 2, 1, 3))


def _read_width(node: ir.Node, parts: _Parts) -> float:
    """Channels of one head."""
    last = (sizes(parts.tensors[0]) or (None,))[-1]
    if not isinstance(last, int):
        raise make_refusal(node, "has heads of a width that the file does not say")
    return last / parts.heads if parts.heads else last


def _read_three(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    tensors = [value for value in node.inputs[:3] if value is not None]
    if len(tensors) != 3:
        raise make_refusal(node, "takes query, key and value in one tensor")
    return tensors[0], tensors[1], tensors[2]


def _is_given(node: ir.Node, *places: int) -> bool:
    return any(place < len(node.inputs) and node.inputs[place] is not None for place in places)


def _read_onnx(editor: Editor, node: ir.Node) -> _Parts:
    """Opset 23's Attention."""
    tensors = _read_three(node)
    if integer(node, "is_causal", 0) or real(node, "softcap", 0.0) or _is_given(node, 4, 5, 6):
        raise make_refusal(node, "is causal, capped or has a past, which is no attention of a ViT")
    ranks = {len(shape) for shape in map(sizes, tensors) if shape is not None}
    if len(ranks) != 1:
        raise make_refusal(node, "has tensors of a rank that the file does not say")
    heads, key_heads = integer(node, "q_num_heads", 0), integer(node, "kv_num_heads", 0)
    if ranks == {4}:
        heads, key_heads, counts = 0, 0, {(sizes(tensor) or (None, None))[1] for tensor in tensors}
        if len(counts) != 1 or counts == {None}:
            raise make_refusal(node, "has another number of keys than of heads")
    if heads != key_heads or (ranks == {3} and not heads):
        raise make_refusal(node, "has another number of keys than of heads")
    scale = real(node, "scale", 0.0) if "scale" in node.attributes else None
    return _Parts(tensors, heads, scale, _read_mask(editor, node, tensors[1]) if _is_given(node, 3) else None)


def _read_mask(editor: Editor, node: ir.Node, key: ir.Value) -> ir.Value | None:
    """What is added to the scores: a mask of yes and no is 0 and minus infinity; None when it hides nothing."""
    mask = node.inputs[3]
    assert mask is not None
    everywhere = find_uniform(mask)
    if everywhere is not None and (everywhere if mask.dtype == ir.DataType.BOOL else everywhere == 0):
        return None
    shape, keys = sizes(mask), sizes(key)
    length = None if keys is None else keys[-2]
    if shape is None or shape[-1] not in (1, length):
        raise make_refusal(node, "has a mask that does not cover all keys")
    if mask.dtype != ir.DataType.BOOL:
        return mask
    allowed = constant(mask)
    if allowed is None:
        raise make_refusal(node, "has a mask of yes and no that is computed")
    dtype = (key.dtype or ir.DataType.FLOAT).numpy()
    return editor.derive(mask, "mask", np.where(allowed, 0, -np.inf).astype(dtype))


def _read_multi_head(editor: Editor, node: ir.Node) -> _Parts:
    """com.microsoft's MultiHeadAttention."""
    tensors = _read_three(node)
    heads = _read_heads(node, (4, 6, 7, 8, 9))
    shapes = [sizes(tensor) for tensor in tensors]
    if any(shape is not None and len(shape) != 3 for shape in shapes):
        raise make_refusal(node, "takes tensors that are not [batch, tokens, channels]")
    bias = node.inputs[3] if _is_given(node, 3) else None
    if bias is not None:
        tensors = _add_bias(editor, node, tensors, bias)
    return _Parts(tensors, heads, _read_scale(node), node.inputs[5] if _is_given(node, 5) else None)


def _add_bias(
    editor: Editor, node: ir.Node, tensors: tuple[ir.Value, ir.Value, ir.Value], bias: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    numbers, width = constant(bias), (sizes(tensors[0]) or (None,))[-1]
    if numbers is None or not isinstance(width, int):
        raise make_refusal(node, "has a bias that is computed, or for a width that the file does not say")
    added = []
    for place, (tensor, part) in enumerate(zip(tensors, np.split(numbers, [width, 2 * width]), strict=True)):
        value = editor.add(node, "Add", [tensor, editor.derive(bias, f"part {place}", part.copy())])
        value.shape, value.type = tensor.shape, tensor.type
        added.append(value)
    return added[0], added[1], added[2]


def _read_packed(editor: Editor, node: ir.Node) -> _Parts:
    """com.microsoft's Attention, which holds the weights of q, k and v."""
    heads = _read_heads(node, (3, 4, 6))
    source, weight, bias = (*node.inputs, None)[:3]
    shape = sizes(weight)
    if source is None or weight is None or shape is None or not isinstance(shape[-1], int):
        raise make_refusal(node, "has weights of a shape that the file does not say")
    product = editor.add(node, "MatMul", [source, weight])
    if bias is not None:
        product = editor.add(node, "Add", [product, bias])
    widths = whole(node, "qkv_hidden_sizes") or (shape[-1] // 3,) * 3
    lengths = editor.constant(f"{node.name}.split", np.array(widths, np.int64))
    query, key, value = editor.add_many(node, "Split", [product, lengths], 3, {"axis": 2})
    for part, width in zip((query, key, value), widths, strict=True):
        part.type = source.type
        part.shape = ir.Shape([*(sizes(source) or (None, None, None))[:2], width])
    return _Parts((query, key, value), heads, _read_scale(node), node.inputs[5] if _is_given(node, 5) else None)


def _read_heads(node: ir.Node, absent: tuple[int, ...]) -> int:
    """The number of heads, after refusing masks, pasts and what else is no attention of a ViT."""
    if _is_given(node, *absent) or integer(node, "unidirectional", 0) or integer(node, "do_rotary", 0):
        raise make_refusal(node, "is causal, padded, rotary or has a past, which is not understood")
    return integer(node, "num_heads", 0)


def _read_scale(node: ir.Node) -> float | None:
    return real(node, "scale", 0.0) or None


_READERS = {
    ("", "Attention"): _read_onnx,
    (MICROSOFT, "MultiHeadAttention"): _read_multi_head,
    (MICROSOFT, "Attention"): _read_packed,
}


def lead_probabilities(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Let probabilities come first in their product: v^T p^T is (p v)^T.

    Yields:
        The product.
    """
    for softmax in list(editor.graph):
        turn = only_user(softmax.outputs[0], "Transpose") if softmax.op_type == "Softmax" and softmax.domain == "" else None
        product = None if turn is None else only_user(turn.outputs[0], "MatMul")
        shape = sizes(softmax.outputs[0])
        if turn is None or product is None or shape is None or product.inputs[1] is not turn.outputs[0]:
            continue
        rank = len(shape)
        order = (*range(rank - 2), rank - 1, rank - 2)
        values, out = product.inputs[0], product.outputs[0]
        if whole(turn, "perm") != order or values is None or len(sizes(values) or ()) != rank:
            continue
        context = editor.add(product, "MatMul", [softmax.outputs[0], editor.add(product, "Transpose", [values], perm=order)])
        result = editor.add(product, "Transpose", [context], perm=order)
        result.type, result.shape = out.type, out.shape
        editor.replace(out, result)
        yield (maker_name(context),)


class _Factor(NamedTuple):
    """A multiplication by one number, and the value it multiplies."""

    node: ir.Node
    source: ir.Value
    number: float


def gather_scale(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Make one multiplication, of q, out of all that scale q, k or their product.

    Yields:
        The multiplication, or what used to scale when the product is 1.
    """
    for softmax in list(editor.graph):
        if softmax.op_type != "Softmax" or softmax.domain != "" or not is_last_axis(softmax, integer(softmax, "axis", -1)):
            continue
        matmul, factors = _trace_scores(softmax)
        if matmul is None:
            continue
        query, key = matmul.inputs[:2]
        factors = [*factors, *_trace_factors(query), *_trace_factors(key)]
        if not factors or (len(factors) == 1 and factors[0].node is maker(query, "Mul")):
            continue
        yield _rescale(editor, matmul, factors)


def _rescale(editor: Editor, matmul: ir.Node, factors: list[_Factor]) -> tuple[str, ...]:
    names = tuple(str(factor.node.name) for factor in factors)
    for factor in factors:
        editor.replace(factor.node.outputs[0], factor.source)
    product = math.prod(factor.number for factor in factors)
    query = matmul.inputs[0]
    if product == 1 or query is None:
        return names
    dtype = query.dtype or ir.DataType.FLOAT
    scaled = editor.add(matmul, "Mul", [query, editor.constant(f"{matmul.name}.scale", np.array(product, dtype.numpy()))])
    scaled.shape, scaled.type = query.shape, query.type
    matmul.replace_input_with(0, scaled)
    return (maker_name(scaled),)


def _trace_scores(softmax: ir.Node) -> tuple[ir.Node | None, list[_Factor]]:
    """The product of q and k above a Softmax, and the factors between it and the mask."""
    value, factors = softmax.inputs[0], list[_Factor]()
    for _ in range(4):
        node = maker(value, "MatMul", "Mul", "Div", "Add")
        if node is None or only_user(node.outputs[0]) is None:
            break
        if node.op_type == "MatMul":
            return (None, []) if any(is_constant(each) for each in node.inputs) else (node, factors)
        factor = _read_factor(node)
        if factor is not None:
            factors.append(factor)
            value = factor.source
        elif node.op_type == "Add":
            factors.clear()  # what scales the mask too stays
            branches = [each for each in node.inputs if each is not None and not is_constant(each)]
            value = next((each for each in branches if maker(each, "MatMul") or _read_factor(each.producer())), None)
        else:
            break
    return None, []


def _read_factor(node: ir.Node | None) -> _Factor | None:
    """A multiplication or division by one number that only one node takes."""
    if node is None or node.domain != "" or node.op_type not in ("Mul", "Div") or only_user(node.outputs[0]) is None:
        return None
    first, second = node.inputs[:2]
    factor = number(second)
    if factor is None or first is None or factor == 0 or _rank(second) > _rank(first):
        return None
    return _Factor(node, first, factor if node.op_type == "Mul" else 1 / factor)


def _rank(value: ir.Value | None) -> int:
    """Axes of a value; a shape that is not known counts as many, for it is that of an activation."""
    shape = sizes(value)
    return 99 if shape is None else len(shape)


def _trace_factors(value: ir.Value | None) -> list[_Factor]:
    """Multiplications by a number above q or k, through nodes that only move numbers."""
    factors: list[_Factor] = []
    for _ in range(8):
        node = None if value is None else value.producer()
        factor = _read_factor(node)
        if factor is not None:
            factors.append(factor)
            value = factor.source
            continue
        if value is None or only_user(value) is None or maker(value, *_MOVES) is None or node is None:
            break
        value = node.inputs[0]
    return factors
