"""What a built engine says of itself: which products run in which precision, and whether attention is one kernel.

The engine inspector writes JSON. Its documentation says how to ask for it and that "the amount of information depends on the
profiling verbosity"; the fields of a layer are known from what engines print. Read here are ``Name``, ``LayerType``,
``TacticName``, ``Metadata`` (``[ONNX Layer: name]``, several in a row with or without a separator), ``Weights.Type`` and, of
``Inputs`` and ``Outputs``, ``Dimensions`` with ``Format/Datatype`` (or ``Datatype``, ``DataType``, ``Format``). All may be
missing, and a layer may be a bare string.

Executed so far: on documents written after published samples of TensorRT 8.2, 10.0 and 10.3 and after the migration guide to 11
(``Bindings`` became ``I/O Tensors``), never on the answer of a real engine.

Source: NVIDIA TensorRT documentation, "Engine Inspector", and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x";
samples in github.com/NVIDIA/TensorRT issues 4020 and 2260 and in tools/experimental/trt-engine-explorer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple, cast

from vitdeploy.backends.base import Kernel, Precision, Role
from vitdeploy.errors import MachineError, library
from vitdeploy.onnxfile.nodes import read_nodes

_METADATA = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PRODUCT = re.compile(r"(?:^|[/._ ])(?:matmul|gemm|conv|conv2d|linear|einsum|attention)(?:_\d+)?$", re.IGNORECASE)
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")
_FUSED = re.compile(r"gem[mv]_mha|fmha|mha_v\d", re.IGNORECASE)
"""In the names of kernels that are a whole attention."""
_TYPES = (
    ("int8", ("int8",)),
    ("fp8", ("fp8", "float8", "e4m3", "e5m2")),
    ("bf16", ("bf16", "bfloat")),
    ("fp16", ("half", "fp16", "float16")),
    ("fp32", ("float", "fp32", "tf32")),
)
"""Precision to the words for it in the text of a format, tried in this order: ``BFloat16`` has ``float`` in it, too."""
_OPERANDS = {
    "i8": "int8", "s8": "int8", "u8": "int8", "e4m3": "fp8", "e5m2": "fp8",
    "bf16": "bf16", "f16": "fp16", "tf32": "fp32", "f32": "fp32",
}  # fmt: skip
_TYPE = r"(bf16|tf32|e4m3|e5m2|f16|f32|i32|s32|i8|s8|u8)"
_TACTIC = re.compile(rf"_{_TYPE}{_TYPE}_{_TYPE}{_TYPE}(?:_|$)")
"""Types in a kernel's name: of the left factor and the result, of the right factor and the sum, as in ``i8i8_i8i32_f32``."""
_CENSUS = ("int8", "fp8", "fp32", "fp16", "bf16")
_FLOATS = ("fp32", "fp16", "bf16")
_OPAQUE = "ForeignNode"
"""A part of the graph that the compiler took as a whole and says nothing of."""


class Value(NamedTuple):
    """An input or output of a layer.

    Attributes:
        precision: ``int8``, ``fp8``, ``bf16``, ``fp16``, ``fp32``; "" when the document does not say, or for other types.
        shape: Sizes, -1 for one that may vary; empty when unknown.
    """

    precision: str
    shape: tuple[int, ...]


