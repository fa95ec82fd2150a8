"""What came of asking a box: records for people and programs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from vitdeploy.fleet.agent.talk import Words

Outcome = Literal["active", "unchanged", "planned", "rolled back"]
"""What a push or a rollback came to: served now; served before already; nothing was done; the one before is served again."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A release on a box.

    Attributes:
        name: Of what is shipped.
        release: Its counter.
        id: SHA-256 of its manifest.
        folder: Its folder on the box, below ``releases/``.
    """

    name: str
    release: Annotated[int, msgspec.Meta(ge=1)]
    id: str
    folder: str


class BoxState(msgspec.Struct, frozen=True, kw_only=True):
    """What a box has.

    Attributes:
        schema_version: Version of this record.
        box: As it was typed.
        root: The folder there.
        python: Version of the Python there.
        machine: Its kind, such as ``aarch64``.
        current: What is served; None for nothing.
        previous: What was served before.
        releases: Folders of all that it keeps, the highest release last.
        unconfirmed: Whether a switch was begun and not ended: one is at work, or was cut off and will be taken back.
        key: Fingerprint of the key that it trusts; "" for none yet.
        incoming: SHA-256 of files that came in part to the bytes that are there.
        history: The last ten events, the oldest first, by the box's clock.
    """

    schema_version: int = 1
    box: str
    root: str
    python: str
    machine: str
    current: Served | None
    previous: Served | None
    releases: tuple[str, ...]
    unconfirmed: bool
    key: str
    incoming: dict[str, int]
    history: tuple[Words, ...]


class Shipped(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a push or a rollback.

    Attributes:
        schema_version: Version of this record.
        outcome: In a word.
        sent: Bytes that went to the box; of a plan, those that would.
        size: Bytes of the whole release.
        seconds: How long it took.
        health: What the release came to on the box: a verification; None where nothing was run.
        notes: What a reader should know.
        state: What the box has now.
    """

    schema_version: int = 1
    outcome: Outcome
    sent: int
    size: int
    seconds: float
    health: Words | None
    notes: tuple[str, ...]
    state: BoxState
