"""What becomes of every architecture: networks of timm and transformers, from torch's two exporters to INT8, FP16 and an engine.

    python -m tests.benchmarks.families [NAME ...] --work FOLDER        (all of `architectures` when none is named)

Each is small and has random weights. It is exported by TorchScript (opset 13 to 20) and by torch.export (opset 18 to 25), in
turns over the opsets, then quantized to INT8 for ONNX Runtime and for OpenVINO, turned into FP16, and compiled for OpenVINO.
What comes out is run beside the file it was made from, on images that set no range. Saved as a checkpoint, it is loaded, and
compared with the network itself.

All of it runs in a process apart, which writes a file for each architecture into the work folder: a crash is a row, behind which
a new process goes on, and so does the same command where it was stopped.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import results
from tests.benchmarks.figures import Families, FamilyRow, FamilyStep
from tests.quant.in_process import quantize
from vitdeploy import files, jsonfile
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, UsageError, VitdeployError
from vitdeploy.recipe import CompileConfig, ModelConfig, QuantizeConfig
from vitdeploy.spec import InputContract
from vitdeploy.verbs.compiler import compile
from vitdeploy.verbs.importer import open_foreign

OPSETS = {"torchscript": tuple(range(13, 21)), "dynamo": tuple(range(18, 26))}
CALIBRATION, TEST = 32, 32
PATIENCE_S = 900
SAME_DB = 60.0
"""From this ratio of signal to noise on, two float networks are the same function."""
QUICK = ("vit_tiny_patch16_224", "ViTForImageClassification")


def main() -> None:
    """Measure what is missing in the work folder, and store."""
    parser = results.parser(__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, help="folder of the rows that are there already")
    parser.add_argument("--measure", nargs="*", help="(inside) measure these one after another, LIBRARY/NAME")
    options = parser.parse_args()
    if options.measure:
        for name in options.measure:
            files.write(_row_file(options.work, name), jsonfile.encode(measure(*name.split("/"))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        names = _list_wanted(options.names or (QUICK if options.quick else ()))
        _measure_missing(names, work)
        rows = [row for name in names for row in msgspec.json.decode(_row_file(work, name).read_bytes(), type=list[FamilyRow])]
    results.store("families", Families(CALIBRATION, TEST, rows), options)


def _list_wanted(names: Sequence[str]) -> list[str]:
    from tests.benchmarks.architectures import ALL

    return [f"{each.library}/{each.name}" for each in ALL if not names or each.name in names]


def _row_file(work: Path, name: str) -> Path:
    return work / f"{name.replace('/', '-')}.json"


def _measure_missing(names: Sequence[str], work: Path) -> None:
    """Measure in a process apart, and in a new one behind what crashed it or took too long: that is a row."""
    while missing := [name for name in names if not _row_file(work, name).is_file()]:
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.families", "--work", str(work), "--measure", *missing]
        with (work / "last.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
            said = _watch(child, missing, work)
        left = next((name for name in missing if not _row_file(work, name).is_file()), None)
        if left is not None:
            row = FamilyRow(*left.split("/"), "none", 0, steps={"measure": FamilyStep("crash", said)})
            files.write(_row_file(work, left), jsonfile.encode([row]))


def _watch(child: subprocess.Popen[bytes], names: Sequence[str], work: Path) -> str:
    """Wait for the end of a process, or for `PATIENCE_S` without a row; how it ended."""
    done, since = 0, time.monotonic()
    while child.poll() is None:
        time.sleep(0.5)
        there = [name for name in names if _row_file(work, name).is_file()]
        if len(there) > done:
            done, since = len(there), time.monotonic()
            results.say(f"{done} of {len(names)}")
        if time.monotonic() - since > PATIENCE_S:
            child.kill()
            return f"took longer than {PATIENCE_S} s"
    return f"the process ended with status {child.returncode}"


def measure(library: str, name: str, exporters: Sequence[str] = tuple(OPSETS)) -> list[FamilyRow]:
    """One architecture's row for each exporter."""
    import torch

    from tests.benchmarks import architectures

    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    chosen = architectures.Architecture(library, name)
    net, side = architectures.build(chosen)
    place = architectures.ALL.index(chosen)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        loaded = _attempt(lambda: FamilyStep("ok", "", _load_again(library, name, net, side, Path(scratch) / "saved")))
        for exporter in exporters:
            opsets = OPSETS[exporter]
            folder = Path(scratch) / exporter
            folder.mkdir()
            steps = {"checkpoint": loaded} if not rows else {}
            for opset in opsets[place % len(opsets) :]:  # where torch lacks an operator, the next one
                try:
                    written = net if opset > 13 else architectures.build(chosen, fused=False)[0]
                    fixed = _export(architectures.Vector(written).eval(), side, exporter, opset, folder / "model.onnx")
                except Exception as error:  # noqa: BLE001 (torch's own: whatever it raises is its answer)
                    row = FamilyRow(
                        library, name, exporter, opset, steps=steps | {"export": FamilyStep("not exported", _shorten(error))}
                    )
                    if "is not supported" not in str(error):
                        break
                else:
                    row = FamilyRow(library, name, exporter, opset, fixed=fixed, steps=steps | _convert(folder, side))
                    break
            rows.append(row)
    return rows


