"""What a gate may ask: each threshold, its unit and the number that it is about; for all images, and for parts of them."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

import msgspec

from vitdeploy.errors import UsageError
from vitdeploy.words import Undecided

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(%|[A-Za-z]*)\s*")
_WORDS: dict[str, dict[str, float]] = {
    "points": {"pt": 1.0, "points": 1.0},
    "share": {"%": 0.01},
    "ratio": {"x": 1.0, "": 1.0},
    "ms": {"ms": 1.0, "s": 1000.0},
    "MiB": {"MiB": 1.0, "GiB": 1024.0},
    "dB": {"dB": 1.0},
    "nats": {"nats": 1.0, "": 1.0},
    "": {"": 1.0},
}
"""Unit of a metric to how a limit may be written, with its factor."""
_EXAMPLES = {"points": "0.5", "share": "99", "ratio": "1.05", "ms": "2", "MiB": "800", "dB": "25", "nats": "0.01", "": "0.999"}


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
    "max_calibration_error": Rule(("calibration_error",), "share", least=False),
    "max_kl": Rule(("divergence",), "nats", least=False),
    "max_difference": Rule(("max_abs_difference",), "", least=False),
    "min_speedup": Rule(("speedup",), "ratio", least=True),
    "max_latency_ratio": Rule(("speedup",), "ratio", least=False, inverse=True),
    "max_slowdown": Rule(("slowdown",), "ratio", least=False),
    "max_load": Rule(("load",), "ms", least=False),
    "max_memory": Rule(("peak_memory",), "MiB", least=False),
    "max_size": Rule(("size",), "MiB", least=False),
}
"""Threshold to what it is about; the names are the fields of `Thresholds`."""
OF_BENCH = frozenset({"speedup", "slowdown", "load", "peak_memory", "size"})
"""Numbers that `bench` measures; all others are those of `validate`."""


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


SLICED = ("max_drop", "min_top1", "min_agreement")
"""Thresholds that a part of the images can have."""


class SliceLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a part of the images must keep, as ``[slice.NAME]`` of ``gate.toml`` says it.

    Attributes:
        column: ``class``, or a column of the manifest.
        value: The images that have this value there; without it every value is a slice of its own, and all are judged together.
        max_drop: As in `Thresholds`, of a slice.
        min_top1: Likewise.
        min_agreement: Likewise, of the reference's class.
        inconclusive: What a limit comes to that a slice's interval can't tell. Slices are small: by default a slice fails only
            where its images show that it misses the limit.
    """

    column: str = "class"
    value: str | None = None
    max_drop: str | float | None = None
    min_top1: str | float | None = None
    min_agreement: str | float | None = None
    inconclusive: Literal["fail", "pass"] = "pass"

    def __post_init__(self) -> None:
        """Refuse what is not a number with its unit, and a slice of which nothing is asked."""
        if not self.named:
            raise UsageError("VD2010", "a slice asks for nothing", fix=f"set one of {', '.join(SLICED)} in it")
        for name, limit in self.named.items():
            read_limit(name, limit)

    @property
    def named(self) -> dict[str, str | float]:
        """The thresholds that were given."""
        return {name: getattr(self, name) for name in SLICED if getattr(self, name) is not None}


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must keep, as ``gate.toml`` says it. A number that has a unit is a string with that unit.

    Attributes:
        max_drop: Top-1 that may be lost against the reference on the same images: ``"0.5 pt"``.
        min_top1: Top-1 itself: ``"75 %"``.
        min_agreement: Images with the reference's class (or label decisions, or nearest neighbours, by what the model
            gives): ``"99 %"``.
        min_cosine: Cosine of the worst image's outputs with the reference's.
        min_sqnr: Signal to noise of the outputs: ``"25 dB"``.
        max_calibration_error: How far confidence is from being right as often, on average over images: ``"5 %"``.
        max_kl: Mean Kullback-Leibler divergence of the probabilities from the reference's: ``"0.01 nats"``.
        max_difference: Largest difference of any output, in the outputs' unit.
        min_speedup: Reference's latency over the candidate's, measured in the same rounds: ``2.0``.
        max_latency_ratio: Candidate's latency over the reference's: ``1.05``.
        max_slowdown: Latency over that of the baseline, each as a ratio to the reference of its own rounds: ``1.1``. Needs a
            baseline of this machine.
        max_load: Time to load, on the machine of the report: ``"2 s"``.
        max_memory: Peak of the process's memory there: ``"800 MiB"``.
        max_size: What the model takes on disk: ``"90 MiB"``.
        slice: Limits for parts of the images, by a name of one's own.
        inconclusive: What a limit comes to that the interval can't tell.
    """

    max_drop: str | float | None = None
    min_top1: str | float | None = None
    min_agreement: str | float | None = None
    min_cosine: str | float | None = None
    min_sqnr: str | float | None = None
    max_calibration_error: str | float | None = None
    max_kl: str | float | None = None
    max_difference: str | float | None = None
    min_speedup: str | float | None = None
    max_latency_ratio: str | float | None = None
    max_slowdown: str | float | None = None
    max_load: str | float | None = None
    max_memory: str | float | None = None
    max_size: str | float | None = None
    slice: dict[str, SliceLimits] = {}
    inconclusive: Undecided = "fail"

    def __post_init__(self) -> None:
        """Refuse what is not a number with its unit."""
        for name in RULES:
            if getattr(self, name) is not None:
                read_limit(name, getattr(self, name))

    @property
    def named(self) -> dict[str, str | float]:
        """The thresholds that were given for all images."""
        return {name: getattr(self, name) for name in RULES if getattr(self, name) is not None}

    @property
    def limits(self) -> dict[str, str | float]:
        """All that were given, those of slices as ``slice.NAME.max_drop``."""
        slices = {f"slice.{part}.{name}": limit for part, asked in self.slice.items() for name, limit in asked.named.items()}
        return self.named | slices


USUAL = Thresholds(max_drop="0.5 pt", min_agreement="98 %")
"""Where nothing is asked for: each holds where its number was measured."""
