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
"""Bytes of matrices held at once."""


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
        sums = {name: np.zeros((widths[name], widths[name]), np.float32) for name in group}
        means, counts = {name: np.zeros(widths[name]) for name in group}, dict.fromkeys(group, 0)
        try:
            for batch in batches():
                start = 0
                while start < len(batch):
                    part = batch[start : start + observer.batch]  # grows once the observer knows the tensors' sizes
                    start += len(part)
                    for name, values in zip(group, observer.run(part), strict=True):
                        rows = values.reshape(-1, widths[name])
                        sums[name] += rows.T @ rows
                        means[name] += rows.sum(0, dtype=np.float64)
                        counts[name] += len(rows)
        finally:
            observer.close()
        for name in group:
            count = max(counts[name], 1)
            yield name, Moments(means[name] / count, sums.pop(name).astype(np.float64) / count)
    progress("moments", len(groups), len(groups))


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
        if group and size + 4 * width * width > MEMORY:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * width * width
    if group:
        yield group
