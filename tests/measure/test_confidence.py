"""Calibration error: against the definition, bin by bin, and against models whose error is known."""

import math

import numpy as np
import pytest

from vitdeploy.measure.confidence import BINS, Confidence


def define(shares: np.ndarray, right: np.ndarray) -> float:
    """Equations 2 to 5 of Guo et al. (2017) as they stand there: images one by one, ranges (low, high]."""
    total = 0.0
    for number in range(BINS):
        inside = [i for i, share in enumerate(shares) if number / BINS < share <= (number + 1) / BINS]
        if inside:
            accuracy = sum(bool(right[i]) for i in inside) / len(inside)
            confidence = sum(shares[i] for i in inside) / len(inside)
            total += len(inside) / len(shares) * abs(accuracy - confidence)
    return total


def make_logits(best: np.ndarray) -> np.ndarray:
    """Two classes, of which the first has this probability, at least one half."""
    return np.stack([np.log(best), np.log1p(-best)], 1)


def test_is_the_definition_whatever_the_batches() -> None:
    rng = np.random.default_rng(1)
    logits, right = 3 * rng.normal(size=(500, 7)), rng.random(500) < 0.6
    powers = np.exp(logits)
    shares = (powers / powers.sum(1, keepdims=True)).max(1)
    confidence = Confidence()
    for start in range(0, 500, 70):
        confidence.add(logits[start : start + 70], right[start : start + 70])
    metric = confidence.metrics()["calibration_error"]
    assert metric.value == pytest.approx(define(shares, right), rel=1e-12)
    assert metric.value > 0.1
    given = Confidence(probabilities=True)
    given.add(powers / powers.sum(1, keepdims=True), right)
    assert given.metrics()["calibration_error"].value == pytest.approx(metric.value, rel=1e-12)


def test_ranges_that_err_both_ways_do_not_cancel() -> None:
    """Of 0.6 all are right and of 0.9 half: 0.4 too little and 0.4 too much, a mean of 0 and an error of 0.4."""
    confidence = Confidence()
    confidence.add(make_logits(np.array([0.6] * 4 + [0.9] * 4)), np.array([True] * 4 + [True, False] * 2))
    assert confidence.metrics()["calibration_error"].value == pytest.approx(0.4)


def test_a_range_holds_its_upper_end_and_certainty_has_one() -> None:
    confidence = Confidence(probabilities=True)
    confidence.add(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([True, False]))
    assert confidence.metrics()["calibration_error"].value == 0.5
    edge = 3 / BINS
    shares, right = np.array([edge, edge + 1e-9]), np.array([False, True])
    split = Confidence(probabilities=True)
    split.add(np.stack([shares, np.zeros(2)], 1), right)
    assert split.metrics()["calibration_error"].value == pytest.approx(define(shares, right)) == pytest.approx(0.5)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    """A model that says 0.7 and 0.9, as often, and is right 0.2 and 0.3 of the time: an error of 0.55."""
    rng, runs = np.random.default_rng(0), 1000
    held = 0
    for _ in range(runs):
        says = np.where(rng.random(400) < 0.5, 0.7, 0.9)
        right = rng.random(400) < np.where(says == 0.7, 0.2, 0.3)
        confidence = Confidence()
        confidence.add(make_logits(says), right)
        metric = confidence.metrics()["calibration_error"]
        held += metric.low <= 0.55 <= metric.high
    assert 0.935 <= held / runs <= 0.965


def test_what_is_no_number_shows() -> None:
    for logits in ([[math.nan, 0.0]], [[math.inf, 0.0]]):
        confidence = Confidence()
        confidence.add(make_logits(np.array([0.7, 0.8])), np.array([True, True]))
        confidence.add(np.array(logits), np.array([False]))
        assert math.isnan(confidence.metrics()["calibration_error"].value)
    assert math.isnan(Confidence().metrics()["calibration_error"].value)
