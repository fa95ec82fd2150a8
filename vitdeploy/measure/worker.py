"""One subject of a benchmark in a process of its own, and the other end of the pipe to it.

Own processes, because engines' thread pools spin and fight inside one, because peak memory belongs to a process, and
because a crash in native code then ends a worker and not the benchmark. The child is started with ``subprocess``, not
``multiprocessing``: nothing of the caller's main module runs in it, and it imports its own engine only.

The child can't outlive the parent: it has its own session, so that Ctrl-C reaches only the parent, which kills it; and
when the parent dies without doing so, the pipe ends and with it the child.
"""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from vitdeploy import images, synthetic
from vitdeploy.artifact import Artifact
from vitdeploy.backends import backend
from vitdeploy.backends.base import OpenConfig, Runner, Tensor
from vitdeploy.errors import EnvironmentError_, VitdeployError

_CODE = "import sys; sys.path[:] = {path!r}; from vitdeploy.measure.worker import serve; serve({handle})"


@dataclass(frozen=True)
class Opened:
    """What a worker tells when its model is ready.

    Attributes:
        load_ms: Time to open the model, without importing the engine, in ms.
        settings: The runner's.
    """

    load_ms: float
    settings: dict[str, Any]


class Worker:
    """A child process with one model open in one backend; use it in a ``with`` block, which ends the process.

    Args:
        name: The subject, for messages.
        artifact: The model; its files are not verified again.
        backend_name: Which engine.
        config: Threads and device.
    """

    def __init__(self, name: str, artifact: Artifact, backend_name: str, config: OpenConfig) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        code = _CODE.format(path=sys.path, handle=theirs.fileno())
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        self._first = (artifact, backend_name, config)

    def open(self) -> Opened:
        """Load the model.

        Raises:
            VitdeployError: Whatever opening raised in the child; VD4005 if the child died.
        """
        return Opened(*self._ask(*self._first))

    def prepare(self, batch: int, warmup: int) -> float:
        """Make the input for a batch size and run it, ``warmup`` times beyond the first.

        Returns:
            Time of the first run, in ms.

        Raises:
            VitdeployError: As `open`; VD3107 if the model does not take this batch size.
        """
        return float(self._ask("prepare", batch, warmup))

    def run(self, seconds: float) -> list[float]:
        """Run again and again for at least ``seconds``, after one run that is not counted (caches went cold).

        Returns:
            Time of each run in ms, at least one.

        Raises:
            VitdeployError: As `open`.
        """
        return list(self._ask("run", seconds))

    def peak_mib(self) -> float:
        """Largest resident memory of the child so far, in MiB: interpreter, engine, model and activations."""
        return float(self._ask("peak"))

    def _ask(self, *request: Any) -> Any:  # noqa: ANN401 (what the child's method of that name returns)
        try:
            self._pipe.send(request)
            answer = self._pipe.recv()
        except (EOFError, OSError) as exc:  # the pipe ended: so did the child
            raise self._death() from exc
        if isinstance(answer, VitdeployError):
            raise answer
        return answer

    def _death(self) -> EnvironmentError_:
        self._process.kill()  # it may have closed the pipe and still hang; no effect if it is dead
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        last = f" ({lines[-1][:200]})" if lines else ""
        fix = "try a smaller batch; the kernel kills processes when memory runs out" if code == -signal.SIGKILL else ""
        return EnvironmentError_("VD4005", f"the measuring process of {self.name!r} {how}{last}", fix=fix)

    def __enter__(self) -> Worker:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the process at once: it holds nothing that needs saving."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._log.close()


def serve(handle: int) -> None:
    """The child's side: answer requests until the pipe ends.

    Args:
        handle: File descriptor of the pipe.
    """
    pipe = Connection(handle)
    try:
        session = Session(*pipe.recv())
        pipe.send((session.load_ms, session.runner.settings))
        while True:
            name, *arguments = pipe.recv()
            pipe.send(getattr(session, name)(*arguments))
    except VitdeployError as error:
        pipe.send(error)
    except (EOFError, ConnectionError):
        pass  # the parent is done, or gone


class Session:
    """What the child holds: a runner and its input."""

    def __init__(self, artifact: Artifact, backend_name: str, config: OpenConfig) -> None:
        self._contract = artifact.spec.input
        engine = backend(backend_name)
        start = time.perf_counter_ns()
        self.runner: Runner = engine.open(artifact, config)
        self.load_ms = _since(start)
        self._tensor: Tensor | None = None

    def prepare(self, batch: int, warmup: int) -> float:
        """See `Worker.prepare`."""
        self._tensor = images.to_tensor(synthetic.pixels(batch, self._contract), self._contract)
        first, *_ = [self._once() for _ in range(1 + warmup)]
        return first

    def run(self, seconds: float) -> list[float]:
        """See `Worker.run`."""
        self._once()
        times, start = [self._once()], time.perf_counter_ns()
        while _since(start) < 1000 * seconds:
            times.append(self._once())
        return times

    def peak(self) -> float:
        """See `Worker.peak_mib`."""
        status = Path("/proc/self/status")
        if status.exists():  # ru_maxrss would be the parent's, where that was larger when it started this process
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)

    def _once(self) -> float:
        assert self._tensor is not None
        start = time.perf_counter_ns()
        self.runner.run(self._tensor)
        return _since(start)


def _since(start_ns: int) -> float:
    """Milliseconds since a `time.perf_counter_ns`."""
    return (time.perf_counter_ns() - start_ns) / 1e6
