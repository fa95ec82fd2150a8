"""Run a function in a process of its own, with limits: what crashes, hangs or eats memory there is one line here.

The child is a fresh interpreter, not a fork: nothing of the caller's memory, threads or open files is in it. It gets an
environment of a few names (no tokens, no keys), an empty folder of its own, no standard input, a session of its own, and
limits on time and on what it writes. Request and answer are JSON files in that folder; the answer is checked as data.

This contains accidents and bombs. It is no sandbox: the child is the same user on the same file system.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from vitdeploy.errors import CODES, EnvironmentError_, InputError, TrustError, UsageError, VitdeployError, first_line

KEPT = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
)
"""Names of the environment that the child gets; everything else could be a secret."""

LARGEST_ANSWER = 64 << 20
_CLASSES = {kind.exit_code: kind for kind in (UsageError, InputError, EnvironmentError_, TrustError)}
_CODE = "import sys; sys.path[:] = {path!r}; from vitdeploy.isolate import child; child()"
_PR_SET_PDEATHSIG = 1


class ChildTraceback(Exception):
    """The traceback of an error that crossed over from the child, as its ``__cause__``."""


def run(function: str, argument: object = None, *, seconds: float, memory_mib: int | None = None, file_mib: int = 64) -> Any:  # noqa: ANN401 (what the function returns)
    """Call a function in a child process.

    Args:
        function: ``module:name``, written in our own sources; never from a file.
        argument: Its one argument, of what JSON knows. Paths must be absolute: the child works in another folder.
        seconds: Wall-clock time after which the child and its own children are killed.
        memory_mib: Address space, in MiB; None means no limit. Not with CUDA, which reserves far more than it uses.
        file_mib: Largest file that the child may write, in MiB.

    Returns:
        What the function returned, after a journey through JSON.

    Raises:
        VitdeployError: Whatever the function raised, by class, code and text.
        EnvironmentError_: VD4004 it raised anything else; VD4006 out of memory; VD4007 the child died of a signal or gave
            no answer; VD4008 it took too long.
    """
    with tempfile.TemporaryDirectory(prefix="vitdeploy-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        limits = {"seconds": seconds, "memory_mib": memory_mib, "file_mib": file_mib}
        request = {"function": function, "argument": argument, "limits": limits, "parent": os.getpid()}
        (folder / "request.json").write_text(json.dumps(request))
        path = [str(Path(entry).absolute()) for entry in sys.path]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
                [sys.executable, "-I", "-c", _CODE.format(path=path)],
                cwd=folder,
                env=environment() | {"TMPDIR": name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise _late(seconds) from None
        finally:  # Ctrl-C too; and what the child itself has started
            _kill(process)
        return _answer(folder, status, seconds)


def environment() -> dict[str, str]:
    """The part of this process's environment that children get."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all gone; or, on macOS, gone but not yet waited for
        process.kill()
    process.wait()


def _answer(folder: Path, status: int, seconds: float) -> Any:  # noqa: ANN401
    if status == -signal.SIGXCPU:
        raise _late(seconds)
    file = folder / "answer.json"
    try:
        if status != 0 or file.stat().st_size > LARGEST_ANSWER:
            raise _death(folder, status)
        answer = json.loads(file.read_bytes())
        if "result" in answer:
            return answer["result"]
        error = _rebuilt(**answer["error"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _death(folder, status) from exc
    raise error from ChildTraceback(f"\n{answer.get('traceback', '')}")


def _rebuilt(*, code: str, file: str | None, message: str, fix: str, exit: int) -> VitdeployError:
    if code not in CODES or any(not isinstance(text, str) for text in (message, fix, file or "")):
        raise ValueError(code)
    return _CLASSES[exit](code, message, file=file, fix=fix)


def _late(seconds: float) -> EnvironmentError_:
    return EnvironmentError_("VD4008", f"a child process was killed: it took longer than {seconds:g} s", fix="try again")


def _death(folder: Path, status: int) -> EnvironmentError_:
    if status >= 0:
        message = f"a child process ended with status {status} before it answered"
    else:
        names = {number.value: number.name for number in signal.Signals}
        message = f"a child process was ended by {names.get(-status, f'signal {-status}')}"
        message += " (out of memory?)" if status == -signal.SIGKILL else ""
    try:
        with (folder / "log").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 2000))
            said = stream.read(2000).decode(errors="replace").strip().splitlines()
    except OSError:  # it removed its own log
        said = []
    if said:
        message += f"; it said last: {said[-1].strip()[:300]}"
    return EnvironmentError_("VD4007", message)


def child() -> None:
    """The child's whole life: read the request, take on the limits, call, answer, end."""
    folder = Path.cwd()
    request = json.loads((folder / "request.json").read_bytes())
    _die_with(request["parent"])
    _limit(**request["limits"])
    try:
        module, _, name = request["function"].partition(":")
        text = json.dumps({"result": getattr(import_module(module), name)(request["argument"])})
    except VitdeployError as exc:
        text = _failure(exc)
    except MemoryError:
        text = _failure(EnvironmentError_("VD4006", "a child process ran out of memory", fix="free some memory"))
    except Exception as exc:  # noqa: BLE001 (the child's outermost handler: nobody above could say it)
        message = f"a child process failed: {type(exc).__name__}: {first_line(exc)}"
        text = _failure(EnvironmentError_("VD4004", message))
    (folder / "answer.part").write_text(text)
    (folder / "answer.part").replace(folder / "answer.json")
    os._exit(0)  # libraries' exit handlers may crash or hang, and have nothing to save


def _failure(error: VitdeployError) -> str:
    return json.dumps({"error": error.record(), "traceback": traceback.format_exc()[-20_000:]})


def _die_with(parent: int) -> None:
    """Be killed when the parent is, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit(*, seconds: float, memory_mib: int | None, file_mib: int) -> None:
    import resource  # Unix only

    seconds_of_all_threads = math.ceil(seconds) * (os.cpu_count() or 1) + 1
    _lower(resource.RLIMIT_CORE, 0, 0)
    _lower(resource.RLIMIT_CPU, seconds_of_all_threads, seconds_of_all_threads + 5)  # SIGXCPU, and SIGKILL if it is ignored
    _lower(resource.RLIMIT_FSIZE, file_mib << 20, file_mib << 20)
    if memory_mib is not None:
        _lower(resource.RLIMIT_AS, memory_mib << 20, memory_mib << 20)


def _lower(kind: int, soft: int, hard: int) -> None:
    import resource

    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))
