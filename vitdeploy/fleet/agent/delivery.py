"""A release on its way: who signed it, what of it is there already, the rest byte by byte, and all of it in its folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.bundle import signature
from vitdeploy.bundle.archive import is_name
from vitdeploy.bundle.p256 import read_public_key
from vitdeploy.errors import DeviceError, TrustError
from vitdeploy.fleet.agent.store import (
    BUNDLE,
    CURRENT,
    HIGHEST,
    KEY,
    RECORD,
    RUNTIME,
    UNPROVEN,
    Release,
    Store,
)
from vitdeploy.fleet.agent.talk import Words

MANIFEST = "manifest.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MARGIN = 16 << 20
"""Bytes of the disk that stay free."""
_CHUNK = 1 << 18


class Delivery(NamedTuple):
    """What is to become a release.

    Attributes:
        release: As it will be recorded.
        sizes: Path in the release's folder to bytes.
        written: Path to content, of what came along with the request.
        largest: Bytes of the largest model: one is copied when it is run.
    """

    release: Release
    sizes: dict[str, int]
    written: dict[str, bytes]
    largest: int


class Need(NamedTuple):
    """A file that the box lacks.

    Attributes:
        sha256: Of its bytes.
        size: How many they are.
        start: How many of them are there.
    """

    sha256: str
    size: int
    start: int


def read_delivery(manifest: str, signed: str, runtime_sha256: str, runtime_size: int) -> Delivery:
    """What a manifest announces.

    Args:
        manifest: The text of ``manifest.json``.
        signed: The text of the signature.
        runtime_sha256: Of the zipped vitdeploy that goes along.
        runtime_size: Of the same.

    Raises:
        DeviceError: VD5009, it is no manifest.
    """
    written = {f"{BUNDLE}/{MANIFEST}": manifest.encode(), f"{BUNDLE}/{signature.FILE}": signed.encode()}
    try:
        facts = json.loads(manifest)
        listed = {f"{BUNDLE}/{name}": (each["sha256"], each["size"]) for name, each in facts["files"].items()}
        listed[RUNTIME] = (runtime_sha256, runtime_size)
        largest = max(model["size"] for model in facts["models"])
        name, release = facts["name"], facts["release"]
        whole = all(is_name(path) and _DIGEST.fullmatch(digest) and size >= 0 for path, (digest, size) in listed.items())
        if not (whole and is_name(name) and type(release) is int and release > 0) or written.keys() & listed.keys():
            raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise DeviceError("VD5009", "what was sent is no manifest of a bundle", fix="pack the bundle again") from exc
    digests = {path: digest for path, (digest, _) in listed.items()}
    digests |= {path: hashlib.sha256(content).hexdigest() for path, content in written.items()}
    made = Release(name, release, digests[f"{BUNDLE}/{MANIFEST}"], digests)
    return Delivery(made, {path: size for path, (_, size) in listed.items()}, written, largest)


def require_trust(store: Store, delivery: Delivery, offered: str) -> bytes | None:
    """Refuse what the trusted key has not signed.

    Args:
        store: Where the key is pinned.
        delivery: What is to be trusted.
        offered: A key in PEM; "" for the one that is pinned.

    Returns:
        The key to pin, where none is yet.

    Raises:
        TrustError: VD7010, there is no key, or another one is pinned; VD7006, the key did not sign this.
    """
    pinned = store.root / KEY
    given = None if not offered else read_public_key(offered.encode())
    trusted = signature.read_key(pinned) if pinned.exists() else None
    if given is None and trusted is None:
        fix = "name the key that it shall trust from now on: --key KEY.pub"
        raise TrustError("VD7010", "the box trusts no key yet", file=pinned, fix=fix)
    if given is not None and trusted is not None and given != trusted:
        message = f"the box trusts the key {trusted.fingerprint[:12]}, and not {given.fingerprint[:12]}"
        raise TrustError("VD7010", message, file=pinned, fix="leave --key out; to change the key, remove that file on the box")
    key = trusted or given
    assert key is not None
    inside = {
        path.removeprefix(f"{BUNDLE}/"): digest
        for path, digest in delivery.release.files.items()
        if path not in (RUNTIME, f"{BUNDLE}/{signature.FILE}")
    }
    signature.verify(delivery.written[f"{BUNDLE}/{signature.FILE}"], key, inside, Path(BUNDLE))
    return key.pem if trusted is None else None


def require_order(store: Store, new: Release, *, allow_downgrade: bool) -> bool:
    """Refuse another model, and releases that do not come later than the highest that was served.

    Returns:
        Whether this goes back to an older one, as was allowed.

    Raises:
        DeviceError: VD5008, something else is served here.
        TrustError: VD7008, it is an older release, or another one with the same number.
    """
    current, highest = store.read_link(CURRENT), store.read_json(HIGHEST)
    if current is not None and current.name != new.name:
        message = f"{store.root} is where the box has {current.name}, and this is {new.name}"
        raise DeviceError("VD5008", message, fix="choose another folder with --path")
    if highest is None or new.id == highest["id"] or new.release > highest["release"]:
        return False
    if not allow_downgrade:
        message = f"is release {new.release} of {new.name}; the box has had release {highest['release']}"
        fix = "pack a later one, go back with `vitdeploy rollback`, or insist: --allow-downgrade"
        raise TrustError("VD7008", message, fix=fix)
    return True


def list_needs(store: Store, delivery: Delivery) -> list[Need]:
    """What has to be sent, the smallest first; equal files once.

    Raises:
        DeviceError: VD5005, there is no room for it.
    """
    needs: dict[str, Need] = {}
    copied = 0
    for path, size in delivery.sizes.items():
        sha256 = delivery.release.files[path]
        if sha256 in needs:
            copied += size
            continue
        place = store.find_file(sha256, size)
        if place is not None:
            copied += size
            continue
        part = store.incoming / sha256
        start = part.stat().st_size if part.exists() else 0
        needs[sha256] = Need(sha256, size, start if start <= size else 0)
    room = shutil.disk_usage(store.root).free - _MARGIN
    wanted = sum(need.size - need.start for need in needs.values()) + copied + delivery.largest
    if wanted > room:
        message = f"needs {wanted / 2**20:,.0f} MiB on the box, {max(room, 0) / 2**20:,.0f} MiB are free"
        raise DeviceError("VD5005", message, file=store.root, fix="free some disk there, or choose another folder with --path")
    return sorted(needs.values(), key=lambda need: (need.size, need.sha256))


def receive(store: Store, needs: list[Need], read: Callable[[int], bytes]) -> None:
    """Take the rest of every file, in the order of the needs.

    Args:
        store: What is cut off stays there, and goes on another time.
        needs: From `list_needs`.
        read: Gives at most so many bytes, at least one.

    Raises:
        DeviceError: VD5003, the connection was lost; VD5009, what came is not what was announced.
    """
    for need in needs:
        part, left = store.incoming / need.sha256, need.size - need.start
        with part.open("r+b" if need.start else "wb") as stream:
            stream.seek(need.start)
            try:
                while left:
                    chunk = read(min(left, _CHUNK))
                    stream.write(chunk)
                    left -= len(chunk)
            finally:
                stream.flush()
                os.fsync(stream.fileno())
        files.flush_folder(store.incoming)
        if files.sha256(part) != need.sha256:
            part.unlink()
            message = f"a file arrived with other bytes than announced (sha256 {need.sha256[:12]}), and was thrown away"
            raise DeviceError("VD5009", message, fix="push again")


def materialise(store: Store, delivery: Delivery) -> str:
    """Put a release together; everything of it is on the disk.

    Returns:
        Its folder, which has not proven itself, or the release's own where it lies there already.
    """
    release = delivery.release
    if (store.releases / release.folder).is_dir():
        return release.folder
    folder = f"{release.folder}{UNPROVEN}"
    place = store.releases / folder
    (place / BUNDLE).mkdir(parents=True, exist_ok=True)
    for inner, _, _ in os.walk(place):
        files.sweep_inside(Path(inner))
    files.write(place / RECORD, json.dumps(release._asdict()))
    for path, content in delivery.written.items():
        files.write(place / path, content)
    for path, size in delivery.sizes.items():
        _place(store, release.files[path], size, place / path)
    files.flush_tree(place)
    files.flush_folder(store.incoming)
    return folder


def finish(store: Store, folder: str) -> None:
    """Give a release that has proven itself its own name."""
    if folder.endswith(UNPROVEN):
        (store.releases / folder).replace(store.releases / folder.removesuffix(UNPROVEN))
        files.flush_folder(store.releases)


def _place(store: Store, sha256: str, size: int, target: Path) -> None:
    if target.is_file() and target.stat().st_size == size and files.sha256(target) == sha256:
        return
    part = store.incoming / sha256
    if part.is_file() and part.stat().st_size == size:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        return
    source = store.find_file(sha256, size)
    if source is None:
        raise DeviceError("VD5009", f"a file of another release has changed (sha256 {sha256[:12]})", fix="push again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.open_regular(source) as stream, files.new_file(target) as copy:
        shutil.copyfileobj(stream, copy, _CHUNK)


def describe(delivery: Delivery, needs: list[Need]) -> Words:
    """What is going to be sent, for the other side."""
    return {"need": [list(need) for need in needs], "size": sum(delivery.sizes.values()), **delivery.release.describe()}
