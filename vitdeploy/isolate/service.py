"""The child's side: take on the limits, answer one question after the other, and die with the parent."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, cast

from vitdeploy import machine
from vitdeploy.errors import INTERRUPTED, MachineError, VitdeployError, explain_exhaustion, first_line
from vitdeploy.isolate import memory
from vitdeploy.isolate.frames import encode_message, receive_message

_channel: socket.socket | None = None
_sending = threading.Lock()


def is_child() -> bool:
    """Whether this process is such a child: what it opens can take nothing down but itself."""
    return _channel is not None


def report_progress(what: str, done: int, total: int) -> None:
    """The `Progress` of a function that runs in a child: the parent's listener hears it. Elsewhere it says nothing."""
    if _channel is not None:
        _send(encode_message({"progress": [what, done, total]}))


def serve(channel: int, life: int) -> None:
    """The child's whole life.

    Args:
        channel: File descriptor of the socket.
        life: File descriptor of a pipe of which nothing is read: it ends with the parent.
    """
    global _channel
    for descriptor in (channel, life):
        os.set_inheritable(descriptor, False)
    _die_with(life)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _channel = socket.socket(fileno=channel)
    try:
        start = cast(_Start, receive_message(_channel.recv_into)[0])
        _apply_limits(start)
        desk = _Desk(start)
        while True:
            desk.answer(*receive_message(_channel.recv_into))
    except MemoryError:  # while it took in what was sent
        _send(_encode_failure(MachineError("VD4006", "a child process ran out of memory", fix="use a smaller batch")), ())
        status = 1
    except (EOFError, ConnectionError):  # nobody asks any more
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    os._exit(status)  # libraries' exit handlers may crash or hang, and have nothing to save


class _Start(TypedDict):
    """What the parent says first: the subject, and of its `Limits` those that hold in here."""

    subject: str
    memory_mib: int | None
    file_mib: int
    cpu_s: float | None
    smaller: str


class _Desk:
    """Where questions are answered.

    Args:
        start: What the parent said first.
    """

    def __init__(self, start: _Start) -> None:
        self._name, self._cap, self._smaller = start["subject"], start["memory_mib"], start["smaller"]
        self._subject: Any = None

    def answer(self, request: dict[str, Any], arrays: list[bytearray]) -> None:
        """Call what was asked for, and send what it returned or raised."""
        outputs: Sequence[memoryview] = ()
        try:
            result, outputs = self._call(request["call"], request["argument"], arrays)
            frame = encode_message({"result": result}, outputs)
        except VitdeployError as exc:
            frame, outputs = _encode_failure(exc), ()
        except MemoryError:
            message = f"a child process ran out of memory: it had used {memory.format_use(machine.peak_mib(), self._cap)}"
            frame, outputs = _encode_failure(MachineError("VD4006", message, fix=self._smaller)), ()
        except Exception as exc:  # noqa: BLE001 (the child's outermost handler: nobody above could say it)
            error = explain_exhaustion(exc)
            frame, outputs = (_encode_failure(error) if error else _encode_crash(exc)), ()
        _send(frame, outputs)

    def _call(self, call: str, argument: object, arrays: list[bytearray]) -> tuple[Any, Sequence[memoryview]]:
        if ":" in call:
            return _import_name(call)(argument), ()
        if self._subject is None:
            self._subject = _import_name(self._name)()
        result, outputs = getattr(self._subject, call)(argument, arrays)
        return result, outputs


def _import_name(name: str) -> Any:  # noqa: ANN401 (a function or a class)
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _encode_failure(error: VitdeployError) -> bytes:
    return encode_message({"error": error.record(), "traceback": traceback.format_exc()[-20_000:]})


def _encode_crash(exc: Exception) -> bytes:
    return encode_message({"crash": f"{type(exc).__name__}: {first_line(exc)}", "traceback": traceback.format_exc()[-20_000:]})


def _send(frame: bytes, arrays: Sequence[memoryview] = ()) -> None:
    assert _channel is not None
    with _sending:  # an engine may tell its progress from a thread of its own
        _channel.sendall(frame)
        for each in arrays:
            _channel.sendall(each)


def _die_with(life: int) -> None:
    """Be killed, with all that was started from here, when the parent is gone, even by kill -9.

    The pipe is known to the parent alone, and the kernel signals its end. (A signal at the parent's death, as prctl gives it,
    would come when the thread ends that has started this process.)
    """
    if sys.platform == "linux":
        import fcntl  # Unix only

        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())  # the process group
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, os.O_ASYNC)
    ended = select.poll()
    ended.register(life)
    if ended.poll(0):
        os._exit(1)


def _apply_limits(start: _Start) -> None:
    import resource  # Unix only

    with suppress(OSError):  # where memory ends, this process is the one to go, and not who has started it
        Path("/proc/self/oom_score_adj").write_text("1000")
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_FSIZE, start["file_mib"] << 20, start["file_mib"] << 20)
    if start["cpu_s"] is not None:
        seconds = math.ceil(start["cpu_s"]) * machine.logical_cores() + 1
        _lower(resource.RLIMIT_CPU, seconds, seconds + 5)  # SIGXCPU, and SIGKILL if it is ignored
    if start["memory_mib"] is not None:
        _lower(resource.RLIMIT_AS, start["memory_mib"] << 20, start["memory_mib"] << 20)


def _lower(kind: int, soft: int, hard: int) -> None:
    import resource

    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))
