"""The verb `compile`: an ONNX artifact becomes an engine that was run and compared before it is accepted.

The build runs in a child process: what crashes or hangs there, or is killed for want of memory, is one line here. Then the
engine is audited (see `audit`); one that came out wrong is built again where builders choose kernels by measurement, and
refused in the end. What can't be run here, because the engine's device is elsewhere, is marked so.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import msgspec

from vitdeploy import files, isolate
from vitdeploy.artifact import OURS, Artifact, ArtifactLike, Record, check_place, sanitize, seal
from vitdeploy.backends import building
from vitdeploy.backends.base import Compiled, OpenConfig
from vitdeploy.backends.child import compute_memory_cap
from vitdeploy.backends.table import TABLE, list_packages, require_installed
from vitdeploy.backends.targets import require_compiler
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.machine import find_versions
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Goal, Subject
from vitdeploy.onnxfile.summary import count_stored_bytes
from vitdeploy.progress import Progress, silent
from vitdeploy.proof import golden
from vitdeploy.proof.census import Plan
from vitdeploy.proof.doubts import list_doubts
from vitdeploy.proof.engine import Findings, audit, distance
from vitdeploy.proof.golden import Golden
from vitdeploy.proof.plan import read_plan
from vitdeploy.proof.thresholds import LIMITS, MOST_ROUNDS, NARROW, RIVAL
from vitdeploy.recipe import BenchConfig, CompileConfig
from vitdeploy.record import CompileProof, Optimisation, Rivalry

_BENCH = BenchConfig(rounds=8, seconds=0.25, warmup=3)
_NO_DEVICE = "VD4010"
_NOT_AS_ASKED = ("VD3026", "VD4009", "VD4011")
"""Errors after which a rival may still do."""
_UNTRIED = (
    "it compiles, and was not executed: its device is not here, so nothing is known of its outputs and speed; engines are loaded "
    "only by the machine that built them, so compile it again there"
)


def compile(  # noqa: PLR0913 (two sources, how, where, and the two that every verb that writes takes)
    artifact: ArtifactLike,
    config: CompileConfig,
    out: str | PathLike[str],
    *,
    rival: ArtifactLike | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Compile an engine, and check that it is what was asked for.

    Args:
        artifact: An ONNX artifact, or a path of it; or a ViT's ONNX file with its input contract.
        config: Engine, device, settings.
        out: Folder to write. What the same verb made there from the same source is replaced in one step.
        force: Replace any artifact that lies there; never a source, and nothing that vitdeploy did not write.
        rival: The same model in another precision: both are built, both are timed, the faster that passes is kept.
        progress: Hears of each step.

    Returns:
        The artifact; its record's ``proof`` has the engine's settings, the census, the distances from the golden batch, what
        was measured, and notes.

    Raises:
        UsageError: VD2008 unusable ``out``; VD2009, VD2011 impossible settings; VD2013 an engine already; VD2010 a rival that is
            another model.
        InputError: VD3026, VD3027 the graph can't run in this engine; VD3010 to VD3012 no model.
        TrustError: VD7001, VD7005 the file reaches outside itself.
        MachineError: VD4001 engine not installed; VD4010 device not usable; VD4009, VD4011 no engine that passes;
            VD4004, VD4006 to VD4008 the builder failed, crashed or hung.
    """
    artifact, out = Artifact.take(artifact), Path(out)
    rival = None if rival is None else Artifact.take(rival)
    sources = [each for each in (artifact, rival) if each is not None]
    check_place(out, sources=[each.folder for each in sources], replaces=partial(_is_next, sources), force=force)
    for each in sources:
        if each.record.kind != "onnx":
            message = f"is an engine of {each.record.kind} already"
            raise UsageError("VD2013", message, file=each.folder, fix="give the ONNX artifact that it was compiled from")
    require_compiler(config)
    require_installed(config.backend)
    with files.folder(out, ours=OURS) as folder:
        work = folder / "work"
        work.mkdir()
        first = _Source(artifact, work / "first", config)
        if rival is None:
            made = _Job(first, config, progress).engine()
        else:
            made = _faster(first, _Source(rival, work / "second", config), config, progress)
        for path in made.folder.iterdir():
            path.rename(folder / path.name)
        shutil.rmtree(work)
        source = rival if rival is not None and rival.id == made.record.parent else artifact
        seal(folder, msgspec.structs.replace(made.record, original=source.locate_original(folder)))
    progress("compile", 1, 1)
    return Artifact.open(out, verify=False)


