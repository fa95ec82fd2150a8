"""How long an image takes before any engine sees it: read, decoded, resized, cropped and made a tensor, by one thread."""

from __future__ import annotations

import time
from itertools import cycle

import numpy as np

from vitdeploy.data import Dataset, images
from vitdeploy.measure.statistics import percentiles
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric, Row
from vitdeploy.spec import InputContract

SUBJECT = "decode"
"""Name of the row."""
DECODED = 64
"""Images that are read in turn, at most; they come from memory after the first round, as a camera's do."""


def measure_decoding(data: Dataset, contract: InputContract, config: BenchConfig) -> Row:
    """Time from file to tensor, one image at a time.

    Args:
        data: The images.
        contract: How they become pixels.
        config: Rounds and seconds a round.

    Returns:
        A row with ``p50``, ``p90``, ``p99`` and ``mean`` in ms, ``throughput`` in images/s and ``runs``.

    Raises:
        InputError: An image can't be read.
    """
    places = range(min(DECODED, len(data)))
    for place in places:
        _read(data, place, contract)
    times: list[float] = []
    for _ in range(config.rounds):
        begun = time.perf_counter()
        for place in cycle(places):
            start = time.perf_counter()
            _read(data, place, contract)
            times.append(1000 * (time.perf_counter() - start))
            if time.perf_counter() - begun >= config.seconds:
                break
    p50, p90, p99 = percentiles(times, 0.5, 0.9, 0.99)
    mean = float(np.mean(times))
    metrics = {name: Metric(value, "ms") for name, value in (("p50", p50), ("p90", p90), ("p99", p99), ("mean", mean))}
    metrics = {"batch": Metric(1, "count"), **metrics, "throughput": Metric(1000 / mean, "images/s")}
    return Row(
        SUBJECT, {**metrics, "runs": Metric(len(times), "count")}, {"data": data.name, "images": len(places), "threads": 1}
    )


def _read(data: Dataset, place: int, contract: InputContract) -> None:
    images.to_tensor(data[place].read(contract)[None], contract)
