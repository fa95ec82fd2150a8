"""A model that also gives the tensors inside it, made without unpacking it.

Calibration must not need the model several times over in memory, so the ONNX file is not parsed into objects: only the
outside of each message is walked (through a memory map), the wanted tensors are appended to the graph's outputs, and each
large weight is replaced by a pointer to the place where it lies in the original file. The result is a few hundred kilobytes;
the engine maps the weights from the file itself.

Source: onnx.proto3 of ONNX (messages ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto) and the protobuf wire
format; external data as in ONNX's docs/ExternalData.md.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.onnxfile.header import read_header

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12
_NODE_OUTPUT = 2
_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 13, 14
_NAME = 1  # of a ValueInfoProto
_LARGE = 4096  # bytes of a weight from which it stays in its file


class Augmented(NamedTuple):
    """A model with more outputs.

    Attributes:
        model: The ONNX message.
        folder: Where its external data lie; None when it has none.
    """

    model: bytes
    folder: Path | None


class _Field(NamedTuple):
    """One field of a message: its number and wire type, and where its tag, its value and its end lie."""

    number: int
    wire: int
    tag: int
    value: int
    end: int


def augment(model: Path | bytes, tensors: Sequence[str]) -> Augmented:
    """Append tensors of the main graph to its outputs.

    Args:
        model: An ONNX file (external data may lie beside it), or the bytes of one without external data.
        tensors: Names of values that nodes compute. Those that are outputs already are left as they are.

    Raises:
        InputError: VD3001 to VD3005, VD3011: the file is something else, or damaged.
        UsageError: VD2003, the graph computes no such tensor.
    """
    with ExitStack() as stack:
        if isinstance(model, bytes):
            raw = stack.enter_context(memoryview(model))
            return Augmented(_rewritten(raw, tensors, None), None)
        read_header(model)
        stream = stack.enter_context(model.open("rb"))
        mapped = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        raw = stack.enter_context(memoryview(mapped))
        try:
            if _has_external(raw):
                return Augmented(_rewritten(raw, tensors, None), model.absolute().parent)
            whole = model.resolve()  # engines refuse data behind a link that leads out of the folder
            return Augmented(_rewritten(raw, tensors, whole.name), whole.parent)
        except InputError as exc:
            raise InputError(exc.code, exc.message, file=model, fix=exc.fix) from exc


def _rewritten(raw: memoryview, tensors: Sequence[str], location: str | None) -> bytes:
    """The message with its outputs appended and, given the file's name, its large weights pointed to."""
    parts: list[bytes] = []
    for field in _fields(raw, 0, len(raw)):
        if field.number == _MODEL_GRAPH and field.wire == 2:
            parts.append(_message(_MODEL_GRAPH, _graph(raw, field, tensors, location)))
        else:
            parts.append(bytes(raw[field.tag : field.end]))
    return b"".join(parts)


def _graph(raw: memoryview, graph: _Field, tensors: Sequence[str], location: str | None) -> bytes:
    parts: list[bytes] = []
    computed: set[str] = set()
    given: set[str] = set()
    for field in _fields(raw, graph.value, graph.end):
        if field.number == _GRAPH_NODE:
            computed.update(_texts(raw, field, _NODE_OUTPUT))
        elif field.number == _GRAPH_OUTPUT:
            given.update(_texts(raw, field, _NAME))
        if field.number == _GRAPH_INITIALIZER and location is not None:
            parts.append(_pointed(raw, field, location))
        else:
            parts.append(bytes(raw[field.tag : field.end]))
    for name in tensors:
        if name not in computed:
            hint = nearest(name, computed)
            raise UsageError("VD2003", f"the graph computes no tensor {name!r}", fix=hint or "name the output of a node")
    more = (_message(_GRAPH_OUTPUT, _message(_NAME, name.encode())) for name in dict.fromkeys(tensors) if name not in given)
    return b"".join((*parts, *more))


def _pointed(raw: memoryview, tensor: _Field, location: str) -> bytes:
    """An initializer whose bytes stay in the file."""
    parts, data = [], None
    for field in _fields(raw, tensor.value, tensor.end):
        if field.number == _TENSOR_RAW and field.end - field.value >= _LARGE:
            data = field
        elif field.number != _TENSOR_LOCATION:
            parts.append(bytes(raw[field.tag : field.end]))
    if data is None:
        return bytes(raw[tensor.tag : tensor.end])
    for key, value in (("location", location), ("offset", str(data.value)), ("length", str(data.end - data.value))):
        parts.append(_message(_TENSOR_EXTERNAL, _message(1, key.encode()) + _message(2, value.encode())))
    parts.append(_varint(_TENSOR_LOCATION << 3) + _varint(1))  # EXTERNAL
    return _message(_GRAPH_INITIALIZER, b"".join(parts))


def _has_external(raw: memoryview) -> bool:
    """Whether some weight lies in another file already."""
    graphs = (field for field in _fields(raw, 0, len(raw)) if field.number == _MODEL_GRAPH)
    weights = (field for graph in graphs for field in _fields(raw, graph.value, graph.end) if field.number == _GRAPH_INITIALIZER)
    return any(part.number == _TENSOR_EXTERNAL for weight in weights for part in _fields(raw, weight.value, weight.end))


def _texts(raw: memoryview, message: _Field, number: int) -> Iterator[str]:
    """The strings of one field of a message."""
    for field in _fields(raw, message.value, message.end):
        if field.number == number and field.wire == 2:
            yield str(raw[field.value : field.end], "utf-8", "replace")


def _fields(raw: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message from ``start`` to ``end``.

    Raises:
        InputError: VD3011, it is cut off or damaged.
    """
    place = start
    while place < end:
        tag, value = _number(raw, place, end)
        wire, stop = tag & 7, 0
        if wire == 0:
            stop = _number(raw, value, end)[1]
        elif wire == 2:
            length, value = _number(raw, value, end)
            stop = value + length
        elif wire in (1, 5):
            stop = value + (8 if wire == 1 else 4)
        if not place < stop <= end:
            raise InputError("VD3011", f"is not a whole ONNX file (byte {place})", fix="write or download it again")
        yield _Field(tag >> 3, wire, place, value, stop)
        place = stop


def _number(raw: memoryview, place: int, end: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            break
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise InputError("VD3011", f"is not a whole ONNX file (byte {place})", fix="write or download it again")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _message(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value
