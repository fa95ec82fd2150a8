"""The demo model, its images, and how far a quantized form of it is from it."""

from __future__ import annotations

import functools
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import load
from vitdeploy.data import LoadConfig, images, open_dataset
from vitdeploy.measure.probabilities import divergence
from vitdeploy.recipe import ExportConfig, ModelConfig, QuantizeConfig
from vitdeploy.verbs.exporter import export

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "calibration/fashion-mnist"
LAYERS = [f"blocks.{block}.{name}/MatMul" for block in range(4) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def demo(folder: Path, **settings) -> Artifact:
    """The trained demo model, exported."""
    source, weights = (str(ROOT / "recipes" / f"fashion_mnist_vit.{end}") for end in ("toml", "safetensors"))
    return export(ModelConfig(source=source, weights=weights), ExportConfig(prove_batches=(1, 3), **settings), folder)


def config(**settings) -> QuantizeConfig:
    """INT8 from 128 calibration images, nothing measured."""
    given = {"calibration": str(IMAGES), "split": "calibration", "limit": 128, "threads": 1, "verify": False}
    return QuantizeConfig(**given | settings)


@functools.cache
def pixels(split: str, count: int) -> np.ndarray:
    """Images as the demo model takes them, float32 [n, 1, 28, 28]."""
    from vitdeploy.spec import read_spec

    contract = read_spec(ROOT / "recipes/fashion_mnist_vit.toml").input
    load = LoadConfig(batch_size=100, limit=count)
    with open_dataset(IMAGES, split=split).batches(contract, load) as batches:
        return np.concatenate([images.to_tensor(batch.pixels, contract) for batch in batches])


def logits(artifact: Artifact, engine: str = "onnxruntime", *, count: int = 2000) -> np.ndarray:
    """Of the evaluation images."""
    tensor = pixels("evaluation", 2000)[:count]
    with closing(load(engine).open(artifact, OpenConfig(threads=1))) as runner:
        size = runner.batch or 100
        parts = [run_any(runner, tensor[start : start + size]) for start in range(0, len(tensor), size)]
    return np.concatenate([part[artifact.spec.output] for part in parts])


def apart(reference: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Mean divergence in nats, and the share of images whose class is another."""
    return float(divergence(reference, found).mean()), float((reference.argmax(1) != found.argmax(1)).mean())


def edited(artifact: Artifact, folder: Path, change) -> Artifact:
    """A copy of the graph alone with changes: ``change(model)`` edits it in place."""
    model = onnx.load(artifact.model)
    change(model)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return Artifact(folder, Record(entry="model.onnx", spec=artifact.spec, made_by="test"))
