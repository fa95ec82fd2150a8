"""What OpenVINO executes, and how long. The engine's module is not needed here, only its objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from vitdeploy.backends.base import Kernel, Precision, Profile, Role, Spent

PRECISIONS: dict[str, Precision] = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
"""OpenVINO's element types to ours."""
_INTEGERS = ("i8", "u8")
_MOVES = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
"""Types of operations that stand between a product and its quantized input, or its weights."""
_NO_LAYERS = ("Const", "Constant", "Input", "Output", "Parameter", "Result")
_ROLES: dict[str, Role] = {"FullyConnected": "gemm", "MatMul": "gemm", "Convolution": "conv"}
"""Layer types that multiply, with the role of one whose name is not the source graph's."""


def read_kernels(runtime: Any, model: Any) -> list[tuple[Kernel, int]]:  # noqa: ANN401 (openvino.Model, which has no types)
    """The kernels of a compiled model.

    Args:
        runtime: Its runtime model.
        model: The model as it was read; kernels carry the names of its products.

    Returns:
        In order of execution. With each kernel the depth of its product, if its float input may be quantized at run time;
        else 0. A fused attention is two kernels, the scores and the product with the values; their kind has ``attention`` in it.
    """
    products = _products(model)
    layers = [_Layer(node) for node in runtime.get_ordered_ops()]
    return [kernel for layer in layers if layer.kind not in _NO_LAYERS for kernel in _kernels(layer, products)]


def read_profile(run_ms: float, counted: Sequence[Any], runs: int) -> Profile:
    """What the counters say of some runs.

    Args:
        run_ms: Mean time of a run.
        counted: ``openvino.ProfilingInfo`` of every node of every run, in order of execution.
        runs: How many.
    """
    spent: dict[tuple[str, str], float] = {}
    for info in counted:
        if (ms := info.real_time.total_seconds() * 1e3 / runs) > 0:  # what was fused into another takes none
            key = (info.node_name, info.node_type)
            spent[key] = spent.get(key, 0.0) + ms
    return Profile(run_ms, tuple(Spent(*key, ms) for key, ms in spent.items()))


def same_layers(first: Any, second: Any) -> bool:  # noqa: ANN401 (openvino.Model)
    """Whether two runtime models execute the same kernels, whatever they call them."""
    return _implementations(first) == _implementations(second)


def _implementations(runtime: Any) -> Counter[tuple[str, ...]]:  # noqa: ANN401 (openvino.Model)
    infos = [node.get_rt_info() for node in runtime.get_ordered_ops()]
    keys = ("layerType", "primitiveType", "runtimePrecision")
    return Counter(tuple(info[key].astype(str) if key in info else "" for key in keys) for info in infos)


class _Source(NamedTuple):
    """A product of the source graph: what it is for, whether a factor is dequantized, and what OpenVINO calls it."""

    role: Role
    quantized: bool
    called: str


class _Products(NamedTuple):
    """Products of the source graph by name, in order; and the names of weights to the products that multiply by them."""

    by_name: dict[str, _Source]
    by_weight: dict[str, list[str]]


def _products(model: Any) -> _Products:  # noqa: ANN401 (openvino.Model, which has no types)
    products = _Products({}, {})
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Convolution"):
            continue
        weights, integers = zip(*(_origin(node.input_value(side)) for side in (0, 1)), strict=True)
        called = node.get_friendly_name()
        name = called.removesuffix("/WithoutBiases")  # a product with a bias is read as two nodes; the sum has its name
        role: Role = "conv" if kind == "Convolution" else "gemm" if any(weights) else "attention"
        products.by_name[name] = _Source(role, any(integers), called)
        for weight in filter(None, weights):
            products.by_weight.setdefault(weight, []).append(name)
    return products


