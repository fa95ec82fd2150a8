"""`pack`: what may be shipped, what is written, and where."""

import json
import tarfile

import msgspec
import numpy as np
import pytest

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.bundle import packing
from vitdeploy.bundle.bundle import open_bundle
from vitdeploy.bundle.samples import read_expected
from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.proof.thresholds import CLOSEST, LIMITS
from vitdeploy.recipe import CompileConfig, QuantizeConfig
from vitdeploy.report import Gate, Verdict
from vitdeploy.verbs.packer import PackConfig, pack


def change_record(artifact, **facts) -> Artifact:
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, **facts))


def test_the_same_bytes_again_and_only_the_signature_is_new(shipment, tiny_artifact, tiny_bytes, tmp_path):
    config = PackConfig(name="tiny", release=4, version="2.1", licence="Apache-2.0")
    again = pack([tiny_artifact, tiny_bytes], config, tmp_path / "folder")
    assert again.id == shipment.packed.id
    with tarfile.open(shipment.bundle) as tar:
        for member in tar.getmembers():
            if member.name != "vitdeploy.sig":
                assert (tmp_path / "folder" / member.name).read_bytes() == tar.extractfile(member).read(), member.name


def test_it_holds_the_models_without_the_original_and_what_they_gave(shipment, tiny_artifact):
    manifest = shipment.packed.manifest
    assert not [name for name in manifest.files if name.endswith(".safetensors")]
    assert [model.folder for model in manifest.models] == ["models/0-fp32", "models/1-fp32"]
    assert set(manifest.needs.engines) == {"onnxruntime", "openvino"}
    for model in manifest.models:
        assert model.tried["onnxruntime"].distance == 0 < model.tried["openvino"].distance < 1e-4
        assert model.limit == CLOSEST * LIMITS["fp32"]
        assert model.original < 1e-4
    with open_bundle(shipment.bundle) as bundle:
        expected = read_expected(bundle.read("samples/expected.npz", 1 << 20))
    assert set(expected.outputs) == {model.folder for model in manifest.models}
    assert np.allclose(expected.outputs["models/0-fp32"], expected.original, atol=1e-3)
    assert expected.original.std() > 0.01
    origin = tiny_artifact.record.origin
    assert manifest.source.files == {origin.file: origin.sha256}


def test_what_may_not_be_shipped(tiny_artifact, tiny_headless, tmp_path):
    random = change_record(tiny_artifact, config=QuantizeConfig(calibration="random"))
    compiled = change_record(tiny_artifact, kind="openvino", config=CompileConfig(backend="openvino"))
    for artifacts, says in (
        ([], "nothing to pack"),
        ([random], "was calibrated on random images"),
        ([compiled], "was compiled for openvino on this machine"),
        ([tiny_artifact, tiny_headless], "is another model than"),
    ):
        with pytest.raises(UsageError, match=says):
            pack(artifacts, PackConfig(), tmp_path / "a.vdb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("factor", "engine"), [(lambda call: 1 + call, "openvino"), (lambda call: np.nan, "onnxruntime")])
def test_engines_that_disagree_are_no_bundle(factor, engine, tiny_artifact, tmp_path, monkeypatch):
    run, calls = packing.run_samples, iter(range(9))
    monkeypatch.setattr(packing, "run_samples", lambda *given: run(*given) * factor(next(calls)))
    with pytest.raises(MachineError, match=f"gives other outputs in {engine}") as caught:
        pack([tiny_artifact], PackConfig(), tmp_path / "a.vdb")
    assert caught.value.code == "VD4009"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"release": 0}, "count from 1"), ({"name": "a/../b"}, "letters, digits"), ({"max_latency_ms": 0.0}, "above 0")],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(UsageError) as caught:
        PackConfig(**settings)
    assert says in caught.value.fix


def write_verdict(path, outcome):
    gate = Gate(about="a", subject="b", name="max_drop", limit="0.5 pt", metric=None, outcome=outcome, why="because")
    verdict = Verdict(outcome=outcome, passed=outcome == "pass", limits={"max_drop": "0.5 pt"}, gates=(gate,))
    path.write_bytes(msgspec.json.encode(verdict))
    return str(path)


