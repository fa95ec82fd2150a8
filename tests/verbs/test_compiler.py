"""Promises of `compile`: engines that open and agree, honest records, rebuilt or refused when wrong, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

import vitdeploy
from tests.onnxfile.test_precision import quantize_elsewhere
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.backends.base import Compiled, OpenConfig, run_any
from vitdeploy.backends.child import open_in_child
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.measure.latency import Measured
from vitdeploy.onnxfile import check
from vitdeploy.proof import golden
from vitdeploy.proof.census import Plan
from vitdeploy.proof.engine import Findings, distance
from vitdeploy.proof.thresholds import LIMITS, RIVAL
from vitdeploy.recipe import BenchConfig, CompileConfig, QuantizeConfig, ValidateConfig
from vitdeploy.record import Audit
from vitdeploy.verbs import compiler
from vitdeploy.verbs.compiler import settings_in_words
from vitdeploy.verbs.quantizer import quantize

ENGINES = ("onnxruntime", "openvino")


def config(backend, **settings):
    return CompileConfig(backend=backend, threads=1, **settings)


@pytest.fixture(scope="module")
def int8(tiny_artifact, tmp_path_factory):
    """INT8 for both engines."""

    def make(target):
        settings = QuantizeConfig(target=target, calibration="random", limit=16, verify=False, threads=1)
        return quantize(tiny_artifact, settings, tmp_path_factory.mktemp("int8") / target)

    return {engine: make(engine) for engine in ENGINES}


def logits(artifact, engine, **settings):
    contract = artifact.spec.input
    tensor = images.to_tensor(synthetic.pixels(6, contract, seed=3), contract)
    with closing(open_in_child(engine, artifact, OpenConfig(**settings))) as runner:
        return run_any(runner, tensor)[artifact.spec.output]


# What comes out


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_what_its_source_gives(tiny_artifact, tmp_path, engine):
    made = vitdeploy.compile(tiny_artifact, config(engine), tmp_path / "out")
    assert distance(logits(made, engine), logits(tiny_artifact, engine)) < 1e-5
    again = Artifact.open(tmp_path / "out")
    assert again.record == made.record
    assert again.record.kind == engine == again.engine
    assert again.record.made_by == "compile"
    assert again.record.parent == tiny_artifact.id
    assert again.spec == tiny_artifact.spec


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", ENGINES)
def test_int8_stays_int8(int8, tmp_path, engine):
    made = vitdeploy.compile(int8[engine], config(engine), tmp_path / "out")
    census = made.record.proof.audit.census
    assert census.planned["gemms"] == census.executed["gemms"] >= 8
    assert not census.missing
    assert distance(logits(made, engine), logits(int8[engine], engine)) < 0.05


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("engine", "how", "precision"),
    [
        ("onnxruntime", "QDQ", "int8"),
        ("onnxruntime", "QOperator", "int8"),  # OpenVINO does not read these operators
        ("onnxruntime", "dynamic", "int8-dynamic"),
        ("openvino", "QDQ", "int8"),
        ("openvino", "dynamic", "int8-dynamic"),
    ],
)
def test_what_others_quantized_is_compiled_by_the_limits_of_its_arithmetic(tmp_path, engine, how, precision):
    made = vitdeploy.compile(Artifact.open(quantize_elsewhere(tmp_path / "a.onnx", how)), config(engine), tmp_path / "out")
    assert made.record.precision == precision
    audit = made.record.proof.audit
    assert audit.limit == LIMITS["int8"]
    assert audit.census.planned["gemms"] + audit.census.planned["dynamic"] > 0
    notes = [note for note in made.record.proof.notes if "the file was made elsewhere" in note]
    assert bool(notes) == bool(audit.census.missing)
    assert all(audit.census.missing[0] in note for note in notes)


def test_advice_for_what_runs_in_float_can_be_followed(int8, tmp_path, monkeypatch):
    """Never to quantize for the engine that the file was quantized for already."""
    monkeypatch.setattr(compiler, "read_plan", lambda path: Plan(gemms=("nowhere",)))
    for target, advice in (("onnxruntime", "a newer onnxruntime"), ("openvino", "--backend onnxruntime")):
        with pytest.raises(MachineError) as caught:
            vitdeploy.compile(int8[target], config("onnxruntime"), tmp_path / "out")
        assert caught.value.code == "VD4009"
        assert advice in caught.value.fix


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_record_says_what_was_run(tiny_artifact, tmp_path, engine):
    proof = vitdeploy.compile(tiny_artifact, config(engine), tmp_path / "out").record.proof
    assert vitdeploy.inspect(tmp_path / "out").facts["engine"] == engine
    assert proof.audit.settings["threads"] == 1
    assert max(proof.audit.distances.values()) < proof.audit.limit
    assert proof.build_s >= 0
    assert proof.builds == 1
    assert proof.run.threads == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_verbs_take_an_engine(tiny_artifact, tmp_path, engine):
    made = vitdeploy.compile(tiny_artifact, config(engine), tmp_path / "out")
    report = vitdeploy.validate(made, ValidateConfig(limit=8, threads=1))
    assert [row.subject for row in report.rows] == ["pytorch", engine]
    assert report.rows[1].metrics["top1_agreement"].value == 1
    report = vitdeploy.bench([made], BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1))
    assert {row.settings["backend"] for row in report.rows} == {"pytorch", engine}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_batch_size(tiny_artifact, tmp_path, engine):
    made = vitdeploy.compile(tiny_artifact, config(engine, batch=3), tmp_path / "out")
    with closing(open_in_child(engine, made, OpenConfig())) as runner:
        assert runner.batch == 3
    assert distance(logits(made, engine), logits(tiny_artifact, engine)) < 1e-5


def test_the_original_comes_along_when_asked_for(tiny_artifact, tmp_path):
    made = vitdeploy.compile(tiny_artifact, config("onnxruntime", keep_original=True), tmp_path / "out")
    assert made.record.files[made.record.weights] == tiny_artifact.record.files[tiny_artifact.record.weights]
    again = vitdeploy.compile(tiny_artifact, config("onnxruntime"), tmp_path / "deep" / "out")
    assert (
        again.record.original
        == Path(os.path.relpath(tiny_artifact.folder.resolve(), (tmp_path / "deep" / "out").resolve())).as_posix()
    )


def test_it_needs_no_pytorch_original(bare_artifact, tmp_path):
    made = vitdeploy.compile(bare_artifact, config("onnxruntime"), tmp_path / "out")
    assert made.weights is None
    assert distance(logits(made, "onnxruntime"), logits(bare_artifact, "onnxruntime")) < 1e-5


def test_the_golden_batch_comes_along(tiny_artifact, tmp_path):
    made = vitdeploy.compile(tiny_artifact, config("onnxruntime"), tmp_path / "out")
    expected = golden.make(tiny_artifact)
    contents = golden.read(Artifact.open(made.folder))
    assert np.allclose(contents.output, expected.output[: len(contents.output)], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_fastest_settings_are_measured_and_kept(tiny_artifact, tmp_path, engine):
    made = vitdeploy.compile(tiny_artifact, config(engine, optimise="latency"), tmp_path / "out")
    found = made.record.proof.optimise
    assert len(found.measured) >= 2
    assert found.measured[found.chosen] == min(found.measured.values())
    run = made.record.proof.run
    assert settings_in_words(run) == found.chosen
    with closing(open_in_child(engine, Artifact.open(made.folder), OpenConfig())) as runner:
        assert runner.settings["threads"] == run.threads


# A rival


@pytest.fixture
def timed(monkeypatch):
    """Latency by name of the precision, in place of measuring."""
    times = {}

    def measure(subjects, bench, *, goal, progress):
        rows = [Row(subject.name, times[subject.artifact.record.precision]) for subject in subjects]
        return Measured(tuple(rows), {}, 8, 0.0)

    class Row:
        def __init__(self, subject, milliseconds):
            metric = vitdeploy.report.Metric
            ratio = times["fp32"] / milliseconds
            self.subject = subject
            self.metrics = {"p50": metric(milliseconds, "ms"), "speedup": metric(ratio, "ratio", ratio - 0.1, ratio + 0.1)}

    monkeypatch.setattr(compiler.latency, "measure", measure)
    return times


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("times", "kept"), [({"int8": 1.0, "fp32": 2.0}, "int8"), ({"int8": 2.0, "fp32": 1.5}, "fp32")])
def test_the_faster_of_two_precisions_is_kept(int8, tiny_artifact, tmp_path, timed, times, kept):
    timed.update(times)
    made = vitdeploy.compile(int8["onnxruntime"], config("onnxruntime"), tmp_path / "out", rival=tiny_artifact)
    assert made.record.precision == kept
    assert Artifact.open(tmp_path / "out").record == made.record
    verdict = made.record.proof.verdict
    assert f"{times['fp32'] / times['int8']:.2f}x as fast as fp32" in verdict
    assert verdict.endswith(f"{kept}{'' if kept == 'int8' else ' (rival)'} is kept")
    assert set(made.record.proof.rival.latency_ms.values()) == set(times.values())


def test_a_rival_is_kept_when_the_first_does_not_pass(int8, tiny_artifact, tmp_path, timed, monkeypatch):
    def audited(artifact, *_):
        return Findings(Audit(), "wrong" if artifact.record.precision == "int8" else "")

    monkeypatch.setattr(compiler, "audit", audited)
    made = vitdeploy.compile(int8["onnxruntime"], config("onnxruntime"), tmp_path / "out", rival=tiny_artifact)
    assert made.record.precision == "fp32"
    assert "could not be had: onnxruntime: the engine is not what was asked for: wrong" in made.record.proof.verdict


def test_when_neither_passes_nothing_is_written(int8, tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(compiler, "audit", lambda *_: Findings(Audit(), "wrong"))
    with pytest.raises(MachineError, match="wrong"):
        vitdeploy.compile(int8["onnxruntime"], config("onnxruntime"), tmp_path / "out", rival=tiny_artifact)
    assert list(tmp_path.iterdir()) == []


def test_a_rival_of_another_model_is_refused(tiny_artifact, tiny_headless, tmp_path):
    with pytest.raises(UsageError, match="another model") as caught:
        vitdeploy.compile(tiny_artifact, config("onnxruntime"), tmp_path / "out", rival=tiny_headless)
    assert caught.value.code == "VD2010"


@pytest.mark.parametrize(("share", "same"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", "fp32"), ("int8", "int8"), ("int8-dynamic", "int8")])
def test_a_rival_of_the_same_form_and_other_weights_is_refused(tiny_artifact, precision, limit, share, same):
    """Its outputs lie farther off than two precisions of one model can."""

    def source(shift, precision="fp32", count=4):
        output = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
        output = (output - output.mean()) / output.std() + np.float32(shift)
        record = msgspec.structs.replace(tiny_artifact.record, precision=precision)
        pixels = synthetic.pixels(4, tiny_artifact.spec.input)
        return SimpleNamespace(
            given=Artifact(tiny_artifact.folder, record), golden=golden.Golden(pixels[:count], output[:count], "x")
        )

    first, second = source(0.0), source(share * RIVAL * LIMITS[limit], precision)
    for one, two in ((first, second), (second, first)):
        if same:
            compiler._require_same(one, two)
        else:
            with pytest.raises(UsageError, match="another model"):
                compiler._require_same(one, two)
    compiler._require_same(first, source(0.0, precision, count=2))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fixed_batch_can_be_optimised_and_have_a_rival(tiny_static, tmp_path, engine):
    wanted = config(engine, optimise="latency")
    made = vitdeploy.compile(tiny_static, wanted, tmp_path / "out", rival=tiny_static)
    assert made.record.proof.audit.batch == 4
    assert "at batch 4" in made.record.proof.verdict


@pytest.mark.sampled(2)
@pytest.mark.parametrize("optimise", [None, "latency"])
def test_a_repaired_file_keeps_its_origin(tiny_artifact, tmp_path, monkeypatch, optimise):
    """The engine is made from a copy; the record is of what was given, also after settings were measured."""

    def repaired(path, folder):
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "model.onnx")
        return folder / "model.onnx", ("one thing repaired",)

    monkeypatch.setattr(check, "sanitize", repaired)
    made = vitdeploy.compile(tiny_artifact, config("openvino", optimise=optimise), tmp_path / "out")
    assert made.record.parent == tiny_artifact.id
    assert made.record.weights is None
    assert made.weights.samefile(tiny_artifact.weights)
    assert made.record.proof.notes[0] == "one thing repaired"


# Engines that come out wrong


class Stubborn:
    """A compiler whose first engines are wrong."""

    name = "tensorrt"

    def __init__(self, wrong):
        self.wrong, self.builds = wrong, 0


@pytest.fixture
def stubborn(monkeypatch):
    """Builds that are wrong as often as is said; audited by a stand-in."""

    def make(wrong):
        made = Stubborn(wrong)

        def run(function, argument, **limits):
            made.builds += 1
            from pathlib import Path

            (Path(argument["out"]) / "model.plan").write_bytes(b"plan")
            return msgspec.to_builtins(Compiled(entry="model.plan"))

        def audited(artifact, expected, plan, config=None):
            return Findings(Audit(), "its outputs are 3 apart" if made.builds <= made.wrong else "")

        monkeypatch.setattr(compiler.isolate, "run", run)
        monkeypatch.setattr(compiler, "audit", audited)
        monkeypatch.setattr(compiler, "require_installed", lambda name: None)
        return made

    return make


def test_a_wrong_engine_is_built_again(tiny_artifact, tmp_path, stubborn):
    builder = stubborn(2)
    made = vitdeploy.compile(tiny_artifact, config("tensorrt"), tmp_path / "out")
    assert builder.builds == 3 == made.record.proof.builds


def test_an_engine_that_stays_wrong_is_refused_and_leaves_nothing(tiny_artifact, tmp_path, stubborn):
    builder = stubborn(9)
    with pytest.raises(MachineError, match="not what was asked for in 3 builds: its outputs are 3 apart") as caught:
        vitdeploy.compile(tiny_artifact, config("tensorrt"), tmp_path / "out")
    assert caught.value.code == "VD4011"
    assert builder.builds == 3
    assert list(tmp_path.iterdir()) == []


def test_an_older_engine_survives_a_failure(tiny_artifact, tmp_path, stubborn):
    vitdeploy.compile(tiny_artifact, config("onnxruntime"), tmp_path / "out")
    before = (tmp_path / "out" / RECORD).read_bytes()
    stubborn(9)
    with pytest.raises(MachineError):
        vitdeploy.compile(tiny_artifact, config("tensorrt"), tmp_path / "out")
    assert (tmp_path / "out" / RECORD).read_bytes() == before


def test_an_engine_without_its_device_is_marked(tiny_artifact, tmp_path, stubborn, monkeypatch):
    stubborn(0)

    def away(*_):
        raise MachineError("VD4010", "no CUDA device")

    monkeypatch.setattr(compiler, "audit", away)
    made = vitdeploy.compile(tiny_artifact, config("tensorrt-rtx"), tmp_path / "out")
    assert not made.record.audited
    assert any("not executed" in note for note in made.record.proof.notes)
    with pytest.raises(MachineError, match="no CUDA device"):  # TensorRT itself builds on the device only
        vitdeploy.compile(tiny_artifact, config("tensorrt"), tmp_path / "other")


# Bad input


def test_an_engine_is_not_compiled_again(tiny_artifact, tmp_path):
    made = vitdeploy.compile(tiny_artifact, config("onnxruntime"), tmp_path / "out")
    with pytest.raises(UsageError, match="already") as caught:
        vitdeploy.compile(made, config("openvino"), tmp_path / "other")
    assert caught.value.code == "VD2013"
    with pytest.raises((UsageError, InputError)) as caught:
        vitdeploy.quantize(made, QuantizeConfig(calibration="random"), tmp_path / "other")


def test_an_engine_opens_in_its_own_backend_only(tiny_artifact, tmp_path):
    made = vitdeploy.compile(tiny_artifact, config("openvino"), tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        open_in_child("onnxruntime", made, OpenConfig())
    assert caught.value.code == "VD2013"


def test_a_missing_engine_is_said_before_any_work(tiny_artifact, tmp_path):
    with pytest.raises(MachineError) as caught:
        vitdeploy.compile(tiny_artifact, config("tensorrt"), tmp_path / "out")
    assert caught.value.code == "VD4001"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [{"effort": 6}, {"usual_batch": 9}, {"largest_batch": 0}, {"batch": 0}, {"seconds": 0.0}, {"rebuilds": -1}, {"threads": 0}],
)
def test_settings_that_no_engine_takes(settings):
    with pytest.raises(UsageError):
        CompileConfig(backend="openvino", **settings)


def test_the_command(tiny_artifact, tmp_path):
    arguments = ["compile", str(tiny_artifact.folder), "--backend", "openvino", "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run([sys.executable, "-m", "vitdeploy", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["record"]["kind"] == "openvino"
    assert "vitdeploy validate" in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "default"),
        ({"precision": "bf16", "threads": 2, "streams": 1}, "bf16, 2 threads, 1 stream"),
        ({"spin": False, "threads": 1}, "1 thread, no spinning"),
    ],
)
def test_settings_in_words(settings, words):
    assert settings_in_words(OpenConfig(**settings)) == words
