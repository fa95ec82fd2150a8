"""Files are written whole or not at all."""

import errno
import os
import stat
from types import SimpleNamespace

import pytest

from vitdeploy import files
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.files import whole


def test_write_replaces_whole_files(tmp_path) -> None:
    path = tmp_path / "deep" / "report.json"
    files.write(path, "one")
    files.write(path, b"two")
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["report.json"]


def test_write_refuses_a_folder(tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        files.write(tmp_path, "x")
    assert caught.value.code == "VD2008"


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
    monkeypatch.setattr(whole.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    files.need_space(tmp_path, 5 << 20)
    with pytest.raises(MachineError, match=r"needs 6 MiB, 5 MiB are free"):
        files.need_space(tmp_path, 6 << 20)


def test_a_link_is_followed(tmp_path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "report.md").write_text("old")
    (tmp_path / "report.md").symlink_to("shared/report.md")
    files.write(tmp_path / "report.md", "new")
    assert (tmp_path / "report.md").is_symlink()
    assert (tmp_path / "shared" / "report.md").read_text() == "new"


@pytest.mark.parametrize("check", [files.check_file, lambda path: files.write(path, "x")])
def test_what_is_no_file_is_never_replaced(tmp_path, check) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loose").symlink_to("nowhere")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    words = {"pipe": "a named pipe", "loose": "a link that leads nowhere", "null": "a device", "folder": "a folder"}
    for name, said in words.items():
        before = (tmp_path / name).lstat()
        with pytest.raises(UsageError, match=f"is {said}; a file is to be written there") as caught:
            check(tmp_path / name)
        assert caught.value.code == "VD2008"
        assert (tmp_path / name).lstat() == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("check", [files.check_file, lambda path: files.write(path, "x")])
def test_what_the_file_system_refuses_is_said_in_our_words(tmp_path, check) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / ("n" * 256), tmp_path / "file" / "below"):
        with pytest.raises(UsageError) as caught:
            check(path)
        assert caught.value.code == "VD2008"
    files.check_file(tmp_path / "new" / "deep" / "report.md")
    assert os.listdir(tmp_path) == ["file"], "what was tried is gone"
