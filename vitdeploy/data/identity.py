"""Images told apart by what is stored of them: the same image is the same in every folder and under every name.

And files told from what they were when they were listed, so that no figure is of images that changed while it was taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import InputError


def identify(stored: bytes) -> bytes:
    """8 bytes that tell an image from any other: a digest of what is stored of it."""
    return hashlib.blake2b(stored, digest_size=8).digest()


class Stamp(NamedTuple):
    """A file of images as it was listed.

    Attributes:
        path: Where.
        row: Its row in a digest: name, size in bytes, time of change in ns.
    """

    path: Path
    row: str

    @property
    def name(self) -> str:
        """What the listing calls it."""
        return self.row.partition("\0")[0]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is read of it inside counts only if it is still what was listed.

        Raises:
            InputError: VD3111, it changed, or is gone. Instead of any other error: half an image is no bad one.
        """
        try:
            yield
        finally:
            if self != take_stamp(self.name, self.path):
                fix = "start again when nothing writes there"
                raise InputError("VD3111", "changed while the images were read", file=self.path, fix=fix)


def take_stamp(name: str, path: Path) -> Stamp:
    """Of a file by the name that a listing gives it."""
    try:
        status = path.stat()
    except OSError:  # a dangling link: listed, and a bad image when read
        return Stamp(path, f"{name}\0-")
    return Stamp(path, f"{name}\0{status.st_size}\0{status.st_mtime_ns}")


def identify_file(stamps: Sequence[Stamp], index: int) -> bytes:
    """Of one of some files.

    Raises:
        InputError: VD3001, it can't be read; VD3111, it changed.
    """
    stamp = stamps[index]
    try:
        with stamp.unchanged():
            return identify(files.read_bytes(stamp.path))
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=stamp.path) from exc
