"""What the user named, as a PyTorch model: an artifact, a checkpoint of any known source, a name, a spec, or their own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import msgspec
from torch import nn

from vitdeploy import files
from vitdeploy.amendments import ASPECTS, describe_aspects, list_unsaid, read_contract, read_labels, read_task
from vitdeploy.artifact import Artifact
from vitdeploy.checkpoints import families, mapping, safetensors
from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.errors import InputError, UsageError
from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.recipe import ModelConfig
from vitdeploy.spec import InputContract, ModelSpec, read_spec
from vitdeploy.tomlfile import read_table
from vitdeploy.zoo.variants import VARIANTS, find

CHECKPOINTS = frozenset((".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz"))
"""Endings of checkpoint files; what a file really is, its content decides."""

_PART = re.compile(r'"(weight_map|model_type|architecture|architectures|model_cfg)"\s*:')
"""What JSON files beside weights say, and no spec does."""


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
    """A spec with weights that are not built yet; no state means random ones.

    What was not read of the input is named by `unsaid`, and where it was taken from by `custom`.
    """

    spec: ModelSpec
    state: safetensors.State | None
    origin: Mapping[str, object]
    grid: tuple[int, int] | None = None
    parent: str | None = None
    unsaid: tuple[str, ...] = ()
    custom: str = ""


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
    spec, said = _change_contract(spec, model)
    spec = _change_task(spec, model)
    spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor="float32-nchw"))
    assumed = describe_aspects(spec.input, [name for name in parts.unsaid if name not in said])
    origin = {**parts.origin, "assumed": assumed, "assumed_from": parts.custom} if assumed else parts.origin
    net: VisionTransformer
    if parts.state is None:
        net = build(spec, seed=model.seed)
    else:
        net = safetensors.assemble(spec, parts.state, parts.grid or parts.spec.grid, file=Path(model.weights or model.source))
    return Original(net, spec, origin, parts.parent)


def _change_contract(spec: ModelSpec, model: ModelConfig) -> tuple[ModelSpec, frozenset[str]]:
    """The spec with what the user says of its input and classes, and which aspects were said."""
    contract, said = spec.input, model.list_said()
    if model.contract is not None:
        path = Path(model.contract)
        contract = read_contract(path, contract)
        said |= set(ASPECTS) - set(list_unsaid(read_table(path)))
        if contract.channels != spec.input.channels:
            message = f"has {contract.channels} channels, the model takes {spec.input.channels}"
            raise UsageError("VD2003", message, file=path, fix="correct channels, mean and std")
    labels = spec.labels if model.labels is None else read_labels(model.labels)
    return msgspec.structs.replace(spec, input=model.apply(contract), labels=labels), said


def _change_task(spec: ModelSpec, model: ModelConfig) -> ModelSpec:
    """The spec with what the user, or else the contract's file, says of its main output."""
    task = model.task or (None if model.contract is None else read_task(Path(model.contract)))
    return spec if task is None else spec.change_task(task)


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
    state, known = safetensors.read(file), artifact.record.origin
    return _Parts(artifact.spec, state, _digest(file), artifact.spec.grid, artifact.id, tuple(known.assumed), known.assumed_from)


