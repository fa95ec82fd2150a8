"""Latency of several subjects, measured side by side so that they can be compared.

One subject after the other would compare a cool machine with a hot one. Here every round gives every subject its turn, in an
order that rotates; ratios are taken over rounds, so that what slowed a whole round cancels. Between turns there is a pause
in which the last subject's threads stop spinning.

What is timed is `Runner.run`: a prepared tensor in, arrays out, copies included; not decoding, not resizing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np

from vitdeploy import machine
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.child import Opened
from vitdeploy.backends.table import REFERENCE
from vitdeploy.measure.energy import Meter
from vitdeploy.measure.statistics import FEWEST_ROUNDS, median_ratio, percentiles, variation
from vitdeploy.measure.worker import Worker
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric, Row, identify

PAUSE_S = 0.1
"""Pause between turns, in seconds."""


@dataclass(frozen=True)
class Subject:
    """One line of a benchmark.

    Attributes:
        name: For people, unique.
        artifact: The model.
        backend: Which engine.
        reference: Name of the subject it is compared with, or None; its own name for a reference.
        config: How the engine runs it; its threads, where it names none, are the benchmark's. None is the usual way.
    """

    name: str
    artifact: Artifact
    backend: str
    reference: str | None = None
    config: OpenConfig | None = None


class Goal(NamedTuple):
    """How well speed-ups shall be known.

    Attributes:
        width: Width of each interval, as a share of the speed-up, at which there are rounds enough.
        most: Rounds after which it is given up.
    """

    width: float
    most: int


class Measured(NamedTuple):
    """What was measured, and what tells how far to trust it.

    Attributes:
        rows: One for each subject and batch size.
        variation: Subject and batch size to the coefficient of variation of its round medians.
        rounds: The fewest rounds of any row.
        load: Processes that wanted a core in the minute before.
    """

    rows: tuple[Row, ...]
    variation: dict[tuple[str, int], float]
    rounds: int
    load: float


@dataclass
class _Times:
    """One subject at one batch size: a list of run times in ms for each round, and what the round took from the supply."""

    first_ms: float
    peak_mib: float = 0.0
    rounds: list[list[float]] = field(default_factory=list)
    joules: list[float | None] = field(default_factory=list)

    @property
    def medians(self) -> list[float]:
        return [percentiles(times, 0.5)[0] for times in self.rounds]

    @property
    def joules_a_run(self) -> float | None:
        """Mean over all runs, with the one of each round that is not counted (`Worker.run`); None where nothing tells it."""
        told = [joules for joules in self.joules if joules is not None]
        return sum(told) / sum(len(times) + 1 for times in self.rounds) if told and len(told) == len(self.rounds) else None


def measure(
    subjects: Sequence[Subject], config: BenchConfig, *, goal: Goal | None = None, progress: Progress = silent
) -> Measured:
    """Measure all subjects at all batch sizes.

    All models are in memory at once, each in its own process; they are loaded one after the other.

    Args:
        subjects: At least one.
        config: Batch sizes, rounds, seconds, warm-up, threads. Its backends are not looked at.
        goal: Go on beyond the rounds of ``config`` until speed-ups are known this well; None measures those rounds alone.
        progress: Hears of every turn.

    Returns:
        A row for each subject and batch size: ``p50``, ``p90``, ``p99``, ``mean`` in ms over all runs, ``throughput`` in
        images/s (batch / mean), ``speedup`` (the reference's median of round medians over the subject's own, with interval),
        ``load`` and ``first_run`` in ms, ``peak_memory`` in MiB (of the process so far, batch sizes ascending), ``runs``,
        ``size`` on disk in MiB; and where the machine has a meter ``energy`` in J an image, of the whole machine (see `Meter`).

    Raises:
        MachineError: VD4007, VD4008: a measuring process died or hung; VD4001, VD4004, VD4006 as its backend.
        InputError: VD3107, a model does not take a batch size, and whatever its backend refuses.
    """
    load = machine.load()
    rows: list[Row] = []
    variations: dict[tuple[str, int], float] = {}
    batches = sorted(set(config.batches))
    turns = (config.rounds if goal is None else max(config.rounds, goal.most)) * len(subjects)
    fewest = turns
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        opened: dict[str, Opened] = {}
        for subject in subjects:
            options = choose_options(subject, config)
            workers[subject.name] = stack.enter_context(Worker(subject.name, subject.artifact, subject.backend, options))
            opened[subject.name] = workers[subject.name].open()
        for index, batch in enumerate(batches):
            heard = partial(_tell, progress, index * turns, len(batches) * turns)
            heard(0)
            taken = {name: _Times(worker.prepare(batch, config.warmup)) for name, worker in workers.items()}
            _run_rounds(workers, taken, config, heard)
            while goal is not None and len(taken[subjects[0].name].rounds) < goal.most and not _is_known(subjects, taken, goal):
                _run_rounds(workers, taken, msgspec.structs.replace(config, rounds=1), heard)
            heard(turns)
            fewest = min(fewest, len(taken[subjects[0].name].rounds))
            for subject in subjects:
                taken[subject.name].peak_mib = workers[subject.name].peak_mib()
            rows += [_make_row(subject, batch, taken, opened[subject.name]) for subject in subjects]
            variations |= {(name, batch): variation(times.medians) for name, times in taken.items()}
    return Measured(tuple(rows), variations, fewest, load)


def choose_options(subject: Subject, config: BenchConfig) -> OpenConfig:
    """How a subject is opened: with the benchmark's threads, where it names none."""
    given = subject.config or OpenConfig()
    (threads,) = config.thread_counts if len(config.thread_counts) == 1 else (None,)
    return given if given.threads is not None else msgspec.structs.replace(given, threads=threads)


