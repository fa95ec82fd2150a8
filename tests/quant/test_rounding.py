"""Weights to int8: compensated rounding loses less of what the layer computes, on inputs that it was not fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.graph.qdq import E4M3
from vitdeploy.quant import rounding


def layer(seed: int, width: int = 120, columns: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight, and two sets of inputs of one distribution whose channels are correlated; 120 is more than one block."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(width // 3, width)) * generator.uniform(0.2, 3, width)
    seen, other = (generator.normal(size=(2000, width // 3)) @ mixing + 0.1 * generator.normal(size=(2000, width)) for _ in "ab")
    return generator.normal(size=(width, columns)).astype(np.float32), seen, other


def loss(weight, codes, scale, rows) -> float:
    return float(np.square(rows @ (weight - codes * scale)).mean())


@pytest.mark.parametrize("codes", [127, 63])
@pytest.mark.parametrize("seed", range(3))
def test_loses_less_than_plain_rounding_on_other_inputs(seed, codes):
    weight, seen, other = layer(seed)
    scale = rounding.steps(weight, codes=codes)
    plain = rounding.nearest(weight, scale, codes=codes)
    found = rounding.compensate(weight, scale, seen.T @ seen / len(seen), codes=codes)
    assert loss(weight, found, scale, other) < 0.3 * loss(weight, plain, scale, other)
    assert (found.dtype, found.shape) == (np.int8, weight.shape)
    assert np.abs(found).max() <= codes
    assert np.abs(plain).max() == codes


@pytest.mark.parametrize("width", [1, 95, 96, 97, 200])
def test_without_correlation_it_is_plain_rounding(width):
    weight = np.random.default_rng(width).normal(size=(width, 11)).astype(np.float32)
    scale = rounding.steps(weight)
    for moments in (np.eye(width), np.diag(np.linspace(0.1, 5, width))):
        np.testing.assert_array_equal(rounding.compensate(weight, scale, moments), rounding.nearest(weight, scale))


@pytest.mark.parametrize("width", [1, 2, 127, 128, 129, 300])
def test_the_factor_is_that_of_the_inverse(width):
    rows = np.random.default_rng(width).normal(size=(2 * width + 3, width)) * np.logspace(0, 3, width)
    moments = rows.T @ rows
    factor = rounding.factor_inverse(moments)
    np.testing.assert_array_equal(factor, np.triu(factor))
    assert (np.diag(factor) > 0).all()
    np.testing.assert_allclose(factor.T @ factor @ moments, np.eye(width), atol=1e-7)
    np.testing.assert_allclose(factor, np.linalg.cholesky(np.linalg.inv(moments)).T, rtol=1e-6, atol=1e-9 * np.abs(factor).max())


def test_moments_that_are_none_have_no_factor():
    with pytest.raises(np.linalg.LinAlgError):
        rounding.factor_inverse(np.diag([1.0, -1.0, 2.0]))


def test_the_same_every_time_and_nothing_given_is_changed():
    weight, seen, _ = layer(4)
    scale, moments = rounding.steps(weight), seen.T @ seen / len(seen)
    before = weight.copy(), scale.copy(), moments.copy()
    first, second = (rounding.compensate(weight, scale, moments) for _ in "ab")
    np.testing.assert_array_equal(first, second)
    for old, new in zip(before, (weight, scale, moments), strict=True):
        np.testing.assert_array_equal(old, new)


def test_blocks_change_nothing(monkeypatch):
    """Errors reach later weights whether they are in the same block or not."""
    weight, seen, _ = layer(5)
    scale, moments = rounding.steps(weight), seen.T @ seen / len(seen)
    found = rounding.compensate(weight, scale, moments)
    monkeypatch.setattr(rounding, "_BLOCK", len(weight))
    assert (rounding.compensate(weight, scale, moments) != found).mean() < 0.01  # sums in another order


def test_columns_of_zeros():
    weight, seen, _ = layer(6)
    weight[:, [0, 7]] = 0
    scale = rounding.steps(weight)
    assert scale[[0, 7]] == pytest.approx(1 / 127)
    found = rounding.compensate(weight, scale, seen.T @ seen / len(seen))
    assert not found[:, [0, 7]].any()
    assert found[:, 1].any()


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_channels_that_were_always_zero(size):
    """They take no part, keep their nearest codes, and do not drown the others, whatever the others' magnitude."""
    weight, seen, other = layer(7)
    dead = np.arange(0, len(weight), 5)
    for rows in (seen, other):
        rows *= size
        rows[:, dead] = 0
    scale = rounding.steps(weight)
    plain, found = rounding.nearest(weight, scale), rounding.compensate(weight, scale, seen.T @ seen / len(seen))
    np.testing.assert_array_equal(found[dead], plain[dead])
    assert loss(weight, found, scale, other) < 0.3 * loss(weight, plain, scale, other)


def test_fewer_rows_than_channels():
    weight, seen, _ = layer(8)
    scale, rows = rounding.steps(weight), seen[:10]
    found = rounding.compensate(weight, scale, rows.T @ rows / 10)
    assert loss(weight, found, scale, rows) < 0.3 * loss(weight, rounding.nearest(weight, scale), scale, rows)


