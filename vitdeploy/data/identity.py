"""Images told apart by what is stored of them: the same image is the same in every folder and under every name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vitdeploy import files
from vitdeploy.errors import InputError


def identify(stored: bytes) -> bytes:
    """8 bytes that tell an image from any other: a digest of what is stored of it."""
    return hashlib.blake2b(stored, digest_size=8).digest()


def identify_file(paths: Sequence[Path], index: int) -> bytes:
    """Of one of some files.

    Raises:
        InputError: VD3001, it can't be read.
    """
    try:
        return identify(files.read_bytes(paths[index]))
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=paths[index]) from exc
