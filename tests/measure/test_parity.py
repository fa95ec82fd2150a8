import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.measure.parity import Parity, sqnr


def read_values(parity: Parity) -> dict[str, float]:
    return {name: metric.value for name, metric in parity.metrics().items()}


def test_known_numbers():
    parity = Parity("single_label")
    parity.add(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.5], [0.0, 1.0]]))
    metrics = parity.metrics()
    assert metrics["max_abs_difference"].value == 1.0
    assert metrics["mean_abs_difference"].value == pytest.approx(2.5 / 4)
    assert metrics["cosine_min"].value == 0.0
    assert metrics["cosine_mean"].value == pytest.approx((27 / (5 * math.sqrt(29.25))) / 2)
    assert metrics["sqnr"].value == pytest.approx(10 * math.log10(26 / 2.25))
    assert metrics["sqnr"].unit == "dB"
    assert (metrics["top1_agreement"].value, metrics["images"].value) == (0.5, 2)
    assert metrics["top1_agreement"].low < 0.5 < metrics["top1_agreement"].high


def test_cosines_are_those_of_images():
    """Three images of four values; the last one is turned round, the others differ in length only."""
    reference = np.array([[1.0, 0, 0, 0], [1, 2, 3, 4], [4, 3, 2, 1]])
    parity = Parity("single_label")
    parity.add(reference, reference * [[2], [3], [-1]])
    assert read_values(parity)["cosine_mean"] == pytest.approx(1 / 3)
    assert read_values(parity)["cosine_min"] == pytest.approx(-1)


def test_equal_outputs():
    parity = Parity("single_label")
    rows = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    parity.add(rows, rows.copy())
    metrics = read_values(parity)
    assert metrics["max_abs_difference"] == metrics["mean_abs_difference"] == 0
    assert metrics["cosine_min"] == pytest.approx(1)
    assert metrics["sqnr"] == math.inf
    assert metrics["top1_agreement"] == 1
    assert parity.metrics()["top1_agreement"].low < 0.6  # five images prove little


@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_do_not_matter(count, size):
    generator = np.random.default_rng(count)
    a, b = generator.normal(size=(2, count, 6))
    whole, parts = Parity("single_label"), Parity("single_label")
    whole.add(a, b)
    for start in range(0, count, size):
        parts.add(a[start : start + size], b[start : start + size])
    assert read_values(parts) == pytest.approx(read_values(whole))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1, (0, 1)])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_what_is_not_finite_shows(bad, side, when):
    batches = np.random.default_rng(0).normal(size=(3, 2, 4, 6))  # batch, side, image, class
    batches[when, side, 1, 2] = bad
    parity = Parity("single_label")
    for a, b in batches:
        parity.add(a, np.where(np.isfinite(b), a, b))
    metrics = read_values(parity)
    assert not math.isfinite(metrics["max_abs_difference"])
    assert not math.isfinite(metrics["mean_abs_difference"])
    assert math.isnan(metrics["cosine_min"])
    assert math.isnan(metrics["cosine_mean"])
    assert not metrics["sqnr"] > 0
    assert metrics["top1_agreement"] == pytest.approx(11 / 12)  # that image does not agree, even where both are NaN
    assert parity.not_finite == 1


def test_zero_rows():
    parity = Parity("embedding")
    parity.add(np.zeros((2, 3)), np.array([[0.0, 0, 0], [1, 0, 0]]))
    assert read_values(parity)["cosine_mean"] == 0.5
    assert read_values(parity)["sqnr"] == -math.inf


def test_agreement_needs_classes():
    parity = Parity("regression")
    parity.add(np.ones((2, 3, 4)), np.ones((2, 3, 4)))
    assert "top1_agreement" not in parity.metrics()


def test_nothing_yet_is_nan():
    metrics = Parity("single_label").metrics()
    assert all(math.isnan(metric.value) for name, metric in metrics.items() if name != "images")
    assert metrics["images"].value == 0


def test_shapes_must_match():
    with pytest.raises(ValueError, match="shapes"):
        Parity("single_label").add(np.ones((2, 3)), np.ones((1, 3)))


def test_sqnr_of_a_uniform_quantizer():
    """6.02 dB a bit: a full-scale uniform signal in 2^b steps has SQNR 20 b log10(2) (Jayant and Noll, section 4.2)."""
    signal = np.random.default_rng(0).uniform(-1, 1, 200_000)
    step = 2 / 2**8
    coded = (np.floor(signal / step) + 0.5) * step
    assert sqnr(float((signal**2).sum()), float(((signal - coded) ** 2).sum())) == pytest.approx(48.16, abs=0.05)
