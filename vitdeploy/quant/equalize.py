"""How the channels of a GEMM input share one quantization step: chosen for each input by its effect on the output.

One step for all channels wastes codes where channels differ. Factors and shifts that are exact in real numbers move the
difference into the weights: x^ = (x - z) / s, W^ = diag(s) W, b^ = b + z W. What helps one tensor hurts the next, so each gets
the candidate with the least error, "leave it alone" included. Ranges come from one half of the images and the error from the
other: a factor that is fitted to the extremes of the images at hand clips the next image.

Sources: factors max|x|^a / |W|^(1-a): Xiao et al. 2023 (SmoothQuant), arXiv:2211.10438, equation 4. Shifts: Wei et al. 2023
(Outlier Suppression+), arXiv:2304.09145, section 4.2. Equal steps for all channels (a = 1): Li et al. 2023 (RepQ-ViT),
arXiv:2212.08254, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.qdq import E4M3, LARGEST_E4M3
from vitdeploy.quant.sketch import Sketch

Array = NDArray[Any]
Double = NDArray[np.float64]
ALPHAS = (0.3, 0.5, 0.65, 0.8, 1.0)
MARGINS = (0.7, 0.85, 1.0, 1.15, 1.3)
Grid = Literal["uint8", "int8", "fp8"]
"""The 8-bit numbers of an activation: whole ones with a zero point, whole ones around 0, floats (E4M3) around 0."""
SMALLEST_HALF = 2.0**-14
"""The smallest FP16 number with all its 11 bits: no step in FP16 is smaller."""
FLOAT_NOISE = 2.0**-9 / 3
"""Mean square error of rounding to E4M3, as a share of the mean square: eighths of a power of two, 1 / m^2 is 1/2 in the mean."""
_NOTHING = 1e-12
_PROBES = 64
_ROWS = 256
_FINALISTS = 3


class Step(NamedTuple):
    """A quantizer of one tensor: q = clip(round(x / scale) + zero), of 8 bits.

    Attributes:
        scale: Width of one step; with E4M3 what its 1 stands for.
        zero: Code of 0.
        low: Least code: 0 for uint8, -127 for int8, -448 for E4M3.
        high: Greatest code: 255, 127 or 448.
        floating: Codes are E4M3 numbers, which are the finer the smaller they are.
    """

    scale: float
    zero: int
    low: int
    high: int
    floating: bool = False

    def __call__(self, values: Array) -> Array:
        """The values as they come back."""
        if self.floating:
            codes = np.clip(values * np.float32(1 / self.scale), self.low, self.high)
            return np.asarray(codes.astype(E4M3).astype(np.float32) * np.float32(self.scale))
        codes = np.clip(np.rint(values * (1 / self.scale)) + self.zero, self.low, self.high)
        return np.asarray((codes - self.zero) * self.scale)

    def in_half(self) -> Step:
        """The same with a step that FP16 holds: what is rounded by it on the device is then what was rounded by it here."""
        return self._replace(scale=float(np.float16(max(self.scale, SMALLEST_HALF))))

    def noise(self, rows: Array) -> Double:
        """Mean square error of each channel, float64 [K]; for whole numbers the one that is expected, whatever the rows.

        Args:
            rows: Token rows, float32 [R, K].
        """
        if not self.floating:
            return np.full(rows.shape[1], self.scale**2 / 12)
        return np.asarray(np.square(self(rows) - rows, dtype=np.float64).sum(0) / max(len(rows), 1))


def step(low: float, high: float, grid: Grid = "uint8") -> Step:
    """The quantizer that covers a range, 0 included: uint8 with a zero point, or int8 around 0.

    A tensor that was always 0 says nothing of its range: it gets the range 0 to 1, so that no step vanishes in FP16 and no
    bias divided by it leaves int32.

    Args:
        low: Least value.
        high: Greatest value.
        grid: What it rounds to.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _NOTHING:
        high = 1.0
    if grid == "int8":
        return Step(float(np.float32(max(-low, high) / 127)), 0, -127, 127)
    if grid == "fp8":
        return Step(float(np.float32(max(-low, high) / LARGEST_E4M3)), 0, -LARGEST_E4M3, LARGEST_E4M3, floating=True)
    scale = float(np.float32((high - low) / 255))
    return Step(scale, round(-low / scale), 0, 255)


class Choice(NamedTuple):
    """What was chosen for one tensor.

    Attributes:
        name: For the record: ``identity``, or the shift and the exponent.
        factor: s, float64 [K].
        shift: z, float64 [K].
        margin: Share of the calibration images' range that the quantizer covers.
        error: Mean square error of the layer's output, as a share of its mean square; on images that set no range.
        identity: The same for leaving the tensor alone.
        token_db: Ratio of signal to noise of the median token, in dB.
    """

    name: str
    factor: Double
    shift: Double
    margin: float
    error: float
    identity: float
    token_db: float

    def reach(self, ranges: Sketch) -> tuple[float, float]:
        """Least and greatest number of the tensor as it will be, (x - z) / s."""
        low, high = ((extremes - self.shift) / self.factor for extremes in (ranges.channel_minimum, ranges.channel_maximum))
        return float(low.min()), float(high.max())


