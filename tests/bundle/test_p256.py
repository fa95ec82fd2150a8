"""The verifier of the standard library, against published numbers and against two other implementations."""

import itertools
import random
import shutil
import subprocess

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from vitdeploy.bundle.p256 import PublicKey, read_public_key, verify

N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# RFC 6979, A.2.5: key, and signatures of SHA-256 of two texts
KEY = PublicKey(
    0x60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6,
    0x7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299,
)
PUBLISHED = {
    b"sample": (
        0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716,
        0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8,
    ),
    b"test": (
        0xF1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367,
        0x019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083,
    ),
}


def write_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def private() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("message", PUBLISHED)
def test_published_signatures_hold_and_of_other_texts_do_not(message):
    signature = encode_dss_signature(*PUBLISHED[message])
    assert verify(KEY, message, signature)
    assert not verify(KEY, message + b".", signature)
    assert not verify(KEY._replace(x=KEY.y, y=KEY.x), message, signature)


def test_a_key_is_read_as_it_is_written_and_as_cryptography_writes_it(private):
    pem = write_pem(private)
    key = read_public_key(pem)
    numbers = private.public_key().public_numbers()
    assert key == (numbers.x, numbers.y)
    assert key.pem == pem
    assert read_public_key(b"\n" + pem.replace(b"\n", b"\r\n")) == key


def test_keys_of_other_kinds_are_none(private):
    pem = write_pem(private)
    pem_format, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    point = serialization.PublicFormat.CompressedPoint
    with pytest.raises(ValueError, match="no public key in PEM"):
        read_public_key(private.public_key().public_bytes(serialization.Encoding.X962, point))
    with pytest.raises(ValueError, match="no public key in PEM"):
        read_public_key(pem + pem)
    with pytest.raises(ValueError, match="no key of the curve P-256"):
        read_public_key(ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(pem_format, info))
    with pytest.raises(ValueError, match="no key of the curve P-256"):
        read_public_key(ec.generate_private_key(ec.SECP256K1()).public_key().public_bytes(pem_format, info))
    with pytest.raises(ValueError, match="damaged"):
        read_public_key(b"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n")
    for key in (KEY._replace(x=KEY.x + 1), PublicKey(0, 0), PublicKey(2**256 - 1, KEY.y)):
        with pytest.raises(ValueError, match="no point of the curve"):
            read_public_key(key.pem)


def test_what_cryptography_signs_holds(private):
    key, draw = read_public_key(write_pem(private)), random.Random(0)
    for _ in range(12):
        message = draw.randbytes(draw.randrange(300))
        assert verify(key, message, private.sign(message, ec.ECDSA(hashes.SHA256())))


def list_hostile(signature: bytes) -> list[bytes]:
    """Signatures that are none, made from one that is."""
    r, s = decode_dss_signature(signature)
    pairs = itertools.product([0, 1, r, N - r, N, N + 1, r + N, N - 1], [0, 1, s, N, N + 1, s + N, N - 1])
    forged = [encode_dss_signature(*pair) for pair in pairs if pair != (r, s)]
    head, body = signature[:2], signature[2:]
    first, second = body[: 2 + body[1]], body[2 + body[1] :]
    padded = bytes([0x02, first[1] + 1, 0]) + first[2:]
    negative = bytes([0x02, 32, 0xFF]) + first[-31:]
    forged += [
        b"",
        head,
        signature[:-1],
        signature + b"\0",
        signature + signature,
        b"\x31" + signature[1:],
        bytes([0x30, 0x81, len(body)]) + body,  # the long form of a length
        bytes([0x30, 0x80]) + body + b"\0\0",  # an indefinite length
        bytes([0x30, len(body) + 1]) + padded + second,
        bytes([0x30, len(negative) + len(second)]) + negative + second,
        bytes([0x30, len(body)]) + second + first,
        bytes([0x30, len(first)]) + first,
        bytes([0x30, len(body) + len(first)]) + body + first,
        bytes([0x30, len(body)]) + b"\x04" + body[1:],
        bytes([0x30, 4, 0x02, 0, 0x02, 0]),
        bytes([0x30, 2 + len(body)]) + b"\x30" + bytes([len(body)]) + body,
    ]
    for place in range(len(signature)):  # every byte changed
        forged.append(signature[:place] + bytes([signature[place] ^ 0x41]) + signature[place + 1 :])
    return forged


def test_no_hostile_signature_is_accepted_and_cryptography_says_the_same(private):
    message, key = b"a bundle", read_public_key(write_pem(private))
    hostile = list_hostile(private.sign(message, ec.ECDSA(hashes.SHA256())))
    assert len(hostile) >= 120
    for forged in hostile:
        assert not verify(key, message, forged), forged.hex()
        with pytest.raises(InvalidSignature):
            private.public_key().verify(forged, message, ec.ECDSA(hashes.SHA256()))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_what_openssl_signs_holds_and_hostile_ones_do_not_there_either(tmp_path):
    key, public, message = tmp_path / "key", tmp_path / "key.pub", tmp_path / "message"
    message.write_bytes(b"a bundle")
    for arguments in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key],
        ["ec", "-in", key, "-pubout", "-out", public],
        ["dgst", "-sha256", "-sign", key, "-out", tmp_path / "signature", message],
    ):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    signature = (tmp_path / "signature").read_bytes()
    assert verify(read_public_key(public.read_bytes()), b"a bundle", signature)
    for number, forged in enumerate(list_hostile(signature)[::9]):
        (tmp_path / "forged").write_bytes(forged)
        command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "forged", message]
        assert subprocess.run(command, check=False, capture_output=True).returncode != 0, number
