"""A bundle as one file: an uncompressed tar that can be written in one way only, and is read only where it was written so.

Weights do not compress. Entries are regular files, sorted by name, with nothing of their makers: no owner, no time. Reading
compares every header with the one that would be written for the same name and size, so links, devices, sparse files, other
formats, two entries of one name and trailing data are all refused by one rule.

Source: POSIX.1-1988, the ``ustar`` format, with names of up to 100 bytes and files below 8 GiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from vitdeploy.errors import InputError

SUFFIX = ".vdb"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_LONGEST, _LARGEST, MOST = 100, 8**11 - 1, 4096
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """A file in an archive.

    Attributes:
        name: Its path, parts divided by ``/``.
        start: Where its bytes begin.
        size: How many they are.
    """

    name: str
    start: int
    size: int


def is_name(name: str) -> bool:
    """Whether a file of a bundle may be called so: letters, digits, ``._-``, nothing hidden, at most 100 bytes."""
    return _NAME.fullmatch(name) is not None and len(name) <= _LONGEST


def write_archive(stream: IO[bytes], contents: Mapping[str, Path]) -> None:
    """Write files as an archive: the same bytes for the same files.

    Args:
        stream: Empty, binary.
        contents: Name in the archive to file. `is_name` holds for all.
    """
    for name in sorted(contents):
        with contents[name].open("rb") as source:
            size = contents[name].stat().st_size
            stream.write(_header(name, size))
            while chunk := source.read(_CHUNK):
                stream.write(chunk)
            stream.write(bytes(-size % _BLOCK))
    stream.write(_END)


def list_entries(stream: IO[bytes], path: Path) -> dict[str, Entry]:
    """What an archive holds, by name.

    Args:
        stream: Binary, at its start.
        path: For errors.

    Raises:
        InputError: VD3030, `write_archive` does not write such a file.
    """
    entries: dict[str, Entry] = {}
    last, whole = "", path.stat().st_size
    for _ in range(MOST + 1):
        start = stream.tell()
        block = stream.read(_BLOCK)
        if block == _END[:_BLOCK]:
            if stream.read(_BLOCK + 1) != _END[:_BLOCK]:
                raise _refuse(path, "does not end where its files end")
            return entries
        entry = _read_header(block, start + _BLOCK)
        if entry is None or entry.name <= last or entry.start + entry.size > whole:
            raise _refuse(path, f"has a header at byte {start:,} that no bundle has")
        stream.seek(entry.start + entry.size)
        if any(stream.read(-entry.size % _BLOCK)):
            raise _refuse(path, f"has something behind {entry.name}")
        entries[entry.name] = entry
        last = entry.name
    raise _refuse(path, f"holds more than {MOST:,} files")


def read_parts(stream: IO[bytes], entry: Entry) -> Iterator[bytes]:
    """The bytes of an entry, a part at a time; fewer where the archive was cut off meanwhile."""
    stream.seek(entry.start)
    left = entry.size
    while left and (chunk := stream.read(min(left, _CHUNK))):
        left -= len(chunk)
        yield chunk


def _header(name: str, size: int) -> bytes:
    """The header of a regular file: mode 0644, owner 0, time 0."""
    if not is_name(name) or size > _LARGEST:
        raise ValueError(f"{name!r} of {size} bytes")
    numbers = b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" % size + b"%011o\0" % 0
    before, behind = name.encode().ljust(100, b"\0") + numbers, b"0" + bytes(100) + b"ustar\00000"
    behind = behind.ljust(_BLOCK - len(before) - 8, b"\0")
    return before + b"%06o\0 " % (sum(before + behind) + 8 * ord(" ")) + behind


def _read_header(block: bytes, start: int) -> Entry | None:
    """The entry that a header announces, or None where it is not the one that `_header` writes."""
    try:
        name, size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        return Entry(name, start, size) if size >= 0 and _header(name, size) == block else None
    except (ValueError, UnicodeDecodeError):
        return None


def _refuse(path: Path, message: str) -> InputError:
    return InputError("VD3030", message, file=path, fix="get the bundle again from whoever packed it")
