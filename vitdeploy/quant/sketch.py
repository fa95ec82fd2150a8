"""What is kept of one tensor while calibration images pass: little, of constant size, and the same in any order.

Everything here merges exactly. Counts are integers; extremes are extremes; sums of channels are taken per image and added as
fixed-point integers; the rows that are kept whole are chosen by a hash of the image's name and the token's place. So neither
batch size nor order nor the split between processes changes a bit.

Source: Bottom-k sampling: Cohen, Kaplan: "Summarizing Data Using Bottom-k Sketches", PODC 2007.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import InputError
from vitdeploy.quant.histogram import Histogram, Values, workspace

MOST_ROWS = 1 << 20
"""Token rows that a sketch may be told to keep."""

_COARSE, _FINE = 10, 50  # fixed point: units of 2**10 and of 2**-50
_DIGIT = _COARSE + _FINE
_SATURATED = 2.0**60


class Sketch:
    """What is kept of one tensor, whose last axis is its channels and whose other axes (but the first) are its tokens.

    Attributes:
        tensor: Its name in the graph.
        limit: Token rows kept at most.
        channels: Whether channels and token norms are followed, beside the values.
        values: All values.
        norms: The L2 norms of all token rows; empty without ``channels``.
        images: Images seen.
        seen: Token rows seen.
        extremes: float32 [2, C], least and greatest of each channel; see `channel_minimum`.
        sums: int64 [2, 2, C]: coarse part (units of 2**10) and fine part (units of 2**-50, 0 to 2**60) of the channels' sums and
            sums of squares; see `channel_mean`.
        keys: uint64 [r], the hashes of the rows in `kept`.
    """

    def __init__(self, tensor: str, *, limit: int = 256, channels: bool = True) -> None:
        self.tensor = tensor
        self.limit = limit
        self.channels = channels
        self.values = Histogram()
        self.norms = Histogram()
        self.images = 0
        self.seen = 0
        self.extremes: Values = np.zeros((2, 0), np.float32)
        self.sums: NDArray[np.int64] = np.zeros((2, 2, 0), np.int64)  # coarse and fine part; of values and of squares
        self._width = 0
        self._room: Values = np.zeros((0, 0), np.float32)
        self.keys: NDArray[np.uint64] = np.zeros(0, np.uint64)

    @property
    def width(self) -> int:
        """Channels; 0 before the first image."""
        return self._width

    @property
    def channel_minimum(self) -> Values:
        """The least value of each channel, exact: float32 [C]; [0] without ``channels``."""
        return np.asarray(self.extremes[0])

    @property
    def channel_maximum(self) -> Values:
        """The greatest value of each channel, exact: float32 [C]; [0] without ``channels``."""
        return np.asarray(self.extremes[1])

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """The mean of each channel over all token rows: float64 [C]; [0] without ``channels``.

        Sums of one image are float32 (relative error about 1e-6 of the mean magnitude), sums over images are exact to 2**-50.
        """
        return self._mean(0)

    @property
    def channel_rms(self) -> NDArray[np.float64]:
        """The root of the mean square of each channel, as `channel_mean`; right up to an RMS of about 1e7."""
        return np.asarray(np.sqrt(self._mean(1)))

    def _mean(self, which: int) -> NDArray[np.float64]:
        coarse, fine = self.sums[:, which].astype(np.float64)
        return np.asarray((coarse * 2.0**_COARSE + fine * 2.0**-_FINE) / max(self.seen, 1))

    @property
    def rows(self) -> Values:
        """Token rows kept whole, a uniform sample of all: float32 [r, C], r <= limit, in the order of their hashes."""
        return self.kept[np.argsort(self.keys, kind="stable")]

    @property
    def kept(self) -> Values:
        """The rows of `rows` in the order of `keys`: a view, float32 [r, C]."""
        return self._room[: len(self.keys)] if self._room.size else np.zeros((0, self._width), np.float32)

    def put(self, rows: Values, keys: NDArray[np.uint64]) -> None:
        """Take kept rows, float32 [r, C], and their hashes, uint64 [r], over from elsewhere.

        Args:
            rows: At most ``limit``; C is what `width` says from now on.
            keys: As many.
        """
        self._width = int(rows.shape[1])
        if len(rows):
            self._keep(rows, keys)

    def quantile(self, share: float) -> float:
        """`Histogram.quantile` of the values."""
        return self.values.quantile(share)

    def quantization_error(
        self, low: float | NDArray[np.float64], high: float | NDArray[np.float64], levels: int
    ) -> NDArray[np.float64]:
        """`Histogram.quantization_error` of the values."""
        return self.values.quantization_error(low, high, levels)

    def observe(self, values: Values, names: Sequence[str]) -> None:
        """Add the tensor's values on some images.

        Args:
            values: float32 [n, ..., C], n >= 1. Borrowed.
            names: The images' names, n of them, each seen once.

        Raises:
            InputError: VD3110, a value is NaN or infinite; of that batch nothing is counted.
        """
        batch = np.ascontiguousarray(values, np.float32).reshape(len(names), -1, values.shape[-1])
        if not batch.size:
            return
        lowest, highest = self._extremes(batch, names)
        self.values.widen(float(lowest.min()), float(highest.max()))
        self.values.tally(batch)
        self.images += len(names)
        self.seen += batch.shape[0] * batch.shape[1]
        self._width = batch.shape[2]
        if self.channels:
            self._follow(batch, lowest, highest)
        if self.limit:
            keys = _row_keys(tuple(names), batch.shape[1])
            self._keep(batch.reshape(-1, batch.shape[2]), keys)

    def _extremes(self, batch: Values, names: Sequence[str]) -> tuple[Values, Values]:
        """The least and greatest values, float32 [n, C] or [n, 1], if all are finite."""
        if self.channels:
            lowest, highest = np.minimum.reduce(batch, axis=1), np.maximum.reduce(batch, axis=1)
        else:
            flat = batch.reshape(len(batch), -1)
            lowest, highest = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
        good = np.isfinite(lowest).all(axis=1) & np.isfinite(highest).all(axis=1)
        if not good.all():
            image = int(np.argmin(good))
            token, channel = np.argwhere(~np.isfinite(batch[image]))[0]
            value = batch[image, token, channel]
            message = f"the tensor {self.tensor!r} is {value} on the image {names[image]!r} (token {token}, channel {channel})"
            raise InputError("VD3110", message, fix="check the weights, and that the image is prepared as the model wants")
        return lowest, highest

    def _follow(self, batch: Values, lowest: Values, highest: Values) -> None:
        """Channels' extremes and sums, and norms of the rows."""
        _, tokens, width = batch.shape
        if not self.extremes.size:
            self.extremes = np.stack([np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)])
            self.sums = np.zeros((2, 2, width), np.int64)
        np.minimum(self.extremes[0], lowest.min(axis=0) + np.float32(0), out=self.extremes[0])
        np.maximum(self.extremes[1], highest.max(axis=0) + np.float32(0), out=self.extremes[1])
        square = workspace("square", tokens * width, np.float32).reshape(tokens, width)
        lengths = np.empty(batch.shape[:2], np.float32)
        with np.errstate(over="ignore", under="ignore"):
            for place, image in enumerate(batch):  # one by one: the rounding of a sum may not depend on the image's neighbours
                sums = np.empty((2, width))
                np.multiply(image, image, out=square)
                norms = np.add.reduce(square, axis=1)
                sums[0], sums[1] = np.add.reduce(image, axis=0), np.add.reduce(square, axis=0)
                if not np.isfinite(norms).all():  # squares beyond float32
                    exact = image.astype(np.float64) ** 2
                    norms, sums[1] = exact.sum(axis=1), exact.sum(axis=0)
                lengths[place] = np.minimum(np.sqrt(norms), np.finfo(np.float32).max)
                self._add(sums)
        self.norms.observe(lengths)

    def _add(self, sums: NDArray[np.float64]) -> None:
        """Add one image's sums, float64 [2, C], in fixed point; magnitudes beyond 2**60 count as 2**60."""
        np.clip(sums, -_SATURATED, _SATURATED, out=sums)
        coarse = np.trunc(sums * 2.0**-_COARSE)
        sums -= coarse * 2.0**_COARSE
        self._carry(coarse.astype(np.int64), np.rint(sums * 2.0**_FINE).astype(np.int64))

    def _carry(self, coarse: NDArray[np.int64], fine: NDArray[np.int64]) -> None:
        self.sums[0] += coarse
        self.sums[1] += fine
        self.sums[0] += self.sums[1] >> _DIGIT  # one sum has one form: the fine part within [0, 2**60)
        self.sums[1] &= (1 << _DIGIT) - 1

    def _keep(self, rows: Values, keys: NDArray[np.uint64]) -> None:
        """Keep the ``limit`` rows of the least keys among the kept and these."""
        held = len(self.keys)
        if held == self.limit:
            nearer = np.flatnonzero(keys < self.keys.max())
            if not nearer.size:
                return
            rows, keys = rows[nearer], keys[nearer]
        if not self._room.size:
            self._room = np.empty((self.limit, rows.shape[1]), np.float32)  # pages are taken as they are filled
        every = np.concatenate([self.keys, keys])
        least = np.argpartition(every, self.limit - 1)[: self.limit] if every.size > self.limit else np.arange(every.size)
        new = np.sort(least[least >= held]) - held
        staying = np.zeros(self.limit, bool)
        staying[least[least < held]] = True
        places = np.flatnonzero(~staying)[: new.size]
        self.keys = np.concatenate([self.keys, np.zeros(min(self.limit, every.size) - held, np.uint64)])
        self._room[places], self.keys[places] = rows[new], keys[new]

    def transform(self, factor: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
        """Follow the tensor when it becomes (x - shift) / factor: extremes, means and kept rows, not the histograms.

        Args:
            factor: float64 [C], above 0.
            shift: float64 [C].
        """
        self.extremes = ((self.extremes - shift) / factor).astype(np.float32)
        mean, square = self._mean(0), self._mean(1)
        for which, values in enumerate(((mean - shift) / factor, (square - 2 * shift * mean + shift**2) / factor**2)):
            total = values * self.seen
            coarse = np.floor(total / 2.0**_COARSE)
            self.sums[0, which] = coarse.astype(np.int64)
            self.sums[1, which] = np.rint((total - coarse * 2.0**_COARSE) * 2.0**_FINE).astype(np.int64)
        self._room = ((self._room - shift) / factor).astype(np.float32)

    def merge(self, other: Sketch) -> None:
        """Add what another sketch of the same tensor has seen, on other images.

        Raises:
            InputError: VD3109, the two are not of the same tensor, or keep different things of it.
        """
        mine = (self.tensor, self.limit, self.channels)
        theirs = (other.tensor, other.limit, other.channels)
        if mine != theirs or (self.width and other.width and self.width != other.width):
            message = f"sketches of different tensors can't be merged: {(*mine, self.width)} and {(*theirs, other.width)}"
            raise InputError("VD3109", message, fix="calibrate both parts alike")
        if not other.images:
            return
        self.values.merge(other.values)
        self.norms.merge(other.norms)
        self.images += other.images
        self.seen += other.seen
        self._width = other.width
        if other.extremes.size and not self.extremes.size:
            self.extremes, self.sums = other.extremes.copy(), other.sums.copy()
        elif other.extremes.size:
            np.minimum(self.extremes[0], other.extremes[0], out=self.extremes[0])
            np.maximum(self.extremes[1], other.extremes[1], out=self.extremes[1])
            self._carry(other.sums[0], other.sums[1])
        if len(other.keys):
            self._keep(other.kept, other.keys)


def image_key(name: str) -> int:
    """An image's identity: 64 bits of the BLAKE2b hash of its name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


@lru_cache(maxsize=4)
def _row_keys(names: tuple[str, ...], tokens: int) -> NDArray[np.uint64]:
    """A hash of each token row of a batch, uint64 [n * tokens]: the same rows are kept of every tensor.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        images = np.array([image_key(name) for name in names], np.uint64)
        mixed = images[:, None] + np.arange(1, tokens + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray((mixed ^ (mixed >> np.uint64(31))).reshape(-1))
