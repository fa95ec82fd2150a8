"""The verb `gate`: may this model go on? Reports are judged as they are, artifacts are measured here first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.bundle.unpacking import open_model
from vitdeploy.errors import UsageError, VitdeployError
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.baseline import compare_with, format_baseline, make_baseline, read_baseline
from vitdeploy.proof.rules import OF_BENCH, RULES, USUAL, Thresholds
from vitdeploy.proof.verdict import judge
from vitdeploy.recipe import RANDOM, BenchConfig, ValidateConfig
from vitdeploy.report import Gate, Report, Verdict, read_report
from vitdeploy.tomlfile import read_toml
from vitdeploy.verbs.bencher import bench
from vitdeploy.verbs.validator import validate


class GateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How artifacts are measured before they are judged; reports are not measured again.

    Attributes:
        thresholds: What to ask; None is `proof.rules.USUAL`.
        validate: Images, engines.
        bench: Rounds, engines; used where a threshold is about latency, memory or size.
        baseline: A file of an earlier model's answers: each candidate is compared with its own there, too.
        update_baseline: Write that file anew from what was measured now, unless a limit is missed; nothing is compared with it.
        about: The artifact that every report must be of.
    """

    thresholds: Thresholds | None = None
    validate: ValidateConfig = ValidateConfig()
    bench: BenchConfig = BenchConfig()
    baseline: Path | None = None
    update_baseline: bool = False
    about: Path | None = None


def gate(subjects: Sequence[Path], config: GateConfig | None = None, *, progress: Progress = silent) -> Verdict:
    """Hold models against limits, by the intervals of what was measured.

    Args:
        subjects: Reports (.json) that `validate`, `bench` or `build` wrote, artifacts, and bundles, of which the first model that
            runs here is measured.
        config: Thresholds, the baseline, and how artifacts are measured.
        progress: Hears of every step of measuring.

    Returns:
        The verdict: pass, fail or inconclusive, with every limit, number and reason. See `proof.verdict.judge`. Numbers that
        prove nothing fail, whatever they are: of another artifact than the one that lies there now, of one whose ranges were set
        on random images, or taken on images that it was quantized with.

    Raises:
        UsageError: VD2010, no subject, or nothing to decide; as `validate` and `bench`.
        InputError: VD3001, VD3028, a report can't be read; VD3032, the baseline is of other images; as `open_model`,
            `validate` and `bench`.
        MachineError: As `validate` and `bench`.
    """
    if not subjects:
        raise UsageError("VD2010", "nothing to judge", fix="give a report or an artifact")
    config = config or GateConfig()
    if config.update_baseline and config.baseline is None:
        raise UsageError("VD2010", "there is no baseline to update", fix="give --baseline FILE, too")
    baseline = None if config.baseline is None or config.update_baseline else read_baseline(config.baseline)
    about = None if config.about is None else _identify(config.about)
    reports: list[Report] = []
    refusals: list[Gate] = []
    for path in subjects:
        if path.suffix == ".json":
            reports.append(read_report(path))
            refusals += _refuse_others(reports[-1], about)
        else:
            with open_model(path, next(iter(config.validate.backends), None)) as model:
                reports += _measure(model, config, progress)
    refusals += [refusal for report in reports for part in report.list_all() for refusal in _refuse_part(part)]
    if baseline is not None:
        assert config.baseline is not None
        asked = frozenset(config.thresholds.named if config.thresholds else ())
        compared = compare_with(baseline, reports, config.baseline, asked)
        refusals += compared.untold
    else:
        compared = None
    verdict = judge([*reports, *(compared.reports if compared else ())], config.thresholds, refusals)
    if not verdict.gates and not config.update_baseline:
        message = "nothing to decide: no report has a number that a threshold is about"
        raise UsageError("VD2010", message, fix="give a report of `vitdeploy validate` or `bench`, and thresholds for it")
    if config.update_baseline and config.baseline is not None and verdict.outcome != "fail":
        files.write(config.baseline, format_baseline(make_baseline(reports)))
    return verdict


def read_thresholds(path: Path) -> Thresholds:
    """Read a ``gate.toml``.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2007 not TOML; VD2002 unknown key; VD2003 not a number with its unit; VD2010, it asks for nothing.
    """
    thresholds = read_toml(path, Thresholds)
    if not thresholds.named and not thresholds.slice:
        raise UsageError("VD2010", "asks for nothing", file=path, fix=f"set one of {', '.join(RULES)}")
    return thresholds


def _measure(artifact: Artifact, config: GateConfig, progress: Progress) -> list[Report]:
    asked = config.thresholds or USUAL
    metrics = {RULES[name].metrics[0] for name in asked.named}
    reports = []
    if asked.slice or metrics - OF_BENCH:
        reports.append(validate(artifact, config.validate, progress=progress))
    if metrics & OF_BENCH:
        reports.append(bench([artifact], config.bench, progress=progress))
    return reports


def _identify(path: Path) -> Artifact:
    """The artifact, or the first model of a bundle that runs here, of which only the record is looked at."""
    with open_model(path) as model:
        return model


def _list_settings(report: Report) -> list[dict[str, Any]]:
    """Where a report says what it is about."""
    return [report.settings, *(row.settings for row in report.rows)]


def _refuse_part(report: Report) -> Iterator[Gate]:
    """Numbers that say nothing about deployment: of ranges that noise has set, or on images that the ranges know."""
    if RANDOM in [settings.get("calibration") for settings in _list_settings(report)]:
        yield _refuse(
            report.about, "calibration", "was calibrated on random images; quantize it with images like those of deployment"
        )
    if report.images is not None and report.images.calibrated:
        seen = f"{report.images.calibrated:,} of the {report.images.count:,} images"
        yield _refuse(report.about, "calibration", f"{seen} were seen when it was quantized; measure on others")


def _refuse_others(report: Report, about: Artifact | None) -> Iterator[Gate]:
    """A report of something else than what would be deployed: made again since, or another artifact altogether."""
    named: dict[str, str] = {}
    for part in report.list_all():
        for settings in _list_settings(part):
            if "id" in settings and "path" in settings:
                named[str(settings["id"])] = str(settings["path"])
    if about is not None and about.id not in named:
        yield _refuse(str(report.title), "report", f"is not about {about.folder} as it is now; measure that again")
    for made, path in named.items():
        try:
            there = Artifact.open(Path(path), verify=False).id if Path(path).exists() else made
        except VitdeployError:
            there = ""
        if there != made:
            yield _refuse(str(report.title), "report", f"is older than {path}, which changed since; measure it again")


def _refuse(about: str, name: str, why: str) -> Gate:
    return Gate(about=about, subject="", name=name, limit="", metric=None, outcome="fail", why=why)
