"""Folders that are written whole or not at all, over nothing but what vitdeploy wrote itself.

A folder is ours when its record is valid and lists all that lies there: a name such as ``artifact.json`` says nothing, and
one file of the user's makes the folder the user's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.files.leases import remove, take
from vitdeploy.files.temporary import is_temporary, make_folder, name_beside, sweep
from vitdeploy.files.whole import find_above, flush_folder, make_parents, writable

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MOST_NAMES = 3


class Ours(NamedTuple):
    """How a folder is known to be one that vitdeploy wrote.

    Attributes:
        record: The file that says so.
        list_files: The names that it lists, itself included, relative and with ``/``; it raises a `VitdeployError` where the
            record is not valid. None: what lies beside it is never replaced with the folder, only written by name.
    """

    record: str
    list_files: Callable[[Path], Collection[str]] | None


def check_output(out: Path, *, ours: Ours, sources: Iterable[Path] = ()) -> None:
    """Refuse an output folder that can't be written, before any work is done: what will be done at the end is tried.

    Args:
        out: The folder to be written. It may exist when it is empty, or ours. A link to a folder stands for that folder.
        ours: What marks a folder as one that vitdeploy wrote and may replace.
        sources: Files and folders that what is written is made from: ``out`` must not hold them, for it is replaced as a whole,
            nor lie inside one that vitdeploy wrote.

    Raises:
        UsageError: VD2008.
    """
    with writable(out):
        real = out.resolve()
        sweep(real)
        for source in (source.resolve() for source in sources):
            if real == source or real in source.parents:
                message = f"{'is' if real == source else 'holds'} the source {source}, which would be destroyed"
            elif source in real.parents and (source / ours.record).is_file():
                message = f"lies inside the source {source}"
            else:
                continue
            raise UsageError("VD2008", message, file=out, fix="name another folder")
        if real.is_dir():
            _require_ours(real, out, ours)
        elif os.path.lexists(out):
            what = "a link that leads nowhere" if out.is_symlink() and not out.exists() else "a file"
            raise UsageError("VD2008", f"is {what}; a folder is to be written there", file=out, fix="choose another name")
        if real in (Path.cwd(), *Path.cwd().parents):
            raise UsageError("VD2008", "is the current folder, or lies above it", file=out, fix="name a new folder")
        _try_place(real, out, replaced=ours.list_files is not None)


def _require_ours(real: Path, out: Path, ours: Ours) -> None:
    lying = [path for path in real.iterdir() if not is_temporary(path.name)]  # those are of a first write that was killed
    if not lying:
        return
    if not (real / ours.record).is_file():
        message = f"exists and was not written by vitdeploy (no {ours.record} in it)"
        raise UsageError("VD2008", message, file=out, fix="choose another folder")
    if ours.list_files is None:
        return
    try:
        listed = ours.list_files(real)
    except (VitdeployError, FileNotFoundError) as exc:
        message = f"exists, and its {ours.record} is none that vitdeploy wrote, or is damaged"
        raise UsageError("VD2008", message, file=out, fix="choose another folder, or remove it yourself") from exc
    if strangers := find_strangers(real, listed):
        names = ", ".join(strangers[:_MOST_NAMES]) + (", ..." if len(strangers) > _MOST_NAMES else "")
        message = f"holds what vitdeploy did not write there: {names}"
        raise UsageError("VD2008", message, file=out, fix="move it elsewhere, or choose another folder")


def find_strangers(folder: Path, listed: Collection[str]) -> list[str]:
    """Names below a folder, sorted, that are neither listed nor a folder of listed ones, nor left by a writer that was killed."""
    known = {*listed, *(str(parent) for name in listed for parent in Path(name).parents)}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not is_temporary(path.name))
    return sorted(name for name in names if name not in known)


def _try_place(real: Path, out: Path, *, replaced: bool) -> None:
    """Make a folder beside, move it, and try to move the one that lies there: onto a folder with something in it, so it stays."""
    if not replaced and real.is_dir():
        probe = make_folder(real / "probe")
        os.close(probe.lock)
        probe.path.rmdir()
        return
    above = find_above(real)
    try:
        probe = make_folder(real if above == real.parent else above / real.name)
    except PermissionError as exc:
        why = f"can't be replaced: {above} is not writable" if real.is_dir() else f"can't write in {above}"
        fix = "name a new folder in it" if real.is_dir() and os.access(real, os.W_OK) else "choose another place"
        raise UsageError("VD2008", why, file=out, fix=fix) from exc
    os.close(probe.lock)
    moved = name_beside(probe.path.with_name(real.name), "tmp")
    try:
        os.rename(probe.path, moved)  # noqa: PTH104 (as below)
        (moved / "x").mkdir()
        if real.is_dir():
            os.rename(real, moved)  # noqa: PTH104 (of a folder that is never moved)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return
        if exc.errno == errno.EBUSY:
            raise UsageError(
                "VD2008", "is a mount point, which can't be replaced", file=out, fix="name a new folder in it"
            ) from exc
        if exc.errno == errno.EXDEV:
            message = "can't be written: its file system does not move folders here (a layer below, as in a container's image)"
            raise UsageError("VD2008", message, file=out, fix="choose another folder") from exc
        raise
    finally:
        remove(probe.path)
        remove(moved)


@contextmanager
def folder(out: Path, *, ours: Ours) -> Iterator[Path]:
    """A new folder that appears under its name complete, or not at all.

    Yields:
        A temporary folder beside ``out``. When the block ends well it takes the name ``out`` in one step, replacing an
        older folder of ours; when the block raises (Ctrl-C included), it is removed and ``out`` stays as it was.

    Raises:
        UsageError: VD2008, see `check_output`.
        MachineError: VD4002, the disk is full.
    """
    check_output(out, ours=ours)
    with writable(out):
        real = out.resolve()
        make_parents(real)
        temporary = make_folder(real)
    try:
        yield temporary.path
        with writable(out):
            flush_tree(temporary.path)
            if real.is_dir():  # whatever came there meanwhile
                _require_ours(real, out, ours)
            _swap(temporary.path, real)
            flush_folder(real.parent)
    finally:
        remove(temporary.path)
        os.close(temporary.lock)


def discard(path: Path, *, ours: Ours) -> None:
    """Remove a folder of ours, at once: a removal that is killed is finished by a later sweep.

    Raises:
        UsageError: VD2008, it is not ours, or holds what is not.
    """
    if not path.is_dir():
        return
    with writable(path):
        _require_ours(path, path, ours)
        aside = name_beside(path.resolve(), "tmp")
        path.resolve().rename(aside)
    remove(aside)


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """A folder that only one process writes into; it is made where it is missing.

    Raises:
        UsageError: VD2008, another process writes there, or the folder can't be made.
    """
    with writable(out):
        make_parents(out.resolve())
        out.resolve().mkdir(exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
    try:
        if not take(lock, unknown=True):
            message = "is being written by another vitdeploy that is still running"
            raise UsageError("VD2008", message, file=out, fix="wait until it ends, or choose another folder")
        yield
    finally:
        os.close(lock)


def flush_tree(folder: Path) -> None:
    """Have all files of a folder, and of those in it, written to the disk, and then their names."""
    for top, _, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            path = Path(top, name)
            if path.is_symlink():
                continue
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        flush_folder(Path(top))


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
    aside = name_beside(out, "old")  # two steps: between them the name is missing, and a later start gives it back
    lock = os.open(out, os.O_RDONLY)
    try:
        take(lock)
        out.rename(aside)
        new.rename(out)
    except BaseException:
        if not out.exists():
            with suppress(FileNotFoundError):
                aside.rename(out)
        raise
    finally:
        os.close(lock)
    remove(aside)