def _export(net: Any, side: int, exporter: str, opset: int, path: Path) -> bool:
    """Write the file with any batch or, where the network's code does not stand that, with a batch of one; whether so."""
    import torch

    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["output"], "opset_version": opset}
    script: dict[str, Any] = {"dynamo": False, "dynamic_axes": {"pixels": {0: "batch"}, "output": {0: "batch"}}}
    program: dict[str, Any] = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch", min=1)},), "verbose": False}
    form = script if exporter == "torchscript" else program
    with torch.no_grad():
        try:
            torch.onnx.export(net, (torch.randn(2, 3, side, side),), str(path), **names, **form)
            open_and_run(path, side)
        except Exception:  # noqa: BLE001 (the example's batch is in the graph, or the exporter says so)
            form = {key: value for key, value in form.items() if not key.startswith("dynamic")}
            torch.onnx.export(net, (torch.randn(1, 3, side, side),), str(path), **names, **form)
            return True
    return False


def open_and_run(path: Path, side: int) -> None:
    """ONNX Runtime runs the file at another batch than the example's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.zeros((3, 3, side, side), np.float32)})


def _convert(folder: Path, side: int) -> dict[str, FamilyStep]:
    """Everything that is made of a file."""
    half = (0.5, 0.5, 0.5)
    contract = InputContract(height=side, width=side, resize="stretch", mean=half, std=half)
    pixels = synthetic.pixels(CALIBRATION + TEST, contract)
    test, arrays = images.to_tensor(pixels[CALIBRATION:], contract), folder / "arrays"
    arrays.mkdir()
    for place, each in enumerate(pixels[:CALIBRATION]):
        np.save(arrays / f"{place:02}.npy", each)
    try:
        source = open_foreign(folder / "model.onnx", contract)
        expected = _run(source, "onnxruntime", test)
    except Exception as error:  # noqa: BLE001 (a row, as in `_attempt`)
        return {"open": _judge(error)}
    steps = {}
    for title, precision, engine in (
        ("int8", "int8", "onnxruntime"),
        ("int8", "int8", "openvino"),
        ("fp16", "fp16", "onnxruntime"),
    ):

        def made(precision: Any = precision, engine: str = engine, title: str = title) -> FamilyStep:
            config = QuantizeConfig(precision=precision, target=engine, calibration=str(arrays), limit=CALIBRATION, verify=False)
            artifact = quantize(source, config, folder / f"{title}-{engine}")
            return FamilyStep("ok", sqnr=_ratio(expected, _run(artifact, engine, test)), share=_read_share(artifact))

        steps[f"{title} {engine}"] = _attempt(made)
    compiled = lambda: compile(source, CompileConfig(backend="openvino"), folder / "engine")  # noqa: E731
    steps["compile openvino"] = _attempt(lambda: FamilyStep("ok", sqnr=_ratio(expected, _run(compiled(), "openvino", test))))
    return steps


def _attempt(work: Callable[[], FamilyStep]) -> FamilyStep:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 (what breaks here is what is looked for)
        return _judge(error)


def _judge(error: Exception) -> FamilyStep:
    """Refused with a code, or broken."""
    if isinstance(error, (InputError, UsageError)):
        return FamilyStep("refused", f"{error.code}: {error.message}")
    if isinstance(error, VitdeployError):
        return FamilyStep("failed", f"{error.code}: {error.message}")
    last = traceback.extract_tb(error.__traceback__)[-1]
    return FamilyStep("crash", f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}: {_shorten(error)}")


def _shorten(error: Exception) -> str:
    return re.sub(r"\x1b\[\d*m", "", f"{error}").strip().split("\n")[0][:200]


def _run(artifact: Artifact, engine: str, tensor: NDArray[Any]) -> NDArray[np.float32]:
    with closing(load(engine).open(artifact, OpenConfig(threads=2))) as runner:
        return run_main(runner, tensor, artifact.spec)


def _ratio(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Signal to noise in dB, where the signal is what tells one image from another: the output less its mean over images."""
    signal = ((expected - expected.mean(0)).astype(np.float64) ** 2).sum()
    noise = ((expected.astype(np.float64) - got) ** 2).sum()
    if not np.isfinite(noise):
        return float("-inf")
    return float(10 * np.log10(signal / max(noise, signal * 1e-20)))


