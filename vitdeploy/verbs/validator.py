"""The verb `validate`: is it the same, and is it as good; against the PyTorch original wherever that can be run.

An artifact carries its original (spec and weights), so nothing has to be named. Where the original can't be run, `reference` says
what stands for it; what it gave for the golden batch is then a table of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.backends.base import OpenConfig, Runner, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import REFERENCE
from vitdeploy.data import Batch, Batches, Counts, Dataset, LoadConfig, images, open_dataset, synthetic
from vitdeploy.data.dataset import explain_turned
from vitdeploy.data.stacks import save
from vitdeploy.errors import InputError, UsageError
from vitdeploy.measure.accuracy import Accuracy
from vitdeploy.measure.bitmaps import Answers, Seen, read_seen
from vitdeploy.measure.parity import Parity
from vitdeploy.measure.steadiness import LOOKED_AT, measure_steadiness
from vitdeploy.measure.worst import Worst
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.golden import Golden, run_pixels
from vitdeploy.proof.slices import NAMED, find_worse
from vitdeploy.recipe import ValidateConfig
from vitdeploy.report import RECORDED, Images, Metric, Report, Row, identify
from vitdeploy.spec import InputContract
from vitdeploy.verbs.limits import choose_thresholds, judge_validation
from vitdeploy.verbs.reference import Reference, find_reference, read_recorded, take_reference
from vitdeploy.verbs.remembered import Remembered
from vitdeploy.verbs.tracer import choose_inside, cut_batches, trace_all
from vitdeploy.verbs.trial import choose_engines, explain_no_original, note_misfits
from vitdeploy.words import GIVES

GENERATED = 64
"""Generated images of a `validate` without data."""

ENOUGH = 100
"""Images from which a top-1 near guessing is called suspicious."""


def validate(  # noqa: PLR0913 (four of them are keywords that few callers give)
    artifact: ArtifactLike,
    config: ValidateConfig | None = None,
    *,
    against: ArtifactLike | None = None,
    data: Iterable[object] | None = None,
    kept: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Compare engines with the PyTorch original, on the same images, in one pass.

    Args:
        artifact: What to prove, or a path of it.
        config: Data, sample, engines, threads; None is parity on generated images.
        against: What to compare with in place of the original: an artifact, an ONNX file, or ``package.file:factory``, WHICH IS
            IMPORTED AND RUN.
        data: Images of a program in place of files: arrays [H, W, C] or [C, H, W], or pairs of one and its label (a class
            number or name); what their numbers are, `data.arrays` says. Of these the first `limit` are used.
        kept: A folder in which the reference's outputs are kept: of several calls with it, the first alone runs the original.
        progress: Hears of every batch.

    Returns:
        A row for the reference and one for each engine: parity metrics (see `Parity.metrics`, `measure_steadiness`) for the
        engines, accuracy metrics (see `Accuracy.metrics`) for all when the data have labels and the model has classes. Where the
        original can't be run, another table compares with what it gave for the golden batch. With ``layers`` a table an engine
        has a row a layer (see `tracer.trace`), and says which is the first that breaks. The verdict holds engines that compute in
        FP32 to parity, and all to the limits of ``config``; a miss is no error.

    Raises:
        UsageError: VD2003, a limit without its unit; VD2009, no such backend; VD2010, there is nothing to compare with;
            VD2013, a backend that does not open this artifact; and as `reference.take_reference`.
        MachineError: VD4001, an engine, or every engine, is not installed; VD4004, one failed; VD4007, VD4008 one crashed
            or hung.
        InputError: The data can't be read (see `open_dataset` and `Dataset.batches`), or VD3106, their labels do not fit, or
            are all off by one.
    """
    artifact, config = Artifact.take(artifact), config or ValidateConfig()
    choose_thresholds(config)  # a limit that makes no sense costs no minutes
    engines = choose_engines(config.backends, artifact)
    reference = find_reference(artifact, engines, config.backends) if against is None else take_reference(artifact, against)
    recorded = read_recorded(artifact, reference)
    with ExitStack() as stack:
        given = _open_data(config, data, stack)
        trial = _Trial(artifact, reference, engines, given, kept)
        trial.require_meaning(recorded, config)
        trial.open(stack, OpenConfig(threads=config.threads))
        tables = [] if recorded is None else [trial.compare_recorded(recorded)]
        if trial.compares:
            tables.insert(0, _measure(trial, given, config, progress))
        few = _read_some(given, artifact, config) if config.layers else []
    whole, *parts = tables
    notes = [*note_misfits(engines, artifact), *_note_doubts(artifact, reference, recorded)]
    if config.layers:
        inside = choose_inside(artifact, against, OpenConfig(threads=config.threads))
        parts += trace_all(artifact, trial.compared, few, inside, progress=progress)
    report = msgspec.structs.replace(whole, notes=(*notes, *whole.notes), parts=tuple(parts))
    return judge_validation(report, config)


