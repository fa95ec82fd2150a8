"""How far a model's inside is from the reference's, point by point: numbers, and what the error looks like.

A quantized file may hold the same numbers in another basis (its residual stream and its heads are turned by known orthogonal
matrices, a factor stands in other weights). The reference then comes in several forms, and the one that fits the first batch
best is kept: a form that is not among them is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.parity import sqnr
from vitdeploy.report import Metric

Array = NDArray[Any]
Forms = Sequence[Sequence[Array]]
"""A reference in parts along the channels, and each part in the forms that it may have: float [n, T, C] each."""


class Point:
    """One point, gathered batch by batch.

    Attributes:
        name: The module's path.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.finite = True
        """Whether all values are, where the reference's are."""
        self.largest = self.largest_reference = self.difference = 0.0
        self._chosen: tuple[int, ...] | None = None
        self._signal = self._noise = self._dot = self._own = 0.0
        self._rows = 0
        self._sums: Array = np.zeros((2, 1))  # of reference and candidate, by channel
        self._tokens: Array = np.zeros(1)  # sum of squared errors, by token

    def add(self, forms: Forms, candidate: Array) -> None:
        """Take in one batch.

        Args:
            forms: Of the reference; the first tokens count where the candidate keeps only those.
            candidate: Float [n, T, C], or [n, C] for one token; of further channels nothing is known, and they are left out.
        """
        got = candidate.reshape(len(candidate), -1, candidate.shape[-1])[..., : _count_channels(forms)].astype(np.float64)
        parts = [[form[:, : got.shape[1]].astype(np.float64) for form in part] for part in forms]
        ends = np.cumsum([0, *(part[0].shape[-1] for part in parts)])
        if self._chosen is None:
            own = np.split(got, ends[1:-1], -1)
            self._chosen = tuple(_choose(part, values) for part, values in zip(parts, own, strict=True))
        expected = np.concatenate([part[form] for part, form in zip(parts, self._chosen, strict=True)], -1)
        self.finite &= bool(np.isfinite(got).all())
        with np.errstate(invalid="ignore", over="ignore"):
            error = got - expected
            self.difference = float(np.maximum(self.difference, np.abs(error).max()))
            self.largest = float(np.maximum(self.largest, np.abs(got).max()))
            self.largest_reference = max(self.largest_reference, float(np.abs(expected).max()))
            self._signal += float((expected**2).sum())
            self._noise += float((error**2).sum())
            self._dot += float((expected * got).sum())
            self._own += float((got**2).sum())
            self._sums = self._sums + np.stack([expected.sum((0, 1)), got.sum((0, 1))])
            self._tokens = self._tokens + (error**2).sum((0, 2))
        self._rows += got.shape[0] * got.shape[1]

    @property
    def sqnr_db(self) -> float:
        """Signal to noise; NaN where something is not finite."""
        return sqnr(self._signal, self._noise)

    @property
    def offset_share(self) -> float:
        """Share of the error that is the same in all tokens and images, in [0, 1]."""
        offsets = self._sums[1] - self._sums[0]
        return float((offsets**2).sum() / self._rows / self._noise) if self._noise else 0.0

    def fit_factor(self) -> tuple[float, float]:
        """The number by which the reference, multiplied, is nearest, and the cosine; both without each channel's mean."""
        dot, signal, own = (
            total - float((first * second).sum()) / self._rows
            for total, first, second in (
                (self._dot, self._sums[0], self._sums[1]),
                (self._signal, self._sums[0], self._sums[0]),
                (self._own, self._sums[1], self._sums[1]),
            )
        )
        return (dot / signal, dot / math.sqrt(signal * own)) if signal > 0 and own > 0 else (math.nan, math.nan)

    @property
    def worst_token(self) -> tuple[int, float]:
        """The token with the largest error, and its share of all of it."""
        place = int(self._tokens.argmax())
        return place, float(self._tokens[place] / self._noise) if self._noise else 0.0

    @property
    def cosine(self) -> float:
        """Of all values as one vector."""
        lengths = math.sqrt(self._signal * self._own)
        return self._dot / lengths if lengths else math.nan

    def metrics(self) -> dict[str, Metric]:
        """``layer_sqnr`` in dB, ``layer_cosine``, ``layer_difference`` (the largest), ``largest`` and ``largest_reference``."""
        return {
            "layer_sqnr": Metric(self.sqnr_db, "dB"),
            "layer_cosine": Metric(self.cosine),
            "layer_difference": Metric(self.difference),
            "largest": Metric(self.largest),
            "largest_reference": Metric(self.largest_reference),
        }


def _count_channels(forms: Forms) -> int:
    return sum(part[0].shape[-1] for part in forms)


def _choose(forms: Sequence[Array], values: Array) -> int:
    """The form that is nearest to the values; the first where none is better than another."""
    with np.errstate(invalid="ignore", over="ignore"):
        errors = [float(((form - values) ** 2).sum()) for form in forms]
    return min(range(len(forms)), key=lambda place: (math.inf if math.isnan(errors[place]) else errors[place], place))
