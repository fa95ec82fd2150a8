"""What TensorRT refuses, computes differently from what the file says, or runs badly: told before its parser sees the file.

NVIDIA's own messages name neither the cause nor a remedy, some come only after minutes, and some files build and are wrong in
silence: unsigned codes are read as signed ones.

Source: what TensorRT-RTX 1.7.1 makes of each case (`tests/backends/tensorrt/test_rules.py` shows it), and NVIDIA's documentation
of fused attention, https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vitdeploy.backends.table import TENSORRT_INT8
from vitdeploy.backends.tensorrt.attention import Attention, find_attentions
from vitdeploy.errors import InputError
from vitdeploy.onnxfile.model import DTYPES, Model, Node
from vitdeploy.onnxfile.nodes import Nodes
from vitdeploy.onnxfile.reader import read

CODES = frozenset(("int8", "float8e4m3fn", "int4", "float4e2m1"))
"""Element types that QuantizeLinear and DequantizeLinear may have."""
PLACES = 5
"""Of Q/DQ in an attention: queries, keys, probabilities, values, and what follows the second product."""
_QUANTIZE = "quantize the FP32 model with: vitdeploy quantize ARTIFACT --precision int8 --backend tensorrt --data DIR -o OUT"
_HALVE = "convert the FP32 model with: vitdeploy quantize ARTIFACT --precision fp16 --backend tensorrt --data DIR -o OUT"
_INTEGER = frozenset(("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "BitShift"))
_PRODUCTS = ("MatMul", "Gemm", "Conv")
_SQUARES = ("Pow", "Mul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_NEEDS = {"float8e4m3fn": (8, 9), "bfloat16": (8, 0)}
"""Element type to the first compute capability that multiplies in it."""
_FP32_RTX = (8, 0)
"""First compute capability for which TensorRT-RTX has products in FP32."""


class Target(NamedTuple):
    """What a graph is checked for.

    Attributes:
        rtx: TensorRT-RTX, not TensorRT.
        capabilities: Compute capabilities of the devices, ``(8, 9)``; empty when they are not known.
    """

    rtx: bool = False
    capabilities: tuple[tuple[int, int], ...] = ()


class Graph:
    """A graph as the rules look at it."""

    def __init__(self, model: Model) -> None:
        self.nodes = Nodes(model)
        self.attentions: tuple[Attention, ...] = find_attentions(self.nodes)

    def codes(self, node: Node) -> str:
        """Element type on the quantized side of a QuantizeLinear or DequantizeLinear."""
        if len(node.inputs) > 2 and node.inputs[2]:
            return self.nodes.dtype(node.inputs[2])
        if node.operator == "DequantizeLinear":
            maker = self.nodes.maker(node.inputs[0])
            if maker is None or maker.operator != "QuantizeLinear":
                return self.nodes.dtype(node.inputs[0])
            return self.codes(maker)
        return DTYPES.get(node.numbers.get("output_dtype", 0), "uint8")  # what ONNX says where nothing is said

    @property
    def products(self) -> list[Node]:
        """Products, in order."""
        return [node for node in self.nodes.all if node.operator in _PRODUCTS]


Breaches = Iterator[tuple[Node, str, str]]
"""A node, what is wrong with it and the remedy."""


def check(onnx: Path, target: Target) -> tuple[str, ...]:
    """Refuse a graph that can't run as it is meant.

    Args:
        onnx: The file.
        target: The engine and its devices.

    Returns:
        Notes for people: what will run, but worse than it could.

    Raises:
        InputError: VD3011, the file is damaged; VD3026, naming the first node, what is wrong and the remedy.
    """
    graph = Graph(read(onnx))
    for rule in (_operators, _codes, _zeros, _scales, _attention, _norms, _bytes):
        breaches = list(rule(graph))
        if breaches:
            node, message, fix = breaches[0]
            more = f" (and {len(breaches) - 1} more of this kind)" if len(breaches) > 1 else ""
            raise InputError("VD3026", f"{node.operator} {node.name!r} {message}{more}", file=onnx, fix=fix)
    _capabilities(graph, onnx, target)
    return tuple(note for rule in _NOTES if (note := rule(graph)))


def _operators(graph: Graph) -> Breaches:
    """Operators that compute in integers by themselves, and those of other engines."""
    for node in graph.nodes.all:
        if "::" in node.operator:
            domain = node.operator.rpartition("::")[0]
            fix = _QUANTIZE if domain == "com.microsoft" else "export the model with ONNX's own operators only"
            yield node, f"is an operator of the domain {domain!r}, which TensorRT does not know", fix
        elif node.operator in _INTEGER:
            yield node, "is not an operator of TensorRT, which wants QuantizeLinear and DequantizeLinear", _QUANTIZE


def _codes(graph: Graph) -> Breaches:
    """Element types of codes; unsigned ones are read as signed, in silence."""
    for node in graph.nodes.all:
        if node.operator in _QDQ and (dtype := graph.codes(node)) not in CODES:
            says = "TensorRT would read them as int8, and be wrong" if dtype == "uint8" else "TensorRT takes int8 or FP8"
            yield node, f"has codes of type {dtype or 'unknown'}; {says}", _QUANTIZE


def _zeros(graph: Graph) -> Breaches:
    """Zero points."""
    for node in graph.nodes.all:
        if node.operator in _QDQ and len(node.inputs) > 2 and node.inputs[2]:
            zero = graph.nodes.is_zero(node.inputs[2])
            if zero is None:
                yield node, f"has a zero point {node.inputs[2]!r} that is not a readable constant; TensorRT takes 0", _QUANTIZE
            elif not zero:
                yield node, "has a zero point other than 0, and TensorRT takes 0 only", _QUANTIZE


def _scales(graph: Graph) -> Breaches:
    """Activations with a scale each channel: a product over channels can't be done in integers."""
    for node in graph.nodes.all:
        if node.operator != "QuantizeLinear" or len(node.inputs) < 2 or graph.nodes.is_constant(node.inputs[0]):
            continue
        shape = graph.nodes.shape(node.inputs[1])
        if shape is not None and any(size != 1 for size in shape):
            sizes = " x ".join(map(str, shape))
            yield node, f"quantizes an activation with {sizes} scales; integer products need a single one", _QUANTIZE


