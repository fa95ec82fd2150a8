"""kill -9 at every step of the disk that the agent takes: the old or the new release is served, never neither.

And once the agent has started again, all is as if it had never begun, or as if it had ended; the next push arrives.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fleet import dying
from tests.fleet.boxes import ONLY_BEFORE, PASS, Place, make_place, make_release, make_runtime
from vitdeploy.errors import DeviceError
from vitdeploy.fleet import errands
from vitdeploy.fleet.box import Connection
from vitdeploy.verbs.pusher import PushConfig, push
from vitdeploy.verbs.returner import RollbackConfig, rollback

STEPS = {"push": 85, "goes-back": 79, "rollback": 31, "first-push": 94}
"""What the agent does, and how many steps of the disk that takes; `test_every_step_is_counted` says when they change."""
OLD, NEW, NEXT = 7, 8, 9


class Yard:
    """Boxes that are alike, in each of which the agent does one thing."""

    def __init__(self, folder: Path, bundles: dict[int, Path], key: Path) -> None:
        self._folder, self._bundles, self._key = folder, bundles, key
        self.whole = cache(self._live_whole)
        self._prepare = cache(self._prepare_home)

    def send(self, place: Place, number: int, health: str = PASS, python: str | Path = sys.executable) -> None:
        """Push a release."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(errands, "pack_runtime", lambda: make_runtime(health))
            push(self._bundles[number], "user@box", PushConfig(key=str(self._key), connection=place.connect(python)))

    def make_box(self, way: str, name: str) -> Place:
        """A box as it is before."""
        place = make_place(self._folder / name)
        if way != "first-push":
            place.home.rmdir()
            shutil.copytree(self._prepare(way), place.home, symlinks=True)
        return place

    def live(self, way: str, place: Place, last: int) -> list[str]:
        """Do the one thing, and die at a step of it; what was done until then."""
        python, trace = place.home.parent / "python", place.home.parent / "trace"
        python.write_text(f'#!/bin/sh\nDIE_AT={last} TRACE={trace} exec {sys.executable} {dying.__file__} "$@"\n')
        python.chmod(0o755)
        try:
            if way == "rollback":
                rollback("user@box", RollbackConfig(connection=Connection(ssh=str(place.ssh), python=str(python))))
            else:
                self.send(place, NEW, ONLY_BEFORE if way == "goes-back" else PASS, python)
        except DeviceError as error:
            assert error.code == ("VD5003" if last else "VD5007"), error  # killed; or nobody killed it, and it went back
        return trace.read_text().splitlines()

    def _prepare_home(self, way: str) -> Path:
        place = make_place(self._folder / f"before-{way}")
        self.send(place, OLD)
        if way == "rollback":
            self.send(place, NEW)
        return place.home

    def _live_whole(self, way: str) -> Life:
        place = self.make_box(way, f"whole-{way}")
        before = place.read_current()
        steps = self.live(way, place, 0)
        folders = {path.name for path in (place.root / "releases").iterdir()}
        return Life(steps, before, {*folders, before}, place.read_current())


class Life(NamedTuple):
    """What was done by an agent that did not die.

    Attributes:
        steps: Of the disk.
        before: The folder that was served; None for none.
        allowed: Folders that may be served at any moment.
        after: The folder that is served in the end.
    """

    steps: list[str]
    before: str | None
    allowed: set[str | None]
    after: str | None


@pytest.fixture(scope="module")
def yard(shipment, tmp_path_factory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("yard")
    bundles = {
        number: make_release(shipment, number, folder / f"{number}", note="\n" * number, slim=True) for number in (OLD, NEW, NEXT)
    }
    yield Yard(folder, bundles, shipment.public)


@pytest.mark.parametrize("way", STEPS)
def test_every_step_is_counted(yard, way):
    assert len(yard.whole(way).steps) == STEPS[way]
    assert sum(STEPS.values()) > 29


@pytest.mark.sampled(23)
@pytest.mark.parametrize(("way", "last"), [(way, last) for way, count in STEPS.items() for last in range(1, count + 1)])
def test_the_old_or_the_new_release_is_served(yard, way, last):
    place = yard.make_box(way, f"{way}-{last}")
    whole = yard.whole(way)
    assert len(yard.live(way, place, last)) == last
    _require_one(place, whole)
    unconfirmed = (place.root / "journal.json").exists()
    if (place.root / "agent.pyz").exists():
        done = place.run_agent("recover")
        assert done.returncode == 0, done.stdout + done.stderr
        assert not (place.root / "journal.json").exists()
        assert [path.name for path in place.root.iterdir() if ".tmp-" in path.name] == []
        assert place.read_current() == whole.before or not unconfirmed
    _require_one(place, whole)
    number = NEW if way.endswith("push") else NEXT
    yard.send(place, number)
    place.require_whole(place.read_current())
    assert place.read_current().startswith(f"{number}-")
    releases = [path.name for path in (place.root / "releases").iterdir()]
    assert len(releases) <= 3 and not any(name.endswith(".tmp") for name in releases)
    assert not any((place.root / "incoming").iterdir())
    shutil.rmtree(place.home)


def _require_one(place: Place, whole: Life) -> None:
    if place.read_current() is None:
        assert whole.before is None
    else:
        place.require_whole(*(folder for folder in whole.allowed if folder))


@pytest.mark.parametrize("way", STEPS)
def test_what_gets_its_name_is_on_the_disk(yard, way):
    """After a loss of power a name may be there without the bytes, unless these were flushed first; and a name that was not
    flushed may be gone while a later one is there."""
    flushed: set[str] = set()
    waiting: set[str] = set()
    for step in yard.whole(way).steps:
        kind, first, *more = step.split("\t")
        if kind == "fsync":
            flushed.add(first.removesuffix(" (deleted)"))
            waiting.discard(first)
        elif kind in ("replace", "rename"):
            if first.endswith(".new"):
                pass  # a link has no bytes
            elif "/incoming/" in first or Path(first).name.startswith("."):
                assert first in flushed, step
            if Path(more[0]).name in ("current", "journal.json"):
                assert not waiting, (step, waiting)
            waiting.add(str(Path(more[0]).parent))
        elif kind == "unlink" and first.endswith("/journal.json"):
            assert not waiting, (step, waiting)
