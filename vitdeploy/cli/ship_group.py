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
    BoxBackend,
    BoxName,
    BoxPath,
    BoxPython,
    Check,
    Force,
    HealthSeconds,
    ReadySeconds,
    Restart,
    Ssh,
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
    from vitdeploy import files
    from vitdeploy.backends.targets import explain_misfit
    from vitdeploy.bundle.unpacking import open_model
    from vitdeploy.render import console
    from vitdeploy.render.predictions import tabulate_predictions, tabulate_summary
    from vitdeploy.verbs import predictor

    if out is not None:
        files.check_file(out)
    config = read_settings(vd.PredictConfig, top=top, backend=backend, threads=threads, max_bad=max_bad)
    with open_model(artifact, backend) as model:
        misfit = explain_misfit(backend, model) if backend else ""
        if out is not None and out.suffix == ".jsonl":
            summary = predictor.write_lines(predictor.predict_each(model, images, config, progress=progress), out)
            return Outcome(summary, lambda: console.print_tables([tabulate_summary(summary)]), f"wrote {out}")
        said = [f"WARNING: {artifact}: {misfit}"] if misfit else []
        if out is not None:
            predictor.require_vectors(model, out)
            coming = predictor.predict_each(model, images, config, progress=progress)
            summary = predictor.write_vectors(coming, out, model.spec.output_size)
            hint = "; ".join([*said, f"wrote {out}"])
            return Outcome(summary, lambda: console.print_tables([tabulate_summary(summary)]), hint)
        predictions = vd.predict(model, images, config, progress=progress)
    record = {"schema_version": 1, "predictions": predictions}
    return Outcome(record, lambda: console.print_tables([tabulate_predictions(predictions)]), "; ".join(said))


@command(
    app,
    SHIP,
    "vitdeploy pack vit-int8 vit -o vit.vdb --sign release.key --release 4",
    "vitdeploy pack vit-int8 -o vit.vdb --gate verdict.json --max-latency-ms 30",
)
def pack(
    *,
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Forms of one model, the one that a box should prefer first.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle: one file if it ends in .vdb, else a folder.")],
    name: Annotated[str | None, typer.Option(help="What is shipped; default: the model's name.")] = None,
    release: Annotated[int, typer.Option(help="Counts up with every bundle of this name.")] = 1,
    label: Annotated[str, typer.Option(help="What people call this release, such as 2.1.0.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, as SPDX writes it: Apache-2.0.")] = "",
    gate: Annotated[Path | None, typer.Option(help="A verdict (.json) that `gate` wrote, which must be a pass.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Most that an image may take on a box.")] = None,
    sign: Annotated[Path | None, typer.Option(help="Private key to sign with, from `vitdeploy keygen`.")] = None,
    force: Force = False,
    progress: Progress,
) -> Outcome:
    """Pack a model into one signed thing to ship, which proves itself on the box."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.bundles import tabulate_packed

    config = read_settings(
        vd.PackConfig,
        name=name,
        release=release,
        version=label,
        licence=licence,
        max_latency_ms=max_latency_ms,
        gate=None if gate is None else str(gate),
        sign=None if sign is None else str(sign),
    )
    packed = vd.pack(artifacts, config, out, force=force, progress=progress)
    place = answers.quote(out)
    following = f"vitdeploy verify {place} --run"
    if sign is not None:
        following = f"vitdeploy verify {place} --key {answers.quote(sign.with_name(f'{sign.name}.pub'))} --run"
    hint = f"wrote {out}; next, on the box: {following}"
    return Outcome(packed, lambda: console.print_tables(tabulate_packed(packed)), hint)


@command(
    app,
    SHIP,
    "vitdeploy verify vit.vdb --key release.key.pub",
    "vitdeploy verify vit.vdb --key release.key.pub --run   runs it here on its own samples",
)
def verify(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `vitdeploy pack` wrote.")],
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed it.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Run it here, and compare with what it gave where it was packed.")] = False,
    backend: Annotated[str | None, typer.Option(help="The engine; default: the first that is installed.")] = None,
    threads: Threads = None,
    after: Annotated[int | None, typer.Option(help="Refuse a release that is not above this one.")] = None,
    progress: Progress,
) -> Outcome:
    """Check a bundle: what was packed, by whom, and (--run) whether it runs here as there."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.bundles import tabulate_verification

    config = read_settings(
        vd.VerifyConfig, key=None if key is None else str(key), run=run, backend=backend, threads=threads, after=after
    )
    verification = vd.verify(bundle, config, progress=progress)
    hint = f"next: vitdeploy predict {answers.quote(bundle)} IMAGE" if verification.passed else ""
    exit_status = 0 if verification.passed else answers.GATE_FAILED
    return Outcome(verification, lambda: console.print_tables(tabulate_verification(verification)), hint, exit_status)


