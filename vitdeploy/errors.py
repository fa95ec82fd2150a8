"""Every error vitdeploy raises on purpose: one tree, one code and one exit status each.

A failed gate is a result, not an error: it exits 1, so that CI tells "the model got worse" (1) from "the job is broken"
(2 to 7). The first digit of a code is the exit status of its class, so the two can never disagree.

    VitdeployError
    ├── UsageError         2  unknown key, bad value, impossible combination
    ├── InputError         3  corrupt, empty, unsupported, wrong kind
    ├── MachineError       4  missing package, provider, memory, disk, time-out, native crash
    ├── DeviceError        5  another machine could not be reached, or refused; what it serves is said
    └── TrustError         7  signature, traversal, pickle with code, foreign engine

Another library's exceptions are translated at one seam each, `library`: those that it is known to raise, with the cause kept.
Anything else is a mistake of ours, which passes through and ends the program with `INTERNAL`.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import ClassVar, NamedTuple

INTERNAL = 8
"""Exit status of a mistake of ours."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it (128 + SIGINT)."""
_NEAR = 0.75
"""Share of letters in common, in order, from which one word may be meant for another: one letter in four is off."""
_SHORT, _NEAR_SHORT = 4, 0.6
"""A word of so few letters is near to one from which it differs by one."""


_REFUSALS = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "give this user the right to it"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n)"),
    **dict.fromkeys((errno.EROFS, errno.EIO, errno.ESTALE), "look at the disk, or name another place"),
    **dict.fromkeys((errno.EAGAIN, errno.ENOMEM), "free some memory, or raise the limit of processes"),
}
"""What the system may refuse wherever it is asked, and what to do."""
_COMMAND = re.compile(r"^\s*::|##(?=\w*\[)")
"""What makes a line of a log a command to the CI server that keeps it, up to a character that is spelled out."""


class VitdeployError(Exception):
    """Base of all deliberate errors.

    Args:
        code: ``VD####``, a key of `vitdeploy.codes.CODES`; its first digit is the exit status.
        message: What is wrong, with the numbers, in one line.
        file: The file or folder it is about, if any.
        fix: What to do about it, in the imperative.
    """

    exit_code: ClassVar[int] = INTERNAL

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


class DeviceError(VitdeployError):
    """A box: it can't be reached, or lacks something, or a release did not stay on it."""

    exit_code = 5


class TrustError(VitdeployError):
    """Refused for safety: traversal, foreign code."""

    exit_code = 7


def _rebuild(cls: type[VitdeployError], code: str, message: str, file: str | None, fix: str) -> VitdeployError:
    return cls(code, message, file=file, fix=fix)


def printable(text: str) -> str:
    """``text`` in one line in which a name from a model or from data can't move the cursor or give a CI server a command.

    Control characters are spelled out, and so is one character of what begins a command of GitHub's (``::`` at the start of a
    line, ``##[`` anywhere), Azure's (``##vso[``) or TeamCity's (``##teamcity[``). Markdown, XML and GitHub's own fields have more
    to escape, behind this.
    """
    spelled = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _COMMAND.sub(lambda match: f"{match[0][:-1]}\\x{ord(match[0][-1]):02x}", spelled)


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


class Seam(NamedTuple):
    """What a library raises by itself.

    Attributes:
        packages: Top packages of its own exception classes, with those that have more behind an underscore (``onnx_ir`` is of
            ``onnx``). They are told by name: nothing is imported for it.
        plain: Python's own exceptions that it uses.
    """

    packages: tuple[str, ...] = ()
    plain: tuple[type[Exception], ...] = ()


SEAMS: dict[str, Seam] = {
    "torch": Seam(("torch",), (RuntimeError,)),
    "torch.onnx": Seam(("torch", "onnxscript", "onnx"), (RuntimeError,)),
    "safetensors": Seam(("safetensors",), (RuntimeError, ValueError, OSError)),
    "onnx": Seam(("onnx", "google"), (RuntimeError, ValueError, OSError)),  # google: protobuf
    "numpy": Seam(("numpy",)),
    "file system": Seam(plain=(OSError,)),
    "starting a child process": Seam(("subprocess",), (OSError,)),
}
"""Libraries that raise more, or less, than `find_seam` supposes."""
LOADING = Seam(plain=(ImportError, OSError, RuntimeError))
"""An engine that is installed, and can't be imported: a shared library is missing, or was built for something else."""
FOREIGN = Seam(plain=(Exception,))
"""Code that is not ours: the user's module, or a pickle, which is a program. It may raise anything."""


