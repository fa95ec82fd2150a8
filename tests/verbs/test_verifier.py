"""`verify`: a bundle is what was packed, and does here what it did there."""

import json

import msgspec
import numpy as np
import pytest

from vitdeploy.bundle import samples
from vitdeploy.bundle.bundle import open_bundle
from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, TrustError
from vitdeploy.verbs import verifier
from vitdeploy.verbs.packer import PackConfig, pack
from vitdeploy.verbs.predictor import PredictConfig, Predictor, load, predict
from vitdeploy.verbs.verifier import VerifyConfig, verify


def outcomes(verification) -> dict[str, str]:
    return {check.name: check.outcome for check in verification.checks}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_runs_here_as_it_did_there(shipment, backend):
    verification = verify(shipment.bundle, VerifyConfig(key=str(shipment.public), run=True, backend=backend))
    assert outcomes(verification) == {"images": "pass", "outputs": "pass"}
    assert verification.passed
    assert (verification.engine, verification.model) == (backend, "models/0-fp32")
    assert verification.key == shipment.packed.key
    assert verification.id == shipment.packed.id
    assert not verification.notes


def test_without_a_key_or_a_run_it_says_what_was_not_asked(shipment):
    verification = verify(shipment.bundle)
    assert verification.passed
    assert [note[:20] for note in verification.notes] == ["It is signed, but no", "Nothing of it was ru"]


def test_another_decoder_or_resize_is_seen(shipment, monkeypatch):
    prepare = samples.prepare_samples
    monkeypatch.setattr(verifier, "prepare_samples", lambda *given: prepare(*given)[:, ::-1])
    verification = verify(shipment.bundle, VerifyConfig(run=True))
    assert outcomes(verification) == {"images": "fail", "outputs": "pass"}


def test_rounding_of_a_level_is_none(shipment, monkeypatch):
    prepare = samples.prepare_samples

    def round_otherwise(*given):
        pixels = prepare(*given)
        return np.where(pixels < 255, pixels + 1, pixels).astype(np.uint8)

    monkeypatch.setattr(verifier, "prepare_samples", round_otherwise)
    assert outcomes(verify(shipment.bundle, VerifyConfig(run=True))) == {"images": "pass", "outputs": "pass"}


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "pass"), (1.0001, "pass"), (1.001, "fail"), (np.nan, "fail")])
def test_other_outputs_are_seen(factor, outcome, shipment, monkeypatch):
    run = samples.run_samples
    monkeypatch.setattr(verifier, "run_samples", lambda *given: (run(*given) * factor).astype(np.float32))
    assert outcomes(verify(shipment.bundle, VerifyConfig(run=True)))["outputs"] == outcome


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("most", "outcome"), [(1e-6, "fail"), (1e9, "pass")])
def test_the_latency_that_was_asked_for(most, outcome, bare_artifact, tmp_path):
    pack([bare_artifact], PackConfig(max_latency_ms=most), tmp_path / "a.vdb")
    verification = verify(tmp_path / "a.vdb", VerifyConfig(run=True))
    assert outcomes(verification) == {"images": "pass", "outputs": "pass", "latency": outcome}
    assert verification.passed == (outcome == "pass")
    assert main(["verify", str(tmp_path / "a.vdb"), "--run", "-q"]) == (0 if outcome == "pass" else 1)


def test_an_older_release_is_refused(shipment):
    assert verify(shipment.bundle, VerifyConfig(after=3)).release == 4
    with pytest.raises(TrustError, match="is release 4 of tiny; it must be above 4") as caught:
        verify(shipment.bundle, VerifyConfig(after=4))
    assert caught.value.code == "VD7008"


def test_outputs_of_something_else(shipment, monkeypatch):
    expected = samples.Expected(np.zeros((1, 2, 2, 3), np.uint8), {"models/0-fp32": np.zeros((1, 12), np.float32)})
    monkeypatch.setattr(samples, "read_expected", lambda content: expected)
    with pytest.raises(InputError, match="outputs of other samples or another model"):
        verify(shipment.bundle, VerifyConfig(run=True))


def test_a_bundle_predicts_as_its_model_does(shipment, tiny_artifact, tmp_path):
    with open_bundle(shipment.bundle) as bundle:
        bundle.copy("samples/1-wide.png", tmp_path / "wide.png")
    config = PredictConfig(top=3)
    assert predict(shipment.bundle, [tmp_path / "wide.png"], config) == predict(tiny_artifact, [tmp_path / "wide.png"], config)
    with load(shipment.bundle) as model:
        assert isinstance(model, Predictor)
        place = model.artifact.folder
        assert place.is_dir()
    assert not place.exists()


def test_what_is_compiled_of_a_bundle_points_nowhere(shipment, tmp_path, capsys):
    assert main(["compile", str(shipment.bundle), "--backend", "openvino", "-o", str(tmp_path / "engine"), "-q"]) == 0
    record = json.loads((tmp_path / "engine" / "artifact.json").read_bytes())
    assert record["original"] is None
    assert record["proof"]["audit"]["golden"]
    assert record["parent"] == shipment.packed.manifest.models[0].id
    capsys.readouterr()
    assert main(["bench", str(shipment.bundle), "--rounds", "1", "--seconds", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


def test_the_command_line(shipment, tmp_path, capsys):
    assert main(["verify", str(shipment.bundle), "--key", str(shipment.public), "--run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert msgspec.convert(record, verifier.Verification, strict=False).passed
    broken = tmp_path / "broken.vdb"
    broken.write_bytes(shipment.bundle.read_bytes()[:-1024])
    assert main(["verify", str(broken)]) == 3
    changed = bytearray(shipment.bundle.read_bytes())
    changed[changed.index(b"IHDR") + 20] ^= 1
    broken.write_bytes(changed)
    assert main(["verify", str(broken)]) == 7
    assert "changed after it was packed" in capsys.readouterr().err
