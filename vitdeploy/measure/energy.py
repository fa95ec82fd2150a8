"""What a turn of a benchmark took from the supply, where the machine has a meter: the processor's counters, or a board's sensors.

It is the energy of the whole package or board while a subject ran, what idles included: a meter knows no processes.
"""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import NamedTuple

from vitdeploy import machine

PERIOD_S = 0.02
"""How often a board's sensors are read."""


class Meter:
    """Measures energy between `start` and `stop`, by counters where there are some, else by sampling power."""

    def __init__(self) -> None:
        self._before: dict[str, machine.Counter] = {}
        self._sampler: _Sampler | None = None

    def start(self) -> None:
        """Begin a measurement."""
        self._before = machine.energy_counters()
        if not self._before and machine.power_w() is not None:
            self._sampler = _Sampler()
            self._sampler.start()

    def stop(self) -> float | None:
        """Energy since `start` in joules; None where nothing tells it."""
        if self._sampler is not None:
            sampler, self._sampler = self._sampler, None
            return sampler.finish()
        after = machine.energy_counters()
        if not self._before or self._before.keys() != after.keys():
            return None
        return sum(_subtract(after[name], before) for name, before in self._before.items())


def _subtract(after: machine.Counter, before: machine.Counter) -> float:
    """Joules between two readings of a counter that starts again from 0 at its range."""
    used = after.microjoules - before.microjoules
    return (used if used >= 0 else used + after.range) / 1e6


class Sample(NamedTuple):
    """Power at a moment.

    Attributes:
        seconds: Of a clock.
        watts: What was drawn.
    """

    seconds: float
    watts: float


def integrate(samples: list[Sample]) -> float | None:
    """Joules: the trapezoids between samples; None for fewer than two."""
    pairs = list(pairwise(samples))
    return sum((b.seconds - a.seconds) * (a.watts + b.watts) / 2 for a, b in pairs) if pairs else None


class _Sampler(threading.Thread):
    """Reads power again and again until it is told to finish."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._end = threading.Event()
        self._samples: list[Sample] = []

    def run(self) -> None:
        while True:
            ended = self._end.wait(PERIOD_S if self._samples else 0)
            watts = machine.power_w()
            if watts is not None:
                self._samples.append(Sample(time.perf_counter(), watts))
            if ended:
                return

    def finish(self) -> float | None:
        self._end.set()
        self.join()
        return integrate(self._samples)