class Layer(NamedTuple):
    """A layer of an engine.

    Attributes:
        name: The engine's name for it.
        kind: Its type.
        tactic: Name of the kernel, "" when unknown.
        weights: Precision of its weights, "" when unknown.
        inputs: What it reads.
        outputs: What it writes.
        sources: Names of the ONNX nodes that it computes.
    """

    name: str
    kind: str = ""
    tactic: str = ""
    weights: str = ""
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """What it multiplies in: as its kernel's name says, else its weights, else its inputs."""
        named = _TACTIC.search(self.tactic)
        if named:
            factors = {_OPERANDS.get(named[1], ""), _OPERANDS.get(named[3], "")}
            return factors.pop() if len(factors) == 1 else ""
        if self.weights and (self.weights != "int8" or not self.inputs or self._reads("int8")):
            return self.weights
        return next((name for name, _ in _TYPES if self._reads(name)), "")

    @property
    def is_attention(self) -> bool:
        """Whether it is a whole attention: both products with the softmax between them."""
        if _FUSED.search(f"{self.kind} {self.name} {self.tactic}") or "attention" in self.kind.lower():
            return True
        softmax = any("softmax" in source.lower().rpartition("/")[2] for source in self.sources)
        return softmax and len(self.products) == 2

    @property
    def is_product(self) -> bool:
        """Whether it multiplies matrices or convolves, going by its type, its name or its kernel's."""
        kind, name = self.kind.lower(), self.name
        if kind == "reformat" or _OPAQUE in name:
            return False
        if any(word in kind for word in ("gemm", "matrixmultiply", "matmul", "fullyconnected", "convolution", "caskconv")):
            return True
        return self.is_attention or name.startswith(("_gemm", "__myl_Fc")) or bool(_TACTIC.search(self.tactic))

    @property
    def products(self) -> tuple[str, ...]:
        """Names of the products of the ONNX graph that it computes."""
        return tuple(source for source in self.sources if _PRODUCT.search(source))

    @property
    def role(self) -> Role:
        """Of a product."""
        if self.is_attention or self._multiplies_activations():
            return "attention"
        if self.products:
            return "conv" if all("conv" in name.lower().rpartition("/")[2] for name in self.products) else "gemm"
        return "conv" if "conv" in self.kind.lower() else "gemm"

    @property
    def is_quantized(self) -> bool:
        """Whether its inputs were quantized: it reads 8 bits, or does the dequantizing itself."""
        return self._reads("int8") or self._reads("fp8") or any("dequantizelinear" in source.lower() for source in self.sources)

    def _reads(self, precision: str) -> bool:
        return any(value.precision == precision for value in self.inputs)

    def _multiplies_activations(self) -> bool:
        """Whether two inputs have several matrices each, one by one the factors of the output's."""
        if not self.outputs:
            return False
        result = self.outputs[0].shape[-2:]
        stacks = [value.shape for value in self.inputs if len(value.shape) >= 3 and math.prod(value.shape[:-2]) not in (0, 1)]
        for at, left in enumerate(stacks):
            for right in (*stacks[:at], *stacks[at + 1 :]):
                plain = right[-2] == left[-1] and result == (left[-2], right[-1])
                turned = right[-1] == left[-1] and result == (left[-2], right[-2])
                if left[:-2] == right[:-2] and (plain or turned):
                    return True
        return False


def layers(text: str) -> tuple[Layer, ...]:
    """The layers in the inspector's JSON, or in the file of ``trtexec --exportLayerInfo``, in their order.

    Raises:
        MachineError: VD4004, it is not such a document.
    """
    try:
        # not strict: names are written as they are, with the control characters that separate them
        document = json.loads(text, strict=False)
    except (ValueError, RecursionError) as exc:
        raise MachineError("VD4004", f"TensorRT's inspector wrote no JSON: {exc}") from exc
    listed = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise MachineError("VD4004", "TensorRT's inspector wrote no list of layers")
    return tuple(_layer(layer) for layer in listed)


def inspect(module: Any, engine: Any) -> tuple[Layer, ...]:  # noqa: ANN401 (a library without types)
    """The layers of an engine, with a dynamic batch as they are for the usual one.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        engine: Its ``ICudaEngine``.

    Raises:
        MachineError: VD4004, the engine did not answer.
    """
    with library("tensorrt"):
        inspector = engine.create_engine_inspector()
        context = _context(module, engine)
        if context is not None:
            inspector.execution_context = context
        text = inspector.get_engine_information(module.LayerInformationFormat.JSON)
    return layers(str(text))


def roles(onnx: Path) -> dict[str, Role]:
    """The products of an ONNX file, by the names of their nodes.

    Raises:
        InputError: VD3011, the file is not a whole ONNX model.
    """
    graph, roles = read_nodes(onnx), dict[str, Role]()
    for node in graph.all:
        if node.operator in _PRODUCTS:
            weights = any(graph.is_constant(value) for value in node.inputs[:2])
            roles[node.name] = "conv" if node.operator.startswith("Conv") else "gemm" if weights else "attention"
    return roles


def kernels(layers: Iterable[Layer], known: Mapping[str, Role] | None = None) -> tuple[Kernel, ...]:
    """What runs, for the census: a kernel for each product that a layer computes, under the name of its ONNX node.

    A whole attention without names counts as two products, which it is.

    Args:
        layers: Every layer.
        known: What `roles` returned for the ONNX file; None goes by the names of nodes.
    """
    everything = tuple(layers)
    named = [tuple(name for name in layer.sources if name in known) if known else layer.products for layer in everything]
    done = {name for layer, names in zip(everything, named, strict=True) if layer.is_product for name in names}
    made: list[Kernel] = []
    for layer, names in zip(everything, named, strict=True):
        made += _kernels(layer, names, known or {}, done)
    return tuple(made)


