"""What `validate` and `bench` have in common: which engines they try, and what one that fails looks like."""

import os
import signal

import msgspec
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends import table
from vitdeploy.backends.table import TABLE
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.recipe import BenchConfig, QuantizeConfig, ValidateConfig
from vitdeploy.verbs.bencher import bench
from vitdeploy.verbs.reference import find_reference
from vitdeploy.verbs.trial import choose_engines
from vitdeploy.verbs.validator import validate

QUICK = BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1)


SHORT = ValidateConfig(threads=1, batch=16)


def test_device_without_torch(tiny_artifact, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: name if name == "onnxruntime" else None)
    report = validate(tiny_artifact, SHORT)
    assert [row.subject for row in report.rows] == ["pytorch (recorded)", "onnxruntime"]
    assert any("PyTorch is not installed" in note for note in report.notes)
    assert report.rows[1].metrics["sqnr"].value > 90
    assert report.passed and report.verdict.outcome == "pass"
    rows = bench([tiny_artifact], QUICK)
    assert [row.subject for row in rows.rows] == ["onnxruntime"]
    assert any("no speed-up" in note for note in rows.notes)


def test_unknown_and_missing_backends(tiny_artifact, monkeypatch):
    unknown = msgspec.structs.replace(SHORT, backends=("onxruntime",))
    for verb in (lambda: validate(tiny_artifact, unknown), lambda: bench([], QUICK)):
        with pytest.raises(UsageError):
            verb()
    monkeypatch.setattr(table, "find_spec", lambda name: name if name == "torch" else None)
    with pytest.raises(MachineError, match="no inference engine") as caught:
        validate(tiny_artifact, SHORT)
    assert caught.value.code == "VD4001"


def compiled(artifact, kind):
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, kind=kind))


def test_a_compiled_artifact_is_for_its_own_engine(tiny_artifact, monkeypatch):
    """The default is that engine beside the original; another one is refused, and one that is not installed is named."""
    engine = compiled(tiny_artifact, "openvino")
    assert choose_engines((), engine) == ("openvino",)
    assert find_reference(engine, ("openvino",), ()).name == "pytorch"
    for verb in (
        lambda: validate(compiled(tiny_artifact, "openvino"), msgspec.structs.replace(SHORT, backends=("onnxruntime",))),
        lambda: bench([compiled(tiny_artifact, "openvino")], msgspec.structs.replace(QUICK, backends=("onnxruntime",))),
    ):
        with pytest.raises(UsageError, match="was compiled for openvino") as caught:
            verb()
        assert caught.value.code == "VD2013"
    monkeypatch.setattr(table, "find_spec", lambda name: name if name in ("torch", "onnxruntime") else None)
    with pytest.raises(MachineError, match="made for openvino, which is not installed") as missing:
        validate(compiled(tiny_artifact, "openvino"), SHORT)
    assert (missing.value.code, missing.value.fix) == ("VD4001", "run: pip install 'vitdeploy[openvino]'")
    monkeypatch.setattr(table, "find_spec", lambda name: name)
    wanted = QuantizeConfig(target="tensorrt", calibration="random")
    quantized = msgspec.structs.replace(tiny_artifact.record, made_by="quantize", config=wanted)
    with pytest.raises(UsageError, match="has to be compiled before tensorrt"):
        validate(Artifact(tiny_artifact.folder, quantized), SHORT)


@pytest.mark.slow
def test_an_8_bit_file_says_in_which_engine_it_was_not_proven(tiny_artifact):
    config = QuantizeConfig(target="onnxruntime", calibration="random")
    record = msgspec.structs.replace(tiny_artifact.record, precision="int8", config=config)
    made = Artifact(tiny_artifact.folder, record)
    both = ("onnxruntime", "openvino")
    for report in (
        validate(made, msgspec.structs.replace(SHORT, backends=both)),
        bench([made], msgspec.structs.replace(QUICK, backends=both)),
    ):
        said = [note for note in report.notes if "was made for" in note]
        assert [note.partition(", and nothing")[0] for note in said] == [
            "WARNING: tiny: its int8 was made for onnxruntime: openvino may run layers in float"
        ]


@pytest.mark.slow
def test_an_engine_that_crashes_is_one_line(tiny_artifact, monkeypatch):
    """Nothing is left running, and this process lives."""
    monkeypatch.setitem(TABLE, "onnxruntime", TABLE["onnxruntime"]._replace(backend=f"{__name__}:Crashing"))
    with pytest.raises(MachineError, match=r"^error\[VD4007\] .*model.onnx: onnxruntime [\d.]+ was ended by SIGSEGV"):
        validate(tiny_artifact, msgspec.structs.replace(SHORT, backends=("onnxruntime",)))
    with pytest.raises(MachineError, match=r"process of 'onnxruntime' \(onnxruntime [\d.]+\) was ended by SIGSEGV"):
        bench([tiny_artifact], msgspec.structs.replace(QUICK, backends=("onnxruntime",)))


class Crashing:
    """An engine that can't stand a model."""

    def open(self, artifact, options):
        os.kill(os.getpid(), signal.SIGSEGV)
