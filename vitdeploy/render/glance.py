"""All variants that several reports are about, side by side: one line a model and engine, whichever command measured it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.backends.table import REFERENCE
from vitdeploy.report import Metric, Report, Row

SHOWN = (
    *("top1", "top1_difference", "top1_agreement", "label_agreement", "neighbour_agreement", "correlation", "sqnr"),
    *("p50", "speedup", "size", "peak_memory"),
)
"""Numbers of a line, in this order."""
WORTH = ("top1", "top1_agreement", "label_agreement", "neighbour_agreement")
"""What a variant is worth, the first that all of them have; higher is better."""


class Variant(NamedTuple):
    """A model in an engine.

    Attributes:
        name: For people, unique.
        metrics: Of all reports, those of `SHOWN`; latency at the smallest batch that was measured, and the first count of
            threads.
    """

    name: str
    metrics: dict[str, Metric]


def list_variants(reports: Sequence[Report]) -> list[Variant]:
    """The variants of these reports and their parts, in the order in which they first appear."""
    rows: dict[tuple[str, str], tuple[str, dict[str, Metric]]] = {}
    batches: dict[tuple[str, str], float] = {}
    for part, row in _list_rows(reports):
        key = _identify(part, row)
        name, metrics = rows.setdefault(key, (_name(part, row), {}))
        batch = row.metrics["batch"].value if "batch" in row.metrics else None
        if batch is None or batch < batches.get(key, math.inf):
            metrics.update({each: row.metrics[each] for each in SHOWN if each in row.metrics})
            batches |= {} if batch is None else {key: batch}
    names = [name for name, _ in rows.values()]
    single = len({key[0] for key in rows if key[1] != REFERENCE}) < 2  # one model: its name tells nothing
    variants: list[Variant] = []
    for (_, engine), (name, metrics) in rows.items():
        short = engine if single and engine else name
        called = short if short == engine or names.count(name) == 1 else f"{short} #{len(variants) + 1}"
        if metrics:
            variants.append(Variant(called, {each: metrics[each] for each in SHOWN if each in metrics}))
    return variants


def choose_worth(variants: Sequence[Variant]) -> str:
    """The number of `WORTH` that two variants with a latency have, or ""."""
    for name in WORTH:
        if sum({name, "p50"} <= variant.metrics.keys() for variant in variants) > 1:
            return name
    return ""


def _list_rows(reports: Sequence[Report]) -> Iterator[tuple[Report, Row]]:
    """Of models: layers and what was recorded elsewhere are none."""
    for report in reports:
        for part in report.list_all():
            if not part.is_recorded:
                yield from ((part, row) for row in part.rows if "backend" in row.settings)


def _identify(report: Report, row: Row) -> tuple[str, str]:
    """Which model, by its contents, in which engine; the original by its name."""
    engine = str(row.settings["backend"])
    told = {**report.settings, **row.settings}
    return str(told.get("artifact" if engine == REFERENCE else "id", "")), engine


def _name(report: Report, row: Row) -> str:
    engine, told = str(row.settings["backend"]), {**report.settings, **row.settings}
    return engine if engine == REFERENCE else f"{Path(str(told.get('path', told.get('artifact', '')))).name} / {engine}"
