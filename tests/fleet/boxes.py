"""Boxes for tests: folders on this machine, reached by a program in the place of ssh that only runs the command there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vitdeploy.bundle import manifest, signature
from vitdeploy.bundle.bundle import open_bundle
from vitdeploy.bundle.manifest import PackedFile
from vitdeploy.fleet.box import Connection

PASS = "import json, sys; open(sys.argv[2], 'w').write(json.dumps({'passed': True, 'words': '', 'verification': None}))"
FAIL = PASS.replace("True, 'words': ''", "False, 'words': 'outputs is 0.4, at most 0.02'")
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
STALL = "import time; time.sleep(60)"
ONLY_BEFORE = (
    f"import sys\nif '.tmp/' in sys.argv[1]: {PASS.removeprefix('import json, sys; ')}\nelse: sys.exit('no memory')".replace(
        "import sys", "import json, sys", 1
    )
)
"""Passes before the switch, and not after it."""

_SSH = """\
#!/bin/sh
for last; do :; done
cd {home} && HOME={home} exec sh -c "{before}$last"
"""


class Place(NamedTuple):
    """A box that is a folder.

    Attributes:
        home: Of its user.
        ssh: The program that reaches it.
    """

    home: Path
    ssh: Path

    @property
    def root(self) -> Path:
        """Where releases go."""
        return self.home / "vitdeploy"

    def connect(self, python: str | Path = sys.executable) -> Connection:
        """How it is reached."""
        return Connection(ssh=str(self.ssh), python=str(python))

    def read_current(self) -> str | None:
        """The folder of the release that is served."""
        link = self.root / "current"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def run_agent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The agent that lies on the box, without anything but the standard library."""
        command = [sys.executable, "-I", "-S", str(self.root / "agent.pyz"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env={"HOME": str(self.home)})

    def require_whole(self, *allowed: str) -> None:
        """What is current is one of some releases, and every byte of it is there."""
        current = self.read_current()
        assert current in allowed, (current, allowed)
        folder = self.root / "current"
        listed = json.loads((folder / "release.json").read_bytes())["files"]
        for name, digest in listed.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there == {*listed, "release.json"}


def make_place(folder: Path, before: str = "") -> Place:
    """A box without anything.

    Args:
        folder: Does not exist.
        before: What its shell does first.
    """
    (folder / "home").mkdir(parents=True)
    ssh = folder / "ssh"
    ssh.write_text(_SSH.format(home=folder / "home", before=before))
    ssh.chmod(0o755)
    return Place(folder / "home", ssh)


def make_runtime(health: str) -> bytes:
    """A vitdeploy of one module: what a box runs before it believes a release."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in (
            ("vitdeploy/__init__.py", ""),
            ("vitdeploy/verbs/__init__.py", ""),
            ("vitdeploy/verbs/health.py", health),
        ):
            archive.writestr(zipfile.ZipInfo(name), text)
    return content.getvalue()


def make_release(
    shipment: Any, release: int, folder: Path, *, name: str = "tiny", key: Path | None = None, note: str = "", slim: bool = False
) -> Path:
    """The shipment once more, as another release: a bundle in a folder, signed.

    Args:
        shipment: The fixture.
        release: Its counter.
        folder: Where; does not exist.
        name: Of what is shipped.
        key: The private key; None is the shipment's.
        note: Goes into its bill of materials, for another id.
        slim: Whether it has two files only, and runs nowhere.
    """
    with open_bundle(shipment.bundle) as bundle:
        facts = bundle.manifest
        if slim:
            listed = {each: facts.files[each] for each in ("bom.cdx.json", f"{facts.models[0].folder}/artifact.json")}
            facts = msgspec.structs.replace(facts, models=facts.models[:1], samples=(), files=listed)
        for each in facts.files:
            bundle.copy(each, folder / each)
    bom = folder / "bom.cdx.json"
    bom.write_text(bom.read_text() + note)
    packed = PackedFile(size=bom.stat().st_size, sha256=hashlib.sha256(bom.read_bytes()).hexdigest())
    changed = msgspec.structs.replace(facts, release=release, name=name, files={**facts.files, "bom.cdx.json": packed})
    (folder / manifest.FILE).write_bytes(changed.encode())
    digests = {each: held.sha256 for each, held in changed.files.items()} | {manifest.FILE: changed.id}
    (folder / signature.FILE).write_bytes(signature.sign(digests, name, key or shipment.private).content)
    return folder
