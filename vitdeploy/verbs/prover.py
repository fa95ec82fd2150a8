"""The verbs `validate` and `bench`: is it the same, is it as good, how fast is it; always against the PyTorch original.

An artifact carries its original (spec and weights), so there is no second argument to get wrong. A bare .onnx does not,
and a device has no PyTorch: then the first engine is the reference, and the report says so.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Runner, run_any
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import (
    PROVER,
    REFERENCE,
    TABLE,
    is_installed,
    list_engines,
    require_fit,
    require_installed,
    require_known,
)
from vitdeploy.data import Batch, Batches, Counts, Dataset, LoadConfig, images, open_dataset, synthetic
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.measure import latency
from vitdeploy.measure.accuracy import Accuracy
from vitdeploy.measure.latency import Subject
from vitdeploy.measure.parity import Parity
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig, ValidateConfig
from vitdeploy.report import Report, Row
from vitdeploy.spec import InputContract

GENERATED = 64
"""Generated images of a `validate` without data."""

ENOUGH = 100
"""Images from which a top-1 near guessing is called suspicious."""


def validate(artifact: Artifact, config: ValidateConfig, *, progress: Progress = silent) -> Report:
    """Compare engines with the PyTorch original, on the same images, in one pass.

    Args:
        artifact: What to prove.
        config: Data, sample, engines, threads.
        progress: Hears of every batch.

    Returns:
        A row for the reference and one for each engine: parity metrics (see `Parity.metrics`) for the engines, accuracy
        metrics (see `Accuracy.metrics`) for all when the data have labels and the model has classes.

    Raises:
        UsageError: VD2009, no such backend; VD2013, one that does not open this artifact.
        MachineError: VD4001, an engine, or every engine, is not installed; VD4004, one failed; VD4007, VD4008 one crashed
            or hung.
        InputError: The data can't be read (see `open_dataset` and `Dataset.batches`), or VD3106, their labels do not fit.
    """
    names, notes = _compared(artifact, config.backends)
    data = None if config.data is None else open_dataset(Path(config.data), split=config.split)
    trial = _Trial(artifact, names, data)
    with ExitStack() as stack:
        options = OpenConfig(threads=config.threads)
        runners = {name: stack.enter_context(closing(open_in_child(name, artifact, options))) for name in names}
        batches = stack.enter_context(_batches(data, artifact.spec.input, config))
        total = len(data.chosen(_loading(config))) if data is not None else batches.counts.found
        for batch in batches:
            progress("validate", min(batches.counts.used + batches.counts.bad - len(batch.pixels), total - 1), total)
            trial.add(batch, runners)
        settings = {name: runner.settings for name, runner in runners.items()}
    progress("validate", total, total)
    rows = tuple(Row(name, trial.metrics(name), settings[name]) for name in names)
    found, remarks = _of_data(data, batches.counts, config, trial)
    found = {"artifact": artifact.name, **found}
    notes += [*remarks, *trial.warnings()]
    return Report(title="validate", reference=rows[0].subject, rows=rows, settings=found, notes=tuple(notes))


def bench(artifacts: Sequence[Artifact], config: BenchConfig, *, progress: Progress = silent) -> Report:
    """Measure the latency of artifacts in engines, side by side with their PyTorch originals.

    Args:
        artifacts: At least one. Artifacts of the same original (same spec, same weights) share its row.
        config: Batch sizes, rounds, engines, threads.
        progress: Hears of every turn.

    Returns:
        A row for each original, artifact, engine and batch size, with the metrics of `latency.measure`.

    Raises:
        UsageError: VD2009, no such backend; VD2010, no artifact; VD2013, a backend that does not open one.
        MachineError: VD4001, an engine, or every engine, is not installed; VD4007, VD4008 a measuring process died or hung.
        InputError: VD3107, a model's batch is fixed and another was asked for.
    """
    if not artifacts:
        raise UsageError("VD2010", "no artifact to measure", fix="give one or more")
    engines = [_engines(config.backends, artifact) for artifact in artifacts]
    subjects: list[Subject] = []
    originals: dict[bytes, str] = {}
    notes: list[str] = []
    labels = _labels(artifacts)
    for artifact, label, names in zip(artifacts, labels, engines, strict=True):
        before = f"{label} / " if len(artifacts) > 1 else ""
        key = _origin(artifact)
        if key is not None and key not in originals and is_installed(REFERENCE):
            originals[key] = f"{before}{REFERENCE}"
            subjects.append(Subject(originals[key], artifact, REFERENCE, originals[key]))
        reference = None if key is None else originals.get(key)
        if reference is None:
            notes.append(f"{label}: no speed-up, {_why_not(artifact)}")
        subjects += [Subject(f"{before}{engine}", artifact, engine, reference) for engine in names]
    if not subjects:
        raise UsageError("VD2010", "nothing to measure: no engine was named and there is no original to run")
    rows, remarks = latency.measure(subjects, config, progress=progress)
    settings: dict[str, Any] = {
        "artifact": ", ".join(labels),
        "rounds": config.rounds,
        "seconds": config.seconds,
        "warmup": config.warmup,
        "pause": latency.PAUSE_S,
    }
    return Report(title="bench", reference=subjects[0].name, rows=rows, settings=settings, notes=(*notes, *remarks))


class _Trial:
    """One pass of `validate`: what is counted, and for whom."""

    def __init__(self, artifact: Artifact, names: tuple[str, ...], data: Dataset | None) -> None:
        spec = artifact.spec
        self.reference, *others = names
        self.spec = spec
        self.parity = {name: Parity(classify=spec.classifies and spec.classes > 1) for name in others}
        self.accuracy = Accuracy(self.reference, tuple(others))
        self.class_map = None
        if data is not None and data.labels is not None and spec.classifies:
            self.class_map = data.class_map(spec.labels, spec.classes)

    def add(self, batch: Batch, runners: Mapping[str, Runner]) -> None:
        """Run one batch through everything."""
        tensor = images.to_tensor(batch.pixels, self.spec.input)
        outputs = {name: run_any(runner, tensor)[self.spec.output] for name, runner in runners.items()}
        for name, parity in self.parity.items():
            parity.add(outputs[self.reference], outputs[name])
        if self.class_map is not None and batch.labels is not None:
            self.accuracy.add(outputs, self.class_map[batch.labels])

    def metrics(self, name: str) -> dict[str, Any]:
        """All numbers of one subject."""
        found = self.parity[name].metrics() if name in self.parity else {}
        return found | (self.accuracy.metrics(name) if self.class_map is not None else {})

    def warnings(self) -> list[str]:
        """What a reader must not miss."""
        found = [
            f"WARNING: {name}: {parity.not_finite} of {parity.images} images have NaN or infinite outputs, "
            "here or in the reference"
            for name, parity in self.parity.items()
            if parity.not_finite
        ]
        top1 = self.accuracy.metrics(self.reference)["top1"]
        classes, count = self.accuracy.classes, self.accuracy.images
        if count < ENOUGH or classes < 2 or top1.low is None:
            return found
        if top1.low <= 1 / classes or (classes > 4 and top1.value < 2 / classes):
            shift, share = max(self.accuracy.shifted().items(), key=lambda item: item[1])
            words = "the label order or the preprocessing is probably wrong"
            if share > 3 * top1.value and share > 2 / classes:
                words = f"with every label {shift:+d} it would be {100 * share:.1f} %: the labels are shifted by one"
            found.append(
                f"WARNING: top-1 of the reference is {100 * top1.value:.1f} % on {count:,} images of {classes} classes, "
                f"hardly better than guessing; {words}"
            )
        return found


def _compared(artifact: Artifact, wanted: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Names of the backends, the reference first, and why it is not the original if it is not."""
    engines = _engines(wanted, artifact)
    if REFERENCE in wanted or (artifact.weights is not None and is_installed(REFERENCE)):
        return (REFERENCE, *engines), []
    why = _why_not(artifact)
    note = f"The reference is {engines[0]}, not the PyTorch original: {why}. Parity with PyTorch was not measured."
    return engines, [note]


