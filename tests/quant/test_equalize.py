"""How channels share a step: never worse than leaving them alone, and judged on images that set no range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitdeploy.graph.qdq import E4M3
from vitdeploy.quant import equalize
from vitdeploy.quant.equalize import Limits, choose, step
from vitdeploy.quant.sketch import Sketch

FREE = Limits(grid="uint8", factors=True, shifts=True)
FIXED = Limits(grid="uint8", factors=False, shifts=False)


def sketch(rows: np.ndarray) -> Sketch:
    found = Sketch("x", limit=512)
    tokens = 10
    found.observe(rows.astype(np.float32).reshape(-1, tokens, rows.shape[1]), [f"image {i}" for i in range(len(rows) // tokens)])
    return found


def uneven(seed: int = 0, width: int = 64, count: int = 1600, *, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of rows whose channels differ a hundredfold, and lie off zero by ``offset`` of their spread."""
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(np.log(0.03), np.log(3), width))
    middle = offset * size * generator.choice((-1, 1), width)
    first, second = (generator.normal(size=(count // 2, width)) * size + middle for _ in "ab")
    return first.astype(np.float32), second.astype(np.float32)


def weight(width: int = 64, columns: int = 96, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(width, columns)).astype(np.float32)


def output_error(choice, rows, matrix, *, symmetric=False) -> float:
    """Of the layer with int8 weights, ranges from ``rows`` themselves left out: the whole pipeline, computed the plain way."""
    moved = (rows - choice.shift) / choice.factor
    low, high = choice.low * choice.margin, choice.high * choice.margin
    rounded = step(low, high, "int8" if symmetric else "uint8")(moved.astype(np.float32))
    scaled = matrix * choice.factor[:, None]
    steps = np.abs(scaled).max(0) / 127
    codes = np.rint(scaled / steps)
    found = rounded @ (codes * steps) + choice.shift @ matrix
    return float(np.square(found - rows @ matrix).sum() / np.square(rows @ matrix).sum())


class Whole:
    """A choice with the range that its own half gives."""

    def __init__(self, choice, rows):
        self.factor, self.shift, self.margin = choice.factor, choice.shift, choice.margin
        moved = (rows - choice.shift) / choice.factor
        self.low, self.high = float(moved.min()), float(moved.max())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("offset", [0.0, 8.0])
def test_uneven_channels_gain_several_decibels_on_rows_that_were_never_seen(offset, symmetric):
    first, second = uneven(offset=offset)
    _, third = uneven(seed=0, offset=offset, count=3200)
    third = third[800:]
    matrix, limits = weight(), FREE._replace(grid="int8" if symmetric else "uint8")
    found = choose(sketch(first), second, matrix, limits)
    alone = choose(sketch(first), second, matrix, limits._replace(factors=False, shifts=False))
    assert (alone.name, found.name != "identity") == ("identity", True)
    errors = [output_error(Whole(each, first), third, matrix, symmetric=symmetric) for each in (found, alone)]
    assert 10 * np.log10(errors[1] / errors[0]) > 5
    assert found.error < Limits(False, True, True).better * found.identity
    assert found.identity == alone.error
    assert found.token_db > alone.token_db


def test_a_tensor_whose_channels_are_alike_is_left_alone():
    generator = np.random.default_rng(3)
    first, second = (generator.uniform(-1, 1, (800, 64)).astype(np.float32) for _ in "ab")
    matrix = generator.choice((-1.0, 1.0), (64, 96)).astype(np.float32)
    found = choose(sketch(first), second, matrix, FREE)
    assert found.name == "identity"
    assert (found.factor == 1).all()
    assert not found.shift.any()
    assert found.error == found.identity


@pytest.mark.parametrize("better", [0.0, 1e-9])
def test_the_least_gain_decides(better):
    """What is good enough to be taken is set by `better` alone: with an impossible one everything is left alone."""
    first, second = uneven()
    assert choose(sketch(first), second, weight(), FREE).name != "identity"
    found = choose(sketch(first), second, weight(), FREE._replace(better=better))
    assert found.name == "identity"


@pytest.mark.parametrize(
    ("factors", "shifts", "allowed"),
    [(False, False, {"identity"}), (True, False, {str(alpha) for alpha in equalize.ALPHAS}), (False, True, {"middle", "mean"})],
)
def test_only_what_may_be_done_is_done(factors, shifts, allowed):
    first, second = uneven(offset=8.0)
    found = choose(sketch(first), second, weight(), Limits(grid="uint8", factors=factors, shifts=shifts))
    assert found.name in allowed | {"identity"}
    assert factors or (found.factor == 1).all()
    assert shifts or not found.shift.any()
    if factors or shifts:
        assert found.name != "identity"


def test_factors_are_positive_and_of_mean_one():
    first, second = uneven()
    found = choose(sketch(first), second, weight(), FREE)
    assert (found.factor > 0).all()
    assert np.log(found.factor).mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("times", [1.25, 2.0, 5.0])
def test_larger_extremes_in_the_other_half_are_not_clipped(times):
    """Ranges of the first half would cut off what the second shows; the choice must see it, and widen as far as it can."""
    first, second = uneven()
    found = choose(sketch(first), times * second, weight(), FREE)
    assert found.margin == max(equalize.MARGINS)
    alone = choose(sketch(first), times * second, weight(), FIXED)
    assert found.error <= alone.error


def test_rare_extremes_are_clipped_when_that_costs_less():
    """Two rows in 800 reach twice as far as all others: they are given up in part, not all others' resolution."""
    generator = np.random.default_rng(5)
    first, second = (generator.uniform(-1, 1, (800, 64)).astype(np.float32) for _ in "ab")
    first[17, 3], first[18, 9] = 2, -2
    found = choose(sketch(first), second, weight(), FIXED)
    assert found.margin == min(equalize.MARGINS)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-6, 1e6])
def test_constant_tensors(value, symmetric):
    rows = np.full((40, 8), value, np.float32)
    found = choose(sketch(rows), rows, weight(8), FREE._replace(grid="int8" if symmetric else "uint8"))
    assert np.isfinite([found.error, found.identity, found.token_db, *found.factor, *found.shift]).all()
    assert found.token_db > 60, "nothing is lost, so it is no case for the lane"
    assert found.error < 1e-4


def test_tokens_of_zeros_do_not_count_against_a_tensor():
    """After an activation most tokens may be nothing but zeros, which are exact."""
    first, second = uneven()
    for rows in (first, second):
        rows[np.arange(len(rows)) % 4 > 0] = 0
    assert choose(sketch(first), second, weight(), FREE).token_db > 40


def test_a_layer_of_zeros():
    first, second = uneven()
    found = choose(sketch(first), second, np.zeros((64, 5), np.float32), FREE)
    assert found.name == "identity"
    assert np.isfinite([found.error, found.token_db]).all()


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 40, 60), (1.0, -10, 15)])
def test_token_noise_shows_massive_tokens(noise, low, high):
    """One token of ten carries a value of a thousand: all others lose what they are made of. Nothing else does that."""
    generator = np.random.default_rng(6)
    first, second = (generator.normal(size=(800, 64)).astype(np.float32) for _ in "ab")
    for rows in (first, second):
        rows[::10, 5] += 1000 * noise
        rows[::10, 6] -= 1000 * noise
    matrix = weight()
    assert low < choose(sketch(first), second, matrix, FIXED).token_db < high


