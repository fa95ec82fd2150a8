"""What goes through the socket between parent and child: JSON with its length before it, then plain bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

LARGEST_ANSWER = 64 << 20
"""Most bytes of one message's JSON."""
LARGEST_ARRAYS = 4 << 30
"""Most bytes that come with one message."""

Fill = Callable[[memoryview], int]
"""Reads into the memory; returns how many bytes, 0 at the end of the stream."""


def encode_message(message: dict[str, object], arrays: Sequence[memoryview] = ()) -> bytes:
    """The bytes to send before the arrays.

    Args:
        message: Of what JSON knows.
        arrays: Contiguous bytes that will be sent behind it.

    Raises:
        TypeError, ValueError: It is not what JSON knows.
    """
    text = json.dumps({**message, "sizes": [each.nbytes for each in arrays]}).encode()
    return len(text).to_bytes(8, "little") + text


def receive_message(fill: Fill) -> tuple[dict[str, Any], list[bytearray]]:
    """One message, and what came with it.

    Args:
        fill: Reads from the socket.

    Raises:
        EOFError: The stream ended.
        ValueError, TypeError, KeyError, RecursionError: It is none of ours, or too large.
    """
    length = int.from_bytes(_read_exactly(8, fill), "little")
    if length > LARGEST_ANSWER:
        raise ValueError(length)
    message = json.loads(_read_exactly(length, fill))
    sizes = message.pop("sizes")
    if any(type(size) is not int or size < 0 for size in sizes) or sum(sizes) > LARGEST_ARRAYS:
        raise ValueError(sizes)
    return message, [_read_exactly(size, fill) for size in sizes]


def _read_exactly(size: int, fill: Fill) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = fill(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data
