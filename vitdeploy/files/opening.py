"""Files that are read: regular ones only, named inside their folder, told by their digest."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import InputError, TrustError

LARGEST_TEXT = 64 << 20
"""Bytes that nothing of what people and programs write as text, settings or records comes near to."""
Identity = tuple[int, int, int, int, int]
"""Device, number, size, and the times of the last write and the last change."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def name_kind(mode: int) -> str:
    """What is no regular file, with an article; "" for files, folders and links.

    Args:
        mode: Of `os.stat`.
    """
    return _KINDS.get(stat.S_IFMT(mode), "")


def open_regular(path: Path) -> BinaryIO:
    """A file, open for reading. What could give no end of bytes, or none for ever, is not opened.

    Raises:
        OSError: As `open` gives it; a folder is IsADirectoryError.
        InputError: VD3001, a pipe, a device or a socket.
    """
    _refuse_kind(path, path.stat().st_mode)  # before it is opened: some devices act on that alone
    stream: BinaryIO = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (the caller's)
    try:
        _refuse_kind(path, os.fstat(stream.fileno()).st_mode)
        os.set_blocking(stream.fileno(), True)
    except BaseException:
        stream.close()
        raise
    return stream


def read_bytes(path: Path, largest: int | None = None) -> bytes:
    """A regular file's bytes.

    Args:
        path: The file.
        largest: Most bytes that are taken; None is no limit.

    Raises:
        OSError, InputError: As `open_regular`; VD3001, it is larger.
    """
    with open_regular(path) as stream:
        data = stream.read() if largest is None else stream.read(largest + 1)
    if largest is not None and len(data) > largest:
        raise InputError("VD3001", f"has more than {largest >> 20} MiB, which nothing of its kind needs", file=path)
    return data


def read_text(path: Path, *, strict: bool = False) -> str:
    """A regular file's text: UTF-8, with or without a byte order mark, any line ends.

    Args:
        path: The file.
        strict: Whether what is no text raises UnicodeDecodeError; else it is replaced.

    Raises:
        OSError, InputError: As `read_bytes`.
    """
    text = read_bytes(path, LARGEST_TEXT).decode("utf-8-sig", "strict" if strict else "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError, InputError: As `open_regular`.
    """
    return digest_file(path)[0]


def digest_file(path: Path) -> tuple[str, Identity]:
    """SHA-256 of a file's bytes, in hex, and which file that was.

    Raises:
        OSError, InputError: As `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        identity = _identify(os.fstat(stream.fileno()))
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest(), identity


def identify(path: Path) -> Identity | None:
    """Which file has that name now, as of its last change; None where there is none.

    A file that was written to, replaced, or moved away and back is another: no program sets the time of a change.
    """
    try:
        return _identify(path.stat())
    except OSError:
        return None


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def inside(folder: Path, name: str) -> Path:
    """The file ``name`` below ``folder``, refused when it would lie elsewhere.

    Raises:
        TrustError: VD7001, the name is absolute, climbs out, or goes through a symbolic link that leads out.
    """
    root = folder.resolve()
    try:
        path = (root / name).resolve()
    except (ValueError, RuntimeError, OSError):  # a NUL byte, or a loop of links
        path = root
    if not name or Path(name).is_absolute() or root not in path.parents:
        raise TrustError("VD7001", f"names the file {name!r}, which lies outside", file=folder)
    return path


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe waits for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_kind(path: Path, mode: int) -> None:
    if kind := name_kind(mode):
        raise InputError("VD3001", f"is {kind}, expected a file", file=path, fix="give a file that holds what comes out of it")