@pytest.mark.parametrize("grid", ["uint8", "int8", "fp8"])
@pytest.mark.parametrize("free", [False, True])
def test_the_error_is_that_of_the_layers_output(grid, free):
    """Of the whole weight, from input and weights rounded; rows that set no range, no more of them than are looked at."""
    first, second = uneven(offset=3.0)
    matrix = weight(columns=40)
    found = choose(sketch(first), second, matrix, Limits(grid=grid, factors=free, shifts=free))
    rows = second[:256].astype(np.float64)
    extremes = np.stack([first.min(0), first.max(0)])
    low, high = ((each - found.shift) / found.factor for each in extremes)
    low, high = min(0.0, low.min() * found.margin), max(0.0, high.max() * found.margin)
    moved = (rows - found.shift) / found.factor
    scaled = matrix * found.factor[:, None]
    if grid == "fp8":
        size = max(-low, high) / 448
        taken = np.clip(moved / size, -448, 448).astype(np.float32).astype(E4M3).astype(np.float64) * size
        rounded = (np.square(moved).sum(0) @ np.square(scaled).sum(1)) * 2.0**-9 / 3
    else:
        size = (high - low) / 255 if grid == "uint8" else max(-low, high) / 127
        least = np.rint(low / size) if grid == "uint8" else -127
        taken = np.clip(np.rint(moved / size), least, least + 255 if grid == "uint8" else 127) * size
        rounded = np.square(moved).sum() * np.square(np.abs(scaled).max(0) / 127).sum() / 12
    noise = (taken - moved) * found.factor @ matrix
    whole = np.square(rows @ matrix).sum()
    assert found.error == pytest.approx((np.square(noise).sum() + 0.3 * rounded) / whole, rel=0.01)
    ratio = np.median(np.square(rows @ matrix).sum(1) / np.square(noise).sum(1))
    assert found.token_db == pytest.approx(10 * np.log10(ratio), abs=0.05)