def _why_not(artifact: Artifact) -> str:
    return "the artifact does not carry its original's weights" if artifact.weights is None else "PyTorch is not installed"


def _engines(wanted: tuple[str, ...], artifact: Artifact) -> tuple[str, ...]:
    """The backends that are measured beside the reference: those named, else the one the file was made for, else all.

    Raises:
        UsageError: VD2009, VD2013.
        MachineError: VD4001.
    """
    for name in wanted:
        require_installed(name)
    require_known(artifact)
    if artifact.record.kind in wanted:  # of those named for several artifacts, an engine has one
        wanted = (artifact.record.kind,)
    there = list_engines() if artifact.engine is None else tuple(name for name in (artifact.engine,) if is_installed(name))
    engines = tuple(dict.fromkeys(name for name in wanted or there if name != REFERENCE))
    if not engines and not wanted and artifact.engine is not None:
        message = f"was made for {artifact.engine}, which is not installed"
        fix = TABLE[artifact.engine].fix
        fix += ", or name another engine with --backend" if artifact.record.kind == "onnx" else ""
        raise MachineError("VD4001", message, file=artifact.model, fix=fix)
    if not engines and not wanted:
        raise MachineError("VD4001", "no inference engine is installed", fix=TABLE[PROVER].fix)
    for name in engines:
        require_fit(name, artifact)
    return engines


