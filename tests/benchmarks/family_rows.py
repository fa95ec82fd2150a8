"""Cells of the table of architectures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.benchmarks.figures import Families, FamilyRow, FamilyStep

SAME_DB = 100
"""Ratio of signal to noise above which two networks differ by no more than float32 rounds."""


def list_steps(measured: Families) -> list[str]:
    """Names of all steps, in order."""
    return list(dict.fromkeys(step for row in measured.rows for step in row.steps))


def list_counts(measured: Families) -> Iterator[tuple[str, ...]]:
    """How many architectures of each library and exporter came to each result."""
    steps = list_steps(measured)
    for group in dict.fromkeys((row.library, row.exporter) for row in measured.rows):
        rows = [row for row in measured.rows if (row.library, row.exporter) == group]
        yield " ".join(group), str(len(rows)), *(_count(rows, step) for step in steps)


def _count(rows: Sequence[FamilyRow], step: str) -> str:
    counted = Counter(row.steps[step].result for row in rows if step in row.steps)
    return ", ".join(f"{count} {result}" for result, count in counted.most_common())


def list_rows(measured: Families) -> Iterator[tuple[str, ...]]:
    """A line for each architecture and exporter."""
    steps = list_steps(measured)
    for row in measured.rows:
        yield row.name, row.exporter, f"{row.opset}{', batch 1' * row.fixed}", *(_cell(row.steps.get(step)) for step in steps)


def _cell(step: FamilyStep | None) -> str:
    if step is None:
        return ""
    if step.result != "ok":
        return f"{step.result} {step.said.partition(':')[0]}" if step.said.startswith("VD") else step.result
    ratio = "" if step.sqnr is None else "same" if step.sqnr > SAME_DB else f"{step.sqnr:.0f} dB"
    return ratio + ("" if step.share is None else f", {100 * step.share:.0f} %")


def list_failures(measured: Families) -> list[str]:
    """What was said where something broke."""
    return [
        f"{row.name} ({row.exporter}), {name}: {step.said}"
        for row in measured.rows
        for name, step in row.steps.items()
        if step.result in ("failed", "crash", "not exported")
    ]
