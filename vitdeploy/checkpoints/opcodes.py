"""What a pickle would import, told without running it, and what that makes of the file.

A pickle scanner is a tripwire and no wall: others of its kind have been walked around again and again. The wall is that
only ``weights_only=True`` in a child process ever loads a file; the scan gives the one sentence that people can act on.

torch's own ``get_unsafe_globals_in_checkpoint`` can't stand here: it stops at the opcodes of protocols 0, 1 and 4, which hide
a name best, reads no file of before torch 1.6 and no bare pickle, and takes Python 2's names as they are written.
"""

from __future__ import annotations

import json
import pickletools
import re
import shlex
import struct
import sys
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import deque
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from vitdeploy import files
from vitdeploy.checkpoints.skeleton import list_tensors
from vitdeploy.checkpoints.unwrap import SAVE, choose
from vitdeploy.errors import InputError, TrustError
from vitdeploy.kinds import expect, recognise_archive, sniff

LARGEST = 64 << 20
MOST_OPCODES = 5_000_000
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of `torch.save` began before torch 1.6; four more pickles follow, then the numbers."""

ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError),
    *(NotImplementedError, RuntimeError, OverflowError, AttributeError, TypeError),
)
"""What the standard library's zip reader raises for bytes that are no zip archive."""

_HIDDEN = "a name that is put together while loading"
_AGAIN = "download it again"

WEIGHTS = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(bytearray|set|complex)|_codecs\.encode"
    r"|torch\.(Size|Tensor|device|\w+Storage|cuda\.\w+Storage|cuda\.\w+Tensor|sparse\.\w+Tensor|\w+Tensor)"
    r"|torch\.(bool|half|float|double|short|int|long|per_\w+|(q?u?int|b?float|complex|bits)\d\w*)"
    r"|torch\.storage\.\w+Storage|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|numpy(\._core|\.core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.\w+"
)
"""What a state dict may import: tensors and how they are rebuilt, and numbers of numpy."""

MODULE = re.compile(r"torch\.nn\.(?!parameter\.)[\w.]+|torch\._C\._nn\.\w+|torchvision\.models\..+|timm\.(models|layers)\..+")
"""What tells a whole module."""

OBJECTS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|functools\.partial|pathlib\.\w+|datetime\.\w+|decimal\.Decimal|uuid\.UUID"
    r"|collections\.\w+|typing\.\w+|enum\.\w+|copyreg\._reconstructor"
    r"|builtins\.(dict|list|tuple|int|float|str|bool|bytes|frozenset|object|slice|range)"
    r"|numpy\.ndarray|numpy(\._core|\.core)\.multiarray\._reconstruct|numpy\.random\..+|torch\.optim\..+"
    r"|torch\.torch_version\.TorchVersion"
    r"|(omegaconf|yacs|transformers|addict|easydict|ml_collections|pytorch_lightning|lightning|lightning_fabric|mmcv|mmengine"
    r"|detectron2|fvcore|hydra|accelerate|timm|PIL|dinov2|fairseq)\..+"
)
"""What trainers leave in checkpoints: settings and records, harmless as such but not weights."""

STANDARD = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "nt", "posix"}


def check(path: Path, *, trusted: bool = False) -> None:
    """Refuse a file that is no PyTorch checkpoint of weights alone.

    Args:
        path: The file.
        trusted: Its pickle may import what it likes.

    Raises:
        InputError: VD3001 to VD3006, VD3013, VD3016, VD3017, VD3018.
        TrustError: VD7002.
    """
    kind = sniff(path)
    if kind == "zip":
        raw, plain = _read_archive(path), False
    elif kind == "pickle" or is_text_pickle(path):
        with files.open_regular(path) as stream:
            raw = stream.read(LARGEST)
        plain = not raw.startswith(MAGIC)
    else:
        expect(path, "zip", what="a PyTorch checkpoint")
    try:
        names = list_imports(BytesIO(raw), 5 if raw.startswith(MAGIC) else 1)
    except InputError as exc:
        exc.file = str(path)
        raise
    if not trusted:
        _judge(path, names, raw)
    if plain:
        fix = 'write it with torch.save(state, "weights.pth")'
        raise InputError("VD3005", "is a plain Python pickle, which torch.save did not write", file=path, fix=fix)


def list_entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive.

    Raises:
        InputError: VD3006, it is cut off or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except ZIP_ERRORS as exc:
        message = f"is {_format_size(path.stat().st_size)} of a zip archive without its end: looks cut off"
        raise InputError("VD3006", message, file=path, fix=_AGAIN) from exc


def is_text_pickle(path: Path) -> bool:
    """Whether a file without a binary pickle's mark is a pickle of protocol 0 or 1 that imports something."""
    with files.open_regular(path) as stream:
        raw = stream.read(1 << 20)
    if raw[:1] not in (b"c", b"(", b"]", b"}", b"i"):
        return False
    try:
        return bool(list_imports(BytesIO(raw), 1))
    except InputError:
        return False