def _origin(value: Any) -> tuple[str, bool]:  # noqa: ANN401 (openvino.Output)
    """The constant that a factor is made of, "" for an activation; and whether it passes through int8 on its way."""
    node = value.get_node()
    integers = value.get_element_type().get_type_name() in _INTEGERS
    if node.get_type_name() == "Constant":
        return node.get_friendly_name(), integers
    if node.get_type_name() not in _MOVES:
        return "", integers
    sides = [_origin(node.input_value(side)) for side in range(node.get_input_size())]
    return sides[0][0] if all(constant for constant, _ in sides) else "", integers or sides[0][1]


class _Layer:
    """A node of the runtime model."""

    def __init__(self, node: Any) -> None:  # noqa: ANN401 (openvino.Node)
        info = node.get_rt_info()
        texts = {
            key: info[key].astype(str) if key in info else "" for key in ("layerType", "originalLayersNames", "runtimePrecision")
        }
        self.kind = texts["layerType"]
        self.name = node.get_friendly_name()
        self.names = {self.name, *texts["originalLayersNames"].split(",")}
        self.precision = texts["runtimePrecision"]
        values = [value for value in node.input_values() if value.get_partial_shape().rank.is_static]
        self.ranks = [value.get_partial_shape().rank.get_length() for value in values]
        self.types = [value.get_element_type().get_type_name() for value in values]
        self.weights = [_name_weight(value.get_node()) for value in values[1:2]]
        self.depths = [value.get_partial_shape()[rank - 1] for value, rank in zip(values, self.ranks, strict=True) if rank]


def _name_weight(node: Any) -> str:  # noqa: ANN401 (openvino.Node)
    """Name of the constant behind a layer that only brings it into another order."""
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _kernels(layer: _Layer, products: _Products) -> list[tuple[Kernel, int]]:
    """The products of a layer, each with its depth if it may be quantized at run time, else 0; or the layer itself."""
    names = [
        name
        for name, source in products.by_name.items()
        if source.called in layer.names or (name in layer.names and layer.kind in _ROLES)
    ]
    if not names and layer.kind in _ROLES:  # symmetric activations: it is named after what was fused behind it
        owners = [products.by_weight.get(weight, []) for weight in layer.weights]
        names = [owner[0] for owner in owners if len(owner) == 1]
    if not names:
        float_ = PRECISIONS.get(layer.precision, "int8" if layer.precision in _INTEGERS else "other")
        return [(Kernel("" if layer.kind in _ROLES else layer.name, layer.kind, _ROLES.get(layer.kind, "other"), float_), 0)]
    whole = sum(products.by_name[name].role == "attention" for name in names) > 1
    kind = f"{layer.kind} (attention)" if whole else layer.kind
    return [
        (kernel._replace(kind=kind), depth)
        for name in names
        for kernel, depth in (_kernel(layer, name, products.by_name[name], first=name == names[0]),)
    ]


def _kernel(layer: _Layer, name: str, source: _Source, *, first: bool) -> tuple[Kernel, int]:
    """One product of a layer, told by the types of what goes into it.

    A fused attention takes queries, keys, masks and values. Its probabilities stay inside; the engine takes values in int8
    only for a product in int8, so the values tell for both.
    """
    wide = [kind for kind, rank in zip(layer.types, layer.ranks, strict=True) if rank > 1]
    left, right = (wide[-1], wide[-1]) if source.role == "attention" and not first else (wide[0], wide[1])
    integers = left in _INTEGERS and right in _INTEGERS
    precision: Precision = "int8" if integers else PRECISIONS.get(left, "other")
    depth = layer.depths[0].get_length() if not integers and right in _INTEGERS and source.role == "gemm" else 0
    fallback = source.quantized and not integers
    reason = _ATTENTION if fallback and source.role == "attention" else ""
    return Kernel(name, layer.kind, source.role, precision, fallback, reason), depth


_ATTENTION = "both inputs must be quantized: queries, keys and values in int8 with zero point 0, probabilities with zero point 0"
