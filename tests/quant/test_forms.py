"""Networks of people's own making through the whole line: nearly all in 8 bits, on both engines, and still the same function."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.quant.in_process import quantize
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.measure.parity import Parity
from vitdeploy.recipe import ExportConfig, ModelConfig, QuantizeConfig
from vitdeploy.verbs.exporter import export

ENGINES = ("onnxruntime", "openvino")
CODE = "from tests.graph import homemade\ndef make():\n    return homemade.build({name!r})\n"
CONTRACT = "height = 32\nwidth = 32\nresize = 'stretch'\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
SHARE = re.compile(r"([\d.]+) % of the linear layers' multiplications are in 8 bits")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of `tests.graph.homemade` as an artifact, each once."""
    folder, made = tmp_path_factory.mktemp("forms"), dict[str, Artifact]()
    (folder / "input.toml").write_text(CONTRACT)

    def make(name: str) -> Artifact:
        if name not in made:
            (folder / f"{name}.py").write_text(CODE.format(name=name))
            model = ModelConfig(source=f"{folder / name}.py:make", module=True, contract=str(folder / "input.toml"))
            made[name] = export(model, ExportConfig(prove_batches=(1, 2)), folder / name)
        return made[name]

    return make


@pytest.fixture(scope="module")
def photos(exported, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(synthetic.pixels(40, exported("probabilities").spec.input, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def logits(artifact: Artifact, engine: str) -> np.ndarray:
    """Of 64 images that calibration has not seen."""
    contract = artifact.spec.input
    tensor = images.to_tensor(synthetic.pixels(64, contract, seed=9), contract)
    with closing(load(engine).open(artifact, OpenConfig(threads=1))) as runner:
        return run_any(runner, tensor)[artifact.spec.output]


def noise_db(source: Artifact, made: Artifact, engine: str) -> float:
    parity = Parity("regression")
    parity.add(logits(source, "onnxruntime"), logits(made, engine))
    return parity.metrics()["sqnr"].value


def read_share(made: Artifact) -> float:
    """Percent of the multiplications in 8 bits, as the record says it."""
    said = [found for note in made.record.proof.notes if (found := SHARE.search(note))]
    assert len(said) == 1
    return float(said[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["probabilities", "encoder"])
def test_attention_as_torch_writes_it(name, engine, exported, photos, tmp_path) -> None:
    source = exported(name)
    made = quantize(source, QuantizeConfig(calibration=str(photos), target=engine, threads=1, verify=False), tmp_path / "made")
    proof = made.record.proof
    assert proof.rewrites["class-token"] and proof.rewrites["rotation"] == 4 and proof.rewrites["heads"] == 2
    assert proof.census[engine].missing == ()
    assert read_share(made) > 97
    assert noise_db(source, made, engine) > 25
