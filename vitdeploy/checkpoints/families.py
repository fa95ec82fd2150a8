"""Weights from wherever they come: read safely, recognised, converted by a table, and every tensor accounted for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from shlex import quote

from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.heads import settle_heads
from vitdeploy.checkpoints.source import Checkpoint, Loaded, Source
from vitdeploy.errors import InputError

SOURCES = ("huggingface", "torchvision", "clip", "jax", "meta", "timm")
"""Modules of this package with a `SOURCE`, in the order in which they are asked; each recognises only its own."""


def load(path: Path, architecture: str | None = None, *, trust: str | None = None, prefer: str | None = None) -> Loaded:
    """Read a checkpoint of any source that is known, offline.

    Args:
        path: A folder (Hugging Face, timm, or a hub cache) or a file (.safetensors, .pth, .pt, .bin, .npz).
        architecture: The architecture's name, for files that do not say it.
        prefer: ``ema`` or ``plain``, for checkpoints that hold both.
        trust: SHA-256 of a pickle that may run code; see `vitdeploy.checkpoints.pickles`.

    Raises:
        InputError: The file is damaged (VD3001 to VD3008), of no known source (VD3014), or does not fit (VD3009).
        UsageError: The file does not say which architecture it is, and none was given.
        TrustError: The file would run code.
    """
    from vitdeploy.checkpoints.checkpoint import read

    checkpoint = read(path, trust=trust, prefer=prefer)
    source = recognise(checkpoint)
    checkpoint = settle_heads(checkpoint)
    try:
        spec = source.spec(checkpoint, architecture)
        converted = convert(checkpoint.state, source.rules(checkpoint, spec))
    except InputError as exc:  # a table knows no file
        exc.file = exc.file or str(checkpoint.path)
        raise
    origin = {
        "source": source.name,
        "files": checkpoint.files,
        "notes": [*checkpoint.notes, *source.notes(checkpoint, spec)],
        "left_out": converted.left_out,
        "architecture": architecture or spec.name,
    }
    return Loaded(spec, converted.state, source.grid(checkpoint), origin, source.read_fields(checkpoint))


def recognise(checkpoint: Checkpoint) -> Source:
    """The source library of a checkpoint.

    Raises:
        InputError: VD3014, none recognises it.
    """
    for name in SOURCES:
        source: Source = import_module(f"vitdeploy.checkpoints.{name}").SOURCE
        if source.recognise(checkpoint):
            return source
    first = ", ".join(list(checkpoint.state)[:5])
    fix = "write a mapping file (vitdeploy explain VD3014), or use --module"
    path = checkpoint.path
    if path.is_file() and (path.parent / "config.json").is_file():
        fix = f"config.json lies beside it, so give the folder instead: vitdeploy export {quote(str(path.parent))} -o OUT"
    message = checkpoint.doubt or f"is of no known source; its first tensors are {first}"
    raise InputError("VD3014", message, file=path, fix=fix)


__all__ = ["Checkpoint", "Loaded", "Source", "load", "recognise"]
