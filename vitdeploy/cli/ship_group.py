"""The commands that ship: one a verb, each a single call of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import answers
from vitdeploy.cli.app import app
from vitdeploy.cli.arguments import read_settings
from vitdeploy.cli.options import (
    ArtifactPath,
    Threads,
)
from vitdeploy.cli.shell import SHIP, Outcome, command
from vitdeploy.progress import Progress


@command(
    app,
    SHIP,
    "vitdeploy predict vit cat.jpg dog.jpg --top 3",
    "vitdeploy predict vit photos/ --max-bad 10 -o answers.jsonl",
    "vitdeploy predict clip cat.jpg dog.jpg -o vectors.npy",
)
def predict(
    *,
    artifact: ArtifactPath,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files; folders, 'patterns*', manifests or tar shards of them."),
    ],
    top: Annotated[int, typer.Option(help="Classes to name for each image.")] = 5,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to name and pass over.")] = 0,
    backend: Annotated[str | None, typer.Option(help="The engine; default: the artifact's, or the first installed.")] = None,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write .jsonl, a line an image; or embeddings and numbers as .npy, float32 [images, K]."
        ),
    ] = None,
    progress: Progress,
) -> Outcome:
    """Tell what a model says of images: classes, labels, numbers or embeddings."""
    import vitdeploy as vd
    from vitdeploy.backends.targets import explain_misfit
    from vitdeploy.render import console
    from vitdeploy.render.predictions import tabulate_predictions, tabulate_summary
    from vitdeploy.verbs import predictor

    if out is not None:
        answers.check_file(out)
    config = read_settings(vd.PredictConfig, top=top, backend=backend, threads=threads, max_bad=max_bad)
    model = vd.Artifact.open(artifact)
    if out is not None and out.suffix == ".jsonl":
        lines = predictor.predict_each(model, images, config, progress=progress)
        summary = predictor.write_lines(lines, out)
        return Outcome(summary, lambda: console.print_tables([tabulate_summary(summary)]), f"wrote {out}")
    if out is not None:
        predictor.require_vectors(model, out)
    predictions = vd.predict(model, images, config, progress=progress)
    if out is not None:
        predictor.write_vectors(predictions, out)
    misfit = explain_misfit(backend, model) if backend else ""
    said = [f"WARNING: {artifact}: {misfit}"] if misfit else []
    hint = "; ".join(said if out is None else [*said, f"wrote {out}"])
    record = {"schema_version": 1, "predictions": predictions}
    return Outcome(record, lambda: console.print_tables([tabulate_predictions(predictions)]), hint)
