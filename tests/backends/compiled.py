"""A compiled artifact, as the verb writes one."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from vitdeploy.artifact import RECORD, Artifact, Record, seal
from vitdeploy.backends import table
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
    record["proof"]["run"] |= run
    (copy / RECORD).write_text(json.dumps(record))
    return copy


def copied(artifact: Artifact, folder: Path) -> Artifact:
    """The same in another folder, to be damaged."""
    import shutil

    return Artifact(Path(shutil.copytree(artifact.folder, folder)), artifact.record)
