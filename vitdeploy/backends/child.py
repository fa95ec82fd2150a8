"""An engine in a process of its own: a model that crashes it, or a file that it can't stand, ends that process alone.

Engines parse files in native code, and each knows files that end the process. Here the engine runs in a child (see `isolate`):
tensors go there and come back as plain bytes, and a death is an error that names the engine, the signal, the memory and the
model. The child lives as long as the runner.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import msgspec
import numpy as np

from vitdeploy import isolate
from vitdeploy.artifact import Artifact, Record, sanitize
from vitdeploy.backends import table
from vitdeploy.backends.base import Kernel, OpenConfig, Outputs, Profile, Runner, Tensor, check_tensor
from vitdeploy.errors import MachineError, VitdeployError
from vitdeploy.files import temporary_folder
from vitdeploy.isolate import Child, Limits
from vitdeploy.machine import machine_mib, peak_mib
from vitdeploy.onnxfile import check
from vitdeploy.record import CompileProof

PATIENCE_S = 1800.0
"""How long an engine may take to open a model, to run one batch, or to tell its kernels, in seconds."""
FILE_MIB = 64 << 10
"""Largest file that an engine may write (a cache, an optimised copy of the graph), in MiB."""
_LEAST_MIB = 4096
"""Address space that an engine reserves without using it stays below this."""
_DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
_MOST_AXES = 8
T = TypeVar("T")


def open_in_child(name: str, artifact: Artifact, config: OpenConfig, seconds: float = PATIENCE_S) -> Runner:
    """Load a model, ready to run, in an engine that runs in a child process; the engine is not imported here.

    PyTorch reads no foreign files in native code and stays in this process. So does every engine when this process is such a
    child itself.

    Args:
        name: A backend of the table.
        artifact: The model.
        config: How it will run.
        seconds: Longest time for one call.

    Raises:
        VitdeployError: Whatever the backend raises; see `Backend.open`.
        UsageError: VD2009, no backend has that name; VD2013, the artifact is not for this engine, or has to be compiled first.
        InputError: VD3027, the ONNX file would crash the engine.
        TrustError: VD7001, VD7005, the ONNX file reaches outside itself.
        MachineError: VD4001, the engine is not installed; VD4007, it died; VD4008, it took too long.
    """
    table.require_installed(name)
    if name == table.REFERENCE or isolate.is_child():
        return table.load(name).open(artifact, config)
    table.require_fit(name, artifact)
    with ExitStack() as stack:
        artifact = repair(artifact, stack)
        child = start(name, artifact, config)
        stack.callback(child.close)
        opened = enter(child, name, artifact, config, seconds)
        return ChildRunner(child, opened, artifact, seconds, stack.pop_all())


def share_table() -> list[Any]:
    """The table of engines, for `take_table` in a child process that looks at it: engines may have been registered here."""
    return [msgspec.to_builtins(row) for row in table.TABLE.values()]


def take_table(rows: list[Any]) -> None:
    """The child's side of `share_table`."""
    table.register(msgspec.convert(rows, list[table.Engine]))


def repair(artifact: Artifact, stack: ExitStack) -> Artifact:
    """The artifact as engines may see it; a repaired copy lives as long as the stack.

    Raises:
        InputError: VD3027, the ONNX file would crash the engine.
        TrustError: VD7001, VD7005, it reaches outside itself.
    """
    if artifact.record.kind != "onnx" or not check.check_file(artifact.model).repairs:
        return artifact
    return sanitize(artifact, stack.enter_context(temporary_folder()))[0]


class Order(TypedDict):
    """What the child is told to open.

    Attributes:
        engine: A row of the table of engines, as JSON has it.
        folder: The artifact's.
        record: The artifact's, as JSON has it.
        config: An `OpenConfig`, as JSON has it.
        current: The parent's working folder.
    """

    engine: object
    folder: str
    record: object
    config: object
    current: str


class Header(TypedDict):
    """What the bytes of an array are.

    Attributes:
        dtype: NumPy's name of it.
        shape: Of each axis.
    """

    dtype: str
    shape: list[int]