def list_imports(stream: BinaryIO, pickles: int) -> set[str]:
    """The dotted names that pickles would import.

    Args:
        stream: Where the first one begins.
        pickles: How many follow each other.

    Raises:
        InputError: VD3006, the bytes are no pickle; VD3013, there are too many of them.
    """
    names: set[str] = set()
    counted = 0
    try:
        for _ in range(pickles):
            recent: deque[str | None] = deque((None, None), maxlen=2)  # the two newest values, if they are texts
            memo: dict[int, str | None] = {}
            for opcode, argument, _position in pickletools.genops(stream):
                counted += 1
                if counted > MOST_OPCODES:
                    raise InputError("VD3013", f"has a pickle of more than {MOST_OPCODES:,} steps", fix="save the weights alone")
                _follow(opcode.name, argument, recent, memo, names)
    except (ValueError, EOFError, LookupError, struct.error, OverflowError, TypeError, AttributeError, MemoryError) as exc:
        raise InputError("VD3006", "is a damaged or cut-off pickle", fix=_AGAIN) from exc
    return names


def _follow(name: str, argument: object, recent: deque[str | None], memo: dict[int, str | None], names: set[str]) -> None:
    if name in ("GLOBAL", "INST"):
        names.add(_modernise(*str(argument).split(" ", 1)))
        recent.append(None)
    elif name == "STACK_GLOBAL":
        module, member = recent
        names.add(_HIDDEN if module is None or member is None else _modernise(module, member))
        recent.append(None)
    elif name.startswith("EXT"):
        names.add(_HIDDEN)
        recent.append(None)
    elif name == "MEMOIZE":
        memo[len(memo)] = recent[-1]
    elif name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(argument, int):
        memo[argument] = recent[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET") and isinstance(argument, int):
        recent.append(memo.get(argument))
    elif name not in ("PROTO", "FRAME"):
        recent.append(argument if isinstance(argument, str) else None)


def _modernise(module: str, name: str = "") -> str:
    """The name of today for one of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _read_archive(path: Path) -> bytes:
    """The pickle in an archive of `torch.save`."""
    infos = list_entries(path)
    names = [info.filename for info in infos]
    if any(re.fullmatch(r"([^/]+/)?(constants\.pkl|code/.*)", name) for name in names):
        message = "is a TorchScript archive, which is a program and is not accepted"
        raise InputError("VD3017", message, file=path, fix=f"save the weights of the model that was scripted: {SAVE}")
    pickles = [info for info in infos if re.fullmatch(r"[^/]+/data\.pkl", info.filename)]
    if len(pickles) != 1:
        if foreign := recognise_archive(names):
            raise InputError("VD3005", f"is {foreign.what}", file=path, fix=foreign.fix)
        first = ", ".join(names[:3]) or "nothing"
        message = f"is a zip archive that torch.save did not write; it holds {first}"
        raise InputError("VD3005", message, file=path, fix="unpack it if the checkpoint is inside")
    size, unpacked = path.stat().st_size, sum(info.file_size for info in infos)
    if unpacked > size or pickles[0].file_size > LARGEST:
        sizes = [_format_size(count) for count in (unpacked, size, pickles[0].file_size)]
        message = f"unpacks to {sizes[0]} from {sizes[1]}, with a pickle of {sizes[2]}"
        raise InputError("VD3013", message, file=path, fix="write it with torch.save, which does not compress")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(pickles[0]) as stream:
            return stream.read(LARGEST)
    except ZIP_ERRORS as exc:
        raise InputError("VD3006", "is a damaged zip archive", file=path, fix=_AGAIN) from exc


def _judge(path: Path, names: Iterable[str], raw: bytes) -> None:
    others = sorted(name for name in names if not WEIGHTS.fullmatch(name))
    code = [name for name in others if _is_code(name)]
    strangers = [name for name in others if not (MODULE.fullmatch(name) or OBJECTS.fullmatch(name) or name in code)]
    modules = [name for name in others if MODULE.fullmatch(name)]
    if code or (strangers and not modules):
        fix = "get the safetensors file, or the state dict alone, from whoever made it"
        raise TrustError("VD7002", f"contains code ({_shorten(code or strangers)})", file=path, fix=fix)
    if modules:
        message = f"is a pickled module ({_shorten(strangers or modules)}), not a state dict"
        raise InputError("VD3016", message, file=path, fix=f"where it was made, run: {SAVE}")
    if others:
        message = f"holds Python objects ({_shorten(others)}) beside its weights, which are never loaded"
        raise InputError("VD3018", message, file=path, fix=f"where it was made, {_extract(path, raw)}")


def _extract(path: Path, raw: bytes) -> str:
    """How the weights are saved alone, by the keys that they have in this file, beside it and under another name."""
    try:
        keys = choose(list_tensors(raw, 4 if raw.startswith(MAGIC) else 1)).prefix
    except InputError:
        return f"save the weights alone: {SAVE}"
    target = path.with_name(f"{path.name.split('.')[0]}-weights.pth")
    load = f'checkpoint = torch.load({_quote(path)}, map_location="cpu", weights_only=False)'
    save = f"torch.save(checkpoint{''.join(f'[{_quote(key)}]' for key in keys)}, {_quote(target)})"
    return f"run: python -c {shlex.quote(f'import torch; {load}; {save}')}"


def _quote(text: str | Path) -> str:
    """A text as Python reads it, in double quotes: single ones are the shell's."""
    return json.dumps(str(text), ensure_ascii=False)


def _is_code(name: str) -> bool:
    """Whether a name that is no weight belongs to the standard library, torch or numpy: a function or class to be called."""
    known = MODULE.fullmatch(name) or OBJECTS.fullmatch(name)
    return name == _HIDDEN or (name.split(".")[0] in STANDARD and not known)


def _shorten(names: list[str]) -> str:
    return ", ".join(name[:80] for name in names[:5]) + ", ..." * (len(names) > 5)


def _format_size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 1 << 20 else f"{count / 1024:,.1f} KiB"
