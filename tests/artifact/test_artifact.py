"""An artifact is what its record says, or an error."""

import json
import os
import shutil
import time
from contextlib import closing

import onnx
import pytest
from onnx import TensorProto, helper

from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact, Record, is_same_spec, seal
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.pytorch import require_weights
from vitdeploy.errors import InputError, TrustError
from vitdeploy.files import sha256
from vitdeploy.record import Origin
from vitdeploy.spec import ModelSpec


def identity() -> bytes:
    """A sound ONNX file with no metadata."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", ports[:1], ports[1:])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.onnx").write_bytes(identity())
    seal(tmp_path, Record(spec=ModelSpec(name="x"), made_by="test"))
    return tmp_path


def test_round_trip(folder) -> None:
    artifact = Artifact.open(folder)
    assert artifact.spec == ModelSpec(name="x")
    assert artifact.model == folder / "model.onnx"
    assert artifact.weights is None
    assert artifact.id == Artifact.open(folder).id


@pytest.fixture
def family(tmp_path):
    """An export with its original's weights, and what was made of it, without."""

    def make(name, weights=None, **record):
        place = tmp_path / "shelf" / name
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(identity())
        if weights is not None:
            (place / "w.safetensors").write_bytes(weights)
        record = Record(spec=ModelSpec(name="x"), made_by="test", weights=weights and "w.safetensors", **record)
        seal(place, record)
        return Artifact.open(place)

    first = make("vit", b"original")
    origin = Origin(state_sha256=sha256(first.weights))
    make("other", b"another model's")
    made = make("vit-int8", origin=origin, original=first.locate_original(tmp_path / "shelf" / "vit-int8"))
    return first, made


def test_what_was_made_of_an_export_finds_its_original_there(family) -> None:
    first, made = family
    assert made.record.original == "../vit"
    assert made.weights.samefile(first.weights)
    assert require_weights(made) == made.weights


def test_moved_together_they_find_each_other_under_any_name(family, tmp_path) -> None:
    first, made = family
    away = tmp_path / "box"
    away.mkdir()
    first.folder.rename(away / "a")
    made.folder.rename(away / "b")
    assert Artifact.open(away / "b").weights.samefile(away / "a" / "w.safetensors")


def test_another_models_weights_are_never_the_original(family) -> None:
    first, made = family
    (first.folder / RECORD).unlink()  # "../vit" is no artifact now, and the one that is left is of another model
    assert made.weights is None
    with pytest.raises(InputError, match="no artifact beside it has them") as caught:
        require_weights(made)
    assert "--keep-original" in caught.value.fix


def test_an_original_that_changed_is_refused(family) -> None:
    first, made = family
    first.weights.write_bytes(b"originaL")
    with pytest.raises(InputError, match="changed after 'export' wrote it"):
        require_weights(made)


def change(folder, **values) -> None:
    table = json.loads((folder / RECORD).read_text()) | values
    table.pop("sha256", None)  # on purpose
    (folder / RECORD).write_text(json.dumps(table))


def test_a_changed_file_is_noticed(folder) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x0a\x3a\x03abd")
    with pytest.raises(InputError, match="changed after") as caught:
        Artifact.open(folder)
    assert caught.value.code == "VD3010"
    Artifact.open(folder, verify=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "surprise"),
        ({"kind": "../pickle"}, "kind"),
        ({"entry": "other.onnx"}, "does not list"),
        ({"files": {"model.onnx": "0", "gone": "0"}}, "changed after"),
    ],
)
def test_a_wrong_record_is_refused(folder, values, words) -> None:
    change(folder, **values)
    with pytest.raises(InputError, match=words) as caught:
        Artifact.open(folder)
    assert caught.value.code == "VD3010"


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/hostname"])
def test_a_record_can_not_point_outside(folder, name) -> None:
    change(folder, files={name: "0"}, entry=name)
    with pytest.raises(TrustError) as caught:
        Artifact.open(folder)
    assert caught.value.code == "VD7001"


def test_not_an_artifact(tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        Artifact.open(tmp_path)
    assert caught.value.code == "VD3010"
    with pytest.raises(InputError) as caught:
        Artifact.open(tmp_path / "missing")
    assert caught.value.code == "VD3001"


def test_a_foreign_file_has_no_contract(tmp_path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(identity())
    with pytest.raises(InputError) as caught:
        Artifact.open(path)
    assert caught.value.code == "VD3012"


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b'{"config": ' + b'{"a":' * 5000, b'{"spec": {"name": "x", "input": {"height": 225}}, "made_by": "x"}']
)
def test_a_hostile_record_is_an_error_of_ours(folder, raw) -> None:
    (folder / RECORD).write_bytes(raw)
    with pytest.raises(InputError) as caught:
        Artifact.open(folder)
    assert (caught.value.code, caught.value.exit_code) == ("VD3010", 3)


