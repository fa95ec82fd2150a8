"""The arithmetic that an ONNX file was prepared for, read from its operators and weights: what others made has no record."""

from __future__ import annotations

from collections import Counter

from vitdeploy.onnxfile.model import BITS, DTYPES, Model
from vitdeploy.words import RecordPrecision

_STATIC = ("QuantizeLinear", "QGemm", "QAttention")
_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_HALVES: dict[str, RecordPrecision] = {"float16": "fp16", "bfloat16": "bf16"}
_BLOCKS = "MatMulNBits"


def read_precision(model: Model) -> RecordPrecision:
    """What a model multiplies in, in the words of records.

    ``int8`` and ``fp8``: activations have ranges from calibration; ``int8-dynamic``: they are quantized at run time;
    ``int8-weight-only`` and ``int4-weight-only``: only weights have few bits; ``fp16`` and ``bf16``: most weights are.
    """
    kinds = {node.type for node in model.nodes}
    elements = Counter[str]()
    for tensor in model.tensors:
        elements[DTYPES.get(tensor.kind, "")] += tensor.count
    if "DequantizeLinear" in kinds and any(name.startswith(("float8e4", "float8e5")) for name in elements):
        return "fp8"
    if kinds.intersection(_STATIC) or any(kind.startswith("QLinear") for kind in kinds):
        return "int8"
    if kinds.intersection(_DYNAMIC) or any("Integer" in kind for kind in kinds):
        return "int8-dynamic"
    if "DequantizeLinear" in kinds or _BLOCKS in kinds:
        return "int4-weight-only" if _has_few_bits(model) else "int8-weight-only"
    half = next((name for name in _HALVES if elements[name] > elements["float32"]), None)
    return "fp32" if half is None else _HALVES[half]


def _has_few_bits(model: Model) -> bool:
    """Whether weights are of less than a byte, as tensors or inside blocks."""
    bits = [node.numbers.get("bits", 4) for node in model.nodes if node.type == _BLOCKS]
    return any(each < 8 for each in (*bits, *(BITS.get(tensor.kind, 8) for tensor in model.tensors)))
