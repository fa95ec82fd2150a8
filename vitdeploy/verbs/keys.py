"""Keys of a build's stages: digests of everything that a result is made from.

Keys hold contents, not paths: the bytes of a spec file, the digest of weights and data, the artifact's record, the versions of
the libraries, and the machine where numbers are taken on it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from vitdeploy import __version__, files, kinds
from vitdeploy.amendments import Amendments, read_labels
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.jsonfile import encode
from vitdeploy.recipe import FILES, RANDOM, ExportConfig, ModelConfig, QuantizeConfig, ValidateConfig


def key_of(stage: str, config: msgspec.Struct, inputs: Mapping[str, object]) -> str:
    """SHA-256, in hex, of everything a stage's result depends on; where data lie does not count, what they are does."""
    settings = msgspec.to_builtins(config)
    for name in ("data", "calibration", "statistics", "save_statistics"):
        settings.pop(name, None)
    everything = {"vitdeploy": __version__, "stage": stage, "config": settings, "inputs": inputs}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def artifact_digest(artifact: Artifact) -> str:
    """SHA-256, in hex, of an artifact's record but its key: files, proof, settings, not what else it could have been made of."""
    return hashlib.sha256(encode(msgspec.structs.replace(artifact.record, key="")).encode()).hexdigest()


def model_digest(model: ModelConfig) -> str:
    """SHA-256, in hex, of what the model's name and weights stand for.

    Raises:
        UsageError: VD2001, no model has that name.
        InputError: VD3001, a named file is missing.
    """
    path = Path(model.source)
    if model.module:
        source = secrets.token_hex()  # what a module's code will do can't be known from a digest: done each time
    elif (path / RECORD).is_file():
        source = Artifact.open(path).id
    elif path.exists() or path.suffix in FILES:
        source = _digest(path)
    elif model.weights is not None:
        source = model.source  # the checkpoint says the rest
    else:
        from vitdeploy.zoo.variants import find

        source = msgspec.json.encode(find(model.source)).decode()
    labels = None if model.labels is None else read_labels(model.labels)
    others = [_digest(Path(name)) for name in (model.weights, model.contract) if name is not None]
    said = [getattr(model, name) for name in Amendments.__struct_fields__ if name != "labels"]
    settings = [model.seed, model.prefer, model.task, said, labels]
    return hashlib.sha256(json.dumps([source, *others, *settings]).encode()).hexdigest()


def data_digest(config: ExportConfig | ValidateConfig | QuantizeConfig | None) -> str:
    """Digest of the images that a stage will read; "" when it reads none.

    Raises:
        InputError: The data source is missing or damaged.
    """
    if isinstance(config, QuantizeConfig) and config.statistics is not None:
        return _digest(Path(config.statistics))
    path = config.calibration if isinstance(config, QuantizeConfig) else None if config is None else config.data
    if config is None or path in (None, RANDOM):
        return str(path or "")
    from vitdeploy.data import open_dataset

    return open_dataset(Path(str(path)), split=config.split).digest


def _digest(path: Path) -> str:
    """Of a file, with the spec file that a mapping file names; of a folder, every file in it."""
    if path.is_dir():
        rows = [[str(file.relative_to(path)), files.sha256(file)] for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    kinds.sniff(path)  # a missing file, or a folder, in our words
    named = re.findall(r"""^spec\s*=\s*["'](.+)["']""", files.read_text(path), re.M) if path.suffix == ".toml" else []
    return files.sha256(path) + "".join(files.sha256(file) for name in named if (file := path.parent / name).is_file())
