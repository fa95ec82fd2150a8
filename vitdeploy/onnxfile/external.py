"""Data beside a model: every file it names lies in the model's folder, is a plain file, and is long enough.

A symbolic link is followed only within the folder, or from a snapshot of the Hugging Face cache to a blob of the same
repository. Such a link, and a file with a second name (a hard link), is fine to read but not to every engine: it has to be
copied. What is checked here can change until it is read; who may write in the folder is trusted not to do that.

Source: ONNX docs/ExternalData.md; huggingface_hub's cache layout (``blobs/``, ``snapshots/<revision>/`` of links).
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vitdeploy.errors import TrustError, VitdeployError
from vitdeploy.files import open_regular
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.reader import refuse
from vitdeploy.onnxfile.rules import STRING

MOST_REUSE = 16
"""How often the bytes of a file may be used over: tied weights are, a thousand times is a bomb."""
_KEYS = {"location", "offset", "length", "checksum", "basepath"}
BASE = "basepath"
"""A key that onnx's own `set_external_data` can write; one for the model's folder says nothing, and ONNX Runtime fails on it."""
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class Range(NamedTuple):
    """Bytes of a tensor: the file as the model names it, and where in it."""

    location: str
    offset: int
    length: int


class Beside(NamedTuple):
    """A file that the model names: where it really is, its size in bytes, and whether a link leads to it."""

    file: Path
    size: int
    link: bool


def locate(model: Model) -> dict[Tensor, Range]:
    """Where the data of every tensor lies that is not inside the model.

    Raises:
        InputError: VD3027, a place that can't be, or of another length than the tensor's sizes say.
    """
    return {tensor: _locate_tensor(model, tensor) for tensor in model.tensors if tensor.outside == 1}


def _locate_tensor(model: Model, tensor: Tensor) -> Range:
    said = {entry.key: entry.value for entry in tensor.external}
    if len(said) != len(tensor.external) or not set(said) <= _KEYS or "location" not in said:
        keys = ", ".join(repr(entry.key) for entry in tensor.external) or "nothing"
        raise refuse(model.path, f"{tensor.where} says {keys} of its external data; a location, offset and length are known")
    if tensor.kind == STRING:
        raise refuse(model.path, f"{tensor.where} has text as external data")
    if said.get(BASE, "") not in ("", "."):
        raise refuse(model.path, f"{tensor.where} has external data in the folder {said[BASE][:40]!r}, not in the model's")
    for key in ("offset", "length"):
        if key in said and not _NUMBER.fullmatch(said[key]):
            raise refuse(model.path, f"{tensor.where} has the {key} {said[key][:40]!r}, which is impossible")
    need = tensor.bytes
    offset, length = int(said.get("offset", 0)), int(said.get("length", need))
    if length != need:
        raise refuse(model.path, f"{tensor.where} needs {need:,} bytes, its external data is said to be {length:,}")
    return Range(said["location"], offset, length)


def find(model: Model, wanted: dict[Tensor, Range]) -> dict[str, Beside]:
    """The files of those places, each opened by nobody yet.

    Raises:
        TrustError: VD7001, a place outside the model's folder, or no plain file.
        InputError: VD3027, a file that is missing or too short, or is used over and over.
    """
    need: dict[str, int] = {}
    for location, offset, length in wanted.values():
        need[location] = max(need.get(location, 0), offset + length)
    files = {location: _find_file(model, location, size) for location, size in need.items()}
    shared = defaultdict[Path, list[tuple[Tensor, Range]]](list)  # a file has many spellings
    for tensor, place in wanted.items():
        location, offset, length = place
        have = files[location].size
        if offset + length > have:
            message = f"its external data {location!r} holds {have:,} bytes, {tensor.where} needs {offset + length:,}"
            raise refuse(model.path, f"{message}", "download or write both files again")
        shared[files[location].file].append((tensor, place))
    for used in shared.values():
        _check_reuse(model, files[used[0][1].location].size, used)
    return files


def _check_reuse(model: Model, size: int, used: list[tuple[Tensor, Range]]) -> None:
    """Tensors share their bytes of a file whole or not at all, and not too often."""
    location, end, last = used[0][1].location, 0, Range("", 0, 0)
    for tensor, place in sorted(used, key=lambda each: each[1][1:]):
        if place.length and place.offset < end and place[1:] != last[1:]:
            raise refuse(model.path, f"{tensor.where} shares a part of its bytes in {location!r} with another tensor")
        if place.length:
            end, last = place.offset + place.length, place
    total = sum(place.length for _, place in used)
    if total > MOST_REUSE * size:
        raise refuse(model.path, f"{total:,} bytes are made of {location!r}, which holds {size:,}")


def _find_file(model: Model, location: str, need: int) -> Beside:
    parts = PurePosixPath(location).parts
    if not parts or "\0" in location or "\\" in location or "*" in location or ".." in parts or location.startswith("/"):
        raise _refuse_place(model, location, "lies outside its folder")
    path, home = model.path, model.path.parent.resolve()
    named = home.joinpath(*parts)
    if not os.path.lexists(named) and path.is_symlink():  # a link to the model alone: its data is where the model is
        home = path.resolve().parent
        named = home.joinpath(*parts)
    try:
        real = named.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as exc:
        if os.path.lexists(named) and not isinstance(exc, FileNotFoundError):
            raise _refuse_place(model, location, "is a loop of links or can't be read") from exc
        message = f"its external data {location!r} is missing ({need:,} bytes)"
        raise refuse(model.path, message, "put the file beside the model, under this name") from exc
    if home not in real.parents and not _is_cached(home, real):
        raise _refuse_place(model, location, "is a link that leads out of its folder")
    if not stat.S_ISREG(status.st_mode):
        raise _refuse_place(model, location, "is not a plain file")
    if real == path.resolve():
        raise refuse(path, f"names itself as its external data ({location!r})")
    return Beside(real, status.st_size, real != named or status.st_nlink > 1 or path.is_symlink())


def _is_cached(home: Path, real: Path) -> bool:
    """Whether a file is a blob of the Hugging Face repository whose snapshot the folder is in."""
    return any(above.name == "snapshots" and real.parent == above.parent / "blobs" for above in (home, *home.parents))


def _refuse_place(model: Model, location: str, why: str) -> VitdeployError:
    return TrustError("VD7001", f"its external data {location!r} {why}", file=model.path, fix="put plain files beside the model")


def read_range(place: Range, files: dict[str, Beside], model: Model) -> bytes:
    """The bytes of a small tensor.

    Raises:
        InputError: VD3027, the file became shorter since it was checked.
    """
    with open_regular(files[place.location].file) as stream:
        stream.seek(place.offset)
        raw = stream.read(place.length)
    if len(raw) != place.length:
        raise refuse(model.path, f"its external data {place.location!r} changed while it was read")
    return raw
