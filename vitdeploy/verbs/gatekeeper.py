"""The verb `gate`: may this model go on? Reports are judged as they are, artifacts are measured here first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vitdeploy.artifact import Artifact
from vitdeploy.errors import UsageError
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.verdict import RULES, Thresholds, judge
from vitdeploy.recipe import BenchConfig, QuantizeConfig, ValidateConfig
from vitdeploy.report import Gate, Report, Verdict, read_report
from vitdeploy.tomlfile import read_toml
from vitdeploy.verbs.bencher import bench
from vitdeploy.verbs.validator import validate

_OF_BENCH = ("speedup", "load", "peak_memory")


class GateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How artifacts are measured before they are judged; reports are not measured again.

    Attributes:
        thresholds: What to ask; None is `proof.verdict.USUAL`.
        validate: Images, engines.
        bench: Rounds, engines; used where a threshold is about latency or memory.
    """

    thresholds: Thresholds | None = None
    validate: ValidateConfig = ValidateConfig()
    bench: BenchConfig = BenchConfig()


def gate(subjects: Sequence[Path], config: GateConfig | None = None, *, progress: Progress = silent) -> Verdict:
    """Hold models against limits, by the intervals of what was measured.

    Args:
        subjects: Reports (.json) that `validate`, `bench` or `build` wrote, and artifacts.
        config: Thresholds, and how artifacts are measured.
        progress: Hears of every step of measuring.

    Returns:
        The verdict: pass, fail or inconclusive, with every limit, number and reason. See `proof.verdict.judge`.

    Raises:
        UsageError: VD2010, no subject, or nothing to decide; as `validate` and `bench`.
        InputError: VD3001, VD3028, a report can't be read; as `Artifact.open`, `validate` and `bench`.
        MachineError: As `validate` and `bench`.
    """
    if not subjects:
        raise UsageError("VD2010", "nothing to judge", fix="give a report or an artifact")
    config = config or GateConfig()
    reports: list[Report] = []
    refusals: list[Gate] = []
    for path in subjects:
        if path.suffix == ".json":
            reports.append(read_report(path))
            continue
        artifact = Artifact.open(path)
        refusals += _refuse_random(artifact)
        reports += _measure(artifact, config, progress)
    verdict = judge(reports, config.thresholds)
    if not refusals and not verdict.gates:
        message = "nothing to decide: no report has a number that a threshold is about"
        raise UsageError("VD2010", message, fix="give a report of `vitdeploy validate` or `bench`, and thresholds for it")
    if not refusals:
        return verdict
    return msgspec.structs.replace(verdict, outcome="fail", passed=False, gates=(*refusals, *verdict.gates))


def read_thresholds(path: Path) -> Thresholds:
    """Read a ``gate.toml``.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2007 not TOML; VD2002 unknown key; VD2003 not a number with its unit; VD2010, it asks for nothing.
    """
    thresholds = read_toml(path, Thresholds)
    if not thresholds.named:
        raise UsageError("VD2010", "asks for nothing", file=path, fix=f"set one of {', '.join(RULES)}")
    return thresholds


def _measure(artifact: Artifact, config: GateConfig, progress: Progress) -> list[Report]:
    metrics = {RULES[name].metrics[0] for name in config.thresholds.named} if config.thresholds else set()
    reports = []
    if not metrics or metrics - set(_OF_BENCH):
        reports.append(validate(artifact, config.validate, progress=progress))
    if metrics & set(_OF_BENCH):
        reports.append(bench([artifact], config.bench, progress=progress))
    return reports


def _refuse_random(artifact: Artifact) -> list[Gate]:
    """A failed gate for an artifact whose ranges are those of noise: its numbers say nothing about deployment."""
    made = artifact.record.config
    if not isinstance(made, QuantizeConfig) or made.calibration != "random":
        return []
    why = "was calibrated on random images; quantize it with images like those of deployment"
    return [
        Gate(about=str(artifact.folder), subject="", name="calibration", limit="images", metric=None, outcome="fail", why=why)
    ]
