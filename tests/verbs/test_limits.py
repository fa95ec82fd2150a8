"""What a validation asks for, and what becomes of a model that is another function."""

import json
import math

import pytest

from vitdeploy import jsonfile
from vitdeploy.cli.commands import main
from vitdeploy.errors import UsageError
from vitdeploy.recipe import ValidateConfig
from vitdeploy.report import Metric, Report, Row, read_report
from vitdeploy.verbs import validator
from vitdeploy.verbs.limits import choose_thresholds, judge_validation


def make_report(**metrics: Metric) -> Report:
    return Report(title="validate", reference="pytorch", rows=(Row("pytorch", {}), Row("engine", metrics)))


def test_what_is_asked_is_judged() -> None:
    report = make_report(top1_difference=Metric(-1.0, "points", -1.4, -0.6), top1_agreement=Metric(0.99, "share", 0.985, 0.995))
    assert judge_validation(report, ValidateConfig()).verdict is None
    assert judge_validation(report, ValidateConfig()).passed
    verdict = judge_validation(report, ValidateConfig(max_drop="0.5 pt", min_agreement="98 %")).verdict
    assert [(gate.name, gate.outcome) for gate in verdict.gates] == [("max_drop", "fail"), ("min_agreement", "pass")]
    judged = judge_validation(report, ValidateConfig(max_drop="0.5 pt"))
    assert not judged.passed
    assert not Report(title="build", parts=(judged,)).passed
    assert judge_validation(judged, ValidateConfig()).passed


@pytest.mark.parametrize(
    ("value", "low", "high", "outcome"),
    [
        (0.0, -2.0, 2.0, "pass"),
        (-0.5, -2.0, 2.0, "pass"),
        (-0.6, -2.0, 2.0, "fail"),
        (-0.6, -0.7, -0.55, "fail"),
        (-0.4, -0.45, 0.0, "pass"),
        (math.nan, None, None, "fail"),
    ],
)
def test_the_estimate_decides_where_the_interval_can_not(value, low, high, outcome) -> None:
    report = make_report(top1_difference=Metric(value, "points", low, high), images=Metric(100, "count"))
    verdict = judge_validation(report, ValidateConfig(max_drop="0.5 pt")).verdict
    assert (verdict.outcome, verdict.passed) == (outcome, outcome == "pass")


def test_accuracy_that_was_asked_for_and_not_measured_fails() -> None:
    (gate,) = judge_validation(make_report(), ValidateConfig(max_drop="0.5 pt")).verdict.gates
    assert (gate.outcome, "labelled images (--data)" in gate.why) == ("fail", True)


def test_a_limit_without_its_unit_costs_no_minutes(tiny_artifact, monkeypatch) -> None:
    monkeypatch.setattr(validator, "open_in_child", None)
    for config in (ValidateConfig(max_drop="0.5"), ValidateConfig(min_agreement="high")):
        with pytest.raises(UsageError, match="write it as"):
            choose_thresholds(config)
        with pytest.raises(UsageError, match="write it as"):
            validator.validate(tiny_artifact, config)


class TestCommand:
    """A model that is not the function that it was made from ends with 1, whoever asks."""

    def run(self, artifact, capsys, *options: str) -> tuple[int, str, dict]:
        command = ["validate", str(artifact.folder), "--limit", "16", "--backend", "onnxruntime", *options]
        status = main(command)
        text = capsys.readouterr().out
        assert main([*command, "--json"]) == status
        return status, text, json.loads(capsys.readouterr().out)

    @pytest.mark.parametrize(("factor", "status", "outcome"), [(1.0, 0, "pass"), (1.01, 1, "fail")])
    def test_parity_of_an_fp32_file(self, tiny_artifact, monkeypatch, capsys, factor, status, outcome) -> None:
        run = validator.run_main

        def spoil(runner, tensor, spec):
            return run(runner, tensor, spec) * (1.0 if runner.settings["backend"] == "pytorch" else factor)

        monkeypatch.setattr(validator, "run_main", spoil)
        ended, text, record = self.run(tiny_artifact, capsys)
        assert ended == status
        assert f"verdict: {outcome} (parity 60 dB)" in text
        assert record["verdict"]["outcome"] == outcome
        assert ("is not the same: misses the limit" in text) == (status == 1)

    def test_where_the_interval_can_not_tell_the_estimate_decides(self, tiny_artifact, capsys) -> None:
        ended, text, _ = self.run(tiny_artifact, capsys, "--min-agreement", "99 %")
        assert ended == 0
        assert "min_agreement 99 %: pass at 100.0" in text and "the estimate keeps it" in text
        assert "images would decide at this estimate" in text


def test_a_report_and_its_verdict_are_read_back(tmp_path) -> None:
    report = judge_validation(make_report(top1_difference=Metric(-1.0, "points", -2.0, 0.0)), ValidateConfig(max_drop="1 pt"))
    (tmp_path / "report.json").write_text(jsonfile.encode(report))
    assert read_report(tmp_path / "report.json") == report
