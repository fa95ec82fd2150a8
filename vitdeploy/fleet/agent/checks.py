"""What is asked of a release on the box: does it run here as where it was packed, and does the service come up with it?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import DeviceError
from vitdeploy.fleet.agent.store import BUNDLE, RUNTIME, Store
from vitdeploy.fleet.agent.talk import Words

HEALTH = "vitdeploy.verbs.health"
"""The module of the runtime that runs a bundle on its samples."""
_SCRATCH = "scratch"
_AGAIN_S = 0.5
_LAST = 300
"""Characters of what a program said last."""


class Service(NamedTuple):
    """What serves the model on the box, as its user says.

    Attributes:
        restart: Command of a shell that has the service take the current release; "" for none.
        check: Command that ends with 0 when the service works; "" for none.
        seconds: How long ``restart`` may take, and then ``check`` until it succeeds.
    """

    restart: str = ""
    check: str = ""
    seconds: float = 60.0


class Proof(NamedTuple):
    """How a release is run before it is believed.

    Attributes:
        seconds: Most that it may take.
        backend: The engine; "" for the first that is installed.
    """

    seconds: float = 300.0
    backend: str = ""


def prove(store: Store, folder: str, proof: Proof) -> Words:
    """Run the release in a folder on its own samples, in a child, with the vitdeploy that it brought.

    Returns:
        What `vitdeploy.verbs.health` wrote: the verification.

    Raises:
        DeviceError: VD5006, it does not run here as where it was packed.
    """
    place, scratch = store.releases / folder, store.root / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    answer = scratch / "health.json"
    environment = {**os.environ, "PYTHONPATH": str(place / RUNTIME), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", HEALTH, str(place / BUNDLE), str(answer), proof.backend]
    try:
        status, said = _run(command, proof.seconds, environment, place)
        try:
            health: Words = json.loads(files.read_bytes(answer))
        except (OSError, ValueError):
            raise _refuse(f"its check {_explain(status, proof.seconds)}{said}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not health["passed"]:
        raise _refuse(str(health["words"]))
    return health


def restart(service: Service) -> None:
    """Have the service take what is current.

    Raises:
        DeviceError: VD5007, the command failed.
    """
    if not service.restart:
        return
    status, said = _run(["/bin/sh", "-c", service.restart], service.seconds)
    if status != 0:
        raise DeviceError("VD5007", f"the restart ({service.restart}) {_explain(status, service.seconds)}{said}")


def await_service(service: Service) -> None:
    """Ask until the service works.

    Raises:
        DeviceError: VD5007, it did not in its time.
    """
    if not service.check:
        return
    end = time.monotonic() + service.seconds
    while True:
        status, said = _run(["/bin/sh", "-c", service.check], max(end - time.monotonic(), 0.1))
        if status == 0:
            return
        if time.monotonic() + _AGAIN_S >= end:
            message = f"the service did not come up: {service.check} still fails after {service.seconds:g} s{said}"
            raise DeviceError("VD5007", message)
        time.sleep(_AGAIN_S)


def _run(
    command: list[str], seconds: float, environment: dict[str, str] | None = None, folder: Path | None = None
) -> tuple[int | None, str]:
    """Run a command; its status (None: it took too long and was killed) and what it said last.

    It may leave a service behind that keeps its output open: that is a file without a name, not a pipe that would have to end.
    """
    with os.fdopen(os.memfd_create("said"), "r+b") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4 * _LAST))
        lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return status, f"; it said last: {lines[-1][:_LAST]}" if lines else ""


def _explain(status: int | None, seconds: float) -> str:
    if status is None:
        return f"was killed: it took longer than {seconds:g} s"
    if status < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-status, f'signal {-status}')}"
    return f"ended with status {status}"


def _refuse(words: str) -> DeviceError:
    return DeviceError("VD5006", f"does not run on the box: {words}", fix="nothing was switched; mend it, and push again")
