"""The parent's side: start a child, ask it, hear its progress, and say what became of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from vitdeploy import machine
from vitdeploy.codes import CODES
from vitdeploy.errors import (
    DeviceError,
    InputError,
    MachineError,
    TrustError,
    UsageError,
    VitdeployError,
    library,
    printable,
)
from vitdeploy.files import Lease, lease_folder
from vitdeploy.isolate import memory
from vitdeploy.isolate.frames import encode_message, receive_message
from vitdeploy.progress import Progress, silent

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

KEPT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "CUDA_HOME"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("CXX", "ORT_DISABLE_TELEMETRY", "LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX"),
)
"""Names of the environment that the child gets; everything else could be a secret."""

_SMALLER = "use a smaller batch, or free some memory"
GRACE_S = 2.0
"""How long an interrupted child may take to remove what it has half-written."""
_POLL_S = 0.2
_FULL = 0.8
"""Share of the memory from which a crash is likely to be for want of it."""
_MOST = 0.9
"""Share of the memory of this machine, or of its container, that a child may hold."""
_CLASSES = {kind.exit_code: kind for kind in (UsageError, InputError, MachineError, DeviceError, TrustError)}
_CODE = "import sys; sys.path[:] = {path!r}; from vitdeploy.isolate.service import serve; serve({channel}, {life})"


class ChildTraceback(Exception):
    """The traceback of an error that crossed over from the child, as its ``__cause__``."""


class ChildCrash(Exception):
    """A mistake of ours in the child: an exception that is none of our errors, with its traceback as the ``__cause__``.

    Args:
        what: What the child is.
        said: Class and first line of the exception.
    """

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what}: {printable(said)}")


class Limits(TypedDict, total=False):
    """What a child may use, and the words for its failures. Each may be left out.

    Attributes:
        memory_mib: Address space, in MiB; without it there is no limit. Not with CUDA, which reserves far more than it uses.
        file_mib: Largest file that the child may write, in MiB; 64.
        cpu_s: Time of all its cores together, in seconds; without it there is no limit.
        what: What the child is, for messages.
        file: The file that it works on, for messages.
        smaller: What to do when memory runs out.
        longer: What to do when time runs out.
        instead: What to do when it crashes.
    """

    memory_mib: int | None
    file_mib: int
    cpu_s: float
    what: str
    file: str | None
    smaller: str
    longer: str
    instead: str


def run(function: str, argument: object = None, *, seconds: float, progress: Progress = silent, **limits: Unpack[Limits]) -> Any:  # noqa: ANN401 (what the function returns)
    """Call a function in a child process.

    Args:
        function: ``module:name``, written in our own sources; never from a file.
        argument: Its one argument, of what JSON knows. Paths must be absolute: the child works in another folder.
        seconds: Wall-clock time after which the child and its own children are killed.
        progress: Hears what the function tells `report_progress`.
        limits: See `Limits`.

    Returns:
        What the function returned, after a journey through JSON.

    Raises:
        VitdeployError: Whatever the function raised, by class, code and text.
        ChildCrash: It raised anything else.
        MachineError: VD4002 it wrote too much; VD4006 out of memory; VD4007 the child died of a signal or gave
            no answer; VD4008 it took too long.
    """
    given: Limits = {"cpu_s": seconds, **limits}
    with Child(**given) as child:
        return child.ask(function, argument, seconds=seconds, progress=progress)[0]


class Child:
    """A child process that is asked more than once. Use it in a ``with`` block, or close it.

    Args:
        subject: ``module:class``, written in our own sources: the child makes one, whose methods are then called as
            ``method(argument, arrays)`` and return a pair of the same kind. Empty: functions only, as `run` calls them.
        limits: See `Limits`.

    Raises:
        MachineError: VD4004, VD4006: no process could be started.
    """

    def __init__(self, subject: str = "", **limits: Unpack[Limits]) -> None:
        self.limits: Limits = {"memory_mib": None, "file_mib": 64, "what": "a child process", "smaller": _SMALLER, **limits}
        self._lock = threading.Lock()
        self._error: VitdeployError | None = None
        self._peak_mib = 0.0
        with library("starting a child process"):
            lease = lease_folder()
            try:
                self._process, self._channel, life = _start(lease.folder)
            except BaseException:
                lease.end()
                raise
        # what the kernel counts for the child begins with this process's own peak, which each core keeps to within some MiB
        self._least_mib = 1.05 * machine.peak_mib() + 32
        self._folder = lease.folder
        self._close = weakref.finalize(self, _clean, os.getpid(), self._process, (self._channel, life), lease)
        bounds = {name: self.limits.get(name) for name in ("memory_mib", "file_mib", "cpu_s", "smaller")}
        with suppress(OSError):  # it is dead already: the first question says so
            self._channel.sendall(encode_message({"subject": subject, **bounds}))

    @property
    def pid(self) -> int:
        """Process number of the child."""
        return self._process.pid

    def ask(
        self,
        call: str,
        argument: object = None,
        arrays: Sequence[memoryview] = (),
        *,
        seconds: float,
        progress: Progress = silent,
    ) -> tuple[Any, list[bytearray]]:
        """Ask, and wait for the answer. A child that died or was late answers nothing any more.

        Args:
            call: A method of the subject, or ``module:name`` of a function.
            argument: Of what JSON knows.
            arrays: Contiguous bytes that go with it.
            seconds: Wall-clock time after which the child is killed.
            progress: Hears what the child tells `report_progress`.

        Returns:
            The answer, and the bytes that came with it.

        Raises:
            VitdeployError: See `run`; the child lives on after errors of its own.
        """
        frame = encode_message({"call": call, "argument": argument}, arrays)
        with self._lock:
            if self._error is not None:
                raise rebuild_error(**self._error.record())  # type: ignore[arg-type]
            deadline = time.monotonic() + seconds
            try:
                with self._translate(seconds):
                    self._send((frame, *arrays), deadline)
                answer, outputs = self._await_answer(seconds, deadline, progress)
            except BaseException:
                if self._error is None:  # Ctrl-C, or the listener's own: half an answer is of no use
                    self._interrupt()
                raise
            if not answer.keys() & {"error", "crash"}:
                return answer.get("result"), outputs
            with self._translate(seconds):
                error = (
                    rebuild_error(**answer["error"]) if "error" in answer else ChildCrash(self.limits["what"], answer["crash"])
                )
        raise error from ChildTraceback(f"\n{answer.get('traceback', '')}")

    def close(self) -> None:
        """End the process at once, with all that it has started. Closing twice is allowed."""
        if self._error is None:
            self._error = MachineError("VD4007", f"{self.limits['what']} was closed")
        self._close()

    def __enter__(self) -> Child:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """As `close`."""
        self.close()

    @contextmanager
    def _translate(self, seconds: float) -> Iterator[None]:
        """What the socket raises inside the block, and answers that make no sense, in our words."""
        try:
            yield
        except TimeoutError:
            self._fail("late", seconds)
        except (EOFError, OSError):
            self._fail("dead", seconds)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._fail("garbled", seconds)

    def _send(self, parts: Sequence[bytes | memoryview], deadline: float) -> None:
        with suppress(ConnectionError):  # it ended, and may have said why
            for part in parts:
                self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
                self._channel.sendall(part)

    def _await_answer(self, seconds: float, deadline: float, progress: Progress) -> tuple[dict[str, Any], list[bytearray]]:
        """What comes when the steps are over, of which the listener hears."""
        while True:
            with self._translate(seconds):
                answer, outputs = self._receive(deadline)
                steps = _check_steps(answer["progress"]) if "progress" in answer else None
            if steps is None:
                self._poll()
                return answer, outputs
            progress(*steps)

    def _poll(self) -> None:
        """Look at the child's memory: a dead one tells no more."""
        self._peak_mib = max(self._peak_mib, machine.peak_mib(self.pid))

    def _fail(self, how: str, seconds: float) -> NoReturn:
        """End the child, and say what became of it."""
        self._poll()  # one that is late may not have been looked at once
        status, peak = _end_process(self._process)
        peak = max(peak, self._peak_mib) if peak > self._least_mib else self._peak_mib
        what, file = self.limits["what"], self.limits.get("file")
        if how == "late" or status == -signal.SIGXCPU:
            message = (
                f"{what} was killed: it took longer than {seconds:g} s{_format_peak(', and', peak, self.limits['memory_mib'])}"
            )
            error = MachineError("VD4008", message, file=file, fix=self.limits.get("longer", "try again"))
        else:
            message, full = _explain_end(status if how == "dead" else None, peak, self.limits["memory_mib"])
            fix = self.limits["smaller"] if full else self.limits.get("instead", "")
            error = MachineError("VD4007", f"{what} {message}{_last_words(self._folder)}", file=file, fix=fix)
        self._error = error
        self._close()
        raise error from None

    def _interrupt(self) -> None:
        self._error = MachineError("VD4007", f"{self.limits['what']} was interrupted")
        try:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what it has started
                os.killpg(self.pid, signal.SIGKILL)
            self._close()

    def _receive(self, deadline: float) -> tuple[dict[str, Any], list[bytearray]]:
        def fill(view: memoryview) -> int:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._channel.settimeout(min(_POLL_S, left))
                try:
                    return self._channel.recv_into(view)
                except TimeoutError:
                    self._poll()
                    if machine.own_mib(self.pid) > _MOST * machine.machine_mib():
                        self._fail("dead", 0)  # before the system ends whom it likes

        return receive_message(fill)


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """The process, our end of the socket, and our end of the pipe whose end ends the child."""
    path = [str(Path(entry).absolute()) for entry in sys.path]
    ours, theirs = socket.socketpair()
    there, here = os.pipe()
    code = _CODE.format(path=path, channel=theirs.fileno(), life=there)
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
                [sys.executable, "-I", "-c", code],
                cwd=folder,
                env=choose_environment() | {"TMPDIR": str(folder)},
                pass_fds=(theirs.fileno(), there),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        os.close(here)
        raise
    finally:
        theirs.close()
        os.close(there)
    return process, ours, here


