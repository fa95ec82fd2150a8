"""Whether a model fits this machine, and in which engine it is fastest here: by running it, for nothing else tells it.

Every engine loads the model and runs it in a process of its own, whose memory is what the model needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vitdeploy import machine
from vitdeploy.artifact import Artifact
from vitdeploy.errors import VitdeployError
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Subject
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric
from vitdeploy.verbs.trial import choose_engines

_QUICK = BenchConfig(rounds=3, seconds=0.2, warmup=2)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one engine on this machine.

    Attributes:
        engine: Its name.
        runs: Whether it loaded and ran.
        latency: Median of an image at a time, by some runs; None where it does not run.
        memory: Peak of the process.
        size: On disk.
        detail: What share of the free memory that is, or why it does not run.
        best: Whether it is the fastest of those that run.
    """

    engine: str
    runs: bool
    latency: Metric | None = None
    memory: Metric | None = None
    size: Metric | None = None
    detail: str
    best: bool = False


def try_fit(artifact: Artifact, names: Sequence[str] = (), *, progress: Progress = silent) -> tuple[Fit, ...]:
    """Run a model in each engine.

    Args:
        artifact: The model.
        names: The engines; empty means all that are installed and open it.
        progress: Hears of every engine.

    Raises:
        UsageError: VD2009, VD2013, as `choose_engines`; MachineError: VD4001, no engine is installed.
    """
    engines = choose_engines(tuple(names), artifact)
    fits = []
    for done, engine in enumerate(engines):
        progress(f"doctor: {artifact.name} in {engine}", done, len(engines))
        fits.append(_try(artifact, engine))
    progress("doctor: fit", len(engines), len(engines))
    times = [fit.latency.value for fit in fits if fit.latency is not None]
    return tuple(
        msgspec.structs.replace(fit, best=len(times) > 1 and fit.latency is not None and fit.latency.value == min(times))
        for fit in fits
    )


def _try(artifact: Artifact, engine: str) -> Fit:
    free = machine.free_mib()
    try:
        (row,) = latency.measure([Subject(engine, artifact, engine)], _QUICK).rows
    except VitdeployError as error:
        return Fit(engine=engine, runs=False, detail=error.message)
    memory = row.metrics["peak_memory"]
    detail = "" if free is None else f"{100 * memory.value / free:.1f} % of {free / 1024:.1f} GiB that are free"
    return Fit(engine=engine, runs=True, latency=row.metrics["p50"], memory=memory, size=row.metrics["size"], detail=detail)
