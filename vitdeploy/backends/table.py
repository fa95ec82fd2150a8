"""Inference engines by name, and what each is and does: the one place that the rest of the package asks.

A new engine is one folder that implements the protocols of `vitdeploy.backends.base`, and one row here; nothing outside of this
room knows an engine's name. Looking at the table imports no engine: each is imported only in its own file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vitdeploy.errors import LOADING, InputError, MachineError, UsageError, library, nearest, needs
from vitdeploy.words import PORTABLE

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.backends.base import Backend, Observer


class Heads(NamedTuple):
    """The attentions for which an engine has one kernel in 8 bits; others are faster in floats.

    Attributes:
        sizes: Channels that a head may have; empty for any.
        multiple: What the channels must be a multiple of.
        most_channels: Largest number of channels; None without an end.
        most_tokens: Largest number of tokens; None without an end.
    """

    sizes: tuple[int, ...] = ()
    multiple: int = 1
    most_channels: int | None = None
    most_tokens: int | None = None


class Target(NamedTuple):
    """What an engine reads of a file that `quantize` writes for it.

    Attributes:
        precisions: Values of `QuantizeConfig.precision` that it has a form of.
        attention: Those in which the products inside attention can be quantized too, and for which heads.
        symmetric: Zero points of activations must be 0.
        half: What is not quantized shall be FP16; layers that are left out, too.
        integer_products: It has operators of its own for integer products, and takes MatMulInteger.
        integer_bias: It knows the Q/DQ of a product of two matrices only by an int32 bias.
        raw_pixels: The first layer can be quantized on raw pixels, with the normalisation inside.
        signed_on_arm: On Arm, activations are int8 and not uint8.
    """

    precisions: tuple[str, ...]
    attention: tuple[tuple[str, Heads], ...] = ()
    symmetric: bool = False
    half: bool = False
    integer_products: bool = False
    integer_bias: bool = False
    raw_pixels: bool = False
    signed_on_arm: bool = False

    def find_heads(self, precision: str) -> Heads | None:
        """The attentions whose products can be quantized to a precision; None where none can."""
        return dict(self.attention).get(precision)


class Engine(NamedTuple):
    """One row of the table.

    Attributes:
        name: As people write it, and as records name what it has compiled.
        backend: ``module:class`` of the `Backend`.
        package: The engine's package, whose presence means that the backend can be used.
        extra: The extra of vitdeploy that brings it.
        install: What to do when it is not installed, where that is more than the extra.
        target: What it reads of quantized files; None where `quantize` does not write for it.
        reads: The target whose files it reads, where that is another engine's.
        compiles: Whether it is a `Compiler`.
        compiled_only: Whether it opens only what it has compiled, and no ONNX artifact.
        compiles_anywhere: Whether it compiles where its device is not; what it makes there is kept, unaudited.
        capped: Whether its address space can be limited: on the CPU it reserves in proportion to what it uses.
        floats: What its float parts can be asked to compute in, where the device can.
        observer: ``module:class`` of its `Observer`, if it has one.
        command: ``module:function`` that writes the command line of the engine's own builder, if it has one.
    """

    name: str
    backend: str
    package: str
    extra: str
    install: str = ""
    target: Target | None = None
    reads: str = ""
    compiles: bool = True
    compiled_only: bool = False
    compiles_anywhere: bool = False
    capped: bool = False
    floats: tuple[str, ...] = ("f32",)
    observer: str = ""
    command: str = ""

    @property
    def fix(self) -> str:
        """What to do when it is not installed."""
        return self.install or f"run: pip install 'vitdeploy[{self.extra}]'"

    @property
    def quantize_target(self) -> str:
        """What ``quantize --backend`` writes files for it."""
        return self.reads or self.name


_JETSON = (
    "on a Jetson use the system's TensorRT: python3 -m venv --system-site-packages, with the Python of the system; "
    "elsewhere run: pip install 'vitdeploy[tensorrt]'"
)
ANY_HEADS = Heads()
TENSORRT_INT8 = Heads(sizes=(16, 32, 64), most_tokens=512)
TENSORRT_FP8 = Heads(multiple=16, most_channels=256)
"""Attention in 8 bits is both products in one kernel, or slower than FP16.

