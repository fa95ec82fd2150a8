"""Parts of the images, each held to limits of its own: a model that is better on the whole may be worse on one class.

Where a column has many values, each of them is tried, and some of many lose by chance alone. So those that miss the limit are
told by Benjamini and Hochberg's procedure: of those that are called worse, one in twenty is not, on average; and where none is
worse than the limit, the gate fails in at most one run in twenty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.bitmaps import Bits, Part, compare, compare_parts, read_codes, share, unpack
from vitdeploy.measure.statistics import doubt_difference, doubt_share, find_discoveries, mcnemar
from vitdeploy.proof.rules import SliceLimits, read_limit
from vitdeploy.report import Gate, Images, Metric, Outcome, Report

RATE = 0.05
"""Share of false ones among the slices that are called worse."""
NAMED = 5
"""Slices, classes or images that a reason names, the worst first."""


class _Slice(NamedTuple):
    """One slice against one limit.

    Attributes:
        value: Of the column.
        images: How many it has.
        metric: What was measured on it.
        margin: How far the metric is on the good side of the limit.
        doubt: P-value of "it keeps the limit".
        sure: Whether the whole interval keeps it.
    """

    value: str
    images: int
    metric: Metric
    margin: float
    doubt: float
    sure: bool


def find_worse(images: Images, reference: str, subject: str) -> list[Part]:
    """The classes on which a candidate is shown to be worse than its reference, the greatest loss first.

    Of many classes some lose by chance: of those that are told, one in twenty is none, on average (`RATE`).

    Raises:
        ValueError: The images' bits are damaged.
    """
    parts = compare_parts(images, reference, subject)
    doubts = [mcnemar(part.gained, part.lost) / 2 if part.lost > part.gained else 1.0 for part in parts]  # one-sided
    return sorted((parts[place] for place in find_discoveries(doubts, RATE)), key=lambda part: part.difference.value)


def judge_slices(reports: Sequence[Report], limits: Mapping[str, SliceLimits]) -> Iterator[Gate]:
    """A gate for each limit of each slice, and each candidate.

    Args:
        reports: Those with `Report.images` are looked at; where none has them, every limit fails.
        limits: Name of a slice to what it must keep.

    Raises:
        ValueError: The images' bits are damaged.
    """
    tables = [(report, report.images) for report in reports if report.images is not None]
    for name, asked in limits.items():
        for threshold, limit in asked.named.items():
            called = f"slice.{name}.{threshold}"
            gates = [
                _judge(report, images, subject, _Asked(called, threshold, limit, asked))
                for report, images in tables
                for subject in _list_subjects(report, images, threshold)
            ]
            why = "no report has the answers of single images; give `validate` labelled images (--data)"
            yield from gates or [_fail("", "", called, limit, why)]


class _Asked(NamedTuple):
    """A limit, and of which slice."""

    called: str
    threshold: str
    limit: str | float
    slices: SliceLimits


def _list_subjects(report: Report, images: Images, threshold: str) -> list[str]:
    if threshold == "min_agreement":
        return list(images.same)
    with_reference = report.reference in images.right
    candidates = [subject for subject in images.right if subject != report.reference]
    return candidates if with_reference or threshold == "min_top1" else []


def _judge(report: Report, images: Images, subject: str, asked: _Asked) -> Gate:
    about, column = report.about, asked.slices.column
    if column not in images.groups:
        there = ", ".join(sorted(images.groups)) or "none"
        return _fail(about, subject, asked.called, asked.limit, f"the data have no column {column!r}; there is: {there}")
    slices = _measure(report, images, subject, asked)
    if not slices:
        return _fail(about, subject, asked.called, asked.limit, f"no image has {column} {asked.slices.value!r}")
    worse = find_discoveries([each.doubt for each in slices], RATE)
    order = sorted(range(len(slices)), key=lambda place: (place not in worse, slices[place].margin))
    told = "; ".join(_describe(slices[place], column) for place in order[: NAMED if worse else 1])
    unsure = sum(not each.sure for each in slices)
    many = f"{len(slices)} values of {column}" if asked.slices.value is None else "the slice"
    outcome: Outcome = "pass"
    if worse:
        outcome, why = (
            "fail",
            f"{len(worse)} of {many} miss the limit: {told}" if len(slices) > 1 else f"misses the limit: {told}",
        )
    elif unsure and asked.slices.inconclusive == "fail":
        outcome, why = "inconclusive", f"the intervals of {unsure} of {many} reach past the limit; the worst: {told}"
    else:
        why = (
            f"of {many} none is shown to miss the limit; the worst: {told}"
            if len(slices) > 1
            else f"not shown to miss it: {told}"
        )
    worst = slices[order[0]].metric
    return Gate(about=about, subject=subject, name=asked.called, limit=str(asked.limit), metric=worst, outcome=outcome, why=why)


def _measure(report: Report, images: Images, subject: str, asked: _Asked) -> list[_Slice]:
    """Each value's slice; those without images are none."""
    group = images.groups[asked.slices.column]
    codes = read_codes(group, images.count)
    limit = read_limit(asked.threshold, asked.limit)
    bits = unpack((images.same if asked.threshold == "min_agreement" else images.right)[subject], images.count)
    before = unpack(images.right[report.reference], images.count) if asked.threshold == "max_drop" else None
    slices = []
    for number, value in enumerate(group.values):
        part: NDArray[np.bool_] = codes == number
        if (asked.slices.value is None or asked.slices.value == value) and part.any():
            slices.append(_measure_one(value, bits[part], None if before is None else before[part], limit))
    return slices


def _measure_one(value: str, bits: Bits, before: Bits | None, limit: float) -> _Slice:
    if before is None:
        metric, least = share(bits), limit
        doubt = doubt_share(int(bits.sum()), len(bits), limit)
    else:
        metric, least = compare(before, bits), -limit
        doubt = doubt_difference(int((bits & ~before).sum()), int((before & ~bits).sum()), len(bits), -limit / 100)
    return _Slice(value, len(bits), metric, metric.value - least, doubt, metric.low is not None and metric.low >= least)


def _describe(each: _Slice, column: str) -> str:
    scale, unit = (100, " %") if each.metric.unit == "share" else (1, " points")
    assert each.metric.low is not None
    assert each.metric.high is not None
    numbers = [f"{scale * number:.1f}" for number in (each.metric.value, each.metric.low, each.metric.high)]
    return f"{column} {each.value}: {numbers[0]}{unit} [{numbers[1]}, {numbers[2]}] on {each.images:,} images"


def _fail(about: str, subject: str, name: str, limit: str | float, why: str) -> Gate:
    return Gate(about=about, subject=subject, name=name, limit=str(limit), metric=None, outcome="fail", why=why)