def test_what_fp32_does_not_factor_fp64_does(monkeypatch):
    """Both give the same codes but for a few ties; where neither has a factor, plain rounding does not make up for anything."""
    weight, seen, _ = layer(10)
    scale, moments, factored = rounding.steps(weight), seen.T @ seen / len(seen), []
    usual, cholesky = rounding.compensate(weight, scale, moments), np.linalg.cholesky

    def only_fp64(matrix):
        factored.append(matrix.dtype)
        if matrix.dtype == np.float32:
            raise np.linalg.LinAlgError
        return cholesky(matrix)

    monkeypatch.setattr(np.linalg, "cholesky", only_fp64)
    assert (rounding.compensate(weight, scale, moments) != usual).mean() < 0.01
    assert factored == [np.float32, np.float64]
    assert (rounding.nearest(weight, scale) != usual).mean() > 0.1


@pytest.mark.parametrize("kind", ["zero", "indefinite", "infinite", "not a number"])
def test_moments_that_are_none_give_plain_rounding(kind):
    weight, _, _ = layer(9)
    size = len(weight)
    moments = {
        "zero": np.zeros((size, size)),
        "indefinite": np.ones((size, size)) - 2 * np.eye(size) + np.diag(np.full(size, 1.5)) - 3 * np.eye(size)[::-1],
        "infinite": np.full((size, size), np.inf),
        "not a number": np.full((size, size), np.nan),
    }[kind]
    scale = rounding.steps(weight)
    with np.errstate(invalid="ignore"):
        found = rounding.compensate(weight, scale, moments)
    np.testing.assert_array_equal(found, rounding.nearest(weight, scale))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 130),
    st.integers(1, 5),
    st.sampled_from((127, 63)),
    st.integers(0, 1000),
    st.floats(-30, 30),
    st.integers(1, 40),
)
def test_codes_are_in_range_and_plain_rounding_is_within_half_a_step(width, columns, codes, seed, power, count):
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(width, columns)) * 2.0**power).astype(np.float32)
    rows = generator.normal(size=(count, width)) * 2.0 ** generator.uniform(-8, 8, width)
    scale = rounding.steps(weight, codes=codes)
    plain, found = (
        rounding.nearest(weight, scale, codes=codes),
        rounding.compensate(weight, scale, rows.T @ rows / count, codes=codes),
    )
    for each in (plain, found):
        assert np.abs(each.astype(int)).max() <= codes
    assert (np.abs(weight - plain * scale.astype(np.float64)) <= 0.5001 * scale).all()


@pytest.mark.parametrize("seed", range(2))
def test_weights_as_8_bit_floats_share_one_step_and_are_compensated_too(seed):
    weight, seen, other = layer(seed)
    scale = rounding.steps(weight, codes=448)
    assert len(np.unique(scale)) == 1
    plain = rounding.nearest(weight, scale, codes=448)
    found = rounding.compensate(weight, scale, seen.T @ seen / len(seen), codes=448)
    assert found.dtype == plain.dtype == E4M3
    codes = [each.astype(np.float32) for each in (found, plain)]
    assert np.abs(codes[1]).max() == 448
    np.testing.assert_allclose(codes[1] * scale, weight, rtol=2**-4 + 1e-5, atol=2**-10 * scale[0] * 1.001)
    assert loss(weight, codes[0], scale, other) < 0.4 * loss(weight, codes[1], scale, other)


@pytest.mark.parametrize("codes", [127, 63])
def test_the_greatest_weight_of_a_column_gets_the_greatest_code(codes):
    weight = np.random.default_rng(10).normal(size=(9, 4)).astype(np.float32)
    scale = rounding.steps(weight, codes=codes)
    np.testing.assert_allclose(scale, np.abs(weight).max(0) / codes, rtol=1e-6)
    np.testing.assert_array_equal(rounding.nearest(weight, scale, codes=codes), np.rint(weight.astype(np.float64) / scale))
    assert codes == 63 or (rounding.steps(weight) == scale).all()
    beyond = rounding.nearest(1.5 * weight, scale, codes=codes).astype(int)
    np.testing.assert_array_equal(np.abs(beyond).max(0), codes)


def test_an_error_goes_to_later_weights_as_the_moments_say():
    """Two inputs, the first larger: what is lost of it is made up for by the least squares of the second."""
    second = np.array([[4.0, 1.0], [1.0, 2.0]])
    weight, scale = np.array([[0.4], [7.1]], np.float32), np.ones(1, np.float32)
    for share in (0.3, 0.4, -0.4):
        weight[0] = 3 + share
        damped = second + 0.01 * 3 * np.eye(2)
        expected = np.rint(7.1 + share * damped[0, 1] / damped[1, 1])
        found = rounding.compensate(weight, scale, second)
        np.testing.assert_array_equal(found[:, 0], [3, expected])
    second[0, 1] = second[1, 0] = 2.7
    weight[:, 0] = 3.4, 7.1
    assert rounding.compensate(weight, scale, second)[1, 0] == np.rint(7.1 + 0.4 * 2.7 / 2.03)


def test_steps_in_half_are_fp16_numbers_also_for_tiny_channels():
    weight = np.array([[1e-6, 0.5, 0.0], [2e-6, -0.3, 0.0]], np.float32)
    scale = rounding.steps(weight, half=True)
    np.testing.assert_array_equal(scale, scale.astype(np.float16))
    assert scale.min() >= 2.0**-14
    assert np.abs(rounding.nearest(weight, scale)).max() == 127