Source: https://github.com/NVIDIA/TensorRT/issues/2981, https://github.com/NVIDIA/TensorRT/issues/3724;
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html
"""
_ROWS = (
    Engine(
        "pytorch",
        "vitdeploy.backends.pytorch:PyTorch",
        "torch",
        "export",
        compiles=False,
        floats=("f32", "bf16"),
    ),
    Engine(
        "onnxruntime",
        "vitdeploy.backends.onnxruntime.backend:OnnxRuntime",
        "onnxruntime",
        "onnxruntime",
        target=Target(
            ("int8", "fp16", "int8-dynamic", "int8-weight-only"), integer_products=True, integer_bias=True, signed_on_arm=True
        ),
        capped=True,
        observer="vitdeploy.backends.onnxruntime.observer:OnnxRuntimeObserver",
    ),
    Engine(
        "openvino",
        "vitdeploy.backends.openvino.backend:OpenVino",
        "openvino",
        "openvino",
        target=Target(
            ("int8", "fp16", "bf16", "int8-dynamic", "int8-weight-only"), attention=(("int8", ANY_HEADS),), raw_pixels=True
        ),
        capped=True,
        floats=("f32", "bf16", "f16"),
    ),
    Engine(
        "tensorrt",
        "vitdeploy.backends.tensorrt.backend:TensorRt",
        "tensorrt",
        "tensorrt",
        install=_JETSON,
        command="vitdeploy.backends.tensorrt.trtexec:write_command",
        target=Target(
            ("int8", "fp8", "fp16"), attention=(("int8", TENSORRT_INT8), ("fp8", TENSORRT_FP8)), symmetric=True, half=True
        ),
        compiled_only=True,
    ),
    Engine(
        "tensorrt-rtx",
        "vitdeploy.backends.tensorrt.backend:TensorRtRtx",
        "tensorrt_rtx",
        "tensorrt-rtx",
        reads="tensorrt",
        compiled_only=True,
        compiles_anywhere=True,
    ),
)
TABLE: dict[str, Engine] = {row.name: row for row in _ROWS}
"""Name to row. The order counts: where one engine has to be chosen, it is the first that will do."""

REFERENCE = "pytorch"
"""What runs the original network; the others, which run the exported file or what they made of it, are compared with it."""
PROVER = "onnxruntime"
"""What exported and rewritten graphs are run and observed in before they are accepted; `quantize` writes for it by default."""


def register(rows: Iterable[Engine]) -> None:
    """Add engines that are not shipped, for this process; the children that it starts learn of them."""
    TABLE.update({row.name: row for row in rows})


def find_engine(name: str) -> Engine:
    """The row of an engine.

    Raises:
        UsageError: VD2009, no backend has that name.
    """
    if name not in TABLE:
        fix = nearest(name, TABLE) or f"choose from: {', '.join(TABLE)}"
        raise UsageError("VD2009", f"there is no backend {name!r}", fix=fix)
    return TABLE[name]


def load(name: str) -> Backend:
    """The backend of that name, in this process; its engine is imported now.

    Raises:
        UsageError: VD2009, no backend has that name.
        MachineError: VD4001, its engine is not installed; VD4004, it can't be loaded (a shared library is missing).
    """
    row = find_engine(name)
    with library(row.package, seam=LOADING), needs(row.extra):
        return cast("Backend", find_named(row.backend)())


def open_observer(*given: Any, **settings: Any) -> Observer:  # noqa: ANN401 (as `Observer` is made)
    """Open a model so that the tensors inside it can be seen; see `Observer`.

    Raises:
        MachineError: VD4001, the engine is not installed; and what `Observer` raises.
    """
    row = TABLE[PROVER]
    with library(row.package, seam=LOADING), needs(row.extra):
        observer = find_named(row.observer)
    return cast("Observer", observer(*given, **settings))


def is_installed(name: str) -> bool:
    """Whether the package of that backend is installed. It is not imported."""
    return find_spec(TABLE[name].package) is not None


def require_installed(name: str) -> None:
    """Refuse a backend whose engine is not installed. No engine is imported.

    Raises:
        UsageError: VD2009, no backend has that name.
        MachineError: VD4001, its engine is not installed.
    """
    row = find_engine(name)
    if not is_installed(name):
        raise MachineError("VD4001", f"needs the package {row.package!r}, which is not installed", fix=row.fix)


def list_openers() -> tuple[str, ...]:
    """Names of the backends that open ONNX artifacts and whose engine is installed. No engine is imported."""
    return tuple(name for name, row in TABLE.items() if not row.compiled_only and is_installed(name))


def list_engines() -> tuple[str, ...]:
    """`list_openers` without the one that runs the original."""
    return tuple(name for name in list_openers() if name != REFERENCE)


def list_compilers() -> tuple[str, ...]:
    """Names of the backends that make engines, installed or not."""
    return tuple(name for name, row in TABLE.items() if row.compiles)


def list_packages() -> tuple[str, ...]:
    """The packages of all engines but the original's."""
    return tuple(row.package for name, row in TABLE.items() if name != REFERENCE)