def test_a_gate_goes_along_and_must_have_passed(bare_artifact, tmp_path):
    passed = pack([bare_artifact], PackConfig(gate=write_verdict(tmp_path / "pass.json", "pass")), tmp_path / "a")
    assert passed.manifest.gates == ("a, b: max_drop 0.5 pt: pass: because",)
    assert (tmp_path / "a" / "evidence" / "verdict.json").read_bytes() == (tmp_path / "pass.json").read_bytes()
    with pytest.raises(UsageError, match="is no pass: fail"):
        pack([bare_artifact], PackConfig(gate=write_verdict(tmp_path / "fail.json", "fail")), tmp_path / "b")
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(InputError, match="is no report"):
        pack([bare_artifact], PackConfig(gate=str(tmp_path / "none.json")), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_bare_file_without_original_is_said(bare_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_run_original", lambda *given: None)
    packed = pack([bare_artifact], PackConfig(), tmp_path / "a.vdb")
    assert packed.manifest.models[0].original is None
    assert any("The original was not here" in note for note in packed.notes)
    assert any("Nobody has signed it" in note for note in packed.notes)


def test_another_bundle_or_a_strangers_file_is_not_replaced(shipment, bare_artifact, tmp_path):
    other = tmp_path / "other.vdb"
    other.write_bytes(shipment.bundle.read_bytes())
    mine = tmp_path / "mine.vdb"
    mine.write_text("mine")
    config = PackConfig(name="new")
    for place, says in ((other, "holds the bundle 'tiny'"), (mine, "holds something else")):
        before = place.read_bytes()
        with pytest.raises(UsageError, match=says):
            pack([bare_artifact], config, place)
        assert place.read_bytes() == before
    pack([bare_artifact], config, mine, force=True)
    pack([bare_artifact], PackConfig(name="new", release=2), mine)  # the next release of the same name
    with open_bundle(mine) as bundle:
        assert bundle.manifest.release == 2


def test_a_key_that_does_not_sign_leaves_nothing(bare_artifact, tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        pack([bare_artifact], PackConfig(sign=str(tmp_path / "none")), tmp_path / "a.vdb")
    assert not list(tmp_path.iterdir())


def test_the_command_line(shipment, bare_artifact, tmp_path, capsys):
    arguments = ["pack", str(bare_artifact.model), "-o", str(tmp_path / "a.vdb"), "--sign", str(shipment.private), "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["manifest"]["release"] == 1
    assert record["key"] == vitdeploy.verify(tmp_path / "a.vdb", vitdeploy.VerifyConfig(key=str(shipment.public))).key
    assert f"next, on the box: vitdeploy verify {tmp_path / 'a.vdb'} --key {shipment.private}.pub --run" in err
    assert main(["inspect", str(tmp_path / "a.vdb")]) == 0
    assert "its files were not compared with the manifest" in capsys.readouterr().out.replace("\n", " ")


def test_weights_beside_a_bare_file_go_along_by_the_names_that_it_has(tiny_spec, tmp_path):
    """Of a name that nobody here would give."""
    import onnx
    from safetensors.torch import save_file

    from vitdeploy.models.vit import build

    spec, weights = tmp_path / "spec.json", tmp_path / "weights.safetensors"
    spec.write_bytes(msgspec.json.encode(tiny_spec))
    save_file(build(tiny_spec).state_dict(), weights)
    model = vitdeploy.ModelConfig(source=str(spec), weights=str(weights))
    exported = vitdeploy.export(model, vitdeploy.ExportConfig(prove_batches=(1,)), tmp_path / "vit")
    beside = tmp_path / "bare"
    beside.mkdir()
    onnx.save(
        onnx.load(exported.model), beside / "net.onnx", save_as_external_data=True, location="tensors.bin", size_threshold=0
    )
    manifest = pack([beside / "net.onnx"], PackConfig(), tmp_path / "a").manifest
    assert {"models/0-fp32/net.onnx", "models/0-fp32/tensors.bin"} <= set(manifest.files)
