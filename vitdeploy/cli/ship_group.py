"""The commands that ship: one a verb, each a single call of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli.app import app
from vitdeploy.cli.arguments import read_settings
from vitdeploy.cli.options import (
    ArtifactPath,
    Threads,
)
from vitdeploy.cli.shell import SHIP, Outcome, command
from vitdeploy.progress import Progress


@command(app, SHIP, "vitdeploy predict vit cat.jpg dog.jpg --top 3", "vitdeploy predict vit cat.jpg --json")
def predict(
    *,
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="JPEG, PNG, WebP or BMP files.")],
    top: Annotated[int, typer.Option(help="Classes to name for each image.")] = 5,
    backend: Annotated[str | None, typer.Option(help="The engine; default: the artifact's, or the first installed.")] = None,
    threads: Threads = None,
    progress: Progress,
) -> Outcome:
    """Classify image files with an exported model."""
    import vitdeploy as vd
    from vitdeploy.render import console, tables

    config = read_settings(vd.PredictConfig, top=top, backend=backend, threads=threads)
    predictions = vd.predict(vd.Artifact.open(artifact), images, config, progress=progress)
    record = {"schema_version": 1, "predictions": predictions}
    return Outcome(record, lambda: console.print_tables([tables.tabulate_predictions(predictions)]))
