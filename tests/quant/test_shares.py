"""The share of the multiplications in 8 bits: counted by hand, and for networks of people's own making through the whole line."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from tests.quant.in_process import quantize
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.measure.parity import Parity
from vitdeploy.quant.shares import describe_share
from vitdeploy.recipe import CompileConfig, ExportConfig, ModelConfig, QuantizeConfig
from vitdeploy.verbs.compiler import compile as compile_artifact
from vitdeploy.verbs.exporter import export

GRAPH = """<ir_version: 8, opset_import: ["": 20]>
agraph (float[n, 10, 8] x) => (float[n, 4] y) <float[8, 8] A, int8[8, 24] B, float[24] S, float[8, 4] C> {
    a = MatMul(x, A)
    w = DequantizeLinear<axis = 1>(B, S)
    b = MatMul(a, w)
    p, q, r = Split<axis = -1, num_outputs = 3>(b)
    scores = MatMul(p, A)
    m = ReduceMean<keepdims = 0>(r, axes)
    y = MatMul(m, C)
}"""


def build() -> ir.Model:
    text = GRAPH.replace("<float[8, 8] A, int8[8, 24] B, float[24] S, float[8, 4] C>", "")
    proto = onnx.parser.parse_model(text)
    arrays = {"A": np.ones((8, 8), np.float32), "B": np.ones((8, 24), np.int8), "S": np.ones(24, np.float32)}
    arrays |= {"C": np.ones((8, 4), np.float32), "axes": np.array([1])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    proto = onnx.shape_inference.infer_shapes(proto)
    model = ir.from_proto(proto)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize(
    ("in_8_bits", "said"),
    [
        ({"a", "b", "scores", "y"}, "100.0 % of the linear layers' multiplications are in 8 bits"),
        ({"a", "b", "scores"}, "99.0 % of the linear layers' multiplications are in 8 bits; in float: y (1.0 %)"),
        ({"b"}, "59.4 % of the linear layers' multiplications are in 8 bits; in float: a (19.8 %), scores (19.8 %), y (1.0 %)"),
    ],
)
def test_layers_in_float_are_named_with_their_share(in_8_bits, said) -> None:
    """640, 1,920, 640 and 32 multiplications."""
    assert describe_share(build().graph, in_8_bits) == said


def test_a_small_layer_is_counted_and_not_named(monkeypatch) -> None:
    monkeypatch.setattr("vitdeploy.quant.shares._LEAST", 0.02)
    said = "99.0 % of the linear layers' multiplications are in 8 bits"
    assert describe_share(build().graph, {"a", "b", "scores"}) == said


def test_many_layers_are_cut_short(monkeypatch) -> None:
    monkeypatch.setattr("vitdeploy.quant.shares._MOST_NAMES", 2)
    assert describe_share(build().graph, set()).endswith("in float: b (59.4 %), a (19.8 %) and 2 more")


def test_a_graph_without_layers_has_nothing_to_say() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {y = Relu(x)}')
    )
    assert describe_share(model.graph, set()) == ""


ENGINES = ("onnxruntime", "openvino")
CODE = """
from tests.graph import foreign, homemade

def make():
    if {name!r} == "windows":
        options = dict(depths=(2, 2), embed_dim=32, num_heads=(2, 4), window_size=4)
        return foreign.windowed("swin_tiny_patch4_window7_224", options)
    return homemade.build({name!r})
"""
CONTRACT = "height = {side}\nwidth = {side}\nresize = 'stretch'\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
SHARE = re.compile(r"([\d.]+) % of the linear layers' multiplications are in 8 bits")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network of `tests.graph.homemade` as an artifact, each once."""
    folder, made = tmp_path_factory.mktemp("forms"), dict[str, Artifact]()

    def make(name: str) -> Artifact:
        if name not in made:
            (folder / f"{name}.py").write_text(CODE.format(name=name))
            (folder / "input.toml").write_text(CONTRACT.format(side=64 if name == "windows" else 32))
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


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["conv-values", "conv-local", "windows"])
def test_convolutions_of_one_pixel_and_attention_in_windows(name, engine, exported, photos, tmp_path) -> None:
    """Every product runs in 8 bits, and the answers stay those of the original: by noise, by class, by divergence."""
    source = exported(name)
    made = quantize(source, QuantizeConfig(calibration=str(photos), target=engine, threads=1, verify=False), tmp_path / "made")
    proof = made.record.proof
    assert proof.census[engine].missing == ()
    assert read_share(made) > (99 if name == "windows" else 94)  # a map that is pooled is turned back once, in float
    assert proof.rewrites["head-rotation"] == (4 if name == "windows" else 2)
    assert noise_db(source, made, engine) > 25
    expected, given = logits(source, "onnxruntime"), logits(made, engine)
    assert (expected.argmax(1) == given.argmax(1)).mean() > 0.95
    one, two = (each - np.log(np.exp(each).sum(1, keepdims=True)) for each in (expected, given))
    assert (np.exp(one) * (one - two)).sum(1).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv-local", "windows"])
def test_their_half_precision_is_the_same_function(name, exported, photos, tmp_path) -> None:
    source = exported(name)
    made = quantize(source, QuantizeConfig(calibration=str(photos), precision="fp16", threads=1, verify=False), tmp_path / "half")
    assert noise_db(source, made, "onnxruntime") > 40
    engine = compile_artifact(made, CompileConfig(backend="openvino", threads=1), tmp_path / "compiled")
    assert noise_db(source, engine, "openvino") > 40


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_decoder_that_looks_at_its_encoder(engine, exported, photos, tmp_path) -> None:
    source = exported("decoder")
    made = quantize(source, QuantizeConfig(calibration=str(photos), target=engine, threads=1, verify=False), tmp_path / "made")
    assert made.record.proof.census[engine].missing == ()
    assert read_share(made) > 90
    assert noise_db(source, made, engine) > 20
