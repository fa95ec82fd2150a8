"""What costs time, kept in the work folder: quantizing in a process of its own, and the logits of the test images."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vitdeploy
from tests.benchmarks.ptq import peers
from tests.benchmarks.ptq.models import Case
from vitdeploy.artifact import RECORD, Artifact, Record
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import load
from vitdeploy.files import sha256

BATCH = 25
"""Images a run, when logits are taken."""


class AbsentError(Exception):
    """A method that can't be run here, or that failed; the message says why."""


@dataclass(frozen=True)
class Made:
    """A quantized model.

    Attributes:
        artifact: Ready to be opened.
        seconds: Of the quantizer's call.
        peak_mib: Largest resident memory of its process, with interpreter and libraries.
        before_mib: The same before the call.
        versions: Of the libraries that the quantizer's Python has.
    """

    artifact: Artifact
    seconds: float
    peak_mib: float
    before_mib: float
    versions: dict[str, str]


def quantize(case: Case, name: str, pythons: Sequence[str], work: Path) -> Made:
    """A case quantized by a method, made where it is absent or was made from something else.

    Raises:
        AbsentError: No Python of ``pythons`` has what the method needs, or it failed.
    """
    source = Artifact.open(case.artifact, verify=False)
    folder = work / "made" / case.name / name
    key = _key(source, case, name)
    note = folder / "made.json"
    made = json.loads(note.read_text()) if note.is_file() else {}
    if made.get("key") != key or "versions" not in made:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = _child(case, name, pythons, folder) | {"key": key}
        note.write_text(json.dumps(made, indent=2))
    artifact = _opened(folder / made["file"], source)
    return Made(artifact, made["seconds"], made["peak_mib"], made["before_mib"], made["versions"])


def _key(source: Artifact, case: Case, name: str) -> str:
    """What the result depends on: the model, the images and, for ours, our code."""
    parts = [source.id, sha256(case.calibration), name]
    if name in peers.OWN:
        package = Path(vitdeploy.__file__).parent
        files = sorted([*package.glob("*.py"), *(package / "graph").rglob("*.py"), *(package / "quant").rglob("*.py")])
        parts += [sha256(file) for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _child(case: Case, name: str, pythons: Sequence[str], folder: Path) -> dict[str, Any]:
    model = Artifact.open(case.artifact, verify=False).model
    arguments = [str(Path(peers.__file__).resolve()), name, str(model), str(case.calibration), str(case.files), str(folder)]
    missing: set[str] = set()
    for python in [sys.executable] if name in peers.OWN else pythons:
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run([python, *arguments], stdout=subprocess.PIPE, stderr=log, cwd=folder, check=False)
        if done.returncode:
            last = (folder / "log.txt").read_text().strip().splitlines()[-1:]
            raise AbsentError(f"ended with status {done.returncode}: {' '.join(last)[:300]}")
        answer = json.loads(done.stdout)
        if "missing" not in answer:
            return answer | {"python": python}
        missing |= set(answer["missing"])
    raise AbsentError(f"needs {', '.join(sorted(missing))} (see --peers)")


def _opened(file: Path, source: Artifact) -> Artifact:
    """Ours with its record; a peer's with the source's contract, which its file does not carry."""
    if (file.parent / RECORD).is_file():
        return Artifact.open(file.parent, verify=False)
    return Artifact(file.parent, Record(entry=file.name, spec=source.spec, made_by="peer"))


def logits(case: Case, artifact: Artifact, engine: str, config: OpenConfig, work: Path) -> NDArray[np.float32]:
    """Logits of the test images, float32 [n, classes], from the work folder if the very same was run before."""
    images = np.load(case.test, mmap_mode="r")
    files = [artifact.model, artifact.model.with_suffix(".bin"), artifact.model.with_name(artifact.model.name + ".data")]
    parts = [sha256(file) for file in files if file.is_file()]
    parts += [engine, str(config.precision), str(len(images)), sha256(case.labels)]
    folder = work / "logits" / case.name / f"{engine}-{metadata.version(engine)}"
    kept = folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:24]}.npy"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with closing(load(engine).open(artifact, config)) as runner:
            name = artifact.spec.output
            taken = [runner.run(np.array(images[at : at + BATCH]))[name] for at in range(0, len(images), BATCH)]
        np.save(kept, np.concatenate(taken))
    kept_logits: NDArray[np.float32] = np.load(kept)
    return kept_logits


def tell(say: Callable[[str], None], case: Case, title: str, made: Made | None) -> None:
    """One line of progress."""
    cost = f" ({made.seconds:.0f} s, {made.peak_mib:.0f} MiB to make)" if made else ""
    say(f"{case.name}: {title}{cost}")