def choose_environment() -> dict[str, str]:
    """The part of this process's environment that children get."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def _clean(owner: int, process: subprocess.Popen[bytes], ends: tuple[socket.socket, int], lease: Lease) -> None:
    if os.getpid() != owner:  # a fork of the parent ends: the child is not its own
        return
    _end_process(process)
    ends[0].close()
    os.close(ends[1])
    lease.end()


def _end_process(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Kill the child and what it has started; its status as `subprocess` counts, and its peak of memory in MiB."""
    peak = 0.0
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # one that is dead keeps its status
        except (ProcessLookupError, PermissionError):  # on macOS, gone but not yet waited for
            process.kill()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except ChildProcessError:  # somebody else waits for all children
            process.returncode = 0
        else:
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = machine.to_mib(usage)
    return process.returncode, peak


def _format_peak(before: str, peak: float, cap: int | None) -> str:
    return f"{before} it had used {memory.format_use(peak, cap)}" if peak else ""


def _explain_end(status: int | None, peak: float, cap: int | None) -> tuple[str, bool]:
    """How a child ended, and whether memory is the likely reason; without a status, it was its answer."""
    if status is None:
        return "gave an answer that makes no sense", False
    if status >= 0:
        return f"ended with status {status} before it answered", False
    names = {number.value: number.name for number in signal.Signals}
    full = status == -signal.SIGKILL or peak > _FULL * memory.usable_mib(cap)
    message = f"was ended by {names.get(-status, f'signal {-status}')}{_format_peak(':', peak, cap)}"
    return message + (" (out of memory?)" if full else ""), full


def _last_words(folder: Path) -> str:
    try:
        with (folder / "log").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2000))
            said = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:  # it removed its own log
        return ""
    return f"; it said last: {said[-1].strip()[:300]}" if said else ""


def rebuild_error(*, code: str, file: str | None, message: str, fix: str, exit: int) -> VitdeployError:
    """An error from its `VitdeployError.record`, which another process sent; a ValueError or KeyError where it is none."""
    if code not in CODES or any(not isinstance(text, str) for text in (message, fix, file or "")):
        raise ValueError(code)
    return _CLASSES[exit](code, message, file=file, fix=fix)


def _check_steps(told: list[Any]) -> tuple[str, int, int]:
    what, done, total = told
    if type(what) is not str or type(done) is not int or type(total) is not int:
        raise TypeError(told)
    return printable(what)[:200], done, total
