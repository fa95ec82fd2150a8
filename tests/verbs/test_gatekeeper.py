"""Reports and artifacts before the gate."""

import json
from pathlib import Path

import msgspec
import pytest

from vitdeploy import jsonfile
from vitdeploy.artifact import Artifact
from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof.verdict import Thresholds
from vitdeploy.recipe import QuantizeConfig, ValidateConfig
from vitdeploy.report import Metric, Report, Row
from vitdeploy.verbs import gatekeeper
from vitdeploy.verbs.gatekeeper import GateConfig, gate, read_thresholds


def write_report(path: Path, name: str = "vit", **metrics: Metric) -> Path:
    rows = (Row("pytorch", {}), Row("engine", metrics))
    path.write_text(jsonfile.encode(Report(title="validate", reference="pytorch", rows=rows, settings={"artifact": name})))
    return path


def test_a_report_is_judged_as_it_is(tmp_path) -> None:
    good = write_report(tmp_path / "good.json", cosine_min=Metric(0.999))
    bad = write_report(tmp_path / "bad.json", cosine_min=Metric(float("nan")))
    config = GateConfig(thresholds=Thresholds(min_cosine=0.99))
    assert gate([good], config).outcome == "pass"
    verdict = gate([good, bad], config)
    assert [one.outcome for one in verdict.gates] == ["pass", "fail"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"title": 1}', "[" * 5000])
def test_what_is_no_report_is_said(tmp_path, text) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="is no report") as raised:
        gate([path])
    assert (raised.value.code, raised.value.file) == ("VD3028", str(path))
    with pytest.raises(InputError, match="can't be read"):
        gate([tmp_path / "none.json"])
    with pytest.raises(UsageError, match="nothing to judge"):
        gate([])


def test_a_report_without_any_number_that_counts_is_no_pass(tmp_path) -> None:
    with pytest.raises(UsageError, match="nothing to decide"):
        gate([write_report(tmp_path / "empty.json")])


def test_an_artifact_is_measured_by_what_is_asked(tiny_artifact, monkeypatch) -> None:
    calls = []
    for name in ("validate", "bench"):
        metrics = {"validate": {"cosine_min": Metric(1.0)}, "bench": {"speedup": Metric(3.0, "ratio", 2.9, 3.1)}}[name]
        report = Report(title=name, rows=(Row("engine", metrics),))
        monkeypatch.setattr(gatekeeper, name, lambda *_, name=name, report=report, **__: calls.append(name) or report)
    asked = {"min_cosine": Thresholds(min_cosine=0.9), "min_speedup": Thresholds(min_speedup=2.0)}
    asked["both"] = Thresholds(min_cosine=0.9, min_speedup=2.0)
    seen = {}
    for name, thresholds in asked.items():
        calls.clear()
        assert gate([tiny_artifact.folder], GateConfig(thresholds=thresholds)).passed
        seen[name] = list(calls)
    assert seen == {"min_cosine": ["validate"], "min_speedup": ["bench"], "both": ["validate", "bench"]}


def test_an_export_passes_the_usual_gate(tiny_artifact) -> None:
    verdict = gate([tiny_artifact.folder], GateConfig(validate=ValidateConfig(limit=200, backends=("onnxruntime",))))
    assert (verdict.outcome, [one.name for one in verdict.gates]) == ("pass", ["parity", "min_agreement"])


def test_ranges_of_noise_are_refused(tiny_artifact, monkeypatch, tmp_path) -> None:
    record = msgspec.structs.replace(tiny_artifact.record, config=QuantizeConfig(calibration="random"))
    monkeypatch.setattr(Artifact, "open", lambda path: Artifact(tiny_artifact.folder, record))
    verdict = gate([tiny_artifact.folder], GateConfig(validate=ValidateConfig(limit=200, backends=("onnxruntime",))))
    assert (verdict.outcome, verdict.passed) == ("fail", False)
    assert [(one.name, one.outcome) for one in verdict.gates] == [
        ("calibration", "fail"),
        ("parity", "pass"),
        ("min_agreement", "pass"),
    ]
    assert "random images" in verdict.gates[0].why


def test_a_file_of_thresholds_is_read_strictly(tmp_path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text('max_drop = "1 pt"\ninconclusive = "pass"\n')
    assert read_thresholds(path) == Thresholds(max_drop="1 pt", inconclusive="pass")
    for text, message in (
        ('max_drp = "1 pt"', "line 1: unknown key 'max_drp'.*did you mean 'max_drop'"),
        ("max_drop = 1", "max_drop is 1.0; write it as '0.5 pt'"),
        ('inconclusive = "pass"', "asks for nothing; set one of max_drop"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message) as raised:
            read_thresholds(path)
        assert raised.value.file == str(path)


class TestCommand:
    def test_exit_status_and_files(self, tmp_path, capsys) -> None:
        report = write_report(tmp_path / "run.json", cosine_min=Metric(0.95))
        config = tmp_path / "gate.toml"
        config.write_text("min_cosine = 0.9\n")
        outs = [part for suffix in ("json", "md", "xml") for part in ("-o", str(tmp_path / f"v.{suffix}"))]
        assert main(["gate", str(report), "--config", str(config), *outs]) == 0
        assert "min_cosine 0.9" in capsys.readouterr().out
        assert json.loads((tmp_path / "v.json").read_text())["outcome"] == "pass"
        assert (tmp_path / "v.md").read_text().startswith("# Gate: pass")
        assert 'failures="0"' in (tmp_path / "v.xml").read_text()
        config.write_text("min_cosine = 0.96\n")
        assert main(["gate", str(report), "--config", str(config)]) == 1

    def test_options_stand_before_the_file(self, tmp_path) -> None:
        report = write_report(tmp_path / "run.json", top1_agreement=Metric(0.97, "share", 0.96, 0.98))
        config = tmp_path / "gate.toml"
        config.write_text('min_agreement = "99 %"\n')
        command = ["gate", str(report), "--config", str(config)]
        assert main(command) == 1
        assert main([*command, "--min-agreement", "95 %"]) == 0

    def test_bad_requests_end_before_any_work(self, tmp_path, capsys) -> None:
        report = write_report(tmp_path / "run.json", cosine_min=Metric(0.95))
        for extra, message in (
            (["-o", "v.html"], "use .json, .md, or .xml for JUnit"),
            (["--max-drop", "half"], "write it as '0.5 pt'"),
            (["--config", str(tmp_path / "none.toml")], "can't be read"),
        ):
            assert main(["gate", str(report), *extra]) in (2, 3)
            assert message in capsys.readouterr().err

    def test_on_github_the_summary_comes_along(self, tmp_path, capsys, monkeypatch) -> None:
        summary = tmp_path / "summary.md"
        summary.write_text("before\n")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
        report = write_report(tmp_path / "run.json", name="100%\n::error::x", top1_agreement=Metric(0.9, "share", 0.88, 0.92))
        assert main(["gate", str(report), "--output-format", "github"]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(
            "::error title=vitdeploy gate::100%25\\n::error::x, engine: min_agreement 98 %25: fail at 90.0 %25"
        )
        assert summary.read_text().startswith("before\n# Gate: fail\n")
