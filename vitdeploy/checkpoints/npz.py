"""Weights of JAX programs: numpy's .npz archives, read entry by entry with the sizes checked before memory is taken.

``numpy.load`` allocates what an entry's header claims; here the claim must fit the entry first. Python objects in an entry
(a pickle) are refused by the header's type, and nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from vitdeploy.checkpoints.conversion import State
from vitdeploy.checkpoints.headers import MOST_TENSORS
from vitdeploy.checkpoints.opcodes import ZIP_ERRORS, list_entries
from vitdeploy.checkpoints.safetensors import as_float32
from vitdeploy.errors import InputError

MOST_TIMES = 20
"""How many times its own size an archive may unpack to; weights hardly compress at all."""

_AGAIN = "download it again"
_NAMES = {"f2": "fp16", "f8": "float64", "V2": "bf16"}


def is_npz(path: Path) -> bool:
    """Whether a zip archive is numpy's.

    Raises:
        InputError: VD3006, it is cut off or damaged.
    """
    infos = list_entries(path)
    return bool(infos) and all(info.filename.endswith(".npy") for info in infos)


def read(path: Path) -> tuple[State, tuple[str, ...]]:
    """Read an .npz archive.

    Returns:
        Name (as it stands, with its slashes) to float32 tensor, or to integers that stood beside them; and notes.

    Raises:
        InputError: VD3006 damaged; VD3005 Python objects or text inside; VD3007 a name twice; VD3008 NaN or infinity; VD3013
            too many entries, or they unpack to far too much.
    """
    infos = list_entries(path)
    unpacked, size = sum(info.file_size for info in infos), path.stat().st_size
    if len(infos) > MOST_TENSORS:
        raise InputError("VD3013", f"names {len(infos):,} tensors, at most {MOST_TENSORS:,} are read", file=path)
    if unpacked > MOST_TIMES * size + (1 << 20):
        message = f"unpacks to {unpacked:,} bytes from {size:,}, at most {MOST_TIMES} times its size is read"
        raise InputError("VD3013", message, file=path, fix="write it again with numpy.savez")
    state: State = {}
    types: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if name in state:
                raise InputError("VD3007", f"names the tensor {name!r} twice", file=path, fix="write it again")
            try:
                with archive.open(info) as stream:
                    array = _array(stream, info.file_size)
            except InputError as exc:
                message = f"entry {name!r} {exc.message}"
                raise InputError(exc.code, message, file=path, fix=exc.fix) from exc
            except (*ZIP_ERRORS, SyntaxError, MemoryError, RecursionError) as exc:
                raise InputError("VD3006", f"entry {name!r} is damaged", file=path, fix=_AGAIN) from exc
            kind = f"{array.dtype.kind}{array.dtype.itemsize}"
            types[kind] = types.get(kind, 0) + 1
            state[name] = _tensor(array)
    notes = [f"{text}, read as float32 ({types[k]} of {len(state)} tensors)" for k, text in _NAMES.items() if k in types]
    return as_float32(state, path, integers="keep"), tuple(notes)


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise InputError("VD3006", f"is of version {version} of the .npy format", fix=_AGAIN)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "fiub" and dtype.str not in ("|V2", "<V2"):  # V2: how numpy stores bfloat16
        fix = "save the weights alone, as arrays of numbers"
        raise InputError("VD3005", f"holds {'Python objects' if dtype.hasobject else dtype.str}, not numbers", fix=fix)
    count = 1
    for length in shape:
        count *= int(length)
    left = size - stream.tell()
    if count < 0 or count * dtype.itemsize != left:
        raise InputError("VD3006", f"claims {count * dtype.itemsize:,} bytes and holds {left:,}", fix=_AGAIN)
    raw = stream.read(left)
    if len(raw) != left:
        raise InputError("VD3006", "is cut off", fix=_AGAIN)
    array = np.frombuffer(bytearray(raw), dtype=dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "f" and native.dtype.itemsize > 8:  # long double
        native = native.astype(np.float64)
    return torch.from_numpy(native)
