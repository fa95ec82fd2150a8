"""The verb `bench`: how fast is it, beside the PyTorch original that the artifact carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

import msgspec

from vitdeploy import machine
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import REFERENCE, list_engines
from vitdeploy.data import Dataset
from vitdeploy.errors import UsageError
from vitdeploy.measure import latency
from vitdeploy.measure.decoding import measure_decoding
from vitdeploy.measure.latency import Subject
from vitdeploy.measure.profiles import profile
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.doubts import list_changes, list_doubts, list_ties
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Report
from vitdeploy.verbs.reference import find_float, has_original, name_place
from vitdeploy.verbs.trial import choose_engines, explain_no_original, note_misfits


def bench(
    artifacts: ArtifactLike | Sequence[ArtifactLike],
    config: BenchConfig | None = None,
    *,
    data: Dataset | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure the latency of artifacts in engines, side by side with their PyTorch originals.

    Args:
        artifacts: One or more, or paths of them. Artifacts of the same original (same spec, same weights) share its row.
        config: Batch sizes, rounds, engines, threads; None is batch 1 in all engines that are installed.
        data: Images whose decoding is measured too, as the first artifact takes them: a row of its own.
        progress: Hears of every turn.

    Returns:
        A row for each original, artifact, engine, count of threads and batch size, with the metrics of `latency.measure`; where
        it was asked, where the time of each goes, as parts (see `profiles.profile`).

    Raises:
        UsageError: VD2009, no such backend; VD2010, no artifact; VD2013, a backend that does not open one.
        MachineError: VD4001, an engine, or every engine, is not installed; VD4007, VD4008 a measuring process died or hung.
        InputError: VD3107, a model's batch is fixed and another was asked for; as `measure_decoding`.
    """
    config = config or BenchConfig()
    given = [artifacts] if isinstance(artifacts, Artifact | str | PathLike) else artifacts
    models = [Artifact.take(each) for each in given]
    if not models:
        raise UsageError("VD2010", "no artifact to measure", fix="give one or more")
    engines = [choose_engines(config.backends, artifact) for artifact in models]
    labels = _make_labels(models)
    plan = _Plan(models, labels, engines)
    for artifact, label, names in zip(models, labels, engines, strict=True):
        plan.add(artifact, label, names)
    subjects, notes = plan.settle()
    if not subjects:
        raise UsageError("VD2010", "nothing to measure: no engine was named and there is no original to run")
    subjects, before = _sweep(subjects, config), machine.read_conditions()
    measured = latency.measure(subjects, config, progress=progress)
    after = machine.read_conditions()
    decoding = () if data is None else (measure_decoding(data, models[0].spec.input, config),)
    settings: dict[str, object] = {
        "artifact": ", ".join(labels),
        "rounds": config.rounds,
        "seconds": config.seconds,
        "warmup": config.warmup,
        "pause": latency.PAUSE_S,
        "power": machine.power_mode(),
        "before": before,
        "after": after,
    }
    return Report(
        title="bench",
        reference=next((each.reference for each in subjects if each.reference is not None), ""),
        rows=(*measured.rows, *decoding),
        settings=settings,
        notes=(*notes, *list_ties(measured), *list_doubts(measured, config), *list_changes(before, after)),
        parts=profile(subjects, config, progress=progress) if config.profile else (),
    )


def _sweep(subjects: list[Subject], config: BenchConfig) -> list[Subject]:
    """The subjects once for each count of threads, each beside the reference of the same count."""
    if len(config.thread_counts) < 2:
        return subjects
    swept = []
    for count in config.thread_counts:
        told = f", {count} thread{'s' * (count > 1)}"
        for each in subjects:
            reference = each.reference and each.reference + told
            swept.append(replace(each, name=each.name + told, reference=reference, config=OpenConfig(threads=count)))
    return swept


