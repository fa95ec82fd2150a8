"""`doctor`: what is said about a machine, on this one and on others."""

import json
import os
import signal
import sys
import time

import pytest

from vitdeploy import isolate, machine
from vitdeploy.backends import table
from vitdeploy.backends.child import share_table
from vitdeploy.cli.commands import main
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.verbs import doctor


def test_engines_really_run_here():
    checkup = doctor.examine(["onnxruntime", "onnxruntime"])
    (state,) = checkup.backends
    assert state.usable, state.detail
    assert state.detail[0].isdigit()
    assert checkup.unusable == ()
    assert checkup.packages["numpy"]


@pytest.mark.parametrize("name", [name for name, entry in table.TABLE.items() if not entry.compiled_only])
def test_every_backend_opens_the_tiny_model(name, tmp_path, monkeypatch):
    pytest.importorskip(table.TABLE[name].package)
    monkeypatch.chdir(tmp_path)
    assert doctor.probe((name, share_table()))["usable"] is True


class Engine:
    """Opens only what it has compiled."""

    def device(self):
        return "a GPU"


class Stranded(Engine):
    def device(self):
        raise MachineError("VD4010", "no CUDA device")


class Silent:
    pass


class Broken:
    def __init__(self):
        raise ImportError("libnvinfer.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("kind", "usable", "words"),
    [
        ("Engine", True, "on a GPU"),
        ("Stranded", False, "loads, but can't run here: no CUDA device"),
        ("Silent", False, "is not known"),
        ("Broken", False, "libnvinfer.so"),
    ],
)
def test_an_engine_that_only_compiles_is_asked_for_its_device(kind, usable, words, monkeypatch):
    entry = table.Engine("tensorrt", f"{__name__}:{kind}", "numpy", "tensorrt", compiled_only=True)
    monkeypatch.setitem(table.TABLE, "tensorrt", entry)
    state = doctor.probe(("tensorrt", share_table()))
    assert state["usable"] is usable
    assert words in state["detail"]


def test_the_tiny_model_is_valid_onnx():
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load_from_string(doctor._onnx()), full_check=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", "openvino was ended by SIGILL"),
        ("leave", "openvino ended with status 3"),
        ("stall", "took longer than 2 s"),
        ("stumble", "openvino: KeyError: 'planted'"),
    ],
)
def test_a_child_that_fails_is_an_answer(monkeypatch, name, words):
    """The engine is tried in a child process, which here does something else."""
    start = isolate.run

    def elsewhere(function, argument, **limits):
        assert (function, argument[0]) == ("vitdeploy.verbs.doctor:probe", "openvino")
        return start(f"{__name__}:{name}", argument, **{**limits, "seconds": 2})

    monkeypatch.setattr(isolate, "run", elsewhere)
    (state,) = doctor.examine(["openvino"]).backends
    assert state.installed
    assert not state.usable
    assert words in state.detail


def crash(_):
    os.kill(os.getpid(), signal.SIGILL)


def leave(_):
    sys.exit(3)


def stumble(_):
    raise KeyError("planted")


def stall(_):
    time.sleep(60)


def test_a_missing_engine_ends_with_4_only_when_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(table, "is_installed", lambda name: False)
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


def test_findings_say_what_to_do(monkeypatch):
    monkeypatch.setattr(machine, "usable_threads", lambda: 2)
    monkeypatch.setattr(machine, "logical_cores", lambda: 8)
    monkeypatch.setattr(machine, "governor", lambda: "powersave")
    quota, governor = doctor._list_findings()
    assert quota == "a quota leaves 2 of 8 cores: engines start one thread a core and wait; give --threads 2"
    assert governor.startswith("the frequency governor is powersave")
    monkeypatch.setattr(machine, "usable_threads", lambda: 8)
    monkeypatch.setattr(machine, "governor", lambda: "performance")
    assert list(doctor._list_findings()) == []