def _attention(graph: Graph) -> Breaches:
    """The operator Attention: there are fused kernels for it in half precision alone."""
    for node in graph.nodes.all:
        if node.operator == "Attention" and graph.nodes.dtype(node.inputs[0]) == "float32":
            yield node, "is in FP32: TensorRT reads it, and then has no kernel for it", f"export it with opset 20, or {_HALVE}"


def _norms(graph: Graph) -> Breaches:
    """Means of squares in FP16: the square of 256 is infinite there."""
    for node in graph.nodes.all:
        square = graph.nodes.maker(node.inputs[0]) if node.operator == "ReduceMean" and node.inputs else None
        if square is None or square.operator not in _SQUARES or graph.nodes.dtype(node.inputs[0]) != "float16":
            continue
        if square.operator == "Pow" or len(set(square.inputs)) == 1:
            yield node, "averages squares in FP16, where 256 x 256 is infinite: a norm must be FP32 inside", _HALVE


def _bytes(graph: Graph) -> Breaches:
    """Pixels in bytes: they can be cast, and nothing else."""
    nodes = graph.nodes
    for node in nodes.all:
        raw = [value for value in node.inputs if nodes.dtypes.get(value) == "uint8" and nodes.maker(value) is None]
        if node.operator not in ("Cast", *_QDQ) and any(not nodes.is_constant(value) for value in raw):
            fix = "export the model with --input uint8-nchw or float32-nchw"
            yield node, "takes bytes, of which TensorRT knows no more than to cast them", fix


def _capabilities(graph: Graph, onnx: Path, target: Target) -> None:
    """Element types that a device has no arithmetic for."""
    if not target.capabilities:
        return
    lowest = min(target.capabilities)
    for node in graph.nodes.all:
        dtype = graph.codes(node) if node.operator in _QDQ else ""
        dtype = graph.nodes.dtype(node.outputs[0]) if node.operator in _PRODUCTS else dtype
        needed = _NEEDS.get(dtype, (0, 0))
        if target.rtx and dtype == "float32" and node.operator in _PRODUCTS and not _is_quantized(graph, node):
            needed = _FP32_RTX
        if lowest < needed:
            message = (
                f"{node.operator} {node.name!r} is in {dtype}, which needs compute capability {needed[0]}.{needed[1]}; "
                f"the device has {lowest[0]}.{lowest[1]}"
            )
            raise InputError("VD3026", message, file=onnx, fix=_QUANTIZE if dtype == "float8e4m3fn" else _HALVE)


def _is_quantized(graph: Graph, node: Node) -> bool:
    """Whether both factors of a product come from codes."""
    makers = [graph.nodes.maker(value) for value in node.inputs[:2]]
    return all(maker is not None and maker.operator == "DequantizeLinear" for maker in makers)


def _half_quantized(graph: Graph) -> str:
    """Attention with some of its Q/DQ."""
    partial = [each for each in graph.attentions if 0 < each.places < PLACES and each.places > each.follows]
    if not partial:
        return ""
    return (
        f"attention {partial[0].name!r}{_others(partial)} is quantized in {partial[0].places} of {PLACES} places: it is not "
        "fused, and slower than FP16; quantize queries, keys, probabilities, values and the result, or none"
    )


def _large_attention(graph: Graph) -> str:
    """INT8 attention that has no fused kernel."""
    whole = [each for each in graph.attentions if each.places == PLACES and each.dtype(graph.codes) == "int8"]
    for each in whole:
        queries, scores = graph.nodes.shape(each.queries), graph.nodes.shape(each.scores)
        size, tokens = (queries or ("",))[-1], (scores or ("",))[-1]
        if isinstance(size, int) and size not in TENSORRT_INT8.sizes:
            reason = f"heads of {size} numbers; INT8 attention is fused for {', '.join(map(str, TENSORRT_INT8.sizes))}"
        elif isinstance(tokens, int) and tokens > (TENSORRT_INT8.most_tokens or tokens):
            reason = f"{tokens} tokens; INT8 attention is fused up to {TENSORRT_INT8.most_tokens}"
        else:
            continue
        return f"attention {each.name!r}{_others(whole)} has {reason}: slower than FP16; leave attention in FP16"
    return ""


def _float_parts(graph: Graph) -> str:
    """Integer products among FP32."""
    if not any(node.operator == "DequantizeLinear" for node in graph.nodes.all):
        return ""
    floats = [graph.nodes.dtype(node.outputs[0]) for node in graph.products]
    if 2 * floats.count("float32") <= len(floats):
        return ""
    return f"float parts are FP32: INT8 will be slower than FP16; {_QUANTIZE}"


def _others(attentions: list[Attention]) -> str:
    return f" (and {len(attentions) - 1} more)" if len(attentions) > 1 else ""


_NOTES: tuple[Callable[[Graph], str], ...] = (_float_parts, _half_quantized, _large_attention)
