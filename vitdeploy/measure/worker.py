"""One subject of a benchmark in a process of its own, and the other end of the line to it.

Own processes, because engines' thread pools spin and fight inside one, because peak memory belongs to a process, and
because a crash in native code then ends a worker and not the benchmark. The child is that of `isolate`, and times runs
itself: nothing of what is measured goes through the socket.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Profile, Tensor
from vitdeploy.backends.child import PATIENCE_S, Opened, Session, convert, describe_profile, enter, repair, start
from vitdeploy.backends.table import require_fit
from vitdeploy.data import images, synthetic
from vitdeploy.machine import peak_mib


class Worker:
    """A child process with one model open in one backend; use it in a ``with`` block, which ends the process.

    Args:
        name: The subject, for messages.
        artifact: The model; its files are not verified again.
        backend_name: Which engine.
        config: Threads and device.

    Raises:
        UsageError: VD2013, the artifact is not for this engine.
        MachineError: VD4004, no process could be started.
    """

    def __init__(self, name: str, artifact: Artifact, backend_name: str, config: OpenConfig) -> None:
        require_fit(backend_name, artifact)
        self.name = name
        with ExitStack() as stack:
            artifact = repair(artifact, stack)
            self._opening = (backend_name, artifact, config)
            self._child = start(backend_name, artifact, config, f"{__name__}:Timing")
            stack.callback(self._child.close)
            self._owned = stack.pop_all()
        self._child.limits["what"] = f"the measuring process of {name!r} ({self._child.limits['what']})"

    def open(self) -> Opened:
        """Load the model.

        Raises:
            VitdeployError: Whatever opening raised in the child.
            MachineError: VD4007, the child died; VD4008, it took too long.
        """
        return enter(self._child, *self._opening, PATIENCE_S)

    def prepare(self, batch: int, warmup: int) -> float:
        """Make the input for a batch size and run it, ``warmup`` times beyond the first.

        Returns:
            Time of the first run, in ms.

        Raises:
            VitdeployError: As `open`; VD3107 if the model does not take this batch size.
        """
        return float(self._child.ask("prepare", [batch, warmup], seconds=PATIENCE_S * (1 + warmup))[0])

    def run(self, seconds: float) -> list[float]:
        """Run again and again for at least ``seconds``, after one run that is not counted (caches went cold).

        Returns:
            Time of each run in ms, at least one.

        Raises:
            VitdeployError: As `open`.
        """
        return [float(value) for value in self._child.ask("repeat", seconds, seconds=seconds + PATIENCE_S)[0]]

    def profile(self, runs: int) -> Profile:
        """Where the time goes, with what `prepare` made; see `Runner.profile`.

        Raises:
            VitdeployError: As `open`.
        """
        answer, _ = self._child.ask("profile_prepared", runs, seconds=PATIENCE_S * (1 + runs))
        return convert(answer, Profile)

    def peak_mib(self) -> float:
        """Largest resident memory of the child so far, in MiB: interpreter, engine, model and activations.

        Raises:
            VitdeployError: As `open`.
        """
        return float(self._child.ask("peak", seconds=PATIENCE_S)[0])

    def __enter__(self) -> Worker:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the process at once: it holds nothing that needs saving."""
        self._owned.close()


class Timing(Session):
    """What the child holds: a runner and its input."""

    def __init__(self) -> None:
        super().__init__()
        self._tensor: Tensor | None = None

    def prepare(self, argument: tuple[int, int], _: list[bytearray]) -> tuple[float, list[memoryview]]:
        """See `Worker.prepare`."""
        batch, warmup = argument
        contract = self.artifact.spec.input
        self._tensor = images.to_tensor(synthetic.pixels(batch, contract), contract)
        first, *_more = [self._once() for _ in range(1 + warmup)]
        return first, []

    def repeat(self, seconds: float, _: list[bytearray]) -> tuple[list[float], list[memoryview]]:
        """See `Worker.run`."""
        self._once()
        times, begun = [self._once()], time.perf_counter_ns()
        while _since(begun) < 1000 * seconds:
            times.append(self._once())
        return times, []

    def profile_prepared(self, runs: int, _: list[bytearray]) -> tuple[object, list[memoryview]]:
        """See `Worker.profile`."""
        assert self._tensor is not None
        return describe_profile(self.runner.profile(self._tensor, runs)), []

    def peak(self, _: object, __: list[bytearray]) -> tuple[float, list[memoryview]]:
        """See `Worker.peak_mib`."""
        return peak_mib(), []

    def _once(self) -> float:
        assert self._tensor is not None
        begun = time.perf_counter_ns()
        self.runner.run(self._tensor)
        return _since(begun)


def _since(begun: int) -> float:
    """Milliseconds since a `time.perf_counter_ns`."""
    return (time.perf_counter_ns() - begun) / 1e6
