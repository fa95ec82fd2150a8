"""A box, and releases that go to it with a check that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fleet.boxes import PASS, Place, make_place, make_release, make_runtime
from vitdeploy.fleet import errands
from vitdeploy.fleet.errands import ServiceConfig
from vitdeploy.fleet.outcomes import Shipped
from vitdeploy.verbs.pusher import PushConfig, push


@pytest.fixture(scope="session")
def releases(shipment, tmp_path_factory) -> dict[int, Path]:
    """Bundles of one name, 4 to 9, all with the same models."""
    folder = tmp_path_factory.mktemp("releases")
    return {number: make_release(shipment, number, folder / str(number)) for number in range(4, 10)}


@pytest.fixture
def place(tmp_path) -> Place:
    """A box without anything."""
    return make_place(tmp_path / "box")


@pytest.fixture
def send(place, shipment, monkeypatch) -> Callable[..., Shipped]:
    """Push a bundle to the box, with a key, and with a check of one's own in the place of the real one."""

    def run(
        bundle: Path, health: str = PASS, *, key: Path | None = None, service: ServiceConfig | None = None, **more
    ) -> Shipped:
        monkeypatch.setattr(errands, "pack_runtime", lambda: make_runtime(health))
        config = PushConfig(
            key=str(key or shipment.public), connection=place.connect(), service=service or ServiceConfig(), **more
        )
        return push(bundle, "user@box", config)

    return run
