"""Rules of single operators: what is foreign code, what lacks an input it can't do without, what is known to end an engine.

OpenVINO 2026.4 reads inputs that are not there (SIGSEGV), divides by the zero sizes of a Reshape (SIGFPE), and writes past its
buffers for activations of four bits (SIGABRT); ONNX Runtime 1.31 aborts on a Split into another number of parts than it says.
Both die of com.microsoft's Attention without a bias, which its schema allows.

Source: the operator schemas of ONNX (docs/Operators.md) and ONNX Runtime (docs/ContribOperators.md), formal parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vitdeploy.errors import TrustError
from vitdeploy.onnxfile.model import BITS, DTYPES, INT, ONNX, Graph, Model, Node
from vitdeploy.onnxfile.reader import refuse

MICROSOFT = "com.microsoft"
KNOWN = frozenset((*ONNX, "ai.onnx.ml", MICROSOFT, "com.microsoft.nchwc"))
"""Domains whose operators the engines bring themselves."""
FOREIGN = frozenset(("PyOp", "PythonOp", "PythonOpGrad", "ATen", "TritonOp", "ExternalOp", "EPContext", "Snpe"))
"""Operators of com.microsoft that run code from elsewhere, or an engine that was built elsewhere."""

_OWN: dict[int, str] = {
    0: "Constant Loop Optional OptionalHasElement RandomNormal RandomUniform Scan SequenceEmpty",
    2: """Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CausalConvWithState CenterCropPad Compress Conv
        ConvInteger ConvTranspose CumProd CumSum DequantizeLinear Div Equal Expand Gather GatherElements GatherND Gemm Greater
        GreaterOrEqual GridSample LayerNormalization Less LessOrEqual MatMul MatMulInteger MaxRoiPool MaxUnpool Mod Mul
        NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear RMSNormalization ReverseSequence STFT SequenceAt
        SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub SwiGLU TensorScatter Tile Xor""",
    3: """Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM LinearAttention OneHot RNN Range RoiAlign
        RotaryEmbedding Scatter ScatterElements ScatterND Where""",
    5: "BatchNormalization MelWeightMatrix",
    8: "QLinearConv QLinearMatMul",
}
_CONTRIB: dict[int, str] = {
    2: """BiasDropout BiasGelu BiasSoftmax BiasSplitGelu CDist ComplexMul ComplexMulConj DequantizeLinear ExpandDims
        FusedConv FusedGemm FusedMatMul FusedMatMulActivation GatherND GemmFastGelu GemmFloat8 GridSample MatMulInteger16
        MaxpoolWithMask NhwcConv NhwcFusedConv Pad QLinearAdd QLinearAveragePool QLinearLeakyRelu QLinearMul
        QLinearReduceMean QLinearSigmoid QLinearSoftmax QuantizeLinear Range TransposeMatMul""",
    3: """Attention BiasAdd DequantizeBFP DynamicQuantizeLSTM DynamicQuantizeMatMul GatedAdd GatherBlockQuantized GroupNorm
        MatMulBnb4 MatMulFpQ4 MatMulNBits MoE QLinearConcat QMoE QOrderedGelu QOrderedLayerNormalization RelativePositionBias
        SkipLayerNormalization SkipSimplifiedLayerNormalization""",
    4: "CropAndResize MatMulIntegerToFloat RotaryEmbedding SkipGroupNorm",
    5: "DecoderAttention PackedAttention QAttention QLinearGlobalAveragePool QOrderedMatMul",
    6: "GatedRelativePositionBias QGemm",
    8: "QLinearConv",
    9: "QLinearWhere",
}
NEEDS: dict[tuple[str, str], int] = {
    (domain, name): count
    for domain, table in (("", _OWN), (MICROSOFT, _CONTRIB))
    for count, names in table.items()
    for name in names.split()
}
"""Domain and operator to how many of its first inputs it can't do without, in any version; 1 for those not listed.

com.microsoft's Attention says that it can do without its third, the bias; no engine can."""

