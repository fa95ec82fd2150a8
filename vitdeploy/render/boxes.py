"""What a box has, and what came of a push, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.render.tables import Table, tabulate_pairs

if TYPE_CHECKING:
    from vitdeploy.fleet.outcomes import BoxState, Served, Shipped

_SHORT = 12


def tabulate_shipped(shipped: Shipped) -> list[Table]:
    """What came of it, what the box serves now, and what the release came to there."""
    state, health = shipped.state, shipped.health
    sent = "would be sent" if shipped.outcome == "planned" else "sent"
    pairs = {
        "box": state.box,
        "outcome": shipped.outcome,
        "serves": _name(state.current),
        "before": _name(state.previous),
        sent: f"{shipped.sent / 2**20:,.1f} of {shipped.size / 2**20:,.1f} MiB",
        "took": f"{shipped.seconds:,.1f} s",
    }
    if shipped.outcome == "rolled back":
        del pairs[sent]
    if health is not None:
        checks = ", ".join(f"{check['name']} {check['outcome']}" for check in health.get("checks", ()))
        pairs["ran there"] = f"{health.get('model')} in {health.get('engine')}: {checks}"
    notes = [tabulate_pairs("", {"note": note}) for note in shipped.notes]
    return [tabulate_pairs("", pairs), *notes]


def tabulate_box(state: BoxState) -> list[Table]:
    """What a box serves, keeps and trusts, and what happened there."""
    pairs = {
        "box": f"{state.box}, {state.machine}, Python {state.python}",
        "folder": state.root,
        "serves": _name(state.current),
        "before": _name(state.previous),
        "keeps": ", ".join(state.releases) or "nothing",
        "trusts": state.key[:_SHORT] or "no key yet",
    }
    if state.unconfirmed:
        pairs["switch"] = "begun and not confirmed: a push is at work, or was cut off and will be taken back"
    if state.incoming:
        pairs["on its way"] = f"{sum(state.incoming.values()):,} bytes of {len(state.incoming)} files"
    rows = tuple(
        (str(event.get("time", "")), str(event.get("event", "")), str(event.get("release", event.get("to", "") or "")))
        for event in state.history
    )
    history = [Table("", ("time on the box", "event", "release"), rows)] if rows else []
    return [tabulate_pairs("", pairs), *history]


def _name(served: Served | None) -> str:
    return "nothing" if served is None else f"release {served.release} of {served.name} ({served.id[:_SHORT]})"
