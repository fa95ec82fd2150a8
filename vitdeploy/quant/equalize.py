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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.quant.sketch import Sketch

Array = NDArray[Any]
Double = NDArray[np.float64]
ALPHAS = (0.3, 0.5, 0.65, 0.8, 1.0)
MARGINS = (0.7, 0.85, 1.0, 1.15, 1.3)
_NOTHING = 1e-12
_PROBES = 64
_ROWS = 256
_FINALISTS = 3


class Step(NamedTuple):
    """A uniform quantizer of one tensor: q = clip(round(x / scale) + zero), of 8 bits.

    Attributes:
        scale: Width of one step.
        zero: Code of 0.
        low: Least code: 0 for uint8, -127 for int8.
        high: Greatest code: 255 or 127.
    """

    scale: float
    zero: int
    low: int
    high: int

    def __call__(self, values: Array) -> Array:
        """The values as they come back."""
        codes = np.clip(np.rint(values * (1 / self.scale)) + self.zero, self.low, self.high)
        return np.asarray((codes - self.zero) * self.scale)


def step(low: float, high: float, *, symmetric: bool) -> Step:
    """The quantizer that covers a range, 0 included: uint8 with a zero point, or int8 around 0.

    A tensor that was always 0 says nothing of its range: it gets the range 0 to 1, so that no step vanishes in FP16 and no
    bias divided by it leaves int32.

    Args:
        low: Least value.
        high: Greatest value.
        symmetric: int8 with codes -127 to 127; else uint8.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < _NOTHING:
        high = 1.0
    if symmetric:
        return Step(float(np.float32(max(-low, high) / 127)), 0, -127, 127)
    scale = float(np.float32((high - low) / 255))
    return Step(scale, int(np.clip(np.rint(-low / scale), 0, 255)), 0, 255)


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
        symmetric: Quantize around 0.
        factors: Channels may be divided.
        shifts: Channels may be moved.
        better: A candidate must have at most this share of the error of leaving the tensor alone.
        weight_share: Share of the plain rounding error of the weights that is left after `rounding.compensated`.
    """

    symmetric: bool
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

    def tried(candidate: _Candidate, margin: float) -> Choice:
        name, factor, shift, rounded = candidate
        choice = Choice(name, factor, shift, margin, error=0.0, identity=0.0, token_db=0.0)
        low, high = choice.reach(ranges)
        noise = _noise(rows, factor, shift, step(low * margin, high * margin, symmetric=limits.symmetric)) @ probe
        error = (float(np.square(noise).sum()) + rounded) / signal
        return choice._replace(error=error, token_db=_token_db(signals, noise))

    candidates = [
        _Candidate(*each, limits.weight_share * _weight_noise(rows, weight, each[1], each[2]))
        for each in _candidates(ranges, weight, limits)
    ]
    whole = sorted(((tried(each, 1.0), each) for each in candidates), key=lambda pair: pair[0].error)
    few = [whole[0], *whole[1:_FINALISTS], *(pair for pair in whole[_FINALISTS:] if pair[0].name == "identity")]
    found = [choice for choice, _ in few] + [tried(each, margin) for _, each in few for margin in MARGINS if margin != 1.0]
    alone = min((choice for choice in found if choice.name == "identity"), key=lambda choice: choice.error)
    best = min(found, key=lambda choice: choice.error)
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


def _weight_noise(rows: Array, weight: Array, factor: Double, shift: Double) -> float:
    """Square error of the output from rounding the weights, taken as uncorrelated: summed over the rows."""
    scaled = weight * factor.astype(np.float32)[:, None]
    steps = np.abs(scaled).max(0) / 127
    power = np.square((rows - shift.astype(np.float32)) / factor.astype(np.float32)).sum(0)  # [K]
    return float(power.sum(dtype=np.float64) * np.square(steps, dtype=np.float64).sum() / 12)


def _token_db(signal: Array, noise: Array) -> float:
    """Of the median token; tokens without noise count as the best, those of zeros only are among them."""
    power, lost = (np.square(each, dtype=np.float64).sum(1) for each in (signal, noise))
    ratio = np.where(lost > 0, power / np.maximum(lost, 1e-30), 1e30)
    return float(10 * np.log10(max(float(np.median(ratio)), 1e-30)))
