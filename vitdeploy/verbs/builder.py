"""The verb `build`: a recipe's line from model to report, redoing only what changed.

Every finished stage leaves its result and, in ``build.json``, a key: the SHA-256 of everything the result was made from (see
`keys`). A stage whose key and result are unchanged is skipped. Results and keys are written whole, so a killed build goes on
where it stopped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec

from vitdeploy import files
from vitdeploy.artifact import RECORD, Artifact, read_record, set_key
from vitdeploy.backends.table import PROVER, REFERENCE, TABLE, list_packages, must_be_compiled
from vitdeploy.backends.targets import settle_recipe
from vitdeploy.errors import InputError, UsageError, VitdeployError, first_line, needs
from vitdeploy.jsonfile import encode
from vitdeploy.machine import find_versions
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig, Recipe, ValidateConfig
from vitdeploy.render import markdown
from vitdeploy.report import Report, this_machine
from vitdeploy.verbs.keys import artifact_digest, data_digest, key_of, model_digest

LEDGER, RECIPE = "build.json", "recipe.toml"
ARTIFACTS = ("export", "quantize", "compile")
"""Stages whose result is an artifact's folder of the same name; the others leave a report."""
STAGES = (*ARTIFACTS, "validate", "bench")
SCHEMA = 1


class Done(msgspec.Struct, frozen=True):
    """A finished stage.

    Attributes:
        key: Digest of everything it was made from.
        digest: Digest of its result.
    """

    key: str
    digest: str