def _is_next(sources: list[Artifact], old: Record) -> bool:
    return old.made_by == "compile" and old.parent in [each.id for each in sources]


class _Source:
    """What is compiled, as engines may see it, with what its engine must come to.

    Attributes:
        given: As it was named.
        onnx: The same, or a repaired copy.
        work: A folder of its own.
        golden: What its engine must put out.
        plan: What its engine must run in 8 bits.
        notes: What was guessed of a file that was made elsewhere, and what was repaired.
    """

    def __init__(self, artifact: Artifact, work: Path, config: CompileConfig) -> None:
        self.given, self.work = artifact, work
        self.onnx, repairs = sanitize(artifact, work / "source")
        self.notes = (*(artifact.record.origin.notes if artifact.record.made_by == "import" else ()), *repairs)
        self.golden: Golden = golden.read(artifact) or golden.make(self.onnx, OpenConfig(threads=config.threads))
        self.plan: Plan = msgspec.structs.replace(read_plan(self.onnx.model), ours=artifact.record.made_by != "import")


class _Passed(NamedTuple):
    """An engine that passed its audit, or whose device is not here (``findings`` is None)."""

    built: _Built
    findings: Findings | None
    builds: int


class _Built(NamedTuple):
    """An engine's files, and how long they took."""

    compiled: Compiled
    build_s: float

    def proof(self) -> CompileProof:
        """What is known of it before it has run."""
        return CompileProof(run=self.compiled.run, facts=self.compiled.facts, build_s=self.build_s, notes=self.compiled.notes)


