"""A process that one talks with: bytes to its stdin, lines of JSON from its stdout, each with a time in which it must come.

What it prints before its first line of ours (log-in messages, a shell's greetings) is passed over; after that all must be ours.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

from vitdeploy.errors import DeviceError, library
from vitdeploy.fleet.agent.talk import MARK, Words

STALL_S = 120.0
"""How long a process may take no byte."""
_GRACE_S = 10.0
_LONGEST, _GREETING = 1 << 20, 1 << 16
"""Bytes of a line, and of all that may come before the first of ours."""
_CHUNK = 1 << 16


class Channel:
    """A process; use it in a ``with`` block.

    Args:
        command: Program and arguments.
        who: The box, for messages.
    """

    def __init__(self, command: Sequence[str], who: str) -> None:
        self._who, self._ahead, self._begun = who, b"", False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the channel)
        with ExitStack() as stack, library("starting a child process"):
            stack.callback(self._errors.close)
            self._process = subprocess.Popen(  # noqa: S603 (the user's ssh)
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
            )
            stack.pop_all()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    def __enter__(self) -> Channel:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the process; what it does on the other machine goes on to its end."""
        self.end()
        self._errors.close()

    def send(self, content: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: The other side does not read any more; it may have said why.
            DeviceError: VD5003, it took nothing for `STALL_S`.
        """
        view = memoryview(content)
        while view:
            _, ready, _ = select.select([], [self._to], [], STALL_S)
            if not ready:
                raise self.refuse(f"has taken nothing for {STALL_S:g} s")
            with suppress(BlockingIOError):
                view = view[os.write(self._to, view[:_CHUNK]) :]

    def read(self, seconds: float) -> Words:
        """The next line of ours.

        Raises:
            EOFError: The process has closed its stdout.
            DeviceError: VD5003, no line came in this time, or one that is none of ours.
        """
        deadline, strange = time.monotonic() + seconds, 0
        while True:
            line = self._read_line(deadline)
            if line.startswith(MARK.encode()):
                try:
                    words = json.loads(line[1:])
                except ValueError:
                    words = None
                if isinstance(words, dict):
                    self._begun = True
                    return words
            strange += len(line)
            if self._begun or strange > _GREETING:
                said = line.decode(errors="replace").strip()[:100]
                raise self.refuse(f"answers what no agent answers: {said!r}")

    def end(self) -> int:
        """Close it, and wait for its end; its exit status."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            return self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def read_errors(self) -> list[str]:
        """Lines of its stderr; the last hundred."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _CHUNK))
        lines = self._errors.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-100:]

    def refuse(self, message: str) -> DeviceError:
        """The error of a box that does not answer as it should."""
        return DeviceError("VD5003", message, file=self._who, fix=f"run: vitdeploy status {self._who}")

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._ahead:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._from], [], [], max(left, 0))
            if not ready:
                raise self.refuse("does not answer")
            chunk = os.read(self._from, _CHUNK)
            if not chunk:
                raise EOFError
            self._ahead += chunk
            if len(self._ahead) > _LONGEST:
                raise self.refuse("answers without end")
        line, _, self._ahead = self._ahead.partition(b"\n")
        return line