def _run_rounds(workers: dict[str, Worker], taken: dict[str, _Times], config: BenchConfig, heard: Callable[[int], None]) -> None:
    """All rounds at one batch size; each begins with the next subject."""
    names, meter = list(workers), Meter()
    before = len(taken[names[0]].rounds)
    for index in range(before, before + config.rounds):
        start = index % len(names)
        for place, name in enumerate(names[start:] + names[:start]):
            time.sleep(PAUSE_S)
            meter.start()
            taken[name].rounds.append(workers[name].run(config.seconds))
            taken[name].joules.append(meter.stop())
            heard(index * len(names) + place + 1)


def _is_known(subjects: Sequence[Subject], taken: dict[str, _Times], goal: Goal) -> bool:
    """Whether the intervals of all speed-ups are narrow enough."""
    others = [each for each in subjects if each.reference not in (None, each.name)]
    speedups = [_compare(taken[str(each.reference)].medians, taken[each.name].medians, same=False) for each in others]
    return all(
        each.low is not None and each.high is not None and each.high - each.low <= goal.width * each.value for each in speedups
    )


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress("bench", before + done, total)


def _make_row(subject: Subject, batch: int, taken: dict[str, _Times], opened: Opened) -> Row:
    own = taken[subject.name]
    times = [value for part in own.rounds for value in part]
    p50, p90, p99 = percentiles(times, 0.5, 0.9, 0.99)
    mean = float(np.mean(times))
    metrics = {
        "batch": Metric(batch, "count"),
        "p50": Metric(p50, "ms"),
        "p90": Metric(p90, "ms"),
        "p99": Metric(p99, "ms"),
        "mean": Metric(mean, "ms"),
        "throughput": Metric(1000 * batch / mean, "images/s"),
    }
    if subject.reference is not None:
        metrics["speedup"] = _compare(taken[subject.reference].medians, own.medians, subject.reference == subject.name)
    if (joules := own.joules_a_run) is not None:
        metrics["energy"] = Metric(joules / batch, "J/image")
    metrics["load"] = Metric(opened.load_ms, "ms")
    metrics["first_run"] = Metric(own.first_ms, "ms")
    metrics["peak_memory"] = Metric(own.peak_mib, "MiB")
    metrics["runs"] = Metric(len(times), "count")
    metrics["size"] = Metric(_measure_size(subject), "MiB")
    named = {"artifact": subject.artifact.name, **identify(subject.artifact), "reference": subject.reference}
    settings = {**opened.settings, "batch": batch, **named}
    return Row(subject.name, metrics, settings)


def _measure_size(subject: Subject) -> float:
    """MiB on disk of what the engine opens and what comes along; of the original, its weights."""
    artifact = subject.artifact
    if subject.backend == REFERENCE:
        files = [] if artifact.weights is None else [artifact.weights]
    elif artifact.record.files:
        files = [artifact.folder / name for name in artifact.record.files if name != artifact.record.weights]
    else:
        files = list(artifact.folder.glob(f"{artifact.record.entry}*"))
    return sum(path.stat().st_size for path in files) / 2**20


def _compare(reference: list[float], own: list[float], same: bool) -> Metric:
    value = float(np.median(reference) / np.median(own))
    if same or len(own) < FEWEST_ROUNDS:
        return Metric(value, "ratio")
    return Metric(value, "ratio", *median_ratio(reference, own))
