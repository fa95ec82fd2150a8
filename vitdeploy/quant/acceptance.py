"""The last step: what was written is run on the engines of its target, counted, and measured."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.table import PROVER, list_judges, load
from vitdeploy.progress import Progress
from vitdeploy.proof import golden
from vitdeploy.proof.census import Plan, census, require
from vitdeploy.proof.finite import require_finite
from vitdeploy.proof.worth import Comparison, Named, worth
from vitdeploy.quant.pictures import Pictures
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.record import Census, Worth


class Acceptance(NamedTuple):
    """What the last step has shown.

    Attributes:
        census: Engine to what it runs.
        worth: What was gained and lost; None when it was not measured.
        verdict: One sentence; "" when it was not to be measured.
    """

    census: dict[str, Census]
    worth: Worth | None = None
    verdict: str = ""


def try_out(source: Artifact, made: Artifact, plan: Plan, pictures: Pictures | None, progress: Progress) -> Acceptance:
    """Count the kernels on the target's engines, write the golden batch, and say whether it was worth it.

    Args:
        source: The FP32 artifact.
        made: What came out; its record has the target, threads, and whether to measure.
        plan: What it should run in 8 bits.
        pictures: The calibration images: those held back judge.
        progress: Hears of each step.

    Raises:
        InputError: VD3110, the source or what came out gives NaN or infinity on an image.
        MachineError: VD4009, an engine does not run what was planned; VD4004, VD4006 to VD4008, it failed.
    """
    config = made.record.config
    assert isinstance(config, QuantizeConfig)
    options = OpenConfig(threads=config.threads)
    engines = list_judges(config.target)
    counts = {}
    kept = golden.read(source) or golden.make(source, options)
    for engine in engines:
        with closing(load(engine).open(made, options)) as runner:
            counts[engine] = census(plan, runner.kernels(), engine)
            require(counts[engine], config.target or "")
            if engine == engines[0]:
                golden.of(runner, made, kept).write(made.folder)
    if not engines:
        with closing(golden.open_first(made, options)) as first:
            golden.of(first, made, kept).write(made.folder)
        _look_through(source, pictures, options)
        unsaid = f"{config.precision.upper()}: not run here: no engine of the target {config.target!r} is installed"
        return Acceptance(counts, verdict=unsaid)
    if not config.verify:
        _look_through(source, pictures, options)
        return Acceptance(counts)
    held = pictures is not None and pictures.held > 0
    batches: Iterable[Named] = ()
    if pictures is not None and pictures.data is not None:
        batches = pictures.part("held" if held else "ranges")
    images = 0 if pictures is None else pictures.held if held else pictures.used
    measured = worth(Comparison(source, made, engines[0], options, held, images), batches, progress=progress)
    return Acceptance(counts, measured, measured.verdict)


def _look_through(source: Artifact, pictures: Pictures | None, options: OpenConfig) -> None:
    """Where every image of a folder was to be used, also those that nothing is compared on give numbers."""
    if pictures is None or not pictures.held or not pictures.whole:
        return
    with closing(load(PROVER).open(source, options)) as runner:
        for batch, names in pictures.part("held"):
            require_finite(source, source.spec.output, run_main(runner, batch, source.spec), names)
