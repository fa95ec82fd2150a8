"""The bill of materials is CycloneDX, by its own schema."""

import json

import msgspec
import pytest

from vitdeploy.bundle.bom import write_bom
from vitdeploy.bundle.bundle import BOM, open_bundle


def test_it_is_valid_and_names_every_form_with_its_digest(shipment):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema", reason="cyclonedx-python-lib is not installed")
    with open_bundle(shipment.bundle) as bundle:
        text = bundle.read(BOM, 1 << 20).decode()
        models = bundle.manifest.models
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    component = json.loads(text)["metadata"]["component"]
    assert (component["name"], component["version"]) == ("tiny", "2.1")
    assert component["licenses"] == [{"expression": "Apache-2.0"}]
    assert [each["hashes"][0]["content"] for each in component["components"]] == [model.id for model in models]
    assert all("quantitativeAnalysis" in each["modelCard"] for each in component["components"])


@pytest.mark.parametrize(
    ("problem", "task"),
    [
        ("single_label", "image-classification"),
        ("multi_label", "multi-label-image-classification"),
        ("regression", "image-regression"),
    ],
)
def test_every_task_has_a_name(problem, task, shipment, tiny_spec):
    spec = msgspec.structs.replace(tiny_spec, problem=problem)
    manifest = shipment.packed.manifest
    content = write_bom(name="a", version="1", licence="", spec=spec, models=manifest.models, source=manifest.source)
    card = json.loads(content)["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["task"] == task
