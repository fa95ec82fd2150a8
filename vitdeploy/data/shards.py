"""Tar shards in WebDataset's layout: ``key.jpg`` beside ``key.cls`` or ``key.json``; read in place, never unpacked.

A shard is indexed once (headers and labels), then images are read from their place in it. Only regular members count;
a link or a device has no business in a data set and is refused.

Source: github.com/webdataset/webdataset, "The WebDataset Format": members with the same name up to the first dot of the
last part are one sample.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from vitdeploy import files
from vitdeploy.data import arrays
from vitdeploy.data.identity import Stamp, identify, take_stamp
from vitdeploy.data.images import Picture
from vitdeploy.data.sources import (
    IMAGE_SUFFIXES,
    MAX_DIGITS,
    Listing,
    digest_rows,
    is_short,
    number_labels,
    read_class_names,
)
from vitdeploy.errors import InputError, TrustError, first_line
from vitdeploy.spec import InputContract

MAX_IMAGE = 256 << 20
"""Most bytes of one image in a shard."""

MAX_LABEL = 1 << 20
"""Most bytes of one label in a shard."""


class _Place(NamedTuple):
    shard: Stamp
    offset: int
    size: int
    name: str


class _Label(msgspec.Struct):
    """What is read of a ``key.json``; further keys are allowed."""

    label: int | str | None = None


def find_shards(folder: Path) -> list[Path]:
    """The shards of a folder that holds no folders: others are class folders with a ``.tar`` beside them."""
    tars = sorted(entry for entry in folder.glob("*.tar") if entry.is_file() and not entry.name.startswith("."))
    return tars if not any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()) else []


def list_samples(shards: Sequence[Path]) -> Listing:
    """The samples of one or more shards, in the order of the shards and of their members.

    Labels are numbers or names, as in a manifest; ``classes.txt`` beside the first shard gives the classes.

    Raises:
        InputError: VD3105, a shard is cut off, compressed or no tar, a sample has two images, a label is unreadable, or
            only some samples have one; VD3106, an unknown class.
        TrustError: VD7001, a member is a link or a device, or its name leads out.
    """
    places: list[_Place] = []
    given: list[int | str | None] = []
    stamps = [take_stamp(shard.name, shard) for shard in shards]
    for stamp in stamps:
        for place, label in _samples(stamp):
            places.append(place)
            given.append(label)
    labels, classes = number_labels(given, read_class_names(shards[0].parent), shards[0])
    names = [f"{place.shard.path.name}/{place.name}" for place in places]
    digest = digest_rows((stamp.row for stamp in stamps), labels, classes)
    return Listing(
        names=names,
        labels=labels,
        classes=classes,
        digest=digest,
        read=partial(_read, places, names),
        identify=lambda index: identify(_read_bytes(places[index])),
    )


def _read(places: Sequence[_Place], names: Sequence[str], index: int, contract: InputContract) -> Picture:
    return arrays.read(_read_bytes(places[index]), contract, name=names[index])


def _read_bytes(place: _Place) -> bytes:
    try:
        with place.shard.unchanged(), files.open_regular(place.shard.path) as stream:
            stream.seek(place.offset)
            return stream.read(place.size)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=place.shard.path) from exc


def _samples(stamp: Stamp) -> Iterator[tuple[_Place, int | str | None]]:
    """Images of one shard with their labels; a label may stand before or after its image."""
    shard = stamp.path
    places: dict[str, _Place] = {}
    given: dict[str, int | str | None] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                _index(tar, member, stamp, places, given)
            end = tar.offset
    except (tarfile.TarError, EOFError, UnicodeDecodeError, ValueError) as exc:
        raise _refuse(shard, f"is not a whole, uncompressed tar: {first_line(exc)}") from exc
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror or first_line(exc)}", file=shard) from exc
    with files.open_regular(shard) as stream:  # tarfile takes a damaged header for the end
        stream.seek(end)
        if stream.read(512) != bytes(512):
            raise _refuse(shard, "is cut off or damaged: its end is not marked")
    for key, place in places.items():
        yield place, given.get(key)


def _index(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    stamp: Stamp,
    places: dict[str, _Place],
    given: dict[str, int | str | None],
) -> None:
    """Note one member: an image's place, or a label's value."""
    shard, name = stamp.path, PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise TrustError("VD7001", f"its member {member.name!r} is a link or a device", file=shard)
    if name.is_absolute() or ".." in name.parts:
        raise TrustError("VD7001", f"its member {member.name!r} lies outside", file=shard)
    first, _, rest = name.name.partition(".")
    kind, key = f".{rest.lower()}", str(name.parent / first)
    if member.isdir() or not first:  # hidden files too
        return
    if kind in IMAGE_SUFFIXES:
        if member.issparse() or member.size > MAX_IMAGE:
            raise _refuse(shard, f"its member {member.name!r} is sparse or larger than {MAX_IMAGE >> 20} MiB")
        if key in places:
            raise _refuse(shard, f"its sample {key!r} has two images")
        places[key] = _Place(stamp, member.offset_data, member.size, str(name))
    elif kind in (".cls", ".json"):
        if member.issparse() or member.size > MAX_LABEL:
            raise _refuse(shard, f"its member {member.name!r} is sparse or larger than {MAX_LABEL >> 20} MiB")
        stream = tar.extractfile(member)  # regular: never None, and nothing is written
        value = _label(stream.read() if stream else b"", kind, member.name, shard)
        if value is not None and given.setdefault(key, value) != value:
            raise _refuse(shard, f"its sample {key!r} has two labels")


def _label(data: bytes, kind: str, name: str, shard: Path) -> int | str | None:
    try:
        if kind == ".json":
            value = msgspec.json.decode(data, type=_Label).label
            short = not isinstance(value, int) or is_short(value)
        else:
            text = data.decode("utf-8").strip()
            if not (text.isascii() and text.isdigit()):
                return text or None
            digits = text.lstrip("0") or "0"
            short = len(digits) <= MAX_DIGITS
            value = int(digits) if short else None  # Python refuses to convert thousands of digits
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _refuse(shard, f"its label {name!r} can't be read: {first_line(exc)}") from exc
    if not short:
        message = f"its label {name!r} is a number of more than {MAX_DIGITS} digits, no class number"
        raise InputError("VD3105", message, file=shard, fix="correct the label and write the shard again")
    return value


def _refuse(shard: Path, message: str) -> InputError:
    fix = "unpack compressed shards (gunzip), or write the shard again"
    return InputError("VD3105", message, file=shard, fix=fix)
