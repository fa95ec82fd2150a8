"""Forms for TensorRT: FP16 around 8-bit products, every Q where its kernels want one, and nothing they do not read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from tests.graph import vits
from tests.quant.fashion import apart, config, demo, edited, logits, pixels
from tests.quant.test_int8 import with_a_massive_token
from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import TENSORRT_FP8, TENSORRT_INT8, Heads
from vitdeploy.backends.targets import settle_target
from vitdeploy.errors import UsageError
from vitdeploy.graph import storage
from vitdeploy.quant import products
from vitdeploy.quant.equalize import SMALLEST_HALF
from vitdeploy.quant.preparation import Layout, prepare
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.verbs.quantizer import quantize

FORMS = ("int8", "int8 attention", "fp8", "fp8 attention")
KINDS = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
COUNT = 500


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("demo") / "fp32")


class Forms(dict[str, Artifact]):
    """The demo model in every form, each made when it is asked for."""

    def __init__(self, source: Artifact, folder: Path) -> None:
        self.source, self.folder = source, folder

    def __missing__(self, form: str) -> Artifact:
        self[form] = quantize(self.source, settings(form), self.folder / form.replace(" ", "-"))
        return self[form]


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return Forms(source, tmp_path_factory.mktemp("made"))


def settings(form: str, **more) -> QuantizeConfig:
    precision, *rest = form.split()
    return config(target="tensorrt", precision=precision, attention=bool(rest), **more)


def output(artifact) -> np.ndarray:
    """Logits by ONNX Runtime as the file is written: its fusions take 8-bit floats for integers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(artifact.model), options, providers=["CPUExecutionProvider"])
    tensor = pixels("evaluation", 2000)[:COUNT]
    return np.concatenate([session.run(None, {"pixels": tensor[at : at + 100]})[0] for at in range(0, COUNT, 100)])


class Graph:
    """A file's nodes and constants."""

    def __init__(self, artifact):
        self.model = onnx.load(artifact.model)
        self.nodes = self.model.graph.node
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {value: node for node in self.nodes for value in node.output}
        self.values = {value.name: value for value in (*self.model.graph.value_info, *self.model.graph.output)}

    def products(self, *, weights: bool) -> list[onnx.NodeProto]:
        """MatMuls with a constant weight inside the blocks, or of two activations."""
        found = []
        for node in self.nodes:
            if node.op_type == "MatMul" and node.name.startswith("blocks"):
                maker = self.makers.get(node.input[1])
                constant = node.input[1] in self.constants or (maker is not None and maker.input[0] in self.constants)
                found += [node] if constant == weights else []
        return found

    def restored(self, node: onnx.NodeProto) -> list[onnx.NodeProto | None]:
        """The DequantizeLinear of each factor, or None."""
        makers = [self.makers.get(value) for value in node.input]
        return [maker if maker is not None and maker.op_type == "DequantizeLinear" else None for maker in makers]


