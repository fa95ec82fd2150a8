"""What the user named, as a PyTorch model: an artifact, a checkpoint of any known source, a name, a spec, or their own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from torch import nn

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.checkpoints import families, mapping, safetensors
from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.errors import UsageError
from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.recipe import ModelConfig, read_contract, read_spec
from vitdeploy.spec import ModelSpec
from vitdeploy.zoo.variants import VARIANTS, find

CHECKPOINTS = frozenset((".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz"))
"""Endings of checkpoint files; what a file really is, its content decides."""


class Original(NamedTuple):
    """The PyTorch model that an export is compared with.

    Attributes:
        net: In evaluation mode; a `VisionTransformer` unless the spec's network is ``module``. It takes float32
            [N, C, H, W], normalised.
        spec: What it is, at the image size asked for.
        origin: Where its weights came from, for the record.
        parent: Id of the artifact it was read from, if any.
    """

    net: nn.Module
    spec: ModelSpec
    origin: Mapping[str, object]
    parent: str | None = None


class _Parts(NamedTuple):
    """A spec with weights that are not built yet; no state means random ones."""

    spec: ModelSpec
    state: safetensors.State | None
    origin: Mapping[str, object]
    grid: tuple[int, int] | None = None
    parent: str | None = None


def load(model: ModelConfig, image_size: tuple[int, int] | None = None) -> Original:
    """Find, read and build what the user named.

    Args:
        model: Names of source and weights.
        image_size: Height and width in pixels; learned positions are resampled by the rule of the spec. None keeps the
            checkpoint's.

    Raises:
        UsageError: VD2001 unknown name; VD2010 something was not given; what a spec refuses.
        InputError: The checkpoint is damaged, of no known source, or does not fit.
        TrustError: The checkpoint would run code, or points outside its folder.
    """
    if model.module:
        return _module(model, image_size)
    parts = _parts(model)
    spec = parts.spec if image_size is None else parts.spec.change_size(*image_size)
    spec = spec if model.task is None else spec.change_task(model.task)
    spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor="float32-nchw"))
    net: VisionTransformer
    if parts.state is None:
        net = build(spec, seed=model.seed)
    else:
        net = safetensors.assemble(spec, parts.state, parts.grid or parts.spec.grid, file=Path(model.weights or model.source))
    return Original(net, spec, parts.origin, parts.parent)


def _parts(model: ModelConfig) -> _Parts:
    path, given = Path(model.source), None if model.weights is None else Path(model.weights)
    if model.source in VARIANTS and given is None:  # a known name means the table, also where a folder is called so
        return _Parts(find(model.source), None, {"random_seed": model.seed})
    if path.suffix == ".onnx" or (path / "artifact.json").is_file():
        return _artifact(path, given)
    if path.suffix in (".toml", ".json"):
        return _describe(path, given, model)
    if path.exists() or path.suffix in CHECKPOINTS or model.source.endswith("/"):
        if given is not None:
            raise UsageError("VD2010", f"is a checkpoint, and --weights {given} was given too", file=path, fix="give one")
        return _foreign(path, None, model)
    if "/" in model.source and given is None:
        fix = "export works offline: download it first, and give the folder"
        raise UsageError("VD2001", f"there is no folder or file {model.source!r}", fix=fix)
    if given is None:
        spec = find(model.source)
        return _Parts(spec, None, {"random_seed": model.seed})
    return _foreign(given, model.source, model)


def _artifact(path: Path, given: Path | None) -> _Parts:
    artifact = Artifact.open(path)
    file = given or artifact.weights
    if file is None:
        fix = "export again with --module" if artifact.spec.network == "module" else "give --weights, or the artifact's folder"
        raise UsageError("VD2010", "has no weights to build the PyTorch original from", file=path, fix=fix)
    state = safetensors.read(file)
    return _Parts(artifact.spec, state, _digest(file), artifact.spec.grid, artifact.id)


def _describe(path: Path, given: Path | None, model: ModelConfig) -> _Parts:
    """A spec file, with weights by our names or random ones; or a mapping file with a checkpoint."""
    if path.suffix == ".toml" and path.is_file() and _is_mapping(path):
        if given is None:
            raise UsageError("VD2010", "is a mapping file; the checkpoint is missing", file=path, fix="give --weights FILE")
        checkpoint = read(given, trust=model.trust_pickle, prefer=model.prefer)
        mapped = mapping.load(path, checkpoint.state)
        origin = {"source": "mapping file", "mapping_sha256": files.sha256(path), "files": checkpoint.files}
        origin |= {"notes": list(checkpoint.notes), "left_out": mapped.converted.left_out, "matched": mapped.matched}
        return _Parts(mapped.spec, mapped.converted.state, origin)
    spec = read_spec(path)
    if given is None:
        return _Parts(spec, None, {"random_seed": model.seed})
    state = safetensors.read(given)
    return _Parts(spec, state, _digest(given))


def _digest(file: Path) -> dict[str, object]:
    return {"file": file.name, "sha256": files.sha256(file)}


def _foreign(path: Path, architecture: str | None, model: ModelConfig) -> _Parts:
    loaded = families.load(path, architecture, trust=model.trust_pickle, prefer=model.prefer)
    return _Parts(loaded.spec, loaded.state, loaded.origin, loaded.grid)


def _module(model: ModelConfig, image_size: tuple[int, int] | None) -> Original:
    """A network of the user's own code: imported and run. Nothing of it is checked but what it returns."""
    from vitdeploy.models.modules import load_module

    if model.contract is None:
        fix = "give --contract FILE: a TOML file with height, width, mean, std (vitdeploy explain VD3012)"
        raise UsageError("VD2010", f"the module {model.source!r} says nothing of how images are prepared", fix=fix)
    if model.weights is not None:
        raise UsageError("VD2010", "a module loads its weights itself", fix="leave out --weights")
    contract = read_contract(Path(model.contract))
    if image_size is not None:
        contract = contract.change_size(*image_size)
    loaded = load_module(model.source, contract)
    spec = ModelSpec(
        name=model.source,
        network="module",
        input=contract,
        head="linear" if loaded.classes else "none",
        classes=loaded.classes,
    )
    spec = spec if model.task is None else spec.change_task(model.task)
    return Original(loaded.net, spec, {"module": model.source})


def _is_mapping(path: Path) -> bool:
    return re.search(r"^\s*\[\s*rename\s*\]", path.read_text(errors="replace"), re.M) is not None
