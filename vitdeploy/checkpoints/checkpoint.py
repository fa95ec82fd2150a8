"""A checkpoint from disk, whatever its format: told apart by content, read without running any of it, names made bare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitdeploy.checkpoints import folders, npz, opcodes, pickles, safetensors
from vitdeploy.checkpoints.composed import compose
from vitdeploy.checkpoints.conversion import State
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.checkpoints.unwrap import SAVE, strip
from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.files import sha256
from vitdeploy.kinds import expect, sniff


def read(path: Path, *, trust: str | None = None, prefer: str | None = None) -> Checkpoint:
    """Read a checkpoint, offline.

    Args:
        path: A file (safetensors, PyTorch, npz) or a folder (Hugging Face, timm, OpenCLIP, a hub cache's repository or
            snapshot).
        trust: SHA-256 of a PyTorch file that may run code; see `vitdeploy.checkpoints.pickles`.
        prefer: ``ema`` or ``plain``, for a training checkpoint with both; see `vitdeploy.checkpoints.unwrap.choose`.

    Raises:
        InputError: The file is damaged, of no known kind, or holds no weights: VD3001 to VD3008, VD3013, VD3016 to VD3021;
            VD3015, weights that only code can put together.
        TrustError: VD7001 a link or name leads out of the folder; VD7002, VD7003 the file would run code.
        MachineError: The child process that reads a pickle failed.
        UsageError: VD2003, VD2010 ``trust`` or ``prefer`` does not fit.
    """
    path = Path(path)
    layout = folders.find(path) if path.is_dir() else folders.Layout({path.name: path}, {}, {}, {}, None, ())
    notes = list(layout.notes)
    state: State = {}
    for name, file in layout.weights.items():
        with _name_in_errors(file, path / name if path.is_dir() else path):
            part, said = _weights(file, name, trust, prefer)
        if layout.shards is not None:
            _agree(part, name, layout.shards, path)
        notes += [note for note in said if note not in notes]
        state |= part
    if not state:
        raise InputError("VD3021", "holds no weights", file=path, fix=f"save them with {SAVE}")
    files = {name: sha256(file) for name, file in (layout.weights | layout.read).items()}
    checkpoint = Checkpoint(path, state, layout.config, layout.preprocessor, files, tuple(notes))
    return unwrap(checkpoint, prefer)


def unwrap(checkpoint: Checkpoint, prefer: str | None = None) -> Checkpoint:
    """A checkpoint by the names of the network itself, every weight in one tensor.

    Args:
        checkpoint: As it was read; its tensors may be without data.
        prefer: See `read`.

    Raises:
        InputError: VD3015, weights that only code can put together; see `vitdeploy.checkpoints.composed.compose`.
    """
    bare = strip(checkpoint.names, prefer)
    try:
        state, composed = compose({new: checkpoint.state[old] for old, new in bare.names.items()})
    except InputError as exc:
        exc.file = str(checkpoint.path)
        raise
    return checkpoint._replace(state=state, notes=(*checkpoint.notes, *bare.notes, *composed), doubt=bare.doubt)


def _weights(file: Path, name: str, trust: str | None, prefer: str | None) -> tuple[State, tuple[str, ...]]:
    """One file by its content; a name that promises safetensors is held to it."""
    kind = sniff(file)
    if kind in ("zip", "pickle") and not name.endswith(".safetensors"):
        if kind == "zip" and npz.is_npz(file):
            return npz.read(file)
        return pickles.read(file, trust=trust, prefer=prefer)
    if kind in ("text", "unknown") and opcodes.is_text_pickle(file):
        return pickles.read(file, trust=trust, prefer=prefer)
    expect(file, "safetensors", what="a checkpoint (safetensors, PyTorch or npz)")
    return safetensors.read(file, integers="keep"), safetensors.kinds(file)


def _agree(part: State, name: str, shards: dict[str, str], folder: Path) -> None:
    """Refuse a shard that holds other tensors than the index says."""
    wanted = {tensor for tensor, shard in shards.items() if shard == name}
    missing, more = sorted(wanted - part.keys()), sorted(part.keys() - wanted)
    if missing or more:
        lacks = f"lacks {len(missing)} tensors that the index names ({', '.join(missing[:5])})" if missing else ""
        has = f"holds {len(more)} that the index does not name ({', '.join(more[:5])})" if more else ""
        message = "; ".join(text for text in (lacks, has) if text)
        raise InputError("VD3020", message, file=folder / name, fix="download the whole repository again")


@contextmanager
def _name_in_errors(file: Path, shown: Path) -> Iterator[None]:
    """Errors about a blob of the hub's cache name the file as the user knows it."""
    try:
        yield
    except VitdeployError as exc:
        if exc.file == str(file):
            exc.file = str(shown)
        raise
