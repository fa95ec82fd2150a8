"""What an engine's cached file was made with, in a file beside it; whether it still fits here.

A cache that does not fit is no error: the model lies beside it, and is made ready again as it was the first time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from vitdeploy import files

NAME = "cache.json"
"""The stamp's file."""
_LONGEST = 100
_LARGEST = 1 << 16


def write(folder: Path, stamp: dict[str, str]) -> None:
    """Write the stamp.

    Args:
        folder: Where the cached file lies.
        stamp: What must be the same for the file to be used, by words that a person reads: ``made by``, ``made for``.
    """
    files.write(folder / NAME, msgspec.json.format(msgspec.json.encode(stamp), indent=2) + b"\n")


def explain_misfit(folder: Path, stamp: dict[str, str]) -> str:
    """Why a cached file can't be used here.

    Args:
        folder: Where it lies.
        stamp: As it would be written now.

    Returns:
        The first difference, in the words of ``stamp``: ``made by onnxruntime 1.30.0``; "" when there is none.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > _LARGEST:
            return "its stamp is damaged"
        kept = msgspec.json.decode(files.read_bytes(path, files.LARGEST_TEXT), type=dict[str, str])
    except OSError:
        return "it has no stamp"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "its stamp is damaged"
    for words, value in stamp.items():
        if kept.get(words) != value:
            return f"{words} {kept.get(words, 'something unknown')}"[:_LONGEST]
    return ""
