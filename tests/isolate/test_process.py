"""A child process: answers and errors cross over whole; crashes, hangs, bombs and exits become one typed line."""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vitdeploy import isolate, machine
from vitdeploy.errors import INTERRUPTED, InputError, MachineError, TrustError, UsageError, VitdeployError
from vitdeploy.isolate import process, service

LIMITS = ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_AS", "RLIMIT_CPU")
USED = r"(: it had used \d+ MiB of [\d.]+ .iB)?"
"""Not there when the child died before it was looked at, and had used less than its parent."""
ERRORS = {"2": UsageError("VD2003", "a"), "3": InputError("VD3002", "b", file="x\n.pt", fix="c"), "7": TrustError("VD7002", "d")}


def here(name: str) -> str:
    return f"tests.isolate.test_process:{name}"


def echo(argument: object) -> object:
    return argument


def describe(_: object) -> dict[str, object]:
    limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in LIMITS}
    return {
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "files": sorted(path.name for path in Path.cwd().iterdir()),
        "temporary": tempfile.gettempdir(),
        "session": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read(),
        "limits": limits,
        "inherited": [number for number in range(3, 100) if is_inherited(number)],
        "modules": [name for name in ("torch", "numpy", "msgspec") if name in sys.modules],
    }


def is_inherited(descriptor: int) -> bool:
    """Whether a program that starts another without care hands it this descriptor."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:  # there is none
        return False


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


def lie(answer: str) -> None:
    """Send something else than an answer, with its length before it, and say no more."""
    raw = answer.encode()
    service._channel.sendall(len(raw).to_bytes(8, "little") + raw)
    time.sleep(60)


def swell(_: object) -> None:
    """Announce more than may come."""
    service._channel.sendall((1 << 60).to_bytes(8, "little"))
    time.sleep(60)


def hang(marker: str) -> None:
    """With a child of its own, whose number it tells."""
    tell(marker, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)


def wait(marker: str) -> None:
    """Tells its own number."""
    tell(marker, os.getpid())
    time.sleep(60)


def tell(marker: str, pid: int) -> None:
    """Write a process number into the marker, whole."""
    part = Path(f"{marker}.part")
    part.write_text(str(pid))
    part.rename(marker)


def has_ended(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within that time; one that waits to be reaped has ended."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except ProcessLookupError:
            return True
        except FileNotFoundError:  # gone just now, or no /proc
            pass
        time.sleep(0.02)
    return False


def eat(mib: int) -> int:
    return len(bytearray(mib << 20))


def grow_and_die(mib: int) -> None:
    held = bytearray(b"1") * (mib << 20)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(len(held))


def count(steps: int) -> str:
    for done in range(steps + 1):
        isolate.report_progress("count\x1b[2J", done, steps)
    return "counted"


def misreport(step: object) -> None:
    isolate.report_progress(*step)


def tidy(folder: str) -> None:
    """Half-writes a file, and removes it however it ends."""
    part = Path(folder) / "part"
    try:
        part.touch()
        time.sleep(60)
    finally:
        part.unlink()


def stubborn(folder: str) -> None:
    """Does not listen to anybody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(folder) / "part").touch()
    time.sleep(60)


