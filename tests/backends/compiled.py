"""Compiled artifacts, as the verb writes them, and how those of any engine are made, opened and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec

from tests.backends.qdq import Quantizer
from vitdeploy.artifact import RECORD, Artifact, Record, seal
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig, Outputs, Runner, Tensor
from vitdeploy.data import images, synthetic
from vitdeploy.recipe import CompileConfig
from vitdeploy.record import CompileProof


def compiled(artifact: Artifact, folder: Path, backend: str, **settings: object) -> Artifact:
    """Compile into a new folder, and seal the record."""
    config = CompileConfig(backend=backend, **settings)
    folder.mkdir()
    built = table.load(backend).compile(artifact, config, folder)
    record = Record(
        kind=backend,
        precision=artifact.record.precision,
        entry=built.entry,
        spec=artifact.spec,
        made_by="compile",
        config=config,
        proof=CompileProof(run=built.run, facts=built.facts),
    )
    return Artifact(folder, seal(folder, record))


def with_run(artifact: Artifact, **run: object) -> Artifact:
    """The same with other settings for running in its record."""
    proof = msgspec.structs.replace(artifact.record.proof, run=msgspec.structs.replace(artifact.record.proof.run, **run))
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, proof=proof))


def write_run(artifact: Artifact, folder: Path, **run: object) -> Path:
    """A copy whose record on disk has other settings for running, of whatever type."""
    copy = copied(artifact, folder).folder
    record = json.loads((copy / RECORD).read_text())
    del record["sha256"]  # on purpose
    record["proof"]["run"] |= run
    (copy / RECORD).write_text(json.dumps(record))
    return copy


def copied(artifact: Artifact, folder: Path) -> Artifact:
    """The same in another folder, to be damaged."""
    import shutil

    return Artifact(Path(shutil.copytree(artifact.folder, folder)), artifact.record)


def quantize_each(artifact: Artifact, make: Callable[[], Path]) -> dict[str, Artifact]:
    """An FP32 artifact in INT8, whole, with attention, and in its weights alone; ``make`` gives a new folder."""
    return {
        "int8": Quantizer(artifact).static().write(make()),
        "int8 attention": Quantizer(artifact).static().products().write(make()),
        "weights": Quantizer(artifact).weights_only().write(make()),
    }


def compile_all(sources: dict[str, Artifact], folder: Path, backend: str) -> dict[str, Artifact]:
    """Artifacts by kind, compiled."""
    return {kind: compiled(source, folder / kind, backend, threads=1) for kind, source in sources.items()}


def tensor(artifact: Artifact, count: int = 4) -> Tensor:
    """Generated images as an artifact takes them."""
    return images.to_tensor(synthetic.pixels(count, artifact.spec.input), artifact.spec.input)


def opened(backend: str, artifact: Artifact, **config: object) -> closing[Runner]:
    """A runner, for a ``with`` block."""
    return closing(table.load(backend).open(artifact, OpenConfig(**config)))


def outputs(backend: str, artifact: Artifact, count: int = 4, **config: object) -> tuple[Outputs, dict[str, object]]:
    """What a runner puts out for generated images, and its settings."""
    with opened(backend, artifact, **config) as runner:
        return runner.run(tensor(artifact, count)), runner.settings


def run_in(backend: str) -> tuple[partial[closing[Runner]], partial[tuple[Outputs, dict[str, object]]]]:
    """`opened` and `outputs` of one engine."""
    return partial(opened, backend), partial(outputs, backend)
