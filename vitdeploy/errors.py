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

CODES: dict[str, str] = {
    # 20xx: names and values
    "VD2001": "The name is not in the table of known ViTs, and no file or folder has it. `vitdeploy models` lists the table.",
    "VD2002": "A recipe or spec file has a key that does not exist. Keys are never ignored: a typo must not change a result.",
    "VD2003": "A value in a recipe, spec or option has the wrong type or lies outside its range.",
    "VD2004": "The image height or width is not a multiple of the patch, so the image can't be cut into whole patches.",
    "VD2005": "The number of heads does not divide the model width, and no head size was given.",
    "VD2006": "Two settings of the model contradict each other (for example a class-token pool without a class token).",
    "VD2007": "The recipe is not valid TOML.",
    "VD2008": "The output path can't be used: it is a file, it holds something that vitdeploy did not write, or it can't be "
    "written. Nothing was changed.",
    "VD2009": "The named backend does not exist.",
    "VD2010": "The command needs something that was not given (data, a contract, weights), or was given twice.",
    "VD2011": "A setting is outside what this command supports (opset, batch, top-k, outputs).",
    "VD2012": "There is no such Python module or name, or what it gives is not a torch.nn.Module.",
    "VD2013": "The artifact was compiled for another engine, or has to be compiled before this engine can run it.",
    # 30xx: files and weights
    "VD3001": "The file or folder does not exist, or can't be read.",
    "VD3002": "The file is empty.",
    "VD3003": "The file is a git-lfs pointer: the small text stub that git keeps instead of a large file.",
    "VD3004": "The file is an HTML page, most often a log-in or error page saved under the name of a model.",
    "VD3005": "The file is not of the kind that its name or the command says.",
    "VD3006": "The weights file is cut off or damaged, or its header does not fit its contents.",
    "VD3007": "The safetensors header names the same tensor twice; which one counts is undefined.",
    "VD3008": "Weights hold NaN or infinity.",
    "VD3009": "The weights' names or shapes do not match the model. Nothing is loaded in part.",
    "VD3010": "The artifact's record is missing, unreadable or of another version, or a file changed after it was made.",
    "VD3011": "The file is not an ONNX model, or holds no graph.",
    "VD3012": "The ONNX file carries no input contract, so pixels can't be prepared for it.",
    "VD3013": "The header of the weights file is too large or names too many tensors, or the archive unpacks to far too much.",
    "VD3014": "The checkpoint is of no source library that is known.",
    "VD3015": "The checkpoint does not say which architecture it is, or its configuration is one that is not supported.",
    "VD3016": "The file is a whole pickled module: its class, not only its weights. Reading it would run the class's code.",
    "VD3017": "The file is a TorchScript archive, which is a program; the weights alone are needed.",
    "VD3018": "The checkpoint carries Python objects (arguments, a configuration) beside its weights; none is ever loaded.",
    "VD3019": "A JSON file beside the weights is damaged, too large, or not an object.",
    "VD3020": "A checkpoint in several files is not complete, or its index and its files disagree.",
    "VD3021": "No weights were found, or several sets of which none is known to be the one that counts.",
    "VD3022": "The network of a Python module can't be exported: its output is not one row of logits an image, the same in "
    "every run and for every image alone.",
    "VD3023": "No ViT block was found in the graph: nothing looks like attention between two linear layers.",
    "VD3024": "The model is quantized already, or its weights are not float32.",
    "VD3025": "The graph's operator set, or one of its operators, can't be edited.",
    "VD3026": "The graph holds something that the engine can't run as it is meant: it is refused before the engine sees it.",
    "VD3027": "The ONNX file would crash or mislead an engine: impossible sizes, offsets that reach past a file, data missing.",
    # 31xx: images and data
    "VD3101": "No images were found.",
    "VD3102": "An image can't be decoded: it is damaged, empty, of a format that is not accepted, or not an image.",
    "VD3103": "An image has more pixels than the limit allows.",
    "VD3104": "More images are unreadable than --max-bad allows.",
    "VD3105": "The data source's own index (manifest, tar, IDX header) is damaged or inconsistent.",
    "VD3106": "The data's labels do not fit the model (class count, unknown class name).",
    "VD3107": "An image's channels, or a tensor's shape, type or batch, do not fit the input contract.",
    "VD3108": "The image's size does not fit the input contract and may not be changed, or pixels are not uint8 in its shape.",
    "VD3109": "Calibration statistics are damaged, or belong to another model or input contract.",
    "VD3110": "An activation is NaN or infinite on a calibration image.",
    # 40xx: environment
    "VD4001": "A package is not installed. vitdeploy never installs anything by itself.",
    "VD4002": "Out of disk space.",
    "VD4003": "The export does not compute the same as the PyTorch original, or its batch is not truly dynamic.",
    "VD4004": "A library that vitdeploy calls (torch, onnxruntime, openvino, tensorrt) failed.",
    "VD4006": "Out of memory.",
    "VD4007": "A child process died of a signal (a crash in native code, or killed for want of memory) or gave no answer.",
    "VD4008": "A child process took longer than it may, and was killed.",
    "VD4009": "The engine does not run what was planned: layers meant for INT8 run in float.",
    "VD4010": "The engine's device, driver or provider can't be used on this machine.",
    "VD4011": "The engine could not be built, or what came out is not what was asked for, or computes something else.",
    # 70xx: trust
    "VD7001": "A path inside an archive or record points outside its folder, or through a link.",
    "VD7002": "The pickle would run code if it were loaded.",
    "VD7003": "The file's SHA-256 is not the one that was said to be trusted.",
    "VD7004": "The engine was built elsewhere or for another device, driver or version, or changed since: engines are executable "
    "code, and only those that this machine has built are loaded.",
    "VD7005": "The graph asks for operators of an unknown domain, or for a library of its own: that would be foreign code.",
}
"""Code to what it means, as printed by `vitdeploy explain CODE`."""


class VitdeployError(Exception):
    """Base of all deliberate errors.

    Args:
        code: ``VD####``, a key of `CODES`; its first digit is the exit status.
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
