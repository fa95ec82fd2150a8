"""ECDSA over P-256 with SHA-256, verification only, of the standard library alone: a box needs no package to trust a file.

Nothing secret goes in, so nothing here takes constant time; a signature costs some milliseconds.

Source: FIPS 186-5, 6.4.2 (verification); RFC 5480 (the key); RFC 3279, 2.2.3, with X.690, 8.3 and 10.1 (the signature in DER).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import NamedTuple

_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_BITS = 256
_BEFORE_POINT = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200" + "04")
"""What stands before the two coordinates in the DER of any P-256 key: algorithm, curve, and that the point is not compressed."""
_PEM = re.compile(rb"\s*-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*")
_LONGEST_INTEGER = 33
"""Bytes of an r or s: 256 bits, and a zero before a leading 1."""

_Point = tuple[int, int, int]
"""In Jacobian coordinates: x / z^2, y / z^3; z is 0 for the point at infinity."""
_INFINITY: _Point = (1, 1, 0)


class PublicKey(NamedTuple):
    """A point of the curve, in its coordinates."""

    x: int
    y: int

    @property
    def pem(self) -> bytes:
        """The key in the one form that every tool writes: SubjectPublicKeyInfo in PEM, lines of 64."""
        der = _BEFORE_POINT + self.x.to_bytes(32, "big") + self.y.to_bytes(32, "big")
        text = base64.b64encode(der)
        lines = (text[start : start + 64] for start in range(0, len(text), 64))
        return b"\n".join((b"-----BEGIN PUBLIC KEY-----", *lines, b"-----END PUBLIC KEY-----", b""))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `pem`, in hex: the name of the key in a signature."""
        return hashlib.sha256(self.pem).hexdigest()


def read_public_key(content: bytes) -> PublicKey:
    """The key in a PEM file, as ``vitdeploy keygen`` and ``openssl ec -pubout`` write it.

    Raises:
        ValueError: It is something else, another curve, or no point of the curve.
    """
    match = _PEM.fullmatch(content)
    if match is None:
        raise ValueError("is no public key in PEM")
    try:
        der = base64.b64decode(b"".join(match[1].split()), validate=True)
    except binascii.Error as exc:
        raise ValueError("is damaged") from exc
    if not der.startswith(_BEFORE_POINT) or len(der) != len(_BEFORE_POINT) + 64:
        raise ValueError("is no key of the curve P-256")
    key = PublicKey(*(int.from_bytes(der[start : start + 32], "big") for start in (len(der) - 64, len(der) - 32)))
    if not (key.x < _P and key.y < _P) or (key.y**2 - key.x**3 + 3 * key.x - _B) % _P:
        raise ValueError("is no point of the curve P-256")
    return key


def verify(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether a message was signed with the private half of a key.

    Args:
        key: From `read_public_key`.
        message: Any bytes; their SHA-256 is what was signed.
        signature: r and s in DER. Only the one encoding that DER allows is taken.
    """
    pair = _read_pair(signature)
    if pair is None:
        return False
    r, s = pair
    if not (0 < r < _N and 0 < s < _N):
        return False
    inverse = pow(s, -1, _N)
    digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
    x, _, z = _combine(digest * inverse % _N, r * inverse % _N, key)
    return z != 0 and x * pow(z, -2, _P) % _P % _N == r


def _read_pair(der: bytes) -> tuple[int, int] | None:
    """Two integers in DER, or None for any other bytes."""
    integers, start = [], 2
    if der[:1] != b"\x30" or len(der) != start + der[1]:
        return None
    for _ in range(2):
        head, content = der[start : start + 2], der[start + 2 :]
        if len(head) < 2 or head[0] != 0x02 or not 0 < head[1] <= min(_LONGEST_INTEGER, len(content)):
            return None
        content = content[: head[1]]
        if content[0] >= 0x80 or (len(content) > 1 and content[0] == 0 and content[1] < 0x80):  # negative, or a zero too many
            return None
        integers.append(int.from_bytes(content, "big"))
        start += 2 + len(content)
    return (integers[0], integers[1]) if start == len(der) else None


def _combine(of_base: int, of_key: int, key: PublicKey) -> _Point:
    """The sum of so many base points and so many keys, bit by bit for both at once."""
    base, other = (*_G, 1), (*key, 1)
    addends = (None, base, other, _add(base, other))
    total = _INFINITY
    for bit in range(_BITS - 1, -1, -1):
        total = _double(total)
        addend = addends[(of_base >> bit & 1) | (of_key >> bit & 1) << 1]
        if addend is not None:
            total = _add(total, addend)
    return total


def _double(point: _Point) -> _Point:
    """Twice a point. Source: hyperelliptic.org/EFD, short Weierstrass curves with a = -3, "dbl-2001-b"."""
    x, y, z = point
    delta, gamma = z * z % _P, y * y % _P
    beta = x * gamma % _P
    alpha = 3 * (x - delta) * (x + delta) % _P
    doubled = (alpha * alpha - 8 * beta) % _P
    return doubled, (alpha * (4 * beta - doubled) - 8 * gamma * gamma) % _P, 2 * y * z % _P


def _add(left: _Point, right: _Point) -> _Point:
    """The sum of two points. Source: hyperelliptic.org/EFD, short Weierstrass curves, "add-1998-cmo-2"."""
    if left[2] == 0:
        return right
    if right[2] == 0:
        return left
    z1, z2 = left[2] ** 2 % _P, right[2] ** 2 % _P
    u1, u2 = left[0] * z2 % _P, right[0] * z1 % _P
    s1, s2 = left[1] * right[2] * z2 % _P, right[1] * left[2] * z1 % _P
    h, r = (u2 - u1) % _P, (s2 - s1) % _P
    if h == 0:
        return _double(left) if r == 0 else _INFINITY
    square = h * h % _P
    cube, shared = square * h % _P, u1 * square % _P
    x = (r * r - cube - 2 * shared) % _P
    return x, (r * (shared - x) - s1 * cube) % _P, h * left[2] * right[2] % _P
