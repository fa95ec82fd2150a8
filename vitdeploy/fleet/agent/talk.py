"""What a box and who pushes say to each other: lines of JSON, and behind a request the bytes that were announced."""

from __future__ import annotations

import json
import os
import select
from contextlib import suppress
from typing import Any

from vitdeploy.errors import DeviceError

Words = dict[str, Any]
"""A line, as it came: the other side may be of another version, or no agent at all."""
MARK = "\x1e"
"""What every line of ours begins with: RFC 7464 has it before a JSON text."""
VERSION = 1
IDLE_S = 120.0
"""How long nothing may come before the other side is taken for dead."""
_LONGEST = 16 << 20
"""Bytes of a request."""


class Line:
    """The other side's words and bytes, from a descriptor of which nothing was read ahead."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._ahead = descriptor, b""

    def read(self, most: int) -> bytes:
        """At least one byte.

        Raises:
            DeviceError: VD5003, no more will come.
        """
        if not self._ahead:
            ready, _, _ = select.select([self._descriptor], [], [], IDLE_S)
            self._ahead = os.read(self._descriptor, most) if ready else b""
            if not self._ahead:
                raise DeviceError("VD5003", "the connection was lost", fix="push again: what has arrived stays on the box")
        chunk, self._ahead = self._ahead[:most], self._ahead[most:]
        return chunk

    def read_request(self) -> Words:
        """One line of JSON."""
        request = b""
        while b"\n" not in request and len(request) < _LONGEST:
            request += self.read(1 << 16)
        line, _, self._ahead = request.partition(b"\n")
        content: Words = json.loads(line)
        return content


def say(**words: object) -> None:
    """A line for the other side. Where nobody listens any more, the work goes on."""
    with suppress(OSError):
        os.write(1, f"{MARK}{json.dumps(words)}\n".encode())
