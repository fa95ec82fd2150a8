import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.measure.accuracy import Accuracy, rank_labels
from vitdeploy.measure.statistics import mcnemar, paired_difference

LABELS = np.array([0, 1, 2, 3], np.int64)


def rows_for(answers: list[int], classes: int = 12) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[answers]


def test_paired_counts():
    accuracy = Accuracy("torch", ("engine",))
    accuracy.add({"torch": rows_for([0, 1, 2, 0]), "engine": rows_for([0, 0, 0, 3])}, LABELS)
    torch, engine = accuracy.metrics("torch"), accuracy.metrics("engine")
    assert (torch["top1"].value, engine["top1"].value) == (0.75, 0.5)
    assert engine["top1_difference"].value == -25
    assert engine["top1_difference"].low < -25 < engine["top1_difference"].high
    assert engine["mcnemar_p"].value == 1.0  # 1 gained, 2 lost
    assert "top1_difference" not in torch


def test_batches_add_up():
    generator = np.random.default_rng(0)
    logits = {name: generator.normal(size=(50, 12)) for name in ("a", "b")}
    labels = generator.integers(0, 12, 50)
    whole, parts = Accuracy("a", ("b",)), Accuracy("a", ("b",))
    whole.add(logits, labels)
    for start in range(0, 50, 7):
        parts.add({name: rows[start : start + 7] for name, rows in logits.items()}, labels[start : start + 7])
    assert parts.metrics("b") == whole.metrics("b")


def test_top5_from_ten_classes():
    few, many = Accuracy("a", ()), Accuracy("a", ())
    few.add({"a": rows_for([0, 1, 2, 3], 9)}, LABELS)
    many.add({"a": rows_for([0, 1, 2, 3], 10)}, LABELS)
    assert "top5" not in few.metrics("a")
    assert many.metrics("a")["top5"].value == 1


def test_top5_is_five_and_no_more():
    """The right class stands first, fifth, sixth and last of twelve."""
    logits = np.tile(np.arange(12, 0, -1, dtype=np.float32), (4, 1))  # class 0 is best, class 11 worst
    accuracy = Accuracy("a", ())
    accuracy.add({"a": logits}, np.array([0, 4, 5, 11]))
    metrics = accuracy.metrics("a")
    assert (metrics["top1"].value, metrics["top5"].value) == (0.25, 0.5)


def test_the_difference_has_the_sign_of_what_was_lost():
    """300 images, of which the candidate alone gets 10 and the reference alone 60."""
    right, wrong = rows_for([0]), rows_for([1])
    accuracy = Accuracy("a", ("b",))
    for count, reference, candidate in ((10, wrong, right), (60, right, wrong), (200, right, right), (30, wrong, wrong)):
        rows = {"a": np.repeat(reference, count, 0), "b": np.repeat(candidate, count, 0)}
        accuracy.add(rows, np.zeros(count, np.int64))
    metrics = accuracy.metrics("b")
    low, high = paired_difference(10, 60, 300)
    assert metrics["top1_difference"].value == pytest.approx(-100 * 50 / 300)
    assert (metrics["top1_difference"].low, metrics["top1_difference"].high) == pytest.approx((100 * low, 100 * high))
    assert metrics["top1_difference"].high < -10
    assert metrics["mcnemar_p"].value == pytest.approx(mcnemar(10, 60))
    assert (accuracy.metrics("a")["top1"].value, metrics["top1"].value) == (pytest.approx(260 / 300), pytest.approx(210 / 300))


def test_what_is_not_finite_is_wrong():
    logits = rows_for([0, 1, 2, 3])
    logits[0, 5] = math.nan
    logits[1, 1] = math.inf
    logits[2, 2] = math.nan
    accuracy = Accuracy("a", ())
    accuracy.add({"a": logits}, LABELS)
    assert accuracy.metrics("a")["top1"].value == 0.25
    assert accuracy.metrics("a")["top5"].value == 0.25


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=8), st.integers(0, 5))
def test_places_are_those_of_a_stable_sort(rows, label):
    logits = np.array(rows, np.float32)
    labels = np.full(len(logits), label)
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = [list(line).index(label) for line in order]
    assert rank_labels(logits, labels).tolist() == expected


def test_shifted_labels_are_told():
    accuracy = Accuracy("a", ())
    accuracy.add({"a": rows_for([1, 2, 3, 4])}, LABELS)
    assert accuracy.measure_shifts() == {-1: 0.0, 1: 1.0}


def test_nothing_yet_is_nan():
    assert math.isnan(Accuracy("a", ("b",)).metrics("b")["top1"].value)


def test_intervals_are_on_the_metrics_scale():
    accuracy = Accuracy("a", ("b",))
    accuracy.add({"a": rows_for([0, 1, 2, 3] * 100), "b": rows_for([0, 1, 2, 3] * 100)}, np.tile(LABELS, 100))
    difference = accuracy.metrics("b")["top1_difference"]
    assert difference.unit == "points"
    assert (difference.low, difference.high) == pytest.approx((-0.951, 0.951), abs=1e-3)
