"""Folders are written whole or not at all, over nothing but our own."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy import files
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.files import Ours, leases

LISTED = ("record", "part", "deep/part")


def list_files(folder: Path) -> tuple[str, ...]:
    """A stranger's record is not valid here."""
    if (folder / "record").read_text() == "stranger":
        raise InputError("VD3010", "is no record")
    return LISTED


OURS = Ours("record", list_files)


def write_folder(out: Path, content: str) -> None:
    with files.folder(out, ours=OURS) as new:
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
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
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


def test_an_error_inside_the_block_leaves_the_old_folder_and_passes_through(tmp_path) -> None:
    out = tmp_path / "out"
    with files.folder(out, ours=OURS) as new:
        (new / "record").write_text("old")
    with pytest.raises(FileNotFoundError, match="theirs"), files.folder(out, ours=OURS) as new:
        (new / "record").write_text("new")
        raise FileNotFoundError("theirs")
    assert (out / "record").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_without_renameat2_the_folder_is_still_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    for content in ("old", "new"):
        with files.folder(tmp_path / "out", ours=OURS) as new:
            (new / "record").write_text(content)
    assert (tmp_path / "out" / "record").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def refuse(out: Path, said: str) -> None:
    """The output is refused before any work and nothing is changed by that."""
    before = {path: path.lstat().st_mtime_ns for path in (out, *out.rglob("*")) if os.path.lexists(path)}
    for _ in range(2):
        with pytest.raises(UsageError, match=said) as caught:
            files.check_output(out, ours=OURS)
        assert caught.value.code == "VD2008"
    with pytest.raises(UsageError, match=said), files.folder(out, ours=OURS):
        pytest.fail("work was begun")
    assert {path: path.lstat().st_mtime_ns for path in (out, *out.rglob("*")) if os.path.lexists(path)} == before


def test_output_that_is_refused(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").touch()
    os.mkfifo(tmp_path / "pipe")
    refuse(tmp_path / "file", "is a file; ")
    refuse(tmp_path / "pipe", "is a file; ")
    refuse(tmp_path / "link", "is a link that leads nowhere; ")
    refuse(tmp_path / "foreign", "was not written by")
    refuse(tmp_path / "file" / "below", "is a file, not a folder")
    with pytest.raises(UsageError, match="File name too long"):
        files.check_output(tmp_path / ("n" * 256), ours=OURS)
    files.check_output(tmp_path / "new" / "deep", ours=OURS)
    assert sorted(os.listdir(tmp_path)) == ["file", "foreign", "link", "pipe"]


def test_what_a_killed_first_write_left_makes_no_folder_a_strangers(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".record.tmp-0123456789abcdef").touch()
    files.check_output(tmp_path / "out", ours=OURS)


def test_only_a_valid_record_makes_a_folder_ours(tmp_path) -> None:
    write_folder(tmp_path / "out", "stranger")
    refuse(tmp_path / "out", "its record is none that vitdeploy wrote")
    (tmp_path / "out" / "record").write_text("ours")
    write_folder(tmp_path / "out", "new")


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt", "other/part", "other", ".part", "deep/part/x", "part\n"])
def test_one_thing_that_the_record_does_not_list_makes_a_folder_the_users(tmp_path, name) -> None:
    out = tmp_path / "out"
    write_folder(out, "ours")
    (out / "deep").mkdir()
    (out / "deep" / "part").mkdir() if name == "deep/part/x" else (out / "deep" / "part").touch()
    (out / "part").touch()
    files.check_output(out, ours=OURS)
    stranger = out / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.mkdir() if name == "other" else stranger.touch()
    refuse(out, f"holds what vitdeploy did not write there: .*{name.strip()}")
    with pytest.raises(UsageError, match="did not write"):
        files.discard(out, ours=OURS)
    assert stranger.exists()


def test_what_came_while_it_was_written_is_not_replaced(tmp_path) -> None:
    write_folder(tmp_path / "out", "old")
    with pytest.raises(UsageError, match="did not write there: notes"), files.folder(tmp_path / "out", ours=OURS) as new:
        (new / "record").write_text("new")
        (tmp_path / "out" / "notes").touch()
    assert sorted(os.listdir(tmp_path / "out")) == ["notes", "record"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_link_to_a_folder_stands_for_it(tmp_path) -> None:
    """As releases are switched: ``current`` leads to one of them."""
    write_folder(tmp_path / "releases" / "1", "old")
    (tmp_path / "current").symlink_to("releases/1")
    write_folder(tmp_path / "current", "new")
    assert (tmp_path / "releases" / "1" / "record").read_text() == "new"
    assert os.readlink(tmp_path / "current") == "releases/1"
    assert sorted(os.listdir(tmp_path)) == ["current", "releases"]
    assert os.listdir(tmp_path / "releases") == ["1"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EBUSY, "is a mount point, which can't be replaced; name a new folder in it"),
        (errno.EXDEV, "its file system does not move folders here"),
        (errno.EROFS, "can't be written: Read-only file system"),
    ],
)
def test_a_place_where_folders_can_not_be_replaced_is_refused_before_any_work(tmp_path, monkeypatch, number, said) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    write_folder(tmp_path / "out", "old")
    monkeypatch.setattr(os, "rename", refused)
    refuse(tmp_path / "out", said)
    assert os.listdir(tmp_path) == ["out"]


