"""What `build` does with a model: everything that can be had here."""

import pytest

from vitdeploy.backends import table
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.recipe import ModelConfig, ValidateConfig
from vitdeploy.verbs import planner
from vitdeploy.verbs.planner import plan

MODEL = ModelConfig(source="vit_tiny_patch16_224")
DATA = ValidateConfig(data="photos", split="val", limit=9)


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    """A machine with two engines of the CPU, and one whose device is elsewhere."""
    there = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(table, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(planner, "examine", lambda names: type("Checkup", (), {"unusable": tuple(names)}))


def test_int8_for_every_engine_that_runs_here():
    recipe = plan(MODEL, DATA)
    assert list(recipe.quantizations) == ["quantize-onnxruntime", "quantize-openvino"]
    assert list(recipe.compilations) == ["compile-onnxruntime", "compile-openvino"]
    assert {(q.precision, q.calibration, q.split) for q in recipe.quantize} == {("int8", "photos", "val")}
    assert recipe.validate == DATA
    assert recipe.bench.backends == ()


def test_without_images_nothing_is_quantized():
    recipe = plan(MODEL, ValidateConfig())
    assert recipe.quantize is None
    assert list(recipe.compilations) == ["compile-onnxruntime", "compile-openvino"]
    with pytest.raises(UsageError, match="needs calibration images"):
        plan(MODEL, ValidateConfig(), precision="int8")


def test_named_engines_are_taken_and_measured():
    recipe = plan(MODEL, DATA, precision="fp16", backends=["openvino"])
    assert [(q.precision, q.target) for q in recipe.quantize] == [("fp16", "openvino")]
    assert recipe.validate.backends == recipe.bench.backends == ("openvino",)
    recipe = plan(MODEL, DATA, backends=["tensorrt-rtx"])  # opens only what it has compiled: the export runs elsewhere
    assert [q.target for q in recipe.quantize] == ["tensorrt"]
    assert recipe.validate.backends == ()


def test_engines_that_do_not_read_a_precision_are_left_out():
    assert list(plan(MODEL, DATA, precision="bf16").compilations) == ["compile-openvino"]
    with pytest.raises(UsageError, match=r"no engine here .* reads fp8"):
        plan(MODEL, DATA, precision="fp8")


def test_an_engine_that_is_not_installed_is_refused_when_named_and_no_recipe_needs_one(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs the package 'openvino'"):
        plan(MODEL, DATA, backends=["openvino"])
    recipe = plan(MODEL, DATA)
    assert recipe.quantize is None
    assert recipe.compile is None
