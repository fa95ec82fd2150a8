"""What makes measured latencies doubtful, in words: a busy machine, too many threads, rounds that differ, too few rounds."""

from __future__ import annotations

from collections.abc import Mapping

from vitdeploy import machine
from vitdeploy.measure.latency import Measured
from vitdeploy.measure.statistics import FEWEST_ROUNDS
from vitdeploy.proof.thresholds import NOISY
from vitdeploy.recipe import BenchConfig

SLOWER = 0.9
"""Share of the clock before below which the one after is told."""


def list_doubts(measured: Measured, config: BenchConfig) -> tuple[str, ...]:
    """A line for each, none where there is nothing to doubt.

    Args:
        measured: What was measured.
        config: How.
    """
    cores, doubts = machine.logical_cores(), []
    if measured.load > cores / 2:
        doubts.append(f"WARNING: the machine was busy: load {measured.load:.1f} on {cores} cores before the first run")
    if (most := max(config.thread_counts, default=0)) > cores:
        doubts.append(f"WARNING: {most} threads were asked for, this process may use {cores} cores")
    doubts += [
        f"WARNING: {name} at batch {batch}: round medians vary by {100 * value:.0f} % (coefficient of variation); "
        "the machine was not quiet"
        for (name, batch), value in measured.variation.items()
        if value > NOISY
    ]
    if measured.rounds < FEWEST_ROUNDS:
        doubts.append(f"{measured.rounds} rounds are too few for intervals; {FEWEST_ROUNDS} or more give them")
    return tuple(doubts)


def list_changes(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[str, ...]:
    """A line for each way in which the machine was another one at the end (`machine.read_conditions`)."""
    changes = []
    if (times := after.get("throttled", 0) - before.get("throttled", 0)) > 0:
        changes.append(f"WARNING: heat slowed the processor {times:.0f} times while it was measured")
    if after.get("frequency_mhz", 0) < SLOWER * before.get("frequency_mhz", 0):
        speeds = f"{before['frequency_mhz']:,.0f} MHz before, {after['frequency_mhz']:,.0f} MHz after"
        changes.append(f"WARNING: the processor's clock fell: {speeds}")
    return tuple(changes)


def list_ties(measured: Measured) -> tuple[str, ...]:
    """A line for each subject that is neither faster nor slower than its reference, as far as the interval shows."""
    ties = []
    for row in measured.rows:
        speedup, reference = row.metrics.get("speedup"), row.settings.get("reference")
        if speedup is None or speedup.low is None or speedup.high is None or reference == row.subject:
            continue
        if speedup.low <= 1 <= speedup.high:
            batch = f"{row.metrics['batch'].value:.0f}"
            ties.append(f"{row.subject} at batch {batch}: no difference from {reference}: the interval of the speed-up holds 1")
    return tuple(ties)