def find_seam(name: str) -> Seam:
    """The seam of a library; an engine that is not in `SEAMS` is native code behind bindings.

    Source:
        pybind11's documentation: ``std::runtime_error`` becomes a RuntimeError, ``std::invalid_argument`` a ValueError.
    """
    return SEAMS.get(name) or Seam((name,), (RuntimeError, ValueError))


@contextmanager
def library(name: str, file: str | PathLike[str] | None = None, *, seam: Seam | None = None) -> Iterator[None]:
    """The seam to another library: what it is known to raise inside the block becomes a VD4004 (or VD4002, VD4006).

    Args:
        name: Of the library; with a ``seam`` any name for people.
        file: The file that it works on, if any.
        seam: `LOADING` or `FOREIGN`.

    Raises:
        MachineError: The library failed; its own exception is the ``__cause__``.
    """
    seam = seam or find_seam(name)
    try:
        yield
    except VitdeployError:
        raise
    except Exception as exc:  # what is not of the seam goes on as it is
        if exhaustion := explain_exhaustion(exc, name, file):
            raise exhaustion from exc
        modules = {f"{kind.__module__}.".replace("_", ".") for kind in type(exc).__mro__}
        own = any(module.startswith(f"{package}.") for module in modules for package in seam.packages)
        if not own and not isinstance(exc, seam.plain):
            raise
        raise MachineError("VD4004", f"{name}: {first_line(exc)}", file=file) from exc


def explain_exhaustion(exc: BaseException, who: str = "", file: str | PathLike[str] | None = None) -> MachineError | None:
    """What any code may meet: memory or disk is full, or a file grew beyond the limit of a child process.

    Returns:
        The error to raise instead, or None when it is something else.
    """
    if isinstance(exc, MemoryError):
        return MachineError("VD4006", f"{who} ran out of memory".strip(), file=file, fix="use a smaller batch or model")
    if isinstance(exc, OSError):
        file = file or exc.filename
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return MachineError("VD4002", "no space left on the device", file=file, fix="free some disk")
        if exc.errno == errno.EFBIG:
            return MachineError("VD4002", "File too large: it grew beyond the limit of this process", file=file)
    return None


_SAYS_NOTHING = re.compile(
    r"^Exception from \S+:\d+:?$|failed at \S+:\d+:$|^While validating |^-- .* with a message:$"
    r"|^FrontEnd API failed |^Model wasn't fully converted|^Summary:$"
)


def explain_refusal(exc: BaseException) -> VitdeployError | None:
    """What the system refuses at any moment, whoever asks: a name, a right, a descriptor, a thread, a disk that works.

    Returns:
        The error to report instead, or None when it is something else.
    """
    if isinstance(exc, OSError) and exc.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
        return InputError("VD3001", f"can't be read: {os.strerror(exc.errno)}", file=exc.filename)
    if isinstance(exc, OSError) and exc.errno in _REFUSALS:
        words = os.strerror(exc.errno)
        return MachineError("VD4004", f"the system refused: {words}", file=exc.filename, fix=_REFUSALS[exc.errno])
    if isinstance(exc, RuntimeError) and str(exc).startswith("can't start new thread"):
        fix = "raise the limit of processes (ulimit -u, or the container's), or use fewer --threads"
        return MachineError("VD4004", "the system refused: no more threads", fix=fix)
    return None


def first_line(exc: BaseException) -> str:
    """The first line of an exception's text that says something, at most 300 characters.

    Lines that only name a place in an engine's own source, or say that a message follows, are passed over.
    """
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    lines = [line for line in lines if not _SAYS_NOTHING.search(line)] or lines
    return (lines[0] if lines else type(exc).__name__)[:300]


def nearest(word: str, words: Iterable[str]) -> str:
    """``did you mean 'x'?`` for a mistyped word, or "" when nothing is near: a wrong guess is worse than none."""
    known = list(words)
    matches = difflib.get_close_matches(word, known, 1, _NEAR if len(word) > _SHORT else _NEAR_SHORT)
    if not matches and len(word) > _SHORT:  # the beginning of a name, or a name with something behind it
        matches = [name for name in known if name.startswith(word) or word.startswith(f"{name}.")]
        matches = [min(matches, key=len)] if matches else []
    return f"did you mean {matches[0]!r}?" if matches else ""