@dataclass
class _Job:
    """The making of one engine.

    Attributes:
        source: What is compiled.
        config: How.
        progress: Hears of each step.
    """

    source: _Source
    config: CompileConfig
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where the engine's files are."""
        return self.source.work / "engine"

    def engine(self) -> Artifact:
        """Build, audit, choose settings; the folder then holds all that the artifact needs but its record."""
        built, findings, builds = self._build_until_it_passes()
        optimisation = None
        notes = [*self.source.notes, *built.compiled.notes]
        if findings is None:
            notes.append(_UNTRIED)
        elif self.config.optimise is not None and TABLE[self.config.backend].compiled_only:
            notes.append(f"{self.config.backend} has chosen its kernels by measurement already: no settings are left to measure")
        elif self.config.optimise is not None:
            optimisation, best = self._optimise(built, findings)
            if best is not None and best != built.compiled.run:
                built, findings = self._build_for(best)
        if findings is not None:
            notes += findings.notes
        proof = msgspec.structs.replace(
            built.proof(),
            builds=builds,
            optimise=optimisation,
            audit=None if findings is None else findings.audit,
            notes=tuple(notes),
        )
        self.source.golden.write(self.folder)
        if self.config.keep_original:
            self.source.given.copy_weights(self.folder)
        return self._record(built, proof)

    def _build_until_it_passes(self) -> _Passed:
        precision, name = self.source.given.record.precision, self.config.backend
        most = 1 + (self.config.rebuilds if TABLE[name].compiled_only else 0)
        for attempt in range(1, most + 1):
            self.progress(f"compile: build {precision}", attempt - 1, most)
            built = self._build(self.config, again=attempt > 1)
            self.progress(f"compile: audit {precision}", attempt - 1, most)
            try:
                findings = self._audit(built)
            except MachineError as error:
                if error.code != _NO_DEVICE or not TABLE[name].compiles_anywhere:
                    raise
                return _Passed(built, None, attempt)
            if not findings.wrong:
                return _Passed(built, findings, attempt)
        times = "" if most == 1 else f" in {most} builds"
        message = f"{name}: the engine is not what was asked for{times}: {findings.wrong}"
        if findings.audit.census is not None and findings.audit.census.missing:
            target = TABLE[name].quantize_target
            fix = f"quantize for this engine: --backend {target}"
            if self.source.given.engine == target:
                fix = f"use another --precision of vitdeploy quantize, or a newer {TABLE[name].package}"
            raise MachineError("VD4009", message, file=self.source.given.model, fix=fix)
        raise MachineError("VD4011", message, file=self.source.given.model)

    def _build_for(self, best: OpenConfig) -> tuple[_Built, Findings]:
        """Build for the settings that were measured to be the fastest, so that what is cached in the engine fits them."""
        given = {name: getattr(best, name) for name in ("precision", "threads", "streams", "hint", "device")}
        config = msgspec.structs.replace(self.config, **{name: value for name, value in given.items() if value is not None})
        compiled, seconds = self._build(config)
        built = _Built(msgspec.structs.replace(compiled, run=best), seconds)
        findings = self._audit(built)
        if findings.wrong:
            message = f"{config.backend}: the engine is not what was asked for: {findings.wrong}"
            raise MachineError("VD4011", message, file=self.source.given.model)
        return built, findings

    def _build(self, config: CompileConfig, *, again: bool = False) -> _Built:
        """In a child process, into a fresh folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        size = count_stored_bytes(self.source.onnx.model)
        files.need_space(self.folder, 3 * size)
        onnx, out = self.source.onnx, str(self.folder.absolute())
        order = building.BuildOrder(
            folder=str(onnx.folder.absolute()),
            record=onnx.record,
            config=config,
            out=out,
            again=again,
            engines=tuple(TABLE.values()),
        )
        start, limits = time.monotonic(), self._limits(size)
        answer = isolate.run(f"{building.__name__}:build", msgspec.to_builtins(order), seconds=config.seconds, **limits)
        return _Built(msgspec.convert(answer, Compiled), round(time.monotonic() - start, 1))

    def _limits(self, size: int) -> isolate.Limits:
        name = self.config.backend
        on_gpu = TABLE[name].compiled_only
        return {
            "file_mib": 1024 + (4 * size >> 20),
            "memory_mib": compute_memory_cap(name, self.config.device),
            "what": f"the process that builds for {name}",
            "file": str(self.source.given.model),
            "smaller": "use a smaller --workspace or --effort" if on_gpu else "close other programs, or use a larger machine",
            "longer": "give more --seconds",
        }

    def _audit(self, built: _Built, config: OpenConfig | None = None) -> Findings:
        return audit(self._record(built, built.proof()), self.source.golden, self.source.plan, config)

    def _record(self, built: _Built, proof: CompileProof) -> Artifact:
        given = self.source.given
        record = Record(
            kind=self.config.backend,
            precision=given.record.precision,
            entry=built.compiled.entry,
            weights=given.weights.name if self.config.keep_original and given.weights else None,
            spec=given.spec,
            made_by="compile",
            config=self.config,
            origin=given.record.origin,
            proof=msgspec.structs.replace(proof, calibration=given.record.calibration),
            tools=find_versions(*list_packages(), "numpy"),
            parent=given.id,
        )
        return Artifact(self.folder, record)

    def _optimise(self, built: _Built, findings: Findings) -> tuple[Optimisation, OpenConfig | None]:
        """Settings that are worth measuring, measured side by side; those whose outputs are too far off are left out."""
        order = building.CandidatesOrder(config=self.config, engines=tuple(TABLE.values()))
        limits = self._limits(count_stored_bytes(self.source.onnx.model))
        answer = isolate.run(f"{building.__name__}:candidates", msgspec.to_builtins(order), seconds=self.config.seconds, **limits)
        named: dict[str, OpenConfig] = {}
        left_out: dict[str, str] = {}
        for candidate in msgspec.convert(answer, list[OpenConfig]):
            name = settings_in_words(candidate)
            wrong = self._audit(built, candidate).wrong
            if wrong:
                left_out[name] = wrong
            else:
                named[name] = candidate
        if not named:
            return Optimisation(left_out=left_out), None
        made = self._record(built, built.proof())
        subjects = [Subject(name, made, self.config.backend, config=candidate) for name, candidate in named.items()]
        times, notes, _ = _time(subjects, findings.audit.batch or self.config.usual_batch, self.progress)
        best = min(times, key=lambda name: times[name])
        return Optimisation(measured=times, chosen=best, left_out=left_out, notes=notes), named[best]


def _faster(first: _Source, second: _Source, config: CompileConfig, progress: Progress) -> Artifact:
    """Build both, and keep the faster, or the one that passes; its record has the numbers of both."""
    _require_same(first, second)
    made: list[Artifact] = []
    failed: list[MachineError | InputError] = []
    for source in (first, second):
        try:
            made.append(_Job(source, config, progress).engine())
        except (MachineError, InputError) as error:
            if error.code not in _NOT_AS_ASKED or failed:
                raise
            failed.append(error)
    if failed:
        kept = made[0].record.precision
        return _add(made[0], verdict=f"{kept.upper()} is kept: the other could not be had: {failed[0].message}")
    first_audit = _proof(made[0]).audit
    if first_audit is None or not made[1].record.audited:
        note = "the two precisions could not be timed: the engine's device is not here; the first is kept"
        return _add(made[0], notes=(*_proof(made[0]).notes, note))
    names = [f"{each.record.precision}{mark}" for each, mark in zip(made, ("", " (rival)"), strict=True)]
    subjects = [Subject(name, each, config.backend, names[1]) for name, each in zip(names, made, strict=True)]
    batch = first_audit.batch or config.usual_batch
    times, notes, ratios = _time(subjects, batch, progress)
    ratio, low, high = ratios[names[0]]
    kept_one, other = (0, 1) if ratio >= 1 else (1, 0)
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    said = f"{names[0].upper()} runs {ratio:.2f}x as fast as {names[1]}{interval} at batch {batch}: {names[kept_one]} is kept"
    if low is not None and high is not None and low < 1 < high:
        said += f", though {names[other]} may be as fast"
    return _add(made[kept_one], rival=Rivalry(latency_ms=times, notes=notes), verdict=said)


def _require_same(first: _Source, second: _Source) -> None:
    one, two = first.given.spec, second.given.spec
    limit = max(LIMITS.get(source.given.record.precision, LIMITS["int8"]) for source in (first, second))
    contracts = msgspec.structs.replace(one.input, tensor=two.input.tensor) == two.input
    count = min(len(first.golden.output), len(second.golden.output))  # the first images are the same
    apart = distance(second.golden.output[:count], first.golden.output[:count])
    if not contracts or one.classes != two.classes or one.output != two.output or not apart <= RIVAL * limit:
        message = f"is another model than {first.given.model}: their outputs are {apart:.2g} apart"
        raise UsageError("VD2010", message, file=second.given.model, fix="give the same model in another precision")


def _time(
    subjects: list[Subject], batch: int, progress: Progress
) -> tuple[dict[str, float], tuple[str, ...], dict[str, tuple[float, float | None, float | None]]]:
    """Median latency in ms by name, notes, and the speed-up over each subject's reference with its interval."""
    bench = msgspec.structs.replace(_BENCH, batches=(batch,))
    measured = latency.measure(subjects, bench, goal=Goal(NARROW, MOST_ROUNDS), progress=progress)
    rows = measured.rows
    times = {row.subject: float(row.metrics["p50"].value) for row in rows}
    speedups = {row.subject: row.metrics["speedup"] for row in rows if "speedup" in row.metrics}
    ratios = {name: (float(each.value), each.low, each.high) for name, each in speedups.items()}
    return times, list_doubts(measured, bench), ratios


def _proof(made: Artifact) -> CompileProof:
    assert isinstance(made.record.proof, CompileProof)
    return made.record.proof


def _add(made: Artifact, **more: object) -> Artifact:
    proof = msgspec.structs.replace(_proof(made), **more)
    return Artifact(made.folder, msgspec.structs.replace(made.record, proof=proof))


def settings_in_words(config: OpenConfig) -> str:
    """The settings that were given, as ``bf16, 2 threads, 1 stream``."""
    counts = ((config.threads, "thread"), (config.streams, "stream"))
    words = [config.precision or "", config.device or "", config.hint or ""]
    words += ["" if count is None else f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in counts]
    words += [
        "" if value is None else (name if value else f"no {name}")
        for name, value in (("spinning", config.spin), ("arena", config.arena), ("CUDA graph", config.graph))
    ]
    return ", ".join(word for word in words if word) or "default"
