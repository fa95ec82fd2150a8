"""Whether an engine is what was asked for, found by running it: kernels against the plan, outputs against a golden batch.

Engines are known to come out wrong in silence: a fused kernel that computes something else for one shape, a batch whose
rows leak into each other, INT8 layers that run in float. So nothing is accepted because it was built.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import images
from vitdeploy.artifact import Artifact
from vitdeploy.backends import isolated
from vitdeploy.backends.base import OpenConfig, Runner, run_any
from vitdeploy.errors import EnvironmentError_
from vitdeploy.golden import Golden
from vitdeploy.graph.census import Plan, census, require

LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1, "fp8": 3e-1, "int8": 2e-1}
"""Largest distance from the golden outputs, by arithmetic.

Rounding of that arithmetic stays well below; an engine that is wrong lies at 1 and above, where the outputs have nothing in
common with the golden ones but their size.
"""
_COMPANY = 0.1
"""Share of the limit that may lie between rows of the same image in one batch: kernels may add up a last row in another order."""


class Found(NamedTuple):
    """What an audit saw.

    Attributes:
        facts: For the record.
        wrong: What is wrong, in words; "" when all is well.
    """

    facts: dict[str, Any]
    wrong: str = ""


def audit(artifact: Artifact, golden: Golden, plan: Plan, config: OpenConfig | None = None) -> Found:
    """Open an engine in a process of its own, and compare what it runs and puts out with what is expected.

    Args:
        artifact: What was compiled.
        golden: Images, and what the ONNX file that it was compiled from puts out for them.
        plan: What that file is meant to run in integers.
        config: Settings to open it with; None are the artifact's own.

    Returns:
        The engine's settings, the census, the largest distances; and what is wrong.

    Raises:
        EnvironmentError_: VD4010, the engine's device is not here; VD4004 to VD4008, it failed.
    """
    engine = artifact.record.kind
    with closing(isolated(engine).open(artifact, config or OpenConfig())) as runner:
        facts: dict[str, Any] = {"settings": runner.settings}
        kernels = runner.kernels()
        if kernels:
            counted = census(plan, kernels, engine)
            facts["census"] = msgspec.to_builtins(counted)
            try:
                require(counted)
            except EnvironmentError_ as error:
                return Found(facts, error.message)
        limit = LIMITS[arithmetic(str(runner.settings["precision"]))]
        distances = _distances(artifact, runner, golden)
    facts |= {"golden": golden.engine, "limit": limit, **distances}
    for name, share in (("alone", 1.0), ("together", 1.0), ("company", _COMPANY)):
        if not distances[name] <= share * limit:
            return Found(facts, f"{_WORDS[name]} {distances[name]:.2g} apart, {share * limit:.2g} is the limit")
    return Found(facts)


_WORDS = {
    "alone": "at batch 1 its outputs and the golden ones are",
    "together": "in one batch its outputs and the golden ones are",
    "company": "rows of one batch that hold the same image are",
}


def arithmetic(precision: str) -> str:
    """The coarsest arithmetic that a runner's ``precision`` names: the key into `LIMITS`."""
    return max((name for name in LIMITS if name in precision), key=lambda name: LIMITS[name], default="fp32")


def _distances(artifact: Artifact, runner: Runner, golden: Golden) -> dict[str, float]:
    """Of outputs alone and together from the golden ones, and of equal rows from each other."""
    tensor, name = images.to_tensor(golden.pixels, artifact.spec.input), artifact.spec.output
    alone = np.concatenate([run_any(runner, tensor[index : index + 1])[name] for index in range(len(tensor))])
    together = run_any(runner, tensor)[name]
    size = runner.batch or len(tensor)
    same = run_any(runner, np.repeat(tensor[:1], size, 0))[name]
    spread = float(golden.output.std()) or 1.0
    return {
        "alone": distance(alone, golden.output),
        "together": distance(together, golden.output),
        "company": float(np.abs(same - same[:1]).max()) / spread,
    }


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Euclidean norm of the difference, over that of the expected outputs around their mean over all images and classes.

    Args:
        found: float32 [n, ...].
        expected: float32 [n, ...].

    Returns:
        0 for equal outputs, about 1 for unrelated ones of the same size; infinite for another shape, NaN where there is one.
    """
    if found.shape != expected.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide) / (np.linalg.norm(wide - wide.mean()) or 1.0))
