"""Promises of the golden batch: the same bytes, refused when it does not fit, made by whatever can run the file."""

import msgspec
import numpy as np
import pytest

from vitdeploy.artifact import Artifact, seal
from vitdeploy.errors import InputError, MachineError
from vitdeploy.proof import golden


@pytest.fixture(scope="module")
def batch(tiny_artifact):
    return golden.make(tiny_artifact)


@pytest.fixture
def carrier(tiny_artifact, tmp_path, batch):
    """An artifact whose folder holds the golden batch."""
    (tmp_path / "model.onnx").write_bytes(tiny_artifact.model.read_bytes())
    batch.write(tmp_path)
    return Artifact(tmp_path, seal(tmp_path, msgspec.structs.replace(tiny_artifact.record, weights=None)))


def test_it_holds_images_and_what_the_file_puts_out(batch, tiny_artifact):
    contract = tiny_artifact.spec.input
    assert batch.pixels.shape == (golden.IMAGES, contract.height, contract.width, contract.channels)
    assert batch.pixels.dtype == np.uint8
    assert batch.output.shape == (golden.IMAGES, tiny_artifact.spec.classes)
    assert batch.output.dtype == np.float32
    assert np.isfinite(batch.output).all()
    assert batch.engine == "onnxruntime"


def test_the_same_batch_is_the_same_bytes(batch, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        batch.write(tmp_path / name)
    assert (tmp_path / "a" / golden.FILE).read_bytes() == (tmp_path / "b" / golden.FILE).read_bytes()


def test_it_is_read_as_it_was_written(carrier, batch):
    found = golden.read(carrier)
    assert np.array_equal(found.pixels, batch.pixels)
    assert np.array_equal(found.output, batch.output)
    assert found.engine == batch.engine


def test_an_artifact_without_one_has_none(bare_artifact):
    assert golden.read(bare_artifact) is None


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: b"no zip at all"])
def test_a_damaged_one_is_named(carrier, damage):
    path = carrier.folder / golden.FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="damaged") as caught:
        golden.read(carrier)
    assert caught.value.code == "VD3010"


def test_pickles_are_not_read(carrier, batch):
    output = np.array([{"a": 1}], dtype=object)
    np.savez(carrier.folder / golden.FILE, pixels=batch.pixels, output=output, engine=np.array("x"))
    with pytest.raises(InputError, match="damaged"):
        golden.read(carrier)


def test_one_of_another_size_is_refused(carrier, batch):
    golden.Golden(batch.pixels[:, :8], batch.output, "x").write(carrier.folder)
    with pytest.raises(InputError, match="the model takes"):
        golden.read(carrier)


def test_without_an_engine_the_fix_is_said(tiny_artifact, monkeypatch):
    monkeypatch.setattr(golden, "list_engines", lambda: ())
    with pytest.raises(MachineError, match="nothing here can run") as caught:
        golden.make(tiny_artifact)
    assert caught.value.code == "VD4001"
