"""The engine's Python module: which one there is, its version, and what it says while it works.

TensorRT and TensorRT-RTX have the same Python API under two names. Everything else in this package takes the module as an
argument and imports neither, so the same code runs with all of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vitdeploy.errors import MachineError, first_line

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Backend name to the Python module."""
OLDEST = (10, 3)
"""The TensorRT of JetPack 6.1."""
_FIX = {
    "tensorrt": (
        "on a Jetson use the system's TensorRT: python3 -m venv --system-site-packages, with the Python of the system; elsewhere "
        "run: pip install tensorrt"
    ),
    "tensorrt-rtx": "run: pip install tensorrt-rtx",
}
_SEVERITIES = ("error", "error", "warning", "info", "verbose")  # internal errors are errors
_LOGS: dict[str, Log] = {}


class Message(NamedTuple):
    """Something that the engine said.

    Attributes:
        severity: ``error``, ``warning`` or ``info``.
        text: Its words.
    """

    severity: str
    text: str


class Log:
    """Collects what a module says.

    The native library takes the first logger of a process and ignores all later ones while anything that was made with the
    first is alive, so there is one for each module, made by `log` and never freed.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
    """

    def __init__(self, module: Any) -> None:  # noqa: ANN401 (a library without types)
        self._listeners: list[list[Message]] = []
        self.native: Any = _native(module, self)
        """What the module's constructors take as their logger."""

    @contextmanager
    def listening(self) -> Iterator[list[Message]]:
        """Yields: A list that grows with everything said inside the block; verbose messages are left out."""
        said: list[Message] = []
        self._listeners.append(said)
        try:
            yield said
        finally:
            self._listeners = [other for other in self._listeners if other is not said]

    def take(self, severity: object, text: object) -> None:
        """Called by native code, from any of its threads: must never raise."""
        place = getattr(severity, "value", None)
        name = _SEVERITIES[place] if isinstance(place, int) and 0 <= place < len(_SEVERITIES) else "info"
        if name != "verbose":
            for said in self._listeners:
                said.append(Message(name, str(text)))


def load(name: str) -> Any:  # noqa: ANN401 (a library without types)
    """Import the module of a backend.

    Args:
        name: ``tensorrt`` or ``tensorrt-rtx``.

    Raises:
        MachineError: VD4001, it is not installed or too old; VD4004, it is, but can't be loaded.
    """
    try:
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as exc:
        message = f"needs the package {exc.name!r}, which this Python ({sys.executable}) does not have"
        raise MachineError("VD4001", message, fix=_FIX[name]) from exc
    except (ImportError, OSError) as exc:  # installed without its libraries, or for another CUDA
        message = f"the package {MODULES[name]!r} can't be loaded: {first_line(exc)}"
        raise MachineError("VD4004", message, fix=_FIX[name]) from exc
    present = version(module)
    if not is_rtx(module) and present < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        message = f"TensorRT {'.'.join(map(str, present))} is installed, {wanted} or later is needed"
        raise MachineError("VD4001", message, fix="update JetPack, or TensorRT")
    return module


def version(module: Any) -> tuple[int, ...]:  # noqa: ANN401
    """The module's version, as numbers: ``(10, 3, 0)``."""
    parts = str(getattr(module, "__version__", "")).split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def is_rtx(module: Any) -> bool:  # noqa: ANN401
    """Whether a module is TensorRT-RTX, which compiles without a GPU and for several at once."""
    return "rtx" in str(module.__name__)


def log(module: Any) -> Log:  # noqa: ANN401
    """The one log of a module in this process."""
    name = str(module.__name__)
    if name not in _LOGS:
        _LOGS[name] = Log(module)
    return _LOGS[name]


def _native(module: Any, log: Log) -> Any:  # noqa: ANN401
    """An object of the module's own logger class that hands everything on."""

    def start(self: Any) -> None:  # noqa: ANN401
        module.ILogger.__init__(self)  # pybind11 wants its own constructor called

    def take(_: Any, severity: object, text: object) -> None:  # noqa: ANN401
        log.take(severity, text)

    return type("Logger", (module.ILogger,), {"__init__": start, "log": take})()


def make_profiler(module: Any, heard: dict[str, float]) -> Any:  # noqa: ANN401
    """An object of the module's own profiler class that adds each layer's milliseconds to ``heard``, in order of execution."""

    def start(self: Any) -> None:  # noqa: ANN401
        module.IProfiler.__init__(self)  # pybind11 wants its own constructor called

    def report_layer_time(_: Any, name: object, ms: float) -> None:  # noqa: ANN401
        heard[str(name)] = heard.get(str(name), 0.0) + ms

    return type("Profiler", (module.IProfiler,), {"__init__": start, "report_layer_time": report_layer_time})()
