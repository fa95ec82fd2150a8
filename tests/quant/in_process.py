"""`quantize` without a process of its own, so that a test may replace what runs in it."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import files
from vitdeploy.artifact import OURS, Artifact
from vitdeploy.backends.targets import settle_target
from vitdeploy.progress import silent
from vitdeploy.quant.job import write
from vitdeploy.recipe import QuantizeConfig


def quantize(artifact, config: QuantizeConfig, out: Path, *, cache: Path | None = None, progress=silent) -> Artifact:
    with files.folder(out, ours=OURS) as folder:
        write(artifact, settle_target(config), folder, cache=cache, progress=progress)
    return Artifact.open(out, verify=False)
