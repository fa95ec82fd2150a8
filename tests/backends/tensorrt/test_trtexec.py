"""Command lines of trtexec for each major version; trtexec itself is not run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends.tensorrt import trtexec
from vitdeploy.backends.tensorrt.trtexec import write_command
from vitdeploy.cli.commands import main
from vitdeploy.errors import UsageError
from vitdeploy.recipe import CompileConfig

OUT = Path("out")
REMOVED_IN_11 = {"--stronglyTyped", "--fp16", "--int8", "--bf16", "--fp8", "--best"}
REMOVED_IN_10 = {"--calib", "--workspace", "--explicitBatch", "--buildOnly"}


@pytest.fixture(params=[10, 11, None], ids=["10", "11", "not installed"])
def major(request, monkeypatch):
    return install(monkeypatch, request.param)


def install(monkeypatch, major):
    def version(name):
        if major is None:
            raise metadata.PackageNotFoundError(name)
        return f"{major}.3.0"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(trtexec, "_PLACES", ())
    monkeypatch.setenv("PATH", "")
    return major


def config(**settings):
    return CompileConfig(backend="tensorrt", **settings)


def flags(parts):
    return {part.partition("=")[0] for part in parts}


def test_the_whole_line(tiny_artifact, major):
    given = config(effort=4, workspace_mib=2048, usual_batch=4, largest_batch=16, compatible=True, refit=True, device="cuda:1")
    parts = write_command(tiny_artifact, given, OUT)
    assert [part for part in parts if part != "--stronglyTyped"] == [
        "trtexec", f"--onnx={tiny_artifact.model}", "--saveEngine=out/model.plan", "--skipInference",
        "--builderOptimizationLevel=4", "--profilingVerbosity=detailed", "--noTF32", "--versionCompatible", "--refit",
        "--memPoolSize=workspace:2048M", "--device=1", "--minShapes=pixels:1x3x16x24", "--optShapes=pixels:4x3x16x24",
        "--maxShapes=pixels:16x3x16x24",
    ]  # fmt: skip
    assert ("--stronglyTyped" in parts) == (major != 11)
    assert not flags(parts) & (REMOVED_IN_10 | (REMOVED_IN_11 if major == 11 else set()))


def test_the_usual_settings_say_no_more_than_needed(tiny_artifact, major):
    assert not flags(write_command(tiny_artifact, config(), OUT)) & {
        "--versionCompatible",
        "--refit",
        "--memPoolSize",
        "--device",
    }


def test_a_fixed_batch_has_no_shapes(tiny_static, major):
    assert not flags(write_command(tiny_static, config(), OUT)) & {"--minShapes", "--optShapes", "--maxShapes"}
    with pytest.raises(UsageError, match="takes batch 4, not 2") as caught:
        write_command(tiny_static, config(batch=2), OUT)
    assert caught.value.code == "VD2011"


def test_version_10_may_choose_among_the_types_of_the_file(tiny_artifact, monkeypatch):
    install(monkeypatch, 10)
    elements = frozenset(("float32", "float16", "int8"))
    graph = msgspec.structs.replace(trtexec.read_graph(tiny_artifact.model), elements=dict.fromkeys(elements, 1))
    monkeypatch.setattr(trtexec, "read_graph", lambda path: graph)
    parts = write_command(tiny_artifact, config(weakly_typed=True), OUT)
    assert {"--fp16", "--int8"} <= set(parts)
    assert not {"--stronglyTyped", "--bf16", "--fp8"} & set(parts)


@pytest.mark.parametrize(("installed", "settings"), [(11, {"weakly_typed": True}), (8, {}), (12, {})])
def test_what_a_version_has_not_is_refused(tiny_artifact, monkeypatch, installed, settings):
    install(monkeypatch, installed)
    with pytest.raises(UsageError, match=f"TensorRT {installed}") as caught:
        write_command(tiny_artifact, config(**settings), OUT)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("settings", [{"threads": 2}, {"streams": 2}, {"precision": "f16"}, {"architectures": ("8.9",)}])
def test_what_trtexec_has_not_is_refused(tiny_artifact, major, settings):
    with pytest.raises(UsageError, match=next(iter(settings))) as caught:
        write_command(tiny_artifact, config(**settings), OUT)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("kind", ["tensorrt", "openvino"])
def test_an_engine_is_refused(tiny_artifact, major, kind):
    engine = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind=kind))
    with pytest.raises(UsageError) as caught:
        write_command(engine, config(), OUT)
    assert caught.value.code == "VD2013"


def test_names_with_a_colon_are_quoted(tiny_artifact, monkeypatch):
    install(monkeypatch, 10)
    graph = trtexec.read_graph(tiny_artifact.model)
    named = msgspec.structs.replace(graph, inputs=(msgspec.structs.replace(graph.inputs[0], name="pixels:0"),))
    monkeypatch.setattr(trtexec, "read_graph", lambda path: named)
    assert "--minShapes='pixels:0':1x3x16x24" in write_command(tiny_artifact, config(), OUT)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script")
def test_it_is_found_on_the_path_and_gets_its_arguments_whole(tiny_artifact, tmp_path, monkeypatch):
    program = tmp_path / "trtexec"
    program.write_text('#!/bin/sh\nfor part in "$@"; do echo "$part"; done\n')
    monkeypatch.setattr(trtexec, "_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert trtexec.find_program() == "trtexec"  # no program yet: it can't be executed
    program.chmod(0o755)
    line = write_command(tiny_artifact, config(), Path("a folder; rm -rf"))
    assert line[0] == str(program)
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == line[1:]
    assert said[1] == "--saveEngine=a folder; rm -rf/model.plan"


def test_the_command_prints_it_and_builds_nothing(tiny_artifact, tmp_path, capsys, monkeypatch):
    install(monkeypatch, 10)
    out = tmp_path / "an engine"
    arguments = [
        "compile",
        str(tiny_artifact.folder),
        "--backend",
        "tensorrt",
        "--print-trtexec",
        "--effort",
        "5",
        "-o",
        str(out),
    ]
    assert main(arguments) == 0
    line = shlex.split(capsys.readouterr().out)
    assert line == write_command(tiny_artifact, config(effort=5), out)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == line
    assert not out.exists()


def test_another_engine_has_no_such_program(tiny_artifact, tmp_path, capsys):
    arguments = ["compile", str(tiny_artifact.folder), "--backend", "openvino", "--print-trtexec", "-o", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "VD2011" in capsys.readouterr().err
