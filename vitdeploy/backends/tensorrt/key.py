"""Which engine this is, and that this machine has built it: an engine is executable code and is loaded only then.

An engine fits one device, driver and version; another may load it and compute something else. So all that it was made from is
its key, and the key and the engine carry a tag (HMAC-SHA256) that only this user on this machine can make. The tag is checked
before any library sees the engine's bytes.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy import machine
from vitdeploy.errors import TrustError, library
from vitdeploy.files import find_base

SECRET_BYTES = 32
_PURPOSE = b"vitdeploy engine 1"
_PLACE = ("device", "capability", "driver", "cuda", "tensorrt")
"""Fields of a key that are this machine's."""
_WORDS = {"tensorrt": "TensorRT", "cuda": "CUDA", "capability": "compute capability"}


class EngineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an engine depends on.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        device: Name of the GPU; "" for an engine that was compiled without one, for any of its architectures.
        capability: Compute capability, ``8.7``; "" likewise.
        driver: Version of the driver, or of CUDA that it supports; "" likewise.
        cuda: Version of the CUDA runtime; "" likewise.
        tensorrt: Version of TensorRT or TensorRT-RTX.
        typing: ``strong`` when the file's types are kept, ``weak`` when the builder has chosen.
        options: Settings that change the engine.
        onnx: Digest of the ONNX file and what lies beside it.
        spec: Digest of the model and its input contract, which the record beside the engine says; "" before it was kept.
    """

    backend: str
    device: str = ""
    capability: str = ""
    driver: str = ""
    cuda: str = ""
    tensorrt: str
    typing: str = "strong"
    options: dict[str, Any] = {}
    onnx: str
    spec: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, in hex: equal digests are of interchangeable engines."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proof of origin.

    Attributes:
        machine: Tells secrets apart, and nothing about them; hex.
        tag: HMAC-SHA256 over the engine and its key, hex.
    """

    machine: str
    tag: str


def seal(plan: bytes, key: EngineKey) -> Seal:
    """Sign an engine.

    Args:
        plan: Its bytes.
        key: What it was made from.

    Raises:
        TrustError: VD7004, this user's secret is readable by others, or damaged.
    """
    secret = _secret()
    return Seal(_machine(secret), _tag(secret, plan, key))


def verify(plan: bytes, key: EngineKey, signed: Seal, file: Path, fix: str) -> None:
    """Refuse an engine that was not built here, or changed since.

    Args:
        plan: Its bytes.
        key: What it says it was made from.
        signed: What came with it.
        file: Where it lies, for the message.
        fix: What builds it again, for the message.

    Raises:
        TrustError: VD7004.
    """
    secret = _secret()
    if not hmac.compare_digest(_tag(secret, plan, key).encode(), signed.tag.encode()):
        here = hmac.compare_digest(_machine(secret).encode(), signed.machine.encode())
        message = "changed after it was built here" if here else "was not built by this user on this machine"
        raise TrustError("VD7004", f"{message}; an engine is executable code and is not loaded", file=file, fix=fix)


def require_same(key: EngineKey, now: EngineKey, file: Path, fix: str) -> None:
    """Refuse an engine that was built for something else than what is there now.

    Args:
        key: The engine's.
        now: What it would be today. Its fields of this machine count as far as the engine's are not ""; a later version may
            load an engine that was built to be compatible.
        file: Where the engine lies, for the message.
        fix: What builds it again, for the message.

    Raises:
        TrustError: VD7004, naming the first thing that changed, with both values.
    """
    for name in (*_PLACE, "onnx", "spec"):
        old, new = str(getattr(key, name)), str(getattr(now, name))
        if old in ("", new) or (name == "tensorrt" and key.options.get("compatible") and _numbers(new) > _numbers(old)):
            continue
        message = f"was built with {_WORDS.get(name, name)} {old}, here is {new or 'none'}"
        if name == "onnx":
            message = f"was built from another ONNX file ({old[:12]}) than the one beside it ({new[:12]})"
        if name == "spec":
            message = "was built for another input or other classes than the record beside it says"
        raise TrustError("VD7004", message, file=file, fix=fix)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def secret_file() -> Path:
    """Where this user's secret lies: ``$XDG_DATA_HOME/vitdeploy/device.key``, or below ``~/.local/share``."""
    return find_base("XDG_DATA_HOME", ".local/share") / "vitdeploy" / "device.key"


def require_secret() -> None:
    """Make this user's secret when there is none, and see that it can be used.

    Raises:
        TrustError: VD7004, it is not this user's alone, or damaged.
        MachineError: VD4004, it can't be written.
    """
    _secret()


def _secret() -> bytes:
    """This user's secret on this machine; its file is made when there is none.

    A home may be shared by machines, and a file may be in an image of many: the machine's own identity is mixed in.
    """
    path = secret_file()
    if not path.exists() and not path.is_symlink():
        _make(path)
    fix = f"remove it and build the engines again: rm {path}"
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as exc:
        raise TrustError("VD7004", f"the key of this machine can't be read: {exc.strerror}", file=path, fix=fix) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            raise TrustError("VD7004", "the key of this machine is not a file of this user", file=path, fix=fix)
        if hasattr(os, "geteuid") and status.st_mode & 0o077:  # Windows has no such bits
            message = f"the key of this machine can be read or changed by others (mode {stat.S_IMODE(status.st_mode):04o})"
            raise TrustError("VD7004", message, file=path, fix=fix)
        secret = os.read(descriptor, SECRET_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(secret) != SECRET_BYTES:
        raise TrustError("VD7004", "the key of this machine is damaged", file=path, fix=fix)
    return hmac.new(secret, machine.read_identity().encode(), hashlib.sha256).digest()


def _make(path: Path) -> None:
    """Write a new secret; of two processes that do so at once, the first one's stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with library("file system", path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(secrets.token_bytes(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            with suppress(FileExistsError):
                _place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name, unless the name is taken."""
    try:
        os.link(temporary, path)  # unlike a rename it never replaces
    except OSError as exc:
        if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # a file system without hard links
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(temporary.read_bytes())


def _machine(secret: bytes) -> str:
    return hmac.new(secret, b"vitdeploy machine", hashlib.sha256).hexdigest()[:16]


def _tag(secret: bytes, plan: bytes, key: EngineKey) -> str:
    """The key is hashed first, so that its length is fixed and no bytes can move between it and the engine."""
    return hmac.new(secret, _PURPOSE + bytes.fromhex(key.digest) + plan, hashlib.sha256).hexdigest()