class _Plan:
    """What is measured, and beside what: originals once each, and FP32 files where the original can't be run."""

    def __init__(self, models: list[Artifact], labels: list[str], engines: list[tuple[str, ...]]) -> None:
        self._subjects: list[Subject] = []
        self._notes: list[str] = []
        self._several = len(models) > 1
        self._originals: dict[bytes, str] = {}
        self._stand_ins: dict[str, list[tuple[str, str]]] = {}
        self._differ = len({key for key in map(_identify_original, models) if key is not None}) > 1
        floats = zip(models, labels, engines, strict=True)
        self._floats = {each.id: self._name(label, names[0]) for each, label, names in floats if each.is_float and names}
        """FP32 files that are measured anyway, by id, to the row that others are compared with."""

    def _name(self, label: str, engine: str) -> str:
        return f"{label} / {engine}" if self._several else engine

    def add(self, artifact: Artifact, label: str, engines: tuple[str, ...]) -> None:
        """An artifact in its engines, behind what it is compared with."""
        reference = self._find_original(artifact, label) or self._find_float(artifact, label)
        self._subjects += [Subject(self._name(label, engine), artifact, engine, reference) for engine in engines]
        self._notes += note_misfits(engines, artifact)
        if reference is None:
            self._notes.append(f"{label}: no speed-up: {explain_no_original(artifact)}")
        elif reference not in self._originals.values():
            self._stand_ins.setdefault(reference, []).append((label, explain_no_original(artifact)))

    def settle(self) -> tuple[list[Subject], list[str]]:
        """The subjects, none of which is compared with itself alone, and what a reader must not miss."""
        compared = {each.reference for each in self._subjects if each.reference != each.name}
        alone = [name for name in self._stand_ins if name not in compared]
        subjects = [replace(each, reference=None) if each.reference in alone else each for each in self._subjects]
        notes = list(self._notes)
        for name, reasons in self._stand_ins.items():
            said = "no speed-up" if name in alone else f"speed-ups are over {name}, the FP32 file"
            notes += [f"{label}: {said}: {why}" for label, why in reasons]
        return subjects, notes

    def _find_original(self, artifact: Artifact, label: str) -> str | None:
        key = _identify_original(artifact)
        if key is None or not has_original(artifact):
            return None
        if key not in self._originals:
            self._originals[key] = self._name(label, REFERENCE) if self._differ else REFERENCE
            self._subjects.append(Subject(self._originals[key], artifact, REFERENCE, self._originals[key]))
        return self._originals[key]

    def _find_float(self, artifact: Artifact, label: str) -> str | None:
        if artifact.id in self._floats:
            return self._floats[artifact.id]
        made_of, openers = find_float(artifact), list_engines()
        if made_of is None or not openers:
            return None
        if made_of.id not in self._floats:
            name = self._floats[made_of.id] = f"{name_place(made_of)} / {openers[0]}"
            self._subjects.append(Subject(name, made_of, openers[0], name))
        return self._floats[made_of.id]


def _identify_original(artifact: Artifact) -> bytes | None:
    """What the PyTorch original is: equal for artifacts of one spec and weights, however they take pixels and merge tokens."""
    weights = artifact.weights
    if weights is None:
        return None
    plain = msgspec.structs.replace(artifact.spec.input, tensor="float32-nchw")
    spec = msgspec.json.encode(msgspec.structs.replace(artifact.spec, input=plain, merged=()))
    digest = artifact.record.files.get(artifact.record.weights or "") or artifact.record.origin.state_sha256
    return spec + (digest or str(weights)).encode()


def _make_labels(artifacts: Sequence[Artifact]) -> list[str]:
    """A name for each artifact, unique: the model's; its folder's where several are of one model; the path if need be."""
    places = [artifact.folder if artifact.record.files else artifact.model for artifact in artifacts]
    for names in ([artifact.name for artifact in artifacts], [place.resolve().name for place in places], list(map(str, places))):
        if len(set(names)) == len(names):
            return names
    return [name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, 1)]
