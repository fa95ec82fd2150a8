"""A child process: answers and errors cross over whole; crashes, hangs, bombs and exits become one typed line."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from vitdeploy import isolate
from vitdeploy.errors import EnvironmentError_, InputError, TrustError, UsageError, VitdeployError

ERRORS = {"2": UsageError("VD2003", "a"), "3": InputError("VD3002", "b", file="x\n.pt", fix="c"), "7": TrustError("VD7002", "d")}


def here(name: str) -> str:
    return f"tests.test_isolate:{name}"


def echo(argument: object) -> object:
    return argument


def describe(_: object) -> dict[str, object]:
    limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_AS")}
    return {
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "files": sorted(path.name for path in Path.cwd().iterdir()),
        "temporary": tempfile.gettempdir(),
        "session": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read(),
        "limits": limits,
        "modules": [name for name in ("torch", "numpy", "msgspec") if name in sys.modules],
    }


def fail(which: str) -> None:
    raise ERRORS[which]


def break_down(_: object) -> None:
    raise KeyError("first line\nsecond line")


def die(number: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(status: int) -> None:
    sys.exit(status)


def vanish(_: object) -> None:
    os._exit(0)


def lie(text: str) -> None:
    (Path.cwd() / "answer.json").write_text(text)
    os._exit(0)


def hang(marker: str) -> None:
    """With a child of its own, which would write the marker after two seconds."""
    code = f"import time; time.sleep(2); open({marker!r}, 'w')"
    subprocess.Popen([sys.executable, "-c", code])
    Path(marker + ".started").touch()
    time.sleep(60)


def eat(mib: int) -> int:
    return len(bytearray(mib << 20))


def write(mib: int) -> None:
    with open("big", "wb") as stream:
        for _ in range(mib):
            stream.write(bytes(1 << 20))


def caught(name: str, argument: object = None, **limits: float) -> VitdeployError:
    with pytest.raises(VitdeployError) as found:
        isolate.run(here(name), argument, **{"seconds": 30, **limits})
    assert str(found.value).isprintable()
    return found.value


@pytest.mark.parametrize("value", [None, 3, 0.1, "ä\n", [1, [2]], {"a": {"b": None}}], ids=str)
def test_answer_crosses(value: object) -> None:
    assert isolate.run(here("echo"), value, seconds=30) == value


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LANG", "C.UTF-8")
    found = isolate.run(here("describe"), seconds=30, file_mib=3, memory_mib=4096)
    assert "secret" not in found["environment"].values()
    assert set(found["environment"]) <= {*isolate.KEPT, "TMPDIR"}
    assert found["environment"]["LANG"] == "C.UTF-8"
    assert found["folder"] == found["temporary"] != str(Path.cwd())
    assert found["files"] == ["log", "request.json"]
    assert not Path(found["folder"]).exists()  # cleaned up
    assert found["session"]
    assert found["stdin"] == ""
    assert found["limits"] == {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 3 << 20, "RLIMIT_AS": 4096 << 20}
    assert found["modules"] == []


@pytest.mark.parametrize("which", ERRORS)
def test_our_errors_cross_whole(which: str) -> None:
    error = caught("fail", which)
    assert type(error) is type(ERRORS[which])
    assert error.record() == ERRORS[which].record()
    assert "in fail" in str(error.__cause__)


@pytest.mark.parametrize(
    ("name", "argument", "code", "says"),
    [
        ("break_down", None, "VD4004", "a child process failed: KeyError: 'first line"),
        ("no_such_function", None, "VD4004", "AttributeError"),
        ("die", signal.SIGSEGV, "VD4007", "a child process was ended by SIGSEGV; it said last: last words"),
        ("die", signal.SIGKILL, "VD4007", r"ended by SIGKILL \(out of memory\?\)"),
        ("die", signal.SIGXCPU, "VD4008", "longer than 30 s"),
        ("die", signal.SIGRTMIN + 3, "VD4007", "ended by"),
        ("leave", 3, "VD4007", "ended with status 3 before it answered"),
        ("leave", 0, "VD4007", "ended with status 0 before it answered"),
        ("vanish", None, "VD4007", "ended with status 0 before it answered"),
        ("lie", "", "VD4007", "before it answered"),
        ("lie", "[]", "VD4007", "before it answered"),
        ("lie", '{"error": {"code": "VD9999", "file": null, "message": "", "fix": "", "exit": 3}}', "VD4007", "before it"),
        ("lie", '{"error": {"code": "VD3001", "file": null, "message": 3, "fix": "", "exit": 3}}', "VD4007", "before it"),
        ("lie", '{"error": {"code": "VD3001", "file": null, "message": "", "fix": "", "exit": 99}}', "VD4007", "before it"),
        ("lie", "[" * 200_000, "VD4007", "before it"),
    ],
)
def test_failures(name: str, argument: object, code: str, says: str) -> None:
    error = caught(name, argument)
    assert type(error) is EnvironmentError_
    assert error.exit_code == 4
    assert error.code == code
    assert re.search(says, str(error)), str(error)


def test_too_much_memory() -> None:
    error = caught("eat", 4096, memory_mib=1024)
    assert (error.code, error.exit_code) == ("VD4006", 4)
    assert "out of memory" in str(error)
    assert isolate.run(here("eat"), 16, seconds=30, memory_mib=1024) == 16 << 20


def test_too_large_a_file() -> None:
    error = caught("write", 8, file_mib=2)
    assert (error.code, error.exit_code) == ("VD4004", 4)
    assert "File too large" in str(error)


def test_too_long_and_its_own_children_end_too(tmp_path: Path) -> None:
    start = time.monotonic()
    error = caught("hang", str(tmp_path / "marker"), seconds=1.5)
    assert time.monotonic() - start < 10
    assert (error.code, error.exit_code) == ("VD4008", 4)
    assert "killed: it took longer than 1.5 s" in str(error)
    time.sleep(2.5)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["marker.started"])


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def interrupt() -> None:
        while not Path(f"{marker}.started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        isolate.run(here("hang"), str(marker), seconds=30)
    time.sleep(2.5)
    assert not marker.exists()


def test_the_child_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs prctl")
    marker = tmp_path / "marker"
    path = [str(Path(entry).absolute()) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from vitdeploy import isolate; "
    code += f"isolate.run({here('wait')!r}, {str(marker)!r}, seconds=60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not Path(f"{marker}.started").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    time.sleep(2.5)
    assert not marker.exists()


def wait(marker: str) -> None:
    Path(marker + ".started").touch()
    time.sleep(2)
    Path(marker).touch()


def test_starting_is_cheap() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        isolate.run("builtins:len", [], seconds=30)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0  # 0.1 s on an idle machine


def test_needs_only_the_standard_library() -> None:
    banned = ("torch", "numpy", "msgspec", "PIL", "typer", "rich")
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r})); import vitdeploy.isolate"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
