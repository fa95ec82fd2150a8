"""Command lines for each major version, and files of the form that trtexec's sources write; trtexec itself is not run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy.backends.tensorrt import trtexec
from vitdeploy.backends.tensorrt.trtexec import Options, Shapes
from vitdeploy.errors import InputError, MachineError, UsageError

ONNX, PLAN = Path("model.onnx"), Path("model.plan")
ONLY_10 = {"--stronglyTyped", "--fp16", "--int8", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"}
ONLY_11 = {"--noCudaGraph", "--noSpinWait", "--includeDataTransfers"}
REMOVED = {"--fp16", "--int8", "--bf16", "--fp8", "--int4", "--best", "--calib", "--workspace", "--explicitBatch", "--buildOnly"}
PIXELS = Shapes("pixels", (1, 3, 224, 224), (4, 3, 224, 224), (8, 3, 224, 224))


def command(major, **options):
    return trtexec.command((major, 3, 0), ONNX, Options(engine=PLAN, **options))[1:]


def flags(parts):
    return {part.partition("=")[0] for part in parts}


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("spin", [True, False])
@pytest.mark.parametrize("transfers", [True, False])
def test_both_versions_measure_the_same(graph, spin, transfers):
    settings = {"graph": graph, "spin": spin, "transfers": transfers}
    ten, eleven = flags(command(10, **settings)), flags(command(11, **settings))
    assert ("--useCudaGraph" in ten, "--noCudaGraph" in eleven) == (graph, not graph)
    assert ("--useSpinWait" in ten, "--noSpinWait" in eleven) == (spin, not spin)
    assert ("--noDataTransfers" in ten, "--includeDataTransfers" in eleven) == (not transfers, transfers)
    assert not ten & ONLY_11
    assert not eleven & ONLY_10


def test_version_10_is_told_to_keep_the_types():
    assert "--stronglyTyped" in command(10)
    assert not flags(command(10)) & REMOVED


def test_version_10_may_choose_when_asked():
    parts = command(10, weakly_typed=True)
    assert {"--fp16", "--int8"} <= set(parts)
    assert "--stronglyTyped" not in parts


def test_version_11_has_no_such_choice():
    with pytest.raises(UsageError, match="TensorRT 11") as caught:
        command(11, weakly_typed=True)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("version", [(), (8, 6), (9,), (12, 0)])
def test_other_versions_are_refused(version):
    with pytest.raises(UsageError) as caught:
        trtexec.command(version, ONNX, Options(engine=PLAN))
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("major", [10, 11])
def test_the_whole_line(major):
    options = Options(
        engine=PLAN, shapes=(PIXELS,), effort=4, workspace_mib=2048, timing_cache=Path("t.cache"), times=Path("times.json"),
        layers=Path("layers.json"), profile=Path("profile.json"), warmup_ms=300, seconds=5,
    )  # fmt: skip
    parts = trtexec.command((major, 3), ONNX, options)
    assert Path(parts[0]).name == "trtexec"
    assert [part for part in parts[1:] if part not in ONLY_10] == [
        "--onnx=model.onnx", "--saveEngine=model.plan", "--builderOptimizationLevel=4", "--noTF32",
        "--memPoolSize=workspace:2048M", "--timingCacheFile=t.cache", "--minShapes=pixels:1x3x224x224",
        "--optShapes=pixels:4x3x224x224", "--maxShapes=pixels:8x3x224x224", "--warmUp=300", "--duration=5",
        "--exportTimes=times.json", "--separateProfileRun", "--exportProfile=profile.json", "--profilingVerbosity=detailed",
        "--exportLayerInfo=layers.json",
    ]  # fmt: skip


def test_building_alone_runs_nothing():
    parts = command(10, measure=False)
    assert "--skipInference" in parts
    assert not flags(parts) & {"--useCudaGraph", "--warmUp", "--exportTimes"}


def test_measuring_alone_loads_the_engine():
    parts = command(11, build=False, shapes=(PIXELS,))
    assert parts[:2] == ["--loadEngine=model.plan", "--shapes=pixels:4x3x224x224"]
    assert not flags(parts) & {"--onnx", "--saveEngine", "--minShapes", "--noTF32"}


def test_nothing_to_do_is_refused():
    with pytest.raises(UsageError):
        command(10, build=False, measure=False)


def test_names_with_a_colon_are_quoted():
    parts = command(10, shapes=(PIXELS._replace(name="pixels:0"),))
    assert "--minShapes='pixels:0':1x3x224x224" in parts


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_it_is_found_on_the_path_and_gets_its_arguments_whole(tmp_path, monkeypatch):
    program = tmp_path / "trtexec"
    program.write_text('#!/bin/sh\nfor part in "$@"; do echo "$part"; done\n')
    monkeypatch.setattr(trtexec, "_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert trtexec.find() is None  # no program yet: it can't be executed
    program.chmod(0o755)
    assert trtexec.find() == program
    line = trtexec.command((10, 3), Path("a model; rm -rf.onnx"), Options(engine=PLAN))
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == line[1:]
    assert said[0] == "--onnx=a model; rm -rf.onnx"


def runs(*compute):
    """As exportJSONTrace writes them; older versions add endToEndMs."""
    keys = ["startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"]
    lines = []
    for time in compute:
        parts = dict.fromkeys(keys, 1.5) | {
            "h2dMs": 0.5,
            "computeMs": time,
            "d2hMs": 0.25,
            "latencyMs": time + 0.75 if isinstance(time, int) else 2,
        }
        lines.append("{ " + ", ".join(f'"{key}" : {number}' for key, number in parts.items()) + " }")
    return "[\n  " + "\n, ".join(lines) + "\n]\n"


def test_times_are_read(tmp_path):
    (tmp_path / "times.json").write_text(runs(*range(1, 102)))
    found = trtexec.read_times(tmp_path / "times.json")
    assert found.runs == 101
    assert found.compute == (51.0, 91.0, 100.0, 51.0)
    assert found.upload.median == found.upload.p99 == 0.5
    assert found.download.mean == 0.25
    assert found.latency.median == 51.75


def test_transfers_that_were_left_out_are_zeros(tmp_path):
    text = runs(1, 2).replace('"h2dMs" : 0.5', '"h2dMs" : 0').replace('"d2hMs" : 0.25', '"d2hMs" : 0')
    (tmp_path / "times.json").write_text(text)
    assert trtexec.read_times(tmp_path / "times.json").upload == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", runs(1, 2)[:-30], runs(-1), runs("true"), runs("NaN"), runs("1e999"), runs('"1"'), '[{"computeMs": 1}]'],
)
def test_damaged_times_are_refused(tmp_path, text):
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(InputError) as caught:
        trtexec.read_times(tmp_path / "times.json")
    assert caught.value.code == "VD3005"


def test_no_run_and_no_file_are_refused(tmp_path):
    (tmp_path / "times.json").write_text("[\n]\n")
    for name, code in (("times.json", "VD3002"), ("nothing.json", "VD3001")):
        with pytest.raises(InputError) as caught:
            trtexec.read_times(tmp_path / name)
        assert caught.value.code == code


def test_a_profile_is_read(tmp_path):
    """As exportJSONProfile writes it: names as they are, with the control characters in them."""
    (tmp_path / "profile.json").write_text(
        '[\n  { "count" : 500 }\n'
        ', { "name" : "_gemm_mha_v2_myl0_6", "timeMs" : 100, "averageMs" : 0.2, "percentage" : 25 }\n'
        ', { "name" : "a\x1fb", "timeMs" : 300, "averageMs" : 0.6, "percentage" : 75 }\n]\n'
    )
    first, second = trtexec.read_profile(tmp_path / "profile.json")
    assert first == ("_gemm_mha_v2_myl0_6", 0.2, 0.25)
    assert second.name == "a\x1fb"
    assert first.share + second.share == 1


def test_layers_are_read_by_the_inspections_reader(tmp_path):
    (tmp_path / "layers.json").write_text(json.dumps({"Layers": [{"Name": "a", "LayerType": "gemm"}], "Bindings": []}))
    assert trtexec.read_layers(tmp_path / "layers.json")[0].kind == "gemm"
    (tmp_path / "layers.json").write_text("[]")
    with pytest.raises(MachineError):
        trtexec.read_layers(tmp_path / "layers.json")


def test_huge_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(trtexec, "LARGEST", 10)
    (tmp_path / "times.json").write_text(runs(1))
    with pytest.raises(InputError, match="larger"):
        trtexec.read_times(tmp_path / "times.json")