def require_fit(name: str, artifact: Artifact) -> None:
    """Refuse an artifact that was compiled for another engine, or has to be compiled first.

    Raises:
        InputError: VD3010, it was compiled for an engine that is not in the table.
        UsageError: VD2009, no backend has that name; VD2013.
    """
    row, kind = find_engine(name), artifact.record.kind
    require_known(artifact)
    if kind not in ("onnx", name) and name != REFERENCE:
        fix = f"use --backend {kind}, or compile the ONNX artifact for {name}"
        raise UsageError("VD2013", f"was compiled for {kind}, not for {name}", file=artifact.model, fix=fix)
    if kind == "onnx" and row.compiled_only:
        fix = f"run: vitdeploy compile ARTIFACT --backend {name} -o OUT"
        raise UsageError("VD2013", f"has to be compiled before {name} can run it", file=artifact.model, fix=fix)


def require_known(artifact: Artifact) -> None:
    """Refuse an artifact that was made for an engine that is not in the table.

    Raises:
        InputError: VD3010.
    """
    if artifact.engine is not None and artifact.engine not in TABLE:
        message = f"was made for the engine {artifact.engine!r}, which this vitdeploy does not know"
        raise InputError("VD3010", message, file=artifact.folder, fix=f"make it again for one of: {', '.join(TABLE)}")


def must_be_compiled(artifact: Artifact) -> bool:
    """Whether an ONNX artifact was made for an engine that opens only what it has compiled."""
    row = TABLE.get(artifact.engine or "")
    return artifact.record.kind == "onnx" and row is not None and row.compiled_only


def list_targets() -> tuple[str, ...]:
    """What `quantize` writes for: names of engines, and what all of them read."""
    return (*(name for name, row in TABLE.items() if row.target is not None), PORTABLE)


def list_judges(target: str | None) -> tuple[str, ...]:
    """Engines in which a quantized file for a target is tried before it is accepted, as far as they are installed."""
    readers = list_targets()[:-1] if target == PORTABLE else (target or PROVER,)
    return tuple(name for name in readers if name in list_openers())


def find_target(name: str | None) -> Target:
    """What a target reads; None is the usual one.

    Raises:
        UsageError: VD2009, there is no such target.
    """
    name = name or PROVER
    if name == PORTABLE:
        return read_by_all([row.target for row in TABLE.values() if row.target is not None])
    if name not in list_targets():
        fix = nearest(name, list_targets()) or f"choose from: {', '.join(list_targets())}"
        raise UsageError("VD2009", f"there is no target {name!r}", fix=fix)
    target = TABLE[name].target
    assert target is not None
    return target


def read_by_all(targets: Iterable[Target]) -> Target:
    """What several targets have in common: what one of them needs is needed, what one of them lacks is lacking."""
    first, *others = targets
    for other in others:
        first = Target(
            precisions=tuple(each for each in first.precisions if each in other.precisions),
            attention=tuple(each for each in first.attention if other.find_heads(each[0]) is not None),
            symmetric=first.symmetric or other.symmetric,
            half=first.half and other.half,
            integer_products=first.integer_products and other.integer_products,
            integer_bias=first.integer_bias or other.integer_bias,
            raw_pixels=first.raw_pixels and other.raw_pixels,
            signed_on_arm=first.signed_on_arm and other.signed_on_arm,
        )
    return first


def find_named(name: str) -> Any:  # noqa: ANN401 (a class or function of an engine's own)
    """What a row names as ``module:name``; its module is imported now."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
