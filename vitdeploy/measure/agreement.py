"""Whether two models give the same answers, by what their answers are: classes, labels, numbers, or places among images.

Each kind counts batch by batch. An image with NaN or infinity in either output never agrees.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.probabilities import divergence, sigmoid, to_logits
from vitdeploy.measure.statistics import Z, percentiles, wilson
from vitdeploy.report import Metric
from vitdeploy.words import Task

Array = NDArray[Any]
GALLERY = 2048
"""Images among which a nearest neighbour is looked for: the first ones; so much memory, and no more."""
_TIE = 1e-6
"""Cosines nearer than this are equal: what float32 leaves of two copies of one image."""


class Agreement(Protocol):
    """Counts how often two models give the same answer.

    Attributes:
        name: Of the metric that is a share of equal answers; "" where answers are never simply equal.
    """

    name: str

    def add(self, reference: Array, candidate: Array, finite: Array) -> None:
        """Take in one batch.

        Args:
            reference: float64 [n, K].
            candidate: Likewise.
            finite: bool [n], whether an image's numbers are finite in both.
        """

    def metrics(self) -> dict[str, Metric]:
        """The numbers so far."""


def count_agreement(task: Task, *, probabilities: bool = False) -> Agreement:
    """What counts equal answers of a task; ``probabilities`` as in `ModelSpec`."""
    if task in ("single_label", "multi_label"):
        return (Classes if task == "single_label" else Labels)(probabilities=probabilities)
    return Numbers() if task == "regression" else Neighbours()


class Classes:
    """Whether the largest logit is of the same class: ``top1_agreement``, a share of images with its interval.

    ``divergence``: the mean Kullback-Leibler divergence of the softmax from the reference's, in nats, with the
    normal interval of a mean.

    Args:
        probabilities: Whether outputs are probabilities, not logits.
    """

    name = "top1_agreement"

    def __init__(self, *, probabilities: bool = False) -> None:
        self._probabilities = probabilities
        self._images = self._agreed = 0
        self._apart = self._squares = 0.0

    def add(self, reference: Array, candidate: Array, finite: Array) -> None:
        """See `Agreement.add`."""
        self._images += len(reference)
        self._agreed += int((finite & (reference.argmax(1) == candidate.argmax(1))).sum())
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and so is the mean
            apart = divergence(*(to_logits(rows, probabilities=self._probabilities) for rows in (reference, candidate)))
        self._apart += float(apart.sum())
        self._squares += float((apart * apart).sum())

    def metrics(self) -> dict[str, Metric]:
        """See `Agreement.metrics`."""
        return {self.name: _share(self._agreed, self._images), "divergence": self._average()}

    def _average(self) -> Metric:
        if not self._images:
            return Metric(math.nan, "nats")
        mean = self._apart / self._images
        if self._images < 2:
            return Metric(mean, "nats")
        variance = (self._squares - self._images * mean * mean) / (self._images - 1)
        spread = Z * math.sqrt(max(0.0, variance) / self._images) if math.isfinite(variance) else math.nan
        return Metric(mean, "nats", mean - spread if math.isnan(spread) else max(0.0, mean - spread), mean + spread)


class Labels:
    """Whether every label is on the same side of probability 0.5, and how far probabilities are apart.

    ``label_agreement``: the share of equal decisions over images and labels, which is 1 less the Hamming loss. Labels of one
    image are not independent, so the interval is one over images: a mean of shares varies no more than one of zeros and ones.
    ``probability_difference``: the mean of ``|p - q|``.

    Args:
        probabilities: Whether outputs are probabilities, not logits.

    Source: Tsoumakas and Katakis (2007), Multi-label classification: an overview, IJDWM 3(3), section 3.2 (Hamming loss);
        Bhatia and Davis (2000), American Mathematical Monthly 107:353-357 (a variance is largest at the ends of the range).
    """

    name = "label_agreement"

    def __init__(self, *, probabilities: bool = False) -> None:
        self._probabilities = probabilities
        self._images = self._labels = 0
        self._agreed = self._apart = 0.0

    def add(self, reference: Array, candidate: Array, finite: Array) -> None:
        """See `Agreement.add`."""
        p, q = (reference, candidate) if self._probabilities else (sigmoid(reference), sigmoid(candidate))
        same = ((p > 0.5) == (q > 0.5)) & finite[:, None]  # [n, K]
        self._images += len(p)
        self._labels += p.size
        self._agreed += float(same.mean(1).sum())
        self._apart += float(np.abs(p - q).sum())

    def metrics(self) -> dict[str, Metric]:
        """See `Agreement.metrics`."""
        apart = self._apart / self._labels if self._labels else math.nan
        return {self.name: _share(self._agreed, self._images), "probability_difference": Metric(apart)}


class Numbers:
    """How numbers move together: ``correlation``, Pearson's, over images; the mean over the numbers of an image.

    NaN for fewer than two images, and where a number is the same for all.

    Source: Pearson (1895), Proceedings of the Royal Society 58:240-242; batches are joined as in Chan, Golub and LeVeque (1983),
        The American Statistician 37:242-247, so that large means cost no digits.
    """

    name = ""

    def __init__(self) -> None:
        self._images = 0
        self._means: Array = np.zeros((2, 1))  # of reference and candidate, [2, K]
        self._products: Array = np.zeros((3, 1))  # sums of aa, bb and ab around the means, [3, K]

    def add(self, reference: Array, candidate: Array, finite: Array) -> None:
        """See `Agreement.add`."""
        del finite  # what is not a number makes the correlation none
        rows, count = np.stack([reference, candidate]), len(reference)  # [2, n, K]
        with np.errstate(invalid="ignore"):
            means = rows.mean(1)  # [2, K]
            inside, apart = rows - means[:, None], means - self._means
            weight = self._images * count / (self._images + count)
            self._products = self._products + _multiply(inside).sum(1) + weight * _multiply(apart)
            self._means = self._means + apart * count / (self._images + count)
        self._images += count

    def metrics(self) -> dict[str, Metric]:
        """See `Agreement.metrics`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations = self._products[2] / np.sqrt(self._products[0] * self._products[1])
        return {"correlation": Metric(float(np.clip(correlations, -1.0, 1.0).mean()))}


