"""Intervals and tests for the comparisons made here; all intervals are 95 %, two-sided.

Chosen for how they behave where models are compared: shares near 1, hardly any discordant image, a handful of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""A normal variable lies within +-Z with probability `LEVEL`: 1.96."""
RESAMPLES = 5000
FEWEST_ROUNDS = 5
"""Rounds from which a bootstrap interval means something: fewer have hardly any resamples that differ."""


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


def wilson(successes: float, count: int) -> Interval:
    """Score interval of a share; never leaves [0, 1] and is not empty at 0 or 1.

    Args:
        successes: How many of ``count``; or the sum of as many shares, which vary no more than zeros and ones.
        count: How many were tried; 0 gives [0, 1], for nothing is known.

    Source: E. B. Wilson (1927), JASA 22:209-212; recommended by Brown, Cai and DasGupta (2001), Statistical Science
    16:101-133.
    """
    if count == 0:
        return Interval(0.0, 1.0)
    share = successes / count
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact there; rounding would leave 1e-18
    high = 1.0 if successes == count else min(1.0, centre + half)
    return Interval(low, high)


def paired_difference(gained: int, lost: int, count: int) -> Interval:
    """Score interval of the difference of two shares that were measured on the same images.

    Without any discordant image it is +-z^2 / (count + z^2), not +-0: a thousand equal answers do not prove equality.

    Args:
        gained: Images that only the candidate got right.
        lost: Images that only the reference got right.
        count: All images; 0 gives [-1, 1].

    Returns:
        Interval of candidate's share minus reference's, in [-1, 1].

    Source: T. Tango (1998), Statistics in Medicine 17:891-908; recommended for paired shares by Fagerland, Lydersen and
    Laake (2014), Statistics in Medicine 33:2850-2875. Solved by bisection.
    """
    if count == 0:
        return Interval(-1.0, 1.0)
    estimate = (gained - lost) / count
    low = -1.0 if estimate == -1 else _bisect(lambda d: _score(d, gained, lost, count) > Z, -1.0, estimate)
    high = 1.0 if estimate == 1 else _bisect(lambda d: _score(d, gained, lost, count) > -Z, estimate, 1.0)
    return Interval(low, high)


def _score(difference: float, gained: int, lost: int, count: int) -> float:
    """Tango's statistic: how many standard errors the data lie above ``difference``, under that difference."""
    a = 2 * count
    b = -gained - lost + (2 * count - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    other = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # likeliest share of lost images, given the difference
    variance = count * (2 * other + difference * (1 - difference))
    distance = gained - lost - count * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(above: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``above`` turns from True to False."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2


def doubt_difference(gained: int, lost: int, count: int, least: float) -> float:
    """One-sided p-value of "the difference is at least ``least``": how probable is one as low as was seen, where it is not lower.

    Args:
        gained: Images that only the candidate got right.
        lost: Images that only the reference got right.
        count: All images; 0 gives 1, for nothing is known.
        least: In (-1, 1).

    Source: as `paired_difference`.
    """
    return NormalDist().cdf(_score(least, gained, lost, count)) if count else 1.0


def doubt_share(successes: int, count: int, least: float) -> float:
    """One-sided p-value of "the share is at least ``least``", by the score that `wilson` inverts.

    Args:
        successes: How many of ``count``; 0 of 0 gives 1.
        count: How many were tried.
        least: In [0, 1].
    """
    spread = math.sqrt(least * (1 - least) * count)
    if spread == 0:
        return 1.0 if successes >= least * count else 0.0
    return NormalDist().cdf((successes - least * count) / spread)


def find_discoveries(p_values: Sequence[float], rate: float) -> frozenset[int]:
    """Which of many hypotheses are to be given up, so that at most a share ``rate`` of those given up were true.

    Args:
        p_values: One a hypothesis, of independent tests.
        rate: Of false discoveries, on average; where all are true, the probability that any is given up.

    Source: Y. Benjamini and Y. Hochberg (1995), Journal of the Royal Statistical Society B 57:289-300, procedure (1).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    last = max((rank for rank, place in enumerate(order, 1) if p_values[place] <= rate * rank / len(order)), default=0)
    return frozenset(order[:last])


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value for "both are right equally often", from the discordant images alone.

    Args:
        gained: Images that only the candidate got right.
        lost: Images that only the reference got right.

    Returns:
        Probability in [0, 1]; 1 without discordant images.

    Source: Q. McNemar (1947), Psychometrika 12:153-157; the exact form is the binomial test with share 1/2.
    """
    discordant = gained + lost
    term = tail = 1  # comb(discordant, i), and its sum
    for i in range(min(gained, lost)):
        term = term * (discordant - i) // (i + 1)
        tail += term
    return float(min(1.0, 2 * tail / 2**discordant))


def median_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Interval:
    """Bootstrap interval of median(numerator) / median(denominator) over rounds measured side by side.

    Whole rounds are drawn, so a slow spell of the machine that hit both stays in both and cancels.

    Args:
        numerator: One positive number a round.
        denominator: The other subject's, of the same rounds.
        seed: Of the draws.

    Raises:
        ValueError: The lengths differ, or there is no round.

    Source: B. Efron and R. Tibshirani (1993), An Introduction to the Bootstrap, section 13.3 (percentile interval).
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if len(top) != len(bottom) or not len(top):
        raise ValueError(f"{len(top)} and {len(bottom)} rounds")
    drawn = np.random.default_rng(seed).integers(len(top), size=(RESAMPLES, len(top)))  # [RESAMPLES, rounds]
    ratios = np.median(top[drawn], axis=1) / np.median(bottom[drawn], axis=1)
    return Interval(*percentiles(ratios, (1 - LEVEL) / 2, (1 + LEVEL) / 2))


def percentiles(values: ArrayLike, *shares: float) -> tuple[float, ...]:
    """Quantiles by linear interpolation.

    Args:
        values: At least one number.
        shares: In [0, 1], such as 0.5 for the median.

    Source: R. Hyndman and Y. Fan (1996), The American Statistician 50:361-365, definition 7.
    """
    return tuple(float(value) for value in np.quantile(np.asarray(values, np.float64), shares))


def variation(values: ArrayLike) -> float:
    """Coefficient of variation: the sample's standard deviation (n - 1) over its mean; 0 for fewer than two values."""
    array = np.asarray(values, np.float64)
    return float(array.std(ddof=1) / array.mean()) if array.size > 1 else 0.0
