"""Files that are written whole or not at all.

Every write goes to a temporary name beside the target (same file system), is flushed to disk and then renamed, so that a
kill -9 at any point leaves the old content or none, never half.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vitdeploy.errors import MachineError, UsageError, library
from vitdeploy.files.opening import name_kind
from vitdeploy.files.temporary import make_file, sweep

_REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG, errno.EBUSY, errno.EXDEV),
    *(errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENOENT, errno.ENOTEMPTY, errno.ESTALE),
)
"""What a file system says of a place where nothing can be written; the rest is the machine's."""


def write(path: Path, data: bytes | str) -> None:
    """Write a whole file, atomically.

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    with new_file(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, to be written piece by piece, that appears under its name complete, or not at all.

    A symbolic link is followed: what it leads to is replaced.

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    with writable(path):
        target = settle_file(path)
        make_parents(target)
        sweep(target)
        temporary = make_file(target)
        try:
            with os.fdopen(temporary.lock, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                temporary.path.replace(target)
        finally:
            temporary.path.unlink(missing_ok=True)
        flush_folder(target.parent)


def settle_file(path: Path) -> Path:
    """Where a file that is named so is written: links followed.

    Raises:
        UsageError: VD2008, something lies there that is no file.
    """
    target = path.resolve()
    kind = ""
    if path.is_symlink() and not path.exists():
        kind = "a link that leads nowhere"
    elif target.exists():
        kind = "a folder" if target.is_dir() else name_kind(target.stat().st_mode)
    if kind:
        raise UsageError("VD2008", f"is {kind}; a file is to be written there", file=path, fix="choose another name")
    return target


def check_file(path: Path) -> None:
    """Refuse a file that can't be written there, before any work is done: one is made beside it, and removed.

    Raises:
        UsageError: VD2008.
    """
    with writable(path):
        target = settle_file(path)
        above = find_above(target)
        temporary = make_file(target if above == target.parent else above / target.name)
        os.close(temporary.lock)
        temporary.path.unlink(missing_ok=True)


def find_above(path: Path) -> Path:
    """The nearest folder above that is there.

    Raises:
        UsageError: VD2008, it is no folder.
    """
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise UsageError("VD2008", f"{above} is a file, not a folder", file=path, fix="choose another place")
    return above


def make_parents(target: Path) -> None:
    """Make the folders above, on disk too."""
    above = find_above(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for parent in target.parents:
        if parent == above:
            break
        flush_folder(parent.parent)


def flush_folder(path: Path) -> None:
    """Have a folder's names written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """The file system's refusals to write, in our words."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _REFUSALS:
            raise UsageError("VD2008", f"can't be written: {exc.strerror}", file=path, fix="choose another place") from exc
        with library("file system", path):
            raise exc from None


def need_space(path: Path, size: int) -> None:
    """Refuse a write of ``size`` bytes that the disk can't hold, before the first byte.

    Raises:
        MachineError: VD4002.
    """
    above = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    if free < size:
        message = f"needs {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise MachineError("VD4002", message, file=path, fix="free some disk, or choose another place")