def test_wide_weights_are_probed_fairly():
    """A weight of many columns is judged by a sketch of it: the error must be about that of all columns."""
    first, second = uneven()
    matrix = weight(columns=640)
    found = choose(sketch(first), second, matrix, FIXED)
    quantizer = step(float(first.min()) * found.margin, float(first.max()) * found.margin)
    rows = second[:384]
    whole = np.square((quantizer(rows) - rows) @ matrix).sum() / np.square(rows @ matrix).sum()
    steps = np.abs(matrix).max(0) / 127
    rounding = FIXED.weight_share * np.square(rows).sum() * np.square(steps).sum() / 12 / np.square(rows @ matrix).sum()
    assert found.error == pytest.approx(whole + rounding, rel=0.35)


def test_the_same_every_time():
    first, second = uneven(offset=2.0)
    one, two = (choose(sketch(first), second, weight(columns=200), FREE) for _ in "ab")
    assert one.name == two.name
    np.testing.assert_array_equal(one.factor, two.factor)
    assert one.error == two.error


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-1e4, 1e4, width=32),
    st.floats(-1e4, 1e4, width=32),
    st.booleans(),
    st.lists(st.floats(-3e4, 3e4, width=32), min_size=1, max_size=20),
)
def test_a_step_gives_the_nearest_of_its_levels(one, other, symmetric, values):
    """Against all levels laid out one by one."""
    quantizer = step(min(one, other), max(one, other), "int8" if symmetric else "uint8")
    assert (quantizer.low, quantizer.high) == ((-127, 127) if symmetric else (0, 255))
    assert quantizer.low <= quantizer.zero <= quantizer.high
    assert not symmetric or quantizer.zero == 0
    levels = (np.arange(quantizer.low, quantizer.high + 1) - quantizer.zero) * quantizer.scale
    assert levels[0] <= min(0.0, one, other) + 0.51 * quantizer.scale + 1e-12
    assert levels[-1] >= max(0.0, one, other) - 0.51 * quantizer.scale - 1e-12
    array = np.array(values)
    nearest = np.abs(array[:, None] - levels).min(1)
    np.testing.assert_allclose(np.abs(quantizer(array) - array), nearest, rtol=1e-6, atol=1e-6 * quantizer.scale)
    assert quantizer(np.zeros(1))[0] == 0, "zero is always exact: padding and dead channels cost nothing"


def test_a_step_of_nothing_is_an_ordinary_one():
    for symmetric in (False, True):
        quantizer = step(0.0, 0.0, "int8" if symmetric else "uint8")
        assert 1e-3 < quantizer.scale < 1e-2
        assert step(-0.0, 1e-30, "int8" if symmetric else "uint8") == quantizer


@given(st.floats(1e-3, 1e3), st.lists(st.floats(-2e3, 2e3, width=32), min_size=1, max_size=50))
@settings(max_examples=60, deadline=None)
def test_8_bit_floats_are_right_to_a_sixteenth_and_never_overflow(reach, values):
    """E4M3 has eighths of each power of two down to 2^-6 steps; what is beyond the range becomes its end."""
    quantizer = step(-reach, reach / 2, "fp8")
    assert (quantizer.low, quantizer.high, quantizer.zero) == (-448, 448, 0)
    array = np.array(values, np.float32)
    found = quantizer(array)
    assert np.isfinite(found).all()
    inside = np.clip(array, -reach, reach)
    np.testing.assert_allclose(found, inside, rtol=2**-4 + 1e-5, atol=2**-10 * quantizer.scale * 1.001)


def test_the_noise_of_8_bit_floats_follows_the_channel_and_that_of_whole_numbers_does_not():
    generator = np.random.default_rng(0)
    size = np.array([1.0, 0.1, 0.01])
    rows = (generator.normal(size=(4000, 3)) * size).astype(np.float32)
    floating, whole = (step(-4.0, 4.0, grid).noise(rows) for grid in ("fp8", "int8"))
    np.testing.assert_allclose(floating / size**2, equalize.FLOAT_NOISE, rtol=0.15)
    np.testing.assert_allclose(whole, (4 / 127) ** 2 / 12, rtol=1e-5)


def test_a_step_in_half_is_an_fp16_number_with_all_its_bits():
    for high in (1e-9, 1e-3, 0.123, 40.0):
        found = step(-high, high, "int8").in_half().scale
        assert found == float(np.float16(found))
        assert found >= equalize.SMALLEST_HALF
        assert abs(found - high / 127) <= max(high / 127 * 2**-11, equalize.SMALLEST_HALF)


def test_factors_do_not_lessen_what_rounding_weights_to_floats_costs():
    """Its error is a share of each weight: moving a factor from one side of the product to the other changes nothing."""
    first, second = uneven()
    found = choose(sketch(first), second, weight(), FREE._replace(grid="fp8"))
    alone = choose(sketch(first), second, weight(), FREE._replace(grid="fp8", factors=False, shifts=False))
    assert found.error <= alone.error < 2e-3
