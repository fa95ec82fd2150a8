"""The command line: one command a verb, each a single call of the library.

Nothing heavier than typer is imported before a command runs: ``--help`` and shell completion must feel instant.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vitdeploy import __version__, errors, shell
from vitdeploy.errors import EnvironmentError_, UsageError
from vitdeploy.options import (
    ArtifactPath,
    Backends,
    Contract,
    Data,
    InputKind,
    Limit,
    Model,
    Module,
    Out,
    Prefer,
    ReportFile,
    Seed,
    Split,
    Threads,
    Trust,
    Weights,
)
from vitdeploy.progress import Progress
from vitdeploy.shell import BUILD, LOOK, PROVE, SHIP, Debug, Outcome, Quiet, command

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.recipe import ModelConfig, Recipe
    from vitdeploy.report import Report

T = TypeVar("T")


_HELP = """Take Vision Transformers from a PyTorch checkpoint to a proven deployment.

\b
Examples:
  vitdeploy build dinov2-small/ --data photos/   export, validate, bench, report
  vitdeploy export dinov2-small/ -o vit          one step alone
  vitdeploy predict vit cat.jpg                  use the result
"""


app = typer.Typer(
    cls=shell.Groups,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: quick to draw, and the snapshot tests read it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _every(
    context: typer.Context,
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What holds for every command."""
    context.obj = {"quiet": quiet}


@command(
    app,
    BUILD,
    "vitdeploy export facebook_dinov2-small/ -o vit",
    "vitdeploy export vit_tiny_patch16_224.augreg_in21k_ft_in1k --weights vit.safetensors -o vit",
    "vitdeploy export vit_small_patch16_224 --input uint8 --image-size 224x320 -o vit-bytes",
)
def export(
    *,
    model: Model = None,
    out: Out,
    weights: Weights = None,
    module: Module = None,
    contract: Contract = None,
    trust_pickle: Trust = None,
    prefer: Prefer = None,
    opset: Annotated[int | None, typer.Option(help="ONNX operator set, 18 to 22; default 20.")] = None,
    batch: Annotated[int | None, typer.Option(help="The one batch size the file takes; default: any.")] = None,
    image_size: Annotated[str | None, typer.Option(help="N or HxW, in pixels; default: the model's own.")] = None,
    input: Annotated[InputKind, typer.Option(help="What the file takes.")] = InputKind.float32_nchw,
    top_k: Annotated[int | None, typer.Option(help="Also put out the K most probable classes.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Also put out `tokens`, `pooled`, or both with a comma.")] = None,
    seed: Seed = 0,
    progress: Progress,
) -> Outcome:
    """Export a ViT to ONNX, and prove that the file computes the same."""
    import vitdeploy as vd

    more: dict[str, Any] = {"input": input.kind, "image_size": _size(image_size), "outputs": outputs and outputs.split(",")}
    config = _settings(vd.ExportConfig, opset=opset, batch=batch, top_k=top_k, **more)
    source = _source(model, module, weights=weights, seed=seed, contract=contract, trust_pickle=trust_pickle, prefer=prefer)
    return _exported(vd.export(source, config, out, progress=progress))


@command(
    app,
    BUILD,
    "vitdeploy build vit_tiny_patch16_224 --weights vit.safetensors --data photos/",
    "vitdeploy build recipes/fashion_mnist.toml -o runs/demo",
)
def build(
    *,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or a model as for `export`.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write; default: runs/NAME.")] = None,
    weights: Weights = None,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    force: Annotated[bool, typer.Option("--force", help="Do finished stages again.")] = False,
    progress: Progress,
) -> Outcome:
    """Export, validate, bench and report in one go; skips what is done."""
    import vitdeploy as vd
    from vitdeploy.render import console

    out = out or Path("runs") / (Path(recipe).stem or "build")
    job = _recipe(recipe, weights=weights, data=data, split=split, limit=limit)
    report = vd.build(job, out, force=force, progress=progress)
    hint = f"report: {out / 'report.md'}; next: vitdeploy predict {_quoted(out / 'export')} IMAGE"
    return Outcome(report, lambda: console.report(report), hint)


