"""A copy of an ONNX file with a few fields changed: all else is copied byte for byte, a chunk at a time.

A field that gets longer or shorter changes the length of every message around it, and that length may itself take more or
fewer bytes; so lengths are settled from the innermost message outwards before the first byte is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import BinaryIO, NamedTuple

from vitdeploy.onnxfile.model import Message, Model
from vitdeploy.onnxfile.reader import refuse
from vitdeploy.onnxfile.wire import Field, encode_head

_CHUNK = 1 << 20


class Edit(NamedTuple):
    """Bytes of the file from ``start`` to ``end``, inside ``message`` (None for the model itself), and what takes their place."""

    start: int
    end: int
    new: bytes
    message: Message | None


def cut(message: Message, fields: Iterable[Field]) -> list[Edit]:
    """Takes fields out of their message."""
    return [Edit(field.head, field.end, b"", message) for field in fields]


def append(message: Message, new: bytes) -> Edit:
    """Adds whole fields at the end of a message."""
    end = message.field.end
    return Edit(end, end, new, message)


def write(model: Model, source: BinaryIO, edits: list[Edit], out: BinaryIO) -> None:
    """Write a model with its edits; those at the same place in the order in which they are given.

    Args:
        model: As it was read from ``source``.
        source: The file.
        edits: They do not overlap.
        out: Where the copy goes.

    Raises:
        InputError: VD3027, the file became shorter since it was read.
    """
    at = 0
    source.seek(0)
    for edit in _settle(edits):
        _copy(model, source, out, edit.start - at)
        out.write(edit.new)
        source.seek(edit.end)
        at = edit.end
    _copy(model, source, out, model.size - at)


def _settle(edits: list[Edit]) -> list[Edit]:
    """The edits in order, with new lengths for the messages around them."""
    grown: dict[Message, int] = defaultdict(int)
    for edit in edits:
        if edit.message is not None:
            grown[edit.message] += len(edit.new) - (edit.end - edit.start)
    around, lengths = set[Message](), list[Edit]()
    for edit in edits:
        message = edit.message
        while message is not None and message not in around:
            around.add(message)
            message = message.parent
    for message in sorted(around, key=lambda message: message.field.head, reverse=True):  # those inside begin later
        field = message.field
        header = encode_head(field.number, field.end - field.start + grown[message])
        if message.parent is not None:
            grown[message.parent] += grown[message] + len(header) - (field.start - field.head)
        lengths.append(Edit(field.head, field.start, header, message))
    return sorted([*edits, *lengths], key=lambda edit: edit[:2])


def _copy(model: Model, source: BinaryIO, out: BinaryIO, count: int) -> None:
    while count > 0:
        chunk = source.read(min(_CHUNK, count))
        if not chunk:
            raise refuse(model.path, "changed while it was read")
        out.write(chunk)
        count -= len(chunk)
