"""Where the seconds of INT8 quantization go, beside plain forward passes over the same images.

    python -m tests.benchmarks.quantize_time [--model vit_large_patch16_224] [--images 256] [--threads N]

Random weights, and as many images as `quantize` takes by default, or as `calibration/photos` has: seconds depend on neither.
What is counted is CPU time of this process, so other work on the machine matters little: of each step of the job as it says its
progress, with one image held back for the comparison with FP32, which is left out, and of a forward pass of the source in ONNX
Runtime, 8 images at a time, before and after. Calibration grows with the images; the moments that rounding needs are of 32 images
at most.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

import vitdeploy as vd
from tests.benchmarks import results
from tests.benchmarks.figures import QuantizeTime
from tests.benchmarks.ptq.models import ROOT
from tests.quant.in_process import quantize
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import load
from vitdeploy.recipe import CALIBRATION_IMAGES

BATCH = 8
PHOTOS = ROOT / "calibration" / "photos"


def forward(artifact: vd.Artifact, threads: int) -> float:
    """CPU seconds of one image's forward pass, the best of three batches."""
    contract = artifact.spec.input
    pixels = np.random.default_rng(0).standard_normal((BATCH, contract.channels, contract.height, contract.width), np.float32)
    seconds = []
    with closing(load("onnxruntime").open(artifact, OpenConfig(threads=threads))) as runner:
        runner.run(pixels)
        for _ in range(3):
            start = time.process_time()
            runner.run(pixels)
            seconds.append((time.process_time() - start) / BATCH)
    return min(seconds)


class Clock:
    """Progress of a job as CPU seconds of each of its steps."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self._step, self._start = "rewrite", time.process_time()

    def __call__(self, step: str, done: int, total: int) -> None:
        """What was running until now gets its seconds."""
        now = time.process_time()
        self.steps[self._step] = self.steps.get(self._step, 0.0) + now - self._start
        self._step, self._start = step.removeprefix("quantize: "), now


def measure(options: argparse.Namespace, work: Path, say: Callable[[str], None]) -> QuantizeTime:
    """One model, quantized once."""
    source = vd.export(vd.ModelConfig(source=options.model), vd.ExportConfig(prove_batches=(1, 2)), work / "fp32")
    before = forward(source, options.threads)
    say(f"{options.model}: {before:.2f} CPU seconds an image")
    config = vd.QuantizeConfig(
        calibration=str(PHOTOS), limit=options.images, verify=False, verify_images=1, threads=options.threads
    )
    clock = Clock()
    made = quantize(source, config, work / "int8", progress=clock)
    clock("end", 1, 1)
    proof = made.record.proof
    assert isinstance(proof, vd.record.QuantizeProof) and proof.calibration is not None
    plain = [before, forward(source, options.threads)]
    return QuantizeTime(options.model, proof.calibration.images, options.threads, plain, clock.steps)


def main() -> None:
    """Export, quantize, store."""
    parser = results.parser(__doc__)
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--images", type=int, default=CALIBRATION_IMAGES)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.quick:
        options.model, options.images = "vit_tiny_patch16_224", 8
    with tempfile.TemporaryDirectory() as scratch:
        results.store("quantize_time", measure(options, Path(scratch), results.say), options)


if __name__ == "__main__":
    main()