class Neighbours:
    """Whether an image keeps its nearest neighbour: ``neighbour_agreement``, a share of images with its interval.

    The nearest neighbour of an image is the other one, among the first `GALLERY`, with the largest cosine. An image agrees where
    the neighbour that the candidate's embeddings give it is the reference's, or one as near by the reference's embeddings, as
    copies of one image are. There is no such metric for fewer than two images. ``cosine_p01``: the cosine with the reference's
    embedding that 99 of 100 of these images reach.

    Source: recall@1 as in Jégou, Douze and Schmid (2011), Product quantization for nearest neighbor search, TPAMI 33:117-128,
        section V.B: how often the exact nearest neighbour is the first that is returned.
    """

    name = "neighbour_agreement"

    def __init__(self) -> None:
        self._images = 0
        self._rows: list[tuple[Array, Array]] = []

    def add(self, reference: Array, candidate: Array, finite: Array) -> None:
        """See `Agreement.add`."""
        room = max(0, GALLERY - self._images)
        a, b = (np.where(finite[:, None], rows, np.nan)[:room].astype(np.float32) for rows in (reference, candidate))
        if room:
            self._rows.append((a, b))
        self._images += len(a)

    def metrics(self) -> dict[str, Metric]:
        """See `Agreement.metrics`."""
        if self._images < 2:
            return {}
        expected, got = (_compare_all(np.concatenate(rows)) for rows in zip(*self._rows, strict=True))
        chosen = got.argmax(1)  # [n]
        known = np.isfinite(got.max(1)) & np.isfinite(expected.max(1))
        near = np.take_along_axis(expected, chosen[:, None], 1)[:, 0] >= expected.max(1) - _TIE
        a, b = (np.concatenate(rows).astype(np.float64) for rows in zip(*self._rows, strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        share = _share(int((known & near).sum()), self._images)
        return {self.name: share, "cosine_p01": Metric(percentiles(cosines, 0.01)[0])}


def _multiply(pair: Array) -> Array:
    """aa, bb and ab of a [2, ...]: [3, ...]."""
    return np.stack([pair[0] ** 2, pair[1] ** 2, pair[0] * pair[1]])


def _compare_all(rows: Array) -> Array:
    """Cosine of every two rows, float64 [n, n]; -inf on the diagonal, and where one of them is no vector."""
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = wide / lengths
        cosines: Array = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.where(np.isnan(cosines), -np.inf, cosines)


def _share(agreed: float, images: int) -> Metric:
    return Metric(agreed / images if images else math.nan, "share", *wilson(agreed, images))
