"""Inference engines by name. Looking at the table imports none of them; each engine is imported only in its own file."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, cast

from vitdeploy import isolate
from vitdeploy.errors import MachineError, UsageError, library, nearest, needs

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.backends.base import Backend


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
        target: ``module:class`` of the `Backend`.
        package: The engine's package, whose presence means that the backend can be used.
        extra: The extra of vitdeploy that brings it.
        compiled_only: Whether it opens only what it has compiled, and no ONNX artifact.
    """

    target: str
    package: str
    extra: str
    compiled_only: bool = False

    @property
    def fix(self) -> str:
        """What to do when it is not installed."""
        if self.package == "tensorrt":
            return (
                "on a Jetson use the system's TensorRT: python3 -m venv --system-site-packages, with the Python of the system; "
                "elsewhere run: pip install 'vitdeploy[tensorrt]'"
            )
        return f"run: pip install 'vitdeploy[{self.extra}]'"


TABLE: dict[str, Entry] = {
    "pytorch": Entry("vitdeploy.backends.pytorch:PyTorch", "torch", "export"),
    "onnxruntime": Entry("vitdeploy.backends.onnxruntime.backend:OnnxRuntime", "onnxruntime", "onnxruntime"),
    "openvino": Entry("vitdeploy.backends.openvino.backend:OpenVino", "openvino", "openvino"),
    "tensorrt": Entry("vitdeploy.backends.tensorrt.backend:TensorRt", "tensorrt", "tensorrt", True),
    "tensorrt-rtx": Entry("vitdeploy.backends.tensorrt.backend:TensorRtRtx", "tensorrt_rtx", "tensorrt-rtx", True),
}
"""Backend name to where it is. ``pytorch`` runs the original, the others the exported file, or what they made of it."""

REFERENCE = "pytorch"
"""The backend that the others are compared with."""


def backend(name: str) -> Backend:
    """The backend of that name, in this process; its engine is imported now.

    Raises:
        UsageError: VD2009, no backend has that name.
        MachineError: VD4001, its engine is not installed; VD4004, it can't be loaded (a shared library is missing).
    """
    return named(*_entry(name))


def named(target: str, package: str, extra: str, compiled_only: bool = False) -> Backend:
    """The backend of a row of the table; see `Entry` and `backend`."""
    module, _, attribute = target.partition(":")
    with library(package), needs(extra):
        return cast("Backend", getattr(importlib.import_module(module), attribute)())


def isolated(name: str) -> Backend:
    """The backend of that name, whose models live in child processes; its engine is not imported here.

    PyTorch reads no foreign files in native code and stays in this process. So does every engine when this process is such a
    child itself.

    Raises:
        UsageError: VD2009, no backend has that name.
        MachineError: VD4001, its engine is not installed.
    """
    entry = _entry(name)
    if not present(name):
        message = f"needs the package {entry.package!r}, which is not installed"
        raise MachineError("VD4001", message, fix=entry.fix)
    if name == REFERENCE or isolate.inside():
        return backend(name)
    from vitdeploy.backends.child import RemoteBackend

    return RemoteBackend(name)


def fitting(name: str, artifact: Artifact) -> None:
    """Refuse an artifact that was compiled for another engine, or has to be compiled first.

    Raises:
        UsageError: VD2013.
    """
    kind = artifact.record.kind
    if kind not in ("onnx", name) and name != REFERENCE:
        fix = f"use --backend {kind}, or compile the ONNX artifact for {name}"
        raise UsageError("VD2013", f"was compiled for {kind}, not for {name}", file=artifact.model, fix=fix)
    if kind == "onnx" and _entry(name).compiled_only:
        fix = f"run: vitdeploy compile ARTIFACT --backend {name}"
        raise UsageError("VD2013", f"has to be compiled before {name} can run it", file=artifact.model, fix=fix)


def installed() -> tuple[str, ...]:
    """Names of the backends that open ONNX artifacts and whose engine is installed, in the table's order.

    No engine is imported.
    """
    return tuple(name for name, entry in TABLE.items() if not entry.compiled_only and present(name))


def compilers() -> tuple[str, ...]:
    """Names of the backends that make engines and are installed, in the table's order. No engine is imported."""
    return tuple(name for name in TABLE if name != REFERENCE and present(name))


def present(name: str) -> bool:
    """Whether the package of that backend is installed. It is not imported."""
    return find_spec(TABLE[name].package) is not None


def _entry(name: str) -> Entry:
    if name not in TABLE:
        fix = nearest(name, TABLE) or f"choose from: {', '.join(TABLE)}"
        raise UsageError("VD2009", f"there is no backend {name!r}", fix=fix)
    return TABLE[name]
