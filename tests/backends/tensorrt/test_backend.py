"""What an engine was built from, without TensorRT: one digest over the ONNX file and all its data."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from vitdeploy.backends.tensorrt import backend


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file with data in two others, one of them three folders down."""
    folder = tmp_path / "source"
    for name, raw in (("model.onnx", b"graph"), ("w.bin", b"weights"), ("a/b/c/w.bin", b"more")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    monkeypatch.setattr(backend, "read_graph", lambda path: SimpleNamespace(external=("w.bin", "a/b/c/w.bin")))
    return folder / "model.onnx"


def test_the_digest_is_over_every_file_by_name(model):
    parts = [hashlib.sha256(raw).hexdigest() for raw in (b"graph", b"more", b"weights")]
    expected = f"{parts[0]}\0a/b/c/w.bin\0{parts[1]}\0w.bin\0{parts[2]}"
    assert backend._digest(model) == hashlib.sha256(expected.encode()).hexdigest()
