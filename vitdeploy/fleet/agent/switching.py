"""From one release to the next, and back: at any moment the old or the new one is current, and a journal says which is unsure.

    journal {old, new} -> current: new -> restart -> the service works -> it runs as packed -> previous: old -> journal away

Whoever finds the journal finds a switch that nobody has confirmed, and goes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from vitdeploy import files
from vitdeploy.errors import DeviceError
from vitdeploy.fleet.agent.checks import Proof, Service, await_service, prove, restart
from vitdeploy.fleet.agent.store import CURRENT, HIGHEST, JOURNAL, PREVIOUS, Release, Store
from vitdeploy.fleet.agent.talk import Words

Say = Callable[[str], None]
"""Hears what is being done."""


def switch(store: Store, new: Release, service: Service, proof: Proof, say: Say) -> None:
    """Have a release served that lies in its folder and has proven itself, or go back.

    Raises:
        DeviceError: VD5007, the service did not come up, or the release does not run beside it: the old one is current again.
    """
    old, before = store.read_link(CURRENT), store.read_link(PREVIOUS)
    names = {"old": old and old.folder, "new": new.folder, "previous": before and before.folder}
    store.write(JOURNAL, json.dumps({**names, "restart": service.restart, "seconds": service.seconds}))
    store.link(CURRENT, new.folder)
    try:
        say("restart")
        restart(service)
        await_service(service)
        say("check again")
        _prove_again(store, new, proof)
        store.link(PREVIOUS, old and old.folder)
    except (DeviceError, OSError) as exc:
        cause = exc.message if isinstance(exc, DeviceError) else f"{exc.strerror}"
        came_back = recover(store, run_hook=True)
        message = f"release {new.release} did not stay: {cause}" + (f" (and {came_back})" if came_back else "")
        raise DeviceError("VD5007", message, fix="look at the service's own log on the box") from exc
    highest = store.read_json(HIGHEST)
    if highest is None or new.release >= highest["release"]:
        store.write(HIGHEST, json.dumps({"release": new.release, "id": new.id}))
    store.remove(JOURNAL)


def recover(store: Store, *, run_hook: bool) -> str:
    """Go back from a switch that nobody has confirmed, and sweep what killed processes left. Does nothing a second time.

    Args:
        store: Locked.
        run_hook: Whether the service is told; not where its own start asks for this.

    Returns:
        What went wrong with the service on the way back; "" for nothing.
    """
    for folder in (store.root, store.releases):
        files.sweep_inside(folder)
    journal: Words | None = store.read_json(JOURNAL)
    if journal is None:
        return ""
    store.link(CURRENT, journal["old"])
    store.link(PREVIOUS, journal["previous"])
    trouble = ""
    if run_hook and journal["old"]:
        try:
            restart(Service(restart=journal["restart"], seconds=journal["seconds"]))
        except DeviceError as exc:
            trouble = exc.message
    store.note("went back", to=journal["old"], of=journal["new"])
    store.remove(JOURNAL)
    return trouble


def _prove_again(store: Store, new: Release, proof: Proof) -> None:
    """Beside the service that has started: memory and devices are shared now."""
    try:
        prove(store, new.folder, proof)
    except DeviceError as exc:
        raise DeviceError("VD5007", exc.message) from exc
