"""Folders that hold a checkpoint: Hugging Face, timm, OpenCLIP, and the Hugging Face hub's cache.

The hub's cache is a repository (``models--org--name``) with ``refs/main``, ``blobs/`` and ``snapshots/<commit>/`` full of
links into ``blobs/``. Links are followed as far as that repository, or else the folder itself, reaches, and no farther.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import InputError, TrustError
from vitdeploy.files import inside
from vitdeploy.kinds import expect, refuse_folder, sniff

LARGEST_JSON = 10_000_000
MOST_SHARDS = 1000

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""File names that libraries give to weights, in the order in which they are preferred: safetensors first."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")


class Layout(NamedTuple):
    """What a folder holds.

    Attributes:
        weights: Name in the folder to file, one or all shards.
        config: ``config.json`` or ``open_clip_config.json``, whichever belongs to the weights; or nothing.
        preprocessor: ``preprocessor_config.json``, or nothing.
        read: Name in the folder to file of what was read besides the weights.
        shards: Tensor to shard, of an index; or None.
        notes: What was chosen.
    """

    weights: dict[str, Path]
    config: Mapping[str, object]
    preprocessor: Mapping[str, object]
    read: dict[str, Path]
    shards: dict[str, str] | None
    notes: tuple[str, ...]


def find(folder: Path) -> Layout:
    """Find the weights of a folder and read the JSON files beside them.

    Raises:
        InputError: VD3021 no weights, or several; VD3019 a JSON file is bad; VD3020 shards are missing; VD3005 a model of another
            program's, an adapter, or weights in a form that is not read.
        TrustError: VD7001, a name or a link leads out of the folder.
    """
    folder, cage = _snapshot(folder)
    candidates = [name for name in WEIGHTS if _is_there(folder / name)] or _find_others(folder)
    name = candidates[0]
    notes = [f"read {name}, not {', '.join(candidates[1:])} beside it"] if candidates[1:] else []
    config_name = "open_clip_config.json" if name.startswith("open_clip") else "config.json"
    if not _is_there(folder / config_name) and _is_there(folder / "open_clip_config.json"):
        config_name = "open_clip_config.json"
    read: dict[str, Path] = {}
    configs: list[Mapping[str, object]] = []
    for wanted in (config_name, "preprocessor_config.json"):
        if _is_there(folder / wanted):
            read[wanted] = _resolve_inside(cage, folder, wanted)
            configs.append(parse(read[wanted], folder / wanted))
        else:
            configs.append({})
    shards = None
    weights = {name: _resolve_inside(cage, folder, name)}
    if name.endswith(".json"):
        read |= weights
        shards = _index(weights[name], folder / name)
        weights = {part: _resolve_inside(cage, folder, part) for part in sorted(set(shards.values()))}
        missing = [part for part, file in weights.items() if not file.is_file()]
        if missing:
            message = f"{len(missing)} of {len(weights)} files are missing ({', '.join(missing[:5])})"
            raise InputError("VD3020", message, file=folder / name, fix="download the whole repository again")
    return Layout(weights, configs[0], configs[1], read, shards, tuple(notes))


def parse(file: Path, shown: Path) -> dict[str, object]:
    """A JSON file as an object, strictly: every key once, no NaN, no more than 10 MB.

    Args:
        file: What to read.
        shown: Its name in messages; ``file`` may be where a link leads.

    Raises:
        InputError: VD3019, or VD3001 to VD3004 for what is no JSON at all.
    """
    with _name_in_errors(shown):
        kind = sniff(file)
        if kind in ("empty", "lfs", "html"):
            expect(file, "text", what="a JSON file")
    size = file.stat().st_size
    if size > LARGEST_JSON:
        raise InputError("VD3019", f"has {size:,} bytes, at most {LARGEST_JSON:,} are read", file=shown)
    try:
        value = json.loads(
            files.read_bytes(file, files.LARGEST_TEXT), object_pairs_hook=_refuse_twins, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as exc:
        raise InputError("VD3019", f"is no valid JSON: {exc}", file=shown, fix="download it again") from exc
    if not isinstance(value, dict):
        raise InputError("VD3019", f"is a JSON {type(value).__name__}, expected an object", file=shown)
    return value


def _refuse_twins(items: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(items)
    if len(value) != len(items):
        times = Counter(name for name, _ in items)
        raise ValueError(f"the key {next(name for name in times if times[name] > 1)!r} stands twice")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_symlink()


def _resolve_inside(cage: Path, folder: Path, name: str) -> Path:
    """The file ``name`` of a folder, which may be a link into the cage."""
    with _name_in_errors(folder):
        if "/" in name or "\\" in name:
            raise TrustError("VD7001", f"names the file {name!r}, which lies outside")
        file = inside(cage, str((folder.resolve() / name).relative_to(cage)))
    if (folder / name).is_symlink() and not file.exists():
        fix = "download the repository again"
        raise InputError("VD3001", "is a link to a file that is not there", file=folder / name, fix=fix)
    return file


def _snapshot(folder: Path) -> tuple[Path, Path]:
    """The folder with the files, and the folder that no link may leave."""
    if (folder / "snapshots").is_dir():
        folder = _revision(folder)
    parent = folder.resolve().parent
    if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
        return folder, parent.parent
    return folder, folder.resolve()


def _revision(repository: Path) -> Path:
    reference = repository / "refs" / "main"
    if reference.is_file():
        with files.open_regular(reference) as stream:
            commit = stream.read(200).decode(errors="replace").strip()
        if not re.fullmatch(r"[0-9A-Za-z][\w.-]*", commit):
            raise InputError("VD3021", f"refs/main holds {commit[:40]!r}, which is no revision", file=repository)
    else:
        snapshots = sorted(path.name for path in (repository / "snapshots").iterdir() if path.is_dir())
        if len(snapshots) != 1:
            fix = "name one of the folders in snapshots/" if snapshots else "download the repository again"
            raise InputError("VD3021", f"has {len(snapshots)} snapshots and no refs/main", file=repository, fix=fix)
        commit = snapshots[0]
    with _name_in_errors(repository):
        folder = inside(repository, f"snapshots/{commit}")
    if not folder.is_dir():
        fix = "download the repository again"
        raise InputError("VD3021", f"has no snapshot {commit}, which refs/main names", file=repository, fix=fix)
    return folder


def _find_others(folder: Path) -> list[str]:
    """The one file that looks like weights though its name is not known."""
    refuse_folder(folder)
    candidates = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES and _is_there(path))
    if not candidates:
        fix = "name a folder with model.safetensors or pytorch_model.bin in it, or the file itself"
        raise InputError("VD3021", "holds no weights", file=folder, fix=fix)
    if len(candidates) > 1:
        names = ", ".join(candidates[:5]) + ", ..." * (len(candidates) > 5)
        raise InputError("VD3021", f"holds {len(candidates)} files of weights ({names})", file=folder, fix="name one of them")
    return candidates


def _index(file: Path, shown: Path) -> dict[str, str]:
    shards = parse(file, shown).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(part, str) for part in shards.values()):
        raise InputError("VD3020", "has no weight_map of tensors to files", file=shown, fix="download it again")
    if len(set(shards.values())) > MOST_SHARDS:
        raise InputError("VD3020", f"names {len(set(shards.values())):,} files, at most {MOST_SHARDS} are read", file=shown)
    return shards


@contextmanager
def _name_in_errors(shown: Path) -> Iterator[None]:
    """Errors about where a link leads name what the user knows."""
    try:
        yield
    except (InputError, TrustError) as exc:
        exc.file = str(shown)
        raise
