"""The verb `status`: what a box serves, keeps and trusts."""

from __future__ import annotations

from vitdeploy.fleet.box import Connection, open_box
from vitdeploy.fleet.errands import read_state
from vitdeploy.fleet.outcomes import BoxState


def status(box: str, connection: Connection | None = None) -> BoxState:
    """What a box serves, keeps and trusts. Nothing is changed there.

    Args:
        box: ``user@host``, ``user@host:port``, or a name that the user's ssh knows.
        connection: How it is reached.

    Raises:
        UsageError: VD2003, that is no address.
        DeviceError: VD5001 to VD5009.
    """
    with open_box(box, connection or Connection()) as there:
        return read_state(there)
