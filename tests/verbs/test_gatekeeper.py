"""Reports and artifacts before the gate."""

import base64
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from tests.conftest import shared_artifact
from vitdeploy import jsonfile
from vitdeploy.artifact import Artifact
from vitdeploy.cli.commands import main
from vitdeploy.data.identity import identify
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof.rules import SliceLimits, Thresholds
from vitdeploy.recipe import QuantizeConfig, ValidateConfig
from vitdeploy.record import Calibration, QuantizeProof
from vitdeploy.report import Metric, Report, Row
from vitdeploy.verbs import gatekeeper
from vitdeploy.verbs.gatekeeper import GateConfig, gate, read_thresholds
from vitdeploy.verbs.validator import validate


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


def name_gates(verdict) -> dict[str, str]:
    return {one.name: one.outcome for one in verdict.gates}


def test_a_bundle_is_judged_by_its_first_model_that_runs_here(shipment, photos, tmp_path) -> None:
    config = GateConfig(
        thresholds=Thresholds(min_cosine=0.9), validate=ValidateConfig(data=str(photos), limit=8, backends=("onnxruntime",))
    )
    verdict = gate([shipment.bundle], config)
    assert (verdict.outcome, {one.about for one in verdict.gates}) == ("pass", {"tiny"})
    run = write_report(tmp_path / "other.json", cosine_min=Metric(1.0))
    about = GateConfig(thresholds=Thresholds(min_cosine=0.9), about=shipment.bundle)
    refused = [one for one in gate([run], about).gates if one.outcome == "fail"]
    assert [one.name for one in refused] == ["report"]  # it is not about that bundle's model


def test_ranges_of_noise_are_refused(tiny_artifact, monkeypatch) -> None:
    record = msgspec.structs.replace(tiny_artifact.record, config=QuantizeConfig(calibration="random"))
    monkeypatch.setattr(Artifact, "open", lambda path, **_: Artifact(tiny_artifact.folder, record))
    verdict = gate([tiny_artifact.folder], GateConfig(validate=ValidateConfig(limit=200, backends=("onnxruntime",))))
    assert (verdict.outcome, verdict.passed) == ("fail", False)
    assert name_gates(verdict) == {"calibration": "fail", "parity": "pass", "min_agreement": "pass"}
    assert "random images" in verdict.gates[0].why


def test_a_report_says_itself_that_its_ranges_are_of_noise(tmp_path) -> None:
    """Of an engine that was compiled from such a file, and of a run elsewhere."""
    for place, settings in (("report", {"calibration": "random"}), ("row", {})):
        row = Row("engine", {"cosine_min": Metric(1.0)}, {} if settings else {"calibration": "random"})
        path = tmp_path / f"{place}.json"
        path.write_text(jsonfile.encode(Report(title="validate", rows=(row,), settings=settings)))
        verdict = gate([path], GateConfig(thresholds=Thresholds(min_cosine=0.5)))
        assert name_gates(verdict) == {"calibration": "fail", "min_cosine": "pass"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve classes with two images each."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(24):
        path = folder / f"class {number // 2:02d}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 24, 3), np.uint8)).save(path)
    return folder


def write_validation(artifact: Artifact, photos: Path, path: Path) -> Report:
    config = ValidateConfig(data=str(photos), backends=("onnxruntime",))
    report = validate(artifact, config)
    path.write_text(jsonfile.encode(report))
    return report


def test_images_that_the_ranges_know_are_refused(tiny_artifact, photos, tmp_path) -> None:
    """Told by what is stored of them, under another name and in another folder."""
    mine = [path.read_bytes() for path in sorted(photos.rglob("*.png"))][:5]
    seen = base64.b64encode(b"".join(map(identify, mine))).decode()
    proof = QuantizeProof(calibration=Calibration(source="photos", images=4, seen=seen))
    artifact = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, proof=proof))
    report = write_validation(artifact, photos, tmp_path / "run.json")
    assert "WARNING: 5 of the images were seen when the model was quantized" in report.notes
    verdict = gate([tmp_path / "run.json"], GateConfig(thresholds=Thresholds(min_cosine=0.5)))
    assert name_gates(verdict) == {"calibration": "fail", "parity": "pass", "min_cosine": "pass"}
    assert verdict.gates[0].why == "5 of the 24 images were seen when it was quantized; measure on others"


