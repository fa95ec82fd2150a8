"""PyTorch's own files (.pth, .pt, .bin, .ckpt): pickles, which are programs, so nothing of them runs in this process.

Two steps. First the pickle's opcodes are listed, never executed, for the names that it would import; that decides nothing
but the message: code, a whole module, a trainer's objects, or weights. Then ``torch.load(weights_only=True)`` runs in a
child process (`vitdeploy.isolate`), because what it accepts can still be a bomb or hit a bug in native code. The child picks
the weights out of the trainer's dictionaries and writes them as safetensors; this process reads those, as strictly as any.

There is no way back to unsafe loading but one: the caller gives the file's SHA-256, and says with it "I know this file".
Even then it is loaded in the child.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitdeploy import files, isolate
from vitdeploy.checkpoints import opcodes, safetensors
from vitdeploy.checkpoints.conversion import State
from vitdeploy.checkpoints.members import SKIPPED
from vitdeploy.checkpoints.unwrap import Name, choose
from vitdeploy.errors import FOREIGN, InputError, MachineError, TrustError, UsageError, VitdeployError, first_line, library
from vitdeploy.files import need_space, temporary_folder
from vitdeploy.kinds import sniff

DEEPEST = 32
MOST_ENTRIES = 200_000
MOST_TIMES = 16
"""How many times its own size a checkpoint may unpack to: some networks use one tensor under many names."""

_AGAIN = "download it again"


class Read(NamedTuple):
    """Weights as a pickle held them.

    Attributes:
        state: Name to tensor: float32, or the integers that stood beside them.
        notes: What was chosen, left out, converted or trusted.
    """

    state: State
    notes: tuple[str, ...]


def read(path: Path, *, trust: str | None = None, prefer: str | None = None) -> Read:
    """Read a PyTorch checkpoint.

    Args:
        path: The file, a zip archive of `torch.save` or a pickle of the time before torch 1.6.
        trust: SHA-256 of the file, in hex. Its code may then run, in the child process.
        prefer: See `vitdeploy.checkpoints.unwrap.choose`.

    Raises:
        InputError: VD3005, VD3006 not a checkpoint, or damaged; VD3016 a pickled module; VD3017 TorchScript; VD3018 objects
            of a trainer; VD3021 no weights in it; and as `safetensors.read`.
        TrustError: VD7002 it contains code; VD7003 it is not the file that is trusted.
        MachineError: The child process failed; see `isolate.run`.
        UsageError: VD2003 ``trust`` is no SHA-256.
    """
    if trust is not None and not re.fullmatch("[0-9a-fA-F]{64}", trust):
        raise UsageError("VD2003", f"the trusted SHA-256 is {trust!r}, not 64 hexadecimal digits", fix="run: sha256sum FILE")
    opcodes.check(path, trusted=trust is not None)
    size = path.stat().st_size
    with temporary_folder() as folder:
        out = folder / "weights.safetensors"
        need_space(out, size)
        argument = {"path": str(path.absolute()), "out": str(out), "trust": trust and trust.lower(), "prefer": prefer}
        try:
            answer = isolate.run(
                f"{__name__}:convert",
                argument,
                seconds=120 + size / 5e6,
                memory_mib=(8 << 10) + 4 * (size >> 20),
                file_mib=64 + MOST_TIMES * (size >> 20),
            )
            kinds = safetensors.kinds(out)
            state = safetensors.read(out, integers="keep")
        except VitdeployError as exc:
            if exc.file in (None, str(out)):
                exc.file = str(path)
            raise
    order = dict.fromkeys([name for name in answer["names"] if name in state])  # safetensors has an order of its own
    return Read({name: state[name] for name in order | state}, (*map(str, answer["notes"]), *kinds))


def convert(argument: Mapping[str, Any]) -> dict[str, list[str]]:
    """Load a checkpoint and write its weights as safetensors: the part that runs in the child process.

    Args:
        argument: ``path``, ``out``, ``trust``, ``prefer`` of `read`.

    Returns:
        ``names`` of all tensors in the checkpoint's order, and ``notes``.

    Raises:
        VitdeployError: As `read`.
    """
    path, trust = Path(argument["path"]), argument["trust"]
    torch.set_num_threads(1)
    loaded = _load_safely(path) if trust is None else _load_trusted(path, trust)
    tensors: dict[Name, Tensor] = {}
    left_out: set[str] = set()
    for name, value in _walk(loaded):
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized:
            _put(tensors, name, value.detach())
        else:
            left_out |= set(name[:1])
    chosen = choose(list(tensors), argument["prefer"])
    depth = len(chosen.prefix)
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name[:depth] == chosen.prefix:
            _put(state, ".".join(name[depth:]), tensor)
    packed = _pack(state, path.stat().st_size)
    with library("safetensors", path):
        save_file(packed, argument["out"])
    notes = [f"trusted by its SHA-256 {trust}, so its code was allowed to run"] if trust else []
    others = sorted({name[0] for name in tensors if name[:depth] != chosen.prefix} | (left_out - set(chosen.prefix[:1])))
    if others:
        names = ", ".join(repr(name[:60]) for name in others[:8])
        notes.append(f"left out what stood beside the weights: {names}{', ...' * (len(others) > 8)}")
    return {"names": list(state), "notes": [*notes, *chosen.notes]}


def _put(tensors: dict[Any, Tensor], name: Any, tensor: Tensor) -> None:  # noqa: ANN401 (a text or a tuple of texts)
    shown = name if isinstance(name, str) else ".".join(name)
    if name in tensors or shown == "__metadata__":
        raise InputError("VD3009", f"has two tensors that are both {shown!r}", fix="keep one of them")
    if any("\ud800" <= letter <= "\udfff" for letter in shown):
        raise InputError("VD3009", f"has a tensor whose name is no text, {shown!r}", fix=_AGAIN)
    tensors[name] = tensor


def _load_safely(path: Path) -> Any:  # noqa: ANN401 (what the file holds)
    import numpy as np

    kinds = [np.dtype, *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type))]
    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar  # type: ignore[attr-defined]
    names = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals([*kinds, *names]), library("torch", path, seam=FOREIGN):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=sniff(path) == "zip")
    except MachineError as exc:
        if exc.code != "VD4004":
            raise
        said = exc.__cause__
        if isinstance(said, pickle.UnpicklingError):  # torch's own text advises loading the file without care
            message = f"holds what torch does not load safely ({first_line(said.__context__ or said).rstrip('.')})"
            raise InputError("VD3006", message, file=path, fix="where it was made, save the state dict alone") from exc
        raise InputError("VD3006", f"can't be read as a checkpoint: {exc.message}", file=path, fix=_AGAIN) from exc


def _load_trusted(path: Path, trust: str) -> Any:  # noqa: ANN401
    """Load without restriction the very bytes whose digest was compared."""
    with files.open_regular(path) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        if digest.hexdigest() != trust:
            message = f"has the SHA-256 {digest.hexdigest()}, trusted is {trust}"
            raise TrustError("VD7003", message, file=path, fix="find out which file you have before you trust it")
        stream.seek(0)
        with library("its own code", path, seam=FOREIGN):
            return torch.load(stream, map_location="cpu", weights_only=False)


def _walk(loaded: object, name: Name = ()) -> Iterator[tuple[Name, object]]:
    """Every leaf of nested dictionaries with the keys that lead to it, without those that are never weights."""
    counted = 0
    stack: list[tuple[Name, object]] = [(name, loaded)]
    while stack:
        name, value = stack.pop()
        counted += 1
        if counted > MOST_ENTRIES or len(name) > DEEPEST:
            message = f"nests its entries deeper than {DEEPEST} or has more than {MOST_ENTRIES:,}"
            raise InputError("VD3013", message, fix="save the state dict alone")
        if isinstance(value, torch.nn.Module):  # only in a file that is trusted
            value = dict(value.state_dict())
        if isinstance(value, dict) and not (name and name[-1] in SKIPPED):
            stack += [((*name, str(key)), item) for key, item in reversed(value.items())]
        else:
            yield name, value


def _pack(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Tensors that own their memory one by one, as safetensors needs it.

    Raises:
        InputError: VD3006, a tensor claims more numbers than the file holds (a bomb).
    """
    total = 0
    packed = {}
    for name, tensor in state.items():
        needs = tensor.numel() * tensor.element_size()
        total += needs
        if needs > tensor.untyped_storage().nbytes() or total > MOST_TIMES * size + (1 << 20):
            message = f"tensor {name!r} claims {needs:,} bytes, more than the file of {size:,} bytes holds"
            raise InputError("VD3006", message, fix=_AGAIN)
        whole = tensor.is_contiguous() and needs == tensor.untyped_storage().nbytes()
        packed[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
    pointers: set[int] = set()
    for name, tensor in packed.items():
        if tensor.data_ptr() in pointers:  # two names of one tensor
            packed[name] = tensor.clone()
        pointers.add(tensor.data_ptr())
    return packed