class Counter:
    """A subject: keeps what it was given."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int, arrays: list[bytearray]) -> tuple[int, list[memoryview]]:
        self.total += amount
        return self.total, [memoryview(bytes(reversed(each))) for each in arrays]

    def fail(self, which: str, _: list[bytearray]) -> tuple[None, list[memoryview]]:
        raise ERRORS[which]

    def call(self, name: str, _: list[bytearray]) -> tuple[object, list[memoryview]]:
        return globals()[name](None), []

    def die(self, number: int, _: list[bytearray]) -> tuple[None, list[memoryview]]:
        die(number)
        return None, []

    def sleep(self, seconds: float, _: list[bytearray]) -> tuple[None, list[memoryview]]:
        time.sleep(seconds)
        return None, []


def write(mib: int) -> None:
    with open("big", "wb") as stream:
        for _ in range(mib):
            stream.write(bytes(1 << 20))


def break_off(_: object) -> None:
    raise EOFError("a file of theirs ends early")


def error_text(code: str, exit: int, message: object) -> str:
    error = {"code": code, "file": None, "message": message, "fix": "", "exit": exit}
    return json.dumps({"sizes": [], "error": error, "traceback": ""})


def caught(name: str, argument: object = None, **limits: float | str) -> VitdeployError:
    with pytest.raises(VitdeployError) as raised:
        isolate.run(here(name), argument, **{"seconds": 30, **limits})
    assert str(raised.value).isprintable()
    return raised.value


@pytest.mark.parametrize("value", [None, 3, 0.1, "ä\n", [1, [2]], {"a": {"b": None}}], ids=str)
def test_answer_crosses(value: object) -> None:
    assert isolate.run(here("echo"), value, seconds=30) == value


def test_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("LANG", "C.UTF-8")
    surroundings = isolate.run(here("describe"), seconds=30, file_mib=3, memory_mib=4096)
    assert "secret" not in surroundings["environment"].values()
    assert set(surroundings["environment"]) <= {*isolate.KEPT, "TMPDIR"}
    assert surroundings["environment"]["LANG"] == "C.UTF-8"
    assert surroundings["folder"] == surroundings["temporary"] != str(Path.cwd())
    assert surroundings["files"] == [".lock", "log"]
    assert not Path(surroundings["folder"]).exists()  # cleaned up
    assert surroundings["session"]
    assert surroundings["stdin"] == ""
    assert surroundings["inherited"] == []
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 3 << 20, "RLIMIT_AS": 4096 << 20, "RLIMIT_CPU": cpu_s(30)}
    assert surroundings["limits"] == limits
    assert surroundings["modules"] == []


def cpu_s(seconds: int) -> int:
    """What a child gets that may compute for so long on every core."""
    return seconds * machine.logical_cores() + 1


def test_limits_of_a_child_that_is_asked_more_than_once() -> None:
    """A session has no end, so it has no limit of time unless it is given one."""
    with isolate.Child() as child:
        limits = child.ask(here("describe"), seconds=30)[0]["limits"]
    unlimited = resource.RLIM_INFINITY
    assert limits == {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 64 << 20, "RLIMIT_AS": unlimited, "RLIMIT_CPU": unlimited}
    limits = isolate.run(here("describe"), seconds=30, cpu_s=7)["limits"]
    assert limits["RLIMIT_CPU"] == cpu_s(7)


@pytest.mark.parametrize("which", ERRORS)
def test_our_errors_cross_whole(which: str) -> None:
    error = caught("fail", which)
    assert type(error) is type(ERRORS[which])
    assert error.record() == ERRORS[which].record()
    assert "in fail" in str(error.__cause__)


@pytest.mark.parametrize(
    ("name", "argument", "code", "says"),
    [
        (
            "die",
            signal.SIGSEGV,
            "VD4007",
            f"a child process was ended by SIGSEGV{USED}; it said last: last words",
        ),
        (
            "die",
            signal.SIGKILL,
            "VD4007",
            rf"ended by SIGKILL{USED} \(out of memory\?\).*; use a smaller batch",
        ),
        ("die", signal.SIGXCPU, "VD4008", "longer than 30 s"),
        ("die", signal.SIGRTMIN + 3, "VD4007", "ended by"),
        ("leave", 3, "VD4007", "ended with status 3 before it answered"),
        ("leave", 0, "VD4007", "ended with status 0 before it answered"),
        ("vanish", None, "VD4007", "ended with status 0 before it answered"),
        ("lie", "", "VD4007", "makes no sense"),
        ("lie", "[]", "VD4007", "makes no sense"),
        ("lie", "{}", "VD4007", "makes no sense"),
        ("lie", '{"sizes": [-1]}', "VD4007", "makes no sense"),
        ("lie", '{"sizes": [1e999]}', "VD4007", "makes no sense"),
        ("lie", f'{{"sizes": [{1 << 50}]}}', "VD4007", "makes no sense"),
        ("lie", '{"sizes": [], "error": 1}', "VD4007", "makes no sense"),
        ("lie", '{"sizes": [], "progress": [1, 2, 3]}', "VD4007", "makes no sense"),
        ("lie", error_text("VD9999", 3, ""), "VD4007", "makes no sense"),
        ("lie", error_text("VD3001", 3, 3), "VD4007", "makes no sense"),
        ("lie", error_text("VD3001", 99, ""), "VD4007", "makes no sense"),
        ("lie", "[" * 200_000, "VD4007", "makes no sense"),
        ("swell", None, "VD4007", "makes no sense"),
    ],
)
def test_failures(name: str, argument: object, code: str, says: str) -> None:
    error = caught(name, argument)
    assert type(error) is MachineError
    assert error.exit_code == 4
    assert error.code == code
    assert re.search(says, str(error)), str(error)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("break_down", "a child process: KeyError: 'first line"),
        ("no_such_function", "a child process: AttributeError: "),
        ("break_off", "a child process: EOFError"),
    ],
)
def test_what_is_no_error_of_ours_stays_a_mistake_of_ours(name: str, says: str) -> None:
    with isolate.Child() as child:
        with pytest.raises(isolate.ChildCrash, match=says) as crash:
            child.ask(here(name), seconds=30)
        assert "Traceback" in str(crash.value.__cause__)
        assert "\n" not in str(crash.value)
        assert child.ask(here("echo"), 1, seconds=30)[0] == 1


def test_too_much_memory() -> None:
    error = caught("eat", 4096, memory_mib=1024, smaller="take less")
    assert (error.code, error.exit_code, error.fix) == ("VD4006", 4, "take less")
    assert re.search(r"out of memory: it had used \d+ MiB of 1.0 GiB", str(error))
    assert isolate.run(here("eat"), 16, seconds=30, memory_mib=1024) == 16 << 20


def test_too_much_memory_for_what_is_sent() -> None:
    with isolate.Child(here("Counter"), memory_mib=200) as child:
        with pytest.raises(MachineError, match="ran out of memory; use a smaller batch") as raised:
            child.ask("add", 1, [memoryview(mmap.mmap(-1, 256 << 20))], seconds=30)
        assert raised.value.code == "VD4006"


@contextmanager
def stopped(child: isolate.Child, seconds: float) -> Iterator[None]:
    """A child that hears nothing for a while, and goes on then."""
    os.kill(child.pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, os.kill, (child.pid, signal.SIGCONT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


LARGE = memoryview(bytes(8 << 20))
"""More than a socket holds."""


@pytest.mark.parametrize("questions", [0, 1])
def test_a_child_that_takes_nothing_in_is_late(questions: int) -> None:
    with isolate.Child(here("Counter")) as child:
        for _ in range(questions):
            child.ask("add", 1, seconds=30)
        start = time.monotonic()
        with stopped(child, 6), pytest.raises(MachineError, match=r"it took longer than 0\.5 s") as late:
            child.ask("add", 1, [LARGE], seconds=0.5)
        assert late.value.code == "VD4008"
        assert 0.5 <= time.monotonic() - start < 5


def test_a_child_that_takes_it_in_slowly_may_use_its_time() -> None:
    with isolate.Child(here("Counter")) as child:
        child.ask("add", 1, seconds=30)
        with stopped(child, 0.7):
            assert child.ask("add", 2, [LARGE], seconds=30) == (3, [bytes(LARGE)])


def test_too_large_a_file() -> None:
    error = caught("write", 8, file_mib=2)
    assert (error.code, error.exit_code) == ("VD4002", 4)
    assert "File too large" in str(error)


def test_too_long_and_its_own_children_end_too(tmp_path: Path) -> None:
    start = time.monotonic()
    error = caught("hang", str(tmp_path / "marker"), seconds=1.5)
    assert time.monotonic() - start < 10
    assert (error.code, error.exit_code) == ("VD4008", 4)
    assert re.search(r"killed: it took longer than 1.5 s, and it had used", str(error))
    marker = tmp_path / "marker"
    assert not marker.exists() or has_ended(int(marker.read_text()))  # a busy machine may not have come so far


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def interrupt() -> None:
        while not marker.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        isolate.run(here("hang"), str(marker), seconds=30)
    assert has_ended(int(marker.read_text()))


@pytest.mark.parametrize(("name", "seconds"), [("tidy", 0.0), ("stubborn", 0.5)])
def test_an_interrupted_child_may_clean_up_for_a_moment(
    name: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    pid = []

    def interrupt() -> None:
        while not (tmp_path / "part").exists():
            time.sleep(0.02)
        pid.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        isolate.run(here(name), str(tmp_path), seconds=30)
    assert seconds <= time.monotonic() - pid[0] < seconds + 1.5
    assert (tmp_path / "part").exists() == (name == "stubborn")


def test_memory_that_a_killed_child_had_used_is_told() -> None:
    """The parent is a small process of its own: the kernel counts a larger parent's memory as the child's."""
    path = [str(Path(entry).absolute()) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from vitdeploy import isolate; "
    code += f"isolate.run({here('grow_and_die')!r}, 300, seconds=60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    used = re.search(r"SIGKILL: it had used (\d+) MiB of", done.stderr)
    assert used is not None, done.stderr
    assert 300 < int(used[1]) < 450


def test_the_memory_of_a_child_that_is_smaller_than_its_parent_is_its_own() -> None:
    held = bytearray(b"1") * (300 << 20)
    with isolate.Child(here("Counter")) as child:
        with pytest.raises(MachineError) as raised:
            child.ask("sleep", 30, seconds=1)
        used = re.search(r"it had used (\d+) MiB", str(raised.value))
        assert used is not None, raised.value
        assert 5 < int(used[1]) < 100 < len(held) >> 20


def test_a_child_that_is_late_at_once_is_looked_at_before_it_is_killed() -> None:
    with isolate.Child(here("Counter")) as child:
        with pytest.raises(MachineError) as raised:
            child.ask("sleep", 30, seconds=0)
        assert re.search(r"longer than 0 s, and it had used \d{1,2} MiB", str(raised.value)), raised.value


def test_what_the_kernel_counts_of_a_large_parent_is_not_the_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent may have grown a little between the look at it and the start of the child."""
    with isolate.Child(here("Counter")) as child:
        grown = machine.peak_mib() + 20
        monkeypatch.setattr(machine, "to_mib", lambda usage: grown)
        with pytest.raises(MachineError) as raised:
            child.ask("sleep", 30, seconds=1)
        assert re.search(r"it had used [1-9]\d? MiB", str(raised.value)), (raised.value, grown)


