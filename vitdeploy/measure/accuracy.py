"""Top-1 and top-5 accuracy of several subjects on the same images, and whether they differ.

Only counts are kept, so a million images cost no memory. An image with a non-finite logit is wrong, whatever its argmax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.confidence import Confidence
from vitdeploy.measure.statistics import mcnemar, paired_difference, wilson
from vitdeploy.report import Metric

Logits = NDArray[Any]
TOP5_FROM = 10
"""Classes from which top-5 is told."""


class Accuracy:
    """Counts right answers, for a reference and any number of candidates.

    Args:
        reference: Name of the subject that the others are compared with.
        candidates: The others' names.
        probabilities: As `ModelSpec.probabilities`.
    """

    def __init__(self, reference: str, candidates: tuple[str, ...], *, probabilities: bool = False) -> None:
        self.reference = reference
        self.candidates = candidates
        self.images = 0
        self.classes = 0
        self._top1 = dict.fromkeys((reference, *candidates), 0)
        self._top5 = dict.fromkeys((reference, *candidates), 0)
        self._confidence = {name: Confidence(probabilities=probabilities) for name in (reference, *candidates)}
        self._gained = dict.fromkeys(candidates, 0)
        self._lost = dict.fromkeys(candidates, 0)
        self._shifted = {-1: 0, 1: 0}

    def add(self, logits: dict[str, Logits], labels: NDArray[np.int64]) -> None:
        """Take in one batch.

        Args:
            logits: For every subject, float [n, classes].
            labels: int64 [n], the right class of each, in [0, classes).
        """
        places = {name: rank_labels(rows, labels) for name, rows in logits.items()}  # [n] each
        right = places[self.reference] == 0
        for name, place in places.items():
            self._top1[name] += int((place == 0).sum())
            self._top5[name] += int((place < 5).sum())
            self._confidence[name].add(logits[name], place == 0)
        for name in self.candidates:
            self._gained[name] += int(((places[name] == 0) & ~right).sum())
            self._lost[name] += int(((places[name] != 0) & right).sum())
        best = logits[self.reference].argmax(1)
        for shift in self._shifted:
            self._shifted[shift] += int((best == labels + shift).sum())
        self.images += len(labels)
        self.classes = logits[self.reference].shape[1]

    def metrics(self, name: str) -> dict[str, Metric]:
        """The numbers of one subject so far.

        ``top1``, and ``top5`` from 10 classes on: shares with Wilson intervals; ``calibration_error`` (see `Confidence`). For a
        candidate also ``top1_difference``, its top-1 minus the reference's in percentage points with the paired score interval,
        and ``mcnemar_p``.
        """
        metrics = {"top1": self._share(self._top1[name])}
        if self.classes >= TOP5_FROM:
            metrics["top5"] = self._share(self._top5[name])
        if name in self.candidates:
            gained, lost = self._gained[name], self._lost[name]
            low, high = paired_difference(gained, lost, self.images)
            points = 100 * (gained - lost) / self.images if self.images else math.nan
            metrics["top1_difference"] = Metric(points, "points", 100 * low, 100 * high)
            metrics["mcnemar_p"] = Metric(mcnemar(gained, lost) if self.images else math.nan)
        return metrics | self._confidence[name].metrics()

    def measure_shifts(self) -> dict[int, float]:
        """Top-1 of the reference if every label were one lower (-1) or one higher (1), as shares: tells an off-by-one."""
        return {shift: right / self.images if self.images else math.nan for shift, right in self._shifted.items()}

    def _share(self, right: int) -> Metric:
        return Metric(right / self.images if self.images else math.nan, "share", *wilson(right, self.images))


def rank_labels(logits: Logits, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each label's place among the classes, best first: 0 is right.

    Of equal logits the lower class comes first, as in argmax. A row with a non-finite logit puts its label last.

    Args:
        logits: Float [n, classes].
        labels: int64 [n], in [0, classes).

    Returns:
        int64 [n].
    """
    own = np.take_along_axis(logits, labels[:, None], 1)  # [n, 1]
    earlier = np.arange(logits.shape[1]) < labels[:, None]  # [n, classes]
    places: NDArray[np.int64] = ((logits > own) | ((logits == own) & earlier)).sum(1, dtype=np.int64)
    places[~np.isfinite(logits).all(1)] = logits.shape[1]
    return places
