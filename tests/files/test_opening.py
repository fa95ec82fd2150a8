"""Files that are read: regular ones, inside their folder."""

import hashlib
import os

import pytest

from vitdeploy import files
from vitdeploy.errors import InputError, TrustError


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


def test_pipes_devices_and_sockets_are_not_opened(tmp_path) -> None:
    """A pipe without a writer would be waited for, and a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("zero", "a device")):
        for read in (files.open_regular, files.sha256, files.read_bytes):
            with pytest.raises(InputError, match=f"is {kind}, expected a file") as caught:
                read(tmp_path / name)
            assert caught.value.code == "VD3001"
    with pytest.raises(IsADirectoryError):
        files.open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.open_regular(tmp_path / "gone")


def test_more_bytes_than_a_file_needs_are_not_read(tmp_path) -> None:
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    assert len(files.read_bytes(tmp_path / "file", 1 << 20)) == 1 << 20
    (tmp_path / "file").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(InputError, match="has more than 1 MiB"):
        files.read_bytes(tmp_path / "file", 1 << 20)
