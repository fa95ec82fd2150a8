"""Signatures: made here and verified by model_signing, the other way round, and nothing else accepted."""

import base64
import json
import stat
import tarfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.bundle import signature
from vitdeploy.bundle.p256 import PublicKey
from vitdeploy.errors import InputError, TrustError, UsageError, VitdeployError

DIGESTS = {"manifest.json": "ab" * 32, "models/0-int8/model.onnx": "cd" * 32}
HERE = Path("vit.vdb")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    signature.write_keys(signature.make_keys(), folder / "key")
    return folder / "key", signature.read_key(folder / "key.pub")


@pytest.fixture(scope="module")
def signed(keys):
    return signature.sign(DIGESTS, "vit", keys[0]).content


def refuse(content, key, digests=DIGESTS, says="VD7006"):
    with pytest.raises(TrustError, match=says) as caught:
        signature.verify(content, key, digests, HERE)
    assert caught.value.code == "VD7006"


def test_it_holds_for_its_files_and_for_no_others(keys, signed):
    signature.verify(signed, keys[1], DIGESTS, HERE)
    refuse(signed, keys[1], DIGESTS | {"more": "00" * 32}, "more is not what was signed")
    refuse(signed, keys[1], {"manifest.json": "ab" * 32}, "models/0-int8/model.onnx is not")
    refuse(signed, keys[1], DIGESTS | {"manifest.json": "ac" * 32}, "manifest.json is not")


def test_another_key_is_refused_by_its_name(signed, tmp_path):
    public = signature.write_keys(signature.make_keys(), tmp_path / "other")
    key = signature.read_key(public)
    refuse(signed, key, says=f"not made with this key .sha256 {key.fingerprint[:12]}")


def change(content: bytes, edit) -> bytes:
    """A signature whose parts were changed; the statement stays what was signed unless ``edit`` changes it."""
    bundle = json.loads(content)
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    before = json.dumps(statement)
    edit(bundle, statement)
    if json.dumps(statement) != before:
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps(bundle).encode()


EDITS = {
    "twice": lambda bundle, _: bundle["dsseEnvelope"]["signatures"].append(bundle["dsseEnvelope"]["signatures"][0]),
    "none": lambda bundle, _: bundle["dsseEnvelope"]["signatures"].clear(),
    "another type": lambda bundle, _: bundle["dsseEnvelope"].update(payloadType="text/plain"),
    "another medium": lambda bundle, _: bundle.update(mediaType="application/json"),
    "no envelope": lambda bundle, _: bundle.pop("dsseEnvelope"),
    "not base64": lambda bundle, _: bundle["dsseEnvelope"].update(payload="!!"),
    "a list": lambda bundle, _: bundle.update(dsseEnvelope=[]),
    "digest": lambda _, statement: statement["predicate"]["resources"][0].update(digest="00" * 32),
    "file dropped": lambda _, statement: statement["predicate"]["resources"].pop(),
    "predicate": lambda _, statement: statement.update(predicateType="other"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_changed_one_is_refused(name, keys, signed):
    refuse(change(signed, EDITS[name]), keys[1])


STRANGE = {
    "another statement": lambda statement: statement.update(_type="other"),
    "another predicate": lambda statement: statement.update(predicateType="other"),
    "shards": lambda statement: statement["predicate"]["serialization"].update(method="shards"),
    "blake": lambda statement: statement["predicate"]["serialization"].update(hash_type="blake2b"),
    "a file's digest by another name": lambda statement: statement["predicate"]["resources"][0].update(algorithm="md5"),
    "a file twice": lambda statement: statement["predicate"]["resources"].append(statement["predicate"]["resources"][0]),
    "subject": lambda statement: statement["subject"][0]["digest"].update(sha256="00" * 32),
    "no subject": lambda statement: statement["subject"].clear(),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_the_right_key_signed_must_still_be_a_statement_of_files(name, keys, monkeypatch):
    state = signature._state

    def strange(*given):
        statement = state(*given)
        STRANGE[name](statement)
        return statement

    monkeypatch.setattr(signature, "_state", strange)
    refuse(signature.sign(DIGESTS, "vit", keys[0]).content, keys[1], says="is no signature")


@given(st.one_of(st.binary(max_size=80), st.recursive(st.none() | st.text(max_size=5), st.lists, max_leaves=8).map(repr)))
def test_anything_else_is_no_signature(content):
    key = PublicKey(1, 1)
    refuse(content.encode() if isinstance(content, str) else content, key)


def test_the_private_half_is_its_owners_and_no_key_is_overwritten(keys, tmp_path):
    assert stat.S_IMODE(keys[0].stat().st_mode) == 0o600
    before = keys[0].read_bytes()
    with pytest.raises(UsageError, match="boxes may trust that key"):
        signature.write_keys(signature.make_keys(), keys[0])
    (tmp_path / "new.pub").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        signature.write_keys(signature.make_keys(), tmp_path / "new")
    assert (keys[0].read_bytes(), (tmp_path / "new.pub").read_text()) == (before, "mine")
    assert not (tmp_path / "new").exists()


def write_private(path: Path, key: object, password: bytes | None = None) -> Path:
    lock = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: write_private(path, ed25519.Ed25519PrivateKey.generate()), "no key of the curve P-256"),
        (lambda path: write_private(path, ec.generate_private_key(ec.SECP384R1())), "no key of the curve P-256"),
        (lambda path: write_private(path, ec.generate_private_key(ec.SECP256R1()), b"secret"), "without a password"),
        (lambda path: path.write_text("hello"), "no private key in PEM"),
    ],
)
def test_keys_that_do_not_sign(make, says, tmp_path):
    make(tmp_path / "key")
    with pytest.raises(InputError, match=says) as caught:
        signature.sign(DIGESTS, "vit", tmp_path / "key")
    assert caught.value.code == "VD3031"


def test_keys_that_can_not_be_read(tmp_path, keys):
    with pytest.raises(InputError, match="can't be read"):
        signature.read_key(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no public key in PEM"):
        signature.read_key(keys[0])


@pytest.mark.slow
def test_model_signing_verifies_ours_and_ours_theirs(shipment, tmp_path):
    model_signing = pytest.importorskip("model_signing", reason="model_signing is not installed")
    folder = tmp_path / "tiny"
    with tarfile.open(shipment.bundle) as tar:
        tar.extractall(folder, filter="data")
    ours, ignored = folder / signature.FILE, [folder / signature.FILE]
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    check = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=shipment.public).set_hashing_config(hashing)
    check.verify(folder, ours)
    theirs = tmp_path / "theirs.sig"
    maker = model_signing.signing.Config().use_elliptic_key_signer(private_key=shipment.private).set_hashing_config(hashing)
    maker.sign(folder, theirs)
    key = signature.read_key(shipment.public)
    manifest = shipment.packed.manifest
    digests = {name: each.sha256 for name, each in manifest.files.items()} | {"manifest.json": manifest.id}
    signature.verify(theirs.read_bytes(), key, digests, folder)
    (folder / "models" / "1-fp32" / "model.onnx").write_bytes(b"other")
    with pytest.raises(ValueError, match="mismatch"):
        check.verify(folder, ours)
    with pytest.raises(VitdeployError):
        signature.verify(theirs.read_bytes(), key, digests | {"bom.cdx.json": "00" * 32}, folder)
