"""OpenVINO: the file on the CPU, its float parts held to float32 unless something else is asked for.

OpenVINO computes in bfloat16 where the CPU has AMX unless told otherwise; the precision hint is set and then asked back, so
that what the report says is what ran.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# Importing openvino sends an event to Google Analytics and writes to ~/intel, without being asked, when the package
# openvino_telemetry can be imported; when it can't, openvino has a silent stand-in. So for this import it can't.
_hidden = "openvino_telemetry" not in sys.modules
if _hidden:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
try:
    import openvino
finally:
    if _hidden:
        del sys.modules["openvino_telemetry"]

import numpy as np  # noqa: E402

from vitdeploy.artifact import Artifact  # noqa: E402
from vitdeploy.backends.base import OpenConfig, Outputs, Tensor, checked, only_cpu, threads  # noqa: E402
from vitdeploy.errors import UsageError, library  # noqa: E402
from vitdeploy.graph.census import Kernel, Precision, Role  # noqa: E402

_PRECISIONS: dict[str, Precision] = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_INTEGERS = ("i8", "u8")
_MOVES = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
"""Types of operations that stand between a product and its quantized input, or its weights."""
_NO_LAYERS = ("Const", "Constant", "Input", "Output", "Parameter", "Result")
_ROLES: dict[str, Role] = {"FullyConnected": "gemm", "MatMul": "gemm", "Convolution": "conv"}
"""Layer types that multiply, with the role of one whose name is not the source graph's."""


class OpenVino:
    """Opens artifacts in OpenVINO."""

    name = "openvino"

    def open(self, artifact: Artifact, config: OpenConfig) -> OpenVinoRunner:
        """Read and compile the file for the CPU.

        Raises:
            UsageError: VD2011, another device than ``cpu``, or a precision that this CPU does not compute in.
            EnvironmentError_: VD4004, the engine refused the model; VD4006, out of memory.
        """
        only_cpu(self.name, config)
        made = "bf16" if artifact.record.precision == "bf16" else "f32"
        return OpenVinoRunner(artifact, threads(config), config.precision or made)


