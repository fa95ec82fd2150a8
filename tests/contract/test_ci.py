"""The gates of recipes/ci: a healthy model passes, and what goes wrong in practice is stopped with words that say it.

The model is tiny, and its labels are what it says itself, so that every fault costs accuracy and nothing else does.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from tests.proof.test_slices import make_report
from vitdeploy import jsonfile
from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.table import load
from vitdeploy.data import images
from vitdeploy.errors import InputError
from vitdeploy.files import sha256
from vitdeploy.measure.bitmaps import unpack
from vitdeploy.measure.statistics import paired_difference, wilson
from vitdeploy.proof.verdict import judge
from vitdeploy.recipe import QuantizeConfig, ValidateConfig
from vitdeploy.record import Metric
from vitdeploy.report import Report, Row
from vitdeploy.spec import ModelSpec
from vitdeploy.verbs.gatekeeper import GateConfig, gate, read_thresholds
from vitdeploy.verbs.quantizer import quantize
from vitdeploy.verbs.validator import validate

ROOT = Path(__file__).parents[2]
CI = ROOT / "recipes" / "ci"
THRESHOLDS = read_thresholds(CI / "gate.toml")
IMAGES = 800


class Bench(NamedTuple):
    """A model under test, its images and its baseline."""

    model: Artifact
    data: Path
    baseline: Path


def draw(count: int, seed: int) -> np.ndarray:
    """Images of two colours each, uint8 [count, 32, 48, 3]: larger than the model's, so that they are resized."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (count, 4, 6, 3))
    return np.clip(np.kron(colours, np.ones((1, 8, 8, 1), int)) + generator.integers(-20, 20, (count, 32, 48, 3)), 0, 255).astype(
        np.uint8
    )


