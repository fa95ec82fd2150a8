"""A histogram that needs no range: the float's own bit pattern is the bin.

Counts add exactly, so histograms merge without loss, and the order of the values does not matter. Sign, exponent and the
leading mantissa bits give bins whose width is in proportion to their values.

Source: relative bin widths are the idea of DDSketch (Masson, Rim, Lee: "DDSketch: A Fast and Fully-Mergeable Quantile Sketch
with Relative-Error Guarantees", VLDB 2019); here the float's exponent takes the place of the logarithm.
"""

from __future__ import annotations

import mmap
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]

BINS = 1 << 15
"""Bins of a histogram: sign, 8 bits of exponent, 6 of mantissa. A bin is 1/64 to 1/128 of its values wide."""

_SHIFT = 17
_HALF = BINS // 2
_CHUNK = 1 << 18  # values histogrammed at once: the int64 scratch takes 2 MiB
_INFINITY = 0x7F800000
_TINY = 2.0**-126  # values below it share the bin of zero
_NARROW = 2.0**-6  # of a quantizer's step: below it the integral over a bin loses to rounding, and a point is as good

_scratch = threading.local()


def workspace(name: str, size: int, dtype: type[np.generic]) -> NDArray[Any]:
    """Memory of this thread that is used again and again, 1-D [size]: fresh pages would cost more than the sums."""
    memory: NDArray[Any] | None = getattr(_scratch, name, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, dtype)
        setattr(_scratch, name, memory)
    return memory[:size]


