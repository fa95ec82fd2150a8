"""Token merging: what schedules cost in accuracy and give in latency, with INT8, beside INT8 that merges nothing and NNCF's.

    python -m tests.benchmarks.merging [--models clip,dinov2_224] [--images 1000] [--no-latency] [--work FOLDER] ...

Accuracy is told against FP32 without merging in the same engine, on CIFAR-10's test images, paired; latencies are taken in
interleaved rounds of all rows of an engine, and wait for an otherwise idle machine. Models are those of `quantization.py`, which
says what they need, with DINOv2 at 224 pixels. What was made is kept in --work and used again: accuracy and latency can be taken
in two runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

import vitdeploy as vd
from tests.benchmarks import figures, results
from tests.benchmarks.ptq import models, timing
from tests.benchmarks.ptq.compare import distance
from tests.benchmarks.ptq.models import CALIBRATION, Case, MissingError
from tests.benchmarks.ptq.runs import AbsentError, logits, quantize
from tests.benchmarks.results import say
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.zoo.cost import count_macs

ENGINES = ("onnxruntime", "openvino")
SCHEDULES = {
    "fashion": ("4",),
    "clip": ("6-10:16", "6:60,8:60", "4-10:16", "8"),
    "dinov2_224": ("6-10:16", "6:60,8:60", "4-10:16", "8"),
}
"""Model to what is tried: late blocks a little, late blocks at once, more blocks, and the same in every block."""
PEER = "nncf"


def make(case: Case, engine: str, schedule: str | None, options: argparse.Namespace) -> Artifact:
    """INT8 as it ships, with a schedule or without; from the work folder where it was made before."""
    out = options.work / "merged" / f"{case.name}-{engine}-{'none' if schedule is None else schedule.replace(':', '_')}"
    if (out / "artifact.json").is_file():
        return Artifact.open(out, verify=False)
    given = {"calibration": str(case.files), "limit": CALIBRATION, "verify": False, "threads": options.threads}
    return vd.quantize(case.artifact, vd.QuantizeConfig(target=engine, merge_tokens=schedule, **given), out)


def collect(case: Case, engine: str, options: argparse.Namespace) -> figures.MergedTable:
    """All schedules of one model in one engine."""
    made: dict[str, Artifact] = {"FP32": Artifact.open(case.artifact, verify=False), "INT8": make(case, engine, None, options)}
    made |= {f"INT8, merges {schedule}": make(case, engine, schedule, options) for schedule in SCHEDULES[case.name]}
    if engine == "openvino":
        try:
            made["NNCF INT8"] = quantize(case, PEER, options.pythons, options.work).artifact
        except AbsentError as error:
            say(f"{case.name}: {PEER} left out: {error}")
    rows, images = list(_compare(case, engine, made, options)), len(np.load(case.labels, mmap_mode="r"))
    if options.no_latency:
        return figures.MergedTable(case.name, engine, images, rows)
    config = OpenConfig(threads=options.threads, precision="f32")
    subjects = {title: timing.Subject(artifact, engine, config) for title, artifact in made.items()}
    rounds = timing.measure(subjects, options.rounds, lambda line: say(f"{case.name}, {engine}: {line}"))
    timed = [
        msgspec.structs.replace(
            row,
            rounds_ms=rounds[row.title],
            slower={batch: timing.compared(rounds[row.title], rounds["INT8"], batch) for batch in timing.BATCHES},
        )
        for row in rows
    ]
    return figures.MergedTable(case.name, engine, images, timed)


def _compare(case: Case, engine: str, made: dict[str, Artifact], options: argparse.Namespace) -> Iterator[figures.MergedRow]:
    """Every row against FP32, the first one."""
    config, labels = OpenConfig(threads=options.threads, precision="f32"), np.load(case.labels)
    whole = count_macs(made["FP32"].spec)
    reference = logits(case, made["FP32"], engine, config, options.work)
    for title, artifact in made.items():
        apart = distance(reference, logits(case, artifact, engine, config, options.work), labels)
        say(f"{case.name}, {engine}, {title}: KL {1000 * apart.kl.value:.2f}e-3, agreement {100 * apart.agreement.value:.1f} %")
        yield figures.MergedRow(title, count_macs(artifact.spec) / whole, apart.drop, apart.agreement, apart.kl)


def main() -> None:
    """Quantize, compare, time, store."""
    parser = results.parser(__doc__)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["clip", "dinov2_224"])
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES))
    parser.add_argument("--images", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="of latency (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="of the engines (default: all cores)")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--work", type=Path, help="folder to keep what was made (default: a temporary one)")
    parser.add_argument("--peers", action="append", default=[], metavar="PYTHON", help="a Python that has NNCF")
    options = parser.parse_args()
    options.pythons = [sys.executable, *options.peers]
    if options.quick:
        options.models, options.engines, options.images, options.rounds = ["fashion"], ["onnxruntime"], 20, 2
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).absolute()
        tables = []
        for name in options.models:
            try:
                case = models.make(name, options.work, options.images, say)
            except MissingError as error:
                say(f"{name} left out: {error}")
                continue
            tables += [collect(case, engine, options) for engine in options.engines]
        if tables:
            results.store("merging", figures.Merging(tables), options)


if __name__ == "__main__":
    main()
