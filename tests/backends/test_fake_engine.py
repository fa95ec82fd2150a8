"""A new engine is one folder and one row: one that is not shipped goes through the whole line, and nothing else knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.backends.fake_engine import ROW
from tests.conftest import TINY
from vitdeploy.artifact import Artifact
from vitdeploy.backends import table
from vitdeploy.cli.commands import main
from vitdeploy.proof import golden
from vitdeploy.report import Report

RECIPE = """
[model]
source = "spec.json"
[export]
prove_batches = [1, 2]
[quantize]
target = "fake"
calibration = "random"
limit = 8
verify = false
[compile]
backend = "fake"
optimise = "latency"
[validate]
limit = 4
batch = 2
backends = ["fake"]
[bench]
rounds = 2
seconds = 0.01
warmup = 0
backends = ["fake"]
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(table.TABLE, ROW.name, ROW)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What `build` makes of the recipe; the engine is registered in this process alone."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "spec.json").write_bytes(msgspec.json.encode(TINY))
    (folder / "job.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(table.TABLE, ROW.name, ROW)
        assert main(["build", str(folder / "job.toml"), "-o", str(folder / "out"), "-q"]) == 0
    return folder / "out"


def test_quantize_writes_for_it_and_it_judges(built):
    made = Artifact.open(built / "quantize")
    assert made.engine == ROW.name
    census = made.record.proof.census
    assert list(census) == [ROW.name]
    assert census[ROW.name].executed["gemms"] == census[ROW.name].planned["gemms"] > 0
    batch = golden.read(made)
    assert batch is not None
    assert batch.engine == ROW.name


def test_compile_makes_its_engine_and_audits_it(built):
    made = Artifact.open(built / "compile")
    assert (made.record.kind, made.record.entry) == (ROW.name, "copy.onnx")
    assert made.record.proof.audit.settings["backend"] == ROW.name
    assert made.record.proof.optimise.chosen


def test_validate_and_bench_measure_it(built):
    report = msgspec.json.decode((built / "report.json").read_bytes(), type=Report, strict=False)
    for part in report.parts:
        rows = [row for row in part.rows if row.settings["backend"] == ROW.name]
        assert len(rows) == 3, part.title  # the exported, the quantized and the compiled file
    validated = next(part for part in report.parts if part.title == "validate")
    exported, *_ = (row.metrics["top1_agreement"].value for row in validated.rows if row.subject != validated.reference)
    assert exported == 1


def test_predict_and_doctor_run_it(built, tmp_path, capsys):
    Image.fromarray(np.full((16, 24, 3), 99, np.uint8)).save(tmp_path / "grey.png")
    assert main(["predict", str(built / "compile"), str(tmp_path / "grey.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["classes"]) == 5
    assert main(["doctor", "--backend", "fake", "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)["backends"]
    assert state["usable"], state["detail"]


def test_a_typo_of_its_name_is_answered_with_it(built, tmp_path, capsys):
    source, out = str(built / "export"), str(tmp_path / "out")
    assert main(["quantize", source, "--backend", "fakke", "--data", "random", "-o", out]) == 2
    assert main(["compile", source, "--backend", "fakke", "-o", out]) == 2
    assert capsys.readouterr().err.count("did you mean 'fake'?") == 2
    assert not Path(out).exists()


def test_a_precision_that_it_does_not_read_is_refused_by_its_row(built, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["quantize", str(built / "export"), "--backend", "fake", "--precision", "fp16", "-o", out]) == 2
    assert "fp16 has no form that 'fake' reads; use --backend onnxruntime or" in capsys.readouterr().err
