"""Files are written whole or not at all, and never outside their folder."""

import errno
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitdeploy import files
from vitdeploy.errors import MachineError, TrustError, UsageError


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (2 << 20) + 1])
def test_digest_is_that_of_the_whole_file(tmp_path, size) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".", "a/../../x", "link/x", "loop", "nul\0"])
def test_names_stay_inside(tmp_path, name) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    (tmp_path / "folder" / "loop").symlink_to("loop")
    with pytest.raises(TrustError) as caught:
        files.inside(tmp_path / "folder", name)
    assert (caught.value.code, caught.value.exit_code) == ("VD7001", 7)


def test_write_replaces_whole_files(tmp_path) -> None:
    path = tmp_path / "deep" / "report.json"
    files.write(path, "one")
    files.write(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["report.json"]


def write_folder(out: Path, content: str) -> None:
    with files.folder(out, ours="record") as new:
        (new / "record").write_text(content)


def test_a_folder_is_made_with_those_above_it_and_replaced_in_one_step(tmp_path, monkeypatch) -> None:
    """Named from the current folder: between the old one and the new there is no moment without."""
    monkeypatch.chdir(tmp_path)
    write_folder(Path("deep", "out"), "old")
    if sys.platform == "linux":
        monkeypatch.delattr(Path, "rename")
    write_folder(Path("deep", "out"), "new")
    assert Path("deep", "out", "record").read_text() == "new"
    assert os.listdir("deep") == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_old_folder_that_can_not_be_removed_fails_no_write(tmp_path, monkeypatch, exchange) -> None:
    def busy(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    write_folder(tmp_path / "out", "old")
    monkeypatch.setattr(os, "rmdir", busy)
    write_folder(tmp_path / "out", "new")
    assert (tmp_path / "out" / "record").read_text() == "new"


@pytest.mark.parametrize("write", [write_folder, files.write])
def test_all_is_on_the_disk_before_it_takes_its_name_and_the_name_after(tmp_path, monkeypatch, write) -> None:
    events: list[int | str] = []
    fsync, descriptors = os.fsync, os.listdir("/dev/fd")

    def note(descriptor: int) -> None:
        events.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    for name in ("rename", "replace"):
        move = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, to, move=move: (events.append("named"), move(path, to))[1])
    monkeypatch.setattr(os, "fsync", note)
    out = tmp_path / "out"
    write(out, "content")
    inodes = [path.stat().st_ino for path in ((out / "record", out) if out.is_dir() else (out,))]
    assert events == [*inodes, "named", tmp_path.stat().st_ino]
    assert os.listdir("/dev/fd") == descriptors


@pytest.mark.parametrize(
    ("own", "shared", "folder"),
    [
        ("/a", "/b", "/a"),
        ("", "/b", "/b/vitdeploy"),
        (None, "", "/home/me/.cache/vitdeploy"),
        (None, "relative", "/home/me/.cache/vitdeploy"),
        (None, None, "/home/me/.cache/vitdeploy"),
    ],
)
def test_where_the_cache_lies(monkeypatch, own, shared, folder) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("VITDEPLOY_CACHE", own), ("XDG_CACHE_HOME", shared)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert files.cache_folder() == Path(folder)


def test_write_refuses_a_folder(tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        files.write(tmp_path, "x")
    assert caught.value.code == "VD2008"


def test_an_error_inside_the_block_leaves_the_old_folder_and_passes_through(tmp_path) -> None:
    out = tmp_path / "out"
    with files.folder(out, ours="record") as new:
        (new / "record").write_text("old")
    with pytest.raises(FileNotFoundError, match="theirs"), files.folder(out, ours="record") as new:
        (new / "record").write_text("new")
        raise FileNotFoundError("theirs")
    assert (out / "record").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_without_renameat2_the_folder_is_still_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    for content in ("old", "new"):
        with files.folder(tmp_path / "out", ours="record") as new:
            (new / "record").write_text(content)
    assert (tmp_path / "out" / "record").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_temporaries_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path) -> None:
    dead, living = tmp_path / ".out.tmp-999999999-ab", tmp_path / f".out.tmp-{os.getppid()}-ab"
    for write in (write_folder, files.write):
        dead.mkdir()
        living.mkdir(exist_ok=True)
        write(tmp_path / "out", "x")
        assert not dead.exists()
        assert living.exists()
        files._remove(tmp_path / "out")


def test_a_sweep_takes_the_leases_of_the_dead_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "vitdeploy-models").mkdir()  # a user's own
    (tmp_path / "vitdeploy-crash-1.txt").touch()
    (tmp_path / "vitdeploy-link").symlink_to("elsewhere/vitdeploy-dead")
    for folder in (tmp_path / "vitdeploy-dead", tmp_path / "elsewhere" / "vitdeploy-dead"):
        (folder / "deep").mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / "deep" / "log").touch()
    kept = {path.name for path in tmp_path.iterdir()} - {"vitdeploy-dead"}
    descriptors = os.listdir("/dev/fd")
    with files.temporary_folder() as first, files.temporary_folder() as second:
        (first / "deep").mkdir()
        (first / "link").symlink_to(tmp_path / "elsewhere")
        assert {path.name for path in tmp_path.iterdir()} == {*kept, first.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert os.listdir("/dev/fd") == descriptors
    assert (tmp_path / "elsewhere" / "vitdeploy-dead" / "deep" / "log").exists()


def test_a_folder_that_is_just_being_made_is_not_swept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    take, met = files._take, []

    def meanwhile(lock: int) -> bool:
        if not met:
            met.append(lock)
            files._sweep_leases(tmp_path)  # another process begins
        return take(lock)

    monkeypatch.setattr(files, "_take", meanwhile)
    with files.temporary_folder() as folder:
        assert (folder / ".lock").exists()


def test_a_full_disk_is_said_in_our_words(tmp_path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write(tmp_path / "kept", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError) as caught:
        files.write(tmp_path / "kept", "new")
    assert (caught.value.code, caught.value.exit_code) == ("VD4002", 4)
    assert (tmp_path / "kept").read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_a_write_that_can_not_fit_is_refused_before_it_begins(tmp_path) -> None:
    with pytest.raises(MachineError) as caught:
        files.need_space(tmp_path / "not" / "yet", 1 << 60)
    assert caught.value.code == "VD4002"


def test_what_fits_exactly_may_be_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    files.need_space(tmp_path, 5 << 20)
    with pytest.raises(MachineError, match=r"needs 6 MiB, 5 MiB are free"):
        files.need_space(tmp_path, 6 << 20)


@pytest.mark.parametrize(("refusal", "alive"), [(None, True), (ProcessLookupError, False), (PermissionError, True)])
def test_who_is_alive(monkeypatch, refusal, alive) -> None:
    """Another user's process is alive too."""

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (7, 0), "a question, no signal"
        if refusal:
            raise refusal

    monkeypatch.setattr(os, "kill", kill)
    assert files._alive(7) is alive


def test_output_that_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").touch()
    (tmp_path / "foreign" / ".record.tmp-1-ab").touch()
    words = {
        "file": "is a file; ",
        "link": "is a file; ",
        "foreign": "was not written by",
        "file/below": "is a file, not a folder",
    }
    for name, said in words.items():
        with pytest.raises(UsageError, match=said) as caught:
            files.check_output(tmp_path / name, ours="record")
        assert caught.value.code == "VD2008"
    (tmp_path / "foreign" / "notes").unlink()
    files.check_output(tmp_path / "foreign", ours="record")  # what a first write left that was killed
    (tmp_path / "foreign" / "notes").touch()
    (tmp_path / "foreign" / "record").touch()
    files.check_output(tmp_path / "foreign", ours="record")
    files.check_output(tmp_path / "new" / "deep", ours="record")


def test_a_folder_that_holds_a_source_is_no_output(tmp_path) -> None:
    source, loose = tmp_path / "all" / "vit", tmp_path / "all" / "loose.onnx"
    source.mkdir(parents=True)
    for path in (source / "record", loose, tmp_path / "all" / "record"):
        path.touch()
    (tmp_path / "link").symlink_to(source)
    for out, given, said in (
        (source, source, "is the source"),
        (tmp_path / "link", source, "is the source"),
        (source, tmp_path / "link", "is the source"),
        (source.parent, source, "holds the source"),
        (source.parent, loose, "holds the source"),
        (source / "a" / "b", source, "lies inside the source"),
        (tmp_path / "link" / "new", source, "lies inside the source"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            files.check_output(out, ours="record", sources=[Path("elsewhere"), given])
        assert caught.value.code == "VD2008"
    files.check_output(source.parent.parent / "new", ours="record", sources=[source])
    files.check_output(source.parent / "new", ours="record", sources=[loose])
    (source / "record").unlink()
    files.check_output(source / "new", ours="record", sources=[source])  # a folder of somebody else's, which loses nothing


def test_the_current_folder_is_no_output(tmp_path, monkeypatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for out in (".", "..", str(tmp_path)):
        with pytest.raises(UsageError) as caught:
            files.check_output(Path(out), ours="record")
        assert caught.value.code == "VD2008"


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    with files.folder(tmp_path / "out", ours="record") as new:
        (new / "record").write_text("old")
    real = Path.rename

    def failing(self, target):
        if ".tmp-" in self.name and Path(target).name == "out" and (self / "record").read_text() == "new":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MachineError), files.folder(tmp_path / "out", ours="record") as new:
        (new / "record").write_text("new")
    assert (tmp_path / "out" / "record").read_text() == "old"
