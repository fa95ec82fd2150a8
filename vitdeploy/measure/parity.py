"""How far an engine's outputs are from the reference's, gathered batch by batch in memory that does not grow.

A number that is not finite must show: NaN goes through every sum and extreme (NumPy's, for Python's ``max(0.0, nan)`` is
0.0), and an image with a non-finite value never counts as agreeing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.agreement import count_agreement
from vitdeploy.report import Metric
from vitdeploy.words import Task

Array = NDArray[Any]


class Parity:
    """Compares one engine's main output with the reference's.

    Args:
        task: What the output is, as `ModelSpec.task` says: it decides what an equal answer is.
        probabilities: As `ModelSpec.probabilities`.
    """

    def __init__(self, task: Task, *, probabilities: bool = False) -> None:
        self.task = task
        self.answers = count_agreement(task, probabilities=probabilities)
        """What counts equal answers."""
        self.images = 0
        self.not_finite = 0
        """Images with NaN or infinity in either output."""
        self._values = 0
        self._largest = self._total = self._signal = self._noise = self._cosines = 0.0
        self._smallest_cosine = math.inf

    def add(self, reference: Array, candidate: Array) -> None:
        """Take in one batch.

        Args:
            reference: Float [n, ...], n >= 1.
            candidate: Of the same shape and for the same images.

        Raises:
            ValueError: The shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(f"shapes {reference.shape} and {candidate.shape}")
        a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, candidate))  # [n, values]
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, and is reported as such
            gap = np.abs(a - b)
            cosines = _compute_cosines(a, b)
            self._largest = float(np.maximum(self._largest, gap.max()))
            self._smallest_cosine = float(np.minimum(self._smallest_cosine, cosines.min()))
            self._total += float(gap.sum())
            self._signal += float((a * a).sum())
            self._noise += float((gap * gap).sum())
            self._cosines += float(cosines.sum())
        finite = np.asarray((np.isfinite(a) & np.isfinite(b)).all(1))  # [n]
        self.images += len(a)
        self.not_finite += int((~finite).sum())
        self._values += a.size
        self.answers.add(a, b, finite)

    def metrics(self) -> dict[str, Metric]:
        """The numbers so far; NaN before the first batch.

        ``max_abs_difference`` and ``mean_abs_difference`` in the output's own unit; ``cosine_mean`` and ``cosine_min`` over
        images, but for a regression; ``sqnr`` in dB over all values; what `agreement` counts for the task; ``images``.
        """
        nothing = math.nan if not self.images else 0.0
        metrics = {
            "max_abs_difference": Metric(self._largest + nothing),
            "mean_abs_difference": Metric(self._total / self._values if self._values else nothing),
        }
        if self.task != "regression":  # of one number it is its sign
            metrics["cosine_mean"] = Metric(self._cosines / self.images if self.images else nothing)
            metrics["cosine_min"] = Metric(self._smallest_cosine + nothing)
        metrics["sqnr"] = Metric(sqnr(self._signal, self._noise), "dB")
        metrics |= self.answers.metrics()
        metrics["images"] = Metric(self.images, "count")
        return metrics


def sqnr(signal: float, noise: float) -> float:
    """Signal to quantization-noise ratio in dB: 10 log10(signal / noise).

    Args:
        signal: Sum of squares of the reference.
        noise: Sum of squares of the differences.

    Returns:
        Infinity for equal outputs, NaN if either sum is NaN, both are zero or both infinite.

    Source: N. S. Jayant and P. Noll, Digital Coding of Waveforms (1984), section 1.3.
    """
    if noise == 0:
        return math.inf if signal > 0 else math.nan
    ratio = signal / noise
    if math.isnan(ratio):
        return math.nan
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def _compute_cosines(a: Array, b: Array) -> Array:
    """Cosine of the angle between rows, [n]; of two zero rows 1, of one zero row 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)  # [n]
    products = (a * b).sum(1)
    with np.errstate(divide="ignore"):
        cosines = np.clip(products / lengths, -1.0, 1.0)  # rounding can leave 1 + 1e-16; NaN stays NaN
    both = ~a.any(1) & ~b.any(1)
    return np.where(both, 1.0, np.where(lengths == 0, 0.0, cosines))