def scale(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    return numpy_helper.to_array(graph.constants[node.input[1]])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", FORMS)
def test_types_and_zero_points_are_those_that_tensorrt_reads(made, form):
    graph = Graph(made[form])
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero, steps = graph.constants[node.input[2]], scale(graph, node)
        assert zero.data_type == KINDS[form.split()[0]]
        assert not np.any(numpy_helper.to_array(zero).astype(np.float32))
        assert steps.dtype == np.float16, "a float32 step would put a Cast between it and the product"
        assert steps.min() >= SMALLEST_HALF
    for node in graph.products(weights=True):
        left, right = graph.restored(node)
        assert left is not None and right is not None
        assert scale(graph, left).ndim == 0
        assert scale(graph, right).ndim == (0 if form.startswith("fp8") else 1)
        assert graph.values[node.output[0]].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert len(graph.products(weights=True)) == 17
    done = made[form].record.proof
    assert not done.fp16.kept
    assert done.census == {}
    assert made[form].record.precision == form.split()[0]
    assert done.verdict == f"{form.split()[0].upper()}: not run here: no engine of the target 'tensorrt' is installed"
    onnx.checker.check_model(graph.model, full_check=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("form", FORMS)
def test_attention_has_all_of_its_places_or_none(made, form):
    """q, k, probabilities and v right before the products, the result as the projection's input; the class token's block none."""
    graph = Graph(made[form])
    quantized = [graph.restored(node) for node in graph.products(weights=False)]
    assert len(quantized) == 8
    count = 6 if form.endswith("attention") else 0
    assert [all(pair) for pair in quantized] == [True] * count + [False] * (8 - count)
    assert not any(any(pair) for pair in quantized[count:])
    for scores, context in zip(quantized[:count:2], quantized[1:count:2], strict=True):
        assert scores[0].input[0] != scores[1].input[0]
        probabilities = graph.makers[graph.makers[context[0].input[0]].input[0]]
        assert probabilities.op_type == "Softmax"
        assert scale(graph, context[0]) == np.float16(1 / (448 if form.startswith("fp8") else 127))
    notes = [note for note in made[form].record.proof.notes if "multiplications" not in note]
    assert [note for note in notes if "class token" in note] == notes
    assert len(notes) == bool(count)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("form", "limit"), [("int8", 6e-4), ("int8 attention", 2e-3), ("fp8", 1e-3), ("fp8 attention", 2e-3)])
def test_is_close_to_the_model(source, made, form, limit):
    loss, share = apart(logits(source, count=COUNT), output(made[form]))
    assert loss < limit
    assert share <= 0.01


@pytest.mark.slow
def test_the_statistics_serve_every_form(source, made, tmp_path):
    """FP8 and INT8 from one calibration."""
    quantize(source, settings("int8", save_statistics=str(tmp_path / "saved")), tmp_path / "int8")
    given = {"calibration": None, "split": None, "statistics": str(tmp_path / "saved"), "keep_fp32": ()}
    found = quantize(source, settings("fp8", **given), tmp_path / "fp8")
    sites = [[row.scale for row in each.record.proof.sites] for each in (found, made["fp8"])]
    assert sites[0] == sites[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int8 attention", "fp8 attention"])
def test_what_would_lose_too_much_stays_fp16(source, form, tmp_path):
    massive = edited(source, tmp_path / "source", with_a_massive_token)
    found = quantize(massive, settings(form, limit=32), tmp_path / "out")
    lanes = [list(row.layers) for row in found.record.proof.sites if row.lane]
    assert lanes == ([["blocks.1.mlp.fc2/MatMul"]] if form.startswith("int8") else [])  # floats bear what whole numbers do not
    graph = Graph(found)
    floating = [node.name for node in graph.products(weights=True) if not any(graph.restored(node))]
    assert [[name] for name in floating] == lanes
    assert sum("stays FP16, the median token" in note for note in found.record.proof.notes) == len(lanes)


@pytest.mark.slow
def test_without_its_result_attention_is_not_quantized(source, tmp_path):
    """A projection that stays FP16 leaves one of the five places empty."""
    found = quantize(source, settings("int8 attention", limit=32, lane_db=200.0), tmp_path / "out")
    graph = Graph(found)
    assert not [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert len(found.record.proof.notes) == 18  # the last is the share of what is in 8 bits


INT8 = Layout(symmetric=True, half=True, attention=True, heads=TENSORRT_INT8)
FP8 = Layout(symmetric=True, half=True, attention=True, floating=True, codes=448, heads=TENSORRT_FP8)


@pytest.fixture(scope="module")
def prepared(source):
    return prepare(storage.read(source.model), INT8).structure


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (TENSORRT_INT8._replace(most_tokens=49), "50 tokens, more than 49"),
        (TENSORRT_INT8._replace(sizes=(8, 64)), "heads have 32 channels, not 8 or 64"),
        (TENSORRT_FP8._replace(most_channels=16), "heads have 32 channels, not a multiple of 16 up to 16"),
        (Heads(multiple=64), "heads have 32 channels, not a multiple of 64"),
    ],
)
def test_attention_that_the_target_would_slow_down_is_refused(prepared, heads, reason):
    products.refuse(prepared, INT8)
    products.refuse(prepared, FP8)
    layout = replace(INT8, heads=heads)
    with pytest.raises(UsageError, match=rf"VD2011.*blocks\.0.*{reason}.*stays FP16"):
        products.refuse(prepared, layout)
    assert not any(products.chosen(each, layout) for each in prepared.attentions)
    products.refuse(prepared, replace(layout, half=False))  # floats beside it are FP32: whatever the heads


def test_the_longest_and_widest_attention_of_the_table_passes(prepared):
    products.refuse(prepared, replace(INT8, heads=TENSORRT_INT8._replace(most_tokens=50, sizes=(32,))))
    products.refuse(prepared, replace(FP8, heads=TENSORRT_FP8._replace(most_channels=32)))


@pytest.mark.parametrize("name", ["rotary-dinov3", "qk-norm", "attn-norm"])
def test_attention_with_something_between_layers_and_products_is_refused(name):
    structure = prepare(ir.from_proto(vits.quick(name)), INT8).structure
    with pytest.raises(UsageError, match=r"VD2011.*a norm or rotary positions"):
        products.refuse(structure, INT8)


def test_scores_that_are_scaled_outside_are_refused(prepared):
    first = prepared.attentions[0]
    scaled = replace(prepared, attentions=[replace(first, scale=(first.softmax,))])
    with pytest.raises(UsageError, match=r"VD2011.*query-scale"):
        products.refuse(scaled, INT8)


@pytest.mark.parametrize(
    "given",
    [
        {"precision": "fp8"},
        {"precision": "fp8", "target": "portable"},
        {"precision": "fp16", "target": "tensorrt", "attention": True},
        {"precision": "int8", "attention": True},
        {"precision": "int8", "target": "portable", "attention": True},
    ],
)
def test_what_no_target_reads_is_refused(given):
    with pytest.raises(UsageError, match="VD2011") as caught:
        settle_target(QuantizeConfig(calibration="images", **given))
    assert caught.value.fix


_BUILD = """
import sys, tensorrt_rtx as trt
log = trt.Logger(trt.Logger.Severity.ERROR)
for path in sys.argv[1:]:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(path), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile, given = builder.create_builder_config(), builder.create_optimization_profile(), network.get_input(0)
    profile.set_shape(given.name, *[(size, *tuple(given.shape)[1:]) for size in (1, 1, 8)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, path
print("built", len(sys.argv) - 1)
"""


@pytest.mark.slow
def test_nvidias_parser_and_builder_take_every_form(made):
    """TensorRT-RTX compiles without a GPU; it runs nothing here."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: nothing here parses a file as TensorRT does")
    command = [sys.executable, "-c", _BUILD, *(str(made[form].model) for form in FORMS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["built", "4"]
