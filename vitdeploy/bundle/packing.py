"""The forms of a model that a bundle holds: copied without what no box needs, and run on the samples."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import machine
from vitdeploy.artifact import Artifact, seal
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import PROVER, REFERENCE, TABLE, is_installed, list_engines, must_be_compiled
from vitdeploy.bundle.bundle import EXPECTED, MODELS, SAMPLES
from vitdeploy.bundle.manifest import PackedModel, Tried
from vitdeploy.bundle.samples import Expected, prepare_samples, run_samples, write_samples
from vitdeploy.errors import MachineError
from vitdeploy.onnxfile.summary import list_files
from vitdeploy.progress import Progress
from vitdeploy.proof.engine import arithmetic, distance
from vitdeploy.proof.thresholds import CLOSEST, LEARNT, LIMITS


class _Run(NamedTuple):
    """A model's outputs for the samples.

    Attributes:
        outputs: Engine to float32 [n, K]; the first is what a box is compared with.
        versions: The same engines to their versions.
        precision: What the coarsest of them computes in.
    """

    outputs: dict[str, NDArray[np.float32]]
    versions: dict[str, str]
    precision: str


class Forms(NamedTuple):
    """What was written.

    Attributes:
        models: As the manifest lists them.
        samples: Names of the sample images, sorted.
    """

    models: tuple[PackedModel, ...]
    samples: tuple[str, ...]


def write_forms(opened: Sequence[Artifact], folder: Path, progress: Progress) -> Forms:
    """Write models, samples and what the models give for them into a bundle's folder.

    Args:
        opened: ONNX artifacts of one model.
        folder: Of the bundle.
        progress: Hears of every model.

    Raises:
        MachineError: VD4001, no engine that runs one is installed; VD4009, engines disagree; VD4004, VD4007, one failed.
    """
    (folder / SAMPLES).mkdir()
    samples = write_samples(opened[0].spec.input, folder / SAMPLES)
    pixels = prepare_samples([folder / SAMPLES / name for name in samples], opened[0].spec.input)
    original = _run_original(opened, pixels)
    models, outputs = [], {}
    for number, artifact in enumerate(opened):
        progress("pack", number, len(opened))
        packed = _copy_model(artifact, folder / MODELS / f"{number}-{artifact.record.precision}")
        run = _run_model(packed, pixels)
        place = packed.folder.relative_to(folder).as_posix()
        outputs[place] = next(iter(run.outputs.values()))
        models.append(_describe(packed, place, run, original))
    progress("pack", len(opened), len(opened))
    Expected(pixels, outputs, original).write(folder / SAMPLES / EXPECTED)
    return Forms(tuple(models), samples)


def _describe(artifact: Artifact, place: str, run: _Run, original: NDArray[np.float32] | None) -> PackedModel:
    first = next(iter(run.outputs.values()))
    apart = {engine: round(distance(output, first), 9) for engine, output in run.outputs.items()}
    limit = max(LIMITS[arithmetic(each)] for each in (run.precision, artifact.record.precision))
    worst = next((engine for engine in apart if not apart[engine] <= limit), None)  # NaN is not within a limit either
    if worst is not None:
        message = f"gives other outputs in {worst} ({apart[worst]:.2g} apart, {limit:.2g} is the limit)"
        raise MachineError("VD4009", message, file=artifact.model, fix="quantize it again for the engine of the box (--backend)")
    return PackedModel(
        folder=place,
        id=artifact.id,
        precision=artifact.record.precision,
        engine=artifact.engine,
        task=artifact.spec.task,
        size=sum(path.stat().st_size for path in artifact.folder.rglob("*") if path.is_file()),
        limit=min(limit, max(CLOSEST * limit, LEARNT * max(apart.values()))),
        tried={engine: Tried(version=run.versions[engine], distance=apart[engine]) for engine in apart},
        original=None if original is None else round(distance(first, original), 9),
    )


def _run_model(artifact: Artifact, pixels: NDArray[Any]) -> _Run:
    """A model in every engine that is installed and that it was made for."""
    engines = list_engines() if artifact.engine is None or must_be_compiled(artifact) else (artifact.engine,)
    if not engines:
        raise MachineError("VD4001", "nothing here can run the model", file=artifact.model, fix=TABLE[PROVER].fix)
    outputs, precisions = {}, []
    for engine in engines:
        with closing(open_in_child(engine, artifact, OpenConfig())) as runner:
            outputs[engine] = run_samples(runner, pixels, artifact.spec)
            precisions.append(str(runner.settings["precision"]))
    versions = machine.find_versions(*(TABLE[engine].package for engine in engines))
    known = {engine: versions.get(TABLE[engine].package, "") for engine in engines}
    return _Run(outputs, known, max(precisions, key=lambda each: LIMITS[arithmetic(each)]))


def _run_original(opened: Sequence[Artifact], pixels: NDArray[Any]) -> NDArray[np.float32] | None:
    """What the original gives for the samples: PyTorch, else an FP32 file among what is packed; None without both."""
    with_weights = next((each for each in opened if each.weights is not None), None) if is_installed(REFERENCE) else None
    of_float = next((artifact for artifact in opened if artifact.is_float), None)
    artifact, engine = (with_weights, REFERENCE) if with_weights is not None else (of_float, next(iter(list_engines()), None))
    if artifact is None or engine is None:
        return None
    with closing(open_in_child(engine, artifact, OpenConfig())) as runner:
        return run_samples(runner, pixels, artifact.spec)


def _copy_model(artifact: Artifact, folder: Path) -> Artifact:
    """An artifact's files, without the PyTorch original and the paths of where it was made."""
    folder.mkdir(parents=True)
    bare = () if artifact.record.files else [path.relative_to(artifact.folder).as_posix() for path in list_files(artifact.model)]
    for name in (name for name in artifact.record.files or bare if name != artifact.record.weights):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.folder / name, target)
    seal(folder, msgspec.structs.replace(artifact.record, weights=None, original=None, packed=True))
    return Artifact.open(folder)