class OpenVinoRunner:
    """A compiled model and one request: latency of one batch at a time, not throughput of many at once."""

    def __init__(self, artifact: Artifact, count: int, hint: str = "f32") -> None:
        if hint not in _PRECISIONS:
            raise UsageError("VD2011", f"there is no precision {hint!r}", fix=f"choose from: {', '.join(_PRECISIONS)}")
        self._wanted = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": count,
            "NUM_STREAMS": 1,
        }
        with library("openvino", artifact.model), _own_signal_stack():
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(artifact.model), "CPU", self._wanted)
            precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            used = compiled.get_property("INFERENCE_NUM_THREADS")
            self._request: Any = compiled.create_infer_request()
        if precision != hint:  # a CPU without this arithmetic takes the nearest that it has
            message = f"openvino computes in {precision!r} on this CPU, not in {hint!r}"
            raise UsageError("VD2011", message, fix="leave the precision out")
        self._compiled: Any = compiled
        self._artifact = artifact
        self._names = [output.get_any_name() for output in compiled.outputs]
        first = compiled.inputs[0].get_partial_shape()[0]
        self.batch: int | None = first.get_length() if first.is_static else None
        """The batch written into the file, or None when it is dynamic."""
        self.settings: dict[str, Any] = {
            "backend": OpenVino.name,
            "version": openvino.__version__.partition("-")[0],
            "threads": int(used),
            "device": "cpu",
            "precision": _arithmetic(artifact.record.precision, _PRECISIONS[hint]),
        }

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = checked(tensor, self._artifact.spec.input, self.batch)
        with library("openvino", self._artifact.model):
            # share_inputs: the tensor is only read, and only during this call; outputs are copied out of the request
            found = self._request.infer([pixels], share_inputs=True, share_outputs=False)
            return {name: found[index] for index, name in enumerate(self._names)}

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`. A fused attention is two kernels, the scores and the product with the values.

        Whether a layer with int8 weights and float input is quantized at run time depends on the CPU, the depth of the
        product and the engine's version, and no property tells: a small product of the same depth is run and shows it.
        """
        with library("openvino", self._artifact.model), _own_signal_stack():
            core = openvino.Core()
            products = _products(core.read_model(self._artifact.model))
            layers = [_Layer(node) for node in self._compiled.get_runtime_model().get_ordered_ops()]
            found = [kernel for layer in layers if layer.kind not in _NO_LAYERS for kernel in _kernels(layer, products)]
            dynamic = {depth: _quantizes(core, depth, self._wanted) for depth in {depth for _, depth in found if depth}}
        return tuple(
            kernel._replace(precision="int8-dynamic", fallback=False) if dynamic.get(depth) else kernel for kernel, depth in found
        )

    def close(self) -> None:
        """Drop the compiled model."""
        self._request = self._compiled = None


def _arithmetic(made: str, floats: str) -> str:
    """Precision of a runner's settings: floats of a float model, else what it was quantized to and the floats beside it."""
    if not made.startswith("int8"):
        return floats
    return made if floats == "fp32" else f"{made}+{floats}"


class _Source(NamedTuple):
    """A product of the source graph: what it is for, and whether a factor is dequantized."""

    role: Role
    quantized: bool


class _Products(NamedTuple):
    """Products of the source graph by name, in order; and the names of weights to the products that multiply by them."""

    by_name: dict[str, _Source]
    by_weight: dict[str, list[str]]


def _products(model: Any) -> _Products:  # noqa: ANN401 (openvino.Model, which has no types)
    found = _Products({}, {})
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Convolution"):
            continue
        weights, integers = zip(*(_origin(node.input_value(side)) for side in (0, 1)), strict=True)
        name = node.get_friendly_name().removesuffix("/WithoutBiases")  # a Gemm is read as a MatMul and an Add
        role: Role = "conv" if kind == "Convolution" else "gemm" if any(weights) else "attention"
        found.by_name[name] = _Source(role, any(integers))
        for weight in filter(None, weights):
            found.by_weight.setdefault(weight, []).append(name)
    return found


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
        self.weights = [_stored(value.get_node()) for value in values[1:2]]
        self.depths = [value.get_partial_shape()[rank - 1] for value, rank in zip(values, self.ranks, strict=True) if rank]


def _stored(node: Any) -> str:  # noqa: ANN401 (openvino.Node)
    """Name of the constant behind a layer that only brings it into another order."""
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _kernels(layer: _Layer, products: _Products) -> list[tuple[Kernel, int]]:
    """The products of a layer, each with its depth if it may be quantized at run time, else 0; or the layer itself."""
    names = [name for name in products.by_name if name in layer.names]
    if not names and layer.kind in _ROLES:  # symmetric activations: it is named after what was fused behind it
        owners = [products.by_weight.get(weight, []) for weight in layer.weights]
        names = [owner[0] for owner in owners if len(owner) == 1]
    if not names:
        float_ = _PRECISIONS.get(layer.precision, "int8" if layer.precision in _INTEGERS else "other")
        return [(Kernel("" if layer.kind in _ROLES else layer.name, layer.kind, _ROLES.get(layer.kind, "other"), float_), 0)]
    return [_kernel(layer, name, products.by_name[name], first=name == names[0]) for name in names]


def _kernel(layer: _Layer, name: str, source: _Source, *, first: bool) -> tuple[Kernel, int]:
    """One product of a layer, told by the types of what goes into it.

    A fused attention takes queries, keys, masks and values. Its probabilities stay inside; the engine takes values in int8
    only for a product in int8, so the values tell for both.
    """
    wide = [kind for kind, rank in zip(layer.types, layer.ranks, strict=True) if rank > 1]
    left, right = (wide[-1], wide[-1]) if source.role == "attention" and not first else (wide[0], wide[1])
    integers = left in _INTEGERS and right in _INTEGERS
    precision: Precision = "int8" if integers else _PRECISIONS.get(left, "other")
    depth = layer.depths[0].get_length() if not integers and right in _INTEGERS and source.role == "gemm" else 0
    return Kernel(name, layer.kind, source.role, precision, source.quantized and not integers), depth


def _quantizes(core: Any, depth: int, wanted: dict[str, Any]) -> bool:  # noqa: ANN401 (openvino.Core)
    """Whether a float input is quantized for int8 weights: beside large numbers, small ones then count for nothing."""
    small, large, rows = 1e-3, 1.0, 16
    ops = openvino.opset13
    pixels = ops.parameter([1, 2, depth], np.float32)
    weight = ops.multiply(ops.convert(ops.constant(np.ones((rows, depth), np.int8)), np.float32), np.ones((rows, 1), np.float32))
    model = openvino.Model([ops.matmul(pixels, weight, False, True)], [pixels], "probe")
    values = np.full((1, 2, depth), small, np.float32)
    values[..., ::rows] = large
    exact, without = float(values[0, 0].sum()), float((values[0, 0] == large).sum())
    found = float(core.compile_model(model, "CPU", wanted)([values])[0].flat[0])
    return found < (exact + without) / 2


class _SignalStack(ctypes.Structure):
    """stack_t of <signal.h>, as Linux has it."""

    _fields_ = (("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Give the thread its signal stack back.

    Compiling a model leaves a small alternate stack in place that is freed with the model. Python's handlers run on it, so
    the first Ctrl-C after the model is closed would be a segmentation fault instead of a KeyboardInterrupt.
    """
    call = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    before = _SignalStack()
    if call is None or call(None, ctypes.byref(before)) != 0:
        yield
        return
    try:
        yield
    finally:
        call(ctypes.byref(before), None)
