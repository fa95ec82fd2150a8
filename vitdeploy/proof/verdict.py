"""The gate: are the numbers good enough, decided by their intervals and never by their luck.

A limit is met when the whole 95 % interval of a number lies on its good side, and missed when all of it lies on the bad side; in
between the data can't tell. So a model that is exactly at its limit is failed in at most one run in forty, and passed in at most
one in forty (`tests/benchmarks/gate_power.py` counts both), and a gate that can't tell says how many images would.

A validation judges by the estimate where the interval can't tell (``inconclusive = "estimate"``): on a few hundred images no
interval is inside half a point, and a model that lost nothing on them has not failed. The report says so, and how many images
would tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from vitdeploy.errors import UsageError
from vitdeploy.proof.thresholds import PARITY_DB
from vitdeploy.report import Gate, Outcome, Report, Row, Verdict
from vitdeploy.words import Undecided

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[A-Za-z]*)\s*")
_WORDS: dict[str, dict[str, float]] = {
    "points": {"pt": 1.0, "points": 1.0},
    "share": {"%": 0.01},
    "ratio": {"x": 1.0, "": 1.0},
    "ms": {"ms": 1.0, "s": 1000.0},
    "MiB": {"MiB": 1.0, "GiB": 1024.0},
    "dB": {"dB": 1.0},
    "": {"": 1.0},
}
"""Unit of a metric to how a limit may be written, with its factor."""
_EXAMPLES = {"points": "0.5", "share": "99", "ratio": "1.05", "ms": "2", "MiB": "800", "dB": "25", "": "0.999"}


class Rule(NamedTuple):
    """What one threshold is about.

    Attributes:
        metrics: The number of a report's row: the first of these that it has, by what its model gives.
        unit: Of the metric.
        least: Whether the limit is the least that passes; else it is the most.
        negative: Whether the limit is told without the minus sign that the metric has.
        inverse: Whether the limit is on one over the metric.
    """

    metrics: tuple[str, ...]
    unit: str
    least: bool
    negative: bool = False
    inverse: bool = False


RULES: dict[str, Rule] = {
    "max_drop": Rule(("top1_difference",), "points", least=True, negative=True),
    "min_top1": Rule(("top1",), "share", least=True),
    "min_agreement": Rule(("top1_agreement", "label_agreement", "neighbour_agreement"), "share", least=True),
    "min_cosine": Rule(("cosine_min",), "", least=True),
    "min_sqnr": Rule(("sqnr",), "dB", least=True),
    "max_difference": Rule(("max_abs_difference",), "", least=False),
    "min_speedup": Rule(("speedup",), "ratio", least=True),
    "max_latency_ratio": Rule(("speedup",), "ratio", least=False, inverse=True),
    "max_load": Rule(("load",), "ms", least=False),
    "max_memory": Rule(("peak_memory",), "MiB", least=False),
}
"""Threshold to what it is about; the names are the fields of `Thresholds`."""


def read_limit(name: str, given: str | float) -> float:
    """A threshold in the unit of its metric.

    Args:
        name: Of the threshold.
        given: ``"0.5 pt"``, ``"99 %"``, ``1.05``.

    Raises:
        UsageError: VD2003, not a number with its unit.
    """
    unit = RULES[name].unit
    number = _QUANTITY.fullmatch(given) if isinstance(given, str) else None
    written = number[2] if number else ""
    value = float(number[1]) if number else float("nan") if isinstance(given, str) else float(given)
    if written not in _WORDS[unit] or not math.isfinite(value) or (RULES[name].negative and value < 0):
        examples = " or ".join(f"'{_EXAMPLES[unit]} {word}'" if word else _EXAMPLES[unit] for word in _WORDS[unit])
        raise UsageError("VD2003", f"{name} is {given!r}", fix=f"write it as {examples}")
    return value * _WORDS[unit][written]


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must keep, as ``gate.toml`` says it. A number that has a unit is a string with that unit.

    Attributes:
        max_drop: Top-1 that may be lost against the reference on the same images: ``"0.5 pt"``.
        min_top1: Top-1 itself: ``"75 %"``.
        min_agreement: Images with the reference's class (or label decisions, or nearest neighbours, by what the model
            gives): ``"99 %"``.
        min_cosine: Cosine of the worst image's outputs with the reference's.
        min_sqnr: Signal to noise of the outputs: ``"25 dB"``.
        max_difference: Largest difference of any output, in the outputs' unit.
        min_speedup: Reference's latency over the candidate's, measured in the same rounds: ``2.0``.
        max_latency_ratio: Candidate's latency over the reference's: ``1.05``.
        max_load: Time to load, on the machine of the report: ``"2 s"``.
        max_memory: Peak of the process's memory there: ``"800 MiB"``.
        inconclusive: What a limit comes to that the interval can't tell.
    """

    max_drop: str | float | None = None
    min_top1: str | float | None = None
    min_agreement: str | float | None = None
    min_cosine: str | float | None = None
    min_sqnr: str | float | None = None
    max_difference: str | float | None = None
    min_speedup: str | float | None = None
    max_latency_ratio: str | float | None = None
    max_load: str | float | None = None
    max_memory: str | float | None = None
    inconclusive: Undecided = "fail"

    def __post_init__(self) -> None:
        """Refuse what is not a number with its unit."""
        for name in RULES:
            if getattr(self, name) is not None:
                read_limit(name, getattr(self, name))

    @property
    def named(self) -> dict[str, str | float]:
        """The thresholds that were given."""
        return {name: getattr(self, name) for name in RULES if getattr(self, name) is not None}


