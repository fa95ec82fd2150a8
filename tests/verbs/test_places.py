"""Where artifacts may be written: never over their source, over another artifact only when told so, the same for every verb."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.errors import UsageError
from vitdeploy.recipe import CompileConfig, ExportConfig, ModelConfig, QuantizeConfig
from vitdeploy.verbs.compiler import compile
from vitdeploy.verbs.exporter import export
from vitdeploy.verbs.quantizer import quantize


def write(verb: str, source: Artifact, out: Path, **more: object) -> Artifact:
    """The least that the verb can do."""
    if verb == "export":
        return export(ModelConfig(source=str(source.folder)), ExportConfig(prove_batches=(1,)), out, **more)
    if verb == "quantize":
        config = QuantizeConfig(precision="int8-weight-only", calibration="random", limit=4, verify=False)
        return quantize(source, config, out, **more)
    return compile(source, CompileConfig(backend="onnxruntime"), out, **more)


def refuse(verb: str, source: Artifact, out: Path, words: str, **more: object) -> None:
    """The verb says those words and leaves everything as it was."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=words) as caught:
        write(verb, source, out, **more)
    assert caught.value.code == "VD2008"
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


@pytest.fixture
def source(tiny_artifact, tmp_path) -> Artifact:
    """The tiny artifact in a folder that may be harmed."""
    return Artifact.open(shutil.copytree(tiny_artifact.folder, tmp_path / "all" / "vit"))


VERBS = ("export", "quantize", "compile")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_a_source_is_never_written_over(verb: str, force: bool, source) -> None:
    above = source.folder.parent
    (above / "link").symlink_to(source.folder)
    shutil.copy(source.folder / RECORD, above / RECORD)  # as if the folder around it were an artifact, too
    refuse(verb, source, source.folder, "is the source", force=force)
    refuse(verb, source, above / "link", "is the source", force=force)
    refuse(verb, source, source.folder / "int8", "lies inside the source", force=force)
    refuse(verb, source, above / "link" / "int8", "lies inside the source", force=force)
    refuse(verb, source, above, "holds the source", force=force)


@pytest.mark.parametrize("verb", ["quantize", "compile"])
def test_a_bare_file_is_never_written_over(verb: str, source) -> None:
    bare = Artifact.open(source.model)
    refuse(verb, bare, source.folder, "is the source", force=True)


def test_the_weights_of_an_export_are_never_written_over(source) -> None:
    model = ModelConfig(source="vit_tiny_patch16_224", weights=str(source.weights))
    with pytest.raises(UsageError, match=r"holds the source .*weights\.safetensors"):
        export(model, ExportConfig(), source.folder, force=True)


def test_a_rival_is_never_written_over(source, tiny_artifact) -> None:
    with pytest.raises(UsageError, match="is the source"):
        compile(tiny_artifact, CompileConfig(backend="onnxruntime"), source.folder, rival=source, force=True)


@pytest.mark.parametrize("verb", VERBS)
def test_another_artifact_is_not_written_over(verb: str, source, tiny_static) -> None:
    out = shutil.copytree(tiny_static.folder, source.folder.parent / "out")
    words = "holds another artifact, made by 'export' from tiny.*; choose another folder, or replace it with --force"
    refuse(verb, source, out, words)
    (out / RECORD).write_text("{}")
    refuse(verb, source, out, f"its {RECORD} is none that vitdeploy wrote", force=True)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_what_the_verb_made_from_the_same_source_is_replaced_and_the_rest_when_told_so(
    verb: str, source, tiny_static, tmp_path
) -> None:
    out = tmp_path / "out"
    first = write(verb, source, out)
    (out / "more").touch()
    refuse(verb, source, out, "holds what vitdeploy did not write there: more", force=True)
    (out / "more").unlink()
    again = write(verb, source, out)
    assert again.record.parent == first.record.parent == source.id
    refuse(verb, tiny_static, out, f"another artifact, made by '{verb}'")
    assert write(verb, tiny_static, out, force=True).record.parent == tiny_static.id


@pytest.mark.slow
def test_random_weights_of_another_model_are_another_source(tmp_path) -> None:
    names = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
    export(ModelConfig(source=names[0]), ExportConfig(prove_batches=(1,)), tmp_path / "out")
    for model in (ModelConfig(source=names[1]), ModelConfig(source=names[0], seed=1)):
        with pytest.raises(UsageError, match=f"another artifact, made by 'export' from {names[0]}"):
            export(model, ExportConfig(prove_batches=(1,)), tmp_path / "out")
