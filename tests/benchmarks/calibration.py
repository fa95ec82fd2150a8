"""What calibration costs: time beside the plain forward pass, and memory beside ONNX Runtime's own calibrators.

    python -m tests.benchmarks.calibration [--model vit_base_patch16_224] [--images 8,16,32,128,512] [--peer-images 8,16,32]
                                           [--threads N] [--rounds 3] [--memory-limit GIB] [--skip-peers]

Random weights and random images: neither time nor memory depends on them. Ours observes, of every block, the qkv input, q, k
and v, the attention's output, and the inputs of fc1 and fc2. Time: calibration (opening the model included, no early stop) and
the plain forward pass over the same images (opening included, same batch, same threads), in turns in one process; the median
of the ratios. Memory: the peak RSS of a process of its own, less what Python takes with onnxruntime imported; for ours the
promise is the model's size and 300 MiB for any number of images, and 1.25 times the forward pass. The peers (MinMax, Entropy
and Percentile, as `quantize_static` sets them up) run under a memory limit, so that the machine survives them. Wants an
otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.benchmarks import results
from tests.benchmarks.figures import HERE, Calibrated, Calibration, Peer

POOL = 8
TENSORS = re.compile(
    r"blocks\.\d+(\.norm[12]/LayerNormalization_out|\.attn\.qkv/Split_out_[012]|\.attn/Reshape_3_out|\.mlp/Gelu_out)"
)


def images(count: int, size: int) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """Portions of at most 8 images; only 8 different ones, so that they take no memory to speak of."""
    pool = np.random.default_rng(0).standard_normal((POOL, 3, size, size), dtype=np.float32)
    for start in range(0, count, POOL):
        part = pool[: min(POOL, count - start)]
        yield part, tuple(f"image {start + place}" for place in range(len(part)))


def peak() -> float:
    """Peak RSS of this process in MiB; `getrusage` would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def calibrate(task: dict) -> None:
    """Ours, once."""
    from vitdeploy.quant.calibrator import CalibrateConfig, Want, calibrate

    config = CalibrateConfig(limit=task["images"], minimum=task["images"], threads=task["threads"])
    wants = [Want(tensor) for tensor in task["tensors"]]
    statistics = calibrate(Path(task["model"]), wants, images(task["images"], task["size"]), config)
    assert statistics.images == task["images"]


def forward(task: dict, batch: int) -> None:
    """The plain forward pass."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    session = onnxruntime.InferenceSession(task["model"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for pixels, _ in images(task["images"], task["size"]):
        for start in range(0, len(pixels), batch):
            session.run(None, {name: pixels[start : start + batch]})


def child_memory(task: dict) -> dict:
    """Peak RSS of ours."""
    import onnxruntime  # noqa: F401 (what it takes is not ours)

    before = peak()
    calibrate(task)
    return {"mib": peak() - before}


def child_time(task: dict) -> dict:
    """Ours and the plain forward pass, in turns."""
    from vitdeploy.backends.onnxruntime.observer import OnnxRuntimeObserver

    opened = OnnxRuntimeObserver(Path(task["model"]), task["tensors"], threads=task["threads"], batch=8)
    batch = opened.batch
    opened.close()
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(task["rounds"]):
        start = time.perf_counter()
        forward(task, batch)
        middle = time.perf_counter()
        calibrate(task)
        seconds["plain"].append(middle - start)
        seconds["ours"].append(time.perf_counter() - middle)
    return {"batch": batch, **seconds}


def child_peer(task: dict) -> dict:
    """One of ONNX Runtime's calibrators, set up as `quantize_static` does."""
    import logging

    from onnxruntime.quantization import calibrate as peers
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    logging.disable(logging.WARNING)
    before = peak()
    resource.setrlimit(resource.RLIMIT_AS, (task["limit"] << 30, task["limit"] << 30))

    class Reader(peers.CalibrationDataReader):
        def __init__(self) -> None:
            portions = images(task["images"], task["size"])
            self.left = ({"pixels": pixels[place : place + 1]} for pixels, _ in portions for place in range(len(pixels)))

        def get_next(self) -> dict | None:
            return next(self.left, None)

    start = time.perf_counter()
    augmented = str(Path(task["model"]).with_name("augmented.onnx"))
    method = getattr(peers.CalibrationMethod, task["method"])
    types = list({*QDQRegistry, *QLinearOpsRegistry})
    calibrator = peers.create_calibrator(Path(task["model"]), types, augmented, method)
    calibrator.collect_data(Reader())
    calibrator.compute_data()
    return {"mib": peak() - before, "seconds": time.perf_counter() - start}


def run(kind: str, **task: object) -> dict | None:
    """A child's answer, or None when it died."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.calibration", "--child", kind, json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parents[1])
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    print(f"{kind} with {task['images']} images: {last[:160]}", file=sys.stderr)
    return None


def ours(options: argparse.Namespace, common: dict) -> Iterator[Calibrated]:
    """Time and memory of ours, for each number of images."""
    for count in options.images:
        timed = run("time", images=count, rounds=options.rounds, **common)
        memory = run("memory", images=count, **common)
        if timed is not None and memory is not None:
            results.say(f"{count} images: {memory['mib']:.0f} MiB")
            yield Calibrated(count, timed["batch"], timed["plain"], timed["ours"], memory["mib"])


def theirs(options: argparse.Namespace, common: dict) -> Iterator[Peer]:
    """The same of ONNX Runtime's calibrators."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = str(Path(common["model"]).with_name("prepared.onnx"))  # their calibrators want every tensor's type written down
    quant_pre_process(common["model"], prepared, skip_symbolic_shape=True)
    for method in ("MinMax", "Entropy", "Percentile"):
        for count in options.peer_images:
            task = common | {"model": prepared, "method": method, "limit": options.memory_limit}
            cost = run("peer", images=count, **task) or {"seconds": None, "mib": None}
            results.say(f"onnxruntime {method}, {count} images: {cost}")
            yield Peer(f"onnxruntime {method}", count, cost["seconds"], cost["mib"])


def main() -> None:
    """Export, measure, store."""
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(globals()[f"child_{sys.argv[2]}"](json.loads(sys.argv[3]))))
        return
    import onnx

    import vitdeploy as vd

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = results.parser(__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=numbers, default=[8, 16, 32, 128, 512])
    parser.add_argument("--peer-images", type=numbers, default=[8, 16, 32])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    parser.add_argument("--memory-limit", type=int, default=max(2, 3 * memory // 4), metavar="GIB")
    parser.add_argument("--skip-peers", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.model, options.images, options.peer_images, options.rounds = "vit_tiny_patch16_224", [8], [8], 1
    with tempfile.TemporaryDirectory() as scratch:
        config = vd.ExportConfig(prove_batches=(1, 2))
        artifact = vd.export(vd.ModelConfig(source=options.model), config, Path(scratch) / "out")
        nodes = onnx.load(artifact.model).graph.node
        tensors = [name for node in nodes for name in node.output if TENSORS.fullmatch(name)]
        size = artifact.spec.input.height
        common = {"model": str(artifact.model), "tensors": tensors, "size": size, "threads": options.threads}
        mine = list(ours(options, common))
        others = [] if options.skip_peers else list(theirs(options, common))
        mib = artifact.model.stat().st_size / 2**20
        about = (options.model, mib, len(tensors), options.threads, options.memory_limit)
        results.store("calibration", Calibration(*about, mine, others), options)


if __name__ == "__main__":
    main()
