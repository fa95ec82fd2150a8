"""A model with more outputs is the same model, with its weights where they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tests.fuzz.seeds import FORMS, seed
from vitdeploy.artifact import Artifact
from vitdeploy.errors import InputError, UsageError
from vitdeploy.onnxfile.augment import augment

INSIDE = "blocks.0.mlp/Add_out"


def test_weights_stay_in_their_file(tiny_artifact: Artifact) -> None:
    """What the engine is given is the graph; the original is neither copied nor changed."""
    before = tiny_artifact.model.read_bytes()
    augmented = augment(tiny_artifact.model, ["blocks.0.mlp/Gelu_out"])
    small = onnx.load_from_string(augmented.model)
    assert tiny_artifact.model.read_bytes() == before
    assert small.graph.output[-1].name == "blocks.0.mlp/Gelu_out"
    whole = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tiny_artifact.model).graph.initializer}
    outside = 0
    for tensor in small.graph.initializer:
        outside += tensor.data_location == TensorProto.EXTERNAL
        np.testing.assert_array_equal(numpy_helper.to_array(tensor, str(augmented.folder)), whole[tensor.name])
    assert outside
    assert not any(len(tensor.raw_data) >= 4096 for tensor in small.graph.initializer)


def loaded(raw: bytes, folder: Path) -> onnx.ModelProto:
    """A model with its data inside, as if it had always been there."""
    model = onnx.load_from_string(raw)
    onnx.load_external_data_for_model(model, str(folder))
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def with_output(form: str) -> onnx.ModelProto:
    model = onnx.ModelProto.FromString(seed(form))
    model.graph.output.add(name=INSIDE)
    return model


@pytest.mark.parametrize("where", ["inside", "beside", "bytes", "link"])
@pytest.mark.parametrize("form", FORMS)
def test_nothing_else_changes(form: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdeploy.onnxfile.augment._LARGE", 128)
    path = tmp_path / "a.onnx"
    model = onnx.ModelProto.FromString(seed(form))
    onnx.save(model, path, save_as_external_data=where == "beside", location="w.data", size_threshold=1024)
    if where == "link":
        path = tmp_path / "link.onnx"
        path.symlink_to(tmp_path / "a.onnx")
    augmented = augment(path.read_bytes() if where == "bytes" else path, [INSIDE, "logits", INSIDE])
    assert augmented.folder == (None if where == "bytes" else tmp_path)
    assert loaded(augmented.model, tmp_path) == with_output(form)
    assert (b"a.onnx" in augmented.model) == (where in ("inside", "link"))  # never both beside the model and inside it
    if where in ("inside", "link"):
        assert len(augmented.model) < len(seed(form))


def test_no_such_tensor(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(seed("fp32"))
    with pytest.raises(UsageError, match="no tensor") as caught:
        augment(tmp_path / "a.onnx", ["head.weight"])
    assert caught.value.code == "VD2003"


@pytest.mark.parametrize("as_bytes", [False, True])
def test_damage(as_bytes: bool, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(seed("fp32")[:-300])
    with pytest.raises(InputError) as caught:
        augment((tmp_path / "a.onnx").read_bytes() if as_bytes else tmp_path / "a.onnx", ["logits"])
    assert caught.value.code == "VD3011"
