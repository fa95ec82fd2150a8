"""Who is alive, told by locks of the kernel, and folders below TMPDIR that go with their process.

A process number says nothing in another container, on another machine, or after a restart. A lock (flock) is freed by the
kernel when its holder ends, even by kill -9, and is seen by everybody who sees the file.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vitdeploy.errors import MachineError

_LOCK = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)


class Lease(NamedTuple):
    """A folder below TMPDIR, and the lock that says that its process lives.

    Attributes:
        folder: It holds the file of the lock only.
        lock: File descriptor; the kernel frees the lock when the process ends, even by kill -9.
    """

    folder: Path
    lock: int

    def end(self) -> None:
        """Remove the folder, the lock last, so that a removal that is killed is finished by a later sweep."""
        with suppress(OSError):  # somebody else removed it
            for path in self.folder.iterdir():
                if path.name != _LOCK:
                    remove(path)
        remove(self.folder)
        os.close(self.lock)


def lease_folder() -> Lease:
    """A new, empty folder below TMPDIR for this process alone; what dead processes left there is removed.

    It takes its name when it is locked. A sweep that meets one that is just being made may win: then another is made.

    Raises:
        MachineError: VD4004, there is no place for it.
        OSError: It can't be made.
    """
    sweep_leases()
    place = _find_place()
    while True:
        bare = Path(tempfile.mkdtemp(prefix=".vitdeploy-", dir=place))
        with suppress(FileNotFoundError):
            lock = os.open(bare / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                take(lock)
                return Lease(bare.rename(place / bare.name.removeprefix(".")), lock)
            except BaseException:
                os.close(lock)
                remove(bare)
                raise


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder as `lease_folder` makes it, which is removed with the block."""
    lease = lease_folder()
    try:
        yield lease.folder
    finally:
        lease.end()


def sweep_leases() -> None:
    """Remove what processes left below TMPDIR that are dead.

    Raises:
        MachineError: VD4004, there is no such folder.
    """
    place = _find_place()
    for folder in (*place.glob("vitdeploy-*"), *place.glob(".vitdeploy-????????")):
        with suppress(OSError):  # another user's, not a folder of ours, or just removed by its owner
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            if folder.name.startswith(".") and not any(folder.iterdir()):  # its maker was killed before it could lock it
                folder.rmdir()
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            if take(lock):
                Lease(folder, lock).end()
            else:
                os.close(lock)


def _find_place() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as exc:
        fix = "set TMPDIR to a folder that can be written"
        raise MachineError("VD4004", "there is no folder for temporary files", fix=fix) from exc


def take(lock: int, *, unknown: bool = False) -> bool:
    """Whether the lock is ours now; it is not while another process, or this one, holds it.

    Args:
        lock: Descriptor of a file or folder.
        unknown: The answer where the file system has no locks.
    """
    import fcntl  # Unix only

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return unknown and exc.errno not in _HELD
    return True


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all in it, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
