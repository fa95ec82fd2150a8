"""Which model of a bundle is taken, and in which engine."""

import msgspec
import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import TABLE
from vitdeploy.bundle import unpacking
from vitdeploy.bundle.bundle import open_bundle
from vitdeploy.bundle.unpacking import choose_model, open_model
from vitdeploy.errors import MachineError, UsageError


@pytest.fixture
def bundle(shipment):
    with open_bundle(shipment.bundle) as opened:
        yield opened


def give_engines(bundle, *engines):
    """The bundle, as if its models were made for these engines."""
    models = tuple(
        msgspec.structs.replace(model, engine=engine) for model, engine in zip(bundle.manifest.models, engines, strict=True)
    )
    bundle.manifest = msgspec.structs.replace(bundle.manifest, models=models)
    return bundle


def test_the_first_model_in_the_first_engine(bundle):
    chosen = choose_model(bundle)
    assert (chosen.model.folder, chosen.engine) == ("models/0-fp32", "onnxruntime")
    assert (
        chosen.why == "models/0-fp32 is the first of its models that runs here; onnxruntime is the first engine that is installed"
    )
    assert choose_model(bundle, "openvino").why.endswith("openvino is as asked")


def test_a_model_for_another_engine_is_passed_over(bundle):
    give_engines(bundle, "openvino", "onnxruntime")
    assert choose_model(bundle, "onnxruntime").model.folder == "models/1-fp32"
    assert choose_model(bundle).model.folder == "models/0-fp32"


def test_nothing_for_this_engine(bundle):
    give_engines(bundle, "openvino", "openvino")
    with pytest.raises(UsageError, match="holds models for openvino, none for onnxruntime") as caught:
        choose_model(bundle, "onnxruntime")
    assert caught.value.code == "VD2013"


def test_an_engine_that_compiles_first(bundle):
    with pytest.raises(UsageError, match="has to be compiled before tensorrt can run it"):
        choose_model(bundle, "tensorrt")


def test_no_engine_is_installed(bundle, monkeypatch):
    monkeypatch.setattr(unpacking, "list_engines", lambda: ())
    with pytest.raises(MachineError, match="needs one of these engines: onnxruntime, openvino") as caught:
        choose_model(bundle)
    assert caught.value.fix == TABLE["onnxruntime"].fix
    monkeypatch.setattr(unpacking, "is_installed", lambda name: False)
    with pytest.raises(MachineError, match="needs one of"):
        choose_model(bundle, "openvino")


def test_to_be_compiled_it_is_the_form_for_that_compiler(bundle, monkeypatch):
    give_engines(bundle, "onnxruntime", "tensorrt")
    monkeypatch.setattr(unpacking, "is_installed", lambda name: True)
    assert choose_model(bundle, "tensorrt-rtx", compiles=True).model.folder == "models/1-fp32"
    with pytest.raises(UsageError, match="none for pytorch"):
        choose_model(bundle, "pytorch", compiles=True)


def test_a_bundle_is_an_artifact_until_the_block_ends(shipment, tiny_artifact):
    with open_model(shipment.bundle) as artifact:
        assert artifact.model.is_file()
        assert artifact.record.packed
    assert not artifact.folder.exists()
    with open_model(tiny_artifact) as same, open_model(tiny_artifact.folder) as opened:
        assert same is tiny_artifact
        assert isinstance(opened, Artifact)
    assert tiny_artifact.folder.exists()
