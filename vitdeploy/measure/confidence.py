"""Whether a model is as sure as it is right: of the answers that it gives with probability 0.8, eight of ten should be right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.probabilities import softmax
from vitdeploy.measure.statistics import Z
from vitdeploy.report import Metric

BINS = 15
"""Ranges of confidence, of equal width: as many as the source takes."""


class Confidence:
    """Counts how sure the best class was, and how often it was right, batch by batch.

    ``calibration_error``, a share: the mean, over images, of the distance between accuracy and mean confidence in an image's
    range of confidence. It is a mean over images of (confidence - right), with one sign a range, and its interval is that of
    this mean; in a range where a model is as sure as it is right the estimate is too high, never too low. An image with a
    non-finite logit makes it NaN.

    Args:
        probabilities: As `ModelSpec.probabilities`.

    Source: Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks, ICML, equations 2 to 5.
    """

    def __init__(self, *, probabilities: bool = False) -> None:
        self._probabilities = probabilities
        self._images = 0
        self._apart = np.zeros(BINS)  # sum of right - confidence, by range
        self._squares = 0.0

    def add(self, logits: NDArray[Any], right: NDArray[np.bool_]) -> None:
        """Take in one batch.

        Args:
            logits: Float [n, classes].
            right: bool [n], whether the best class is the label.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, and so is what comes of it
            best = (logits.astype(np.float64) if self._probabilities else softmax(logits)).max(1)  # [n]
        apart = right - best
        edges = np.ceil(np.where(np.isfinite(best), best, 0.0) * BINS) - 1  # a range holds its upper end
        np.add.at(self._apart, np.clip(edges, 0, BINS - 1).astype(np.int64), apart)
        self._squares += float((apart * apart).sum())
        self._images += len(right)

    def metrics(self) -> dict[str, Metric]:
        """The number so far; NaN before the first batch."""
        if not self._images:
            return {"calibration_error": Metric(math.nan, "share")}
        error = float(np.abs(self._apart).sum()) / self._images
        if self._images < 2 or math.isnan(error):
            return {"calibration_error": Metric(error, "share")}
        variance = (self._squares - self._images * error * error) / (self._images - 1)
        spread = Z * math.sqrt(max(0.0, variance) / self._images)
        return {"calibration_error": Metric(error, "share", max(0.0, error - spread), min(1.0, error + spread))}