def test_steps_are_heard_in_order() -> None:
    heard: list[tuple[str, int, int]] = []
    answer = isolate.run(here("count"), 3, seconds=30, progress=lambda *step: heard.append(step))
    assert answer == "counted"
    assert heard == [("count\\x1b[2J", done, 3) for done in range(4)]
    isolate.report_progress("nobody listens here", 0, 1)


@pytest.mark.parametrize("step", [[1, 2, 3], ["a", "b", 3], ["a", 1, None]])
def test_steps_are_checked(step: list[object]) -> None:
    assert "makes no sense" in str(caught("misreport", step))


def test_a_listener_that_raises_ends_the_child() -> None:
    with isolate.Child() as child:
        folder = Path(child.ask(here("describe"), seconds=30)[0]["folder"])
        assert folder.is_dir()
        with pytest.raises(ZeroDivisionError):
            child.ask(here("count"), 3, seconds=30, progress=lambda *_: 1 / 0)
        assert child._process.returncode == INTERRUPTED  # in peace
        assert not folder.exists()
        with pytest.raises(MachineError, match="was interrupted"):
            child.ask(here("echo"), 3, seconds=30)


def test_a_subject_keeps_its_state_and_arrays_cross() -> None:
    with isolate.Child(here("Counter")) as child:
        assert child.ask("add", 2, seconds=30) == (2, [])
        total, (first, second) = child.ask("add", 3, [memoryview(b"abc"), memoryview(b"")], seconds=30)
        assert (total, first, second) == (5, b"cba", b"")
        large = memoryview(os.urandom(8 << 20))
        assert child.ask("add", 0, [large], seconds=30)[1] == [bytes(reversed(large))]
        with pytest.raises(InputError, match=r"x\\n\.pt"):
            child.ask("fail", "3", seconds=30)
        with pytest.raises(isolate.ChildCrash, match="KeyError"):
            child.ask("call", "break_down", seconds=30)
        with pytest.raises(isolate.ChildCrash, match="AttributeError"):
            child.ask("no_such_method", seconds=30)
        assert child.ask("add", 1, seconds=30)[0] == 6  # errors of its own do not end it
        assert child.ask(here("echo"), "functions too", seconds=30) == ("functions too", [])


