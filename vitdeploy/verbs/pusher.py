"""The verb `push`: a bundle onto a box, proven there before it is served, and gone again if it is not good."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vitdeploy.bundle import signature
from vitdeploy.bundle.bundle import open_bundle
from vitdeploy.errors import TrustError
from vitdeploy.fleet.box import Connection, open_box
from vitdeploy.fleet.errands import ServiceConfig, deliver
from vitdeploy.fleet.outcomes import Shipped
from vitdeploy.progress import Progress, silent


class PushConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bundle goes to a box.

    Attributes:
        key: File of the public key that the box shall trust from now on; later pushes need it no more.
        connection: How the box is reached.
        service: How it proves the release and has its service take it.
        allow_downgrade: Whether an older release may follow a later one; the box's history keeps it.
        dry_run: Whether nothing is sent: what would be is said, and what the box would refuse.
    """

    key: str | None = None
    connection: Connection = Connection()
    service: ServiceConfig = ServiceConfig()
    allow_downgrade: bool = False
    dry_run: bool = False


def push(bundle: str | Path, box: str, config: PushConfig | None = None, *, progress: Progress = silent) -> Shipped:
    """Send a bundle to a box over the system's ssh, and have it served there once it runs as it did where it was packed.

    Only files that the box lacks are sent, from the byte where an earlier push was cut off. The release is run on the box's own
    hardware while the old one is still served; then the link ``current`` is switched, the service restarted and the release run
    again. If anything fails, the old release is current again.

    Args:
        bundle: What `pack` wrote, signed.
        box: ``user@host``, ``user@host:port``, or a name that the user's ssh knows.
        config: Everything else.
        progress: Hears of every step.

    Raises:
        InputError: VD3001, VD3030, it is no bundle; VD3031, the key is none.
        UsageError: VD2003, that is no address.
        TrustError: VD7006, it is not signed, or not with the key; VD7007, its files are not those that were packed; VD7008, the
            box had a later release; VD7010, the box trusts no key yet, or another one.
        DeviceError: VD5001 to VD5009; what the box serves is said.
    """
    config = config or PushConfig()
    key = None if config.key is None else signature.read_key(Path(config.key))
    with open_bundle(Path(bundle)) as opened:
        progress("verify", 0, 1)
        opened.check(key)
        if opened.signature is None:
            fix = "sign it: vitdeploy pack ARTIFACT --sign KEY -o OUT.vdb"
            raise TrustError("VD7006", "is not signed", file=opened.path, fix=fix)
        progress("verify", 1, 1)
        with open_box(box, config.connection) as there:
            return deliver(
                there,
                opened,
                config.service,
                key=key,
                allow_downgrade=config.allow_downgrade,
                dry_run=config.dry_run,
                progress=progress,
            )
