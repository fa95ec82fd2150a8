"""Killed at any moment: nothing that was finished is lost, and nothing is left behind after the next start.

20 kills a run; ``VITDEPLOY_KILLS=200`` for a night. The moments and signals are drawn from ``VITDEPLOY_SEED``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.artifact import Artifact

KILLS = int(os.environ.get("VITDEPLOY_KILLS", "20"))
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
COMMANDS = {
    "export": ["export", "vit", "-o", "out", "--force"],
    "compile": ["compile", "vit", "--backend", "onnxruntime", "-o", "out", "--force"],
    "quantize": ["quantize", "vit", "--precision", "int8-weight-only", "--no-verify", "-o", "out", "--force"],
    "build": ["build", "job.toml", "-o", "built"],
    "validate": ["validate", "vit", "--backend", "onnxruntime", "--limit", "4", "-o", "report.json"],
    "predict": ["predict", "vit", "photos", "-o", "answers.jsonl"],
}
JOB = """
[model]
source = "vit"
[export]
prove_batches = [1]
[compile]
backend = "onnxruntime"
seconds = 60
[validate]
limit = 4
backends = ["onnxruntime"]
"""


@pytest.fixture
def place(tmp_path, tiny_artifact) -> Path:
    """What the commands need, with an older result of each."""
    shutil.copytree(tiny_artifact.folder, tmp_path / "vit")
    shutil.copytree(tiny_artifact.folder, tmp_path / "out")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * number, np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "job.toml").write_text(JOB)
    for name, text in (("report.json", "{}"), ("answers.jsonl", "{}\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(name: str, place: Path) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(Path(vitdeploy.__file__).parents[1]), "TMPDIR": str(place / "tmp"), "OMP_NUM_THREADS": "1"}
    environment |= {"VITDEPLOY_CACHE": str(place / "cache")}
    arguments = [sys.executable, "-m", "vitdeploy", *COMMANDS[name], "-q"]
    return subprocess.Popen(arguments, cwd=place, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def require_whole(place: Path) -> None:
    """What has its final name is whole: the old or the new, every file by its digest. Right after a kill, too."""
    Artifact.open(place / "vit")
    Artifact.open(place / "out")
    json.loads((place / "report.json").read_text())
    for line in (place / "answers.jsonl").read_text().splitlines():
        json.loads(line)
    if (place / "built" / "build.json").exists():
        done = json.loads((place / "built" / "build.json").read_text())["stages"]
        for stage in {"export", "compile"} & done.keys():
            Artifact.open(place / "built" / stage)


def list_left(place: Path) -> list[str]:
    """Temporary names below the place, and what lies in TMPDIR."""
    left = [str(path.relative_to(place)) for path in place.rglob(".*")]
    return left + [path.name for path in (place / "tmp").iterdir()]


def list_orphans(place: Path) -> list[str]:
    """Processes that still stand in a folder below TMPDIR, as children of ours do."""
    standing = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                os.readlink(entry / "cwd").startswith(str(place / "tmp"))
                and "Z" not in (entry / "stat").read_text().split(")")[1][:3]
            ):
                standing.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return standing


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_nothing_is_lost_and_nothing_is_left(place) -> None:
    moments = random.Random(int(os.environ.get("VITDEPLOY_SEED", "1")))
    whole_s = {}
    for number in range(KILLS):
        name = list(COMMANDS)[number % len(COMMANDS)]
        if name not in whole_s:
            begun = time.monotonic()
            process = start(name, place)
            err = process.communicate(timeout=300)[1]
            assert process.returncode == 0, err
            whole_s[name] = time.monotonic() - begun
            shutil.rmtree(place / "built", ignore_errors=True)
        before = set(list_left(place))  # of those that were killed outright
        process, kind = start(name, place), moments.choice(SIGNALS)
        time.sleep(moments.uniform(0.3, whole_s[name]))
        process.send_signal(kind)
        err = process.communicate(timeout=120)[1]
        assert process.returncode in (0, 130, -kind), (name, kind, err)
        assert b"Traceback" not in err
        require_whole(place)
        if kind != signal.SIGKILL:
            assert set(list_left(place)) <= before, (name, kind, process.returncode)
    deadline = time.monotonic() + 10
    while list_orphans(place) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list_orphans(place) == []
    for name in COMMANDS:  # the next start
        process = start(name, place)
        err = process.communicate(timeout=300)[1]
        assert process.returncode == 0, (name, err)
    require_whole(place)
    assert list_left(place) == []
