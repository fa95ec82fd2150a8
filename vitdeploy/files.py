"""Files as they must be handled everywhere: written whole or not at all, named inside their folder.

Every write goes to a temporary name beside the target (same file system), is flushed to disk and then renamed, so that a
kill -9 at any point leaves the old content or none, never half. Temporary names carry the writer's process id; those of
dead processes are swept by the next write to the same target.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from vitdeploy.errors import MachineError, TrustError, UsageError, library

_LOCK = ".lock"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

PathName = str | os.PathLike[str]
"""A path as callers have it."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise UsageError("VD2008", "is a folder; a file is to be written there", file=path)
        _sweep(path)
        temporary = _temporary(path)
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


def cache_folder() -> Path:
    """Where that is kept which can be made again: ``$VITDEPLOY_CACHE``, ``$XDG_CACHE_HOME/vitdeploy``, ``~/.cache/vitdeploy``."""
    if own := os.environ.get("VITDEPLOY_CACHE", ""):
        return Path(own).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path("~/.cache").expanduser()) / "vitdeploy"


def check_output(out: Path, *, ours: str, sources: Iterable[Path] = ()) -> None:
    """Refuse an output folder that can't be written, before any work is done.

    Args:
        out: The folder to be written. It may exist when it is empty or holds a file named ``ours``.
        ours: The record that marks a folder as one that vitdeploy wrote and may replace.
        sources: Files and folders that what is written is made from: ``out`` must not hold them, for it is replaced as a whole,
            nor lie inside one that vitdeploy wrote.

    Raises:
        UsageError: VD2008.
    """
    real = out.resolve()
    for source in (source.resolve() for source in sources):
        if real == source or real in source.parents:
            message = f"{'is' if real == source else 'holds'} the source {source}, which would be destroyed"
        elif source in real.parents and (source / ours).is_file():
            message = f"lies inside the source {source}"
        else:
            continue
        raise UsageError("VD2008", message, file=out, fix="name another folder")
    if out.is_dir():
        foreign = [path for path in out.iterdir() if not path.name.startswith(f".{ours}.tmp-")]  # a first write that was killed
        if foreign and not (out / ours).is_file():
            message = f"exists and was not written by vitdeploy (no {ours} in it)"
            raise UsageError("VD2008", message, file=out, fix="choose another folder")
    elif out.exists() or out.is_symlink():
        raise UsageError("VD2008", "is a file; a folder is to be written there", file=out, fix="choose another name")
    if Path.cwd() == out.resolve() or out.resolve() in Path.cwd().parents:
        raise UsageError("VD2008", "is the current folder, or lies above it", file=out, fix="name a new folder")
    above = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise UsageError("VD2008", f"{above} is a file, not a folder", file=out, fix="choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError("VD2008", f"can't write in {above}", file=out, fix="choose another place")


@contextmanager
def folder(out: Path, *, ours: str) -> Iterator[Path]:
    """A new folder that appears under its name complete, or not at all.

    Yields:
        A temporary folder beside ``out``. When the block ends well it takes the name ``out`` in one step, replacing an
        older folder of ours; when the block raises (Ctrl-C included), it is removed and ``out`` stays as it was.

    Raises:
        UsageError: VD2008, see `check_output`.
        MachineError: VD4002, the disk is full.
    """
    check_output(out, ours=ours)
    temporary = _temporary(out)
    with _writable(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        temporary.mkdir()
    try:
        yield temporary
        with _writable(out):
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
            _flush_folder(temporary)
            _swap(temporary, out)
            _flush_folder(out.absolute().parent)
    finally:
        _remove(temporary)


def _swap(new: Path, out: Path) -> None:
    """Give ``new`` the name ``out``; what was there goes under the temporary name, to be removed by the caller."""
    if not out.exists():
        new.rename(out)
        return
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # not Linux, or a C library older than glibc 2.28
        renameat2 = None
    if renameat2 is not None:
        names = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(out))
        if renameat2(names[0], names[1], names[2], names[3], _RENAME_EXCHANGE) == 0:
            return
    aside = _temporary(out)  # two steps: between them there is no `out`, but never half a one
    out.rename(aside)
    try:
        new.rename(out)
    except OSError:
        aside.rename(out)
        raise
    _remove(aside)


def _temporary(path: Path) -> Path:
    return path.absolute().with_name(f".{path.absolute().name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _sweep(path: Path) -> None:
    """Remove what dead writers left beside ``path``."""
    for left in path.absolute().parent.glob(f".{glob.escape(path.absolute().name)}.tmp-*-*"):
        pid = left.name.rsplit("-", 2)[1]
        if pid.isdigit() and not _alive(int(pid)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """The file system's refusals to write, in our words."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as exc:
        raise UsageError("VD2008", f"can't be written: {exc.strerror}", file=path, fix="choose another place") from exc
    except OSError as exc:
        with library("file system", path):
            raise exc from None


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
                    _remove(path)
        _remove(self.folder)
        os.close(self.lock)


def lease_folder() -> Lease:
    """A new, empty folder below TMPDIR for this process alone; what dead processes left there is removed.

    It takes its name when it is locked: a sweep never meets one that is just being made.
    """
    place = Path(tempfile.gettempdir())
    _sweep_leases(place)
    bare = Path(tempfile.mkdtemp(prefix=".vitdeploy-", dir=place))
    lock = os.open(bare / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _take(lock)
    return Lease(bare.rename(place / bare.name.removeprefix(".")), lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder as `lease_folder` makes it, which is removed with the block."""
    lease = lease_folder()
    try:
        yield lease.folder
    finally:
        lease.end()


def _sweep_leases(place: Path) -> None:
    for folder in place.glob("vitdeploy-*"):
        with suppress(OSError):  # another user's, not a folder of ours, or just removed by its owner
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            if _take(lock):
                Lease(folder, lock).end()
            else:
                os.close(lock)


def _take(lock: int) -> bool:
    """Whether the lock is ours now; it is not while another process, or this one, holds it."""
    import fcntl  # Unix only

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
