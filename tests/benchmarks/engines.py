"""Latency of PyTorch's own forms and of each engine, side by side, with OpenVINO's own measurement beside ours.

    python -m tests.benchmarks.engines [--models small,clip] [--batches 1,8] [--work FOLDER] ...

Every row runs in a process of its own, in interleaved rounds, as `vitdeploy bench` measures: a prepared tensor in, arrays
out. Ratios are PyTorch eager's time over the row's, with 95 % intervals over rounds. `small` has random weights, which
latency does not depend on; so has `clip`, unless VITDEPLOY_REAL_WEIGHTS names a folder with `clip_vitb16`. INT8 models are
calibrated on generated images: their latency is that of a real calibration, their accuracy is not looked at here.

A second table compares the rows of OpenVINO with its own `benchmark_app` on the same file, the same shape and the same
settings, also in turns. What differs is what is timed: there the engine's call alone, here also the check of the tensor and
the copy of the outputs.

With --work what was exported and quantized is kept and used again. Wants an otherwise idle machine and some 10 GiB of memory;
a note says where the machine was not idle.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

import vitdeploy as vd
from tests.benchmarks import results
from tests.benchmarks.figures import Check, Engines, EngineTable, Value
from tests.benchmarks.results import say
from tests.benchmarks.torch_compile import ROW
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import register
from vitdeploy.errors import VitdeployError
from vitdeploy.isolate import choose_environment
from vitdeploy.measure import latency
from vitdeploy.measure.latency import PAUSE_S, Subject
from vitdeploy.measure.statistics import FEWEST_ROUNDS, median_ratio, percentiles, variation
from vitdeploy.measure.worker import Worker
from vitdeploy.proof.doubts import list_doubts
from vitdeploy.proof.thresholds import NOISY

MODELS = {"small": "vit_small_patch16_224", "clip": "vit_base_patch16_clip_quickgelu_224"}
REAL = {"clip": "clip_vitb16"}
"""Folders of real weights under VITDEPLOY_REAL_WEIGHTS."""
REFERENCE = "PyTorch eager"


class Kind(NamedTuple):
    """A row of the table: which file in which engine, and how."""

    title: str
    file: str
    backend: str
    config: OpenConfig


KINDS = (
    Kind(REFERENCE, "fp32", "pytorch", OpenConfig()),
    Kind("torch.compile", "fp32", ROW.name, OpenConfig()),
    Kind("PyTorch bf16", "fp32", "pytorch", OpenConfig(precision="bf16")),
    Kind("torch.compile bf16", "fp32", ROW.name, OpenConfig(precision="bf16")),
    Kind("ONNX Runtime FP32", "fp32", "onnxruntime", OpenConfig()),
    Kind("ONNX Runtime INT8", "int8-onnxruntime", "onnxruntime", OpenConfig()),
    Kind("OpenVINO FP32", "fp32", "openvino", OpenConfig(precision="f32")),
    Kind("OpenVINO bf16", "fp32", "openvino", OpenConfig(precision="bf16")),
    Kind("OpenVINO INT8", "int8-openvino", "openvino", OpenConfig(precision="f32")),
    Kind("OpenVINO INT8, rest bf16", "int8-openvino", "openvino", OpenConfig(precision="bf16")),
)


def collect(model: str, options: argparse.Namespace) -> EngineTable:
    """Make the files of one model, and measure on them."""
    source, weights = _source(model)
    files = make(source, options.work / re.sub(r"\W+", "_", f"{model}_{weights}"))
    kinds, notes = _usable(files, options)
    subjects = [Subject(kind.title, files[kind.file], kind.backend, REFERENCE, kind.config) for kind in kinds]
    config = vd.BenchConfig(batches=options.batches, rounds=options.rounds, seconds=options.seconds, threads=options.threads)
    measured = latency.measure(subjects, config, progress=_said(model))
    notes += list_doubts(measured, config)
    checks: list[Check] = []
    if options.check_rounds and (reason := _no_benchmark_app()):
        notes.append(f"Not compared with benchmark_app: {reason}.")
    elif options.check_rounds:
        try:
            for kind in kinds:
                if kind.backend == "openvino":
                    checks += check(kind, files[kind.file], options)
        except RuntimeError as error:  # what was measured so far shall not be lost
            notes.append(f"WARNING: {error}")
        notes += _unsteady(checks)
    return EngineTable(model, weights, list(measured.rows), checks, notes)


def _source(model: str) -> tuple[str, str]:
    """What `vitdeploy export` takes for this model, and where its weights come from."""
    folder = os.environ.get("VITDEPLOY_REAL_WEIGHTS")
    if folder and model in REAL and (Path(folder) / REAL[model]).is_dir():
        return str(Path(folder) / REAL[model]), "real weights"
    return MODELS.get(model, model), "random weights" if model in MODELS else "as it is"


def make(source: str, work: Path) -> dict[str, Artifact]:
    """The FP32 model and one in INT8 for each engine, made where absent.

    Args:
        source: What `vitdeploy export` takes.
        work: Folder to make them in and to find them again.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "fp32" / RECORD).is_file():
        say(f"{source}: export")
        vd.export(vd.ModelConfig(source=source), vd.ExportConfig(prove_batches=(1, 2)), work / "fp32")
    files = {"fp32": Artifact.open(work / "fp32", verify=False)}
    for engine in ("onnxruntime", "openvino"):
        name = f"int8-{engine}"
        if not (work / name / RECORD).is_file():
            say(f"{source}: quantize for {engine}")
            config = vd.QuantizeConfig(target=engine, calibration="random", limit=32, verify=False)
            vd.quantize(files["fp32"], config, work / name)
        files[name] = Artifact.open(work / name, verify=False)
    return files