@pytest.mark.parametrize(
    ("call", "argument", "seconds", "code", "says"),
    [
        ("die", signal.SIGSEGV, 30, "VD4007", "the engine was ended by SIGSEGV"),
        ("sleep", 60, 0.5, "VD4008", "the engine was killed"),
    ],
)
def test_after_its_death_every_question_fails_alike(call: str, argument: float, seconds: float, code: str, says: str) -> None:
    words = {"what": "the engine", "file": "model.onnx", "longer": "wait longer", "instead": "use another"}
    with isolate.Child(here("Counter"), **words) as child:
        errors = []
        for question in ((call, argument), ("add", 1), (call, argument)):
            with pytest.raises(MachineError) as raised:
                child.ask(*question, seconds=seconds)
            errors.append(raised.value.record())
        assert errors[0] == errors[1] == errors[2]
        assert errors[0]["code"] == code
        assert str(errors[0]["message"]).startswith(says)
        assert errors[0]["file"] == "model.onnx"
        assert errors[0]["fix"] == ("wait longer" if code == "VD4008" else "use another")
    child.close()  # closing twice is allowed


def test_a_child_that_nobody_closes_ends_with_its_owner() -> None:
    child = isolate.Child(here("Counter"))
    pid = child.ask(here("number"), seconds=30)[0]
    assert pid == child.pid
    del child
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"


