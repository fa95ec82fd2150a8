"""JSON Schemas are those of what is really written: real outputs fit, and damaged ones do not."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from vitdeploy import jsonfile
from vitdeploy.cli.commands import main
from vitdeploy.cli.schemas import SOURCES, make_schema
from vitdeploy.report import Metric, Report, Row

IMAGES = Path(__file__).parents[2] / "calibration" / "fashion-mnist"


def find_faults(name: str, value: object) -> list[str]:
    """What the reference implementation of JSON Schema has against a value."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(make_schema(name)).iter_errors(value)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What real commands write, by schema: from the demo's weights to a gate with a baseline."""
    folder = tmp_path_factory.mktemp("outputs")
    Image.new("L", (28, 28), 90).save(folder / "grey.png")
    source, weights = (str(IMAGES.parents[1] / "recipes" / f"fashion_mnist_vit.{end}") for end in ("toml", "safetensors"))
    vit, data = str(folder / "vit"), ["--data", str(IMAGES), "--split", "evaluation", "--limit", "40", "--backend", "onnxruntime"]
    commands = {
        "made": ["export", source, "--weights", weights, "-o", vit],
        "report": ["validate", vit, *data, "-o", str(folder / "report.json")],
        "verdict": ["gate", str(folder / "report.json"), "--baseline", str(folder / "base.json"), "--update-baseline"],
        "inspection": ["inspect", vit],
        "predictions": ["predict", vit, str(folder / "grey.png"), "--backend", "onnxruntime"],
        "checkup": ["doctor", "--backend", "onnxruntime"],
        "models": ["models", "dinov2"],
        "codes": ["explain"],
        "error": ["inspect", str(folder / "nothing")],
    }
    return folder, commands


def run(command: list[str], capsys) -> dict:
    main([*command, "--json", "-q"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_real_outputs_fit(outputs, capsys) -> None:
    folder, commands = outputs
    for name, command in commands.items():
        written = run(command, capsys)
        assert find_faults(name, written) == [], name
        damaged = copy.deepcopy(written)
        damaged.pop(next(key for key in damaged if key != "schema_version"))
        assert find_faults(name, damaged) != [] or name == "inspection", name
    for name, path in (("artifact", "vit/artifact.json"), ("baseline", "base.json"), ("report", "report.json")):
        assert find_faults(name, json.loads((folder / path).read_text())) == []


@pytest.mark.parametrize("name", SOURCES)
def test_every_schema_is_made_and_understood(name) -> None:
    schema = make_schema(name)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["description"].startswith("Written by ")
    Draft202012Validator.check_schema(schema)
    assert find_faults(name, "nonsense") != []
    json.dumps(schema, allow_nan=False)


def test_numbers_may_be_nan() -> None:
    report = Report(title="validate", rows=(Row("a", {"sqnr": Metric(float("nan"), "dB", float("-inf"), 1.0)}),))
    written = json.loads(jsonfile.encode(report))
    assert find_faults("report", written) == []
    written["rows"][0]["metrics"]["sqnr"]["value"] = "many"
    assert find_faults("report", written) != []


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "records").glob("*.json")), ids=lambda path: path.stem)
def test_old_records_are_read_into_what_the_schema_says(path) -> None:
    from vitdeploy.artifact import read_record

    assert find_faults("artifact", json.loads(jsonfile.encode(read_record(path)))) == []


def test_the_command_lists_and_prints_them(capsys) -> None:
    assert main(["schema", "-q"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SOURCES)
    assert main(["schema", "verdict", "-q"]) == 0
    assert json.loads(capsys.readouterr().out) == make_schema("verdict")
    assert main(["schema", "verdct"]) == 2
    assert "did you mean 'verdict'?" in capsys.readouterr().err