def _usable(files: dict[str, Artifact], options: argparse.Namespace) -> tuple[list[Kind], list[str]]:
    """The rows that this machine can run, and why the others are not there."""
    kinds, notes = [], []
    for kind in KINDS:
        config = msgspec.structs.replace(kind.config, threads=options.threads)
        try:
            with Worker(kind.title, files[kind.file], kind.backend, config) as worker:
                worker.open()
        except VitdeployError as error:
            if kind.title == REFERENCE:
                raise
            notes.append(f"Left out: {kind.title}: {error}")
            say(notes[-1])
        else:
            kinds.append(kind)
    return kinds, notes


def _said(model: str) -> Any:
    """A listener that tells every twentieth turn or so."""
    told = [-1]

    def progress(what: str, done: int, total: int) -> None:
        if (step := 20 * done // total) > told[0]:
            told[0] = step
            say(f"{model}: {what}, {done} of {total} turns")

    return progress


def check(kind: Kind, file: Artifact, options: argparse.Namespace) -> Iterator[Check]:
    """Measure one row of OpenVINO with our worker and with `benchmark_app` in turns, at each batch size."""
    config = msgspec.structs.replace(kind.config, threads=options.threads)
    spec = file.spec.input
    with Worker(kind.title, file, kind.backend, config) as worker:
        count = worker.open().settings["threads"]
        for batch in options.batches:
            say(f"{file.name}: {kind.title} at batch {batch} beside benchmark_app")
            worker.prepare(batch, 5)
            runs = len(worker.run(options.seconds))
            command = [*("-m", str(file.model)), "-data_shape", f"[{batch},{spec.channels},{spec.height},{spec.width}]"]
            command += ["-niter", str(runs), "-nthreads", str(count), "-infer_precision", str(kind.config.precision)]
            ours: list[float] = []
            theirs: list[float] = []
            for index in range(options.check_rounds):
                for turn in (index, index + 1):
                    time.sleep(PAUSE_S)
                    if turn % 2 == 0:
                        ours.append(_median(worker.run(options.seconds)))
                    else:
                        theirs.append(benchmark_app(command))
            ratio = Value(_median(ours) / _median(theirs), *median_ratio(ours, theirs))
            yield Check(kind.title, batch, ours, theirs, ratio)


BENCHMARK_APP = (
    "import sys; sys.modules['openvino_telemetry'] = None; sys.argv[0] = 'benchmark_app'; "  # it would tell of each start
    "from openvino.tools.benchmark.main import main; main()"
)
FIXED = ("-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1")
_MEDIAN = re.compile(r"Median:\s+([\d.]+) (ms|us)")


def benchmark_app(arguments: Sequence[str]) -> float:
    """Run OpenVINO's own measurement, in the same environment as our workers.

    Args:
        arguments: Model, shape, iterations, threads, precision; the rest is `FIXED`.

    Returns:
        The median latency that it prints, in ms.

    Raises:
        RuntimeError: It failed, with the last line that it wrote.
    """
    command = [sys.executable, "-W", "ignore", "-c", BENCHMARK_APP, *FIXED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=choose_environment())
    match = _MEDIAN.search(done.stdout)
    if done.returncode or match is None:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        raise RuntimeError(f"benchmark_app ended with status {done.returncode}; it wrote last: {lines[-1]}")
    return float(match[1]) / (1000 if match[2] == "us" else 1)


def _no_benchmark_app() -> str:
    """Why there is none, or ""."""
    package = find_spec("openvino")
    if package is None or package.origin is None:
        return "OpenVINO is not installed"
    there = (Path(package.origin).parent / "tools" / "benchmark" / "main.py").is_file()
    return "" if there else "this OpenVINO came without it"


def _unsteady(checks: list[Check]) -> list[str]:
    return [
        f"WARNING: {each.title} at batch {each.batch}, beside benchmark_app: rounds vary by {100 * worst:.0f} %; "
        "the machine was not quiet"
        for each in checks
        if (worst := max(variation(each.ours), variation(each.theirs))) > NOISY
    ]


def _median(values: Sequence[float]) -> float:
    return percentiles(values, 0.5)[0]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    usual = ",".join(MODELS)
    parser.add_argument("--models", default=usual, help="these, or what `vitdeploy export` takes (default: %(default)s)")
    parser.add_argument("--batches", default="1,8", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=12, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one row in one round, at least (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of the engines (default: all cores)")
    rounds = "with benchmark_app (default: %(default)s; 0 leaves it out)"
    parser.add_argument("--check-rounds", type=int, default=FEWEST_ROUNDS, help=rounds)
    parser.add_argument("--work", type=Path, help="folder to keep the models (default: a temporary one)")
    options = parser.parse_args()
    if options.quick:
        options.models, options.batches, options.rounds = "vit_tiny_patch16_224", "1", 2
        options.seconds, options.check_rounds = 0.02, 1
    options.models = [name for name in options.models.split(",") if name]
    options.batches = tuple(sorted({int(size) for size in options.batches.split(",")}))
    return options


def main() -> None:
    """Measure and store."""
    options = arguments()
    register([ROW])
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).absolute()
        results.store("engines", Engines([collect(model, options) for model in options.models]), options)


if __name__ == "__main__":
    main()
