"""The protobuf wire format: fields of messages, read by seeking over what is data, and written.

Nothing here recurses, every length is checked against the message around it, and each byte is looked at once at most, so that
a hostile file costs no more than its own size allows.

Source: the protobuf wire format (varint, length-delimited fields), https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MOST_FIELDS = 3_000_000
"""Protobuf fields that are looked at; a ViT of 40 blocks has about a hundred thousand."""
LONGEST_NAME = 4096
MOST_AXES = 64


class Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Its number.
        value: Its varint; -1 for a length-delimited field, -2 for one of 4 or 8 bytes.
        head: Where its tag begins.
        start: Where its contents begin.
        end: Where it ends.
    """

    number: int
    value: int
    head: int
    start: int
    end: int


class Wire:
    """Fields of protobuf messages in a file.

    Args:
        stream: The file, opened for reading.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self._seen = stream, 0

    def fields(self, start: int, end: int, *, fixed: bool = False) -> Iterator[Field]:
        """The fields of a message, in order.

        Args:
            start: Where the message begins, in bytes.
            end: Where it ends.
            fixed: Whether numbers of 4 and 8 bytes are wanted; else they are passed over.

        Raises:
            ValueError: The message is damaged, or the file has more fields than `MOST_FIELDS`.
            EOFError: A field reaches past the end of its message.
        """
        while start < end:
            self._seen += 1
            if self._seen > MOST_FIELDS:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            self.stream.seek(start)
            begin = self.stream.read(min(20, end - start))
            tag, used = decode_varint(begin, 0)
            head, wire = start, tag & 7
            if wire == 0:
                value, used = decode_varint(begin, used)
                start += used
                yield Field(tag >> 3, value, head, start, start)
                continue
            if wire not in (1, 2, 5):
                raise ValueError(f"unknown wire type {wire}")
            length, used = decode_varint(begin, used) if wire == 2 else (8 if wire == 1 else 4, used)
            start += used + length
            if start > end:
                raise EOFError(f"a field of {length} bytes reaches past the end")
            if wire == 2 or fixed:
                yield Field(tag >> 3, -1 if wire == 2 else -2, head, start - length, start)

    def within(self, field: Field, number: int) -> Iterator[Field]:
        """The fields of a message, when ``field`` is a message and has that number."""
        return self.fields(field.start, field.end) if field.number == number and field.value < 0 else iter(())

    def read(self, field: Field) -> bytes:
        """The contents of a field."""
        self.stream.seek(field.start)
        return self.stream.read(field.end - field.start)

    def text(self, field: Field, longest: int = LONGEST_NAME) -> str:
        """A name; "" for a number in the place of one.

        Raises:
            ValueError: It is longer than ``longest`` bytes, or no UTF-8.
        """
        if field.end - field.start > longest:
            raise ValueError(f"a name of {field.end - field.start:,} bytes")
        return self.read(field).decode()

    def pair(self, field: Field, longest: int = LONGEST_NAME) -> tuple[str, str]:
        """The two texts of a StringStringEntryProto."""
        texts = ["", ""]
        for part in self.fields(field.start, field.end):
            if part.number in (1, 2) and part.value < 0:
                texts[part.number - 1] = self.text(part, longest)
        return texts[0], texts[1]

    def unpack(self, field: Field) -> list[int]:
        """Numbers written one behind the other."""
        if field.end - field.start > 10 * MOST_AXES:
            raise ValueError(f"a tensor has more than {MOST_AXES} axes")
        raw, at, numbers = self.read(field), 0, list[int]()
        while at < len(raw):
            value, at = decode_varint(raw, at)
            numbers.append(value)
        return numbers


def decode_varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number and where the next one begins."""
    value = 0
    for used, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << 7 * used
        if byte < 0x80:
            return value, at + used + 1
    raise EOFError("cut off inside a number" if len(raw) - at < 10 else "number too long")


def decode_signed(value: int) -> int:
    """An int64, which protobuf writes as a varint of 64 bits."""
    return (value & (1 << 64) - 1) - (1 << 64 if value >> 63 & 1 else 0)


def encode_varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*raw, value))


def encode_head(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return encode_varint(number << 3 | 2) + encode_varint(length)


def encode_field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return encode_head(number, len(content)) + content
