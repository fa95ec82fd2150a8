"""`doctor`: what is said about a machine, on this one and on others."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from vitdeploy import backends, doctor
from vitdeploy.cli import main
from vitdeploy.errors import UsageError


def test_engines_really_run_here():
    checkup = doctor.examine(["onnxruntime", "onnxruntime"])
    (state,) = checkup.backends
    assert state.usable, state.detail
    assert state.detail[0].isdigit()
    assert checkup.unusable == ()
    assert checkup.packages["numpy"]


@pytest.mark.parametrize("name", backends.TABLE)
def test_every_backend_opens_the_tiny_model(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip(backends.TABLE[name].package)
    monkeypatch.chdir(tmp_path)
    doctor.probe(name)
    assert json.loads(capsys.readouterr().out)["usable"] is True


def test_the_tiny_model_is_valid_onnx():
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(doctor._onnx()), full_check=True)


def test_instruction_sets():
    x86 = "processor : 0\nflags : fpu avx2 avx512f avx512_vnni\nprocessor : 1\n"
    assert doctor.instruction_sets(x86, "x86_64")["avx512_vnni"]
    assert not doctor.instruction_sets(x86, "x86_64")["amx_int8"]
    arm = "processor : 0\nFeatures : fp asimd asimddp i8mm\n"
    assert doctor.instruction_sets(arm, "aarch64")["dotprod"]
    assert doctor.instruction_sets("", "x86_64") == {}
    assert doctor.instruction_sets(x86, "riscv64") == {}


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"returncode": -4, "stdout": "", "stderr": ""}, "crashed (signal 4)"),
        ({"returncode": 1, "stdout": "", "stderr": "Traceback\nImportError: libfoo.so"}, "ImportError: libfoo.so"),
        ({"returncode": 3, "stdout": "", "stderr": ""}, "ended with status 3"),
        ({"returncode": 0, "stdout": "noise\n", "stderr": ""}, "ended with status 0"),
    ],
)
def test_a_child_that_fails_is_an_answer(monkeypatch, result, words):
    monkeypatch.setattr(backends, "installed", lambda: tuple(backends.TABLE))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(**result))
    (state,) = doctor.examine(["openvino"]).backends
    assert state.installed
    assert not state.usable
    assert state.detail == words


def test_a_child_that_hangs_is_an_answer(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(backends, "installed", lambda: tuple(backends.TABLE))
    monkeypatch.setattr(subprocess, "run", hang)
    assert "did not answer" in doctor.examine(["openvino"]).backends[0].detail


def test_a_missing_engine_ends_with_4_only_when_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(backends, "installed", lambda: ())
    assert main(["doctor", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["backends"][0]["usable"]
    assert main(["doctor", "--backend", "openvino"]) == 4
    out, err = capsys.readouterr()
    assert "vitdeploy[openvino]" in out
    assert "not usable: openvino" in err


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError) as caught:
        doctor.examine(["openvno"])
    assert "openvino" in caught.value.fix
