"""The wire format as protobuf itself writes and reads it, and as nobody should write it."""

from __future__ import annotations

from io import BytesIO

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.onnxfile.wire import Wire, decode_signed, decode_varint, encode_field, encode_head, encode_varint


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_numbers_are_those_of_protobuf(number: int) -> None:
    raw = onnx.AttributeProto(i=number).SerializeToString()
    assert encode_varint(3 << 3) + encode_varint(number & (1 << 64) - 1) == raw
    value, end = decode_varint(raw, 1)
    assert (decode_signed(value), end) == (number, len(raw))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 70_000])
def test_texts_are_those_of_protobuf(length: int) -> None:
    raw = onnx.AttributeProto(doc_string="t" * length).SerializeToString()
    assert encode_field(13, b"t" * length) == encode_head(13, length) + b"t" * length == raw
    field = next(Wire(BytesIO(raw)).fields(0, len(raw)))
    assert (field.number, field.value, field.head, field.end) == (13, -1, 0, len(raw))
    assert Wire(BytesIO(raw)).text(field, longest=length) == "t" * length
    if length:
        with pytest.raises(ValueError, match=f"a name of {length:,} bytes"):
            Wire(BytesIO(raw)).text(field, longest=length - 1)


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=60))
def test_packed_numbers(numbers: list[int]) -> None:
    raw = encode_field(1, b"".join(map(encode_varint, numbers)))
    wire = Wire(BytesIO(raw))
    assert [number for field in wire.fields(0, len(raw)) for number in wire.unpack(field)] == numbers


@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_fields_one_behind_the_other_or_an_error(raw: bytes, fixed: bool) -> None:
    at = 0
    try:
        for field in Wire(BytesIO(raw)).fields(0, len(raw), fixed=fixed):
            assert at <= field.head < field.start <= field.end <= len(raw)
            assert field.head == at or not fixed
            at = field.end
    except (EOFError, ValueError):
        return
    assert at == len(raw) or not fixed
