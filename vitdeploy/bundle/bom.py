"""The bill of materials of a bundle, in CycloneDX: what it is made of, where that came from, what was measured of it.

Source: CycloneDX 1.6, JSON; component type ``machine-learning-model`` with a model card.
"""

from __future__ import annotations

import json

from vitdeploy.bundle.manifest import PackedModel, Source
from vitdeploy.spec import ModelSpec

_TASKS = {
    "single_label": "image-classification",
    "multi_label": "multi-label-image-classification",
    "regression": "image-regression",
    "embedding": "image-feature-extraction",
}


def write_bom(  # noqa: PLR0913 (what it is made of)
    *, name: str, version: str, licence: str, spec: ModelSpec, models: tuple[PackedModel, ...], source: Source
) -> bytes:
    """The bill of materials as JSON: the same bytes for the same bundle.

    Args:
        name: Of the bundle.
        version: Of the bundle.
        licence: Of the weights, as SPDX writes it; "" when nobody said.
        spec: The network and its input.
        models: Its forms.
        source: Where its weights came from.
    """
    component: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": name,
        "name": name,
        "version": version,
        "modelCard": {"modelParameters": _describe(spec)},
        "components": [_list_model(name, model) for model in models],
    }
    if licence:
        component["licenses"] = [{"expression": licence}]
    checkpoints = [
        {
            "type": "file",
            "bom-ref": f"{name}:source/{number}",
            "name": file.rpartition("/")[2] or file,
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }
        for number, (file, digest) in enumerate(sorted(source.files.items()))
    ]
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component},
        "components": checkpoints,
        "dependencies": [{"ref": name, "dependsOn": [each["bom-ref"] for each in checkpoints]}],
    }
    return json.dumps(bom, indent=1, sort_keys=True).encode() + b"\n"


def _describe(spec: ModelSpec) -> dict[str, object]:
    contract = spec.input
    return {
        "task": _TASKS[spec.task],
        "architectureFamily": "vision transformer",
        "modelArchitecture": spec.name,
        "inputs": [{"format": f"image, {contract.height} x {contract.width} pixels, {contract.channels} channels"}],
        "outputs": [{"format": f"float32, {spec.output_size} numbers"}],
    }


def _list_model(name: str, model: PackedModel) -> dict[str, object]:
    """One form of the model, with what was measured of it."""
    component: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": f"{name}:{model.folder}",
        "name": model.folder,
        "description": f"{model.precision}, for {model.engine or 'any engine'}",
        "hashes": [{"alg": "SHA-256", "content": model.id}],
    }
    if model.original is not None:
        measured = {"type": "distance of the outputs from the original's", "value": f"{model.original:.6g}"}
        component["modelCard"] = {"quantitativeAnalysis": {"performanceMetrics": [measured]}}
    return component
