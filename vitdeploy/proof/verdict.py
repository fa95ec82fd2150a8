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
from collections.abc import Iterator, Sequence

import msgspec

from vitdeploy.proof.rules import OF_BENCH, RULES, USUAL, Thresholds, read_limit
from vitdeploy.proof.slices import NAMED, judge_slices
from vitdeploy.proof.thresholds import PARITY_DB
from vitdeploy.report import MERGED, Gate, Outcome, Report, Row, Verdict
from vitdeploy.words import Undecided


def judge(reports: Sequence[Report], thresholds: Thresholds | None = None, untold: Sequence[Gate] = ()) -> Verdict:
    """Hold every candidate of these reports against limits.

    Args:
        reports: Of `validate`, `bench` or `build`; a row is a candidate unless it is the reference.
        thresholds: What to ask; None is `USUAL`, each where its number was measured.
        untold: Limits that were decided elsewhere, or can't be: each stands for its threshold.

    Returns:
        The verdict. A limit that was asked for and whose number is in no report fails, and so does a NaN. Rows that compute in
        FP32 are also held to `PARITY_DB`. Where nothing was asked and nothing computes in FP32 it has no gates, and says nothing.
    """
    asked = USUAL if thresholds is None else thresholds
    gates = [*untold, *(_refuse_infinite(part, row) for part, row in _list_candidates(reports) if _is_infinite(row))]
    gates += [_judge_parity(part, row) for part, row in _list_candidates(reports) if _is_same(part, row)]
    for name, limit in asked.named.items():
        metrics = RULES[name].metrics
        candidates = [candidate for report in reports for candidate in _choose_tables(report, metrics)]
        own = [_judge_row(part, row, name, limit, asked.inconclusive) for part, row in candidates]
        if not own and thresholds is not None and name not in {gate.name for gate in untold}:
            why = f"no report has {' or '.join(metrics)}; {_explain_absence(metrics[0])}"
            own = [Gate(about="", subject="", name=name, limit=str(limit), metric=None, outcome="fail", why=why)]
        gates += own
    gates += judge_slices([part for report in reports for part in report.list_all()], asked.slice)
    outcomes = {gate.outcome for gate in gates}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    passed = outcome == "pass" or (outcome == "inconclusive" and asked.inconclusive == "pass")
    return Verdict(outcome=outcome, passed=passed, limits=asked.limits, inconclusive=asked.inconclusive, gates=tuple(gates))


def _list_candidates(reports: Sequence[Report]) -> Iterator[tuple[Report, Row]]:
    for part in (part for report in reports for part in report.list_all()):
        yield from ((part, row) for row in part.rows if row.subject not in (part.reference, row.settings.get("reference")))


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


def _is_same(report: Report, row: Row) -> bool:
    """Whether it must be the reference's function: it computes in FP32, and merges no tokens."""
    return row.settings.get("precision") == "fp32" and "sqnr" in row.metrics and MERGED not in report.settings


def _is_infinite(row: Row) -> bool:
    return "max_abs_difference" in row.metrics and not math.isfinite(row.metrics["max_abs_difference"].value)


def _refuse_infinite(report: Report, row: Row) -> Gate:
    """Outputs that are no numbers pass no gate, whatever the gate asks."""
    about, why = report.about, "an output, here or in the reference, is NaN or infinite"
    metric = row.metrics["max_abs_difference"]
    return Gate(about=about, subject=row.subject, name="finite", limit="", metric=metric, outcome="fail", why=why)


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
    if outcome == "fail" and not OF_BENCH.intersection(rule.metrics):
        why += _name_worst(report, row)
    batch = f" at batch {row.metrics['batch'].value:.0f}" if "batch" in row.metrics else ""
    subject = f"{row.subject}{batch}"
    gate = Gate(about=report.about, subject=subject, name=name, limit=str(given), metric=metric, outcome=outcome, why=why)
    return msgspec.structs.replace(gate, needed=needed)


def _name_worst(report: Report, row: Row) -> str:
    """The images to look at first."""
    worst = () if report.images is None else report.images.worst.get(row.subject, ())
    return f"; farthest from {report.reference}: {', '.join(image.name for image in worst[:NAMED])}" if worst else ""


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
    if metric in ("top1", "calibration_error"):
        return "give `validate` labelled images (--data)"
    if metric == "slowdown":
        return "give the baseline of this machine (--baseline)"
    return "run `vitdeploy bench`" if metric in OF_BENCH else "run `vitdeploy validate`"