def _note_doubts(artifact: Artifact, reference: Reference | None, recorded: Golden | None) -> Iterator[str]:
    """What was not compared, and what was assumed."""
    if recorded is None and (reference is None or not reference.settled):
        ask = "" if reference is not None else f": {explain_no_original(artifact)}; name something to compare with (--against)"
        yield f"Parity with the original was not measured{ask}."
    if assumption := artifact.record.origin.assumption:
        yield f"Assumed, not read from the checkpoint: {assumption}."


def _read_some(given: Dataset | None, artifact: Artifact, config: ValidateConfig) -> list[NDArray[Any]]:
    """The images on which layers are compared."""
    contract = artifact.spec.input
    with _open_batches(given, contract, config) as batches:
        return cut_batches(images.to_tensor(batch.pixels, contract) for batch in batches)


def _measure(trial: _Trial, given: Dataset | None, config: ValidateConfig, progress: Progress) -> Report:
    """The images through everything, and the table of it."""
    with _open_batches(given, trial.artifact.spec.input, config) as batches:
        total = len(given.chosen(_make_load_config(config))) if given is not None else batches.counts.listed
        for batch in batches:
            progress("validate", min(batches.counts.used + batches.counts.bad - len(batch.pixels), total - 1), total)
            trial.add(batch)
    progress("validate", total, total)
    if not config.allow_shifted_labels:
        trial.refuse_shift(config.data)
    facts, remarks = _describe_data(given, batches.counts, config, trial)
    rows = tuple(Row(name, trial.metrics(name), trial.runners[name].settings) for name in trial.names)
    contract = msgspec.to_builtins(trial.spec.input)
    settings = {"artifact": trial.artifact.name, **identify(trial.artifact), **facts, "contract": contract}
    remarks += trial.warnings()
    reference, note = ("", "") if trial.reference is None else (trial.reference.name, trial.reference.note)
    images = trial.finish_images()
    if images is not None:
        remarks += _note_images(images, reference)
    notes = tuple(each for each in (note, *remarks) if each)
    return Report(title="validate", reference=reference, rows=rows, settings=settings, notes=notes, images=images)


def _note_images(images: Images, reference: str) -> Iterator[str]:
    """What single images, and those of a class, tell of a candidate."""
    if images.calibrated:
        yield f"WARNING: {images.calibrated:,} of the images were seen when the model was quantized"
    for subject in images.same:
        if worse := find_worse(images, reference, subject):
            told = ", ".join(f"{part.value} {part.difference.value:+.1f} points" for part in worse[:NAMED])
            classes = "class is" if len(worse) == 1 else "classes are"
            yield f"WARNING: {subject}: {len(worse):,} {classes} worse by more than chance: {told}" + ", ..." * (
                len(worse) > NAMED
            )


