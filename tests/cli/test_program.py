"""The program as a process: closed and full streams, no folders, limits, and Ctrl-C at any moment."""

from __future__ import annotations

import importlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import vitdeploy
from vitdeploy.cli import commands, shell

ROOT = Path(vitdeploy.__file__).parents[1]


def start(arguments: list[str], folder: Path, **more: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more.pop("environment", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": folder, "env": environment} | more
    return subprocess.Popen([sys.executable, "-m", "vitdeploy", *arguments], **options)


def run(arguments: list[str], folder: Path, **more: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    process = start(arguments, folder, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


def close(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers]


COMMANDS = (["models"], ["models", "--json"], ["--help"], ["explain", "VD2008"])


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_closed_stdout_is_no_crash(arguments, tmp_path) -> None:
    status, _, err = run(arguments, tmp_path, preexec_fn=close(1), stdout=None)
    assert (status, "error" in err, "Traceback" in err) == (0, False, False)
    assert run(arguments, tmp_path, preexec_fn=close(0, 1, 2), stdout=None, stderr=None) == (0, "", "")


def test_a_closed_stderr_changes_no_status_and_no_file(tmp_path) -> None:
    """The next file that is opened must not get the number 2, and be written into by whoever complains."""
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    assert run(["inspect", "bad.onnx"], tmp_path, preexec_fn=close(2), stderr=None) == (3, "", "")
    assert run(["inspect", "bad.onnx"], tmp_path, preexec_fn=close(0, 1, 2), stdout=None, stderr=None)[0] == 3
    assert os.listdir(tmp_path) == ["bad.onnx"]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_full_stdout_is_one_line_and_the_machine_s_status(arguments, tmp_path) -> None:
    with Path("/dev/full").open("wb") as full:
        status, _, err = run(arguments, tmp_path, stdout=full)
    assert (status, err) == (4, "error[VD4002] no space left on the device; free some disk\n")


def test_a_full_stderr_changes_no_status(tmp_path) -> None:
    with Path("/dev/full").open("wb") as full:
        assert run(["inspect", "gone.onnx"], tmp_path, stderr=full)[0] == 3
        assert run(["inspect", "gone.onnx", "--json"], tmp_path, stderr=full, stdout=full)[0] == 3


def test_a_deleted_current_folder_is_said(tmp_path) -> None:
    (tmp_path / "gone").mkdir()
    status, _, err = run(["inspect", "x.onnx"], tmp_path / "gone", preexec_fn=lambda: os.rmdir(tmp_path / "gone"))
    assert (status, err) == (
        4,
        "error[VD4004] the current folder can't be used: No such file or directory; go to another folder, and try again\n",
    )


def test_names_that_are_no_text_and_a_locale_that_has_no_letters(tmp_path) -> None:
    name = b"b\xff\x1b[31m\xc3\xa4.onnx"
    Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"")
    status, _, err = run(["inspect", name], tmp_path, environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})  # type: ignore[list-item]
    assert (status, err) == (3, "error[VD3002] b\\udcff\\x1b[31m\\xe4.onnx: is empty; download or write it again\n")


@pytest.mark.parametrize("name", ["n" * 300, "/" * 5000, "a/" * 3000])
def test_names_that_no_file_can_have(name, tmp_path) -> None:
    status, _, err = run(["inspect", name], tmp_path)
    assert status == 3
    assert err.startswith("error[VD3001]")
    assert err.count("\n") == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("kind", "limit"),
    [(resource.RLIMIT_NOFILE, 8), (resource.RLIMIT_NPROC, 1), (resource.RLIMIT_FSIZE, 10), (resource.RLIMIT_AS, 180 << 20)],
)
def test_limits_of_the_system_are_one_line(kind, limit, tmp_path, tiny_artifact) -> None:
    """Wherever they strike: never a traceback, and never the status of a failed gate."""
    arguments = ["validate", str(tiny_artifact.folder), "--limit", "2", "-o", "report.json"]
    status, _, err = run(arguments, tmp_path, preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)))
    assert status in (0, 2, 4), err
    assert "Traceback" not in err
    assert status == 0 or err.strip().splitlines()[-1].startswith("error[VD")


