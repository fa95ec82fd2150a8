"""Whether an engine is what was asked for, found by running it: kernels against the plan, outputs against a golden batch.

Engines are known to come out wrong in silence: a fused kernel that computes something else for one shape, a batch whose
rows leak into each other, INT8 layers that run in float. So nothing is accepted because it was built.
"""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Runner, find_largest_batch, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import TABLE
from vitdeploy.data import images
from vitdeploy.errors import MachineError
from vitdeploy.proof.census import Plan, census, require
from vitdeploy.proof.golden import IMAGES, Golden
from vitdeploy.proof.thresholds import COMPANY, LIMITS
from vitdeploy.recipe import CompileConfig
from vitdeploy.record import Audit, Census


class Findings(NamedTuple):
    """What an audit saw.

    Attributes:
        audit: For the record.
        wrong: What is wrong, in words; "" when all is well.
        notes: For people: what could not be told.
    """

    audit: Audit
    wrong: str = ""
    notes: tuple[str, ...] = ()


def audit(artifact: Artifact, golden: Golden, plan: Plan, config: OpenConfig | None = None) -> Findings:
    """Open an engine in a process of its own, and compare what it runs and puts out with what is expected.

    Args:
        artifact: What was compiled.
        golden: Images, of which the first few are run, and what the ONNX file that it was compiled from puts out for them.
        plan: What that file is meant to run in 8 bits.
        config: Settings to open it with; None are the artifact's own.

    Returns:
        The engine's settings and batch, the census, the largest distances; and what is wrong.

    Raises:
        MachineError: VD4010, the engine's device is not here; VD4004 to VD4008, it failed.
    """
    with closing(open_in_child(artifact.record.kind, artifact, config or OpenConfig())) as runner:
        counted, wrong, notes = _count(artifact, runner, plan)
        seen = Audit(settings=runner.settings, batch=runner.batch, census=counted)
        if wrong:
            return Findings(seen, wrong, notes)
        precisions = str(runner.settings["precision"]), artifact.record.precision  # an engine may compute an FP16 file in FP32
        limit = max(LIMITS[arithmetic(each)] for each in precisions)
        distances = _distances(artifact, runner, golden.take(IMAGES))
    seen = msgspec.structs.replace(seen, golden=golden.engine, limit=limit, distances=distances)
    for words, apart in distances.items():
        most = (COMPANY if words == _SAME else 1.0) * limit
        if not apart <= most:
            return Findings(seen, f"{words}, outputs are {apart:.2g} apart, {most:.2g} is the limit", notes)
    return Findings(seen, notes=notes)


_SAME = "for the same image in one batch"


def arithmetic(precision: str) -> str:
    """The coarsest arithmetic that a runner's ``precision`` names: the key into `LIMITS`."""
    return max((name for name in LIMITS if name in precision), key=lambda name: LIMITS[name], default="fp32")


def _count(artifact: Artifact, runner: Runner, plan: Plan) -> tuple[Census | None, str, tuple[str, ...]]:
    """The census for the record, what is wrong in it, and notes.

    The engines that are built on a GPU tell of their kernels through an inspector that may leave some out; what it does not
    tell is no proof of anything.
    """
    engine = str(runner.settings["backend"])
    tells = not TABLE[engine].compiled_only
    try:
        kernels = runner.kernels()
    except MachineError as error:
        if tells or error.code != "VD4004":
            raise
        return None, "", (f"the engine does not tell what it runs: {error.message}",)
    if not kernels:
        return None, "", ()
    counted = census(plan, kernels, engine, tells=tells)
    notes = []
    if counted.untold:
        notes.append(f"the engine does not tell what {len(counted.untold)} of the layers planned for 8 bits run in")
    try:
        require(counted)
    except MachineError as error:
        config = artifact.record.config
        free = isinstance(config, CompileConfig) and config.weakly_typed
        if not free and plan.ours:
            return counted, error.message, tuple(notes)
        notes.append(f"{'the builder was free to choose' if free else 'the file was made elsewhere'}: {error.message}")
    return counted, "", tuple(notes)


def _distances(artifact: Artifact, runner: Runner, golden: Golden) -> dict[str, float]:
    """From the golden outputs, at every batch size that the engine was built for, and of equal rows from each other."""
    tensor, spec = images.to_tensor(golden.pixels, artifact.spec.input), artifact.spec
    distances = {}
    for size in _sizes(artifact, runner, len(tensor)):
        rows = np.arange(max(size, len(tensor))) % len(tensor)
        parts = [run_main(runner, tensor[rows[start : start + size]], spec) for start in range(0, len(rows), size)]
        distances[f"at batch {size}"] = distance(np.concatenate(parts), golden.output[rows])
    together = max(_sizes(artifact, runner, len(tensor)))
    same = run_main(runner, np.repeat(tensor[:1], together, 0), spec)
    distances[_SAME] = float(np.abs(same - same[:1]).max()) / (float(golden.output.std()) or 1.0)
    return distances


def _sizes(artifact: Artifact, runner: Runner, images: int) -> tuple[int, ...]:
    if runner.batch is not None:
        return (runner.batch,)
    largest = find_largest_batch(runner)
    if largest is None:
        return 1, images
    config = artifact.record.config
    usual = config.usual_batch if isinstance(config, CompileConfig) else 1
    return tuple(sorted({1, usual, largest}))


def distance(output: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Euclidean norm of the difference, over that of the expected outputs around their mean over all images and classes.

    Args:
        output: float32 [n, ...].
        expected: float32 [n, ...].

    Returns:
        0 for equal outputs, about 1 for unrelated ones of the same size; infinite for another shape, NaN where there is one.
    """
    if output.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(output - wide) / (np.linalg.norm(wide - wide.mean()) or 1.0))
