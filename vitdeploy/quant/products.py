"""The products inside attention in 8 bits: where an engine has a kernel for them, and where their Q/DQ stand.

An engine whose float parts are FP16 (TensorRT) computes them faster in FP16 than in 8 bits where it has no kernel for both
products at once. It wants all of q, k, probabilities, v and the result quantized, and the scale before the first product:
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph import qdq
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.qdq import E4M3, Codes
from vitdeploy.graph.structure import Attention, Structure
from vitdeploy.quant.equalize import Step, step
from vitdeploy.quant.preparation import Layout, head_size, plain_keys, plain_values


def refuse(structure: Structure, layout: Layout) -> None:
    """Say so before any work is done if the target would compute quantized attention slower than float attention.

    Raises:
        UsageError: VD2011, names the first attention and the reason.
    """
    if not layout.attention or not layout.half:
        return
    for attention in structure.attentions:
        reason = "" if _few_queries(attention) else _obstacle(attention, layout)
        if reason:
            message = f"the target has no 8-bit attention for {attention.name!r}: {reason}"
            raise UsageError("VD2011", message, fix="leave attention out: it stays FP16, in one kernel")


def chosen(attention: Attention, layout: Layout) -> bool:
    """Whether the products of an attention are to be quantized."""
    if not (layout.attention and plain_keys(attention) and plain_values(attention)):
        return False
    return not layout.half or not (_few_queries(attention) or _obstacle(attention, layout))


def note_skipped(structure: Structure, layout: Layout) -> list[str]:
    """Attentions that stay float because they have fewer queries than keys; a note for each."""
    if not layout.attention or not layout.half:
        return []
    few = [attention for attention in structure.attentions if _few_queries(attention)]
    return [f"{each.name}: stays FP16, it is computed for the class token only" for each in few]


def place(editor: Editor, attention: Attention, steps: tuple[Step, Step, Step], layout: Layout) -> None:
    """Put the Q/DQ of queries, keys, values and probabilities into the graph.

    TensorRT wants them right before the products, each with its own step. OpenVINO takes them before the tensors are split
    into heads, where q, k and v have one step. What comes out of the second product is the input of a linear layer, which
    has its own.

    Args:
        editor: Of the graph.
        attention: One that `chosen` accepts.
        steps: Of q, k and v.
        layout: What the target reads.
    """
    probabilities = _probabilities(layout)
    dtype = E4M3 if layout.floating else np.int8
    if layout.half:
        uses = ((attention.scores, 0), (attention.scores, 1), (attention.context, 1))
        for (node, index), quantizer in zip(uses, steps, strict=True):
            qdq.quantize(editor, _input(node, index), Codes(quantizer.scale, 0, dtype), [(node, index)])
    else:
        outputs = [linear.output for linear in attention.linears if linear is not None]
        for value in dict.fromkeys(outputs):
            qdq.quantize(editor, value, Codes(steps[0].scale, 0, dtype), [(use.node, use.idx) for use in value.uses()])
    kind = dtype if layout.half else np.uint8
    qdq.quantize(editor, attention.softmax.outputs[0], Codes(probabilities.scale, 0, kind), [(attention.context, 0)])


def _probabilities(layout: Layout) -> Step:
    """From 0 to 1, never clipped."""
    return step(0.0, 1.0, layout.grid).in_half() if layout.half else step(0.0, 1.0)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _few_queries(attention: Attention) -> bool:
    """Whether there are fewer queries than keys: the last block of a model that reads its class token only."""
    queries, keys = _tokens(attention)
    return queries is not None and keys is not None and queries < keys


def _tokens(attention: Attention) -> tuple[int | None, int | None]:
    """Queries and keys; None where the file does not say."""
    shape = attention.softmax.outputs[0].shape
    sizes = [size if isinstance(size, int) else None for size in shape][-2:] if shape is not None else []
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (None, None)


def _obstacle(attention: Attention, layout: Layout) -> str:
    """Why the target has no kernel for it, or ""."""
    if not (plain_keys(attention) and plain_values(attention)):
        return "a norm or rotary positions lie between its layers and its products"
    if attention.scale:
        return "its scores are scaled behind the layers of queries and keys (the rewrite query-scale was left out)"
    size, tokens = head_size(attention, 0), _tokens(attention)[1]
    if size != head_size(attention, 2):
        return f"its queries have {size} channels, its values {head_size(attention, 2)}"
    heads = layout.heads
    if heads.sizes and size not in heads.sizes:
        return f"its heads have {size} channels, not {', '.join(map(str, heads.sizes[:-1]))} or {heads.sizes[-1]}"
    if size % heads.multiple or (heads.most_channels is not None and size > heads.most_channels):
        return f"its heads have {size} channels, not a multiple of {heads.multiple} up to {heads.most_channels}"
    if heads.most_tokens is not None and (tokens is None or tokens > heads.most_tokens):
        return f"it has {'an unknown number of' if tokens is None else tokens} tokens, more than {heads.most_tokens}"
    return ""
