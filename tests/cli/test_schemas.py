"""JSON Schemas are those of what is really written: real outputs fit, and damaged ones do not."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vitdeploy import jsonfile
from vitdeploy.cli.commands import main
from vitdeploy.cli.schemas import SOURCES, make_schema
from vitdeploy.report import Metric, Report, Row

IMAGES = Path(__file__).parents[2] / "calibration" / "fashion-mnist"
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
KNOWN = {
    *("$schema", "$defs", "$ref", "title", "description", "default", "type", "enum", "const", "anyOf", "pattern"),
    *("properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "discriminator"),
}


def check(schema: dict, value: object, root: dict, path: str = "$") -> list[str]:
    """What is wrong with a value; a schema with a keyword that is not known here fails the test."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "$ref" in schema:
        return check(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root, path)
    wrong = []
    if "anyOf" in schema:
        tries = [check(each, value, root, path) for each in schema["anyOf"]]
        wrong += [] if [] in tries else min(tries, key=len)
    if "enum" in schema and value not in schema["enum"]:
        wrong.append(f"{path}: {value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        wrong.append(f"{path}: {value!r} is not {schema['const']!r}")
    if "type" in schema and not is_kind(value, schema["type"]):
        return [*wrong, f"{path}: {value!r} is no {schema['type']}"]
    if "pattern" in schema and not re.search(schema["pattern"], str(value)):
        wrong.append(f"{path}: {value!r} does not match")
    if isinstance(value, dict):
        wrong += check_table(schema, value, root, path)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        kinds = [*first, *[schema.get("items", {}) or {}] * (len(value) - len(first))]
        for number, (kind, item) in enumerate(zip(kinds, value, strict=False)):
            wrong += check(kind, item, root, f"{path}[{number}]")
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            wrong.append(f"{path}: {len(value)} items")
    return wrong


def check_table(schema: dict, value: dict, root: dict, path: str) -> list[str]:
    wrong = [f"{path}: lacks {key}" for key in schema.get("required", []) if key not in value]
    for key, item in value.items():
        kind = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
        wrong += [f"{path}: has {key}"] if kind is False else [] if kind is True else check(kind, item, root, f"{path}.{key}")
    return wrong


def is_kind(value: object, kind: str) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])


def find_faults(name: str, value: object) -> list[str]:
    schema = make_schema(name)
    return check({key: item for key, item in schema.items() if key != "$defs"}, value, schema)


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
