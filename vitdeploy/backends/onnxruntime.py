"""ONNX Runtime: the file on the CPU, in the precisions that are written in it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Outputs, Tensor, checked, only_cpu, only_f32, threads
from vitdeploy.errors import EnvironmentError_, library
from vitdeploy.graph.census import Kernel, Precision, Role
from vitdeploy.graph.nodes import Node, Nodes

_PROVIDER = "CPUExecutionProvider"
_MICROSOFT = "com.microsoft::"


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
_PRECISIONS: dict[str, Precision] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8"}


class OnnxRuntime:
    """Opens artifacts in ONNX Runtime."""

    name = "onnxruntime"

    def open(self, artifact: Artifact, config: OpenConfig) -> OnnxRuntimeRunner:
        """Load the file with all graph optimisations.

        Raises:
            UsageError: VD2011, another device than ``cpu`` or precision than ``f32``.
            EnvironmentError_: VD4004, the engine refused the model or the provider; VD4006, out of memory.
        """
        only_cpu(self.name, config)
        only_f32(self.name, config)
        return OnnxRuntimeRunner(artifact, threads(config))


class OnnxRuntimeRunner:
    """A session. Intra-operator threads as asked, operators one after the other: a ViT has no parallel branches."""

    def __init__(self, artifact: Artifact, count: int) -> None:
        with library("onnxruntime", artifact.model):
            session = onnxruntime.InferenceSession(str(artifact.model), _options(count), providers=[_PROVIDER])
        used = session.get_providers()
        if used != [_PROVIDER]:
            raise EnvironmentError_("VD4004", f"onnxruntime: uses {used} instead of {_PROVIDER}", file=artifact.model)
        self._session: Any = session
        self._artifact = artifact
        self._input = session.get_inputs()[0]
        self._names = [output.name for output in session.get_outputs()]
        self.settings: dict[str, Any] = {
            "backend": OnnxRuntime.name,
            "version": onnxruntime.__version__,
            "threads": count,
            "device": "cpu",
            "precision": artifact.record.precision,
        }

    @property
    def batch(self) -> int | None:
        """The batch written into the file, or None when it is dynamic."""
        first = self._input.shape[0]
        return first if isinstance(first, int) else None

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = checked(tensor, self._artifact.spec.input, self.batch)
        with library("onnxruntime", self._artifact.model):
            values = self._session.run(self._names, {self._input.name: pixels})
        return dict(zip(self._names, values, strict=True))

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`. The model is loaded once more, and written to a temporary folder as optimised.

        MatMulNBits counts as ``int8-dynamic`` where the file asks for it: whether this CPU has the kernel is not told, and
        without one (neither AVX2 nor Arm's dot product) it decompresses the weights and runs in float.
        """
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "model.onnx"
            options = _options(self.settings["threads"])
            options.optimized_model_filepath = str(optimised)
            # weights beside the graph: as one file it could not be larger than 2 GiB
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
            with library("onnxruntime", self._artifact.model):
                onnxruntime.InferenceSession(str(self._artifact.model), options, providers=[_PROVIDER])
            graph = Nodes(optimised)
        names = frozenset(node.name for node in Nodes(self._artifact.model).all)
        return tuple(_kernel(node, graph, names) for node in graph.all)

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _options(count: int) -> Any:  # noqa: ANN401 (onnxruntime.SessionOptions, which has no types)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what fails is raised; warnings about provider choice are noise here
    return options


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
    return Kernel(_source(node.name, names), kind, _role(kind, factors, graph), precision, dequantized and not integers)


def _source(name: str, names: frozenset[str]) -> str:
    """The source node's name: fusions keep that of the product and append their own, as in ``fc1/MatMul/MatMulAddFusion``."""
    while name and name not in names:
        name = name[: max(name.rfind("/"), name.rfind("_"), 0)]
    return name


def _role(kind: str, factors: list[str], graph: Nodes) -> Role:
    if "Conv" in kind:
        return "conv"
    weights = "Attention" not in kind and any(graph.constant(factor) for factor in factors)
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
