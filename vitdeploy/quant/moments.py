"""Second moments of GEMM inputs, E[x x^T]: what rounding of weights is compensated by.

One matrix of K x K numbers for each input, so the inputs are taken in groups that fit into a given amount of memory; each
group is one pass over a few dozen images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.backends.table import open_observer
from vitdeploy.progress import Progress, silent

Array = NDArray[Any]
MEMORY = 640 << 20
"""Bytes of matrices and waiting rows held at once."""
ROWS = 1024
"""Rows that wait to be multiplied together: a product of few takes nearly as long, since all of K x K is added each time."""


class Moments(NamedTuple):
    """Of one tensor.

    Attributes:
        mean: E[x], float64 [K].
        second: E[x x^T], float64 [K, K].
    """

    mean: NDArray[np.float64]
    second: NDArray[np.float64]


def moments(
    model: Path | bytes,
    widths: dict[str, int],
    batches: Callable[[], Iterable[Array]],
    *,
    threads: int,
    progress: Progress = silent,
) -> Iterator[tuple[str, Moments]]:
    """Moments of some tensors, one after another; only one group of them is in memory at a time.

    Args:
        model: As `Observer` takes it.
        widths: Tensor name to K.
        batches: Gives the images anew for every group: float or uint8, as the model takes them.
        threads: Threads of the engine.
        progress: Hears of every group.
    """
    groups = list(_groups(widths))
    for number, group in enumerate(groups):
        progress("moments", number, len(groups))
        observer = open_observer(model, group, threads=threads, batch=8)
        sums = {name: _Sum(widths[name]) for name in group}
        try:
            for batch in batches():
                start = 0
                while start < len(batch):
                    part = batch[start : start + observer.batch]  # grows once the observer knows the tensors' sizes
                    start += len(part)
                    for name, values in zip(group, observer.run(part), strict=True):
                        sums[name].add(values.reshape(-1, widths[name]))
        finally:
            observer.close()
        for name in group:
            yield name, sums.pop(name).finish()
    progress("moments", len(groups), len(groups))


class _Sum:
    """The sums of one tensor's rows; they wait in a buffer of their own, since the observer's is filled again."""

    def __init__(self, width: int) -> None:
        self._first, self._second = np.zeros(width), np.zeros((width, width), np.float32)
        self._rows, self._held, self._count = np.empty((ROWS, width), np.float32), 0, 0

    def add(self, rows: Array) -> None:
        """Some rows more, float [R, K]."""
        while len(rows):
            taken = rows[: ROWS - self._held]
            self._rows[self._held : self._held + len(taken)] = taken
            self._held, rows = self._held + len(taken), rows[len(taken) :]
            if self._held == ROWS:
                self._multiply()

    def finish(self) -> Moments:
        """Of all rows."""
        self._multiply()
        count = max(self._count, 1)
        return Moments(self._first / count, self._second.astype(np.float64) / count)

    def _multiply(self) -> None:
        rows = self._rows[: self._held]
        self._second += rows.T @ rows
        self._first += rows.sum(0, dtype=np.float64)
        self._count, self._held = self._count + self._held, 0


def from_rows(rows: Array) -> Moments:
    """Moments of a few rows, float [R, K], shrunk towards their diagonal by K / (R + K): R rows say little of K directions."""
    count, width = rows.shape
    second = (rows.T @ rows).astype(np.float64) / max(count, 1)
    keep = count / (count + width)
    shrunk = keep * second
    shrunk[np.diag_indices(width)] = np.diag(second)
    return Moments(rows.mean(0, dtype=np.float64), shrunk)


def _groups(widths: dict[str, int]) -> Iterator[Sequence[str]]:
    group, size = list[str](), 0
    for name, width in widths.items():
        own = 4 * width * (width + ROWS)
        if group and size + own > MEMORY:
            yield group
            group, size = [], 0
        group.append(name)
        size += own
    if group:
        yield group
