"""Quantizers compared: ours and its peers, on the same models, calibration images, test images and engines.

    python -m tests.benchmarks.quantization [--models dinov2,clip] [--engines onnxruntime] [--peers OTHER/bin/python] ...

FP32 in the same engine is what every row is compared with. On OpenVINO every model runs twice: its float parts held to
float32, and in bf16, which is what OpenVINO does by itself where the CPU has that arithmetic (a line says what it does here).
Each quantizer runs in a process of its own, which gives its seconds and its peak memory. Models made of real weights need
VITDEPLOY_REAL_WEIGHTS and VITDEPLOY_CIFAR10 (see ptq/models.py) and are passed over without. With --work what was made is kept
and used again. Peers that this Python lacks are
looked for in the Pythons given by --peers (repeatable). Latency wants an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks import figures, results
from tests.benchmarks.ptq import models, peers, report, timing
from tests.benchmarks.ptq.compare import distance
from tests.benchmarks.ptq.models import Case, MissingError
from tests.benchmarks.ptq.report import Row, Table
from tests.benchmarks.ptq.runs import AbsentError, Made, logits, quantize, tell
from tests.benchmarks.results import say
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import VitdeployError

EXTRA = ("ort-percentile", "ort-entropy", "modelopt-max")
"""Settings of peers that were tried for the sake of fairness, and are run only when `--methods` names them."""
ENGINES = ("onnxruntime", "openvino")


def collect(case: Case, engine: str, options: argparse.Namespace) -> Table:
    """Quantize and compare by every method for this engine."""
    labels = np.load(case.labels)
    source = Artifact.open(case.artifact, verify=False)
    precisions = ["f32", "bf16"] if engine == "openvino" else ["f32"]
    reference = logits(case, source, engine, OpenConfig(threads=options.threads, precision="f32"), options.work)
    table = Table(case.name, engine, len(labels), [], [])

    def add(method: str, title: str, artifact: Artifact, made: Made | None) -> None:
        for precision in list(precisions):
            config = OpenConfig(threads=options.threads, precision=precision)
            try:
                apart = distance(reference, logits(case, artifact, engine, config, options.work), labels)
            except VitdeployError as error:
                table.notes.append(f"Left out: {title}, {precision}: {error}")
                if method == "fp32":  # this CPU has not this arithmetic
                    precisions.remove(precision)
                continue
            table.rows.append(Row(method, title, precision, artifact, apart, made))
            tell(say, case, f"{engine} {precision}: {title}: KL {1000 * apart.kl.value:.2f}e-3", made)

    add("fp32", "FP32", source, None)
    if engine == "openvino":
        from vitdeploy.backends.openvino.backend import openvino

        own = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        table.notes.append(f"Float parts that OpenVINO is not told about are computed in {own} on this CPU.")
    for name in options.methods:
        method = peers.METHODS[name]
        if method.engine != engine:
            continue
        try:
            made = quantize(case, name, options.pythons, options.work)
        except AbsentError as error:
            table.notes.append(f"Left out: {method.title}: {error}")
            say(f"{case.name}: {method.title} left out: {error}")
            continue
        add(name, method.title, made.artifact, made)
    return table


def clock(table: Table, options: argparse.Namespace) -> None:
    """Latency of all rows, interleaved."""
    subjects = {
        row.key: timing.Subject(row.artifact, table.engine, OpenConfig(threads=options.threads, precision=row.precision))
        for row in table.rows
    }
    rounds = timing.measure(subjects, options.rounds, lambda line: say(f"{table.model}, {table.engine}: {line}"))
    for row in table.rows:
        row.rounds = rounds[row.key]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--models", default=",".join(models.NAMES), help="from: %(default)s")
    parser.add_argument("--engines", default=",".join(ENGINES), help="from: %(default)s")
    usual = ",".join(name for name in peers.METHODS if name not in EXTRA)
    parser.add_argument("--methods", default=usual, help=f"default: %(default)s; more: {','.join(EXTRA)}")
    parser.add_argument("--images", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="of latency (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="of the engines (default: all cores)")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--work", type=Path, help="folder to keep what was made (default: a temporary one)")
    parser.add_argument("--peers", action="append", default=[], metavar="PYTHON", help="a Python that has other quantizers")
    options = parser.parse_args()
    if options.quick:
        options.models, options.methods, options.images, options.rounds = "fashion", "ours,ort-dynamic", 20, 2
    for name, known in (("models", models.NAMES), ("engines", ENGINES), ("methods", peers.METHODS)):
        chosen = [part for part in getattr(options, name).split(",") if part]
        if unknown := [part for part in chosen if part not in known]:
            parser.error(f"--{name}: {', '.join(unknown)}; choose from {', '.join(known)}")
        setattr(options, name, chosen)
    options.pythons = [sys.executable, *options.peers]
    return options


def main() -> None:
    """Measure and store."""
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).absolute()
        tables: list[Table] = []
        for name in options.models:
            try:
                case = models.make(name, options.work, options.images, say)
            except MissingError as error:
                say(f"{name}: left out: {error}")
                continue
            for engine in options.engines:
                table = collect(case, engine, options)
                if not options.no_latency:
                    clock(table, options)
                tables.append(table)
        measured = figures.Quantization([report.numbers(table) for table in tables], report.goals(tables))
        results.store("quantization", measured, options)


if __name__ == "__main__":
    main()