def summary(module: Any, engine: Any) -> dict[str, object]:  # noqa: ANN401
    """Counts for the record, as builtins.

    Args:
        module: As `inspect` takes it.
        engine: Likewise.

    Returns:
        ``layers`` how many; ``detailed`` whether the engine was built to tell more than names; ``opaque`` layers that stand for
        a part of the graph of which nothing is told; ``reformats`` that only move numbers; ``gemms`` and ``convs``, precision
        to how many; ``attention`` with ``fused`` (precision to how many) and ``products`` of activations outside such ones.
        A precision that is not told is ``unknown``.

    Raises:
        MachineError: VD4004, the engine did not answer.
    """
    return count(inspect(module, engine))


def count(layers: Iterable[Layer]) -> dict[str, object]:
    """What `summary` returns, of layers that were read already."""
    everything = tuple(layers)
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("gemm", "conv", "fused", "attention")}
    for layer in everything:
        if layer.is_product:
            counts["fused" if layer.is_attention else layer.role][layer.precision or "unknown"] += 1
    return {
        "layers": len(everything),
        "detailed": any(layer.kind for layer in everything),
        "opaque": sum(_OPAQUE in layer.name for layer in everything),
        "reformats": sum(layer.kind == "Reformat" for layer in everything),
        "gemms": dict(counts["gemm"]),
        "convs": dict(counts["conv"]),
        "attention": {"fused": dict(counts["fused"]), "products": dict(counts["attention"])},
    }


def _context(module: Any, engine: Any) -> Any:  # noqa: ANN401
    """A context at the usual sizes: without one, formats are told as "N/A due to dynamic shapes". None where there is no need."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
    dynamic = [name for name in inputs if min(engine.get_tensor_shape(name), default=0) < 0]
    if not dynamic:
        return None
    # of no memory of its own, as nothing is run
    context: Any = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
    for name in dynamic if context is not None else ():
        context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))
    return context


def _kernels(layer: Layer, names: Sequence[str], known: Mapping[str, Role], done: AbstractSet[str]) -> Iterator[Kernel]:
    """The kernels of one layer; ``done`` are products that some layer of a product's type computes."""
    kind, precision = layer.kind or "layer", layer.precision
    exact = cast(Precision, precision if precision in _CENSUS else "other")
    fallback = exact in _FLOATS and layer.is_quantized
    if layer.is_product:
        for name in names or ("",) * (2 if layer.is_attention else 1):
            yield Kernel(name, kind, known.get(name, layer.role), exact, fallback)
        return
    inside = [] if _OPAQUE in layer.name else [name for name in names if name not in done]
    for name in inside:  # part of a generated kernel, and of no other
        yield Kernel(name, kind, known.get(name, layer.role), exact, fallback)
    if not inside:
        yield Kernel(layer.name, kind, "other", exact)


def _layer(item: object) -> Layer:
    """One entry of the list; what is not of the form that is known is left out."""
    if not isinstance(item, dict):
        return Layer(str(item))
    weights = item.get("Weights")
    return Layer(
        name=_text(item, "Name"),
        kind=_text(item, "LayerType"),
        tactic=_text(item, "TacticName"),
        weights=_precision(_text(weights, "Type")) if isinstance(weights, dict) else "",
        inputs=_values(item.get("Inputs")),
        outputs=_values(item.get("Outputs")),
        sources=tuple(dict.fromkeys(name.strip() for name in _METADATA.findall(_text(item, "Metadata")))),
    )


def _values(items: object) -> tuple[Value, ...]:
    return tuple(_value(item) for item in items if isinstance(item, dict)) if isinstance(items, list) else ()


def _value(item: Mapping[str, object]) -> Value:
    words = (_text(item, key) for key in ("Format/Datatype", "Datatype", "DataType", "Format"))
    shape = item.get("Dimensions")
    sizes = shape if isinstance(shape, list) and all(isinstance(size, int) for size in shape) else []
    return Value(next((precision for word in words if (precision := _precision(word))), ""), tuple(sizes))


def _precision(text: str) -> str:
    """The precision that a text names, "" for none that multiplies."""
    words = text.lower().replace("uint8", "")  # pixels: nothing multiplies in it
    return next((name for name, marks in _TYPES if any(mark in words for mark in marks)), "")


def _text(item: Mapping[str, object], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""
