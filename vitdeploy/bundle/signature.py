"""Signatures over the files of a bundle, as OpenSSF Model Signing has them, made with a key of the curve P-256.

A statement lists every file with its SHA-256; an envelope holds the statement and its signature. What signs and verifies other
models (``model_signing``) signs and verifies bundles, and the other way round. Verifying needs the standard library only.

Source: OpenSSF Model Signing Specification 1.0; in-toto Statement v1; DSSE v1.0.2, protocol.md; the Sigstore bundle 0.3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.bundle import p256
from vitdeploy.errors import InputError, TrustError, UsageError, needs

FILE = "vitdeploy.sig"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_LARGEST_KEY = 1 << 14
LARGEST = 4 << 20
"""Bytes of a signature: some hundred for each file."""

Digests = Mapping[str, str]
"""Name of a file to its SHA-256 in hex."""


class KeyPair(NamedTuple):
    """Both halves of a new key, in PEM."""

    private: bytes
    public: bytes


class Signed(NamedTuple):
    """A signature, and the fingerprint of the key that made it."""

    content: bytes
    key: str


def make_keys() -> KeyPair:
    """A new key pair, the private half as PKCS #8 without a password.

    Raises:
        MachineError: VD4001, cryptography is not installed.
    """
    with needs("sign"):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return KeyPair(private, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))


def read_key(path: Path) -> p256.PublicKey:
    """The public key in a file.

    Raises:
        InputError: VD3001, it can't be read; VD3031, it is no public key of the curve P-256.
    """
    content = _read_small(path)
    try:
        return p256.read_public_key(content)
    except ValueError as exc:
        fix = "give the .pub file of `vitdeploy keygen`, or write one: openssl ec -in KEY -pubout -out KEY.pub"
        raise InputError("VD3031", str(exc), file=path, fix=fix) from exc


def sign(digests: Digests, name: str, key: Path) -> Signed:
    """Sign the files of a bundle.

    Args:
        digests: Of every file but the signature itself.
        name: What the bundle is called.
        key: File of a private key in PEM, without a password.

    Returns:
        What belongs into `FILE`, and whose it is.

    Raises:
        InputError: VD3001, the key can't be read; VD3031, it is no private key of the curve P-256.
        MachineError: VD4001, cryptography is not installed.
    """
    content = _read_small(key)
    with needs("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    try:
        private = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:  # TypeError: it has a password
        fix = "make one: vitdeploy keygen -o KEY"
        raise InputError("VD3031", "is no private key in PEM without a password", file=key, fix=fix) from exc
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise InputError("VD3031", "is no key of the curve P-256", file=key, fix="make one: vitdeploy keygen -o KEY")
    pem, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public = p256.read_public_key(private.public_key().public_bytes(pem, info))
    payload = json.dumps(_state(digests, name), separators=(",", ":")).encode()
    signed = private.sign(_encode_for_signing(payload), ec.ECDSA(hashes.SHA256()))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signed).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": public.fingerprint}, "tlogEntries": []}
    bundle = {"mediaType": _MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}
    return Signed(json.dumps(bundle, indent=1).encode() + b"\n", public.fingerprint)


def verify(content: bytes, key: p256.PublicKey, digests: Digests, file: Path) -> None:
    """Refuse a bundle whose files are not those that were signed with a key.

    Args:
        content: Of `FILE`.
        key: The one key that is trusted.
        digests: Of every file of the bundle but the signature, as they are now.
        file: For errors.

    Raises:
        TrustError: VD7006.
    """
    try:
        signed = _read_signed(content, key)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
        raise _refuse(file, f"is no signature: {exc}") from exc
    if signed is None:
        raise _refuse(file, f"was not made with this key (sha256 {key.fingerprint[:12]})")
    if signed != dict(digests):
        changed = sorted(name for name in {*signed, *digests} if signed.get(name) != digests.get(name))
        raise _refuse(file, f"is of other files: {changed[0]} is not what was signed")


def write_keys(keys: KeyPair, path: Path) -> Path:
    """Write a key pair: the private half for its owner only, the public half beside it.

    Returns:
        The public half's file.

    Raises:
        UsageError: VD2008, there is a key already, or the place can't be written.
    """
    public = path.with_name(f"{path.name}.pub")
    for place in (path, public):
        if place.exists() or place.is_symlink():
            message = "exists, and boxes may trust that key"
            raise UsageError("VD2008", message, file=place, fix="name another file, or remove this one")
    with files.new_file(path) as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(keys.private)
    files.write(public, keys.public)
    return public


def _state(digests: Digests, name: str) -> dict[str, object]:
    """The statement: every file with its digest, and a digest of these in the order of the names."""
    names = sorted(digests)
    whole = hashlib.sha256(b"".join(bytes.fromhex(digests[each]) for each in names)).hexdigest()
    listed = [{"name": each, "algorithm": "sha256", "digest": digests[each]} for each in names]
    how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [FILE]}
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": whole}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {"serialization": how, "resources": listed},
    }


def _read_signed(content: bytes, key: p256.PublicKey) -> dict[str, str] | None:
    """The digests in a signature; None when the key did not make it.

    Raises:
        ValueError: It is of another form, or says things that do not fit each other. And what strange JSON may raise.
    """
    bundle = json.loads(content)
    envelope = bundle["dsseEnvelope"]
    signatures = envelope["signatures"]
    if bundle["mediaType"] != _MEDIA_TYPE or envelope["payloadType"] != _PAYLOAD_TYPE or len(signatures) != 1:
        raise ValueError("another kind, or more than one")
    try:
        payload, signature = (base64.b64decode(text, validate=True) for text in (envelope["payload"], signatures[0]["sig"]))
    except binascii.Error as exc:
        raise ValueError("not base64") from exc
    if not p256.verify(key, _encode_for_signing(payload), signature):
        return None
    statement = json.loads(payload)
    predicate = statement["predicate"]
    how = predicate["serialization"]
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
        raise ValueError("another statement")
    if (how["method"], how["hash_type"]) != ("files", "sha256"):
        raise ValueError("digests of another kind")
    listed = predicate["resources"]
    digests = {each["name"]: each["digest"] for each in listed}
    if len(digests) != len(listed) or any(each["algorithm"] != "sha256" for each in listed):
        raise ValueError("a file twice, or another digest")
    whole = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in listed)).hexdigest()
    if [each["digest"] for each in statement["subject"]] != [{"sha256": whole}]:
        raise ValueError("its digests do not fit each other")
    return digests


def _encode_for_signing(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _read_small(path: Path) -> bytes:
    try:
        with files.open_regular(path) as stream:
            return stream.read(_LARGEST_KEY)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


def _refuse(file: Path, message: str) -> TrustError:
    return TrustError("VD7006", message, file=file, fix="get the bundle again, and the key from whoever signed it")