class Ledger(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What ``build.json`` says: the finished stages.

    Attributes:
        schema_version: Version of this record.
        stages: Stage to what it left.
    """

    schema_version: int = SCHEMA
    stages: dict[str, Done] = {}


def build(recipe: Recipe, out: Path, *, force: bool = False, progress: Progress = silent) -> Report:
    """Run a recipe: export, quantize, compile, validate, bench, report; stages that are done and unchanged are skipped.

    Args:
        recipe: The job. Relative paths are taken from the current folder.
        out: Folder to write: ``recipe.toml`` (what was run, with whole paths), ``export/``, ``quantize/`` and ``compile/`` (the
            artifacts), ``validate.json``, ``bench.json``, ``report.json``, ``report.md``, ``build.json``. It must be
            new, empty, or one that an earlier build wrote.
        force: Do every stage again.
        progress: Hears of each stage, skipped ones included.

    Returns:
        The whole report; its parts are the stages' reports. Also written as ``report.json`` and ``report.md``.

    Raises:
        UsageError: VD2008, ``out`` can't be used; and what the verbs refuse.
        InputError: VD3010, ``build.json`` is damaged; and what the verbs refuse.
        MachineError: See the verbs.
    """
    recipe = locate(settle_recipe(recipe))
    # before any work: a typo must not cost minutes
    model, data, calibration = model_digest(recipe.model), data_digest(recipe.validate), data_digest(recipe.quantize)
    line = _Line(out, force, progress)
    files.write(out / RECIPE, to_toml(recipe))
    artifact = _export(line, recipe, model)
    artifacts = [artifact, *_quantize(line, recipe, artifact, calibration)]
    artifacts += _compile(line, recipe, artifacts[-1])
    parts = _measure_stages(line, recipe, artifacts, data)
    report = _report(recipe, artifacts, parts)
    files.write(out / "report.json", encode(report))
    files.write(out / "report.md", markdown.format_report(report))
    progress("report: written", 1, 1)
    return report


class _Line:
    """The output folder with what is already done in it."""

    def __init__(self, out: Path, force: bool, progress: Progress) -> None:
        files.check_output(out, ours=LEDGER)
        self.out, self.force, self.progress = out, force, progress
        self.ledger = read_ledger(out / LEDGER) if (out / LEDGER).exists() and not force else Ledger()
        self._write()  # from now on the folder is ours, also when this process is killed

    def result(self, stage: str) -> Path:
        return self.out / (stage if stage in ARTIFACTS else f"{stage}.json")

    def digest(self, stage: str) -> str:
        """Digest of a stage's result as it lies on disk; "" when it is missing or damaged."""
        path = self.result(stage)
        try:
            if stage in ARTIFACTS:
                return artifact_digest(Artifact.open(path))  # compares every file with the record
            return files.sha256(path)
        except (OSError, VitdeployError):
            return ""

    def is_done(self, stage: str, key: str) -> bool:
        """Whether the stage can be skipped; says so, or removes what will no longer be true."""
        if self._has(stage, key):
            self.progress(f"{stage}: unchanged, skipped", 1, 1)
            return True
        for name in ("report.json", "report.md"):
            (self.out / name).unlink(missing_ok=True)
        return False

    def _has(self, stage: str, key: str) -> bool:
        """Whether the result lies here, unchanged.

        An artifact says itself what it was made from: one that was made just before this process was killed, and is in no
        ledger yet, counts.
        """
        done, digest = self.ledger.stages.get(stage), self.digest(stage)
        if done is not None and done.key == key:
            return done.digest == digest != ""
        if stage not in ARTIFACTS or self.force or not digest or read_record(self.result(stage) / RECORD).key != key:
            return False
        self.finish(stage, key)
        return True

    def keep(self, artifact: Artifact, stage: str, key: str) -> Artifact:
        """Record an artifact that was just made, here and in itself."""
        artifact = set_key(artifact, key)
        self.finish(stage, key)
        return artifact

    def finish(self, stage: str, key: str) -> None:
        """Record a stage; when the artifact is another than before, the numbers that lie here are of another model and go."""
        old, digest = self.ledger.stages.get(stage), self.digest(stage)
        self.ledger.stages[stage] = Done(key, digest)
        if stage in ARTIFACTS and (old is None or old.digest != digest):
            for later in STAGES[STAGES.index(stage) + 1 :]:
                self.drop(later)
        self._write()

    def drop(self, stage: str) -> None:
        """Remove a stage that is not, or no longer, part of the build."""
        known, path = self.ledger.stages.pop(stage, None), self.result(stage)
        if stage not in ARTIFACTS:
            path.unlink(missing_ok=True)
        elif known is not None:
            shutil.rmtree(path, ignore_errors=True)
        self._write()

    def _write(self) -> None:
        files.write(self.out / LEDGER, encode(self.ledger))


def _export(line: _Line, recipe: Recipe, model: str) -> Artifact:
    tools = find_versions("torch", "onnx", "onnxscript", "onnx_ir", TABLE[PROVER].package)
    key = key_of("export", recipe.export, {"model": model, "tools": tools})
    if line.is_done("export", key):
        return Artifact.open(line.result("export"), verify=False)
    with needs("export"):
        from vitdeploy.verbs.exporter import export

    artifact = export(recipe.model, recipe.export, line.result("export"), progress=line.progress)
    return line.keep(artifact, "export", key)


def _quantize(line: _Line, recipe: Recipe, artifact: Artifact, calibration: str) -> list[Artifact]:
    """The quantized artifact, when the recipe asks for one."""
    config = recipe.quantize
    if config is None:
        line.drop("quantize")
        return []
    machine = msgspec.to_builtins(this_machine()) if config.verify else None  # the verdict is of this machine
    inputs = {"artifact": artifact_digest(artifact), "calibration": calibration, "machine": machine}
    key = key_of("quantize", config, inputs | {"tools": find_versions("onnx", "onnx_ir", *list_packages())})
    if line.is_done("quantize", key):
        return [Artifact.open(line.result("quantize"), verify=False)]
    with needs("quantize"):
        from vitdeploy.verbs.quantizer import quantize

    made = quantize(artifact, config, line.result("quantize"), progress=line.progress)
    return [line.keep(made, "quantize", key)]


def _compile(line: _Line, recipe: Recipe, artifact: Artifact) -> list[Artifact]:
    config = recipe.compile
    if config is None:
        line.drop("compile")
        return []
    inputs = {"artifact": artifact_digest(artifact), "machine": msgspec.to_builtins(this_machine())}
    inputs["tools"] = find_versions(*list_packages())
    key = key_of("compile", config, inputs)
    if line.is_done("compile", key):
        return [Artifact.open(line.result("compile"), verify=False)]
    from vitdeploy.verbs.compiler import compile

    made = compile(artifact, config, line.result("compile"), progress=line.progress)
    return [line.keep(made, "compile", key)]


def _measure_stages(line: _Line, recipe: Recipe, artifacts: list[Artifact], data: str) -> tuple[Report, ...]:
    """The reports of the stages that measure, as far as the recipe names them."""
    reports = []
    artifacts = [artifact for artifact in artifacts if _runs_here(artifact)]
    digests = [artifact_digest(artifact) for artifact in artifacts]
    inputs = {"artifacts": digests, "machine": msgspec.to_builtins(this_machine())}
    for stage in STAGES[len(ARTIFACTS) :]:
        config = getattr(recipe, stage)
        if config is None:
            line.drop(stage)
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
    whole, *others = (validate(artifact, config, progress=progress) for artifact in artifacts)
    for other, artifact in zip(others, artifacts[1:], strict=True):  # the same images and reference: rows of one table
        what = artifact.record.precision if artifact.record.kind == "onnx" else f"{artifact.record.precision} compiled"
        new = other.rows[1:] if other.rows[0].subject == whole.reference else other.rows
        rows = [msgspec.structs.replace(row, subject=f"{what} / {row.subject}") for row in new]
        notes = [note for note in other.notes if note not in whole.notes]
        whole = msgspec.structs.replace(whole, rows=(*whole.rows, *rows), notes=(*whole.notes, *notes))
    return whole


def _runs_here(artifact: Artifact) -> bool:
    """Whether an artifact can be measured: not a file that must be compiled first, nor an engine whose device is elsewhere."""
    if artifact.record.kind == "onnx":
        return not must_be_compiled(artifact)
    return artifact.record.audited


def _report(recipe: Recipe, artifacts: list[Artifact], parts: tuple[Report, ...]) -> Report:
    """The whole report: nothing in it depends on which stages were skipped, so an unchanged build writes the same bytes."""
    artifact = artifacts[0]
    settings: dict[str, object] = {"model": artifact.spec.name, "artifact": artifact.id}
    settings["origin"] = msgspec.to_builtins(artifact.record.origin)
    stages = [*(artifact.record.made_by for artifact in artifacts), *(part.title for part in parts)]
    settings |= {"stages": stages, "opset": recipe.export.opset}
    notes = tuple(made.record.verdict for made in artifacts[1:] if made.record.verdict)
    notes += tuple(f"{each.record.made_by}: not measured, it does not run here" for each in artifacts if not _runs_here(each))
    whole = Report(title="build", settings=settings, notes=notes, parts=parts)
    if not parts:
        return whole
    return msgspec.structs.replace(whole, machine=parts[0].machine, taken=max(part.taken for part in parts))


def read_report(path: Path) -> Report:
    """A report that `build`, `validate` or `bench` wrote as JSON.

    Raises:
        InputError: VD3001, missing; VD3010, not a report.
    """
    return _read(path, Report)


def read_ledger(path: Path) -> Ledger:
    """``build.json`` of a build's folder.

    Raises:
        InputError: VD3010, damaged, or of another version.
    """
    ledger = _read(path, Ledger)
    if ledger.schema_version != SCHEMA:
        message = f"has schema version {ledger.schema_version}, this vitdeploy reads {SCHEMA}"
        raise InputError("VD3010", message, file=path, fix="use --force, or another folder")
    return ledger


_Record = TypeVar("_Record", Report, Ledger)


def _read(path: Path, kind: type[_Record]) -> _Record:
    try:
        # not strict: numbers that JSON does not have were written as strings
        return msgspec.convert(json.loads(path.read_bytes()), kind, strict=False)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    except (ValueError, RecursionError, msgspec.ValidationError) as exc:
        message = f"is not a record that vitdeploy wrote: {first_line(exc)}"
        raise InputError("VD3010", message, file=path, fix="make it again") from exc


def locate(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that what ``recipe.toml`` names does not depend on where it lies."""

    def whole(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    weights, contract = (name and whole(name) for name in (recipe.model.weights, recipe.model.contract))
    source = recipe.model.source if recipe.model.module else whole(recipe.model.source)
    model = msgspec.structs.replace(recipe.model, source=source, weights=weights, contract=contract)
    validate = recipe.validate
    if validate is not None:
        validate = msgspec.structs.replace(validate, data=validate.data and whole(validate.data))
    quantize = recipe.quantize and recipe.quantize.map_paths(whole)
    return msgspec.structs.replace(recipe, model=model, quantize=quantize, validate=validate)


def to_toml(recipe: Recipe) -> str:
    """A recipe as the TOML that `Recipe.load` reads back as the same recipe.

    Raises:
        UsageError: VD2003, a path in it is not UTF-8.
    """
    lines = []
    for section, config in msgspec.structs.asdict(recipe).items():
        if config is not None:
            table = msgspec.structs.asdict(config)
            lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None), ""]
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