USUAL = Thresholds(max_drop="0.5 pt", min_agreement="98 %")
"""Where nothing is asked for: each holds where its number was measured."""


def judge(reports: Sequence[Report], thresholds: Thresholds | None = None) -> Verdict:
    """Hold every candidate of these reports against limits.

    Args:
        reports: Of `validate`, `bench` or `build`; a row is a candidate unless it is the reference.
        thresholds: What to ask; None is `USUAL`, each where its number was measured.

    Returns:
        The verdict. A limit that was asked for and whose number is in no report fails, and so does a NaN. Rows that compute in
        FP32 are also held to `PARITY_DB`. Where nothing was asked and nothing computes in FP32 it has no gates, and says nothing.
    """
    asked = USUAL if thresholds is None else thresholds
    gates = [_judge_parity(part, row) for part, row in _list_candidates(reports) if _computes_in_fp32(row)]
    for name, limit in asked.named.items():
        metrics = RULES[name].metrics
        candidates = [candidate for report in reports for candidate in _choose_tables(report, metrics)]
        own = [_judge_row(part, row, name, limit, asked.inconclusive) for part, row in candidates]
        if not own and thresholds is not None:
            why = f"no report has {' or '.join(metrics)}; {_explain_absence(metrics[0])}"
            own = [Gate(about="", subject="", name=name, limit=str(limit), metric=None, outcome="fail", why=why)]
        gates += own
    outcomes = {gate.outcome for gate in gates}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    passed = outcome == "pass" or (outcome == "inconclusive" and asked.inconclusive == "pass")
    return Verdict(outcome=outcome, passed=passed, limits=asked.named, inconclusive=asked.inconclusive, gates=tuple(gates))


def _list_candidates(reports: Sequence[Report]) -> Iterator[tuple[Report, Row]]:
    for report in reports:
        yield from ((report, row) for row in report.rows if row.subject != report.reference)
        yield from _list_candidates(report.parts)


def _choose_tables(report: Report, metrics: tuple[str, ...]) -> list[tuple[Report, Row]]:
    """The rows with one of some numbers; of a subject in several tables of one validation that of the most images."""
    if not report.rows:
        return [candidate for part in report.parts for candidate in _choose_tables(part, metrics)]
    chosen: dict[tuple[str, float], tuple[Report, Row]] = {}
    for part, row in _list_candidates([report]):
        key = (row.subject, row.metrics["batch"].value if "batch" in row.metrics else 0.0)
        if row.metrics.keys().isdisjoint(metrics):
            continue
        if key not in chosen or _count_trials(part, row) > _count_trials(*chosen[key]):
            chosen[key] = part, row
    return list(chosen.values())


