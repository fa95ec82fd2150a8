"""The things one asks of a box: its state, to take a bundle, to go back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

import msgspec

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.p256 import PublicKey, read_public_key
from vitdeploy.errors import DeviceError, TrustError, printable
from vitdeploy.fleet.agent.talk import Words
from vitdeploy.fleet.box import Box
from vitdeploy.fleet.luggage import pack_runtime
from vitdeploy.fleet.outcomes import BoxState, Shipped
from vitdeploy.progress import Progress

_MIB = 2**20
_SLACK_S = 120.0
_CHECKS = 2
"""Times that a release is run on the box: before the switch, and after."""


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the box proves a release, and has its service take it.

    Attributes:
        restart: Command that has the service take the current release; "" for none.
        check: Command that ends with 0 when the service works; "" for none.
        ready_s: Seconds that ``restart`` may take, and then ``check`` until it succeeds.
        health_s: Seconds that the release may take to run on its samples.
        backend: The engine; "" for the first that is installed there.
    """

    restart: str = ""
    check: str = ""
    ready_s: float = 60.0
    health_s: float = 300.0
    backend: str = ""

    @property
    def patience_s(self) -> float:
        """How long the box may be silent."""
        return _CHECKS * self.health_s + 3 * self.ready_s + _SLACK_S


def read_state(box: Box) -> BoxState:
    """What the box has."""
    box.ask({"do": "status"})
    return _read_done(box, box.listen()["done"])


def roll_back(box: Box, service: ServiceConfig, progress: Progress) -> Shipped:
    """Have the box serve what it served before.

    Raises:
        DeviceError: VD5010, there is nothing to go back to; VD5006, VD5007 as `deliver`.
    """
    start = time.monotonic()
    box.ask({"do": "rollback", **msgspec.to_builtins(service)})
    done, notes = _await_done(box, service.patience_s, progress)
    return _conclude(box, done, start, (0, 0), notes)


def deliver(  # noqa: PLR0913 (what is sent, how it is proven, and what is allowed)
    box: Box,
    bundle: Bundle,
    service: ServiceConfig,
    *,
    key: PublicKey | None = None,
    allow_downgrade: bool = False,
    dry_run: bool = False,
    progress: Progress,
) -> Shipped:
    """Send what the box lacks of a bundle, and have it proven and served.

    Raises:
        TrustError: VD7010, the box trusts another key, or none yet; VD7006, its key did not sign this; VD7008, it is older.
        DeviceError: VD5003 to VD5009: the box refuses or fails; what it serves is said.
    """
    start, runtime = time.monotonic(), pack_runtime()
    runtime_sha256 = hashlib.sha256(runtime).hexdigest()
    sent = {
        "manifest": bundle.manifest.encode().decode(),
        "signature": (bundle.signature or b"").decode(errors="replace"),
        "runtime_sha256": runtime_sha256,
        "runtime_size": len(runtime),
    }
    request = {"do": "push", "bundle": sent, "key": key.pem.decode() if key else "", **msgspec.to_builtins(service)}
    box.ask(request | {"allow_downgrade": allow_downgrade, "dry_run": dry_run})
    plan = _await_plan(box, service.patience_s)
    names = {each.sha256: name for name, each in bundle.manifest.files.items()}
    needs = [(str(sha256), int(size), int(first)) for sha256, size, first in plan["need"]]
    wanted = sum(size - first for _, size, first in needs)
    if not dry_run:
        _send(box, bundle, {runtime_sha256: runtime}, names, needs, progress)
    done, notes = _await_done(box, service.patience_s, progress)
    if resumed := sum(first for _, _, first in needs):
        notes += (f"{resumed:,} bytes of an earlier push were there already.",)
    if key is not None and not dry_run:
        notes += (f"The box trusts the key {key.fingerprint[:12]}.",)
    return _conclude(box, done, start, (wanted, int(plan["size"])), notes)


def _send(  # noqa: PLR0913 (all of one thing)
    box: Box,
    bundle: Bundle,
    held: Mapping[str, bytes],
    names: Mapping[str, str],
    needs: list[tuple[str, int, int]],
    progress: Progress,
) -> None:
    """Exactly the bytes that are needed, in the order that the box said."""
    total = sum(size - first for _, size, first in needs)
    sent = 0
    for sha256, size, first in needs:
        if sha256 not in held and sha256 not in names:
            raise DeviceError("VD5003", f"wants a file that the bundle has not (sha256 {printable(sha256[:12])})", file=box.name)
        left = size - first
        parts = iter((held[sha256][first:],)) if sha256 in held else bundle.read_parts(names[sha256], first)
        for part in parts:
            box.send(part)
            left, sent = left - len(part), sent + len(part)
            if sent < total:
                progress(f"send: {total / _MIB:,.1f} MiB", sent, total)
        if left:
            fix = "get the bundle again from whoever packed it"
            raise TrustError("VD7007", f"{names.get(sha256)} changed while it was sent", file=bundle.path, fix=fix)
    progress(f"send: {total / _MIB:,.1f} MiB", 1, 1)


def _await_plan(box: Box, seconds: float) -> Words:
    while True:
        words = box.listen(seconds)
        if isinstance(words.get("plan"), dict):
            plan: Words = words["plan"]
            return plan
        if "note" not in words:
            raise _distrust(box)


def _await_done(box: Box, seconds: float, progress: Progress) -> tuple[Words, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    steps = 0
    while True:
        words = box.listen(seconds)
        if isinstance(words.get("done"), dict):
            progress("box", 1, 1)
            return words["done"], notes
        if "step" in words:
            progress(f"box: {printable(str(words['step']))}", steps, _MOST_STEPS)
            steps = min(steps + 1, _MOST_STEPS - 1)
        elif "note" in words:
            notes += (printable(str(words["note"])),)
        else:
            raise _distrust(box)


_MOST_STEPS = 5
"""The agent puts together, checks, restarts and checks again."""


def _read_done(box: Box, done: Words) -> BoxState:
    """The box's state as a record; what is strange in it is refused."""
    try:
        key = read_public_key(done["key"].encode()).fingerprint if done["key"] else ""
        known = {"box": box.name, "root": box.root, "python": box.python, "machine": box.machine}
        return msgspec.convert({**done, **known, "key": key}, BoxState)
    except (msgspec.ValidationError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _distrust(box) from exc


def _conclude(box: Box, done: Words, start: float, counts: tuple[int, int], notes: tuple[str, ...]) -> Shipped:
    state = _read_done(box, done)
    health = done.get("health")
    shown = {
        "outcome": done.get("outcome"),
        "sent": counts[0],
        "size": counts[1],
        "seconds": round(time.monotonic() - start, 3),
        "health": health.get("verification") if isinstance(health, dict) else None,
        "notes": notes,
        "state": msgspec.to_builtins(state),
    }
    try:
        return msgspec.convert(shown, Shipped)
    except msgspec.ValidationError as exc:
        raise _distrust(box) from exc


def _distrust(box: Box) -> DeviceError:
    return DeviceError("VD5003", "answers what no agent answers", file=box.name, fix=f"run: vitdeploy status {box.name}")
