"""Latency of all models of one engine in interleaved rounds, each in a process of its own, as `vitdeploy bench` does it.

Not `vitdeploy.measure.latency` itself, because that compares each artifact with its own reference, and here every ratio to
every other subject is wanted, and OpenVINO's other precisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmarks.figures import Value
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.measure.latency import PAUSE_S
from vitdeploy.measure.statistics import median_ratio, percentiles
from vitdeploy.measure.worker import Worker

BATCHES = (1, 8)
SECONDS, WARMUP = 0.4, 3


@dataclass(frozen=True)
class Subject:
    """A model as an engine opens it."""

    artifact: Artifact
    engine: str
    config: OpenConfig


Rounds = dict[int, list[float]]
"""Batch size to the median time of each round, in ms."""


def measure(subjects: Mapping[str, Subject], rounds: int, say: Callable[[str], None]) -> dict[str, Rounds]:
    """Give every subject its turn in every round, the order rotating."""
    names = list(subjects)
    rounds_ms: dict[str, Rounds] = {name: {batch: [] for batch in BATCHES} for name in names}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(name, subject.artifact, subject.engine, subject.config))
            for name, subject in subjects.items()
        }
        for worker in workers.values():
            worker.open()
        for batch in BATCHES:
            for worker in workers.values():
                worker.prepare(batch, WARMUP)
            for index in range(rounds):
                say(f"batch {batch}, round {index + 1} of {rounds}")
                start = index % len(names)
                for name in names[start:] + names[:start]:
                    time.sleep(PAUSE_S)
                    rounds_ms[name][batch].append(percentiles(workers[name].run(SECONDS), 0.5)[0])
    return rounds_ms


def median(rounds: Rounds, batch: int) -> float:
    """Median over the rounds, in ms."""
    return percentiles(rounds[batch], 0.5)[0]


def compared(own: Rounds, other: Rounds, batch: int) -> Value:
    """Own time over the other's, with the interval over rounds."""
    return Value(median(own, batch) / median(other, batch), *median_ratio(own[batch], other[batch]))
