"""What lies beside an engine, without TensorRT: the ONNX file with all its data, and one digest over them."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from vitdeploy import files
from vitdeploy.backends.tensorrt import backend
from vitdeploy.errors import InputError


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file with data in two others, one of them three folders down."""
    folder = tmp_path / "source"
    for name, raw in (("model.onnx", b"graph"), ("w.bin", b"weights"), ("a/b/c/w.bin", b"more")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    monkeypatch.setattr(backend, "read_graph", lambda path: SimpleNamespace(external=("w.bin", "a/b/c/w.bin")))
    return folder / "model.onnx"


def test_all_data_comes_along_and_room_is_asked_for_first(model, tmp_path, monkeypatch):
    out, asked = tmp_path / "out", []
    out.mkdir()
    monkeypatch.setattr(files, "need_space", lambda folder, size: asked.append((folder, size, list(out.iterdir()))))
    assert backend._copy(model, out) == out / "model.onnx"
    assert asked == [(out, len(b"graph" + b"weights" + b"more"), [])]
    copied = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert copied == {"model.onnx": b"graph", "w.bin": b"weights", "a/b/c/w.bin": b"more"}


@pytest.mark.parametrize("name", ["model.plan", "model.onnx", "engine.json"])
def test_data_of_a_name_of_ours_is_refused(name, model, tmp_path, monkeypatch):
    (model.parent / name).write_bytes(b"data")
    monkeypatch.setattr(backend, "read_graph", lambda path: SimpleNamespace(external=(name,)))
    with pytest.raises(InputError, match=name) as caught:
        backend._copy(model, tmp_path / "out")
    assert caught.value.code == "VD3027"


def test_the_digest_is_over_every_file_by_name(model):
    parts = [hashlib.sha256(raw).hexdigest() for raw in (b"graph", b"more", b"weights")]
    expected = f"{parts[0]}\0a/b/c/w.bin\0{parts[1]}\0w.bin\0{parts[2]}"
    assert backend._digest(model) == hashlib.sha256(expected.encode()).hexdigest()