def test_bare_files_have_ids_of_their_own(tiny_artifact, tiny_static) -> None:
    first, second = (Artifact.open(artifact.model) for artifact in (tiny_artifact, tiny_static))
    assert first.id != second.id


def test_a_spec_of_fewer_fields_is_the_same_spec(tiny_artifact, tmp_path) -> None:
    """Files and records written before a spec had a field: the field's default is what they meant."""
    model = onnx.load(tiny_artifact.model)
    (entry,) = (each for each in model.metadata_props if each.key == METADATA_SPEC)
    table = json.loads(entry.value)
    new = ("problem", "probabilities", "output_name")
    entry.value = json.dumps({name: value for name, value in table.items() if name not in new})
    assert all(name in table for name in new)
    onnx.save(model, tmp_path / "model.onnx")
    seal(tmp_path, Record(spec=tiny_artifact.spec, made_by="export"))
    change(tmp_path, spec={name: value for name, value in table.items() if name not in new})
    opened = Artifact.open(tmp_path)
    assert opened.spec == Artifact.open(opened.model).spec == tiny_artifact.spec
    assert not is_same_spec("{", tiny_artifact.spec)


def test_an_edited_contract_is_noticed(tiny_artifact, tmp_path) -> None:
    for path in tiny_artifact.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = json.loads((tmp_path / RECORD).read_text())
    Artifact.open(tmp_path)
    table["spec"]["input"]["mean"] = [0.1, 0.1, 0.1]
    (tmp_path / RECORD).write_text(json.dumps(table))
    with pytest.raises(InputError, match="changed after it was written"):
        Artifact.open(tmp_path)
    del table["sha256"]
    (tmp_path / RECORD).write_text(json.dumps(table))
    with pytest.raises(InputError, match="another spec") as caught:
        Artifact.open(tmp_path)
    assert caught.value.code == "VD3010"


@pytest.mark.parametrize("kind", ["onnx", "onnxruntime", "openvino"])
def test_an_edited_contract_is_noticed_whatever_the_artifact_is(kind, tiny_artifact, tmp_path) -> None:
    """A compiled artifact falls back to the model beside it, and its images are prepared as the record says."""
    shutil.copytree(tiny_artifact.folder, tmp_path / "vit")
    change(tmp_path / "vit", kind=kind)
    Artifact.open(tmp_path / "vit")
    spec = json.loads((tmp_path / "vit" / RECORD).read_text())["spec"]
    change(tmp_path / "vit", spec=spec | {"labels": [f"class {n}" for n in reversed(range(12))]})
    with pytest.raises(InputError, match="another spec than the model beside it"):
        Artifact.open(tmp_path / "vit")


def test_what_no_digest_is_kept_of_is_not_opened(folder) -> None:
    artifact = Artifact.open(folder)
    assert artifact.locate("model.onnx") == artifact.model.resolve()
    (folder / "cache.json").touch()
    with pytest.raises(InputError, match=r"does not list its file cache\.json"):
        artifact.locate("cache.json")


def test_data_beside_a_model_must_be_listed(tiny_artifact, tmp_path) -> None:
    """An engine opens them by the names in the model, so their digests count as the model's does."""
    model = onnx.load(tiny_artifact.model)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=1024)
    seal(tmp_path, Record(spec=tiny_artifact.spec, made_by="export"))
    listed = Artifact.open(tmp_path).record.files
    change(tmp_path, files={"model.onnx": listed["model.onnx"]})
    with pytest.raises(InputError, match=r"does not list its file model\.data"):
        Artifact.open(tmp_path)


def test_what_was_checked_is_what_runs(tiny_artifact, tmp_path) -> None:
    """A file that is swapped between its check and its use, or written to, or swapped and back, is noticed."""
    folder = shutil.copytree(tiny_artifact.folder, tmp_path / "vit")
    model, other = folder / "model.onnx", shutil.copy(folder / "model.onnx", tmp_path / "other")

    def swap() -> None:
        os.replace(other, model)

    def write() -> None:
        with model.open("r+b") as stream:
            stream.write(model.read_bytes()[:1])

    def lend() -> None:
        model.rename(tmp_path / "aside")
        (tmp_path / "aside").rename(model)

    for attack in (swap, write, lend):
        artifact = Artifact.open(folder)
        artifact.require_unchanged()
        time.sleep(0.02)  # the clock of the file system
        attack()
        with pytest.raises(InputError, match="between its check and its use") as caught:
            open_in_child("onnxruntime", artifact, OpenConfig(threads=1))
        assert caught.value.code == "VD3010"
    with closing(open_in_child("onnxruntime", Artifact.open(folder), OpenConfig(threads=1))):
        pass