def _describe(path: Path, given: Path | None, model: ModelConfig) -> _Parts:
    """A spec file, with weights by our names or random ones; or a mapping file with a checkpoint."""
    if path.suffix == ".json" and path.is_file() and _PART.search(files.read_text(path)):
        fix = f"give the folder: vitdeploy export {quote(str(path.parent))} -o OUT"
        raise InputError("VD3005", "is one file of a folder that holds a checkpoint", file=path, fix=fix)
    if path.suffix == ".toml" and path.is_file() and _is_mapping(path):
        if given is None:
            raise UsageError("VD2010", "is a mapping file; the checkpoint is missing", file=path, fix="give --weights FILE")
        checkpoint = read(given, trust=model.trust_pickle, prefer=model.prefer)
        mapped = mapping.load(path, checkpoint.state)
        origin = {"source": "mapping file", "mapping_sha256": files.sha256(path), "files": checkpoint.files}
        origin |= {"notes": list(checkpoint.notes), "left_out": mapped.converted.left_out, "matched": mapped.matched}
        unsaid, custom = _find_unsaid(path, read_table(path).get("spec"))
        return _Parts(mapped.spec, mapped.converted.state, origin, unsaid=unsaid, custom=custom)
    spec = read_spec(path)
    if given is None:
        return _Parts(spec, None, {"random_seed": model.seed})
    state = safetensors.read(given)
    unsaid, custom = _find_unsaid(path, read_table(path))
    return _Parts(spec, state, _digest(given), unsaid=unsaid, custom=custom)


def _find_unsaid(path: Path, spec: object) -> tuple[tuple[str, ...], str]:
    """What a spec as it is written does not say of its input, and what holds in its place; a mapping may name one."""
    if isinstance(spec, str) and not spec.endswith((".toml", ".json")):
        return tuple(ASPECTS), f"the known model {spec}"
    written = read_table(path.absolute().parent / spec) if isinstance(spec, str) else spec
    given = written.get("input") if isinstance(written, dict) else None
    return list_unsaid(given if isinstance(given, dict) else ()), "the defaults of a spec (ImageNet)"


def _digest(file: Path) -> dict[str, object]:
    return {"file": file.name, "sha256": files.sha256(file)}


def _foreign(path: Path, architecture: str | None, model: ModelConfig) -> _Parts:
    loaded = families.load(path, architecture, trust=model.trust_pickle, prefer=model.prefer)
    custom = f"what {loaded.origin['source']} does for {loaded.spec.name}"
    return _Parts(loaded.spec, loaded.state, loaded.origin, loaded.grid, None, list_unsaid(loaded.read_fields), custom)


def _module(model: ModelConfig, image_size: tuple[int, int] | None) -> Original:
    """A network of the user's own code: imported and run. Nothing of it is checked but what it returns."""
    from vitdeploy.models.modules import load_module

    if model.weights is not None:
        raise UsageError("VD2010", "a module loads its weights itself", fix="leave out --weights")
    contract, unsaid = _describe_input(model, image_size)
    loaded = load_module(model.source, contract)
    spec = ModelSpec(
        name=model.source,
        network="module",
        input=contract,
        head="linear" if loaded.classes else "none",
        classes=loaded.classes,
    )
    if model.labels is not None:
        spec = msgspec.structs.replace(spec, labels=read_labels(model.labels))
    spec = _change_task(spec, model)
    assumed = describe_aspects(contract, unsaid)
    origin = {"module": model.source, "notes": loaded.notes, "assumed": assumed, "assumed_from": "ImageNet's custom"}
    return Original(loaded.net, spec, origin)


def _describe_input(model: ModelConfig, image_size: tuple[int, int] | None) -> tuple[InputContract, tuple[str, ...]]:
    """The contract of a module, all of it the user's words, and what nothing was said of."""
    said = model.list_said()
    if model.contract is not None:
        path = Path(model.contract)
        contract, said = read_contract(path), said | (set(ASPECTS) - set(list_unsaid(read_table(path))))
    elif model.mean is None or model.std is None or image_size is None:
        fix = "give --contract FILE, a TOML file with height, width, mean, std; or --image-size, --mean and --std"
        raise UsageError("VD2010", f"the module {model.source!r} says nothing of how images are prepared", fix=fix)
    else:
        channels = max(len(model.mean), len(model.std))
        channels = 3 if channels == 1 else channels
        contract = InputContract(channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    contract = contract if image_size is None else contract.change_size(*image_size)
    return model.apply(contract), tuple(name for name in ASPECTS if name not in said)


def _is_mapping(path: Path) -> bool:
    return re.search(r"^\s*\[\s*rename\s*\]", files.read_text(path), re.M) is not None
