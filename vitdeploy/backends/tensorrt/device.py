"""What a runner needs of a CUDA device, whoever provides it: `vitdeploy.backends.tensorrt.cuda`, or a fake in the tests."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Device(NamedTuple):
    """A device.

    Attributes:
        name: As the driver calls it (``Orin``, ``NVIDIA H100 80GB HBM3``).
        capability: Compute capability (``8.7``).
        integrated: It shares the host's memory, as all Jetsons do.
    """

    name: str
    capability: str
    integrated: bool


class Versions(NamedTuple):
    """Versions of CUDA.

    Attributes:
        runtime: Of the library (``12.6``).
        driver: The latest that the driver knows (``12.4``).
    """

    runtime: str
    driver: str


class Memory(NamedTuple):
    """Memory of the current device, in bytes."""

    free: int
    total: int


class Cuda(Protocol):
    """What a runner needs of a device. Addresses, streams, events and graphs are plain numbers; 0 is none.

    All methods raise `MachineError`: VD4006 out of memory, VD4010 the device or driver is not usable, VD4004 otherwise.
    """

    def count(self) -> int:
        """Devices that this process may use."""

    def versions(self) -> Versions:
        """Of runtime and driver."""

    def describe(self, ordinal: int) -> Device:
        """A device by its number, from 0."""

    def use(self, ordinal: int) -> None:
        """Make a device this thread's current one."""

    def schedule(self, spin: bool) -> None:
        """How waiting for the current device waits: in a busy loop, or asleep."""

    def memory(self) -> Memory:
        """Free and total memory of the current device, in bytes."""

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes on the device, aligned to 256."""

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""

    def allocate_pinned(self, size: int) -> int:
        """Address of ``size`` bytes of host memory that can't be swapped out, so that copies need not wait."""

    def free_pinned(self, address: int) -> None:
        """Give back what `allocate_pinned` gave."""

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes from pinned to device memory."""

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of ``size`` bytes from device to pinned memory."""

    def stream(self) -> int:
        """A new queue of work."""

    def wait(self, stream: int) -> None:
        """Wait for everything queued; errors of earlier work come out here."""

    def destroy_stream(self, stream: int) -> None:
        """Give back what `stream` gave."""

    def event(self) -> int:
        """A new point in time."""

    def record(self, event: int, stream: int) -> None:
        """Queue taking the time."""

    def time_between(self, start: int, end: int) -> float:
        """Milliseconds between two events that have happened."""

    def destroy_event(self, event: int) -> None:
        """Give back what `event` gave."""

    def begin_capture(self, stream: int) -> None:
        """From now on what this thread queues is written down, not done."""

    def end_capture(self, stream: int) -> int:
        """What was written down, ready to launch; the stream is an ordinary one again, even when this fails."""

    def abandon_capture(self, stream: int) -> None:
        """Forget what was written down, after a failure; never raises."""

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph."""

    def destroy_graph(self, graph: int) -> None:
        """Give back what `end_capture` gave."""
