"""A sketch says the same of the same values, however they come, and what it says is true."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitdeploy.errors import InputError
from vitdeploy.quant.sketch import Sketch, image_key

SHAPE = (6, 5, 4)  # images, tokens, channels
BATCHES = arrays.arrays(np.float32, SHAPE, elements=st.floats(-1e6, 1e6, width=32))
NAMES = tuple(f"image {place}" for place in range(SHAPE[0]))


def sketched(parts: list[list[int]], values: np.ndarray, *, limit: int = 7) -> Sketch:
    sketch = Sketch("x", limit=limit)
    for part in parts:
        sketch.observe(values[part], tuple(NAMES[place] for place in part))
    return sketch


def content(sketch: Sketch) -> list[bytes]:
    """All that a sketch knows, to the bit."""
    return [
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


@given(BATCHES)
def test_channels_are_those_of_numpy(values):
    sketch = sketched([[0, 1, 2], [3, 4, 5]], values)
    flat = values.reshape(-1, SHAPE[2])
    np.testing.assert_array_equal(sketch.channel_minimum, flat.min(0))
    np.testing.assert_array_equal(sketch.channel_maximum, flat.max(0))
    exact = flat.astype(np.float64)
    atol = 1e-6 * np.abs(exact).mean(0) + 1e-14
    assert (np.abs(sketch.channel_mean - exact.mean(0)) <= atol).all()


def test_huge_values_do_not_overflow():
    values = np.full((1, 2, 3), 3e38, np.float32)
    sketch = Sketch("x")
    sketch.observe(values, ("a",))
    assert (sketch.channel_maximum == np.float32(3e38)).all()
    assert np.isfinite(sketch.channel_mean).all()


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


def test_without_rows_channels_are_followed_all_the_same():
    sketch = Sketch("x", limit=0)
    values = np.random.default_rng(0).random((2, 3, 4, 4)).astype(np.float32)
    sketch.observe(values, ("a", "b"))
    assert sketch.rows.shape == (0, 4)
    assert (sketch.images, sketch.seen) == (2, 24)
    np.testing.assert_array_equal(sketch.channel_maximum, values.max((0, 1, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_names_tensor_and_image_and_counts_nothing(value):
    values = np.zeros((3, 2, 4), np.float32)
    values[1, 1, 2] = value
    sketch = Sketch("blocks.7.mlp/Gelu_out")
    with pytest.raises(InputError, match=r"VD3110.*blocks\.7\.mlp/Gelu_out.*cat\.jpg.*token 1, channel 2"):
        sketch.observe(values, ("dog.jpg", "cat.jpg", "emu.jpg"))
    assert sketch.images == sketch.seen == sketch.extremes.size == 0


def test_minus_zero_is_zero_whichever_came_first():
    sketch = Sketch("x")
    sketch.observe(np.full((1, 2, 3), -0.0, np.float32), ("a",))
    assert not np.signbit(sketch.extremes).any()


@given(BATCHES, st.floats(0.1, 10), st.floats(-5, 5))
def test_a_transform_is_that_of_the_values(values, factor, shift):
    factors, shifts = factor * np.array([1.0, 2.0, 0.5, 3.0]), shift * np.array([1.0, -1.0, 0.0, 2.0])
    sketch = sketched([[0, 1, 2, 3, 4, 5]], values, limit=40)
    before, mean = sketch.rows.astype(np.float64), sketch.channel_mean
    sketch.transform(factors, shifts)
    scale = np.abs(before).max() + 10
    np.testing.assert_allclose(sketch.rows, (before - shifts) / factors, rtol=1e-6, atol=1e-6 * scale / factors.min())
    np.testing.assert_allclose(sketch.channel_mean, (mean - shifts) / factors, rtol=1e-9, atol=1e-9 * scale / factors.min())
    np.testing.assert_array_equal(sketch.channel_minimum, sketch.rows.min(0))
    np.testing.assert_array_equal(sketch.channel_maximum, sketch.rows.max(0))


def test_any_layout_and_half_precision_are_taken():
    values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16)
    plain, strided = Sketch("x"), Sketch("x")
    plain.observe(values.astype(np.float32), ("a", "b"))
    strided.observe(np.asfortranarray(values), ("a", "b"))
    assert content(plain) == content(strided)


def test_names_of_any_bytes_have_keys():
    assert image_key("a\udcff.jpg") != image_key("a.jpg")
    assert 0 <= image_key("") < 2**64
