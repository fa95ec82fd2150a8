"""What counts as the same answer: a class, a label's decision, numbers that move together, a nearest neighbour."""

import math

import numpy as np
import pytest

from vitdeploy.measure import agreement
from vitdeploy.measure.agreement import Neighbours, count_agreement
from vitdeploy.measure.parity import Parity

RANDOM = np.random.default_rng(0)


def read(task, reference, candidate, **more):
    parity = Parity(task, **more)
    for part in np.array_split(np.arange(len(reference)), 3):
        if len(part):
            parity.add(reference[part], candidate[part])
    return parity.metrics()


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("single_label", {"top1_agreement", "divergence"}),
        ("multi_label", {"label_agreement", "probability_difference"}),
        ("regression", {"correlation"}),
        ("embedding", {"neighbour_agreement", "cosine_p01"}),
    ],
)
def test_each_task_has_its_own_numbers_and_no_others(task, names):
    rows = RANDOM.normal(size=(9, 4))
    metrics = read(task, rows, rows)
    common = {"max_abs_difference", "mean_abs_difference", "sqnr", "images"}
    cosines = set() if task == "regression" else {"cosine_mean", "cosine_min"}
    assert set(metrics) == common | cosines | names
    assert metrics[count_agreement(task).name or "correlation"].value == pytest.approx(1)


# Labels


def test_labels_are_compared_one_by_one_at_a_half():
    reference = np.array([[2.0, -1, 3], [0.5, -0.5, 1]])
    candidate = np.array([[1.0, 1, 3], [0.1, -0.1, -1]])  # one of three differs in each
    metrics = read("multi_label", reference, candidate)
    assert metrics["label_agreement"].value == pytest.approx(2 / 3)
    p, q = (1 / (1 + np.exp(-each)) for each in (reference, candidate))
    assert metrics["probability_difference"].value == pytest.approx(np.abs(p - q).mean())
    assert metrics["label_agreement"].low < 0.3  # two images prove little, however many labels they have


def test_probabilities_are_compared_as_they_are():
    metrics = read("multi_label", np.array([[0.6, 0.4]]), np.array([[0.55, 0.6]]), probabilities=True)
    assert metrics["label_agreement"].value == 0.5
    assert metrics["probability_difference"].value == pytest.approx(0.125)


def test_an_image_with_nan_has_no_label_that_agrees():
    reference = np.array([[1.0, 1], [np.nan, 1]])
    assert read("multi_label", reference, reference)["label_agreement"].value == 0.5


# Numbers


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_correlation_is_numpys_whatever_the_batches_and_the_mean(offset):
    a = RANDOM.normal(size=(50, 3)) + offset
    b = 0.5 * a + RANDOM.normal(size=(50, 3))
    expected = np.mean([np.corrcoef(a[:, place], b[:, place])[0, 1] for place in range(3)])
    assert read("regression", a, b)["correlation"].value == pytest.approx(expected, abs=1e-9)


def test_numbers_that_do_not_move_have_no_correlation():
    assert math.isnan(read("regression", np.ones((4, 1)), np.ones((4, 1)))["correlation"].value)
    assert math.isnan(read("regression", np.array([[1.0], [np.nan], [2]]), np.ones((3, 1)))["correlation"].value)
    assert read("regression", np.arange(5.0)[:, None], -np.arange(5.0)[:, None])["correlation"].value == pytest.approx(-1)


# Neighbours


def turn(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


def test_a_neighbour_is_the_other_image_with_the_largest_cosine():
    reference = turn([0.0, 10, 30, 100])  # neighbours: 1, 0, 1, 2
    candidate = 7 * turn([0.0, 25, 30, 100])  # 1, 2, 1, 2: lengths do not count
    assert read("embedding", reference, candidate)["neighbour_agreement"].value == 0.75


def test_a_copy_is_as_good_a_neighbour_as_the_other():
    """Three copies of an image, of other lengths: which is nearest is a matter of rounding, and each of them will do."""
    for vector in RANDOM.normal(size=(10, 64)):
        reference = np.stack([vector, 3.1 * vector, 7.7 * vector, RANDOM.normal(size=64)])
        for other in (1, 2):
            candidate = reference.copy()
            candidate[other] += 1e-4 * RANDOM.normal(size=64)  # no longer told from the first in the same way
            assert read("embedding", reference, candidate)["neighbour_agreement"].value == 1


def test_vectors_that_are_none_never_agree_and_are_nobodys_neighbour():
    rows = turn([0.0, 10, 30, 100])
    rows[1] = np.nan
    rows[3] = 0
    metrics = read("embedding", rows, rows)
    assert metrics["neighbour_agreement"].value == 0.5  # 0 and 2 are each other's


def test_one_image_has_no_neighbour():
    assert "neighbour_agreement" not in read("embedding", np.ones((1, 3)), np.ones((1, 3)))


def test_the_gallery_ends(monkeypatch):
    monkeypatch.setattr(agreement, "GALLERY", 4)
    rows = RANDOM.normal(size=(30, 5))
    counted = count_agreement("embedding")
    for part in np.array_split(rows, 7):
        counted.add(part, part[:, ::-1] if counted._images >= 4 else part, np.ones(len(part), bool))
    assert counted._images == 4
    assert counted.metrics()["neighbour_agreement"].value == 1


def test_one_image_in_a_hundred_is_below_the_first_percentile() -> None:
    """Angles of 0.00 to 1.00: the cosine that 99 of 100 reach is that of the second largest angle."""
    angles = np.linspace(0, 1, 101)
    reference = np.stack([np.ones(101), np.zeros(101)], 1)
    turned = 3 * np.stack([np.cos(angles), np.sin(angles)], 1)
    neighbours = Neighbours()
    for part in (slice(0, 40), slice(40, 101)):
        neighbours.add(reference[part], turned[part], np.ones(len(reference[part]), bool))
    assert neighbours.metrics()["cosine_p01"].value == pytest.approx(math.cos(0.99), abs=1e-6)
    neighbours.add(reference[:1], np.full((1, 2), np.nan), np.zeros(1, bool))
    assert math.isnan(neighbours.metrics()["cosine_p01"].value)