def test_a_report_of_another_artifact_is_refused(tiny_artifact, shelf, photos, tmp_path) -> None:
    """Made again since, where the artifact lies; or not the one that is asked for."""
    folder, path, other = tmp_path / "vit", tmp_path / "run.json", shared_artifact("bytes", shelf)
    shutil.copytree(tiny_artifact.folder, folder)
    write_validation(Artifact.open(folder), photos, path)
    config = GateConfig(thresholds=Thresholds(min_cosine=0.5))
    assert gate([path], config).passed
    assert gate([path], msgspec.structs.replace(config, about=tiny_artifact.folder)).passed  # the same bytes
    verdict = gate([path], msgspec.structs.replace(config, about=other.folder))
    assert (verdict.passed, name_gates(verdict)["report"]) == (False, "fail")
    assert "measure that again" in verdict.gates[0].why
    shutil.rmtree(folder)
    assert gate([path], config).passed  # measured elsewhere: nothing to compare with
    shutil.copytree(other.folder, folder)
    verdict = gate([path], config)
    assert (verdict.passed, name_gates(verdict)["report"]) == (False, "fail")
    assert f"is older than {folder}, which changed since" in verdict.gates[0].why


def test_a_baseline_is_written_and_compared_with(tiny_artifact, photos, tmp_path) -> None:
    path, baseline = tmp_path / "run.json", tmp_path / "gate.json"
    write_validation(tiny_artifact, photos, path)
    thresholds = Thresholds(max_drop="1 pt", inconclusive="pass")
    with pytest.raises(UsageError, match="no baseline to update"):
        gate([path], GateConfig(update_baseline=True))
    with pytest.raises(InputError, match="can't be read"):
        gate([path], GateConfig(baseline=baseline))
    gate([path], GateConfig(thresholds=thresholds, baseline=baseline, update_baseline=True))
    text = baseline.read_text()
    verdict = gate([path], GateConfig(thresholds=thresholds, baseline=baseline))
    assert [one.subject for one in verdict.gates if one.name == "max_drop"] == ["onnxruntime", "onnxruntime against the baseline"]
    strict = Thresholds(min_cosine=1.1)
    assert not gate([path], GateConfig(thresholds=strict, baseline=baseline, update_baseline=True)).passed
    assert baseline.read_text() == text  # what fails becomes nobody's baseline


def test_a_file_of_thresholds_is_read_strictly(tmp_path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text('max_drop = "1 pt"\ninconclusive = "pass"\n')
    assert read_thresholds(path) == Thresholds(max_drop="1 pt", inconclusive="pass")
    path.write_text('[slice.night]\ncolumn = "time"\nvalue = "night"\nmax_drop = "1 pt"\n')
    night = SliceLimits(column="time", value="night", max_drop="1 pt")
    assert read_thresholds(path) == Thresholds(slice={"night": night})
    assert read_thresholds(path).limits == {"slice.night.max_drop": "1 pt"}
    for text, message in (
        ('max_drp = "1 pt"', "line 1: unknown key 'max_drp'.*did you mean 'max_drop'"),
        ("max_drop = 1", "max_drop is 1.0; write it as '0.5 pt'"),
        ('inconclusive = "pass"', "asks for nothing; set one of max_drop"),
        ('[slice.night]\nmax_dorp = "1 pt"', "line 2: unknown key 'slice.night.max_dorp'.*did you mean 'max_drop'"),
        ('[slice.night]\ncolumn = "time"', "a slice asks for nothing; set one of max_drop"),
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
            (["-o", "v.pdf"], "use .json, .md, .html, or .xml for JUnit"),
            (["--max-drop", "half"], "write it as '0.5 pt'"),
            (["--config", str(tmp_path / "none.toml")], "can't be read"),
            (["--baseline", "gate.txt"], "name it gate.json"),
            (["--update-baseline"], "give --baseline FILE, too"),
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