@command(app, PROVE, "vitdeploy validate vit --data photos/ --limit 1000", "vitdeploy validate vit --json")
def validate(
    *,
    artifact: ArtifactPath,
    data: Data = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    batch: Annotated[int | None, typer.Option(help="Images a run; default 32.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unreadable images to tolerate.")] = 0,
    backend: Backends = None,
    threads: Threads = None,
    out: ReportFile = None,
    progress: Progress,
) -> Outcome:
    """Compare engines with the PyTorch original: parity, and accuracy on labels."""
    import vitdeploy as vd

    _check_file(out)
    given = {"data": data, "split": split, "limit": limit, "seed": seed, "batch": batch, "max_bad": max_bad}
    config = _settings(vd.ValidateConfig, **given, backends=backend, threads=threads)
    report = vd.validate(vd.Artifact.open(artifact), config, progress=progress)
    return _reported(report, out, f"vitdeploy bench {_quoted(artifact)}")


@command(app, PROVE, "vitdeploy bench vit --batch 1,8", "vitdeploy bench vit-a vit-b --backend onnxruntime -o bench.md")
def bench(
    *,
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Folders that `export` wrote.")],
    batch: Annotated[list[str] | None, typer.Option(help="Batch sizes: repeat, or a comma list; default 1.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds; default 10.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Shortest time a subject runs in a round; default 0.3.")] = None,
    threads: Threads = None,
    backend: Backends = None,
    out: ReportFile = None,
    progress: Progress,
) -> Outcome:
    """Measure latency against the PyTorch original, with intervals."""
    import vitdeploy as vd

    _check_file(out)
    sizes = [_number(size, "batch") for part in batch for size in part.split(",")] if batch else None
    config = _settings(vd.BenchConfig, batches=sizes, rounds=rounds, seconds=seconds, threads=threads, backends=backend)
    report = vd.bench([vd.Artifact.open(path) for path in artifacts], config, progress=progress)
    return _reported(report, out, f"vitdeploy predict {_quoted(artifacts[0])} IMAGE")


@command(app, SHIP, "vitdeploy predict vit cat.jpg dog.jpg --top 3", "vitdeploy predict vit cat.jpg --json")
def predict(
    *,
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="JPEG, PNG, WebP or BMP files.")],
    top: Annotated[int, typer.Option(help="Classes to name for each image.")] = 5,
    backend: Annotated[str | None, typer.Option(help="The engine; default: onnxruntime, if installed.")] = None,
    threads: Threads = None,
    progress: Progress,
) -> Outcome:
    """Classify image files with an exported model."""
    import vitdeploy as vd
    from vitdeploy.render import console, tables

    config = _settings(vd.PredictConfig, top=top, backend=backend, threads=threads)
    found = vd.predict(vd.Artifact.open(artifact), images, config, progress=progress)
    record = {"schema_version": 1, "predictions": found}
    return Outcome(record, lambda: console.show([tables.of_predictions(found)]))


@command(app, LOOK, "vitdeploy models", "vitdeploy models dinov2")
def models(*, text: Annotated[str, typer.Argument(metavar="TEXT", help="Only names with this in them.")] = "") -> Outcome:
    """List the known Vision Transformers with their size and cost."""
    from vitdeploy.render import console, tables
    from vitdeploy.variants import VARIANTS

    found = {name: variant for name, variant in VARIANTS.items() if text in name}
    rows = tables.variants(found)
    if not found:
        raise UsageError("VD2001", f"no model has {text!r} in its name", fix="run: vitdeploy models")
    record = {"schema_version": 1, "models": rows}
    hint = f"next: vitdeploy export {next(iter(found))} -o vit"
    return Outcome(record, lambda: console.show([tables.of_variants(rows)]), hint)


@command(app, LOOK, "vitdeploy inspect model.onnx", "vitdeploy inspect facebook_dinov2-small/ --json")
def inspect(
    *, path: Annotated[Path, typer.Argument(metavar="PATH", help="A model, checkpoint, artifact, recipe, image or data.")]
) -> Outcome:
    """Say what a file or folder is, without running anything of it."""
    import vitdeploy as vd
    from vitdeploy.render import console, tables

    found = vd.inspect(path)
    return Outcome(found, lambda: console.show(tables.of_inspection(found)))


@command(app, LOOK, "vitdeploy explain VD3003", "vitdeploy explain")
def explain(
    *, code: Annotated[str | None, typer.Argument(metavar="CODE", help="As in error[CODE]; default: all.")] = None
) -> Outcome:
    """Say what an error code means."""
    from vitdeploy.render import console

    wanted = (code or "").strip("[]").upper().removeprefix("ERROR[").removeprefix("VD")
    found = {name: meaning for name, meaning in errors.CODES.items() if not wanted or name == f"VD{wanted}"}
    if not found:
        fix = errors.nearest(f"VD{wanted}", errors.CODES) or "run: vitdeploy explain"
        raise UsageError("VD2003", f"there is no error code {code!r}", fix=fix)
    record = [{"code": name, "exit": int(name[2]), "meaning": meaning} for name, meaning in found.items()]
    lines = "\n".join(f"{name} (exit {name[2]}): {meaning}" for name, meaning in found.items())
    return Outcome({"schema_version": 1, "codes": record}, lambda: console.text(lines))


