"""Temporary names: whose writer is dead is told by its lock, and nothing else is swept."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from vitdeploy import files
from vitdeploy.files import temporary

WRITER = """
import os, sys, time
from pathlib import Path
from vitdeploy.files.temporary import make_file, make_folder
made = [make(Path(sys.argv[1])) for make in (make_file, make_folder)]
print(*(each.path.name for each in made), flush=True)
time.sleep(600)
"""


def test_what_a_living_writer_makes_is_kept_and_swept_when_it_is_dead(tmp_path) -> None:
    out = tmp_path / "out"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    names = set(writer.stdout.readline().split())
    files.write(out, "x")
    temporary.sweep_inside(tmp_path)
    assert set(os.listdir(tmp_path)) == {"out", *names}
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    files.write(out, "x")
    assert os.listdir(tmp_path) == ["out"]


def test_names_that_only_look_alike_are_not_swept(tmp_path) -> None:
    kept = {".out.tmp-notes", ".out.tmp-0123456789ABCDEF", "out.tmp-0123456789abcdef", ".out2.tmp-0123456789abcdef", ".out.old-1"}
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".out.tmp-0123456789abcdee").symlink_to("elsewhere")
    for name in (".out.tmp-0123456789abcdef", ".out.tmp-12345-89abcdef"):
        (tmp_path / name).touch()
    files.write(tmp_path / "out", "x")
    assert set(os.listdir(tmp_path)) == {*kept, "out", ".out.tmp-0123456789abcdee"}


def test_without_locks_nothing_is_swept_and_all_is_written(tmp_path, monkeypatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / ".out.tmp-0123456789abcdef").touch()
    files.write(tmp_path / "out", "x")
    with files.hold(tmp_path / "folder"):
        pass
    assert set(os.listdir(tmp_path)) == {".out.tmp-0123456789abcdef", "out", "folder"}


@pytest.mark.parametrize("make", [temporary.make_file, temporary.make_folder])
def test_a_sweep_between_making_and_locking_costs_another_try(tmp_path, monkeypatch, make) -> None:
    take, swept = temporary.take, []

    def meanwhile(lock: int) -> bool:
        if not swept:
            swept.append(lock)
            temporary.sweep_inside(tmp_path)  # another process begins
        return take(lock)

    monkeypatch.setattr(temporary, "take", meanwhile)
    made = make(tmp_path / "out")
    assert made.path.exists()
    os.close(made.lock)