@lru_cache(maxsize=1)
def _edges() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper edges of all bins in ascending order, float64 [BINS]; the bins of zero are points."""
    bits = np.minimum(np.arange(_HALF + 1) << _SHIFT, _INFINITY).astype(np.uint32)  # beyond it lies NaN: no value is there
    edges = bits.view(np.float32).astype(np.float64)
    lower, upper = edges[:-1], edges[1:].copy()
    upper[0] = 0.0  # zero, and what is too small for any quantizer to tell from it
    return np.concatenate([-upper[::-1], lower]), np.concatenate([-lower[::-1], upper])


class Histogram:
    """How often each value was seen, by the leading bits of its float32 pattern.

    Attributes:
        counts: int64 [BINS], by ``bits(float32) >> 17``. Zero has a bin of its own (with subnormals below 2**-132).
        minimum: The least value, exact; infinity before the first.
        maximum: The greatest value, exact; minus infinity before the first.
    """

    def __init__(self) -> None:
        # straight from the system, not from the heap: only the pages of bins that are counted in ever take memory
        self.counts: NDArray[np.int64] = np.frombuffer(mmap.mmap(-1, BINS * 8), np.int64)
        self.minimum = float("inf")
        self.maximum = float("-inf")

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    def observe(self, values: Values) -> None:
        """Add values.

        Args:
            values: float32, any shape, C-contiguous, finite.
        """
        if values.size:
            self.widen(float(values.min()), float(values.max()))
            self.tally(values)

    def widen(self, minimum: float, maximum: float) -> None:
        """Take over extremes that are known already."""
        self.minimum = min(self.minimum, minimum + 0.0)  # + 0.0: -0.0 and 0.0 are one value, whichever came first
        self.maximum = max(self.maximum, maximum + 0.0)

    def tally(self, values: Values) -> None:
        """Count float32 values (any shape, C-contiguous) without looking for extremes; NaN and infinity are not checked."""
        bits = values.reshape(-1).view(np.uint32)
        for start in range(0, bits.size, _CHUNK):
            part = bits[start : start + _CHUNK]
            bins = workspace("bins", part.size, np.int64)
            np.right_shift(part, _SHIFT, out=bins, casting="unsafe")
            counts = np.bincount(bins)
            used = np.flatnonzero(counts)  # few: pages of the others are never touched
            self.counts[used] += counts[used]

    def merge(self, other: Histogram) -> None:
        """Add what another histogram has seen."""
        self.counts += other.counts
        self.widen(other.minimum, other.maximum)

    def fits(self, minimum: float, maximum: float) -> bool:
        """Whether these can be the extremes of what was counted: both lie in the outermost bins that hold something."""
        lower, upper = _edges()
        used = np.flatnonzero(self._sort_ascending())
        if not used.size or minimum > maximum:
            return False
        first, last = used[0], used[-1]
        within = (lower[first] - _TINY <= minimum <= upper[first] + _TINY, lower[last] - _TINY <= maximum <= upper[last] + _TINY)
        return all(within)

    def _sort_ascending(self) -> NDArray[np.int64]:
        return np.concatenate([self.counts[_HALF:][::-1], self.counts[:_HALF]])

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """The bins that hold something, ascending, cut at the exact extremes.

        Returns:
            Lower edges, upper edges (float64 [k], in the tensor's unit; equal where a bin is one point) and counts
            (int64 [k], positive).
        """
        ordered = self._sort_ascending()
        used = np.flatnonzero(ordered)
        lower, upper = _edges()
        return (
            np.clip(lower[used], self.minimum, self.maximum),
            np.clip(upper[used], self.minimum, self.maximum),
            ordered[used],
        )

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all values lie, off by at most the width of its bin (1.6 %).

        Args:
            share: 0 to 1; 0 gives the exact minimum, 1 the exact maximum.

        Returns:
            In the tensor's unit; NaN when nothing was seen.
        """
        lower, upper, counts = self.bins()
        if not counts.size:
            return float("nan")
        if share in (0.0, 1.0):
            return self.maximum if share else self.minimum
        ends = np.cumsum(counts)
        rank = share * float(ends[-1] - 1)
        place = min(int(np.searchsorted(ends, int(rank), side="right")), counts.size - 1)
        within = (rank - float(ends[place] - counts[place]) + 0.5) / float(counts[place])
        return float(lower[place] + min(max(within, 0.0), 1.0) * (upper[place] - lower[place]))

    def moment(self, order: int, *, about: float = 0.0) -> float:
        """The mean of ``(value - about) ** order``, each bin standing for its middle; NaN when nothing was seen."""
        lower, upper, counts = self.bins()
        if not counts.size:
            return float("nan")
        return float(np.average(((lower + upper) / 2 - about) ** order, weights=counts))

    def kurtosis(self) -> float:
        """The fourth central moment by the square of the second: 3 for a Gaussian, large for outliers; 1 for a constant.

        Source: Pearson, "Das Fehlergesetz und seine Verallgemeinerungen", Biometrika 4 (1905).
        """
        mean = self.moment(1)
        variance = self.moment(2, about=mean)
        return self.moment(4, about=mean) / variance**2 if variance > 0 else 1.0

    def quantization_error(
        self, low: float | NDArray[np.float64], high: float | NDArray[np.float64], levels: int
    ) -> NDArray[np.float64]:
        """The mean squared error of uniform quantizers on the values seen.

        The quantizer rounds to the nearest of ``levels`` equally spaced values from ``low`` to ``high`` and clips outside.
        Values are taken as spread evenly over their bin. With t the value in steps from ``low`` and n the level it is
        rounded to, the integral of (t - n)**2 is n / 12 + (t - n)**3 / 3, inside as outside of the range; a bin that is far
        narrower than a step counts as its middle.

        Args:
            low: Least level; a number or float64 [k].
            high: Greatest level, above ``low``; as ``low``.
            levels: At least 2.

        Returns:
            float64 [k] (or [] for numbers), in the square of the tensor's unit; NaN when nothing was seen.
        """
        base, top = np.broadcast_arrays(np.asarray(low, np.float64), np.asarray(high, np.float64))
        lower, upper, counts = self.bins()
        if not counts.size:
            return np.full(base.shape, np.nan)
        step = (top - base)[..., None] / (levels - 1)
        start, end = (lower - base[..., None]) / step, (upper - base[..., None]) / step
        middle = (start + end) / 2
        error = (middle - np.clip(np.rint(middle), 0, levels - 1)) ** 2
        wide = end - start > _NARROW
        np.copyto(error, _integral(end, levels) - _integral(start, levels), where=wide)
        np.divide(error, end - start, out=error, where=wide)
        return np.asarray((error @ counts) / counts.sum() * step[..., 0] ** 2)


def _integral(place: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """The integral of the squared rounding error up to ``place`` (in steps), up to a constant."""
    level = np.clip(np.rint(place), 0, levels - 1)
    return np.asarray(level / 12 + (place - level) ** 3 / 3)
