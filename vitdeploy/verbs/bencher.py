"""The verb `bench`: how fast is it, beside the PyTorch original that the artifact carries."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import msgspec

from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.table import (
    REFERENCE,
    is_installed,
)
from vitdeploy.errors import UsageError
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Subject
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.doubts import list_doubts
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Report
from vitdeploy.verbs.trial import choose_engines, explain_no_original, note_misfits


def bench(
    artifacts: ArtifactLike | Sequence[ArtifactLike], config: BenchConfig | None = None, *, progress: Progress = silent
) -> Report:
    """Measure the latency of artifacts in engines, side by side with their PyTorch originals.

    Args:
        artifacts: One or more, or paths of them. Artifacts of the same original (same spec, same weights) share its row.
        config: Batch sizes, rounds, engines, threads; None is batch 1 in all engines that are installed.
        progress: Hears of every turn.

    Returns:
        A row for each original, artifact, engine and batch size, with the metrics of `latency.measure`.

    Raises:
        UsageError: VD2009, no such backend; VD2010, no artifact; VD2013, a backend that does not open one.
        MachineError: VD4001, an engine, or every engine, is not installed; VD4007, VD4008 a measuring process died or hung.
        InputError: VD3107, a model's batch is fixed and another was asked for.
    """
    config = config or BenchConfig()
    given = [artifacts] if isinstance(artifacts, Artifact | str | PathLike) else artifacts
    models = [Artifact.take(each) for each in given]
    if not models:
        raise UsageError("VD2010", "no artifact to measure", fix="give one or more")
    engines = [choose_engines(config.backends, artifact) for artifact in models]
    subjects: list[Subject] = []
    originals: dict[bytes, str] = {}
    notes: list[str] = []
    labels = _make_labels(models)
    originals_differ = len({key for key in map(_identify_original, models) if key is not None}) > 1
    for artifact, label, names in zip(models, labels, engines, strict=True):
        before = f"{label} / " if len(models) > 1 else ""
        key = _identify_original(artifact)
        if key is not None and key not in originals and is_installed(REFERENCE):
            originals[key] = f"{before}{REFERENCE}" if originals_differ else REFERENCE
            subjects.append(Subject(originals[key], artifact, REFERENCE, originals[key]))
        reference = None if key is None else originals.get(key)
        if reference is None:
            notes.append(f"{label}: no speed-up, {explain_no_original(artifact)}")
        notes += note_misfits(names, artifact)
        subjects += [Subject(f"{before}{engine}", artifact, engine, reference) for engine in names]
    if not subjects:
        raise UsageError("VD2010", "nothing to measure: no engine was named and there is no original to run")
    measured = latency.measure(subjects, config, progress=progress)
    settings: dict[str, object] = {
        "artifact": ", ".join(labels),
        "rounds": config.rounds,
        "seconds": config.seconds,
        "warmup": config.warmup,
        "pause": latency.PAUSE_S,
    }
    return Report(
        title="bench",
        reference=subjects[0].name,
        rows=measured.rows,
        settings=settings,
        notes=(*notes, *list_doubts(measured, config)),
    )


def _identify_original(artifact: Artifact) -> bytes | None:
    """What the PyTorch original is: equal for artifacts of the same weights and spec, however they take their pixels."""
    weights = artifact.weights
    if weights is None:
        return None
    plain = msgspec.structs.replace(artifact.spec.input, tensor="float32-nchw")
    spec = msgspec.json.encode(msgspec.structs.replace(artifact.spec, input=plain))
    digest = artifact.record.files.get(artifact.record.weights or "") or artifact.record.origin.state_sha256
    return spec + (digest or str(weights)).encode()


def _make_labels(artifacts: Sequence[Artifact]) -> list[str]:
    """A name for each artifact, unique: the model's; its folder's where several are of one model; the path if need be."""
    places = [artifact.folder if artifact.record.files else artifact.model for artifact in artifacts]
    for names in ([artifact.name for artifact in artifacts], [place.resolve().name for place in places], list(map(str, places))):
        if len(set(names)) == len(names):
            return names
    return [name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, 1)]
