"""The outside of a weights file, read without torch: what each tensor is called, its type and its shape.

safetensors and numpy's .npz say all of it in headers, so a file of gigabytes takes milliseconds and nothing of it is loaded
or run. Whether the data behind the headers is whole and finite is for the readers in `vitdeploy.checkpoints.families` to say.
"""

from __future__ import annotations

import json
import math
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from vitdeploy import files
from vitdeploy.errors import InputError
from vitdeploy.kinds import expect

MOST_TENSORS = 20_000
LARGEST_HEADER = 100 << 20
MOST_AXES = 64

_AGAIN = "download or write it again"
_SAFETENSORS = {"BF16": "bfloat16", "BOOL": "bool", "F8_E4M3": "float8e4m3fn", "F8_E5M2": "float8e5m2"}
_LETTERS = {"F": "float", "I": "int", "U": "uint"}
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, SyntaxError)
_BROKEN = (*_DAMAGED, tokenize.TokenError, MemoryError, RecursionError, KeyError, TypeError, AttributeError)


class Outline(NamedTuple):
    """A tensor without its data.

    Attributes:
        dtype: As in ``float32``, ``bfloat16``, ``int64``.
        shape: Its sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def is_npz(path: Path) -> bool:
    """Whether a file is a zip archive of numpy's arrays and of nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _DAMAGED:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_header(path: Path) -> dict[str, dict[str, object]]:
    """What a safetensors file says of its tensors: name to ``dtype``, ``shape`` and ``data_offsets``.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else, VD3006 damaged, VD3007 a name that stands twice, VD3013
            too large a header, or too many tensors.
    """
    expect(path, "safetensors", what="a safetensors file")
    size = path.stat().st_size
    with files.open_regular(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > LARGEST_HEADER:
            raise InputError("VD3013", f"has a header of {length:,} bytes", file=path, fix=_AGAIN)
        if 8 + length > size:
            message = f"is cut off: {size:,} bytes, the header alone needs {8 + length:,}"
            raise InputError("VD3006", message, file=path, fix=_AGAIN)
        raw = stream.read(length)
    twice: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(items)
        if len(table) != len(items):
            twice.extend(sorted(name for name, times in Counter(name for name, _ in items).items() if times > 1))
        return table

    try:
        described: dict[str, dict[str, object]] = json.loads(raw, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as exc:
        raise InputError("VD3006", "has an unreadable header", file=path, fix=_AGAIN) from exc
    if twice:
        raise InputError("VD3007", f"names the tensor {twice[0]!r} twice in its header", file=path, fix="write it again")
    if len(described) > MOST_TENSORS:
        raise InputError("VD3013", f"names {len(described):,} tensors, at most {MOST_TENSORS:,} are read", file=path)
    described.pop("__metadata__", None)
    if not all(isinstance(about, dict) for about in described.values()):
        raise InputError("VD3006", "has a header that describes no tensors", file=path, fix=_AGAIN)
    return described


def read_safetensors(path: Path) -> dict[str, Outline]:
    """Name to outline of every tensor in a safetensors file.

    Raises:
        InputError: As `read_header`.
    """
    try:
        return {name: _describe(about.get("dtype"), about.get("shape")) for name, about in read_header(path).items()}
    except ValueError as exc:
        raise InputError("VD3006", "has an unreadable header", file=path, fix=_AGAIN) from exc


def read_npz(path: Path) -> dict[str, Outline]:
    """Name to outline of every array in an .npz archive.

    Raises:
        InputError: VD3006 damaged; VD3013 too many entries.
    """
    tensors: dict[str, Outline] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist()[: MOST_TENSORS + 1]:
                with archive.open(info) as stream:
                    tensors[info.filename.removesuffix(".npy")] = _array(stream)
    except _BROKEN as exc:
        raise InputError("VD3006", "is damaged, or holds something else than arrays", file=path, fix=_AGAIN) from exc
    if len(tensors) > MOST_TENSORS:
        raise InputError("VD3013", f"names more than {MOST_TENSORS:,} tensors", file=path)
    return tensors


def holds_images(arrays: Mapping[str, Outline]) -> bool:
    """Whether an archive is a data set, not a checkpoint: one array of images, and at most one of their labels.

    A layer's weight and bias look almost alike, but labels are whole numbers or names.
    """
    images = [array for array in arrays.values() if len(array.shape) in (3, 4)]
    labels = [array for array in arrays.values() if len(array.shape) == 1 and array.dtype.startswith(("int", "uint", "str"))]
    return len(images) == 1 and len(arrays) == 1 + len(labels) <= 2 and all(each.shape == images[0].shape[:1] for each in labels)


def _describe(kind: object, shape: object) -> Outline:
    if not isinstance(kind, str) or len(kind) > 20:
        raise ValueError("no type")
    letter, bits = kind[:1], kind[1:]
    dtype = _LETTERS[letter] + bits if letter in _LETTERS and bits.isdigit() else _SAFETENSORS.get(kind, kind.lower())
    return Outline(dtype, _sizes(shape))


def _array(stream: IO[bytes]) -> Outline:
    from numpy.lib import format as npy  # here: all else is told without NumPy, in half the time

    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
    shape, _, dtype = read_header(stream)
    name = "bfloat16" if dtype.str[1:] == "V2" else dtype.name  # how numpy stores bfloat16
    return Outline(name, _sizes(shape))


def _sizes(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or len(shape) > MOST_AXES:
        raise ValueError("no shape")
    sizes = tuple(shape)
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes) or math.prod(sizes) >= 1 << 53:
        raise ValueError("no shape")
    return sizes
