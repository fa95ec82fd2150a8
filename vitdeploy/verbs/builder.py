"""The verb `build`: a recipe's line from model to report, redoing only what changed.

Every finished stage leaves its result and, in ``build.json``, a key: the SHA-256 of everything the result was made from (see
`keys`). A stage whose key and result are unchanged is skipped. Results and keys are written whole, so a killed build goes on
where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import msgspec

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import PROVER, REFERENCE, TABLE, list_packages, must_be_compiled
from vitdeploy.backends.targets import settle_recipe
from vitdeploy.errors import InputError, MachineError, UsageError, needs
from vitdeploy.jsonfile import encode
from vitdeploy.machine import find_versions
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig, Recipe, ValidateConfig
from vitdeploy.render import markdown, page
from vitdeploy.render.tables import walk
from vitdeploy.report import Images, Report, identify, read_report, this_machine
from vitdeploy.verbs.choice import choose_best
from vitdeploy.verbs.keys import artifact_digest, data_digest, key_of, model_digest
from vitdeploy.verbs.ledger import MAKERS, RECIPE, VERBS, Line, open_line
from vitdeploy.verbs.limits import choose_thresholds, judge_validation
from vitdeploy.verbs.permission import load_permitted, locate_code

NOT_HERE = ("VD3026", "VD4009", "VD4010", "VD4011")
"""Errors of one engine that say nothing of the others: it can't run this graph, or not as it was asked to."""


