"""A CUDA device through ctypes and libcudart alone: memory, one stream's work, events, graphs. No torch, no CuPy, no compiler.

Executed so far: loading the libcudart of CUDA 12.6 and 13, finding every function in it, and its answer where there is no
driver. What needs a GPU ran against a fake device only, never on a GPU.

Source: CUDA Runtime API of CUDA 12 and 13 (names, signatures and error numbers are the same in both for what is used here);
CUDA Driver API for `cuDeviceGetName`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.backends.tensorrt.device import Cuda, Device, Memory, Versions
from vitdeploy.errors import MachineError, first_line

__all__ = ["LIBRARIES", "Cuda", "Device", "Found", "LibCudart", "Memory", "Versions", "find", "require"]

LIBRARIES = ("libcudart.so.12", "libcudart.so.13")
"""Names of the CUDA runtime: JetPack 6 has 12, JetPack 7 has 13."""
_FOLDERS = (
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/aarch64-linux/lib",
    "/usr/local/cuda/targets/sbsa-linux/lib",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/lib/aarch64-linux-gnu",
)
_PACKAGES = ("nvidia/cuda_runtime/lib", "nvidia/cu13/lib")
"""Folders of pip's packages nvidia-cuda-runtime-cu12 and nvidia-cuda-runtime, below site-packages."""

_DRIVER = "libcuda.so.1"
_NO_DRIVER = "0.0"
_NAME_BYTES = 256
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # cudaDevAttrComputeCapabilityMajor, -Minor, cudaDevAttrIntegrated
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the default stream
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads may go on allocating
_SPIN, _BLOCK = 1, 4  # cudaDeviceScheduleSpin, cudaDeviceScheduleBlockingSync
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_UNUSABLE = frozenset((3, 34, 35, 36, 46, 100, 101, 209, 803, 804))
"""Errors of the driver or device as such: initialization, stub library, driver too old, busy, no device, bad ordinal, no
kernel image for it, driver and library mismatch, forward compatibility not supported."""

