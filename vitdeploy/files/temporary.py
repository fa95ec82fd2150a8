"""Names beside a target under which it is written, and which are swept when their writer is dead.

``.NAME.tmp-HEX`` is being written, or was replaced; ``.NAME.old-HEX`` is what lay there before, where the file system can't
exchange two names in one step: while nothing else has the name, it is the only copy, and gets the name back.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vitdeploy.files.leases import remove, take

_OURS = re.compile(r"^\..*\.(?:tmp|old)-(?:\d+-)?[0-9a-f]{8,16}$", re.DOTALL)
_LONGEST = 200
"""Bytes of a name to which an ending can be added: file systems take 255."""


class Temporary(NamedTuple):
    """A file or folder beside its target, and the lock that says that its writer lives.

    Attributes:
        path: Where it lies.
        lock: Its descriptor; a file is written through it.
    """

    path: Path
    lock: int


def make_file(target: Path) -> Temporary:
    """A new, empty file beside ``target``.

    Raises:
        OSError: It can't be made.
    """
    return _make(target, lambda path: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))


def make_folder(target: Path) -> Temporary:
    """A new, empty folder beside ``target``.

    Raises:
        OSError: It can't be made.
    """

    def make(path: Path) -> int:
        path.mkdir()
        return os.open(path, os.O_RDONLY)

    return _make(target, make)


def name_beside(target: Path, ending: str) -> Path:
    """A new name beside ``target``.

    Args:
        target: A whole path.
        ending: ``tmp`` or ``old``.
    """
    return target.with_name(f".{_shorten(target.name)}.{ending}-{secrets.token_hex(8)}")


def is_temporary(name: str) -> bool:
    """Whether a name is one of ours, for whatever target."""
    return _OURS.match(name) is not None


def sweep(target: Path) -> None:
    """Remove what dead writers left beside ``target``; give it back what it was, where that is the only copy."""
    recover(target)
    _sweep(target.parent, f".{glob.escape(_shorten(target.name))}.*")


def sweep_inside(folder: Path) -> None:
    """Remove what dead writers left in ``folder``, for whatever target."""
    _sweep(folder, ".*")


def recover(target: Path) -> None:
    """Give ``target`` back what it was, if its writer died between two steps."""
    if os.path.lexists(target):
        return
    for aside in target.parent.glob(f".{glob.escape(_shorten(target.name))}.old-*"):
        with suppress(OSError):
            if is_temporary(aside.name) and (lock := _lock(aside)) is not None:
                try:
                    aside.rename(target)
                finally:
                    os.close(lock)
                return


def _make(target: Path, make: Callable[[Path], int]) -> Temporary:
    while True:
        path = name_beside(target, "tmp")
        with suppress(FileNotFoundError):
            lock = make(path)
            take(lock)
            if os.path.samestat(path.stat(), os.fstat(lock)):  # no sweep came between
                return Temporary(path, lock)
        path.parent.stat()  # else it would never end


def _sweep(folder: Path, pattern: str) -> None:
    for left in folder.glob(pattern):
        if is_temporary(left.name) and (lock := _lock(left)) is not None:
            remove(left)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """The lock of what nobody holds any more."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if take(lock):
        return lock
    os.close(lock)
    return None


def _shorten(name: str) -> str:
    raw = os.fsencode(name)
    return name if len(raw) <= _LONGEST else hashlib.sha256(raw).hexdigest()