def _read_share(artifact: Artifact) -> float | None:
    """Share of the multiplications in 8 bits, as the record's note says it."""
    marker = " % of the linear layers' multiplications are in 8 bits"
    notes = getattr(artifact.record.proof, "notes", ())
    return next((float(note.partition(marker)[0]) / 100 for note in notes if marker in note), None)


def _load_again(library: str, name: str, net: Any, side: int, folder: Path) -> float:
    """Save the network as its library does and load it here; the ratio to the nearest of its own outputs."""
    import torch

    from tests.benchmarks.architectures import TIMM
    from vitdeploy.checkpoints.loader import load as load_checkpoint

    if library == "timm":
        from timm.models._hub import save_for_hf

        arguments = {key: value for key, value in TIMM[name].items() if key != "kept"}
        shared = len({each.data_ptr() for each in net.state_dict().values()}) < len(net.state_dict())
        save_for_hf(net, folder, model_args=arguments, safe_serialization=not shared)  # safetensors holds each tensor once
        config = json.loads((folder / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, side, side]
        (folder / "config.json").write_text(json.dumps(config))
    else:
        net.save_pretrained(folder)
    ours = load_checkpoint(ModelConfig(source=str(folder)), None).net
    with torch.no_grad():
        pixels = torch.randn(8, 3, side, side)
        got = ours(pixels)
        got = (got[0] if isinstance(got, (tuple, list)) else got).numpy().reshape(8, -1)
        given = net(pixels)
    candidates = [given] if isinstance(given, torch.Tensor) else list(_list_outputs(given))
    ratios = [_ratio(each.numpy().reshape(8, -1), got) for each in candidates if each.numpy().size == got.size]
    if not ratios or max(ratios) < SAME_DB:
        raise ValueError(f"another function than the network: {max(ratios, default=float('-inf')):.0f} dB")
    return max(ratios)


def _list_outputs(given: Any) -> Any:
    for value in given.to_tuple() if hasattr(given, "to_tuple") else given:
        if hasattr(value, "numpy"):
            yield value
            if value.ndim == 3:
                yield from (value[:, 0], value.mean(1), value[:, 1:].mean(1))


if __name__ == "__main__":
    main()