def _open_data(config: ValidateConfig, given: Iterable[object] | None, stack: ExitStack) -> Dataset | None:
    """The images that were named, or those that a program gives; None for neither."""
    if given is None:
        return None if config.data is None else open_dataset(Path(config.data), split=config.split)
    if config.data is not None:
        raise UsageError("VD2010", f"images were given, and the config names {config.data} too", fix="give one of them")
    folder = stack.enter_context(files.temporary_folder())
    return open_dataset(save(islice(given, config.limit), folder))


class _Trial:
    """One pass of `validate`: what is run, what is counted, and for whom.

    Attributes:
        artifact: What is validated.
        reference: What it is compared with; None where there is nothing.
        names: The rows, the reference first.
        runners: The same, opened.
    """

    def __init__(
        self,
        artifact: Artifact,
        reference: Reference | None,
        engines: tuple[str, ...],
        data: Dataset | None,
        kept: Path | None = None,
    ) -> None:
        self.artifact, self.spec, self.reference = artifact, artifact.spec, reference
        self.engines, self.data, self._kept = engines, data, kept
        others = [name for name in engines if reference is None or name != reference.name]
        self.names = (*([] if reference is None else [reference.name]), *others)
        self.runners: dict[str, Runner] = {}
        compared = self.names[1:] if reference is not None else ()
        self.parity = {name: Parity(self.spec.task, probabilities=self.spec.probabilities) for name in compared}
        self.worst = {name: Worst(self.spec) for name in compared}
        self.steady: dict[str, dict[str, Metric]] = {}
        self.accuracy = Accuracy(self.names[0], self.names[1:], probabilities=self.spec.probabilities)
        self.answers = Answers(None if reference is None else reference.name, read_seen(artifact.record.calibration))
        self.places = {} if data is None else {name: place for place, name in enumerate(data.listing.names)}
        self.class_map = None
        if data is not None and data.labels is not None and self.spec.classifies:
            self.class_map = data.class_map(self.spec.labels, self.spec.classes)

    @property
    def compared(self) -> tuple[str, ...]:
        """The engines."""
        return tuple(name for name in self.names if name in self.engines and name != REFERENCE)

    @property
    def compares(self) -> bool:
        """Whether images tell anything: there is a reference, or they have labels."""
        return self.reference is not None or self.class_map is not None

    def require_meaning(self, recorded: Golden | None, config: ValidateConfig) -> None:
        """Refuse a table that would compare an engine with itself.

        Raises:
            UsageError: VD2010.
        """
        if not self.compares and recorded is None:
            message = (
                f"there is nothing to compare with: {explain_no_original(self.artifact)}, and {self.names[0]} is all that runs"
            )
            fix = "give --against ARTIFACT, an .onnx or package.file:factory" + "; or labelled images (--data)" * (
                config.data is None
            )
            raise UsageError("VD2010", message, file=self.artifact.model, fix=fix)

    def open(self, stack: ExitStack, options: OpenConfig) -> None:
        """Open everything, until the stack ends."""
        for name in self.names:
            if self.reference is not None and name == self.reference.name:
                runner = self._open_reference(self.reference, options)
            else:
                runner = open_in_child(name, self.artifact, options)
            self.runners[name] = stack.enter_context(closing(runner))

    def _open_reference(self, reference: Reference, options: OpenConfig) -> Runner:
        if self._kept is None or not reference.key:
            return reference.open(options)
        return Remembered(reference.open, options, self._kept / reference.key)

    def compare_recorded(self, recorded: Golden) -> Report:
        """The engines beside what the original gave, somewhere else, for the golden batch."""
        name, count = recorded.author + RECORDED, len(recorded.pixels)
        assert recorded.original is not None
        rows = [Row(name, {}, {"backend": recorded.author, "precision": "fp32"})]
        for engine in self.engines:
            runner, parity = self.runners[engine], Parity(self.spec.task, probabilities=self.spec.probabilities)
            parity.add(recorded.original, run_pixels(runner, self.artifact, recorded.pixels))
            rows.append(Row(engine, parity.metrics(), runner.settings))
        file = "this file, where it was made, gave in" if self.artifact.is_float else "the FP32 file gave in"
        gave = "PyTorch gave" if recorded.author == REFERENCE else f"{file} {recorded.author}"
        why = explain_no_original(self.artifact)
        notes = [f"The original was not run: {why}. Compared with what {gave} for the {count} images of the golden batch."]
        if not self.compares and self.data is None:
            notes.append("No data were given: accuracy was not measured.")
        elif not self.compares and self.data is not None:
            notes.append(f"WARNING: {self.data.name} was not used: no labels fit, and nothing runs to compare with (--against).")
        facts = {"artifact": self.artifact.name, "data": "golden batch", "images": count}
        return Report(title="validate", reference=name, rows=tuple(rows), settings=facts, notes=tuple(notes))

    def add(self, batch: Batch) -> None:
        """Run one batch through everything."""
        specs = {} if self.reference is None else {self.reference.name: self.reference.spec}
        outputs = {}
        for name, runner in self.runners.items():
            spec = specs.get(name, self.spec)
            outputs[name] = run_main(runner, images.to_tensor(batch.pixels, spec.input), spec)
        if not self.steady:
            tensor = images.to_tensor(batch.pixels[:LOOKED_AT], self.spec.input)
            runs = {name: partial(run_main, self.runners[name], spec=self.spec) for name in self.parity}
            self.steady = {name: measure_steadiness(run, tensor) for name, run in runs.items()}
        for name, parity in self.parity.items():
            parity.add(outputs[self.names[0]], outputs[name])
        labels = None if self.class_map is None or batch.labels is None else self.class_map[batch.labels]
        if labels is not None:
            self.accuracy.add(outputs, labels)
        if self.data is not None:
            for name, worst in self.worst.items():
                worst.add(batch.names, outputs[self.names[0]], outputs[name], labels)
            self.answers.add(self._see(self.data, batch), outputs if self.spec.classifies else {}, labels)

    def finish_images(self) -> Images | None:
        """What every image came to; None where they are no data set's."""
        images, worst = self.answers.finish(), {name: worst.finish() for name, worst in self.worst.items()}
        return images and msgspec.structs.replace(images, worst={name: kept for name, kept in worst.items() if kept})

    def _see(self, data: Dataset, batch: Batch) -> Seen:
        """The images of a batch as the data set knows them."""
        places = [self.places[name] for name in batch.names]
        identities = [data.listing.identify(place) for place in places]
        groups = {name: [values[place] for place in places] for name, values in data.listing.columns.items()}
        numbers = None if batch.labels is None else batch.labels.tolist()
        labels = None if numbers is None else [data.classes[number] if data.classes else str(number) for number in numbers]
        return Seen(batch.names, identities, labels, groups)

    def metrics(self, name: str) -> dict[str, Metric]:
        """All numbers of one subject."""
        metrics = self.parity[name].metrics() | self.steady.get(name, {}) if name in self.parity else {}
        return metrics | (self.accuracy.metrics(name) if self.class_map is not None else {})

    def warnings(self) -> list[str]:
        """What a reader must not miss."""
        warnings = [
            f"WARNING: {name}: {parity.not_finite} of {parity.images} images have NaN or infinite outputs, "
            "here or in the reference"
            for name, parity in self.parity.items()
            if parity.not_finite
        ]
        if not self._is_guessing():
            return warnings
        top1 = self.accuracy.metrics(self.names[0])["top1"].value
        words = self._find_shift() or "the label order or the preprocessing is probably wrong"
        images, classes = self.accuracy.images, self.accuracy.classes
        seen = f"top-1 of {self._call_first()} is {100 * top1:.1f} % on {images:,} images of {classes} classes"
        warnings.append(f"WARNING: {seen}, hardly better than guessing; {words}")
        return warnings

    def refuse_shift(self, file: str | None) -> None:
        """Raise when every label is one too high or too low.

        Raises:
            InputError: VD3106.
        """
        if self._is_guessing() and (shift := self._find_shift()):
            top1 = self.accuracy.metrics(self.names[0])["top1"].value
            message = f"top-1 of {self._call_first()} is {100 * top1:.1f} %, and {shift}"
            fix = "number the labels from 0 in the model's order, or pass --allow-shifted-labels"
            raise InputError("VD3106", message, file=file, fix=fix)

    def _call_first(self) -> str:
        return "the reference" if self.reference is not None else self.names[0]

    def _is_guessing(self) -> bool:
        """Whether enough images show the reference's top-1 to be near that of a guess."""
        top1, classes = self.accuracy.metrics(self.names[0])["top1"], self.accuracy.classes
        if self.accuracy.images < ENOUGH or classes < 2 or top1.low is None:
            return False
        return top1.low <= 1 / classes or (classes > 4 and top1.value < 2 / classes)

    def _find_shift(self) -> str:
        """That labels are off by one, in words; "" where they are not."""
        top1, classes = self.accuracy.metrics(self.names[0])["top1"].value, self.accuracy.classes
        shift, share = max(self.accuracy.measure_shifts().items(), key=lambda item: item[1])
        if share <= 3 * top1 or share <= 2 / classes:
            return ""
        return f"with every label {shift:+d} it would be {100 * share:.1f} %: the labels are shifted by one"