def _loading(config: ValidateConfig) -> LoadConfig:
    return LoadConfig(batch_size=config.batch, limit=config.limit, seed=config.seed, max_bad=config.max_bad)


def _batches(data: Dataset | None, contract: InputContract, config: ValidateConfig) -> Batches:
    """The data's batches, or generated ones."""
    if data is not None:
        return data.batches(contract, _loading(config))
    counts = Counts(found=config.limit or GENERATED)
    stream = _generated(counts, contract, config)
    return Batches(counts, stream, stream.close)


def _generated(counts: Counts, contract: InputContract, config: ValidateConfig) -> Generator[Batch, None, None]:
    pixels = synthetic.pixels(counts.found, contract, seed=config.seed)
    for start in range(0, len(pixels), config.batch):
        part = pixels[start : start + config.batch]
        counts.used += len(part)
        yield Batch(part, None, tuple(f"generated {start + place}" for place in range(len(part))))


def _of_data(data: Dataset | None, counts: Counts, config: ValidateConfig, trial: _Trial) -> tuple[dict[str, Any], list[str]]:
    """Settings and notes about the images."""
    settings: dict[str, Any] = {"data": "generated", "images": counts.used, "seed": config.seed, "batch": config.batch}
    if data is None:
        return settings, [f"No data were given: parity on {counts.used} generated images; accuracy was not measured."]
    notes = []
    settings |= {"data": data.name, "digest": data.digest, "found": counts.found, "bad": counts.bad, "limit": config.limit}
    if counts.used < counts.found:
        notes.append(f"{counts.used:,} of {counts.found:,} images were used.")
    if counts.bad:
        more = f" and {counts.bad - len(counts.examples)} more" if counts.bad > len(counts.examples) else ""
        notes.append(f"WARNING: {counts.bad} images could not be read: {'; '.join(counts.examples)}{more}")
    if trial.class_map is None:
        without = "gives an embedding, not classes" if trial.spec.head == "projection" else "has no classes"
        reason = "the data have no labels" if data.labels is None else f"the model {without}"
        notes.append(f"Accuracy was not measured: {reason}.")
    return settings, notes


def _origin(artifact: Artifact) -> bytes | None:
    """What the PyTorch original is: equal for artifacts of the same weights and spec, however they take their pixels."""
    if artifact.record.weights is None:
        return None
    plain = msgspec.structs.replace(artifact.spec.input, tensor="float32-nchw")
    spec = msgspec.json.encode(msgspec.structs.replace(artifact.spec, input=plain))
    return spec + artifact.record.files.get(artifact.record.weights, str(artifact.weights)).encode()


def _labels(artifacts: Sequence[Artifact]) -> list[str]:
    """A name for each artifact, unique: the model's, or the path where two are alike."""
    plain = [artifact.name for artifact in artifacts]
    precisions = [f"{artifact.name} {artifact.record.precision}" for artifact in artifacts]
    names = plain if len(set(plain)) == len(plain) else precisions
    pairs = zip(names, artifacts, strict=True)
    places = [
        name if names.count(name) == 1 else str(artifact.folder if artifact.record.files else artifact.model)
        for name, artifact in pairs
    ]
    return [place if places.count(place) == 1 else f"{place} #{index + 1}" for index, place in enumerate(places)]
