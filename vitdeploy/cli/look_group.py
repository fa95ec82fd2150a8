"""The commands that look, and change nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vitdeploy.cli import answers
from vitdeploy.cli.app import app
from vitdeploy.cli.shell import LOOK, Outcome, command
from vitdeploy.errors import MachineError, UsageError, nearest
from vitdeploy.progress import Progress


@command(app, LOOK, "vitdeploy models", "vitdeploy models dinov2")
def models(*, text: Annotated[str, typer.Argument(metavar="TEXT", help="Only names with this in them.")] = "") -> Outcome:
    """List the known Vision Transformers with their size and cost."""
    from vitdeploy.render import console, tables
    from vitdeploy.zoo.variants import VARIANTS

    variants = {name: variant for name, variant in VARIANTS.items() if text in name}
    rows = tables.measure_variants(variants)
    if not variants:
        raise UsageError("VD2001", f"no model has {text!r} in its name", fix="run: vitdeploy models")
    record = {"schema_version": 1, "models": rows}
    hint = f"next: vitdeploy export {next(iter(variants))} -o vit"
    return Outcome(record, lambda: console.print_tables([tables.tabulate_variants(rows)]), hint)


@command(app, LOOK, "vitdeploy inspect model.onnx", "vitdeploy inspect facebook_dinov2-small/ --json")
def inspect(
    *, path: Annotated[Path, typer.Argument(metavar="PATH", help="A model, checkpoint, artifact, recipe, image or data.")]
) -> Outcome:
    """Say what a file or folder is, without running anything of it."""
    import vitdeploy as vd
    from vitdeploy.render import console, tables

    inspection = vd.inspect(path)
    return Outcome(inspection, lambda: console.print_tables(tables.tabulate_inspection(inspection)))


@command(app, LOOK, "vitdeploy explain VD3003", "vitdeploy explain")
def explain(
    *, code: Annotated[str | None, typer.Argument(metavar="CODE", help="As in error[CODE]; default: all.")] = None
) -> Outcome:
    """Say what an error code means, with an example and what to do."""
    from vitdeploy.codes import CODES

    wanted = (code or "").strip("[]").upper().removeprefix("ERROR[").removeprefix("VD")
    codes = {name: code for name, code in CODES.items() if not wanted or name == f"VD{wanted}"}
    if not codes:
        fix = nearest(f"VD{wanted}", CODES) or "run: vitdeploy explain"
        raise UsageError("VD2003", f"there is no error code {code!r}", fix=fix)
    return answers.answer_codes(codes)


@command(app, LOOK, "vitdeploy schema report > report.schema.json", "vitdeploy schema")
def schema(
    *, name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of what is written; default: the list.")] = None
) -> Outcome:
    """Print the JSON Schema of what a command writes as JSON."""
    from vitdeploy import jsonfile
    from vitdeploy.cli.schemas import SOURCES, make_schema
    from vitdeploy.render import console, tables

    if name is not None:
        made = make_schema(name)
        return Outcome(made, lambda: console.print_raw(jsonfile.encode(made)))
    rows = {each: source.written for each, source in SOURCES.items()}
    table = tables.tabulate_pairs("", rows)
    return Outcome({"schema_version": 1, "schemas": rows}, lambda: console.print_tables([table]), "next: vitdeploy schema report")


@command(
    app,
    LOOK,
    "vitdeploy doctor",
    "vitdeploy doctor vit-int8   whether it fits, and which engine is fastest here",
    "vitdeploy doctor --backend openvino   exit 4 if it does not run here",
)
def doctor(
    *,
    artifact: Annotated[
        Path | None, typer.Argument(metavar="ARTIFACT", help="A model, or a bundle, to run here in each engine.")
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="Try only this engine; exit 4 if it fails.")] = None,
    progress: Progress,
) -> Outcome:
    """Look at this machine: processor, packages, and which engines run."""
    from vitdeploy.bundle.unpacking import open_model
    from vitdeploy.render import checkups, console
    from vitdeploy.verbs.doctor import examine

    with ExitStack() as stack:
        model = None if artifact is None else stack.enter_context(open_model(artifact, backend[0] if backend else None))
        checkup = examine(backend or (), model, progress=progress)
    failed = (*(checkup.unusable if backend else ()), *(fit.engine for fit in checkup.fits if not fit.runs))
    hint = f"not usable: {', '.join(failed)}" if failed else ""
    status = MachineError.exit_code if failed else 0
    return Outcome(checkup, lambda: console.print_tables(checkups.tabulate_checkup(checkup)), hint, status)
