"""What is kept of one tensor while calibration images pass: little, of constant size, and the same in any order.

Extremes are extremes; sums of channels are taken per image and added as fixed-point integers; the rows that are kept whole are
chosen by a hash of the image's name and the token's place. So neither batch size nor order changes a bit.

Source: Bottom-k sampling: Cohen, Kaplan: "Summarizing Data Using Bottom-k Sketches", PODC 2007.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitdeploy.errors import InputError

Values = NDArray[np.float32]

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
        images: Images seen.
        seen: Token rows seen.
        extremes: float32 [2, C], least and greatest of each channel; see `channel_minimum`.
        sums: int64 [2, C]: coarse part (units of 2**10) and fine part (units of 2**-50, 0 to 2**60) of the channels' sums; see
            `channel_mean`.
        keys: uint64 [r], the hashes of the rows in `kept`.
    """

    def __init__(self, tensor: str, *, limit: int = 256) -> None:
        self.tensor = tensor
        self.limit = limit
        self.images = 0
        self.seen = 0
        self.extremes: Values = np.zeros((2, 0), np.float32)
        self.sums: NDArray[np.int64] = np.zeros((2, 0), np.int64)
        self._width = 0
        self._room: Values = np.zeros((0, 0), np.float32)
        self.keys: NDArray[np.uint64] = np.zeros(0, np.uint64)

    @property
    def width(self) -> int:
        """Channels; 0 before the first image."""
        return self._width

    @property
    def channel_minimum(self) -> Values:
        """The least value of each channel, exact: float32 [C]."""
        return np.asarray(self.extremes[0])

    @property
    def channel_maximum(self) -> Values:
        """The greatest value of each channel, exact: float32 [C]."""
        return np.asarray(self.extremes[1])

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """The mean of each channel over all token rows: float64 [C].

        Sums of one image are float32 (relative error about 1e-6 of the mean magnitude), sums over images are exact to 2**-50.
        """
        coarse, fine = self.sums.astype(np.float64)
        return np.asarray((coarse * 2.0**_COARSE + fine * 2.0**-_FINE) / max(self.seen, 1))

    @property
    def rows(self) -> Values:
        """Token rows kept whole, a uniform sample of all: float32 [r, C], r <= limit, in the order of their hashes."""
        return self.kept[np.argsort(self.keys)]

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
        self._follow(batch, *self._find_extremes(batch, names))
        self.images += len(names)
        self.seen += batch.shape[0] * batch.shape[1]
        self._width = batch.shape[2]
        if self.limit:
            keys = _row_keys(tuple(names), batch.shape[1])
            self._keep(batch.reshape(-1, batch.shape[2]), keys)

    def _find_extremes(self, batch: Values, names: Sequence[str]) -> tuple[Values, Values]:
        """The least and greatest values, float32 [n, C], if all are finite."""
        lowest, highest = np.minimum.reduce(batch, axis=1), np.maximum.reduce(batch, axis=1)
        good = np.isfinite(lowest).all(axis=1) & np.isfinite(highest).all(axis=1)
        if not good.all():
            image = int(np.argmin(good))
            token, channel = np.argwhere(~np.isfinite(batch[image]))[0]
            value = batch[image, token, channel]
            message = f"the tensor {self.tensor!r} is {value} on the image {names[image]!r} (token {token}, channel {channel})"
            raise InputError("VD3110", message, fix="check the weights, and that the image is prepared as the model wants")
        return lowest, highest

    def _follow(self, batch: Values, lowest: Values, highest: Values) -> None:
        """Channels' extremes and sums."""
        width = batch.shape[2]
        if not self.extremes.size:
            self.extremes = np.stack([np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)])
            self.sums = np.zeros((2, width), np.int64)
        zero = np.float32(0)  # added: -0.0 and 0.0 are one value, whichever came first
        np.minimum(self.extremes[0], lowest.min(axis=0) + zero, out=self.extremes[0])
        np.maximum(self.extremes[1], highest.max(axis=0) + zero, out=self.extremes[1])
        with np.errstate(over="ignore"):
            for image in batch:  # one by one: the rounding of a sum may not depend on the image's neighbours
                self._add(np.add.reduce(image, axis=0).astype(np.float64))

    def _add(self, sums: NDArray[np.float64]) -> None:
        """Add one image's sums, float64 [C], in fixed point; magnitudes beyond 2**60 count as 2**60."""
        np.clip(sums, -_SATURATED, _SATURATED, out=sums)
        coarse = np.trunc(sums * 2.0**-_COARSE)
        sums -= coarse * 2.0**_COARSE
        self.sums[0] += coarse.astype(np.int64)
        self.sums[1] += np.rint(sums * 2.0**_FINE).astype(np.int64)
        self.sums[0] += self.sums[1] >> _DIGIT  # one sum has one form: the fine part within [0, 2**60)
        self.sums[1] &= (1 << _DIGIT) - 1

    def _keep(self, rows: Values, keys: NDArray[np.uint64]) -> None:
        """Keep the ``limit`` rows of the least keys among the kept and these."""
        held = len(self.keys)
        if held == self.limit:
            smaller = np.flatnonzero(keys < self.keys.max())
            if not smaller.size:
                return
            rows, keys = rows[smaller], keys[smaller]
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
        """Follow the tensor when it becomes (x - shift) / factor.

        Args:
            factor: float64 [C], above 0.
            shift: float64 [C].
        """
        self.extremes = ((self.extremes - shift) / factor).astype(np.float32)
        total = (self.channel_mean - shift) / factor * self.seen
        coarse = np.floor(total / 2.0**_COARSE)
        self.sums = np.stack([coarse, np.rint((total - coarse * 2.0**_COARSE) * 2.0**_FINE)]).astype(np.int64)
        self.kept[:] = (self.kept - shift) / factor  # the rest of the room holds nothing


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