_Out = POINTER(c_int)
_Address = POINTER(c_void_p)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaRuntimeGetVersion": (_Out,),
    "cudaDriverGetVersion": (_Out,),
    "cudaGetDeviceCount": (_Out,),
    "cudaSetDevice": (c_int,),
    "cudaSetDeviceFlags": (c_uint,),
    "cudaDeviceGetAttribute": (_Out, c_int, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (_Address, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaMallocHost": (_Address, c_size_t),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (_Address, c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, _Address),
    "cudaGraphInstantiateWithFlags": (_Address, c_void_p, c_ulonglong),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaEventCreateWithFlags": (_Address, c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
    "cudaGetLastError": (),
}
"""Every function used, with the types of its arguments; all give a cudaError_t."""


class Found(NamedTuple):
    """What `find` found.

    Attributes:
        cuda: A runtime library with at least one device, or None.
        reason: Why there is none, in one line; "" when there is.
    """

    cuda: LibCudart | None
    reason: str


def find() -> Found:
    """The first CUDA runtime library on this machine that has a device.

    Several may be installed, and one that is newer than the driver knows finds nothing where an older one works: all are
    asked.
    """
    reasons: list[str] = []
    for path in _candidates():
        try:
            cuda = LibCudart(path)
            if cuda.versions().driver == _NO_DRIVER:
                reasons.append("there is no NVIDIA driver")
            elif cuda.count() > 0:
                return Found(cuda, "")
            else:
                reasons.append("no CUDA device")
        except OSError as exc:
            if Path(path).is_absolute():  # a bare name that the loader does not know says nothing
                reasons.append(f"{path} can't be loaded: {first_line(exc)}")
        except MachineError as exc:
            reasons.append(exc.message)
    return Found(None, reasons[0] if reasons else f"{' or '.join(LIBRARIES)} not found")


def require() -> LibCudart:
    """What `find` finds.

    Raises:
        MachineError: VD4010, there is none, with the reason.
    """
    search = find()
    if search.cuda is None:
        message = f"no CUDA device can be used: {search.reason}"
        raise MachineError("VD4010", message, fix="run this on the machine with the GPU; `vitdeploy doctor` shows what it has")
    return search.cuda


def _candidates() -> Iterator[str]:
    """Names and paths to try, what the loader knows first."""
    yield from LIBRARIES
    yield from _find_existing((*_FOLDERS, *(f"{entry}/{package}" for entry in sys.path if entry for package in _PACKAGES)))


def _find_existing(folders: Iterable[str]) -> Iterator[str]:
    for folder in dict.fromkeys(folders):
        for name in LIBRARIES:
            path = Path(folder) / name
            if path.is_file():
                yield str(path.absolute())


class LibCudart:
    """The CUDA runtime library; see `Cuda` for what its methods do.

    Args:
        path: Name or path of ``libcudart.so``.

    Raises:
        OSError: It can't be loaded.
        MachineError: VD4010, it lacks a function.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.path = path
        self._functions: dict[str, Any] = {}
        for name, types in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is None:
                raise MachineError("VD4010", f"{path} has no {name}", fix="install CUDA 12 or 13")
            function.argtypes, function.restype = types, c_int
            self._functions[name] = function
        self._words: dict[str, Any] = {}
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            function = getattr(library, name)
            function.argtypes, function.restype = (c_int,), c_char_p
            self._words[name] = function

    def count(self) -> int:
        """See `Cuda.count`."""
        return self._number("cudaGetDeviceCount")

    def versions(self) -> Versions:
        """See `Cuda.versions`."""
        return Versions(
            _write_version(self._number("cudaRuntimeGetVersion")), _write_version(self._number("cudaDriverGetVersion"))
        )

    def describe(self, ordinal: int) -> Device:
        """See `Cuda.describe`."""
        major, minor, integrated = (
            self._number("cudaDeviceGetAttribute", attribute, ordinal) for attribute in (_MAJOR, _MINOR, _INTEGRATED)
        )
        return Device(_name(ordinal), f"{major}.{minor}", bool(integrated))

    def use(self, ordinal: int) -> None:
        """See `Cuda.use`."""
        self._call("cudaSetDevice", ordinal)

    def schedule(self, spin: bool) -> None:
        """See `Cuda.schedule`."""
        self._call("cudaSetDeviceFlags", _SPIN if spin else _BLOCK)

    def memory(self) -> Memory:
        """See `Cuda.memory`."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", byref(free), byref(total))
        return Memory(free.value, total.value)

    def allocate(self, size: int) -> int:
        """See `Cuda.allocate`."""
        return self._address("cudaMalloc", size)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size: int) -> int:
        """See `Cuda.allocate_pinned`."""
        return self._address("cudaMallocHost", size)

    def free_pinned(self, address: int) -> None:
        """See `Cuda.free_pinned`."""
        self._call("cudaFreeHost", address)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.upload`."""
        self._call("cudaMemcpyAsync", target, source, size, _TO_DEVICE, stream)

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        """See `Cuda.download`."""
        self._call("cudaMemcpyAsync", target, source, size, _TO_HOST, stream)

    def stream(self) -> int:
        """See `Cuda.stream`."""
        return self._address("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def wait(self, stream: int) -> None:
        """See `Cuda.wait`."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """See `Cuda.destroy_stream`."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> int:
        """See `Cuda.event`."""
        return self._address("cudaEventCreateWithFlags", 0)  # 0: with timing

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._call("cudaEventRecord", event, stream)

    def time_between(self, start: int, end: int) -> float:
        """See `Cuda.time_between`."""
        elapsed = c_float()
        self._call("cudaEventElapsedTime", byref(elapsed), start, end)
        return elapsed.value

    def destroy_event(self, event: int) -> None:
        """See `Cuda.destroy_event`."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """See `Cuda.begin_capture`."""
        self._call("cudaStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """See `Cuda.end_capture`."""
        written, graph = c_void_p(), c_void_p()
        self._call("cudaStreamEndCapture", stream, byref(written))
        try:
            self._call("cudaGraphInstantiateWithFlags", byref(graph), written, 0)
        finally:
            self._call("cudaGraphDestroy", written)
        return graph.value or 0

    def abandon_capture(self, stream: int) -> None:
        """See `Cuda.abandon_capture`."""
        written = c_void_p()
        self._functions["cudaStreamEndCapture"](stream, byref(written))  # fails, as what was captured is not whole
        if written:
            self._functions["cudaGraphDestroy"](written)
        self._functions["cudaGetLastError"]()

    def launch(self, graph: int, stream: int) -> None:
        """See `Cuda.launch`."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """See `Cuda.destroy_graph`."""
        self._call("cudaGraphExecDestroy", graph)

    def _number(self, name: str, *arguments: int) -> int:
        number = c_int()
        self._call(name, byref(number), *arguments)
        return number.value

    def _address(self, name: str, argument: int) -> int:
        pointer = c_void_p()
        self._call(name, byref(pointer), argument)
        return pointer.value or 0

    def _call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 (what ctypes takes)
        status = self._functions[name](*arguments)
        if status:
            self._functions["cudaGetLastError"]()  # else the next library that asks for the last error gets this one
            raise _error(name, status, *(self._text(which, status) for which in ("cudaGetErrorName", "cudaGetErrorString")))

    def _text(self, which: str, status: int) -> str:
        return (self._words[which](status) or b"unknown").decode(errors="replace")


def _error(call: str, status: int, name: str, text: str) -> MachineError:
    message = f"CUDA: {call} failed: {text} ({name}, {status})"
    if status == _OUT_OF_MEMORY:
        return MachineError("VD4006", message, fix="use a smaller batch, or end what else uses the GPU")
    if status == 35:
        message = f"the NVIDIA driver is too old for this CUDA, or there is none ({name}, 35)"
        return MachineError("VD4010", message, fix="install a newer NVIDIA driver, or an older CUDA")
    if status == 100:
        return MachineError("VD4010", f"no CUDA device ({name}, 100)", fix="look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    return MachineError("VD4010" if status in _UNUSABLE else "VD4004", message)


def _write_version(version: int) -> str:
    """CUDA's number for a version, 1000 x major + 10 x minor, as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _name(ordinal: int) -> str:
    """A device's name. The driver is asked, as the runtime tells it only in a struct whose layout changes between versions."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:  # a driver under another name; the runtime found it all the same
        return "unknown"
    handle, name = c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName.argtypes = (c_char_p, c_int, c_int)
    failed = driver.cuInit(c_uint(0)) or driver.cuDeviceGet(byref(handle), c_int(ordinal))
    failed = failed or driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    return "unknown" if failed else name.value.decode(errors="replace")
