"""What is asked of targets and engines together: refused before any work, chosen where nothing was said."""

from __future__ import annotations

from dataclasses import replace as replace_fields
from pathlib import Path

import msgspec
import pytest

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.targets import explain_misfit, settle_recipe
from vitdeploy.errors import UsageError
from vitdeploy.recipe import CompileConfig, ModelConfig, QuantizeConfig, Recipe

ENGINES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt"}
"""Engine to the target that it reads."""


def recipe(backend: str | None, **quantize: object) -> Recipe:
    compiled = None if backend is None else CompileConfig(backend=backend)
    config = QuantizeConfig(calibration="random", **quantize)
    return Recipe(model=ModelConfig(source="vit_tiny_patch16_224"), quantize=config, compile=compiled)


@pytest.mark.parametrize(("backend", "target"), [*ENGINES.items(), (None, "onnxruntime")])
def test_the_target_of_a_recipe_is_what_its_engine_reads(backend, target) -> None:
    assert settle_recipe(recipe(backend)).quantize.target == target


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("target", [*dict.fromkeys(ENGINES.values()), "portable"])
def test_a_target_that_the_engine_does_not_read_is_refused(backend, target) -> None:
    asked = recipe(backend, target=target)
    if target in ("portable", ENGINES[backend]):
        assert settle_recipe(asked).quantize.target == target
        return
    with pytest.raises(UsageError, match=rf"\[compile\]: '{backend}' does not compile what \[quantize\] makes for") as caught:
        settle_recipe(asked, Path("job.toml"))
    assert caught.value.code == "VD2011"
    assert caught.value.fix == f'write target = "{ENGINES[backend]}" into [quantize]'
    assert settle_recipe(recipe(backend, target=ENGINES[backend])).quantize.target == ENGINES[backend]


def test_a_precision_that_the_engine_has_no_form_of_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[quantize\]: bf16 has no form that 'onnxruntime' reads"):
        settle_recipe(recipe("onnxruntime", precision="bf16"))
    assert settle_recipe(recipe("openvino", precision="bf16")).quantize.target == "openvino"


@pytest.fixture
def int8(tiny_artifact) -> Artifact:
    """As `quantize` records it for ONNX Runtime."""
    config = QuantizeConfig(target="onnxruntime", calibration="random")
    return Artifact(tiny_artifact.folder, Record(spec=tiny_artifact.spec, made_by="quantize", precision="int8", config=config))


def with_record(artifact: Artifact, **more: object) -> Artifact:
    return replace_fields(artifact, record=msgspec.structs.replace(artifact.record, **more))


def test_an_8_bit_file_of_another_engine_is_told(int8) -> None:
    assert explain_misfit("openvino", int8).startswith("its int8 was made for onnxruntime: openvino may run layers in float")
    for fitting in ("onnxruntime", "pytorch"):
        assert explain_misfit(fitting, int8) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp16"},
        {"config": QuantizeConfig(target="portable", calibration="random")},
        {"config": QuantizeConfig(target="openvino", calibration="random")},
        {"config": None},
        {"kind": "openvino"},
    ],
)
def test_what_any_engine_runs_is_no_misfit(more, int8) -> None:
    assert explain_misfit("openvino", with_record(int8, **more)) == ""


def test_what_reads_another_engines_files_fits(int8) -> None:
    config = QuantizeConfig(target="tensorrt", calibration="random")
    assert explain_misfit("tensorrt-rtx", with_record(int8, config=config)) == ""
