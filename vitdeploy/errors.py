"""Every error vitdeploy raises on purpose: one tree, one code and one exit status each.

A failed gate is a result, not an error: it exits 1, so that CI tells "the model got worse" (1) from "the job is broken"
(2 to 7). The first digit of a code is the exit status of its class, so the two can never disagree.

    VitdeployError
    ├── UsageError         2  unknown key, bad value, impossible combination
    ├── InputError         3  corrupt, empty, unsupported, wrong kind
    ├── MachineError       4  missing package, provider, memory, disk, time-out, native crash
    └── TrustError         7  signature, traversal, pickle with code, foreign engine
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import ClassVar

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it (128 + SIGINT)."""


class VitdeployError(Exception):
    """Base of all deliberate errors.

    Args:
        code: ``VD####``, a key of `vitdeploy.codes.CODES`; its first digit is the exit status.
        message: What is wrong, with the numbers, in one line.
        file: The file or folder it is about, if any.
        fix: What to do about it, in the imperative.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, code: str, message: str, *, file: str | PathLike[str] | None = None, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = None if file is None else str(file)
        self.fix = fix

    def __str__(self) -> str:
        """The one line people read: ``error[VD3003] model.onnx: is a git-lfs pointer; run: git lfs pull``."""
        where = "" if self.file is None else f" {printable(self.file)}:"
        fix = f"; {printable(self.fix)}" if self.fix else ""
        return f"error[{self.code}]{where} {printable(self.message)}{fix}"

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries with all their parts."""
        return _rebuild, (type(self), self.code, self.message, self.file, self.fix)

    def record(self) -> dict[str, object]:
        """The error as ``--json`` prints it."""
        return {
            "code": self.code,
            "file": self.file,
            "message": self.message,
            "fix": self.fix,
            "exit": self.exit_code,
        }


class UsageError(VitdeployError):
    """The request is wrong: unknown key, bad value, impossible combination."""

    exit_code = 2


class InputError(VitdeployError):
    """What was given to read is corrupt, empty, unsupported or of the wrong kind."""

    exit_code = 3


class MachineError(VitdeployError):
    """This machine lacks something: a package, a provider, memory, disk, time."""

    exit_code = 4


class TrustError(VitdeployError):
    """Refused for safety: traversal, foreign code."""

    exit_code = 7


def _rebuild(cls: type[VitdeployError], code: str, message: str, file: str | None, fix: str) -> VitdeployError:
    return cls(code, message, file=file, fix=fix)


def printable(text: str) -> str:
    """``text`` with control characters spelled out, so that a file name can't move the cursor or fake a CI command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing third-party package inside the block into one line with the pip command.

    Args:
        extra: The extra of vitdeploy that brings the package.

    Raises:
        MachineError: VD4001, a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("vitdeploy"):
            raise  # our own mistake, not a missing extra
        fix = f"run: pip install 'vitdeploy[{extra}]'"
        raise MachineError("VD4001", f"needs the package {exc.name!r}, which is not installed", fix=fix) from exc


@contextmanager
def library(name: str, file: str | PathLike[str] | None = None) -> Iterator[None]:
    """The one seam to another library: whatever it raises inside the block becomes a VD4004 (or VD4002, VD4006).

    Raises:
        MachineError: The library failed; its own exception is the ``__cause__``.
    """
    try:
        yield
    except VitdeployError:
        raise
    except MemoryError as exc:
        raise MachineError("VD4006", f"{name} ran out of memory", file=file, fix="use a smaller batch") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError("VD4002", "no space left on the device", file=file, fix="free some disk") from exc
        raise MachineError("VD4004", f"{name}: {first_line(exc)}", file=file) from exc
    except Exception as exc:  # the seam: everything of theirs becomes one of ours, cause kept
        raise MachineError("VD4004", f"{name}: {first_line(exc)}", file=file) from exc


def first_line(exc: BaseException) -> str:
    """The first non-empty line of an exception's text, at most 300 characters."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:300]


def nearest(word: str, words: Iterable[str]) -> str:
    """``did you mean 'x'?`` for a mistyped word, or "" when nothing is near."""
    found = difflib.get_close_matches(word, list(words), 1, 0.6)
    return f"did you mean {found[0]!r}?" if found else ""
