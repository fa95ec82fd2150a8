"""The verb `rollback`: a box serves again what it served before."""

from __future__ import annotations

import msgspec

from vitdeploy.fleet.box import Connection, open_box
from vitdeploy.fleet.errands import ServiceConfig, roll_back
from vitdeploy.fleet.outcomes import Shipped
from vitdeploy.progress import Progress, silent


class RollbackConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a box goes back.

    Attributes:
        connection: How it is reached.
        service: How it proves the release and has its service take it.
    """

    connection: Connection = Connection()
    service: ServiceConfig = ServiceConfig()


def rollback(box: str, config: RollbackConfig | None = None, *, progress: Progress = silent) -> Shipped:
    """Have a box serve its previous release, once that has run there on its samples. A second rollback undoes the first.

    Args:
        box: ``user@host``, ``user@host:port``, or a name that the user's ssh knows.
        config: Everything else.
        progress: Hears of every step.

    Raises:
        UsageError: VD2003, that is no address.
        DeviceError: VD5001 to VD5010; what the box serves is said.
    """
    config = config or RollbackConfig()
    with open_box(box, config.connection) as there:
        return roll_back(there, config.service, progress)
