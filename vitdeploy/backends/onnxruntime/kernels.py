"""What ONNX Runtime executes, read from the graph that it writes after optimising, and how long, from its profiler's file.

The engine itself is not needed here.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from vitdeploy.backends.base import Kernel, Precision, Profile, Role, Spent
from vitdeploy.onnxfile.model import Node
from vitdeploy.onnxfile.nodes import Nodes

_MICROSOFT = "com.microsoft::"
_TIMED = "_kernel_time"
"""Behind a node's name, in the profiler's events."""


class _Product(NamedTuple):
    """An operator that multiplies: where its two factors stand, and its precision when that is not the factors' own."""

    left: int = 0
    right: int = 1
    precision: Precision | None = None


_PRODUCTS = {
    "MatMul": _Product(),
    "Gemm": _Product(),
    f"{_MICROSOFT}FusedMatMul": _Product(),
    f"{_MICROSOFT}FusedGemm": _Product(),
    f"{_MICROSOFT}MatMulNBits": _Product(),
    f"{_MICROSOFT}MatMulIntegerToFloat": _Product(precision="int8"),
    f"{_MICROSOFT}QGemm": _Product(0, 3, "int8"),
    f"{_MICROSOFT}QLinearMatMul": _Product(0, 3, "int8"),
    "QLinearMatMul": _Product(0, 3, "int8"),
    "MatMulInteger": _Product(precision="int8"),
    f"{_MICROSOFT}DynamicQuantizeMatMul": _Product(precision="int8-dynamic"),
    "Conv": _Product(),
    f"{_MICROSOFT}FusedConv": _Product(),
    "com.microsoft.nchwc::Conv": _Product(),
    "QLinearConv": _Product(0, 3, "int8"),
    f"{_MICROSOFT}QLinearConv": _Product(0, 3, "int8"),
    "ConvInteger": _Product(precision="int8"),
    "Attention": _Product(),
    f"{_MICROSOFT}Attention": _Product(),
    f"{_MICROSOFT}MultiHeadAttention": _Product(),
    f"{_MICROSOFT}QAttention": _Product(precision="int8"),
}
_STRAIGHT = "its inputs must come straight from a DequantizeLinear each, with no Split between"
_REASONS: dict[tuple[Role, str, bool], str] = {
    ("gemm", "Gemm", True): (
        "of two matrices, as all are with a fixed batch, MatMul and Add become a Gemm, which needs an int32 bias behind a "
        "DequantizeLinear and a zero point at the weight's"
    ),
    ("gemm", "MatMul", True): "activations in int8 that several products share stay float on x86: they must be uint8",
    ("gemm", "MatMul", False): "this onnxruntime is too old to run a dequantized weight as MatMulNBits",
    ("attention", "MatMul", True): _STRAIGHT,
    ("attention", "MatMul", False): _STRAIGHT,
}
"""Why a product computes in float: its role, its operator, and whether its first factor is dequantized."""
_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}


def read_kernels(optimised: Nodes, source: Nodes) -> tuple[Kernel, ...]:
    """The kernels of an optimised graph.

    Args:
        optimised: What ONNX Runtime made of the graph.
        source: The graph as it was given; kernels carry the names of its products.

    Returns:
        In order of execution. A whole attention is one kernel, whose kind has ``Attention`` in it.
    """
    names = frozenset(node.name for node in source.all)
    return tuple(_kernel(node, optimised, names) for node in optimised.all)


def read_profile(document: bytes, runs: int) -> Profile:
    """What the profiler has written of some runs.

    Args:
        document: Its JSON: an event for each node and run, and one for each run. Times are in microseconds.
        runs: The last ones, that count.
    """
    events = json.loads(document)
    whole = [event for event in events if event["cat"] == "Session" and event["name"] == "model_run"][-runs:]
    spent: dict[tuple[str, str], float] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_TIMED) and event["ts"] >= whole[0]["ts"]:
            key = (event["name"].removesuffix(_TIMED), event["args"]["op_name"])
            spent[key] = spent.get(key, 0.0) + event["dur"] / 1e3 / runs
    return Profile(sum(event["dur"] for event in whole) / 1e3 / runs, tuple(Spent(*key, ms) for key, ms in spent.items()))


def _kernel(node: Node, graph: Nodes, names: frozenset[str]) -> Kernel:
    """A node of the optimised graph; ``names`` are those of the source graph."""
    kind = node.operator.rpartition("::")[2]
    product = _PRODUCTS.get(node.operator)
    if product is None:
        return Kernel(node.name, kind, "other", _precision(node.inputs[0] if node.inputs else "", graph))
    factors = [node.inputs[at] for at in (product.left, product.right) if at < len(node.inputs)]
    precision = product.precision or _nbits(node) or _precision(factors[0], graph)
    makers = [maker.operator for factor in factors if (maker := graph.origin(factor))]
    if precision == "int8" and "DynamicQuantizeLinear" in makers:
        precision = "int8-dynamic"
    integers = precision in ("int8", "int8-dynamic")
    dequantized = kind == "MatMulNBits" or "DequantizeLinear" in makers
    role, fallback = _role(kind, factors, graph), dequantized and not integers
    reason = _REASONS.get((role, kind, _is_dequantized(factors[0], graph)), "") if fallback else ""
    return Kernel(_source(node.name, names), kind, role, precision, fallback, reason)


def _is_dequantized(value: str, graph: Nodes) -> bool:
    maker = graph.origin(value)
    return maker is not None and maker.operator == "DequantizeLinear"


def _source(name: str, names: frozenset[str]) -> str:
    """The source node's name: fusions keep that of the product and append their own, as in ``fc1/MatMul/MatMulAddFusion``."""
    while name and name not in names:
        name = name[: max(name.rfind("/"), name.rfind("_"), 0)]
    return name


def _role(kind: str, factors: list[str], graph: Nodes) -> Role:
    if "Conv" in kind:
        return "conv"
    weights = "Attention" not in kind and any(graph.is_constant(factor) for factor in factors)
    return "gemm" if weights else "attention"


def _nbits(node: Node) -> Precision | None:
    """MatMulNBits computes in int8 when its accuracy level is 4; else it decompresses its weights and computes in float."""
    if not node.operator.endswith("::MatMulNBits"):
        return None
    if node.numbers.get("accuracy_level") != 4:
        return "fp32"
    return "int8-dynamic" if node.numbers.get("bits") == 8 else "other"


def _precision(value: str, graph: Nodes) -> Precision:
    return _PRECISIONS.get(graph.dtype(value), "other")
