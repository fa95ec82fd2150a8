"""The agent: one request on stdin, answers on stdout, a line of JSON each, behind a character that no log-in message has.

It is sent with every push and leaves itself in the box's folder, for the box to go back by itself when it starts:

    python3 DIR/agent.pyz recover      before the service starts: it is not restarted
    python3 DIR/agent.pyz status
    python3 DIR/agent.pyz rollback
    python3 DIR/agent.pyz install FILE.vdb      which something else has brought; as a push does it
"""

from __future__ import annotations

import platform
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from vitdeploy import files
from vitdeploy.errors import DeviceError, TrustError, VitdeployError, explain_exhaustion, explain_refusal
from vitdeploy.fleet.agent import delivery
from vitdeploy.fleet.agent.checks import Proof, Service, prove
from vitdeploy.fleet.agent.installing import read_nothing, take_bundle
from vitdeploy.fleet.agent.store import AGENT, CURRENT, JOURNAL, KEY, PREVIOUS, UNPROVEN, Store
from vitdeploy.fleet.agent.switching import recover, switch
from vitdeploy.fleet.agent.talk import VERSION, Line, Words, say


def serve(root: str, agent: bytes) -> int:
    """Answer one request.

    Args:
        root: The box's folder, as it was typed; from the home folder if it is not absolute.
        agent: This agent as an archive, which stays in the folder.

    Returns:
        The exit status.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a connection that ends does not end a switch
    store = Store(Path.home() / Path(root).expanduser())
    line = Line(0)
    say(hello=VERSION, python=platform.python_version(), machine=platform.machine(), root=str(store.root))

    def answer() -> Words:
        request = line.read_request()
        if request["do"] == "status":
            return describe(store)
        with store.lock():
            path = store.root / AGENT
            if not request.get("dry_run") and not (path.exists() and files.read_bytes(path) == agent):
                store.write(AGENT, agent)
            trouble = recover(store, run_hook=True)
            if trouble:
                say(note=f"a switch that was cut off was taken back, and {trouble}")
            return _push(store, request, line.read) if request["do"] == "push" else _roll_back(store, request)

    return _end(store, answer)


def run(arguments: list[str]) -> int:
    """The agent on the box itself, from its archive.

    Args:
        arguments: Path of the archive, command, and a file for ``install``.
    """
    store = Store(Path(arguments[0]).absolute().parent)
    command, given = (arguments[1] if len(arguments) > 1 else ""), arguments[2:]
    if command not in ("recover", "status", "rollback", "install") or len(given) != (command == "install"):
        sys.stderr.write(f"{(__doc__ or '').partition(':')[2]}")
        return 2

    def answer() -> Words:
        if command == "status":
            return describe(store)
        with store.lock():
            recover(store, run_hook=False)
            if command == "install":
                return _push(store, {"bundle": take_bundle(store, Path(given[0])), **_UNSAID}, read_nothing)
            return _roll_back(store, {}) if command == "rollback" else describe(store)

    return _end(store, answer)


_UNSAID: Words = {"key": "", "restart": "", "check": "", "backend": "", "ready_s": 60.0, "health_s": 300.0}
_UNSAID |= {"allow_downgrade": False, "dry_run": False}
"""What a push says beside its bundle, where nobody says it: who installs restarts the service by itself."""


def describe(store: Store) -> Words:
    """What the box has. Reads only."""
    if not store.incoming.is_dir():
        return {"current": None, "previous": None, "releases": [], "unconfirmed": False, "key": "", "incoming": {}, "history": []}
    current, previous = store.read_link(CURRENT), store.read_link(PREVIOUS)
    key = store.root / KEY
    return {
        "current": current and current.describe(),
        "previous": previous and previous.describe(),
        "releases": [folder for folder in store.list_releases() if not folder.endswith(UNPROVEN)],
        "unconfirmed": (store.root / JOURNAL).exists(),
        "key": files.read_text(key) if key.exists() else "",
        "incoming": {each.name: each.stat().st_size for each in store.incoming.iterdir()},
        "history": store.read_history()[-10:],
    }


def _push(store: Store, request: Words, read: Callable[[int], bytes]) -> Words:
    sent = request["bundle"]
    shipment = delivery.read_delivery(sent["manifest"], sent["signature"], sent["runtime_sha256"], sent["runtime_size"])
    new, current = shipment.release, store.read_link(CURRENT)
    key = delivery.require_trust(store, shipment, request["key"])
    downgrade = delivery.require_order(store, new, allow_downgrade=request["allow_downgrade"])
    if current is not None and current.folder == new.folder:
        say(plan={"need": [], "size": 0, **new.describe()})
        return {"outcome": "unchanged", "health": None, **describe(store)}
    if not request["dry_run"]:
        store.prune(new.folder)
    needs = delivery.list_needs(store, shipment)
    say(plan=delivery.describe(shipment, needs))
    proof = Proof(request["health_s"], request["backend"])
    if request["dry_run"]:
        return {"outcome": "planned", "health": None, **describe(store)}
    if key is not None:
        store.write(KEY, key)
        store.note("trusts", key=request["key"])
    delivery.receive(store, needs, read)
    _say("put together")
    folder = delivery.materialise(store, shipment)
    _say("check")
    health = prove(store, folder, proof)
    delivery.finish(store, folder)
    switch(store, new, Service(request["restart"], request["check"], request["ready_s"]), proof, _say)
    return _conclude(store, "active", health, release=new.release, id=new.id, downgrade=downgrade)


def _roll_back(store: Store, request: Words) -> Words:
    previous = store.read_link(PREVIOUS)
    if previous is None:
        raise DeviceError("VD5010", "there is no release to go back to", file=store.root, fix="push one")
    proof = Proof(request.get("health_s", 300.0), request.get("backend", ""))
    _say("check")
    health = prove(store, previous.folder, proof)
    service = Service(request.get("restart", ""), request.get("check", ""), request.get("ready_s", 60.0))
    switch(store, previous, service, proof, _say)
    return _conclude(store, "rolled back", health, release=previous.release, id=previous.id)


def _conclude(store: Store, outcome: str, health: Words, **facts: object) -> Words:
    store.note(outcome, **facts)
    store.prune()
    store.end_deliveries()
    return {"outcome": outcome, "health": health, **describe(store)}


def _say(step: str) -> None:
    say(step=step)


def _end(store: Store, answer: Callable[[], Words]) -> int:
    """Say the answer, or what is wrong and what the box serves all the same."""
    try:
        say(done=answer())
    except (VitdeployError, OSError) as exc:
        error = _translate(exc)
        try:
            current = store.read_link(CURRENT)
            serves: Words | str | None = current and current.describe()
        except (DeviceError, OSError):
            serves = "unknown"
        say(error=error.record(), serves=serves)
        return error.exit_code
    return 0


def _translate(exc: VitdeployError | OSError) -> VitdeployError:
    """What this machine lacks is what the box lacks, for who pushes."""
    if isinstance(exc, (DeviceError, TrustError)):
        return exc
    known = exc if isinstance(exc, VitdeployError) else explain_exhaustion(exc) or explain_refusal(exc)
    if known is None:
        return DeviceError("VD5009", f"the box's system refused: {exc}")
    full = known.code == "VD4002"
    return DeviceError("VD5005" if full else "VD5009", known.message, file=known.file, fix=known.fix)