def number(_: object) -> int:
    return os.getpid()


def test_a_fork_of_the_owner_ends_no_child() -> None:
    with isolate.Child() as child:
        fork = os.fork()
        if fork == 0:
            child.close()
            os._exit(0)
        assert os.waitpid(fork, 0)[1] == 0
        assert child.ask(here("echo"), 1, seconds=30)[0] == 1


def test_a_child_that_can_not_be_started_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = os.listdir("/dev/fd")
    with isolate.Child() as child:
        child.ask(here("echo"), seconds=30)
        assert len(list(tmp_path.iterdir())) == 1
    assert os.listdir("/dev/fd") == descriptors
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MachineError, match="starting a child process"):
        isolate.Child()
    assert not list(tmp_path.iterdir())
    assert os.listdir("/dev/fd") == descriptors


@pytest.mark.parametrize(
    ("status", "peak", "cap", "text", "full"),
    [
        (None, 900.0, 1000, "gave an answer that makes no sense", False),
        (1, 900.0, 1000, "ended with status 1 before it answered", False),
        (-11, 800.0, 1000, "was ended by SIGSEGV: it had used 800 MiB of 1000 MiB", False),
        (-11, 801.0, 1000, "was ended by SIGSEGV: it had used 801 MiB of 1000 MiB (out of memory?)", True),
        (-11, 0.0, 1000, "was ended by SIGSEGV", False),
        (-9, 0.0, None, "was ended by SIGKILL (out of memory?)", True),
        (-60, 0.0, None, "was ended by signal 60", False),
    ],
)
def test_how_a_child_ended(status: int | None, peak: float, cap: int | None, text: str, full: bool) -> None:
    assert process._explain_end(status, peak, cap) == (text, full)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"first\n last \n\n", "; it said last: last"),
        (b"x" * 5000 + b"\nlast \xff", "; it said last: last \ufffd"),
        (b"ab" * 5000, "; it said last: " + "ab" * 150),
    ],
)
def test_last_words(tmp_path: Path, log: bytes, words: str) -> None:
    assert process._last_words(tmp_path) == ""
    (tmp_path / "log").write_bytes(log)
    assert process._last_words(tmp_path) == words


def test_a_child_outlives_the_thread_that_started_it() -> None:
    made: list[isolate.Child] = []
    thread = threading.Thread(target=lambda: made.append(isolate.Child(here("Counter"))))
    thread.start()
    thread.join()
    time.sleep(0.3)
    with made[0] as child:
        assert child.ask("add", 2, seconds=30)[0] == 2


def test_only_children_know_that_they_are() -> None:
    assert not isolate.is_child()
    assert isolate.run(here("is_inside"), seconds=30) is True


def is_inside(_: object) -> bool:
    return isolate.is_child()


def test_neither_the_child_nor_its_folder_outlives_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform != "linux":
        pytest.skip("needs prctl")
    marker, place = tmp_path / "marker", tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    path = [str(Path(entry).absolute()) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from vitdeploy import isolate; "
    code += f"isolate.run({here('wait')!r}, {str(marker)!r}, seconds=60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not marker.exists():
        assert parent.poll() is None
        time.sleep(0.02)
    (left,) = place.iterdir()
    with isolate.Child():
        assert left.exists()
        parent.kill()
        parent.wait()
        assert has_ended(int(marker.read_text()))
        with isolate.Child():
            assert not left.exists()
            assert len(list(place.iterdir())) == 2
    assert not list(place.iterdir())


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


def hold(mib: int) -> int:
    block = bytearray(mib << 20)
    block[:: mmap.PAGESIZE] = bytes(len(block[:: mmap.PAGESIZE]))  # every page is touched
    time.sleep(60)
    return len(block)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_child_that_holds_nearly_all_memory_is_ended_before_the_system_ends_whom_it_likes(monkeypatch) -> None:
    """In a container the memory is the container's."""
    monkeypatch.setattr(machine, "machine_mib", lambda: 300.0)
    assert isolate.run(here("echo"), "small", seconds=60) == "small"
    with pytest.raises(
        MachineError, match=r"was ended by SIGKILL: it had used \d+ MiB of [\d.]+ .iB \(out of memory\?\)"
    ) as caught:
        isolate.run(here("hold"), 400, seconds=60, smaller="use less")
    assert (caught.value.code, caught.value.fix) == ("VD4007", "use less")


def read_score(_: object) -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_where_memory_ends_the_child_goes_first() -> None:
    assert isolate.run(here("read_score"), seconds=60) == "1000"
