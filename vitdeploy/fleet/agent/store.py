"""What lies on a box, and how it is written: whatever has its final name is complete and on the disk.

DIR/current -> releases/7-0a1b2c3d4e5f     what is served: bundle/, vitdeploy.zip, release.json
DIR/previous -> releases/6-f5e4d3c2b1a0    what was served before
DIR/releases/8-9c8b7a6d5e4f.tmp            one that has not proven itself
DIR/incoming/SHA256                        files on their way, which go on at the byte where they were cut off
DIR/journal.json                           a switch that nobody has confirmed
DIR/key.pub                                the one key that is trusted
DIR/highest.json, history.jsonl            the highest release that was ever served, and what happened
DIR/agent.pyz, lock                        the agent itself, and who is at work
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import DeviceError, InputError
from vitdeploy.fleet.agent.talk import Words

BUNDLE, RUNTIME, RECORD, UNPROVEN = "bundle", "vitdeploy.zip", "release.json", ".tmp"
CURRENT, PREVIOUS = "current", "previous"
JOURNAL, KEY, HIGHEST, HISTORY, AGENT = "journal.json", "key.pub", "highest.json", "history.jsonl", "agent.pyz"
KEEP = 3
"""Releases that stay on a box."""
_REMEMBER = 200
"""Lines of the history."""
_FOLDER = re.compile(r"\d+-[0-9a-f]{12}(\.tmp)?")


class Release(NamedTuple):
    """A release as it lies in its folder, and as ``release.json`` there says it.

    Attributes:
        name: Of what is shipped.
        release: Its counter.
        id: SHA-256 of the bundle's manifest.
        files: Path in the folder to SHA-256.
    """

    name: str
    release: int
    id: str
    files: dict[str, str]

    @property
    def folder(self) -> str:
        """Its name below ``releases/``: of the counter, and of every byte."""
        listed = json.dumps([self.name, self.release, self.id, sorted(self.files.items())])
        return f"{self.release}-{hashlib.sha256(listed.encode()).hexdigest()[:12]}"

    def describe(self) -> Words:
        """For the other side."""
        return {"name": self.name, "release": self.release, "id": self.id, "folder": self.folder}


class Store:
    """The folder of a box.

    Args:
        root: Absolute.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.releases, self.incoming = root, root / "releases", root / "incoming"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and be the only one at work in it.

        Raises:
            DeviceError: VD5004, somebody else is; VD5009, the folder holds other things.
        """
        if self.root.is_dir() and not (self.root / "lock").exists() and any(self.root.iterdir()):
            raise DeviceError("VD5009", "the folder holds other things", file=self.root, fix="choose another with --path")
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a+") as stream:  # before all else: it says that the folder is ours
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                stream.seek(0)
                message = f"something else is at work on the box (process {stream.read(20).strip() or 'unknown'})"
                raise DeviceError("VD5004", message, file=self.root, fix="wait for it to end, and try again") from exc
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            for folder in (self.releases, self.incoming):
                folder.mkdir(exist_ok=True)
            yield

    def read_link(self, name: str) -> Release | None:
        """The release that `CURRENT` or `PREVIOUS` leads to.

        Raises:
            DeviceError: VD5009, it leads nowhere.
        """
        try:
            folder = (self.root / name).readlink().name
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self.read_release(folder)

    def read_release(self, folder: str) -> Release:
        """A release by its folder.

        Raises:
            DeviceError: VD5009, it is damaged.
        """
        try:
            return Release(**json.loads(files.read_bytes(self.releases / folder / RECORD)))
        except (OSError, InputError, ValueError, TypeError) as exc:
            path = self.releases / folder / RECORD
            raise DeviceError(
                "VD5009", "is damaged", file=path, fix="look at the box's disk; push again to another --path"
            ) from exc

    def write(self, name: str, content: bytes | str) -> None:
        """A file, whole, and on the disk."""
        files.write(self.root / name, content)

    def read_json(self, name: str) -> Words | None:
        """What `write` wrote; None where nothing is."""
        try:
            content: Words = json.loads(files.read_bytes(self.root / name))
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise DeviceError("VD5009", "is damaged", file=self.root / name, fix="look at the box's disk") from exc
        return content

    def link(self, name: str, folder: str | None) -> None:
        """Have `CURRENT` or `PREVIOUS` lead to another release in one step, or nowhere."""
        path = self.root / name
        if folder is None:
            path.unlink(missing_ok=True)
        else:
            beside = path.with_name(f"{name}.new")
            beside.unlink(missing_ok=True)
            beside.symlink_to(f"releases/{folder}")
            beside.replace(path)
        files.flush_folder(self.root)

    def remove(self, name: str) -> None:
        """A file of the folder, which stays away."""
        (self.root / name).unlink(missing_ok=True)
        files.flush_folder(self.root)

    def note(self, event: str, **facts: object) -> None:
        """A line more in the history. The box's clock may be wrong: nothing is decided by it."""
        lines = self.read_history()
        lines.append({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts})
        self.write(HISTORY, "".join(f"{json.dumps(line)}\n" for line in lines[-_REMEMBER:]))

    def read_history(self) -> list[Words]:
        """What happened, the oldest first."""
        try:
            return [json.loads(line) for line in files.read_text(self.root / HISTORY).splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as exc:
            path = self.root / HISTORY
            raise DeviceError("VD5009", "is damaged", file=path, fix="remove it from the box") from exc

    def list_releases(self) -> list[str]:
        """Folders of releases, those that have not proven themselves too; the highest counter last."""
        folders = [each.name for each in self.releases.iterdir() if _FOLDER.fullmatch(each.name)]
        return sorted(folders, key=lambda folder: (int(folder.partition("-")[0]), folder))

    def find_file(self, sha256: str, size: int) -> Path | None:
        """A file of any release that has these bytes, as read just now."""
        for folder in self.list_releases():
            try:
                listed = self.read_release(folder).files
            except DeviceError:
                continue  # one that is damaged has nothing to give
            for name in (name for name, digest in listed.items() if digest == sha256):
                path = self.releases / folder / name
                if path.is_file() and path.stat().st_size == size and files.sha256(path) == sha256:
                    return path
        return None

    def drop(self, folder: str) -> None:
        """A release that is not needed any more: its name goes first."""
        path = self.releases / folder
        if not folder.endswith(UNPROVEN):
            shutil.rmtree(self.releases / f"{folder}{UNPROVEN}", ignore_errors=True)
            path = path.replace(self.releases / f"{folder}{UNPROVEN}")
            files.flush_folder(self.releases)
        shutil.rmtree(path)

    def end_deliveries(self) -> None:
        """Forget what came in part, of pushes that were given up: one has arrived since."""
        for part in self.incoming.iterdir():
            part.unlink()

    def prune(self, coming: str = "") -> None:
        """Keep `KEEP` releases, always the current and the previous, and nothing of pushes that were given up.

        Args:
            coming: Folder of the release that is being pushed, which stays, whole or not.
        """
        needed = {each.folder for each in (self.read_link(CURRENT), self.read_link(PREVIOUS)) if each} | {coming} - {""}
        others = [folder for folder in self.list_releases() if folder not in needed | {f"{coming}{UNPROVEN}"}]
        whole = [folder for folder in others if not folder.endswith(UNPROVEN)]
        more = max(0, KEEP - len(needed))
        for folder in set(others) - set(whole[len(whole) - more :] if more <= len(whole) else whole):
            self.drop(folder)
