"""How far a quantized model's logits are from the FP32 model's, on the same images in the same engine; all with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.figures import Value
from vitdeploy.measure.accuracy import Accuracy
from vitdeploy.measure.statistics import Interval, percentiles, wilson

RESAMPLES = 5000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """One model against FP32.

    Attributes:
        top1: Share of right answers, with Wilson's interval.
        drop: FP32's top-1 minus its own in percentage points, with the paired score interval.
        agreement: Share of images with the same answer, with Wilson's interval.
        kl: Mean of KL(FP32 || model) over the images, in nats, with a bootstrap interval.
        each: KL of every image, [n].
    """

    top1: Value
    drop: Value
    agreement: Value
    kl: Value
    each: Floats


def distance(reference: NDArray[np.float32], logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Distance:
    """Compare logits [n, classes] with FP32's; labels [n]."""
    accuracy = Accuracy("fp32", ("it",))
    accuracy.add({"fp32": reference, "it": logits}, labels)
    metrics = accuracy.metrics("it")
    top1, change = metrics["top1"], metrics["top1_difference"]
    same = int((reference.argmax(1) == logits.argmax(1)).sum())
    each = divergence(reference, logits)
    return Distance(
        Value(top1.value, top1.low, top1.high),
        Value(0.0 - change.value, 0.0 - change.high, 0.0 - change.low),
        Value(same / len(labels), *wilson(same, len(labels))),
        Value(float(each.mean()), *_resampled(each)),
        each,
    )


def divergence(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Floats:
    """KL(reference || model) of each row's softmax, in nats."""
    ours, theirs = _log_softmax(reference), _log_softmax(logits)
    each: Floats = (np.exp(ours) * (ours - theirs)).sum(1)
    return each


def ratio(top: Floats, bottom: Floats) -> Value:
    """Mean of ``top`` over mean of ``bottom``, of the same images; whole images are drawn for the interval."""
    drawn = _draw(len(top))
    return Value(float(top.mean() / bottom.mean()), *percentiles(top[drawn].mean(1) / bottom[drawn].mean(1), 0.025, 0.975))


def _resampled(each: Floats) -> Interval:
    return Interval(*percentiles(each[_draw(len(each))].mean(1), 0.025, 0.975))


def _draw(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def _log_softmax(logits: NDArray[np.float32]) -> Floats:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(1, keepdims=True)
    logarithms: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logarithms