@command(app, SHIP, "vitdeploy keygen -o release.key")
def keygen(
    *, out: Annotated[Path, typer.Option("--out", "-o", help="File of the private half; .pub is the public one.")]
) -> Outcome:
    """Make a key pair to sign bundles with; the public half goes to every box."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.bundles import tabulate_keys

    keys = vd.keygen(out)
    hint = f"keep {keys.private} secret; next: vitdeploy pack ARTIFACT --sign {answers.quote(out)} -o OUT.vdb"
    return Outcome(keys, lambda: console.print_tables([tabulate_keys(keys)]), hint)


@command(
    app,
    SHIP,
    "vitdeploy push vit.vdb user@box --key release.key.pub   the first time: the key that the box shall trust",
    "vitdeploy push vit.vdb user@box --restart 'systemctl --user restart vit'",
    "vitdeploy push vit.vdb user@box:2222 --path /srv/vit --python venv/bin/python --dry-run",
)
def push(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `vitdeploy pack` wrote, signed.")],
    box: BoxName,
    key: Annotated[Path | None, typer.Option(help="Public key that the box shall trust; needed once.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and what the box would refuse.")] = False,
    restart: Restart = "",
    check: Check = "",
    ready_s: ReadySeconds = 60.0,
    health_s: HealthSeconds = 300.0,
    backend: BoxBackend = "",
    allow_downgrade: Annotated[bool, typer.Option("--allow-downgrade", help="Let an older release follow; recorded.")] = False,
    path: BoxPath = "vitdeploy",
    python: BoxPython = "python3",
    ssh: Ssh = "ssh",
    progress: Progress,
) -> Outcome:
    """Put a bundle on a box over ssh: proven there before it is served, gone again if it fails."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.boxes import tabulate_shipped

    config = read_settings(
        vd.PushConfig,
        key=None if key is None else str(key),
        connection=read_settings(vd.Connection, path=path, python=python, ssh=ssh),
        service=read_settings(
            vd.ServiceConfig, restart=restart, check=check, ready_s=ready_s, health_s=health_s, backend=backend
        ),
        allow_downgrade=allow_downgrade,
        dry_run=dry_run,
    )
    shipped = vd.push(bundle, box, config, progress=progress)
    hint = answers.hint_at_box(shipped, config.connection, config.key)
    return Outcome(shipped, lambda: console.print_tables(tabulate_shipped(shipped)), hint)


@command(app, SHIP, "vitdeploy rollback user@box", "vitdeploy rollback user@box --restart 'systemctl --user restart vit'")
def rollback(
    *,
    box: BoxName,
    restart: Restart = "",
    check: Check = "",
    ready_s: ReadySeconds = 60.0,
    health_s: HealthSeconds = 300.0,
    backend: BoxBackend = "",
    path: BoxPath = "vitdeploy",
    python: BoxPython = "python3",
    ssh: Ssh = "ssh",
    progress: Progress,
) -> Outcome:
    """Have a box serve again what it served before, proven there first."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.boxes import tabulate_shipped

    config = vd.RollbackConfig(
        connection=read_settings(vd.Connection, path=path, python=python, ssh=ssh),
        service=read_settings(
            vd.ServiceConfig, restart=restart, check=check, ready_s=ready_s, health_s=health_s, backend=backend
        ),
    )
    shipped = vd.rollback(box, config, progress=progress)
    hint = answers.hint_at_box(shipped, config.connection)
    return Outcome(shipped, lambda: console.print_tables(tabulate_shipped(shipped)), hint)


@command(app, SHIP, "vitdeploy status user@box", "vitdeploy status user@box --path /srv/vit --json")
def status(*, box: BoxName, path: BoxPath = "vitdeploy", python: BoxPython = "python3", ssh: Ssh = "ssh") -> Outcome:
    """Say what a box serves, keeps and trusts."""
    import vitdeploy as vd
    from vitdeploy.render import console
    from vitdeploy.render.boxes import tabulate_box

    state = vd.status(box, read_settings(vd.Connection, path=path, python=python, ssh=ssh))
    return Outcome(state, lambda: console.print_tables(tabulate_box(state)))
