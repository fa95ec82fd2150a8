"""The images on which a model is farthest from its reference, with what both said: what a person looks at first.

A few are kept, whatever the number of images; those that are as near as rounding leaves them are none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.probabilities import compute_probabilities, divergence, to_logits
from vitdeploy.report import Answer, Metric, WorstImage
from vitdeploy.spec import ModelSpec

Array = NDArray[Any]
MOST = 12
"""Images that are kept."""
NEAR = 1e-4
"""Distance from which an image is told: of a divergence (nats) it leaves 0.7 % of probability at most, of an angle 0.8 degrees.
Of numbers it is a share of the image's largest one.

Source: Cover and Thomas (2006), Elements of Information Theory, lemma 11.6.1 (Pinsker's inequality)."""


class _Seen(NamedTuple):
    """Both models on one batch.

    Attributes:
        apart: How far they are apart, [n].
        told: Whether that is more than rounding, bool [n].
        sides: Of reference and candidate the number of the class, label or output that tells it, int64 [n], and what the model
            says of it, float64 [n].
    """

    apart: Array
    told: NDArray[np.bool_]
    sides: tuple[tuple[Array, Array], ...] = ()


class Worst:
    """Keeps the worst images of one candidate.

    The distance of an image is the Kullback-Leibler divergence of its classes, the mean difference of its labels' probabilities,
    1 less the cosine of its embeddings, or the largest difference of its numbers, by the model's task. NaN is the farthest.

    Args:
        spec: The candidate's: task, labels, whether it gives probabilities.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._kept: list[WorstImage] = []

    def add(self, names: Sequence[str], reference: Array, candidate: Array, labels: NDArray[np.int64] | None = None) -> None:
        """Take in one batch.

        Args:
            names: One an image.
            reference: Float [n, K].
            candidate: Likewise.
            labels: int64 [n], the right class of each, or None.
        """
        a, b = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (reference, candidate))
        unit = "" if self._spec.task == "regression" else "share"
        with np.errstate(all="ignore"):  # what is not finite is far away, below
            seen = self._compare(a, b)
        apart = np.where(np.isfinite(seen.apart), seen.apart, math.inf)
        places = np.flatnonzero(seen.told | ~np.isfinite(seen.apart))
        places = places[np.argsort(-apart[places], kind="stable")[:MOST]]
        for place in places.tolist():
            label = None if labels is None else self._name(int(labels[place]))
            known = math.isfinite(apart[place])
            answers = [
                Answer(self._name(int(side[0][place])), Metric(float(side[1][place]), unit)) for side in seen.sides if known
            ]
            self._kept.append(WorstImage(names[place], float(apart[place]), label, *answers))
        self._kept = sorted(self._kept, key=lambda image: (-image.apart, image.name))[:MOST]

    def finish(self) -> tuple[WorstImage, ...]:
        """The farthest first."""
        return tuple(self._kept)

    def _compare(self, a: Array, b: Array) -> _Seen:
        """Both models' outputs, float64 [n, K]."""
        spec, every = self._spec, np.arange(len(a))
        if spec.task == "embedding":
            apart = 1 - (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
            return _Seen(apart, apart > NEAR)
        if spec.task == "single_label":
            apart = divergence(*(to_logits(rows, probabilities=spec.probabilities) for rows in (a, b)))
            best = a.argmax(1), b.argmax(1)
            shares = (compute_probabilities(rows, spec)[every, place] for rows, place in zip((a, b), best, strict=True))
            return _Seen(apart, (apart > NEAR) | (best[0] != best[1]), tuple(zip(best, shares, strict=True)))
        p, q = (a, b) if spec.task == "regression" else (compute_probabilities(rows, spec) for rows in (a, b))
        gap = np.abs(p - q)
        widest = gap.argmax(1)
        sides = (widest, p[every, widest]), (widest, q[every, widest])
        if spec.task == "regression":
            return _Seen(gap.max(1), gap.max(1) > NEAR * np.abs(p).max(1), sides)
        return _Seen(gap.mean(1), gap.mean(1) > NEAR, sides)

    def _name(self, place: int) -> str:
        return self._spec.labels[place] if self._spec.labels else str(place)
