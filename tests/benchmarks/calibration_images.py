"""What it costs to calibrate on other images than the model's own: the photographs of this repository, or random pixels.

    python -m tests.benchmarks.calibration_images [--models dinov2,clip] [--images 500] [--work FOLDER] [--threads N]

INT8 as it ships, made from 128 images of the task that the model was fitted for (CIFAR-10's training part), from 128 of
`calibration/photos`, and from random pixels; compared with FP32 in the same engine on CIFAR-10's test images. Models and their
folders are those of `quantization.py`, and need VITDEPLOY_REAL_WEIGHTS and VITDEPLOY_CIFAR10.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import vitdeploy as vd
from tests.benchmarks import results
from tests.benchmarks.figures import CalibratedOn, CalibrationImages
from tests.benchmarks.ptq import models
from tests.benchmarks.ptq.compare import distance
from tests.benchmarks.ptq.models import CALIBRATION, ROOT, Case, MissingError
from tests.benchmarks.ptq.runs import logits
from tests.benchmarks.results import say
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig

PHOTOS = ROOT / "calibration" / "photos"
ENGINES = ("onnxruntime", "openvino")


def compare(case: Case, engine: str, options: argparse.Namespace) -> Iterator[CalibratedOn]:
    """One model in one engine, calibrated on each kind of images."""
    source, labels = Artifact.open(case.artifact, verify=False), np.load(case.labels)
    config = OpenConfig(threads=options.threads, precision="f32")
    reference = logits(case, source, engine, config, options.work)
    for name, images in (("the task's own", str(case.files)), ("calibration/photos", str(PHOTOS)), ("random pixels", "random")):
        settings = vd.QuantizeConfig(target=engine, calibration=images, limit=CALIBRATION, verify=False, threads=options.threads)
        made = vd.quantize(
            source, settings, options.work / "calibrated" / f"{case.name}-{engine}-{name.split('/')[-1]}", force=True
        )
        apart = distance(reference, logits(case, made, engine, config, options.work), labels)
        say(f"{case.name}, {engine}, {name}: KL {1000 * apart.kl.value:.2f}e-3, agreement {100 * apart.agreement.value:.1f} %")
        yield CalibratedOn(case.name, engine, name, len(labels), apart.drop, apart.agreement, apart.kl)


def main() -> None:
    """Quantize, compare, store."""
    parser = results.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["dinov2", "clip"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if options.quick:
        options.models, options.images = ["fashion"], 50
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).absolute()
        rows: list[CalibratedOn] = []
        for name in options.models:
            try:
                case = models.make(name, options.work, options.images, say)
            except MissingError as error:
                say(f"{name} left out: {error}")
                continue
            for engine in ENGINES:
                rows += compare(case, engine, options)
        if rows:
            results.store("calibration_images", CalibrationImages(rows), options)


if __name__ == "__main__":
    main()
