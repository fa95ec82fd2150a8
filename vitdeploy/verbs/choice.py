"""Which of a build's artifacts to deploy: the fastest of those that answer as the original does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import REFERENCE, TABLE
from vitdeploy.proof.thresholds import AGREES, ALIKE, CORRELATES, COSINE, ENOUGH, LOSES
from vitdeploy.render.tables import walk
from vitdeploy.report import Metric, Report

Metrics = Mapping[str, Metric]


class Choice(NamedTuple):
    """The artifact to deploy.

    Attributes:
        folder: Name of its folder.
        engine: What it was the fastest in.
        words: Why, in one or two sentences.
    """

    folder: str
    engine: str
    words: str


class _Candidate(NamedTuple):
    folder: str
    engine: str
    speed: Metrics
    parity: Metrics

    @property
    def ms(self) -> float:
        return self.speed["p50"].value


def choose_best(artifacts: Sequence[Artifact], parts: Sequence[Report]) -> Choice | None:
    """The fastest artifact, at the first batch size that was measured, whose answers are the original's.

    With labels that is an accuracy at most `LOSES` points below; without, what `quantize` asks for: agreement, or
    the correlation of numbers, or the cosine of embeddings.

    Args:
        artifacts: The build's, the export first.
        parts: Reports of `validate` and `bench`; without one of them there is no choice.
    """
    reports = {part.title: part for part in parts}
    if not {"validate", "bench"} <= reports.keys():
        return None
    candidates = sorted(_pair(artifacts, reports["validate"], reports["bench"]), key=lambda each: each.ms)
    best = next((each for each in candidates if _agrees(each.parity)), None)
    if best is None:
        return None
    speedup = best.speed.get("speedup")
    reference = reports["bench"].reference
    slower = "the original" if reference.endswith(REFERENCE) else reference
    itself = reference in (best.engine, f"{best.folder} / {best.engine}")
    times = f", {speedup.value:.2f}x {slower}" if speedup and not itself else ""
    words = f"Best: {best.folder} in {best.engine}: {best.ms:.3g} ms{times}, {_describe(best.parity)}."
    if candidates[0] is not best:
        other = candidates[0]
        words += f" {other.folder} in {other.engine} is faster ({other.ms:.3g} ms) and not as good: {_describe(other.parity)}."
    return Choice(best.folder, best.engine, words)


def _pair(artifacts: Sequence[Artifact], validated: Report, benched: Report) -> Iterator[_Candidate]:
    """Each artifact in each engine that both reports have; a row without a folder is of the first artifact."""
    for number, artifact in enumerate(artifacts):
        for engine in TABLE:
            names = {f"{artifact.folder.name} / {engine}"} | ({engine} if number == 0 else set())
            tables = ((table, row) for table in walk(validated) for row in table.rows)
            parity = [row.metrics for table, row in tables if row.subject in names and row.subject != table.reference]
            speed = [
                row.metrics for row in benched.rows if {row.subject, row.subject.rpartition(", ")[0]} & names
            ]  # ", 2 threads"
            if parity and speed:
                yield _Candidate(artifact.folder.name, engine, speed[0], parity[0])


def _agrees(metrics: Metrics) -> bool:
    if lost := metrics.get("top1_difference"):
        return lost.value >= -LOSES
    if agreement := _find_agreement(metrics):
        few = metrics["images"].value < ENOUGH
        return agreement.value >= ALIKE if few else (agreement.low or 0) >= AGREES
    if correlation := metrics.get("correlation"):
        return correlation.value >= CORRELATES
    return metrics["cosine_mean"].value >= COSINE


def _find_agreement(metrics: Metrics) -> Metric | None:
    """Of decisions: the class, or each label."""
    return metrics.get("top1_agreement") or metrics.get("label_agreement")


def _describe(metrics: Metrics) -> str:
    if lost := metrics.get("top1_difference"):
        return f"top-1 {lost.value:+.2f} points"
    if agreement := _find_agreement(metrics):
        return f"agreement {100 * agreement.value:.1f} % on {metrics['images'].value:,.0f} images"
    if correlation := metrics.get("correlation"):
        return f"correlation {correlation.value:.4f}"
    return f"mean cosine {metrics['cosine_mean'].value:.4f}"
