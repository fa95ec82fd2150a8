"""Pushes through a real OpenSSH server on this machine, with keys and a configuration of its own."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fleet.boxes import make_release
from vitdeploy.cli.commands import main
from vitdeploy.errors import DeviceError
from vitdeploy.fleet.box import Connection
from vitdeploy.verbs.surveyor import status

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs an OpenSSH server (openssh-server)")

_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile none
AuthorizedKeysFile {folder}/authorized
StrictModes no
UsePAM no
KbdInteractiveAuthentication no
PasswordAuthentication yes
"""
_CLIENT = """\
Host *
  UserKnownHostsFile {folder}/known
  StrictHostKeyChecking yes
  GlobalKnownHostsFile /dev/null
  IdentitiesOnly yes
  IdentityAgent none
  IdentityFile {folder}/login
"""


class Server(NamedTuple):
    """An OpenSSH server.

    Attributes:
        folder: Its keys, and where ``authorized`` says what a key may do.
        name: The box, as `push` takes it.
        key: The public half of the login's key.
    """

    folder: Path
    name: str
    key: str

    @property
    def ssh(self) -> str:
        """The client with a configuration of its own."""
        return f"ssh -F {self.folder}/client"

    def connect(self, path: Path) -> Connection:
        """How it is reached."""
        return Connection(ssh=self.ssh, path=str(path), python=sys.executable)

    def allow(self, options: str = "") -> None:
        """Let the key in, with options of ``authorized_keys`` before it."""
        (self.folder / "authorized").write_text(f"{options} {self.key}\n".lstrip())


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "login"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "server").write_text(_SERVER.format(port=port, folder=folder))
    (folder / "client").write_text(_CLIENT.format(folder=folder))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "server"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        made = Server(folder, f"{getpass.getuser()}@127.0.0.1:{port}", (folder / "login.pub").read_text().strip())
        made.allow()
        yield made
    finally:
        process.terminate()
        process.wait()


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_from_a_bundle_to_a_box_and_back(server, shipment, tmp_path, capfd):
    """Nothing of this checkout is on the box's path: what runs the model there came with the push."""
    root = tmp_path / "box"
    there = (server.name, "--path", root, "--python", sys.executable, "--ssh", server.ssh)
    service = ("--restart", f"readlink {root}/current >> {root}/restarts", "--check", f"test -s {root}/restarts")
    assert run("push", shipment.bundle, *there, "--key", shipment.public, *service, "--json", "-q") == 0
    record = json.loads(capfd.readouterr().out)
    assert (record["outcome"], record["state"]["current"]["release"]) == ("active", 4)
    checks = {check["name"]: check["outcome"] for check in record["health"]["checks"]}
    assert checks == {"images": "pass", "outputs": "pass"}
    later = make_release(shipment, 5, tmp_path / "later")
    assert run("push", later, *there, *service) == 0
    out, err = capfd.readouterr()
    assert "release 5 of tiny" in out
    assert f"to go back: vitdeploy rollback {server.name}" in err
    assert run("rollback", *there, *service, "--json", "-q") == 0
    assert json.loads(capfd.readouterr().out)["state"]["current"]["release"] == 4
    assert run("status", *there, "--json") == 0
    state = json.loads(capfd.readouterr().out)
    assert (state["current"]["release"], state["previous"]["release"], state["unconfirmed"]) == (4, 5, False)
    assert [line.partition("/")[2][0] for line in (root / "restarts").read_text().splitlines()] == ["4", "5", "4"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(root / "current/vitdeploy.zip")}
    serve = "import sys, vitdeploy as vd; print(vd.load(sys.argv[1])([sys.argv[2]])[0].classes[0].label)"
    bundle = root / "current/bundle"
    command = [sys.executable, "-c", serve, bundle, bundle / "samples/1-wide.png"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_the_box_is_named_in_an_error(server, shipment, tmp_path, capfd):
    there = (server.name, "--path", tmp_path / "box", "--python", sys.executable, "--ssh", server.ssh)
    assert run("push", shipment.bundle, *there, "--json") == 7
    record = json.loads(capfd.readouterr().out)["error"]
    assert (record["code"], record["file"], record["exit"]) == ("VD7010", server.name, 7)
    assert run("rollback", *there) == 5
    assert f"error[VD5010] {server.name}: " in capfd.readouterr().err


def test_a_login_that_greets_is_passed_over(server, tmp_path):
    server.allow('command="echo Welcome to this box; eval \\"$SSH_ORIGINAL_COMMAND\\""')
    try:
        assert status(server.name, server.connect(tmp_path / "box")).current is None
    finally:
        server.allow()


def test_a_password_is_never_asked_for(server, tmp_path):
    (server.folder / "authorized").write_text("")
    try:
        with pytest.raises(DeviceError, match=r"Permission denied .* without a password: give the box your key") as caught:
            status(server.name, server.connect(tmp_path / "box"))
        assert caught.value.code == "VD5001"
    finally:
        server.allow()


def test_a_box_that_nobody_knows(server, tmp_path):
    known = server.folder / "known"
    line = known.read_text()
    known.write_text("")
    try:
        with pytest.raises(DeviceError, match=r"Host key verification failed\..*log in once by hand") as caught:
            status(server.name, server.connect(tmp_path / "box"))
        assert caught.value.code == "VD5001"
    finally:
        known.write_text(line)


def test_a_box_that_is_off(server, tmp_path):
    host = server.name.partition(":")[0]
    with pytest.raises(DeviceError, match=r"can't be reached: .*Connection refused") as caught:
        status(f"{host}:1", server.connect(tmp_path / "box"))
    assert caught.value.code == "VD5001"
