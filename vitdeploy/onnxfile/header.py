"""The outside of an ONNX file, read without onnx or any engine: versions and metadata.

A device has no onnx package, and a parser of untrusted graphs is not needed to learn how an image must be prepared. Only
the top level of the protobuf message is walked; the graph itself is skipped by its length.

Source: onnx.proto3 of ONNX (message ModelProto) and the protobuf wire format (varint, length-delimited fields).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import msgspec

from vitdeploy.errors import InputError
from vitdeploy.files import expect

_GRAPH, _OPSET, _METADATA = 7, 8, 14
_LARGEST = 16 << 20  # a metadata entry beyond this is not one of ours


class OnnxHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What an ONNX file says about itself.

    Attributes:
        ir_version: ONNX IR version.
        producer: Name and version of the writer.
        opsets: Operator set domain ("" is ONNX's own) to version.
        metadata: The file's free key-value pairs.
        graph_bytes: Size of the graph, without external data.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]
    metadata: dict[str, str]
    graph_bytes: int


def read_header(path: Path) -> OnnxHeader:
    """Read the header of an ONNX file.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else, VD3011 for one that is cut off or has no graph.
    """
    expect(path, "onnx", what="an ONNX model")
    found: dict[str, object] = {"ir_version": 0, "graph_bytes": 0}
    names = ["", ""]
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            while stream.tell() < size:
                field, value, raw = _field(stream, size)
                if field == 1:
                    found["ir_version"] = value
                elif field in (2, 3):
                    names[field - 2] = raw.decode()
                elif field == _GRAPH:
                    found["graph_bytes"] = value
                elif field == _OPSET:
                    pairs = _pairs(raw)
                    opsets[str(pairs.get(1, ""))] = int(pairs.get(2, 0))
                elif field == _METADATA:
                    pairs = _pairs(raw)
                    metadata[str(pairs.get(1, ""))] = str(pairs.get(2, ""))
        except (EOFError, UnicodeDecodeError, ValueError) as exc:
            raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path, fix="write or download it again") from exc
    if not found["graph_bytes"]:
        raise InputError("VD3011", "holds no graph", file=path, fix="write or download it again")
    producer = " ".join(name for name in names if name)
    return msgspec.convert({**found, "producer": producer, "opsets": opsets, "metadata": metadata}, OnnxHeader)


def _field(stream: BinaryIO, size: int) -> tuple[int, int, bytes]:
    """One field: its number, its varint or length, and the bytes of a short length-delimited value."""
    tag = _varint(stream)
    number, wire = tag >> 3, tag & 7
    if wire == 0:
        return number, _varint(stream), b""
    if wire in (1, 5):
        stream.seek(8 if wire == 1 else 4, 1)
        return number, 0, b""
    if wire != 2:
        raise ValueError(f"unknown wire type {wire}")
    length = _varint(stream)
    if stream.tell() + length > size:
        raise EOFError(f"a field of {length} bytes reaches past the end")
    if number == _GRAPH or length > _LARGEST:
        stream.seek(length, 1)
        return number, length, b""
    return number, length, stream.read(length)


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError("cut off inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("number too long")


def _pairs(raw: bytes) -> dict[int, str | int]:
    """Fields of a small message: strings decoded, varints as numbers."""
    from io import BytesIO

    stream, found = BytesIO(raw), dict[int, "str | int"]()
    while stream.tell() < len(raw):
        number, value, text = _field(stream, len(raw))
        found[number] = text.decode() if text or value == 0 else value  # an empty string is text, not the number 0
    return found