class Limits(NamedTuple):
    """What may be done to a tensor.

    Attributes:
        grid: What the tensor is rounded to.
        factors: Channels may be divided.
        shifts: Channels may be moved.
        better: A candidate must have at most this share of the error of leaving the tensor alone.
        weight_share: Share of the plain rounding error of the weights that is left after `rounding.compensate`.
    """

    grid: Grid
    factors: bool
    shifts: bool
    better: float = 0.95
    weight_share: float = 0.3


def choose(ranges: Sketch, rows: Array, weight: Array, limits: Limits) -> Choice:
    """The shift, factors and margin of one GEMM input.

    Args:
        ranges: Of the images that set the ranges.
        rows: Token rows of other images, float32 [R, K].
        weight: W of all layers that take the tensor, float32 [K, M].
        limits: What may be done.
    """
    rows = rows[:_ROWS].astype(np.float32)
    probe = _probe(weight)  # [K, P]
    signals = rows @ probe  # [R, P]
    signal = float(np.square(signals).sum()) or 1.0

    def evaluate(candidate: _Candidate, margin: float) -> Choice:
        name, factor, shift, rounded = candidate
        choice = Choice(name, factor, shift, margin, error=0.0, identity=0.0, token_db=0.0)
        low, high = choice.reach(ranges)
        noise = _noise(rows, factor, shift, step(low * margin, high * margin, limits.grid)) @ probe
        error = (float(np.square(noise).sum()) + rounded) / signal
        return choice._replace(error=error, token_db=_token_db(signals, noise))

    candidates = [
        _Candidate(*each, limits.weight_share * _weight_noise(rows, weight, each, limits.grid))
        for each in _candidates(ranges, weight, limits)
    ]
    whole = sorted(((evaluate(each, 1.0), each) for each in candidates), key=lambda pair: pair[0].error)
    few = [whole[0], *whole[1:_FINALISTS], *(pair for pair in whole[_FINALISTS:] if pair[0].name == "identity")]
    choices = [choice for choice, _ in few] + [evaluate(each, margin) for _, each in few for margin in MARGINS if margin != 1.0]
    alone = min((choice for choice in choices if choice.name == "identity"), key=lambda choice: choice.error)
    best = min(choices, key=lambda choice: choice.error)
    return (best if best.error <= limits.better * alone.error else alone)._replace(identity=alone.error)


class _Candidate(NamedTuple):
    """A way to share the step; ``rounded`` is what rounding the weights adds to the output's square error."""

    name: str
    factor: Double
    shift: Double
    rounded: float


def _candidates(ranges: Sketch, weight: Array, limits: Limits) -> Iterator[tuple[str, Double, Double]]:
    low, high = ranges.channel_minimum.astype(np.float64), ranges.channel_maximum.astype(np.float64)
    norms = np.linalg.norm(weight.astype(np.float64), axis=1)
    norms = np.maximum(norms, 1e-3 * (norms.max() or 1.0))
    shifts = {"": np.zeros_like(low)}
    if limits.shifts:
        shifts |= {"middle": (low + high) / 2, "mean": ranges.channel_mean}
    for name, shift in shifts.items():
        yield name or "identity", np.ones_like(low), shift
        if not limits.factors:
            continue
        reach = np.maximum(np.maximum(high - shift, shift - low), 0)
        reach = np.maximum(reach, 1e-3 * (reach.max() or 1.0))
        for alpha in ALPHAS:
            factor = reach**alpha / norms ** (1 - alpha)
            yield f"{name} {alpha}".strip(), factor / np.exp(np.log(factor).mean()), shift


def _probe(weight: Array) -> Array:
    """W in fewer columns: random signs keep squared lengths in the mean (Johnson and Lindenstrauss 1984)."""
    columns = weight.shape[1]
    if columns <= _PROBES:
        return weight.astype(np.float32)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (columns, _PROBES)).astype(np.float32)
    return np.asarray(weight @ signs / np.float32(np.sqrt(_PROBES)))


def _noise(rows: Array, factor: Double, shift: Double, quantizer: Step) -> Array:
    """What quantization adds to the rows, in the rows' own units: float32 [R, K]."""
    scale, offset = factor.astype(np.float32), shift.astype(np.float32)
    moved = (rows - offset) / scale
    return np.asarray((quantizer(moved) - moved) * scale)


def _weight_noise(rows: Array, weight: Array, candidate: tuple[str, Double, Double], grid: Grid) -> float:
    """Square error of the output from rounding the weights, taken as uncorrelated: summed over the rows."""
    factor, shift = (each.astype(np.float32) for each in candidate[1:])
    scaled = weight * factor[:, None]
    power = np.square((rows - shift) / factor).sum(0)  # [K]
    if grid == "fp8":
        return float(power @ np.square(scaled, dtype=np.float64).sum(1) * FLOAT_NOISE)
    steps = np.abs(scaled).max(0) / 127
    return float(power.sum(dtype=np.float64) * np.square(steps, dtype=np.float64).sum() / 12)


def _token_db(signal: Array, noise: Array) -> float:
    """Of the median token; tokens without noise count as the best, those of zeros only are among them."""
    power, lost = (np.square(each, dtype=np.float64).sum(1) for each in (signal, noise))
    ratio = np.where(lost > 0, power / np.maximum(lost, 1e-30), 1e30)
    return float(10 * np.log10(max(float(np.median(ratio)), 1e-30)))