def _computes_in_fp32(row: Row) -> bool:
    return row.settings.get("precision") == "fp32" and "sqnr" in row.metrics


def _judge_parity(report: Report, row: Row) -> Gate:
    """A model that was neither quantized nor converted must be the reference's function, whatever else is asked."""
    gate = _judge_row(report, row, "min_sqnr", f"{PARITY_DB:g} dB")
    if (
        row.metrics["max_abs_difference"].value == 0
    ):  # of outputs that are 0 themselves, as an untrained head's, there is no ratio
        gate = msgspec.structs.replace(gate, outcome="pass")
    why = "an FP32 file and its reference are the same function" if gate.outcome == "pass" else f"is not the same: {gate.why}"
    return msgspec.structs.replace(gate, name="parity", why=why)


def _judge_row(report: Report, row: Row, name: str, given: str | float, policy: Undecided = "fail") -> Gate:
    rule, limit = RULES[name], read_limit(name, given)
    metric = next(row.metrics[metric] for metric in rule.metrics if metric in row.metrics)
    sign = 1.0 if rule.least else -1.0  # so that more is better below
    numbers = [metric.value, *(end for end in (metric.low, metric.high) if end is not None)]
    estimate, *ends = (sign * (1 / number if rule.inverse and number else number) for number in numbers)
    least = sign * (-limit if rule.negative else limit)
    outcome, why, needed = _decide(report, row, sorted([estimate, *ends]), estimate, least)
    if outcome == "inconclusive" and policy == "estimate":
        outcome = "pass" if estimate >= least else "fail"
        why = (
            f"the estimate keeps it, {why}"
            if outcome == "pass"
            else "the estimate misses the limit, though the interval holds it"
        )
    about = str(report.settings.get("artifact", report.title))
    batch = f" at batch {row.metrics['batch'].value:.0f}" if "batch" in row.metrics else ""
    subject = f"{row.subject}{batch}"
    gate = Gate(about=about, subject=subject, name=name, limit=str(given), metric=metric, outcome=outcome, why=why)
    return msgspec.structs.replace(gate, needed=needed)


def _decide(report: Report, row: Row, ends: list[float], estimate: float, least: float) -> tuple[Outcome, str, int | None]:
    """What an interval and its estimate come to, where at least ``least`` is asked."""
    worst, best = ends[0], ends[-1]
    all_of_it = "" if worst == best else "the whole interval "
    if any(map(math.isnan, ends)):
        return "fail", "is not a number", None
    if worst >= least:
        return "pass", f"{all_of_it}keeps the limit", None
    if best < least:
        return "fail", f"{all_of_it}misses the limit", None
    what = "rounds" if "rounds" in report.settings else "images"
    if estimate <= least:
        return "inconclusive", f"the interval holds the limit, the estimate misses it: more {what} would most likely fail", None
    needed = math.ceil(_count_trials(report, row) * ((estimate - worst) / (estimate - least)) ** 2)
    would = f": about {needed:,} {what} would decide at this estimate" if needed else ""
    return "inconclusive", f"the interval reaches past the limit{would}", needed or None


def _count_trials(report: Report, row: Row) -> int:
    """Images or rounds; an interval narrows as their square root."""
    if "images" in row.metrics:
        return int(row.metrics["images"].value)
    count = report.settings.get("images", report.settings.get("rounds", 0))
    return count if isinstance(count, int) else 0


def _explain_absence(metric: str) -> str:
    if metric == "top1_difference":
        return "give `validate` labelled images (--data) and, where the original can't be run, something beside it (--against)"
    if metric == "top1":
        return "give `validate` labelled images (--data)"
    return "run `vitdeploy bench`" if metric in ("speedup", "load", "peak_memory") else "run `vitdeploy validate`"
