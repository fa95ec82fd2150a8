"""What a file or folder really is, whatever it is called: told by its first bytes and by the names in it.

What people bring instead of a model is named for what it is (an OpenVINO IR, a Keras file, the shards of a training run), with
what would work in its place: no library is asked, and nothing of the file is run.
"""

from __future__ import annotations

import shlex
import zipfile
import zlib
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import InputError

LFS = b"version https://git-lfs.github.com/spec/"
_GIVE = "give the ONNX file or the PyTorch checkpoint that it was made from"
_TRAINED = "give a checkpoint of PyTorch weights, or an ONNX file made from it (tf2onnx makes one)"

MERGE = (
    'where it was made, run: torch.save(model.merge_and_unload().state_dict(), "merged.pth"); '
    'or for a model of transformers: model.merge_and_unload().save_pretrained("merged")'
)
"""What turns an adapter and its model into weights."""


class Foreign(NamedTuple):
    """Something that is no model here.

    Attributes:
        what: Its kind, with an article.
        fix: What to give instead.
    """

    what: str
    fix: str


_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf'\x1c": "7z",
    b"\x1f\x8b": "gzip",
    b"\x89HDF": "hdf5",
    b"\x93NUMPY": "npy",
    b"\x80\x02": "pickle",
    b"\x80\x03": "pickle",
    b"\x80\x04": "pickle",
    b"\x80\x05": "pickle",
    b"ftrt": "plan",
    b"ptrt": "plan",
    b"GGUF": "gguf",
}
FOREIGN = {
    "ir": Foreign("an OpenVINO IR", "give the ONNX file it was made from"),
    "tflite": Foreign("a TensorFlow Lite file", _GIVE),
    "plan": Foreign("a TensorRT engine that was built elsewhere", _GIVE),
    "gguf": Foreign("a GGUF file", _GIVE),
    "coreml": Foreign("a Core ML model", _GIVE),
    "hdf5": Foreign("an HDF5 file, as Keras writes its weights", _TRAINED),
}
"""Words of `sniff` for models of other programs."""
_ARCHIVES = (  # patterns that one entry of a zip archive each must match
    (("*constants.pkl",), Foreign("a TorchScript archive", _GIVE)),
    (("*archive_format", "*models/*.json"), Foreign("a program of torch.export", _GIVE)),
    (("serialized_exported_program.json",), Foreign("a program of torch.export", _GIVE)),
    (("model.weights.h5", "config.json"), Foreign("a Keras model", _TRAINED)),
)
_CONVERTER = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
_FOLDERS = (  # patterns that one entry of a folder each must match; {folder} and {file} stand for names that a shell reads
    (
        (".metadata", "*.distcp"),
        Foreign("a checkpoint in shards, as torch.distributed.checkpoint writes it", f"run: {_CONVERTER} {{folder}} {{file}}"),
    ),
    (("adapter_config.json",), Foreign("an adapter (LoRA), not a model", MERGE)),
    (("zero_to_fp32.py",), Foreign("a checkpoint of DeepSpeed", "join its shards by the zero_to_fp32.py that lies in it")),
    (("saved_model.pb",), Foreign("a SavedModel of TensorFlow", _TRAINED)),
    (("Manifest.json", "Data"), Foreign("a Core ML package", _GIVE)),
    (("openvino_*.xml",), FOREIGN["ir"]),
    (("_CHECKPOINT_METADATA",), Foreign("a checkpoint of Orbax (JAX)", "save the weights as .npz, one array a parameter")),
    (("manifest.ocdbt",), Foreign("a checkpoint of Orbax (JAX)", "save the weights as .npz, one array a parameter")),
)


def sniff(path: Path) -> str:
    """What a file really is, from its first bytes.

    Returns:
        One of ``empty lfs html safetensors zip pickle 7z gzip hdf5 npy text onnx unknown``, or of models of other programs ``ir
        tflite plan gguf coreml``. ``onnx`` means that the bytes start like an ONNX protobuf, not that it is valid.

    Raises:
        InputError: VD3001, the file is missing or unreadable.
    """
    try:
        with files.open_regular(path) as stream:
            head = stream.read(512)
    except IsADirectoryError:
        raise InputError("VD3001", "is a folder, expected a file", file=path) from None
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    if not head:
        return "empty"
    if head.startswith(LFS):
        return "lfs"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<net ")):
        return "ir" if b"<net " in text else "html"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:  # first: some lengths look like a pickle's start
        return "safetensors"
    for start, kind in _MAGIC.items():
        if head.startswith(start):
            return kind
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x40:  # field 1 (ir_version), varint, a small number
        return "coreml" if path.suffix == ".mlmodel" else "onnx"
    if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head):
        return "text"
    return "unknown"


def expect(path: Path, kind: str, *, what: str) -> None:
    """Refuse a file that is not ``kind`` before any library parses it, and say what it is instead.

    Args:
        path: The file.
        kind: A word of `sniff`.
        what: The kind in the user's words, for the message.

    Raises:
        InputError: VD3001 to VD3005.
    """
    real = sniff(path)
    if real == kind:
        return
    if real == "empty":
        raise InputError("VD3002", "is empty", file=path, fix="download or write it again")
    if real == "lfs":
        raise InputError("VD3003", "is a git-lfs pointer, not the file itself", file=path, fix="run: git lfs pull")
    if real == "html":
        raise InputError("VD3004", "is an HTML page", file=path, fix="download the file itself, perhaps after logging in")
    foreign = FOREIGN.get(real) or (recognise_archive(_list_entries(path)) if real == "zip" else None)
    if foreign is not None:
        raise InputError("VD3005", f"is {foreign.what}, expected {what}", file=path, fix=foreign.fix)
    named = {"zip": "a zip archive (a PyTorch .pt file?)", "pickle": "a Python pickle", "unknown": "of an unknown kind"}
    raise InputError("VD3005", f"is {named.get(real, 'a ' + real + ' file')}, expected {what}", file=path)


def recognise_archive(entries: Collection[str]) -> Foreign | None:
    """What a zip archive with these entries is, if it is a model of another program's."""
    return next((foreign for patterns, foreign in _ARCHIVES if _have(entries, patterns)), None)


def refuse_folder(folder: Path) -> None:
    """Say what a folder is when it is a model of another program's, or weights in a form that is not read.

    Raises:
        InputError: VD3005.
    """
    names = [entry.name for entry in folder.iterdir()]
    foreign = next((foreign for patterns, foreign in _FOLDERS if _have(names, patterns)), None)
    if foreign is not None:
        file = folder.absolute().with_name(f"{folder.absolute().name}.pth")
        fix = foreign.fix.format(folder=shlex.quote(str(folder)), file=shlex.quote(str(file)))
        raise InputError("VD3005", f"is {foreign.what}", file=folder, fix=fix)


def _have(names: Collection[str], patterns: Collection[str]) -> bool:
    return all(any(fnmatch(name, pattern) for name in names) for pattern in patterns)


def _list_entries(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError):  # cut off: whoever reads it says so
        return []