class ProfileHeader(Header):
    """Of a batch, and how many times it is run."""

    runs: int


class Opened(NamedTuple):
    """What the child tells when its model is ready.

    Attributes:
        load_ms: Time to open the model, without importing the engine, in ms.
        settings: The runner's.
        batch: The runner's.
    """

    load_ms: float
    settings: dict[str, object]
    batch: int | None


def start(name: str, artifact: Artifact, config: OpenConfig, subject: str = f"{__name__}:Session") -> Child:
    """Start the child for a model; it begins to import at once.

    Args:
        name: The backend.
        artifact: The model.
        config: How it will run.
        subject: ``module:class`` of a `Session`.

    Raises:
        MachineError: VD4004, no process could be started.
    """
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(table.find_engine(name).package)
        return Child(subject, **_make_limits(f"{name} {version}", artifact, _find_cap(name, artifact, config)))
    return Child(subject, **_make_limits(name, artifact, _find_cap(name, artifact, config)))


def _make_limits(what: str, artifact: Artifact, cap: int | None) -> Limits:
    return {
        "memory_mib": cap,
        "file_mib": FILE_MIB,
        "what": what,
        "file": str(artifact.model),
        "smaller": "use a smaller batch or model, or free some memory",
        "longer": "use a smaller batch or model, or another engine",
        "instead": "use another engine (--backend), and report the model",
    }


def _find_cap(name: str, artifact: Artifact, config: OpenConfig) -> int | None:
    proof = artifact.record.proof
    return compute_memory_cap(name, config.device or (proof.run.device if isinstance(proof, CompileProof) else None))


def compute_memory_cap(name: str, device: object) -> int | None:
    """Address space for the child of an engine, in MiB; None where CUDA may be used.

    Args:
        name: The backend.
        device: What was asked for; None is its usual one.
    """
    if not table.find_engine(name).capped or str(device or "cpu").lower() != "cpu":
        return None
    # mapped weights, stacks and allocators' arenas count too: twice the memory stops what would take it down alone
    return max(_LEAST_MIB, 2 * int(machine_mib()))


def enter(child: Child, name: str, artifact: Artifact, config: OpenConfig, seconds: float) -> Opened:
    """Let the child open the model.

    Raises:
        VitdeployError: As `open_in_child`.
        InputError: VD3010, somebody changed its files since they were checked.
    """
    argument: Order = {
        "engine": msgspec.to_builtins(table.find_engine(name)),
        "folder": str(artifact.folder),
        "record": msgspec.to_builtins(artifact.record),
        "config": msgspec.to_builtins(config),
        "current": str(Path.cwd()),
    }
    answer, _ = child.ask("open", argument, seconds=seconds)
    artifact.require_unchanged()
    return convert(answer, Opened)


class ChildRunner:
    """A model in an engine in a child process; see `Runner`."""

    def __init__(self, child: Child, opened: Opened, artifact: Artifact, seconds: float, owned: ExitStack) -> None:
        self._child, self._seconds, self._owned = child, seconds, owned
        self._contract = artifact.spec.input
        self.settings = opened.settings
        self.batch = opened.batch

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`.

        Raises:
            VitdeployError: Whatever the engine raises.
            MachineError: VD4007, the engine died, now or before; VD4008, it took too long.
        """
        pixels = check_tensor(tensor, self._contract, self.batch)
        header: Header = {"dtype": str(pixels.dtype), "shape": list(pixels.shape)}
        answer, arrays = self._child.ask("run", header, [_bytes(pixels)], seconds=self._seconds)
        try:
            return {str(each["name"]): _array(each, raw) for each, raw in zip(answer, arrays, strict=True)}
        except (ValueError, TypeError, KeyError) as exc:
            raise _nonsense(exc) from exc

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`.

        Raises:
            VitdeployError: As `run`.
        """
        answer, _ = self._child.ask("kernels", seconds=self._seconds)
        return convert(answer, tuple[Kernel, ...])

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the time goes; see `Runner.profile`.

        Raises:
            VitdeployError: As `run`.
        """
        pixels = check_tensor(tensor, self._contract, self.batch)
        header: ProfileHeader = {"dtype": str(pixels.dtype), "shape": list(pixels.shape), "runs": runs}
        answer, _ = self._child.ask("profile", header, [_bytes(pixels)], seconds=self._seconds * (1 + runs))
        return convert(answer, Profile)

    def close(self) -> None:
        """End the child."""
        self._owned.close()


