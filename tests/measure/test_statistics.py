import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from vitdeploy.measure import statistics as s

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
pairs = st.integers(1, 2000).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda b: st.tuples(st.just(b), st.integers(0, n - b), st.just(n)))
)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, count, low, high):
    """Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3."""
    assert s.wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(counts)
def test_wilson_holds_the_share_and_stays_inside(case):
    successes, count = case
    low, high = s.wilson(successes, count)
    assert 0 <= low <= successes / count <= high <= 1
    assert low < high
    assert s.wilson(count - successes, count) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_of_nothing_is_everything():
    assert s.wilson(0, 0) == (0, 1)


def test_wilson_as_scipy():
    for successes, count in ((3, 10), (990, 1000), (0, 7), (7, 7)):
        expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
        assert s.wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_tango_as_published():
    """Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875: airway reactivity, -0.517 to -0.026."""
    assert s.paired_difference(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("count", [1, 10, 1000, 1_000_000])
def test_tango_without_discordance_is_closed_form(count):
    z2 = 1.959963984540054**2
    end = z2 / (count + z2)
    assert s.paired_difference(0, 0, count) == pytest.approx((-end, end), rel=1e-9)


@given(pairs)
def test_tango_holds_the_difference_and_is_symmetric(case):
    gained, lost, count = case
    low, high = s.paired_difference(gained, lost, count)
    assert -1 <= low <= (gained - lost) / count <= high <= 1
    assert low < high
    assert s.paired_difference(lost, gained, count) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "count"), [(1, 7, 21), (6, 16, 161), (3, 0, 40), (30, 45, 5000)])
def test_tango_ends_are_where_the_score_test_turns(gained, lost, count):
    """The definition, solved another way: the constrained likelihood is maximised numerically."""

    def statistic(difference: float) -> float:
        def loss(only_reference: float) -> float:  # -log likelihood given the difference
            shares = (only_reference + difference, only_reference, 1 - 2 * only_reference - difference)
            seen = (gained, lost, count - gained - lost)
            return -sum(k * math.log(max(share, 1e-300)) for k, share in zip(seen, shares, strict=True) if k)

        bounds = (max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
        p = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
        return (gained - lost - count * difference) / math.sqrt(count * (2 * p + difference * (1 - difference)))

    low, high = s.paired_difference(gained, lost, count)
    assert statistic(low) == pytest.approx(1.96, abs=2e-3)
    assert statistic(high) == pytest.approx(-1.96, abs=2e-3)


def test_tango_covers():
    """About 95 of 100 intervals hold the true difference, also when almost all images agree."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(500, [0.012, 0.02, 0.968], size=400)
    held = [low <= -0.008 <= high for low, high in (s.paired_difference(int(b), int(c), 500) for b, c, _ in drawn)]
    assert 0.92 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("gained", "lost", "p"), [(1, 7, 0.0703), (6, 16, 0.0525), (0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625)])
def test_mcnemar_values(gained, lost, p):
    assert s.mcnemar(gained, lost) == pytest.approx(p, abs=5e-5)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert s.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert s.mcnemar(gained, lost) == s.mcnemar(lost, gained)


def test_mcnemar_of_many_images():
    assert 0 <= s.mcnemar(4000, 6000) < 1e-80
    assert s.mcnemar(5000, 5001) == 1.0


def test_bootstrap_cancels_what_hit_both():
    """Rounds of which every other one is much slower, for both alike: only whole rounds drawn together always give 3."""
    slow = np.random.default_rng(0).lognormal(sigma=1.0, size=20)
    assert s.median_ratio(30 * slow, 10 * slow) == pytest.approx((3, 3))


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_as_scipy(seed):
    """The paired percentile interval of 95 %; one of 90 % is narrower by a sixth."""
    top, bottom = np.random.default_rng(seed).lognormal(sigma=0.3, size=(2, 60)) * [[2], [1]]
    expected = stats.bootstrap(
        (top, bottom),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20000,
        random_state=seed,
    ).confidence_interval
    tolerance = 0.05 * (expected.high - expected.low)
    assert s.median_ratio(top, bottom) == pytest.approx((expected.low, expected.high), abs=tolerance)


def test_bootstrap_is_5000_draws_of_whole_rounds():
    top, bottom = np.random.default_rng(5).lognormal(size=(2, 9))
    generator = np.random.default_rng(7)
    ratios = []
    for drawn in generator.integers(9, size=(5000, 9)):
        ratios.append(sorted(top[drawn])[4] / sorted(bottom[drawn])[4])
    assert s.median_ratio(top, bottom, 7) == pytest.approx(np.percentile(ratios, [2.5, 97.5]), rel=1e-12)


def test_bootstrap_covers():
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        rounds = generator.lognormal(sigma=0.1, size=(2, 20))
        low, high = s.median_ratio(2 * rounds[0], rounds[1], seed)
        held += low <= 2 <= high
    assert 88 <= held <= 100


def test_bootstrap_repeats():
    a, b = np.random.default_rng(0).uniform(1, 2, (2, 10))
    assert s.median_ratio(a, b, 3) == s.median_ratio(a, b, 3)
    assert s.median_ratio(a, b) == s.median_ratio(a, b, 0) != s.median_ratio(a, b, 1)
    assert s.median_ratio(a, b, 3)[0] < np.median(a) / np.median(b) < s.median_ratio(a, b, 3)[1]


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_bootstrap_refuses_unpaired(a, b):
    with pytest.raises(ValueError, match="rounds"):
        s.median_ratio(a, b)


def test_percentiles_and_variation():
    assert s.percentiles([1, 2, 3, 4], 0.5, 0.9) == pytest.approx((2.5, 3.7))
    assert s.percentiles(range(101), 0.025, 0.5, 0.99) == pytest.approx((2.5, 50, 99))
    assert s.percentiles([7.0], 0.99) == (7.0,)
    assert s.variation([1, 2, 3]) == pytest.approx(0.5)
    assert s.variation([4.0]) == 0
