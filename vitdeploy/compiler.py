"""The verb `compile`: an ONNX artifact becomes an engine that was run and compared before it is accepted.

The build runs in a child process: what crashes or hangs there, or is killed for want of memory, is one line here. Then the
engine is audited (see `audit`); one that came out wrong is built again where builders choose kernels by measurement, and
refused in the end. What can't be run here, because the engine's device is elsewhere, is marked so.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from vitdeploy import files, golden, isolate, onnxcheck
from vitdeploy.artifact import RECORD, Artifact, Record, seal, versions
from vitdeploy.audit import Found, audit
from vitdeploy.backends import backend, isolated
from vitdeploy.backends.base import Compiled, Compiler, OpenConfig
from vitdeploy.errors import EnvironmentError_, UsageError
from vitdeploy.graph.census import Plan
from vitdeploy.graph.plan import planned
from vitdeploy.measure import latency
from vitdeploy.measure.latency import Subject
from vitdeploy.progress import Progress, silent
from vitdeploy.recipe import BenchConfig, CompileConfig

_DEVICES = ("tensorrt", "tensorrt-rtx")
"""Backends whose engines run on a GPU and whose builders choose kernels by measurement."""
_BENCH = BenchConfig(rounds=8, seconds=0.25, warmup=3)
_NO_DEVICE = "VD4010"


def compile(
    artifact: Artifact, config: CompileConfig, out: Path, *, rival: Artifact | None = None, progress: Progress = silent
) -> Artifact:
    """Compile an engine, and check that it is what was asked for.

    Args:
        artifact: An ONNX artifact, or a ViT's ONNX file with its input contract.
        config: Engine, device, settings.
        out: Folder to write; an older artifact there is replaced in one step, anything else is refused.
        rival: The same model in another precision: both are built, both are timed, the faster that passes is kept.
        progress: Hears of each step.

    Returns:
        The artifact; its record's ``proof`` has the engine's settings, the census, the distances from the golden batch, what
        was measured, and notes.

    Raises:
        UsageError: VD2008 unusable ``out``; VD2009, VD2011 impossible settings; VD2013 an engine already.
        InputError: VD3026, VD3027 the graph can't run in this engine; VD3010 to VD3012 no model.
        TrustError: VD7001, VD7005 the file reaches outside itself.
        EnvironmentError_: VD4001 engine not installed; VD4010 device not usable; VD4009, VD4011 no engine that passes;
            VD4004, VD4006 to VD4008 the builder failed, crashed or hung.
    """
    files.check_output(out, ours=RECORD)
    for each in (artifact, rival):
        if each is not None and each.record.kind != "onnx":
            message = f"is an engine of {each.record.kind} already"
            raise UsageError("VD2013", message, file=each.folder, fix="give the ONNX artifact that it was compiled from")
    isolated(config.backend)  # not installed: said before any work
    with files.folder(out, ours=RECORD) as folder:
        job = _Job(config, progress)
        made = job.engine(artifact, folder / "first")
        if rival is not None:
            made = job.faster(made, job.engine(rival, folder / "second"))
        for path in made.folder.iterdir():
            path.rename(folder / path.name)
        for name in ("first", "second"):
            shutil.rmtree(folder / name, ignore_errors=True)
        seal(folder, made.record)
    progress("compile", 1, 1)
    return Artifact.open(out, verify=False)


@dataclass
class _Job:
    """One call.

    Attributes:
        config: What is wanted.
        progress: Hears of each step.
    """

    config: CompileConfig
    progress: Progress
    _steps: int = field(default=0)

    def engine(self, artifact: Artifact, folder: Path) -> Artifact:
        """Build one engine and audit it; nothing is left beside its own files."""
        folder.mkdir()
        source, notes = self._sanitized(artifact, folder)
        expected = golden.read(artifact) or golden.make(source)
        plan = planned(source.model)
        built, found, attempt = self._passing(source, folder, expected, plan)
        run = built.run
        proof: dict[str, Any] = {"run": msgspec.to_builtins(run), "facts": built.facts, "builds": attempt}
        made = self._record(artifact, built, proof, folder)
        if found is not None and self.config.optimise is not None:
            measured, best = self._optimised(made, expected, plan)
            proof["optimise"] = measured
            if best is not None and best != built.run:
                built, found = self._again(source, folder, best, (expected, plan))
                proof |= {"run": msgspec.to_builtins(best), "facts": built.facts}
                made = self._record(source, built, proof, folder)
        proof |= {"audit": found.facts} if found is not None else {}
        proof["notes"] = [*notes, *built.notes, *([] if found is not None else [_UNTRIED])]
        expected.write(folder)
        self._weights(artifact, folder)
        shutil.rmtree(folder / "source", ignore_errors=True)
        return Artifact(folder, msgspec.structs.replace(made.record, proof=proof))

    def _sanitized(self, artifact: Artifact, folder: Path) -> tuple[Artifact, tuple[str, ...]]:
        (folder / "source").mkdir()
        path, notes = onnxcheck.sanitized(artifact.model, folder / "source")
        if path == artifact.model:
            return artifact, notes
        record = msgspec.structs.replace(artifact.record, entry=path.name, weights=None, files={})
        return Artifact(path.parent, record), notes

    def _passing(self, source: Artifact, folder: Path, expected: golden.Golden, plan: Plan) -> tuple[Compiled, Found | None, int]:
        """Build until an engine passes; None in place of the audit where its device is not here."""
        most = 1 + (self.config.rebuilds if self.config.backend in _DEVICES else 0)
        for attempt in range(1, most + 1):
            self.progress(f"compile: build {source.record.precision}", attempt - 1, most)
            built = self._build(source, folder, self.config)
            made = self._record(source, built, {"run": msgspec.to_builtins(built.run)}, folder)
            self.progress(f"compile: audit {source.record.precision}", attempt - 1, most)
            try:
                found = audit(made, expected, plan)
            except EnvironmentError_ as error:
                if error.code != _NO_DEVICE or self.config.backend != "tensorrt-rtx":
                    raise
                return built, None, attempt
            if not found.wrong:
                return built, found, attempt
        times = "" if most == 1 else f" in {most} builds"
        message = f"{self.config.backend}: the engine is not what was asked for{times}: {found.wrong}"
        if found.facts.get("census", {}).get("missing"):
            fix = f"quantize for this engine: --target {self.config.backend.removesuffix('-rtx')}"
            raise EnvironmentError_("VD4009", message, file=source.model, fix=fix)
        raise EnvironmentError_("VD4011", message, file=source.model)

    def _again(
        self, source: Artifact, folder: Path, best: OpenConfig, golden_plan: tuple[golden.Golden, Plan]
    ) -> tuple[Compiled, Found]:
        """Build for the settings that were measured to be the fastest, so that what is cached in the engine fits them."""
        given = {name: getattr(best, name) for name in ("precision", "threads", "streams", "hint", "device")}
        config = msgspec.structs.replace(self.config, **{name: value for name, value in given.items() if value is not None})
        built = msgspec.structs.replace(self._build(source, folder, config), run=best)
        found = audit(self._record(source, built, {"run": msgspec.to_builtins(best)}, folder), *golden_plan)
        if found.wrong:
            raise EnvironmentError_("VD4011", f"{config.backend}: the engine is not what was asked for: {found.wrong}")
        return built, found

    def _build(self, source: Artifact, folder: Path, config: CompileConfig) -> Compiled:
        """In a child process, into a fresh folder; its files then move up."""
        fresh = folder / "engine"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        size = sum(path.stat().st_size for path in source.folder.glob(f"{source.record.entry}*"))
        files.need_space(folder, 3 * size)
        argument = {
            "folder": str(source.folder.absolute()),
            "record": msgspec.to_builtins(source.record),
            "config": msgspec.to_builtins(config),
            "out": str(fresh.absolute()),
        }
        limit = 1024 + (4 * size >> 20)
        start = time.monotonic()
        limits: isolate.Limits = {
            "file_mib": limit,
            "what": f"the process that builds for {config.backend}",
            "file": str(source.model),
            "smaller": "use a smaller --workspace or --effort" if config.backend in _DEVICES else "close other programs",
            "longer": "give more --seconds",
        }
        answer = isolate.run("vitdeploy.compiler:build", argument, seconds=config.seconds, **limits)
        built = msgspec.convert(answer, Compiled)
        for path in fresh.iterdir():
            path.replace(folder / path.name)
        fresh.rmdir()
        return msgspec.structs.replace(built, facts={**built.facts, "build_s": round(time.monotonic() - start, 1)})

    def _record(self, source: Artifact, built: Compiled, proof: dict[str, Any], folder: Path) -> Artifact:
        record = Record(
            kind=self.config.backend,
            precision=source.record.precision,
            entry=built.entry,
            weights=source.record.weights,
            spec=source.spec,
            made_by="compile",
            config=msgspec.to_builtins(self.config),
            origin=source.record.origin,
            proof=proof,
            tools=versions("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "numpy"),
            parent=source.id,
        )
        return Artifact(folder, record)

    def _weights(self, artifact: Artifact, folder: Path) -> None:
        """The PyTorch original comes along, so that the engine can be compared with it."""
        if artifact.weights is not None:
            files.need_space(folder, artifact.weights.stat().st_size)
            shutil.copyfile(artifact.weights, folder / artifact.weights.name)

    def _optimised(self, made: Artifact, expected: golden.Golden, plan: Plan) -> tuple[dict[str, Any], OpenConfig | None]:
        """Settings that are worth measuring, measured side by side; those whose outputs are too far off are left out."""
        named: dict[str, OpenConfig] = {}
        left_out: dict[str, str] = {}
        for candidate in _compiler(self.config).candidates(self.config):
            name = settings_in_words(candidate)
            found = audit(made, expected, plan, candidate)
            if found.wrong:
                left_out[name] = found.wrong
            else:
                named[name] = candidate
        if not named:
            return {"measured": {}, "left_out": left_out}, None
        subjects = [Subject(name, made, self.config.backend, config=candidate) for name, candidate in named.items()]
        bench = msgspec.structs.replace(_BENCH, batches=(self.config.batch or self.config.usual_batch,))
        rows, notes = latency.measure(subjects, bench, progress=self.progress)
        times = {row.subject: float(row.metrics["p50"].value) for row in rows}
        best = min(times, key=lambda name: times[name])
        return {"measured": times, "chosen": best, "left_out": left_out, "notes": list(notes)}, named[best]

    def faster(self, first: Artifact, second: Artifact) -> Artifact:
        """Time two engines side by side; the faster, with the numbers of both in its record."""
        names = [f"{made.record.precision}{mark}" for made, mark in ((first, ""), (second, " (rival)"))]
        if any("audit" not in made.record.proof for made in (first, second)):
            note = "the two precisions could not be timed: the engine's device is not here; the first is kept"
            return _noted(first, {"notes": [*first.record.proof["notes"], note]})
        subjects = [Subject(name, made, self.config.backend, names[0]) for name, made in zip(names, (first, second), strict=True)]
        bench = msgspec.structs.replace(_BENCH, batches=(self.config.batch or self.config.usual_batch,))
        rows, notes = latency.measure(subjects, bench, progress=self.progress)
        times = {row.subject: float(row.metrics["p50"].value) for row in rows}
        ratio = times[names[1]] / times[names[0]]
        kept, verdict = (first, names[0]) if ratio >= 1 else (second, names[1])
        said = f"{names[0].upper()} is {ratio:.2f}x as fast as {names[1]} at batch {bench.batches[0]}: {verdict} is kept"
        return _noted(kept, {"rival": {"latency_ms": times, "notes": list(notes)}, "verdict": said})


_UNTRIED = "compiled, not executed: its device is not here, so nothing is known of its outputs and speed"


def _noted(made: Artifact, more: dict[str, Any]) -> Artifact:
    return Artifact(made.folder, msgspec.structs.replace(made.record, proof=made.record.proof | more))


def settings_in_words(config: OpenConfig) -> str:
    """The settings that were given, as ``bf16, 2 threads, 1 stream``."""
    words = [config.precision or "", config.device or "", config.hint or ""]
    words += ["" if count is None else f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in _counted(config)]
    words += [
        "" if value is None else (name if value else f"no {name}")
        for name, value in (("spinning", config.spin), ("arena", config.arena), ("CUDA graph", config.graph))
    ]
    return ", ".join(word for word in words if word) or "default"


def _counted(config: OpenConfig) -> tuple[tuple[int | None, str], ...]:
    return (config.threads, "thread"), (config.streams, "stream")


def _compiler(config: CompileConfig) -> Compiler:
    return cast(Compiler, backend(config.backend))


def build(argument: dict[str, Any]) -> dict[str, Any]:
    """The child's side: compile into a folder. Called by `isolate.run`."""
    artifact = Artifact(Path(argument["folder"]), msgspec.convert(argument["record"], Record))
    config = msgspec.convert(argument["config"], CompileConfig)
    found: dict[str, Any] = msgspec.to_builtins(_compiler(config).compile(artifact, config, Path(argument["out"])))
    return found
