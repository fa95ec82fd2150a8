"""What recipes/device says works: the unit's lines and the service, on a box that is a folder; and the page's ten commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.boxes import make_place, make_release
from vitdeploy.bundle.archive import write_archive
from vitdeploy.cli.commands import main
from vitdeploy.verbs.pusher import PushConfig, push

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "recipes" / "device"


def read_unit(home: Path) -> dict[str, str]:
    """The unit's settings, with the home folder filled in, and this Python for the box's."""
    lines = re.findall(r"^(\w+)=(.*)$", (DEVICE / "vit.service").read_text(), re.M)
    return {name: value.replace("%h", str(home)).replace("/usr/bin/python3", sys.executable) for name, value in lines}


def test_the_unit_serves_what_is_current_and_goes_back_first(shipment, tmp_path):
    place = make_place(tmp_path / "box")
    push(shipment.bundle, "user@box", PushConfig(key=str(shipment.public), connection=place.connect()))
    old = place.read_current()
    (place.root / "journal.json").write_text(
        f'{{"old": "{old}", "new": "9-x", "previous": null, "restart": "false", "seconds": 1}}'
    )
    (place.root / "current").unlink()
    (place.root / "current").symlink_to("releases/9-x")  # the power went away in the middle of a switch
    unit = read_unit(place.home)
    assert unit["ConditionPathExists"] == str(place.root / "agent.pyz")
    subprocess.run(shlex.split(unit["ExecStartPre"]), check=True, capture_output=True, cwd="/", env={})
    assert place.read_current() == old
    (place.home / "serve.py").write_text((DEVICE / "serve.py").read_text())
    name, _, value = unit["Environment"].partition("=")
    environment = {"PATH": os.environ["PATH"], "HOME": str(place.home), name: value}
    image = place.root / "current/bundle/samples/1-wide.png"
    served = subprocess.run(
        shlex.split(unit["ExecStart"]), input=f"{image}\n", text=True, capture_output=True, cwd="/", env=environment, check=True
    )
    ready, label = served.stdout.splitlines()
    assert ready == "ready"
    assert label


@pytest.mark.slow
def test_the_ten_commands_of_the_page(tiny_artifact, tmp_path, monkeypatch):
    """Word by word, but for the first two, which make a model: theirs is the tiny one, in two places."""
    page = (ROOT / "vitdeploy" / "fleet" / "README.md").read_text()
    lines = page.split("in ten commands:")[1].split("```")[1].removeprefix("text").strip().splitlines()
    assert len(lines) == 10
    assert [line.split()[1] for line in lines[:2]] == ["export", "quantize"]
    monkeypatch.chdir(tmp_path)
    for name in ("vit", "vit-int8"):
        (tmp_path / name).symlink_to(tiny_artifact.folder)
    place = make_place(tmp_path / "box", f"PATH={tmp_path}/bin:{Path(sys.executable).parent}:$PATH; ")
    monkeypatch.setenv("PATH", f"{place.ssh.parent}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/restarts\n')
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    for line in lines[2:]:
        assert main([*shlex.split(line)[1:], "-q"]) == 0, line
    assert place.read_current().startswith("1-")
    assert (tmp_path / "restarts").read_text() == "--user restart vit\n" * 2
    place.require_whole(place.read_current())


def test_a_unit_that_systemd_takes(tmp_path):
    if subprocess.run(["sh", "-c", "command -v systemd-analyze"], capture_output=True).returncode:
        pytest.skip("no systemd-analyze here")
    home = tmp_path / "home"
    unit = tmp_path / "vit.service"
    unit.write_text((DEVICE / "vit.service").read_text().replace("%h", str(home)))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "Unknown" not in done.stderr and "Failed to parse" not in done.stderr, done.stderr


def test_a_box_of_two_files_is_enough_for_the_agent(shipment, tmp_path):
    """What the other tests of the agent push is a bundle in every respect."""
    from vitdeploy.verbs.verifier import VerifyConfig, verify

    slim = make_release(shipment, 5, tmp_path / "slim", slim=True)
    assert verify(slim, VerifyConfig(key=str(shipment.public))).passed


def write_bundle(folder: Path, path: Path) -> Path:
    """A bundle that is a folder, as one file."""
    with path.open("wb") as stream:
        write_archive(stream, {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()})
    return path


def test_what_another_updater_brings_is_installed_as_a_push(send, place, shipment, tmp_path):
    module, files = DEVICE / "mender-vitdeploy", tmp_path / "update" / "files"
    files.mkdir(parents=True)
    for number in (7, 8, 9):
        make_release(shipment, number, tmp_path / str(number), slim=True, note="\n" * number)
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "AGENT": str(place.root / "agent.pyz")}
    environment["RESTART"] = f"readlink {place.root}/current"

    def call(state: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", module, state, files.parent], env=environment, capture_output=True, text=True)

    send(tmp_path / "7")
    assert (call("NeedsArtifactReboot").stdout, call("SupportsRollback").stdout) == ("No\n", "Yes\n")
    bundle = write_bundle(tmp_path / "8", files / "vit.vdb")
    done = call("ArtifactInstall")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("releases/8-")
    place.require_whole(place.read_current())
    assert call("ArtifactRollback").stdout.splitlines()[-1].startswith("releases/7-")
    whole = write_bundle(tmp_path / "9", bundle).read_bytes()
    bundle.write_bytes(whole.replace(b"CycloneDX", b"cycloneDX"))
    done = call("ArtifactInstall")
    assert done.returncode == 5 and "other bytes than announced" in done.stdout
    bundle.write_bytes(whole.replace(b'"release":9', b'"release":8'))
    done = call("ArtifactInstall")
    assert done.returncode == 7 and "VD7006" in done.stdout
    assert place.read_current().startswith("7-")


def test_nothing_is_installed_on_a_box_that_serves_nothing(send, place, shipment, tmp_path):
    send(make_release(shipment, 7, tmp_path / "7", slim=True))
    (place.root / "current").unlink()
    done = place.run_agent("install", str(write_bundle(tmp_path / "7", tmp_path / "a.vdb")))
    assert done.returncode == 5 and "VD5010" in done.stdout
