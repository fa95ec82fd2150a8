"""A process of mutants.py: it has imported the heavy libraries, and forks for each list of tests, in a copy of the tree."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HEAVY = (
    "torch",
    "numpy",
    "PIL.Image",
    "msgspec",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "safetensors.torch",
    "hypothesis",
    "pytest",
    "typer",
)
ROOT = Path(__file__).parents[1]


class Chosen:
    """A pytest plugin: only these tests, in this order, and the name of the first that fails."""

    def __init__(self, order: list[str], note: Path) -> None:
        self.rank = {test: place for place, test in enumerate(order)}
        self.note = note

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        ranked = []
        for item in items:
            plain = f"{item.nodeid.split('::')[0]}::{item.nodeid.split('[')[0].split('::')[-1]}"
            rank = self.rank.get(item.nodeid, self.rank.get(plain))
            if rank is not None:
                ranked.append((rank, len(ranked), item))
        items[:] = [item for _, _, item in sorted(ranked)]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text("collection")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(report.nodeid)


def _tests(order: list[str], shelf: str, note: Path) -> int:
    """In the fork: its exit status is pytest's."""
    import hypothesis
    import pytest

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    if shelf:
        os.environ["VITDEPLOY_TEST_ARTIFACTS"] = shelf
    if not order:
        return _fill(shelf)
    files = list(dict.fromkeys(test.split("::")[0] for test in order))
    arguments = [
        "-W",
        "ignore:Module already imported:pytest.PytestAssertRewriteWarning",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:anyio",
        "--tb=no",
        "--basetemp",
        str(ROOT / "tmp"),
        *files,
    ]
    return int(pytest.main(arguments, plugins=[Chosen(order, note)]))


def _fill(shelf: str) -> int:
    """Export the shared artifacts, once for all mutants that their export does not reach."""
    from tests import conftest

    for name in conftest.SHARED:
        conftest.shared_artifact(name, Path(shelf))
    return 0


def _answer(job: dict[str, Any], stamp: int) -> dict[str, Any]:
    target, note = ROOT / job["file"], ROOT / "note.txt"
    note.unlink(missing_ok=True)
    before = target.read_bytes() if job["file"] else b""
    if job["file"]:
        target.write_text(job["source"])
        os.utime(target, (stamp, stamp))  # a time of its own: no compiled file is taken for it
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        with (ROOT / "log.txt").open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        code = 3
        try:
            code = _tests(job["order"], job["shelf"], note)
        except BaseException:  # noqa: BLE001 (a fork must not go on as its parent)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    late, status = False, None
    while status is None:
        pid, found = os.waitpid(child, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() - started > job["limit"]:
            late = True
            os.killpg(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            time.sleep(0.02)
    if job["file"]:
        target.write_bytes(before)
        os.utime(target, (stamp + 1, stamp + 1))
    shutil.rmtree(ROOT / "tmp", ignore_errors=True)
    by = note.read_text() if note.is_file() else ""
    return {"code": status, "late": late, "by": by, "seconds": time.monotonic() - started}


def main() -> None:
    """One line of JSON a job, and one in answer."""
    sys.path[0] = str(ROOT)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in HEAVY:
        importlib.import_module(name)
    gc.freeze()  # forks look through no more than they make themselves
    for number, line in enumerate(sys.stdin):
        answers.write(json.dumps(_answer(json.loads(line), 1_000_000_000 + 2 * number)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