def label(artifact: Artifact, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images on which the model is surest, and what it says."""
    contract = artifact.spec.input
    prepared = np.stack([images.resize_and_crop(picture, contract) for picture in pictures])
    runner = load("onnxruntime").open(artifact, OpenConfig(threads=1))
    logits = run_main(runner, images.to_tensor(prepared, contract), artifact.spec)
    runner.close()
    first, second = np.sort(logits, 1)[:, -1], np.sort(logits, 1)[:, -2]
    sure = np.sort(np.argsort(second - first)[:IMAGES])
    return pictures[sure], logits[sure].argmax(1)


@pytest.fixture(scope="module")
def bench(tiny_artifact, tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("ci")
    np.savez(folder / "calibration.npz", images=draw(64, 1))
    pictures, labels = label(tiny_artifact, draw(3 * IMAGES, 2))
    np.savez(folder / "photos.npz", images=pictures, labels=labels)
    config = QuantizeConfig(calibration=str(folder / "calibration.npz"), target="onnxruntime", verify=False, keep_original=True)
    model = quantize(tiny_artifact, config, folder / "int8")
    made = GateConfig(
        thresholds=msgspec.structs.replace(THRESHOLDS, min_speedup=None, max_slowdown=None),
        validate=ValidateConfig(data=str(folder / "photos.npz")),
        baseline=folder / "baseline.json",
        update_baseline=True,
    )
    verdict = gate([model.folder], made)
    assert verdict.passed, verdict
    return Bench(model, folder / "photos.npz", folder / "baseline.json")


def remake(artifact: Artifact, folder: Path, change, spec: ModelSpec | None = None) -> Artifact:
    """The artifact with another model file and spec, whose record knows nothing of it."""
    shutil.copytree(artifact.folder, folder)
    model = onnx.load(folder / artifact.record.entry)
    change({each.name: each for each in model.graph.initializer}, model)
    spec = spec or artifact.spec
    for entry in model.metadata_props:
        if entry.key == METADATA_SPEC:
            entry.value = msgspec.json.encode(spec).decode()
    onnx.save(model, folder / artifact.record.entry)
    files = {**artifact.record.files, artifact.record.entry: sha256(folder / artifact.record.entry)}
    record = msgspec.structs.replace(artifact.record, spec=spec, files=files)
    (folder / RECORD).write_text(jsonfile.encode(record))
    return Artifact.open(folder)


def spoil_scales(initializers, model: onnx.ModelProto) -> None:
    """A sixteenth of the step of what two layers read: most of it saturates."""
    steps = dict.fromkeys(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    for name in list(steps)[:2]:
        initializers[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializers[name]) / 16, name))


def reverse_channels(initializers, model: onnx.ModelProto) -> None:
    """A patch embedding that takes BGR."""
    for name, tensor in initializers.items():
        if len(tensor.dims) == 4 and tensor.dims[1] == 3:
            initializers[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:, ::-1].copy(), name))


def keep(initializers, model: onnx.ModelProto) -> None:
    pass


def decide(bench: Bench, model: Artifact, tmp_path: Path, latency: Report | None = None):
    """The gate as the examples run it: reports of the model, then limits and baseline."""
    report = validate(model, ValidateConfig(data=str(bench.data), backends=("onnxruntime",)))
    return decide_report(bench, report, tmp_path, latency)


def decide_report(bench: Bench, report: Report, tmp_path: Path, latency: Report | None = None):
    paths = []
    for name, each in (("accuracy", report), ("latency", latency or time_model(bench, 3.0))):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(jsonfile.encode(each))
    verdict = gate(paths, GateConfig(thresholds=THRESHOLDS, baseline=bench.baseline))
    return {one.name: one for one in verdict.gates if one.outcome == "fail"}, verdict


def time_model(bench: Bench, speedup: float) -> Report:
    """A report of latency that was written, not measured: no test depends on the machine."""
    metrics = {"batch": Metric(1, "count"), "speedup": Metric(speedup, "ratio", 0.97 * speedup, 1.03 * speedup)}
    settings = {"backend": "onnxruntime", "artifact": bench.model.name, "reference": "pytorch", "id": bench.model.id}
    rows = (Row("pytorch", {}, {"backend": "pytorch"}), Row("onnxruntime", metrics, settings))
    return Report(title="bench", reference="pytorch", rows=rows, settings={"artifact": bench.model.name, "rounds": 10})


@pytest.fixture(scope="module")
def timed(bench, tmp_path_factory) -> Bench:
    """The same with latency in the baseline."""
    folder = tmp_path_factory.mktemp("timed")
    report = validate(bench.model, ValidateConfig(data=str(bench.data), backends=("onnxruntime",)))
    both = bench._replace(baseline=folder / "baseline.json")
    paths = []
    for name, each in (("accuracy", report), ("latency", time_model(bench, 3.0))):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(jsonfile.encode(each))
    assert gate(paths, GateConfig(baseline=both.baseline, update_baseline=True)).outcome != "fail"
    return both


@pytest.mark.slow
class TestFaults:
    def test_a_healthy_model_passes(self, timed, tmp_path) -> None:
        failed, verdict = decide(timed, timed.model, tmp_path)
        assert not failed
        assert {one.outcome for one in verdict.gates} == {"pass"}

    def test_spoiled_scales_of_two_layers(self, timed, tmp_path) -> None:
        failed, _ = decide(timed, remake(timed.model, tmp_path / "spoiled", spoil_scales), tmp_path)
        assert {"max_drop", "min_agreement"} <= failed.keys()
        assert failed["max_drop"].why == "the whole interval misses the limit"

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("mean", (0.1, 0.1, 0.1), "mean was [0.485, 0.456, 0.406], is [0.1, 0.1, 0.1]"),
            ("std", (0.5, 0.5, 0.5), "std was [0.229, 0.224, 0.225], is [0.5, 0.5, 0.5]"),
            ("interpolation", "bilinear", "interpolation was bicubic, is bilinear"),
        ],
    )
    def test_another_preparation_of_images(self, timed, tmp_path, field, value, words) -> None:
        """PyTorch beside it is prepared alike, and agrees: only the baseline can tell."""
        contract = msgspec.structs.replace(timed.model.spec.input, **{field: value})
        spec = msgspec.structs.replace(timed.model.spec, input=contract)
        failed, _ = decide(timed, remake(timed.model, tmp_path / "changed", keep, spec), tmp_path)
        assert "contract" in failed
        assert f"images are not prepared as for the baseline: {words}" in failed["contract"].why

    def test_channels_in_another_order(self, timed, tmp_path) -> None:
        failed, _ = decide(timed, remake(timed.model, tmp_path / "bgr", reverse_channels), tmp_path)
        assert {"max_drop", "min_agreement"} <= failed.keys()

    def test_shifted_labels(self, timed, tmp_path) -> None:
        """Where all are shifted `validate` says it; where it was told to go on, the baseline is of other images."""
        shifted = tmp_path / "shifted.npz"
        with np.load(timed.data) as arrays:
            np.savez(shifted, images=arrays["images"], labels=(arrays["labels"] + 1) % timed.model.spec.classes)
        config = ValidateConfig(data=str(shifted), backends=("onnxruntime",))
        with pytest.raises(InputError, match="the labels are shifted by one"):
            validate(timed.model, config)
        report = validate(timed.model, msgspec.structs.replace(config, allow_shifted_labels=True))
        with pytest.raises(InputError, match="is of other images"):
            decide_report(timed, report, tmp_path)

    def test_an_engine_at_twice_the_latency(self, timed, tmp_path) -> None:
        failed, _ = decide(timed, timed.model, tmp_path, time_model(timed, 1.5))
        assert failed.keys() == {"max_slowdown"}
        assert failed["max_slowdown"].why == "the whole interval misses the limit"
        assert failed["max_slowdown"].metric.value == pytest.approx(2.0)


def test_noise_alone_fails_none_of_twenty_runs() -> None:
    """A model that was trained again, or another engine: 1 % of 2,000 images change sides, as many gained as lost."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 200)
    thresholds = msgspec.structs.replace(THRESHOLDS, min_speedup=None, max_slowdown=None, min_agreement=None)
    outcomes = []
    for _ in range(20):
        before = generator.random(2000) < 0.9
        after = np.where(generator.random(2000) < 0.01, generator.random(2000) < 0.5, before)
        report = make_report(before, after, labels)
        bits = [unpack(report.images.right[name], 2000) for name in ("pytorch", "engine")]
        gained, lost = int((bits[1] & ~bits[0]).sum()), int((bits[0] & ~bits[1]).sum())
        assert gained + lost > 0
        outcomes.append(judge([add_difference(report, bits)], thresholds).passed)
    assert outcomes == [True] * 20


def add_difference(report: Report, bits: list[np.ndarray]) -> Report:
    from vitdeploy.measure.bitmaps import compare

    row = Row("engine", {"top1_difference": compare(*bits), "images": Metric(2000, "count")})
    return msgspec.structs.replace(report, rows=(report.rows[0], row))


# The examples themselves


def list_github() -> list[str]:
    """The `run:` steps but the installation, as GitHub runs them."""
    workflow = yaml.safe_load((CI / "github.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["gate"]["steps"] if "run" in step]
    assert steps[0].startswith("pip install ")
    assert workflow["env"].keys() == {"MODEL", "IMAGES", "BASELINE"}
    return steps[1:]


def list_gitlab() -> list[str]:
    job = yaml.safe_load((CI / "gitlab.yml").read_text())["gate"]
    assert all(line.startswith("pip install ") for line in job["before_script"])
    assert job["variables"].keys() == {"MODEL", "IMAGES", "BASELINE"}
    return job["script"]


PYTEST = f"{shlex.quote(sys.executable)} -m pytest -q -p no:cacheprovider {shlex.quote(str(CI / 'test_model.py'))}"
EXAMPLES = {
    "github": list_github,
    "gitlab": list_gitlab,
    "shell": lambda: [f'sh {shlex.quote(str(CI / "gate.sh"))} "$MODEL" "$IMAGES" "$BASELINE"'],
    "pytest": lambda: [
        f"{shlex.quote(sys.executable)} -m pytest -q -p no:cacheprovider {shlex.quote(str(CI / 'test_model.py'))}"
    ],
}


@pytest.fixture
def desk(tmp_path) -> Path:
    """A folder with the limits, those of latency left out, and a `vitdeploy` that measures it briefly."""
    lines = (CI / "gate.toml").read_text().splitlines()
    (tmp_path / "gate.toml").write_text("\n".join(line for line in lines if not re.match("min_speedup|max_slowdown", line)))
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "vitdeploy"
    brief = '[ "$1" = bench ] && set -- "$@" --rounds 2 --seconds 0.02'
    shim.write_text(f'#!/bin/sh\n{brief}\nexec {shlex.quote(sys.executable)} -m vitdeploy "$@"\n')
    shim.chmod(0o755)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("fault", [None, spoil_scales], ids=["healthy", "spoiled"])
def test_an_example_runs_as_it_is(bench, desk, example, fault) -> None:
    model = bench.model if fault is None else remake(bench.model, desk / "spoiled", fault)
    environment = {**os.environ, "PATH": f"{desk / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"MODEL": str(model.folder), "IMAGES": str(bench.data), "BASELINE": str(bench.baseline)}
    environment |= {"GITHUB_STEP_SUMMARY": str(desk / "summary.md")}
    status, said = 0, ""
    for line in EXAMPLES[example]():
        done = subprocess.run(["bash", "-e", "-c", line], cwd=desk, env=environment, capture_output=True, text=True, timeout=600)
        status, said = done.returncode, said + done.stdout + done.stderr
        if status:
            break
    assert status == (0 if fault is None else 1), said
    if fault is None:
        return
    assert "max_drop 0.5 pt" in said
    assert "misses the limit" in said
    if example == "github":
        assert "::error title=vitdeploy gate::" in said
        assert (desk / "summary.md").read_text().startswith("# Gate: fail")
    if example in ("github", "gitlab", "shell"):
        assert "<failure" in (desk / "gate.xml").read_text()


def test_the_images_of_calibration_are_none_of_those_measured(bench) -> None:
    assert len(base64.b64decode(bench.model.record.calibration.seen)) == 64 * 8


def share_shown(images: int, changed: float) -> float:
    """Share of models that lost nothing of which so many images show that no more than half a point is lost."""
    generator = np.random.default_rng(0)
    apart = generator.binomial(images, changed, 300)
    gained = generator.binomial(apart, 0.5)
    lows = [paired_difference(int(up), int(both - up), images)[0] for up, both in zip(gained, apart, strict=True)]
    return float(np.mean([low >= -0.005 for low in lows]))


def test_the_numbers_of_images_on_the_page_are_those_of_the_intervals() -> None:
    page = " ".join((CI / "README.md").read_text().split())
    assert "800 will do where no answer changes. Where 1 % of them change, 5,000 images show it for nine of ten" in page
    assert "models that lost nothing; where 2 % do, 10,000." in page
    assert paired_difference(0, 0, 800)[0] >= -0.005 > paired_difference(0, 0, 700)[0]
    assert share_shown(5_000, 0.01) >= 0.9 > share_shown(3_000, 0.01)
    assert share_shown(10_000, 0.02) >= 0.9 > share_shown(6_000, 0.02)
    assert "nine times the images (nine of ten right, 2 % of the answers changed)" in page
    (low, high), (least, most) = paired_difference(100, 100, 10_000), wilson(9_000, 10_000)
    assert 2 * ((most - least) / (high - low)) ** 2 == pytest.approx(9, rel=0.05)  # of two shares, over that of one difference