SINCE = {"Pad": (11, 2), "Reshape": (5, 2), "Slice": (10, 3), "TopK": (10, 2), "Unsqueeze": (13, 2), "Upsample": (9, 2)}
"""Operators that need more since some version of ONNX's operator set, in which attributes became inputs."""


def enforce(model: Model) -> None:
    """Refuse nodes that no engine should be shown.

    Raises:
        InputError: VD3027, a node lacks what it needs, or is known to end an engine.
        TrustError: VD7005, an operator of an unknown domain, or one that loads code.
    """
    own = {function.key for function in model.functions}
    for node in model.nodes:
        if not node.type:
            raise refuse(model.path, f"{node.title} does not say its operator")
        if node.key not in own:
            _check_known(model, node)
    for graph in (*model.graphs, *model.functions):
        for node in graph.nodes:
            if node.domain in ONNX and node.key not in own and (rule := _RULES.get(node.type)):
                rule(model, graph, node)
    version = min((version for domain, version in model.opsets if domain in ONNX), default=0)
    for node in (node for graph in model.graphs for node in graph.nodes):  # a function may be of another version
        since, needs = SINCE.get(node.type, (0, 0)) if node.domain in ONNX else (0, 0)
        if version >= since:
            _require(model, node, needs)


def _check_known(model: Model, node: Node) -> None:
    if node.domain not in KNOWN or (node.domain == MICROSOFT and node.type in FOREIGN):
        name, operator, domain = node.name[:100], node.type[:100], node.domain[:100]
        message = f"the node {name!r} asks for {operator} of the domain {domain!r}: that would be foreign code"
        fix = "export the model with operators of ONNX alone, or with the function that defines this one"
        raise TrustError("VD7005", message, file=model.path, fix=fix)
    again = next((name for name, times in Counter(node.attributes).items() if times > 1), None)
    if again is not None:
        raise refuse(model.path, f"{node.title} has the attribute {again!r} twice")
    _require(model, node, NEEDS.get(("" if node.domain in ONNX else node.domain, node.type), 1))


def _require(model: Model, node: Node, needs: int) -> None:
    if len(node.inputs) < needs or not all(node.inputs[:needs]):
        raise refuse(model.path, f"{node.title} lacks an input: it needs {needs}, and has {list(node.inputs)}")


def _check_split(model: Model, graph: Graph, node: Node) -> None:
    """Split says its number of parts up to three times: by its outputs, an attribute, and a list of sizes."""
    parts = list(node.integers.get("num_outputs", []))
    if len(node.inputs) > 1 and node.inputs[1] in graph.constants:
        parts.append(len(graph.constants[node.inputs[1]]))
    wrong = next((count for count in parts if count != len(node.outputs)), None)
    if wrong is not None:
        raise refuse(model.path, f"{node.title} says that it has {wrong} parts, and has {len(node.outputs)}")


def _check_reshape(model: Model, graph: Graph, node: Node) -> None:
    """With `allowzero` a size of 0 means a tensor without numbers, not the size that was there."""
    if "allowzero" not in node.attributes or len(node.inputs) < 2:
        return
    if node.types["allowzero"] not in (0, INT):
        raise refuse(model.path, f"{node.title} has an attribute 'allowzero' that is no whole number")
    sizes = graph.constants.get(node.inputs[1], ())
    if 0 in sizes and node.integers.get("allowzero", [0]) != [0]:
        raise refuse(model.path, f"{node.title} makes a tensor without numbers: {list(sizes)} with allowzero")


def _check_codes(model: Model, graph: Graph, node: Node) -> None:
    """Activations have eight bits or more; weights of four come quantized, with nothing but a DequantizeLinear."""
    kinds = [graph.tensors[name].kind for name in node.inputs[2:3] if name in graph.tensors]
    kinds += node.integers.get("output_dtype", [])
    small = next((kind for kind in kinds if BITS.get(kind, 8) < 8), None)
    if small is not None:
        raise refuse(model.path, f"{node.title} makes activations of {DTYPES[small]}, which engines don't compute with")


_RULES: dict[str, Callable[[Model, Graph, Node], None]] = {
    "Split": _check_split,
    "Reshape": _check_reshape,
    "QuantizeLinear": _check_codes,
}