@command(app, LOOK, "vitdeploy doctor", "vitdeploy doctor --backend openvino   exit 4 if it does not run here")
def doctor(
    *,
    backend: Annotated[list[str] | None, typer.Option(help="Try only this engine; exit 4 if it fails.")] = None,
    progress: Progress,
) -> Outcome:
    """Look at this machine: processor, packages, and which engines run."""
    from vitdeploy.doctor import examine
    from vitdeploy.render import console, tables

    checkup = examine(backend or (), progress=progress)
    failed = checkup.unusable if backend else ()
    hint = f"not usable: {', '.join(failed)}" if failed else ""
    status = EnvironmentError_.exit_code if failed else 0
    return Outcome(checkup, lambda: console.show(tables.of_checkup(checkup)), hint, status)


def _settings(kind: type[T], **values: object) -> T:
    """A settings struct, checked; None means its own default."""
    import msgspec

    try:
        return msgspec.convert({name: value for name, value in values.items() if value is not None}, kind)
    except msgspec.ValidationError as exc:
        raise UsageError("VD2003", str(exc).replace("`$.", "`--")) from exc


def _source(model: str | None, module: str | None, **more: object) -> ModelConfig:
    import vitdeploy as vd

    if (model is None) == (module is None):
        raise UsageError("VD2010", "give MODEL or --module, one of them", fix="run: vitdeploy export --help")
    return _settings(vd.ModelConfig, source=model or module, module=module is not None, **more)


def _size(text: str | None) -> tuple[int, int] | None:
    """``224`` or ``224x320`` as height and width."""
    if text is None:
        return None
    sides = [_number(side, "image-size") for side in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise UsageError("VD2003", f"--image-size is {text!r}", fix="use N or HxW, such as 224 or 224x320")
    return sides[0], sides[-1]


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError("VD2003", f"--{option}: {text!r} is not a whole number", fix="use digits") from None


def _recipe(name: str, *, weights: str | None, data: str | None, **more: str | int | None) -> Recipe:
    """The recipe that was named, or one for the model that was named."""
    from vitdeploy.recipe import BenchConfig, ModelConfig, Recipe, ValidateConfig

    path = Path(name)
    if path.suffix == ".toml" and not path.is_dir() and not _is_spec(path):
        if given := [f"--{key}" for key, value in {"weights": weights, "data": data, **more}.items() if value is not None]:
            fix = "write them into the recipe"
            raise UsageError(
                "VD2010", f"is a recipe, complete in itself, but {', '.join(given)} was given too", file=path, fix=fix
            )
        return Recipe.load(path)
    model = _settings(ModelConfig, source=name, weights=weights)
    return Recipe(model=model, validate=_settings(ValidateConfig, data=data, **more), bench=BenchConfig())


def _is_spec(path: Path) -> bool:
    """Whether a TOML file describes a model. A recipe names one in its table [model]; unreadable files count as recipes."""
    import msgspec

    try:
        table = msgspec.toml.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, ValueError):
        return False
    return "name" in table and "model" not in table


def _exported(artifact: Artifact) -> Outcome:
    from vitdeploy.render import console, tables

    record = {"schema_version": 1, "path": str(artifact.folder), "id": artifact.id, "record": artifact.record}
    folder = _quoted(artifact.folder)
    hint = f"wrote {artifact.folder}; next: vitdeploy validate {folder}"
    return Outcome(record, lambda: console.show([tables.of_artifact(artifact)]), hint)


def _reported(report: Report, out: Path | None, following: str) -> Outcome:
    """Write the report where asked, and leave it for printing."""
    from vitdeploy import files
    from vitdeploy.render import console, json, markdown

    if out is not None:
        files.write(out, markdown.document(report) if out.suffix == ".md" else json.text(report))
    wrote = "" if out is None else f"wrote {out}; "
    return Outcome(report, lambda: console.report(report), f"{wrote}next: {following}")


def _check_file(out: Path | None) -> None:
    """Refuse a report file that can't be written before minutes are spent on its numbers."""
    if out is None:
        return
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError("VD2008", "can't be written: a file in a writable folder is needed", file=out, fix="choose another")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    """The program ``vitdeploy``.

    Args:
        arguments: What was typed behind the name; the process's own when None.

    Returns:
        The exit status: see `vitdeploy.shell`.
    """
    return shell.run(app, arguments)
