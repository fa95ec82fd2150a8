"""A copy of an ONNX file with a few fields changed, without onnx: all else is copied byte for byte, a chunk at a time.

A field that gets longer or shorter changes the length of every message around it, and that length may itself take more or
fewer bytes; so lengths are settled from the innermost message outwards before the first byte is written.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitdeploy.errors import library
from vitdeploy.onnxfile.external import BASE, Beside, Range, read
from vitdeploy.onnxfile.model import Message, Model, Tensor
from vitdeploy.onnxfile.reader import refuse
from vitdeploy.onnxfile.rules import trailing

_CHUNK = 1 << 20


class Edit(NamedTuple):
    """Bytes of the file from ``start`` to ``end``, inside ``message``, and what takes their place."""

    start: int
    end: int
    new: bytes
    message: Message


def without_trailing(model: Model) -> list[Edit]:
    """Cuts the empty names at the end of nodes' inputs."""
    found = []
    for node in model.nodes:
        if count := trailing(node):
            found += [Edit(start, end, b"", node.message) for start, end in node.places[-count:]]
    return found


def without_base(tensors: Iterable[Tensor]) -> list[Edit]:
    """Cuts what is said of the folder of data beside the model: it is the model's, which goes without saying."""
    return [
        Edit(entry.start, entry.end, b"", tensor.message) for tensor in tensors for entry in tensor.external if entry.key == BASE
    ]


def inlined(model: Model, tiny: dict[Tensor, Range], files: dict[str, Beside]) -> list[Edit]:
    """Brings small tensors from beside the model into it, as raw data at the end of their messages."""
    found = []
    for tensor, place in tiny.items():
        message, raw = tensor.message, read(place, files, model)
        places = [*tensor.cut, *(entry[2:] for entry in tensor.external)]
        found += [Edit(start, end, b"", message) for start, end in places]
        found.append(Edit(message.end, message.end, _field(9, len(raw)) + raw, message))
    return found


def write(model: Model, edits: list[Edit], target: Path) -> None:
    """Write the model with its edits.

    Raises:
        InputError: VD3027, the file became shorter since it was read.
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    with library("file system", target), model.path.open("rb") as source, target.open("xb") as out:
        at = 0
        for edit in _settled(edits):
            _copy(model, source, out, edit.start - at)
            out.write(edit.new)
            source.seek(edit.end)
            at = edit.end
        _copy(model, source, out, model.size - at)


def copy(files: dict[Path, Beside], folder: Path) -> None:
    """Copy data files into a folder under the names that the model has for them; never as links.

    Raises:
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    for location, beside in files.items():
        target = folder / location
        with library("file system", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with beside.file.open("rb") as source, target.open("xb") as out:
                shutil.copyfileobj(source, out, _CHUNK)


def _settled(edits: list[Edit]) -> list[Edit]:
    """The edits in order, with new lengths for the messages around them."""
    grown: dict[Message, int] = defaultdict(int)
    for edit in edits:
        grown[edit.message] += len(edit.new) - (edit.end - edit.start)
    lengths, waiting = list[Edit](), dict[int, set[Message]]()
    for edit in edits:
        message: Message | None = edit.message
        while message is not None:
            waiting.setdefault(_depth(message), set()).add(message)
            message = message.parent
    for depth in sorted(waiting, reverse=True):
        for message in waiting[depth]:
            header = _field(message.number, message.end - message.start + grown[message])
            if message.parent is not None:
                grown[message.parent] += grown[message] + len(header) - (message.start - message.head)
            lengths.append(Edit(message.head, message.start, header, message))
    return sorted([*edits, *lengths], key=lambda edit: edit[:2])


def _depth(message: Message) -> int:
    depth, above = 0, message.parent
    while above is not None:
        depth, above = depth + 1, above.parent
    return depth


def _field(number: int, length: int) -> bytes:
    """The head of a length-delimited field: tag and length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes((*found, value))


def _copy(model: Model, source: BinaryIO, out: BinaryIO, count: int) -> None:
    while count > 0:
        chunk = source.read(min(_CHUNK, count))
        if not chunk:
            raise refuse(model.path, "changed while it was read")
        out.write(chunk)
        count -= len(chunk)
