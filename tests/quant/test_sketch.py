"""A sketch says the same of the same values, however they come, and what it says is true."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitdeploy.errors import InputError
from vitdeploy.quant.histogram import Histogram
from vitdeploy.quant.sketch import Sketch, image_key

SHAPE = (6, 5, 4)  # images, tokens, channels
BATCHES = arrays.arrays(np.float32, SHAPE, elements=st.floats(-1e6, 1e6, width=32))
VALUES = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**100), 2.0**100, width=32))
NAMES = tuple(f"image {place}" for place in range(SHAPE[0]))


def sketched(parts: list[list[int]], values: np.ndarray, *, limit: int = 7) -> Sketch:
    found = Sketch("x", limit=limit)
    for part in parts:
        found.observe(values[part], tuple(NAMES[place] for place in part))
    return found


def content(sketch: Sketch) -> list[bytes]:
    """All that a sketch knows, to the bit."""
    return [
        sketch.values.counts.tobytes(),
        sketch.norms.counts.tobytes(),
        np.array([sketch.values.minimum, sketch.values.maximum, sketch.norms.minimum, sketch.norms.maximum]).tobytes(),
        sketch.extremes.tobytes(),
        sketch.sums.tobytes(),
        sketch.rows.tobytes(),
        np.sort(sketch.keys).tobytes(),
        bytes([sketch.images, sketch.seen]),
    ]


@given(BATCHES, st.permutations(range(6)), st.sets(st.integers(1, 5)))
def test_neither_order_nor_batches_change_a_bit(values, order, cuts):
    edges = [0, *sorted(cuts), 6]
    parts = [list(order[a:b]) for a, b in itertools.pairwise(edges)]
    assert content(sketched(parts, values)) == content(sketched([[place] for place in range(6)], values))


@given(BATCHES, st.integers(0, 6), st.integers(0, 40))
def test_merging_equals_observing_all(values, cut, limit):
    first, second = list(range(cut)), list(range(cut, 6))
    one = sketched([first] if first else [], values, limit=limit)
    other = sketched([second] if second else [], values, limit=limit)
    one.merge(other)
    assert content(one) == content(sketched([list(range(6))], values, limit=limit))


def test_merging_refuses_another_tensor():
    with pytest.raises(InputError, match="VD3109"):
        Sketch("x").merge(Sketch("y"))
    with pytest.raises(InputError, match="VD3109"):
        Sketch("x", limit=3).merge(Sketch("x", limit=4))
    narrow, wide = Sketch("x"), Sketch("x")
    narrow.observe(np.ones((1, 2, 3), np.float32), ("a",))
    wide.observe(np.ones((1, 2, 4), np.float32), ("b",))
    with pytest.raises(InputError, match="VD3109"):
        narrow.merge(wide)


@given(BATCHES)
def test_channels_are_those_of_numpy(values):
    sketch = sketched([[0, 1, 2], [3, 4, 5]], values)
    flat = values.reshape(-1, SHAPE[2])
    np.testing.assert_array_equal(sketch.channel_minimum, flat.min(0))
    np.testing.assert_array_equal(sketch.channel_maximum, flat.max(0))
    exact = flat.astype(np.float64)
    atol = 1e-6 * np.abs(exact).mean(0) + 1e-14
    assert (np.abs(sketch.channel_mean - exact.mean(0)) <= atol).all()
    np.testing.assert_allclose(sketch.channel_rms, np.sqrt((exact**2).mean(0)), rtol=1e-5, atol=1e-6)
    lengths = np.sqrt((exact**2).sum(1))
    np.testing.assert_allclose(
        [sketch.norms.minimum, sketch.norms.maximum], [lengths.min(), lengths.max()], rtol=1e-5, atol=1e-18
    )
    assert sketch.norms.count == len(flat)


def test_huge_values_do_not_overflow():
    values = np.full((1, 2, 3), 3e38, np.float32)
    sketch = Sketch("x")
    sketch.observe(values, ("a",))
    assert sketch.quantile(1) == np.float32(3e38)
    assert np.isfinite(sketch.channel_rms).all()
    assert np.isfinite(sketch.norms.maximum)


@given(BATCHES, st.integers(1, 40))
def test_rows_are_rows_that_were_seen(values, limit):
    sketch = sketched([[0, 1, 2, 3], [4, 5]], values, limit=limit)
    assert sketch.rows.shape == (min(limit, 30), 4)
    seen = {row.tobytes() for row in values.reshape(-1, 4)}
    assert all(row.tobytes() in seen for row in sketch.rows)


def test_rows_are_a_fair_sample():
    """Of 400 images of 20 tokens each, 800 rows are kept: every image and every token has its share."""
    image, token = np.meshgrid(np.arange(400), np.arange(20), indexing="ij")
    values = np.stack([image, token], -1).astype(np.float32)
    sketch = Sketch("x", limit=800)
    for start in range(0, 400, 50):
        sketch.observe(values[start : start + 50], tuple(f"i{place}" for place in range(start, start + 50)))
    rows = sketch.rows
    assert len(np.unique(rows, axis=0)) == 800
    assert np.bincount(rows[:, 1].astype(int), minlength=20).min() >= 20  # 40 are expected, standard deviation 6
    assert 180 < rows[:, 0].mean() < 220


def test_the_same_tokens_are_kept_of_every_tensor():
    values = np.random.default_rng(0).normal(size=(5, 9, 1)).astype(np.float32)
    one, other = Sketch("x", limit=8), Sketch("y", limit=8)
    names = tuple("abcde")
    one.observe(values, names)
    other.observe(np.repeat(values, 3, -1) + 1, names)
    np.testing.assert_array_equal(one.rows + 1, other.rows[:, :1])


def test_without_channels_and_rows_only_values_are_followed():
    sketch = Sketch("probabilities", limit=0, channels=False)
    sketch.observe(np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32), ("a", "b"))
    assert sketch.values.count == 96
    assert sketch.norms.count == 0
    assert sketch.rows.shape == (0, 4)
    assert sketch.channel_mean.shape == sketch.channel_minimum.shape == (0,)


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_tensor_and_image_and_counts_nothing(value, channels):
    values = np.zeros((3, 2, 4), np.float32)
    values[1, 1, 2] = value
    sketch = Sketch("blocks.7.mlp/Gelu_out", channels=channels)
    with pytest.raises(InputError, match=r"VD3110.*blocks\.7\.mlp/Gelu_out.*cat\.jpg.*token 1, channel 2"):
        sketch.observe(values, ("dog.jpg", "cat.jpg", "emu.jpg"))
    assert sketch.images == sketch.values.count == 0


@given(VALUES, st.floats(0, 1))
def test_quantiles_are_off_by_at_most_a_bin(values, share):
    histogram = Histogram()
    histogram.observe(values)
    near = np.sort(values).astype(np.float64)[int(share * (values.size - 1))]
    assert abs(histogram.quantile(share) - near) <= abs(near) / 64 + 2.0**-126
    assert histogram.quantile(0) == values.min()
    assert histogram.quantile(1) == values.max()
    assert histogram.count == values.size


@given(VALUES)
def test_bins_hold_all_values(values):
    histogram = Histogram()
    histogram.observe(values)
    lower, upper, counts = histogram.bins()
    assert counts.sum() == values.size
    assert (lower <= upper).all()
    assert (upper[:-1] <= lower[1:]).all()
    assert histogram.fits(float(values.min()), float(values.max()))
    assert not histogram.fits(float(values.min()), float(values.max()) * 4 + 1)


def quantize(values: np.ndarray, low: float, high: float, levels: int) -> np.ndarray:
    step = (high - low) / (levels - 1)
    return low + step * np.clip(np.rint((values - low) / step), 0, levels - 1)


@settings(max_examples=60)
@given(
    st.integers(0, 1000),
    st.sampled_from(["normal", "laplace", "gelu", "outlier"]),
    st.floats(0.05, 1.2),
    st.sampled_from([4, 16, 128, 256, 4096]),
)
def test_quantization_error_is_that_of_a_quantizer(seed, kind, share, levels):
    generator = np.random.default_rng(seed)
    values = (generator.laplace if kind == "laplace" else generator.normal)(size=40_000).astype(np.float32)
    if kind == "gelu":
        values = (values / (1 + np.exp(-1.702 * values))).astype(np.float32)
    if kind == "outlier":
        values[:20] *= 50
    histogram = Histogram()
    histogram.observe(values)
    low, high = share * float(values.min()), share * float(values.max())
    exact = values.astype(np.float64)
    brute = np.mean((exact - quantize(exact, low, high, levels)) ** 2)
    beyond = np.maximum(np.maximum(low - exact, exact - high), 0)
    width = np.abs(exact) / 64 * (beyond > 0)  # where in its bin a clipped value lies is not known
    slack = np.mean(2 * beyond * width + width**2)
    assert float(histogram.quantization_error(low, high, levels)) == pytest.approx(brute, rel=0.05, abs=slack)


def test_quantization_error_of_many_ranges_at_once():
    values = np.random.default_rng(1).normal(size=10_000).astype(np.float32)
    histogram = Histogram()
    histogram.observe(values)
    high = np.linspace(0.5, 4, 30)
    together = histogram.quantization_error(-high, high, 256)
    alone = [float(histogram.quantization_error(-end, end, 256)) for end in high]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, -0.0, 3.7, -1e-30, 1e20])
def test_a_constant_tensor(value):
    histogram = Histogram()
    histogram.observe(np.full(100, value, np.float32))
    assert histogram.quantile(0.5) == np.float32(value)
    assert histogram.kurtosis() == 1.0
    assert float(histogram.quantization_error(value, value + max(1.0, value), 256)) == pytest.approx(
        0, abs=1e-12 * max(1.0, value**2)
    )


def test_zeros_are_exact():
    """Half of the values are zero: they cost nothing where zero is a level, however coarse the quantizer."""
    values = np.zeros(1000, np.float32)
    values[:500] = 1.0
    values[::4] *= -0.0
    histogram = Histogram()
    histogram.observe(values)
    assert float(histogram.quantization_error(0.0, 1.0, 2)) == 0.0
    assert np.signbit(histogram.minimum) == np.False_


def test_kurtosis_tells_outliers():
    generator = np.random.default_rng(0)
    plain, heavy = Histogram(), Histogram()
    values = generator.normal(size=100_000).astype(np.float32)
    plain.observe(values)
    heavy.observe(np.where(generator.random(100_000) < 1e-3, 50 * values, values).astype(np.float32))
    assert plain.kurtosis() == pytest.approx(3, rel=0.03)
    assert heavy.kurtosis() > 100


def test_nothing_seen():
    histogram = Histogram()
    assert np.isnan(histogram.quantile(0.5))
    assert np.isnan(histogram.kurtosis()) or histogram.kurtosis() == 1.0
    assert np.isnan(histogram.quantization_error(0.0, 1.0, 256))
    empty = Sketch("x")
    other = Sketch("x")
    other.merge(empty)
    assert other.images == 0
    assert other.rows.shape == (0, 0)


def test_any_layout_and_half_precision_are_taken():
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16)
    plain, strided = Sketch("x"), Sketch("x")
    plain.observe(values.astype(np.float32), ("a", "b"))
    strided.observe(np.asfortranarray(values), ("a", "b"))
    assert content(plain) == content(strided)


def test_names_of_any_bytes_have_keys():
    assert image_key("a\udcff.jpg") != image_key("a.jpg")
    assert 0 <= image_key("") < 2**64