def test_the_probe_moves_nothing(tmp_path, monkeypatch) -> None:
    """What lies there has its name at every moment: it is moved onto a folder that is not empty."""
    write_folder(tmp_path / "out", "old")
    rename, answers = os.rename, []

    def watched(old: Path, new: Path) -> None:
        try:
            rename(old, new)
        except OSError as exc:
            answers.append(exc.errno)
            raise

    monkeypatch.setattr(os, "rename", watched)
    files.check_output(tmp_path / "out", ours=OURS)
    assert len(answers) == 1
    assert answers[0] in (errno.ENOTEMPTY, errno.EEXIST)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_names_of_any_length_that_the_file_system_takes(tmp_path, monkeypatch, exchange) -> None:
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    name = "ö" * 127
    for content in ("old", "new"):
        write_folder(tmp_path / name, content)
    assert os.listdir(tmp_path) == [name]
    files.write(tmp_path / name / "file", "x")


def test_an_aside_copy_gets_its_name_back(tmp_path) -> None:
    """Killed between two steps, where the file system exchanges no names: what lay there is the only copy."""
    write_folder(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old-0123456789abcdef")
    (tmp_path / ".out.tmp-0123456789abcdef").mkdir()
    files.recover(tmp_path / "out")
    assert (tmp_path / "out" / "record").read_text() == "old"
    (tmp_path / "out").rename(tmp_path / ".out.old-0123456789abcdef")
    with pytest.raises(ValueError, match="late"), files.folder(tmp_path / "out", ours=OURS):
        raise ValueError("late")
    assert (tmp_path / "out" / "record").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
    (tmp_path / ".out.old-0123456789abcdef").mkdir()  # one that was replaced, and not yet removed
    files.check_output(tmp_path / "out", ours=OURS)
    assert os.listdir(tmp_path) == ["out"]


def test_an_aside_copy_of_a_living_writer_is_left_alone(tmp_path) -> None:
    aside = tmp_path / ".out.old-0123456789abcdef"
    aside.mkdir()
    lock = os.open(aside, os.O_RDONLY)
    assert leases.take(lock)
    files.recover(tmp_path / "out")
    assert os.listdir(tmp_path) == [aside.name]
    os.close(lock)
    files.recover(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_folders_in_folders_are_on_the_disk_before_the_name(tmp_path, monkeypatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    with files.folder(tmp_path / "a" / "b" / "out", ours=OURS) as new:
        (new / "record").touch()
        (new / "deep").mkdir()
        (new / "deep" / "part").touch()
    out = tmp_path / "a" / "b" / "out"
    order = [out / "deep" / "part", out / "deep", out / "record", out, out.parent]
    assert [path.stat().st_ino for path in order] == flushed[-5:]
    assert {tmp_path.stat().st_ino, out.parent.parent.stat().st_ino} <= set(flushed), "the new folders above"


def test_one_process_at_a_time_writes_into_a_folder(tmp_path) -> None:
    with files.hold(tmp_path / "deep" / "out"):
        with (
            pytest.raises(UsageError, match="is being written by another vitdeploy") as caught,
            files.hold(tmp_path / "deep" / "out"),
        ):
            pytest.fail("two at once")
        assert caught.value.code == "VD2008"
    with files.hold(tmp_path / "deep" / "out"):
        pass


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
            files.check_output(out, ours=OURS, sources=[Path("elsewhere"), given])
        assert caught.value.code == "VD2008"
    files.check_output(source.parent.parent / "new", ours=OURS, sources=[source])
    files.check_output(source.parent / "new", ours=OURS, sources=[loose])
    (source / "record").unlink()
    files.check_output(source / "new", ours=OURS, sources=[source])  # a folder of somebody else's, which loses nothing


def test_the_current_folder_is_no_output(tmp_path, monkeypatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for out in (".", "..", str(tmp_path)):
        with pytest.raises(UsageError) as caught:
            files.check_output(Path(out), ours=OURS)
        assert caught.value.code == "VD2008"


def test_a_failed_swap_puts_the_old_folder_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with files.folder(tmp_path / "out", ours=OURS) as new:
        (new / "record").write_text("old")
    real = Path.rename

    def failing(self, target):
        if ".tmp-" in self.name and Path(target).name == "out" and (self / "record").read_text() == "new":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MachineError), files.folder(tmp_path / "out", ours=OURS) as new:
        (new / "record").write_text("new")
    assert (tmp_path / "out" / "record").read_text() == "old"


PLACES = """
set -e
mkdir -p lower/out upper work merged volume fixed host/out bound
touch lower/out/record host/out/record
mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work merged
mount -t tmpfs none volume
touch volume/record
mount -t tmpfs none fixed && mkdir fixed/out && touch fixed/out/record && mount -o remount,ro fixed
mount --bind host bound
exec "$0" -c "$1"
"""
TRY = """
from pathlib import Path
from vitdeploy import files
from vitdeploy.errors import UsageError
ours = files.Ours("record", lambda folder: ("record",))
for name in ("merged/out", "merged/new", "volume", "volume/new", "fixed/out", "fixed/new", "bound/out"):
    before = sorted(path for path in Path(name).parent.rglob("*"))
    try:
        files.check_output(Path(name), ours=ours)
    except UsageError as refusal:
        said = refusal.message
    else:
        with files.folder(Path(name), ours=ours) as new:
            (new / "record").write_text("new")
        said = (Path(name) / "record").read_text()
    print(f"{name}: {said}")
    assert said == "new" or sorted(path for path in Path(name).parent.rglob("*")) == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts of Linux")
def test_real_file_systems_that_replace_folders_and_those_that_can_not(tmp_path) -> None:
    """An overlay's lower layer, a volume, a read-only disk, a bind mount: written, or refused before any work."""
    command = ["unshare", "--map-root-user", "--mount", "bash", "-c", PLACES, sys.executable, TRY]
    environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    if "Operation not permitted" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no mounts in here: {done.stderr.strip()[-100:]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "merged/out: can't be written: its file system does not move folders here (a layer below, as in a container's image)",
        "merged/new: new",
        "volume: is a mount point, which can't be replaced",
        "volume/new: new",
        "fixed/out: can't be written: Read-only file system",
        "fixed/new: can't be written: Read-only file system",
        "bound/out: new",
    ]