def convert(answer: object, kind: type[T]) -> T:
    """An answer as what it shall be.

    Raises:
        MachineError: VD4007, it is something else.
    """
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as exc:
        raise _nonsense(exc) from exc


def _nonsense(why: Exception) -> MachineError:
    return MachineError("VD4007", f"the engine's process gave an answer that makes no sense: {why}", fix="report this")


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def _array(header: Header, raw: bytearray) -> np.ndarray[Any, Any]:
    """The array that a header describes, on these bytes."""
    dtype, shape = header["dtype"], header["shape"]
    if dtype not in _DTYPES or len(shape) > _MOST_AXES or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"an array of {dtype} {shape}")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of {dtype} {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)


class Session:
    """The child's side: what holds the model there. Each method takes an argument and bytes, and returns such a pair."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._artifact: Artifact | None = None

    @property
    def runner(self) -> Runner:
        """What `open` has opened."""
        assert self._runner is not None
        return self._runner

    @property
    def artifact(self) -> Artifact:
        """The model that `open` has opened."""
        assert self._artifact is not None
        return self._artifact

    def open(self, argument: Order, _: list[bytearray]) -> tuple[object, list[memoryview]]:
        """Load the model; see `enter`."""
        os.chdir(argument["current"])  # paths in messages stay as they were written
        row = msgspec.convert(argument["engine"], table.Engine)
        table.register([row])
        engine = table.load(row.name)
        self._artifact = Artifact(Path(argument["folder"]), msgspec.convert(argument["record"], Record))
        config = msgspec.convert(argument["config"], OpenConfig)
        begun = time.perf_counter_ns()
        try:
            self._runner = engine.open(self._artifact, config)
        except VitdeployError as exc:
            raise _explain_memory(exc) from exc
        load_ms = (time.perf_counter_ns() - begun) / 1e6
        return [load_ms, self._runner.settings, self._runner.batch], []

    def run(self, header: Header, arrays: list[bytearray]) -> tuple[object, list[memoryview]]:
        """Run one batch; see `ChildRunner.run`."""
        try:
            outputs = self.runner.run(_array(header, arrays[0]))
        except VitdeployError as exc:
            raise _explain_memory(exc) from exc
        if odd := [name for name, array in outputs.items() if array.dtype.hasobject]:
            raise _nonsense(TypeError(f"{odd[0]!r} holds Python objects"))
        whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in outputs.items()}
        headers = [{"name": name, "dtype": str(array.dtype), "shape": list(array.shape)} for name, array in whole.items()]
        return headers, [_bytes(array) for array in whole.values()]

    def kernels(self, _: object, __: list[bytearray]) -> tuple[object, list[memoryview]]:
        """What runs; see `ChildRunner.kernels`."""
        return [list(kernel) for kernel in self.runner.kernels()], []

    def profile(self, header: ProfileHeader, arrays: list[bytearray]) -> tuple[object, list[memoryview]]:
        """Where the time goes; see `ChildRunner.profile`."""
        try:
            profile = self.runner.profile(_array(header, arrays[0]), header["runs"])
        except VitdeployError as exc:
            raise _explain_memory(exc) from exc
        return describe_profile(profile), []


def describe_profile(profile: Profile) -> list[object]:
    """A profile as lists and numbers, for `convert`."""
    return [profile.run_ms, [list(each) for each in profile.spent]]


_NO_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "cannot allocate memory", "can't allocate memory")


def _explain_memory(error: VitdeployError) -> VitdeployError:
    """A library's own words for want of memory become VD4006, with the figures."""
    if error.code != "VD4004" or not any(words in error.message.lower() for words in _NO_MEMORY):
        return error
    message = f"{error.message} (this process had used {peak_mib():.0f} MiB)"
    return MachineError("VD4006", message, file=error.file, fix="use a smaller batch or model, or free some memory")