def build(
    recipe: Recipe | str | PathLike[str],
    out: str | PathLike[str],
    *,
    module: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Report:
    """Run a recipe: export, quantize, compile, validate, bench, report; stages that are done and unchanged are skipped.

    Args:
        recipe: The job, or its file. Relative paths are taken from the current folder.
        out: Folder to write: ``recipe.toml`` (what was run, with whole paths), ``export/``, ``quantize/`` and ``compile/`` (the
            artifacts; of several engines ``quantize-ENGINE/`` and ``compile-ENGINE/``), ``validate.json``, ``bench.json``,
            ``report.json``, ``report.md``, ``report.html``, ``build.json``. It must be new, empty, or one that an earlier build
            wrote.
        module: The code that a recipe's file may import and run; it must be the code that the file names.
        force: Do every stage again.
        progress: Hears of each stage, skipped ones included.

    Returns:
        The whole report; its parts are the stages' reports, ``settings["best"]`` is the folder to deploy. Also written as
        ``report.json``, ``report.md`` and ``report.html``.

    Raises:
        UsageError: VD2008, ``out`` can't be used; and what the verbs refuse.
        TrustError: VD7009, the file would run code that was not named.
        InputError: VD3010, ``build.json`` is damaged; and what the verbs refuse.
        MachineError: See the verbs.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_permitted(Path(recipe), module)
    recipe = locate(settle_recipe(recipe))
    out = Path(out)
    # before any work: a typo must not cost minutes
    if recipe.validate is not None:
        choose_thresholds(recipe.validate)
    exported = {"model": model_digest(recipe.model), "data": data_digest(recipe.export)}
    data = data_digest(recipe.validate)
    calibration = {stage: data_digest(config) for stage, config in recipe.quantizations.items()}
    with open_line(out, force, progress) as line:
        line.keep_only(_list_stages(recipe))
        files.write(out / RECIPE, to_toml(recipe))
        artifacts = [_export(line, recipe, exported)]
        artifacts += _quantize(line, recipe, artifacts[0], calibration)
        artifacts += _compile(line, recipe, artifacts)
        parts = _measure_stages(line, recipe, artifacts, data)
        report = _report(recipe, line, artifacts, parts)
        files.write(out / "report.json", encode(report))
        files.write(out / "report.md", markdown.format_report(report))
        files.write(out / "report.html", page.format_page(page.Content([report], artifacts=artifacts)))
        progress("report: written", 1, 1)
    return report


def _list_stages(recipe: Recipe) -> list[str]:
    measuring = [stage for stage in VERBS[len(MAKERS) :] if getattr(recipe, stage) is not None]
    return ["export", *recipe.quantizations, *recipe.compilations, *measuring]


def _export(line: Line, recipe: Recipe, inputs: dict[str, str]) -> Artifact:
    tools = find_versions("torch", "onnx", "onnxscript", "onnx_ir", TABLE[PROVER].package)
    key = key_of("export", recipe.export, {**inputs, "tools": tools})
    if line.is_done("export", key):
        return Artifact.open(line.result("export"), verify=False)
    with needs("export"):
        from vitdeploy.verbs.exporter import export

    artifact = export(recipe.model, recipe.export, line.result("export"), force=True, progress=line.progress)
    return line.keep(artifact, "export", key)


def _quantize(line: Line, recipe: Recipe, artifact: Artifact, digests: Mapping[str, str]) -> list[Artifact]:
    """The quantized artifacts that the recipe asks for."""
    made = []
    for stage, config in recipe.quantizations.items():
        machine = msgspec.to_builtins(this_machine()) if config.verify else None  # the verdict is of this machine
        inputs = {"artifact": artifact_digest(artifact), "calibration": digests[stage], "machine": machine}
        key = key_of("quantize", config, inputs | {"tools": find_versions("onnx", "onnx_ir", *list_packages())})
        if line.is_done(stage, key):
            made.append(Artifact.open(line.result(stage), verify=False))
            continue
        with needs("quantize"):
            from vitdeploy.verbs.quantizer import quantize

        with _spare(line, stage, alone=len(recipe.quantizations) == 1):
            result = quantize(artifact, config, line.result(stage), force=True, progress=line.progress)
            made.append(line.keep(result, stage, key))
    return made


def _compile(line: Line, recipe: Recipe, artifacts: list[Artifact]) -> list[Artifact]:
    """The engines that the recipe asks for, each of what was quantized for it."""
    made = []
    for stage, config in recipe.compilations.items():
        source = _find_source(config.backend, artifacts, alone=len(recipe.compilations) == 1)
        inputs = {"artifact": artifact_digest(source), "machine": msgspec.to_builtins(this_machine())}
        inputs["tools"] = find_versions(*list_packages())
        key = key_of("compile", config, inputs)
        if line.is_done(stage, key):
            made.append(Artifact.open(line.result(stage), verify=False))
            continue
        from vitdeploy.verbs.compiler import compile

        with _spare(line, stage, alone=len(recipe.compilations) == 1):
            result = compile(source, config, line.result(stage), force=True, progress=line.progress)
            made.append(line.keep(result, stage, key))
    return made


def _find_source(engine: str, artifacts: list[Artifact], *, alone: bool) -> Artifact:
    """What an engine is compiled of: what was quantized for it, else the export; of a line of one engine always the last."""
    fitting = [each for each in artifacts[1:] if each.engine in (None, TABLE[engine].quantize_target)]
    return fitting[-1] if fitting else artifacts[-1 if alone else 0]


@contextmanager
def _spare(line: Line, stage: str, *, alone: bool) -> Iterator[None]:
    """Of several engines, one that can't run the model here is left out, and said; the others are still worth having."""
    try:
        yield
    except (MachineError, InputError) as error:
        if alone or error.code not in NOT_HERE:
            raise
        line.leave_out(stage, error)


def _measure_stages(line: Line, recipe: Recipe, artifacts: list[Artifact], data: str) -> tuple[Report, ...]:
    """The reports of the stages that measure, as far as the recipe names them."""
    reports = []
    artifacts = [artifact for artifact in artifacts if _runs_here(artifact)]
    digests = [artifact_digest(artifact) for artifact in artifacts]
    inputs = {"artifacts": digests, "machine": msgspec.to_builtins(this_machine())}
    for stage in VERBS[len(MAKERS) :]:
        config = getattr(recipe, stage)
        if config is None:
            continue
        key = key_of(stage, config, inputs | ({"data": data} if stage == "validate" else {}))
        if not line.is_done(stage, key):
            report = _measure(artifacts, config, line.progress)
            files.write(line.result(stage), encode(report))
            line.finish(stage, key)
        reports.append(read_report(line.result(stage)))
    return tuple(reports)


def _measure(artifacts: list[Artifact], config: ValidateConfig | BenchConfig, progress: Progress) -> Report:
    from vitdeploy.verbs.bencher import bench
    from vitdeploy.verbs.validator import validate

    named = set(config.backends) - {REFERENCE}
    artifacts = [each for each in artifacts if each.record.kind == "onnx" or not named or each.record.kind in named]
    if isinstance(config, BenchConfig):
        return bench(artifacts, config, progress=progress)
    with files.temporary_folder() as kept:  # the original runs once for all
        reports = [validate(artifact, config, kept=kept, progress=progress) for artifact in artifacts]
    if len(reports) == 1:
        return reports[0]
    return judge_validation(_join([_name_rows(*each) for each in zip(reports, artifacts, strict=True)]), config)


def _join(reports: list[Report]) -> Report:
    """Reports of several artifacts as one: what was compared with the same thing, on the same images, are rows of one table."""
    tables: list[Report] = []
    for table in sorted((part for report in reports for part in walk(report)), key=lambda table: table.is_recorded):
        same = next((each for each in tables if _can_join(each, table)), None)
        if same is None:
            tables.append(table)
            continue
        known = {row.subject for row in same.rows}
        rows = (*same.rows, *(row for row in table.rows if row.subject not in known))
        notes = (*same.notes, *(note for note in table.notes if note not in same.notes))
        changes = {"rows": rows, "notes": notes, "reference": same.reference or table.reference}
        tables[tables.index(same)] = msgspec.structs.replace(same, **changes, images=_join_images(same.images, table.images))
    whole, *parts = (msgspec.structs.replace(table, parts=(), verdict=None) for table in tables)
    return msgspec.structs.replace(whole, parts=tuple(parts))


_TABLES = ("right", "same", "worst")
"""What `Images` has by subject."""


def _join_images(one: Images | None, other: Images | None) -> Images | None:
    """What the same images came to in the rows of both."""
    if one is None or other is None or one.digest != other.digest:
        return one
    merged = {name: {**getattr(other, name), **getattr(one, name)} for name in _TABLES}
    return msgspec.structs.replace(one, **merged, calibrated=max(one.calibrated, other.calibrated))


def _can_join(one: Report, other: Report) -> bool:
    """Whether two tables have one reference: the same, or the first row of one that had nothing to be compared with."""
    first = one.reference or (one.rows[0].subject if one.rows else "")
    return first == (other.reference or first) and one.is_recorded == other.is_recorded


def _name_rows(report: Report, artifact: Artifact) -> Report:
    """Rows named as `bench` names them: by the artifact's folder, but for a reference that is none of its engines."""

    def name(subject: str) -> str:
        return f"{artifact.folder.name} / {subject}" if subject in TABLE and subject != REFERENCE else subject

    made = identify(artifact)
    rows = tuple(
        msgspec.structs.replace(row, subject=name(row.subject), settings={**row.settings, **made}) for row in report.rows
    )
    parts = tuple(_name_rows(part, artifact) for part in report.parts)
    images = report.images
    if images is not None:
        kept = {table: {name(subject): value for subject, value in getattr(images, table).items()} for table in _TABLES}
        images = msgspec.structs.replace(images, **kept)
    return msgspec.structs.replace(report, rows=rows, reference=name(report.reference), parts=parts, images=images)


def _runs_here(artifact: Artifact) -> bool:
    """Whether an artifact can be measured: not a file that must be compiled first, nor an engine whose device is elsewhere."""
    if artifact.record.kind == "onnx":
        return not must_be_compiled(artifact)
    return artifact.record.audited


def _report(recipe: Recipe, line: Line, artifacts: list[Artifact], parts: tuple[Report, ...]) -> Report:
    """The whole report: nothing in it depends on which stages were skipped, so an unchanged build writes the same bytes."""
    artifact = artifacts[0]
    settings: dict[str, object] = {"model": artifact.spec.name, "artifact": artifact.id}
    settings["origin"] = msgspec.to_builtins(artifact.record.origin)
    stages = [*(each.folder.name for each in artifacts), *(part.title for part in parts)]
    settings |= {"stages": stages, "opset": recipe.export.opset}
    notes = [f"{made.folder.name}: {made.record.verdict}" for made in artifacts[1:] if made.record.verdict]
    notes += [f"{each.folder.name}: not measured, it does not run here" for each in artifacts if not _runs_here(each)]
    notes += [f"{stage}: left out: {why}" for stage, why in line.left_out.items()]
    measured = recipe.validate and recipe.validate.data and (recipe.validate.data, recipe.validate.split)
    if measured in [(each.calibration, each.split) for each in recipe.quantizations.values()]:
        notes.append("The images that set the ranges are among those that accuracy was measured on.")
    if best := choose_best([each for each in artifacts if _runs_here(each)], parts):
        settings |= {"best": best.folder, "engine": best.engine}
        notes.append(best.words)
    whole = Report(title="build", settings=settings, notes=tuple(notes), parts=parts)
    if not parts:
        return whole
    return msgspec.structs.replace(whole, machine=parts[0].machine, taken=max(part.taken for part in parts))


def locate(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that what ``recipe.toml`` names does not depend on where it lies."""

    def whole(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    weights, contract = (name and whole(name) for name in (recipe.model.weights, recipe.model.contract))
    labels = whole(recipe.model.labels) if isinstance(recipe.model.labels, str) else recipe.model.labels
    source = locate_code(recipe.model.source) if recipe.model.module else whole(recipe.model.source)
    model = msgspec.structs.replace(recipe.model, source=source, weights=weights, contract=contract, labels=labels)
    export = msgspec.structs.replace(recipe.export, data=recipe.export.data and whole(recipe.export.data))
    validate = recipe.validate
    if validate is not None:
        validate = msgspec.structs.replace(validate, data=validate.data and whole(validate.data))
    quantize = recipe.map_quantize(lambda config: config.map_paths(whole))
    return msgspec.structs.replace(recipe, model=model, export=export, quantize=quantize, validate=validate)


def to_toml(recipe: Recipe) -> str:
    """A recipe as the TOML that `Recipe.load` reads back as the same recipe.

    Raises:
        UsageError: VD2003, a path in it is not UTF-8.
    """
    lines = []
    for section, given in msgspec.structs.asdict(recipe).items():
        heading = f"[[{section}]]" if isinstance(given, tuple) else f"[{section}]"
        for config in given if isinstance(given, tuple) else (given,):
            if config is not None:
                table = msgspec.structs.asdict(config)
                lines += [heading, *(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None), ""]
    whole = "\n".join(lines)
    try:
        whole.encode()
    except UnicodeEncodeError as exc:
        raise UsageError("VD2003", "a path in the recipe is not UTF-8", fix="rename it") from exc
    return whole


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's one escape beyond JSON's
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value)  # int and float; nan and inf are TOML's own words
