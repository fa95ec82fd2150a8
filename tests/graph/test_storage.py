"""Files of graphs: the same bytes for the same graph, and weights beside it when they are too many."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.graph import foreign, vits
from vitdeploy.errors import MachineError
from vitdeploy.graph import storage
from vitdeploy.graph.editor import Editor


def run(path, pixels: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})


@pytest.mark.parametrize("inline", [True, False])
def test_the_same_graph_gives_the_same_bytes(inline, tmp_path, monkeypatch) -> None:
    if not inline:
        monkeypatch.setattr(storage, "LARGEST_INLINE", 1000)
    proto = vits.quick("plain")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        storage.write(vits.canonical(proto), tmp_path / folder / "model.onnx", {"b": "2", "a": "1"})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == (["model.onnx"] if inline else ["model.onnx", "model.onnx.data"])
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    pixels = vits.feed(proto, 2)
    np.testing.assert_allclose(run(tmp_path / "one" / "model.onnx", pixels)[0], foreign.run(proto, pixels)[0], atol=1e-5)
    assert {each.key: each.value for each in onnx.load(tmp_path / "one" / "model.onnx").metadata_props} == {"a": "1", "b": "2"}


def test_a_file_with_weights_beside_it_is_read_edited_and_written_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "LARGEST_INLINE", 1000)
    proto = vits.quick("plain")
    storage.write(vits.canonical(proto), tmp_path / "first.onnx")
    model = storage.read(tmp_path / "first.onnx")
    before = (tmp_path / "first.onnx.data").read_bytes()
    storage.write(model, tmp_path / "second.onnx")
    assert (tmp_path / "second.onnx.data").read_bytes() == before
    pixels = vits.feed(proto, 1)
    assert (run(tmp_path / "first.onnx", pixels)[0] == run(tmp_path / "second.onnx", pixels)[0]).all()


def test_a_smaller_file_holds_what_lay_beside_the_first(tmp_path, monkeypatch) -> None:
    proto = vits.quick("plain")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "LARGEST_INLINE", 1000)
        storage.write(vits.canonical(proto), tmp_path / "first.onnx")
    (tmp_path / "elsewhere").mkdir()
    storage.write(storage.read(tmp_path / "first.onnx"), tmp_path / "elsewhere" / "second.onnx")
    pixels = vits.feed(proto, 1)
    assert (run(tmp_path / "first.onnx", pixels)[0] == run(tmp_path / "elsewhere" / "second.onnx", pixels)[0]).all()


def test_metadata_stays_when_none_is_given_and_goes_when_some_is(tmp_path) -> None:
    model = vits.canonical(vits.quick("plain"))
    model.metadata_props["old"] = "kept"
    storage.write(model, tmp_path / "a.onnx")
    assert onnx.load(tmp_path / "a.onnx").metadata_props[0].key == "old"
    storage.write(model, tmp_path / "b.onnx", {"new": "1"})
    assert [each.key for each in onnx.load(tmp_path / "b.onnx").metadata_props] == ["new"]


def test_weights_that_nothing_uses_are_not_written(tmp_path) -> None:
    model = vits.canonical(vits.quick("plain"))
    storage.write(model, tmp_path / "a.onnx")
    Editor(model).constant("unused", np.zeros((500, 500), np.float32))
    storage.write(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_is_no_graph_is_said_to_be_none(tmp_path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x07 not a model")
    with pytest.raises(MachineError) as caught:
        storage.read(tmp_path / "broken.onnx")
    assert caught.value.code == "VD4004"
