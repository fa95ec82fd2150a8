"""Inference engines by name. Looking at the table imports none of them; each engine is imported only in its own file."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import NamedTuple, cast

from vitdeploy.backends.base import Backend
from vitdeploy.errors import UsageError, library, nearest, needs


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
        target: ``module:class`` of the `Backend`.
        package: The engine's package, whose presence means that the backend can be used.
        extra: The extra of vitdeploy that brings it.
    """

    target: str
    package: str
    extra: str


TABLE: dict[str, Entry] = {
    "pytorch": Entry("vitdeploy.backends.pytorch:PyTorch", "torch", "export"),
    "onnxruntime": Entry("vitdeploy.backends.onnxruntime:OnnxRuntime", "onnxruntime", "onnxruntime"),
    "openvino": Entry("vitdeploy.backends.openvino:OpenVino", "openvino", "openvino"),
}
"""Backend name to where it is. ``pytorch`` runs the original, the others the exported file."""

REFERENCE = "pytorch"
"""The backend that the others are compared with."""


def backend(name: str) -> Backend:
    """The backend of that name; its engine is imported now.

    Raises:
        UsageError: VD2009, no backend has that name.
        EnvironmentError_: VD4001, its engine is not installed; VD4004, it can't be loaded (a shared library is missing).
    """
    if name not in TABLE:
        fix = nearest(name, TABLE) or f"choose from: {', '.join(TABLE)}"
        raise UsageError("VD2009", f"there is no backend {name!r}", fix=fix)
    entry = TABLE[name]
    module, _, attribute = entry.target.partition(":")
    with library(entry.package), needs(entry.extra):
        return cast(Backend, getattr(importlib.import_module(module), attribute)())


def installed() -> tuple[str, ...]:
    """Names of the backends whose engine is installed, in the table's order. No engine is imported."""
    return tuple(name for name, entry in TABLE.items() if find_spec(entry.package) is not None)