def test_a_crash_is_told_where_no_file_can_be_written(tmp_path, monkeypatch, capsys) -> None:
    def plant(*_: object) -> None:
        raise TypeError("planted")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shell, "_look_around", plant)
    monkeypatch.setattr(shell.tempfile, "NamedTemporaryFile", full)
    assert shell.run(commands.app, ["models"]) == 8
    err = capsys.readouterr().err
    assert "in plant" in err
    assert err.endswith("internal error: TypeError: planted; please report it with the lines above\n")


def test_what_an_interrupted_import_raises_is_an_interruption(monkeypatch, capsys) -> None:
    """NumPy makes an ImportError of a Ctrl-C while its C code is imported, torch a NameError: no crash of ours."""

    def interrupt() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ImportError("numpy.core.multiarray failed to import") from None

    monkeypatch.setattr(shell, "_look_around", interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert shell.run(commands.app, ["models"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing half-written was left\n"
    assert signal.getsignal(signal.SIGINT) is before


SLOW_MODULE = "import time\nfor _ in range({}): time.sleep(0.01)\nENDED.append(True)\n"


def import_slowly(tmp_path, monkeypatch, steps: int, signals: int = 1) -> list[bool]:
    """A command that gets signals while it imports a module of so many hundredths of a second; what that did at its end."""
    ended: list[bool] = []
    (tmp_path / "slow_module.py").write_text(f"from builtins import ENDED\n{SLOW_MODULE.format(steps)}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("builtins.ENDED", ended, raising=False)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)

    def look_around() -> None:
        for number in range(signals):
            threading.Timer(0.05 * (number + 1), os.kill, (os.getpid(), signal.SIGTERM)).start()
        importlib.import_module("slow_module")
        time.sleep(10)

    monkeypatch.setattr(shell, "_look_around", look_around)
    before = signal.getsignal(signal.SIGALRM)
    assert shell.run(commands.app, ["models"]) == 130
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    return ended


def test_an_import_ends_before_an_interruption(tmp_path, monkeypatch) -> None:
    """torch calls Python while it is imported, and aborts the process where that raises."""
    assert import_slowly(tmp_path, monkeypatch, 30) == [True]


def test_a_folder_is_made_or_removed_before_an_interruption(monkeypatch) -> None:
    ended: list[bool] = []
    names = {"__name__": "vitdeploy.files.slow", "time": time, "ended": ended}
    exec("def work():\n    for _ in range(30): time.sleep(0.01)\n    ended.append(True)\n", names)

    def look_around() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        names["work"]()
        time.sleep(10)

    monkeypatch.setattr(shell, "_look_around", look_around)
    assert shell.run(commands.app, ["models"]) == 130
    assert ended == [True]


def test_a_second_signal_or_a_long_import_waits_for_nothing(tmp_path, monkeypatch) -> None:
    assert import_slowly(tmp_path, monkeypatch, 3000, signals=2) == []
    monkeypatch.setattr(shell, "LONGEST_WAIT_S", 0.1)
    assert import_slowly(tmp_path, monkeypatch, 3000) == []


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_130_and_leaves_nothing(tmp_path, tiny_artifact) -> None:
    """From the first import of the program to the last write; VITDEPLOY_KILLS says how many moments."""
    (tmp_path / "tmp").mkdir()
    arguments = ["export", str(tiny_artifact.folder), "-o", "out", "--force"]
    begun = time.monotonic()
    assert run(arguments, tmp_path, environment={"TMPDIR": str(tmp_path / "tmp")})[0] == 0
    whole_s = time.monotonic() - begun
    moments, left = random.Random(7), []
    for _ in range(int(os.environ.get("VITDEPLOY_KILLS", "12"))):
        number = moments.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        process = start(arguments, tmp_path, environment={"TMPDIR": str(tmp_path / "tmp")})
        time.sleep(moments.uniform(0.25, whole_s))
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode in (0, 130) or (process.returncode == -number and not err), (number, process.returncode, err)
        assert b"Traceback" not in err
        left += [name for name in (*os.listdir(tmp_path), *os.listdir(tmp_path / "tmp")) if name not in ("out", "tmp")]
    assert (
        run(arguments, tmp_path, environment={"TMPDIR": str(tmp_path / "tmp")})[0] == 0
    )  # a start sweeps what the system cut off
    assert sorted(os.listdir(tmp_path)) == ["out", "tmp"]
    assert os.listdir(tmp_path / "tmp") == []
    assert len(left) <= 1, left