def _make_load_config(config: ValidateConfig) -> LoadConfig:
    return LoadConfig(batch_size=config.batch, limit=config.limit, seed=config.seed, max_bad=config.max_bad)


def _open_batches(data: Dataset | None, contract: InputContract, config: ValidateConfig) -> Batches:
    if data is not None:
        return data.batches(contract, _make_load_config(config))
    counts = Counts(listed=config.limit or GENERATED)
    stream = _generate(counts, contract, config)
    return Batches(counts, stream, stream.close)


def _generate(counts: Counts, contract: InputContract, config: ValidateConfig) -> Generator[Batch, None, None]:
    pixels = synthetic.pixels(counts.listed, contract, seed=config.seed)
    for start in range(0, len(pixels), config.batch):
        part = pixels[start : start + config.batch]
        counts.used += len(part)
        yield Batch(part, None, tuple(f"generated {start + place}" for place in range(len(part))))


def _describe_data(
    data: Dataset | None, counts: Counts, config: ValidateConfig, trial: _Trial
) -> tuple[dict[str, object], list[str]]:
    settings: dict[str, object] = {"data": "generated", "images": counts.used, "seed": config.seed, "batch": config.batch}
    if data is None:
        return settings, [f"No data were given: parity on {counts.used} generated images; accuracy was not measured."]
    notes = []
    settings |= {"data": data.name, "digest": data.digest, "found": counts.listed, "bad": counts.bad, "limit": config.limit}
    if counts.used < counts.listed:
        notes.append(f"{counts.used:,} of {counts.listed:,} images were used.")
    if counts.bad:
        more = f" and {counts.bad - len(counts.examples)} more" if counts.bad > len(counts.examples) else ""
        notes.append(f"WARNING: {counts.bad} images could not be read: {'; '.join(counts.examples)}{more}")
    if counts.turned and trial.spec.input.exif == "ignore":
        notes.append(explain_turned(counts.turned))
    if trial.class_map is not None and len(data.classes or ()) not in (0, trial.spec.classes):
        notes.append(
            f"The data have {len(trial.class_map):,} of the model's {trial.spec.classes:,} classes; it chooses among all of them."
        )
    if trial.class_map is None:
        reason = "the data have no labels" if data.labels is None else f"the model gives {GIVES[trial.spec.task]}, not classes"
        notes.append(f"Accuracy was not measured: {reason}.")
    return settings, notes
