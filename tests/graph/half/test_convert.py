"""FP16 that cannot overflow: strongly typed, few Casts, and FP32 where FP16 would lose the result."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from tests.checkpoints.cases import CASES, shaken
from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph.half.convert import LIMIT, HalfResult, to_half
from vitdeploy.graph.half.forms import LARGEST, measure_loss
from vitdeploy.graph.half.keep import ISLANDS
from vitdeploy.graph.half.ranges import choose_tensors, tap
from vitdeploy.recipe import ExportConfig
from vitdeploy.verbs.exporter import trace

FLOATS = ("tensor(float)", "tensor(float16)")


def to_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(data))


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In ONNX Runtime, which computes in FP32 where it has no FP16 kernel."""
    session = onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_in_half(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Operator by operator in the types of the file, sums of norms included: the worst engine that may exist."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def ranges_of(model: ir.Model, *batches: Mapping[str, np.ndarray]) -> dict[str, float]:
    taps, found = tap(model), Counter[str]()
    for feeds in batches:
        for name, number in run(taps.model, feeds).items():
            if name in taps.outputs:
                assert number.shape == () and number.dtype == np.float32
                found[taps.outputs[name]] = max(found[taps.outputs[name]], float(number))
    return dict(found)


def check(model: ir.Model, result: HalfResult) -> None:
    """Strongly typed by every schema, no Cast too many, and as the result says."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    types |= {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    half = 0
    for node in proto.graph.node:
        if node.domain not in opsets or not onnx.defs.has(node.op_type, node.domain):
            assert all(types.get(name) != onnx.TensorProto.FLOAT16 for name in (*node.input, *node.output))
            continue
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
        bound: dict[str, int] = {}
        for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for place, name in enumerate(names):
                if not name or node.op_type in ("If", "Loop"):
                    continue
                parameter = formals[min(place, len(formals) - 1)].type_str
                assert bound.setdefault(parameter, types[name]) == types[name], (node.name, parameter)
        half += onnx.TensorProto.FLOAT16 in bound.values()
        if node.name in result.kept and node.op_type != "Cast":
            assert onnx.TensorProto.FLOAT16 not in bound.values(), node.name
    made = {output: node for node in proto.graph.node for output in node.output}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    targets = [(node.input[0], node.attribute[0].i) for node in casts]
    assert len(targets) == len(set(targets)), "two Casts of one tensor to one type"
    assert not [node.name for node in casts if node.input[0] in made and made[node.input[0]].op_type == "Cast"], "back to back"
    assert abs(half - result.half - result.casts) <= len(casts) - result.casts  # a Cast to integers may read either type
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)
    assert msgspec.json.decode(msgspec.json.encode(result), type=HalfResult) == result


def close(found: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], name: str) -> None:
    assert found[name].dtype == truth[name].dtype == np.float32
    assert np.isfinite(found[name]).all()
    assert truth[name].std() > 1e-3
    assert np.abs(found[name] - truth[name]).max() <= 1e-2 * truth[name].std()


@lru_cache
def exported(name: str) -> bytes:
    spec = CASES[name]
    return to_bytes(trace(shaken(spec), spec, ExportConfig()))


def chosen(model: ir.Model) -> list[str]:
    return [str(value.name) for value in choose_tensors(model)]


def feeds_of(model: ir.Model, seed: int = 0, batch: int = 3) -> dict[str, np.ndarray]:
    (pixels,) = model.graph.inputs
    assert pixels.shape is not None
    shape = (batch, *(int(size) for size in list(pixels.shape)[1:]))
    random = np.random.default_rng(seed)
    if pixels.dtype == ir.DataType.UINT8:
        return {str(pixels.name): random.integers(0, 256, shape, np.uint8)}
    return {str(pixels.name): random.standard_normal(shape).astype(np.float32)}


@pytest.fixture(scope="module")
def tiny(tiny_artifact) -> bytes:
    return tiny_artifact.model.read_bytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["like-eva02", "like-siglip"])
def test_half_computes_the_same(name: str) -> None:
    model = from_bytes(exported(name))
    feeds = feeds_of(model)
    truth, ranges = run(model, feeds), ranges_of(model, feeds)
    result = to_half(model, ranges=ranges)
    check(model, result)
    assert not result.kept and not result.overflow and result.unranged == 0
    assert result.casts == 2, "one at the input, one at the output"
    (output,) = truth
    close(run(model, feeds), truth, output)
    close(run_in_half(model, feeds), truth, output)


def test_a_graph_of_bytes_keeps_its_interface(tiny_bytes) -> None:
    model = ir.load(tiny_bytes.model)
    feeds, before = feeds_of(model), [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)]
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    assert [(value.name, value.dtype) for value in (*model.graph.inputs, *model.graph.outputs)] == before
    assert result.casts == 2, "logits and probabilities; bytes become FP16 in the Cast that was there"
    found = run(model, feeds)
    close(found, truth, "logits")
    assert (found["top_k_indices"] == truth["top_k_indices"]).mean() > 0.9


KEPT = {
    "layernorm": {"blocks.0.norm1/LayerNormalization", "blocks.1.norm2/LayerNormalization", "norm/LayerNormalization"},
    "softmax": {"blocks.0.attn/Softmax", "blocks.1.attn/Softmax"},
    "attention": {"blocks.0.attn/MatMul", "blocks.0.attn/Softmax", "blocks.0.attn/MatMul_1"},
    "gelu": {"blocks.0.mlp/Gelu", "blocks.1.mlp/Gelu"},
    "residual": {"blocks.0/Add", "blocks.0/Add_1", "blocks.1/Add", "blocks.1/Add_1"},
    "embedding": {"patch_embed.proj/Conv", "patch_embed/Transpose", "Add"},
    "head": {"Gather", "norm/LayerNormalization", "head/Gemm"},
}
COUNT = {"layernorm": 5, "softmax": 2, "attention": 6, "gelu": 2, "residual": 4, "embedding": 5, "head": 3}


@pytest.mark.parametrize("island", ISLANDS)
def test_what_is_asked_for_stays_in_fp32(tiny: bytes, island: str) -> None:
    model = from_bytes(tiny)
    feeds = feeds_of(model)
    truth = run(model, feeds)
    result = to_half(model, keep=[island])
    check(model, result)  # which sees that no tensor of a kept node is FP16
    assert set(result.kept) >= KEPT[island]
    assert Counter(result.kept.values()) == {f"keep {island}": COUNT[island]}
    assert result.islands == (island,)
    close(run_in_half(model, feeds), truth, "logits")


def test_a_single_node_can_be_kept(tiny: bytes) -> None:
    model = from_bytes(tiny)
    result = to_half(model, keep={"blocks.1.mlp.fc2/MatMul"})
    check(model, result)
    assert result.kept == {"blocks.1.mlp.fc2/MatMul": "keep blocks.1.mlp.fc2/MatMul"}
    assert model.graph.initializers["blocks.1.mlp.fc2.weight"].dtype == ir.DataType.FLOAT
    assert result.casts == 4


@pytest.mark.parametrize("island", ["layernorm", "head", "embedding", "gelu"])
def test_islands_of_other_vits(island: str) -> None:
    """Silu is written out, q and k are normalised, the mean of the tokens is the head's."""
    model = from_bytes(exported("like-eva02"))
    result = to_half(model, keep=[island])
    check(model, result)
    operators = Counter(node.op_type for node in model.graph if node.name in result.kept)
    expected = {
        "layernorm": {"LayerNormalization": 7},
        "head": {"Slice": 1, "ReduceMean": 1, "LayerNormalization": 1, "Gemm": 1},
        "embedding": {"Conv": 1, "Reshape": 1, "Transpose": 1, "Pad": 1, "Add": 1},
        "gelu": {"Sigmoid": 2, "Mul": 2},
    }
    assert operators == expected[island]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_choice_of_nodes_gives_a_typed_graph_with_few_casts(data: st.DataObject) -> None:
    model = from_bytes(exported("like-eva02"))
    names = [str(node.name) for node in model.graph]
    keep = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names)))
    result = to_half(model, keep=keep)
    check(model, result)
    assert set(keep) <= set(result.kept)


MIXTURE = """agraph (uint8[n, 6, 4] x, float[n, 6, 4] f) => (float[n, 6, 4] y, int64[n, 6, 4] steps, float[n, 2] top) {
    pixels = Cast<to = 1>(x)
    same = Cast<to = 1>(f)
    sum = Add(pixels, same)
    shape = Shape(sum)
    size = Gather(shape, one)
    number = Cast<to = 1>(size)
    small = Div(sum, number)
    zero = ConstantOfShape(shape)
    left, right = Split<axis = 1, num_outputs = 2>(small)
    turned = Concat<axis = 1>(right, left)
    h = MatMul(turned, w)
    q = QuantizeLinear(h, s, z)
    d = DequantizeLinear(q, s, z)
    g = Gelu(d)
    steps = Cast<to = 7>(g)
    y = Add(g, zero)
    flat = Flatten(y)
    top, places = TopK(flat, two)
}"""


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_choice_of_nodes_computes_the_same(data: st.DataObject) -> None:
    random = np.random.default_rng(0)
    constants = {"one": np.array(1), "two": np.array([2]), "s": np.array(2, np.float32), "z": np.array(100, np.uint8)}
    model = parsed(MIXTURE, w=random.standard_normal((4, 4)).astype(np.float32), **constants)
    feeds = {"x": random.integers(0, 256, (2, 6, 4), np.uint8), "f": random.standard_normal((2, 6, 4)).astype(np.float32)}
    truth = run(model, feeds)
    names = [str(node.name) for node in model.graph]
    keep = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names)))
    result = to_half(model, keep=keep)
    check(model, result)
    found = run(model, feeds)
    for name in ("y", "top"):
        assert found[name].dtype == np.float32 and np.abs(found[name] - truth[name]).max() <= 2.1, "at most one step of q"
    assert np.abs(found["steps"] - truth["steps"]).max() <= 3


def overflowing(tiny: bytes) -> ir.Model:
    """The residual stream of block 0 reaches 1e5, as massive activations do; the norms bring it back."""
    model = from_bytes(tiny)
    weight = model.graph.initializers["blocks.0.mlp.fc2.weight"]
    assert weight.const_value is not None
    feeds = feeds_of(model)
    scale = 1e5 / ranges_of(model, feeds)["blocks.0.mlp.fc2/Add_out"]
    for name, factor in (("blocks.0.mlp.fc2.weight", scale), ("blocks.0.mlp.fc2.bias", scale)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor((value.const_value.numpy() * factor).astype(np.float32), name=name)
    return model


def test_what_would_overflow_is_kept_and_right(tiny: bytes) -> None:
    model = overflowing(tiny)
    source, feeds = to_bytes(model), feeds_of(model)
    truth = run(model, feeds)
    blind = from_bytes(source)
    result = to_half(blind)
    check(blind, result)
    assert result.unranged > 0 and not result.overflow
    assert not np.isfinite(run_in_half(blind, feeds)["logits"]).all(), "without ranges it overflows"

    ranges = ranges_of(model, feeds)
    assert ranges["blocks.0/Add_1_out"] == pytest.approx(1e5, rel=0.01)
    result = to_half(model, ranges=ranges)
    check(model, result)
    close(run_in_half(model, feeds), truth, "logits")
    close(run(model, feeds), truth, "logits")
    reported = {one.tensor: one for one in result.overflow}
    assert reported.keys() == {name for name, largest in ranges.items() if largest > LIMIT}
    assert reported["blocks.0/Add_1_out"].node == "blocks.0/Add_1"
    assert reported["blocks.0/Add_1_out"].max_abs == ranges["blocks.0/Add_1_out"]
    for node in ("blocks.0.mlp.fc2/MatMul", "blocks.0/Add_1", "blocks.1.norm1/LayerNormalization", "blocks.1/Add"):
        assert "reaches" in result.kept[node]
    assert "blocks.1.attn.qkv/MatMul" not in result.kept and result.half > 30


def test_a_norm_whose_squares_overflow_is_kept(tiny: bytes) -> None:
    model = from_bytes(tiny)
    ranges = dict.fromkeys(chosen(model), 1.0) | {"Add_out": 300.0}
    result = to_half(model, ranges=ranges)
    check(model, result)
    assert result.kept == {"blocks.0.norm1/LayerNormalization": "squares of Add_out reach 9e+04"}
    assert not result.overflow, "the tensor itself fits"
    ranges["Add_out"] = 100.0
    assert not to_half(from_bytes(tiny), ranges=ranges).kept


def test_ranges_that_are_not_finite_are_overflows(tiny: bytes) -> None:
    for bad in (np.inf, np.nan):
        model = from_bytes(tiny)
        result = to_half(model, ranges={"Add_out": bad})
        assert [one.tensor for one in result.overflow] == ["Add_out"]
        assert "Add" in result.kept


def parsed(text: str, opset: int = 20, **constants: np.ndarray) -> ir.Model:
    """A graph in ONNX's text form, its tensors typed by inference, with constants beside it."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "mine" : 1]>\n{text}')
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for place, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return ir.from_proto(proto)


NORM = """agraph (float[n, 7, 16] x) => (float[n, 7, 5] y) {
    two = Constant<value_float = 2.0>()
    epsilon = Constant<value = float {1e-6}>()
    axis = Constant<value = int64[1] {-1}>()
    wide = MatMul(x, w0)
    mean = ReduceMean<AXES>(wideAXIS)
    centred = Sub(wide, mean)
    SQUARE
    variance = ReduceMean<AXES>(squareAXIS)
    shifted = Add(variance, epsilon)
    deviation = Sqrt(shifted)
    normal = Div(centred, deviation)
    scaled = Mul(normal, gamma)
    moved = Add(scaled, beta)
    root = Constant<value_float = 1.4142135>()
    one = Constant<value_float = 1.0>()
    half = Constant<value_float = 0.5>()
    first = MatMul(moved, w1)
    ratio = Div(first, root)
    curve = Erf(ratio)
    upper = Add(curve, one)
    product = Mul(first, upper)
    gelu = Mul(product, half)
    y = MatMul(gelu, w2)
}"""


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("square", ["square = Pow(centred, two)", "square = Mul(centred, centred)"])
def test_a_norm_in_several_operators_stays_in_fp32(opset: int, square: str) -> None:
    """TorchScript's form. Activations around 400 have squares that FP16 does not hold."""
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in
              (("w0", (16, 16)), ("gamma", (16,)), ("beta", (16,)), ("w1", (16, 24)), ("w2", (24, 5)))}  # fmt: skip
    arrays["w0"] *= 100
    axes, axis = ("axes = [-1]", "") if opset < 18 else ("keepdims = 1", ", axis")
    text = NORM.replace("SQUARE", square).replace("AXES", axes).replace("AXIS", axis)
    model = parsed(text, opset, **arrays)
    feeds = {"x": random.standard_normal((2, 7, 16)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    sums = [name for name, why in result.kept.items() if why == "sums squares"]
    operators = Counter(name.split("_")[0] for name in sums)
    squares = {"Pow": 1} if "Pow" in square else {"Mul": 1}
    assert operators == Counter({"ReduceMean": 2, "Sub": 1, "Add": 1, "Sqrt": 1, "Div": 1}) + Counter(squares)
    assert set(result.kept) == set(sums)
    assert result.casts == 4, "input, into the norm, out of it, output"
    close(run_in_half(model, feeds), truth, "y")
    close(run(model, feeds), truth, "y")  # ONNX Runtime makes one operator of it, Casts included
    assert not [node for node in model.graph if node.op_type == "Constant"]


def test_gelu_in_five_operators_is_one_island() -> None:
    """Before operator set 20. The curve stays in FP32 as a whole, the layers around it do not."""
    random = np.random.default_rng(0)
    shapes = {"w0": (16, 16), "gamma": (16,), "beta": (16,), "w1": (16, 24), "w2": (24, 5)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = NORM.replace("SQUARE", "square = Pow(centred, two)").replace("AXES", "axes = [-1]").replace("AXIS", "")
    model = parsed(text, 17, **arrays)
    feeds = {"x": random.standard_normal((2, 7, 16)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model, keep=["gelu"])
    check(model, result)
    gelu = Counter(name.split("_")[0] for name, why in result.kept.items() if why == "keep gelu")
    assert gelu == {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
    close(run(model, feeds), truth, "y")


def test_squares_of_lengths_stay_in_fp32_with_their_epsilon() -> None:
    """x / max(|x|, 1e-12), as embeddings are normalised: FP16 has no 1e-12."""
    text = """agraph (float[n, 8] x) => (float[n, 8] y) {
        h = MatMul(x, w)
        length = ReduceL2<keepdims = 1>(h, axis)
        safe = Clip(length, least)
        y = Div(h, safe)
    }"""
    constants = {"w": 300 * np.eye(8, dtype=np.float32), "axis": np.array([-1]), "least": np.array(1e-12, np.float32)}
    model = parsed(text, **constants)
    result = to_half(model)
    check(model, result)
    assert set(result.kept.values()) == {"sums squares", "constant least would become 0"}
    assert {name.split("_")[0] for name in result.kept} == {"ReduceL2", "Clip", "Div"}
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm(run_in_half(model, feeds)["y"], axis=-1), 1, rtol=1e-3)


QDQ = """agraph (float[n, 7, 16] x) => (float[n, 7, 12] y) {
    h = Mul(x, two)
    q = QuantizeLinear(h, s, z)
    d = DequantizeLinear(q, s, z)
    dw = DequantizeLinear<axis = 1>(w, sw, zw)
    m = MatMul(d, dw)
    y = Add(m, b)
}"""


def quantized(opset: int, smallest: float = 1e-3) -> ir.Model:
    random = np.random.default_rng(0)
    scales = np.linspace(0.01, 0.02, 12).astype(np.float32)
    scales[3] = smallest
    return parsed(
        QDQ,
        opset,
        two=np.array(0.5, np.float32),
        s=np.array(0.02, np.float32),
        z=np.array(120, np.uint8),
        w=random.integers(-127, 128, (16, 12), np.int8),
        sw=scales,
        zw=np.zeros(12, np.int8),
        b=random.standard_normal(12).astype(np.float32),
    )


def test_scales_become_fp16_and_integers_stay() -> None:
    model = quantized(20)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 7, 16)).astype(np.float32)}
    truth = run(model, feeds)
    integers = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items() if name in "zw w"}
    result = to_half(model, ranges={"x": 5.0, "h": 2.5, "m": 100.0, "y": 100.0})
    check(model, result)
    assert not result.kept and result.casts == 2 and result.unranged == 0, "what a DequantizeLinear gives is known"
    assert model.graph.initializers["s"].dtype == model.graph.initializers["sw"].dtype == ir.DataType.FLOAT16
    for name, array in integers.items():
        found = model.graph.initializers[name].const_value.numpy()
        assert found.dtype == array.dtype and (found == array).all()
    error = np.abs(run(model, feeds)["y"] - truth["y"]) / truth["y"].std()
    assert error.mean() < 5e-3 and error.max() < 0.05, "a number on the border of two steps may take the other one"


def test_scales_too_small_for_fp16_stay() -> None:
    model = quantized(20, smallest=2e-5)
    result = to_half(model)
    check(model, result)
    assert list(result.kept) == ["DequantizeLinear_3"] and "scale sw is 2e-05" in result.kept["DequantizeLinear_3"]
    assert model.graph.initializers["sw"].dtype == ir.DataType.FLOAT


def test_operator_sets_before_19_have_no_fp16_scales() -> None:
    model = quantized(17)
    result = to_half(model)
    check(model, result)
    assert set(result.kept.values()) == {"operator has no FP16 form"}
    assert sorted(result.kept) == ["DequantizeLinear_2", "DequantizeLinear_3", "QuantizeLinear_1"]


def test_a_quantizer_whose_quotient_overflows_stays() -> None:
    result = to_half(quantized(20), ranges={"h": 3000.0})
    assert "divided by its scale" in result.kept["QuantizeLinear_1"]


def test_a_dequantized_tensor_beyond_fp16_is_found() -> None:
    model = parsed(
        "agraph (uint8[n, 4] x) => (float[n, 4] y) { d = DequantizeLinear(x, s)\n e = Relu(d)\n y = Mul(e, k) }",
        s=np.array(200, np.float32),
        k=np.array(1e-3, np.float32),
    )
    result = to_half(model)
    assert {one.tensor: one.max_abs for one in result.overflow} == {"d": 51000.0, "e": 51000.0}
    check(model, result)


def test_a_mean_whose_sum_overflows_is_kept() -> None:
    text = "agraph (float[n, 200, 8] x) => (float[n, 8] y) { h = MatMul(x, w)\n y = ReduceMean<keepdims = 0>(h, axis) }"
    constants = {"w": np.eye(8, dtype=np.float32) * 200, "axis": np.array([1])}
    feeds = {"x": np.random.default_rng(0).uniform(1, 2, (2, 200, 8)).astype(np.float32)}
    model = parsed(text, **constants)
    truth, ranges = run(model, feeds), ranges_of(model, feeds)
    result = to_half(model, ranges=ranges)
    check(model, result)
    assert list(result.kept) == ["ReduceMean_1"] and "the sum of h may reach" in result.kept["ReduceMean_1"]
    assert np.abs(run_in_half(model, feeds)["y"] / truth["y"] - 1).max() < 1e-3
    model = parsed(text.replace("200, 8] x", "t, 8] x"), **constants)
    ranges = ranges_of(model, feeds)
    assert "may reach inf" in to_half(model, ranges=ranges).kept["ReduceMean_1"], "how many tokens is not said"


def test_constants_that_do_not_fit_keep_their_node() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, big)\n b = Mul(a, small)\n c = Add(b, tiny)\n d = Add(c, odd)
        y = MatMul(d, w) }"""
    odd = np.array([1, 3e-6, 1e-9, -np.inf], np.float32)
    model = parsed(
        text,
        big=np.array([1, 2, 3, 65505], np.float32),
        small=np.array([2e-5, 1, 1, 1], np.float32),
        tiny=np.full(4, 1e-9, np.float32),
        odd=odd,
        w=np.eye(4, dtype=np.float32),
    )
    result = to_half(model)
    check(model, result)
    assert result.kept == {"Mul_0": "constant big reaches 6.55e+04", "Add_2": "constant tiny would become 0"}
    assert result.losses["small"].subnormal == 1 and result.losses["small"].vanished == 0
    assert (result.losses["odd"].subnormal, result.losses["odd"].vanished) == (1, 1)
    found = model.graph.initializers["odd"].const_value.numpy()
    assert found.dtype == np.float16 and found[1] == pytest.approx(3e-6, rel=0.02) and found[2] == 0 and found[3] == -np.inf


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=20))
def test_rounding_is_to_the_nearest_and_keeps_subnormals(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    found = measure_loss(array)
    grid = np.abs(array.astype(np.float64))
    step = np.where(grid >= 2.0**-14, 2.0 ** (np.floor(np.log2(np.maximum(grid, 2.0**-14))) - 10), 2.0**-24)
    nearest = np.rint(grid / step) * step  # rint rounds ties to even
    assert (nearest == np.abs(array.astype(np.float16).astype(np.float64))).all()
    assert found.vanished == np.count_nonzero((nearest == 0) & (grid > 0))
    assert found.subnormal == np.count_nonzero((nearest > 0) & (nearest < 2.0**-14))


def test_epsilons_that_fp16_does_not_have_are_told(tiny: bytes) -> None:
    assert not to_half(from_bytes(tiny)).epsilons
    model = from_bytes(tiny)
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-12)
    found = to_half(model)
    assert found.epsilons["norm/LayerNormalization"] == pytest.approx(1e-12)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert all(node.attributes.get_float("epsilon") == pytest.approx(1e-12) for node in norms), "the attribute survives"
    again = from_bytes(tiny)
    norm = next(node for node in again.graph if node.name == "norm/LayerNormalization")
    norm.attributes["stash_type"] = ir.AttrInt64("stash_type", ir.DataType.FLOAT16.value)
    assert to_half(again).kept == {"norm/LayerNormalization": "its sums are not in FP32 (stash_type)"}


def test_operators_without_an_fp16_form_stay() -> None:
    text = """agraph (float[n, 4] x, float limit) => (float[n, 4] y, float[k] r) {
        a = MatMul(x, w)
        b = mine.Secret(a)
        y = MatMul(b, w)
        r = Range(limit, limit, limit)
    }"""
    model = parsed(text, w=np.eye(4, dtype=np.float32))
    for node in model.graph:
        if node.op_type == "Secret":
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
        if node.op_type == "MatMul" and not node.outputs[0].is_graph_output():
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    result = to_half(model)
    assert result.kept == {"Secret_1": "operator has no FP16 form", "Range_3": "operator has no FP16 form"}
    secret = next(node for node in model.graph if node.op_type == "Secret")
    assert secret.inputs[0].dtype == secret.outputs[0].dtype == ir.DataType.FLOAT
    assert result.casts == 4


def test_a_tensor_whose_type_can_not_be_told_is_refused() -> None:
    model = parsed("agraph (float[n, 4] x) => (float[n, 4] y) { b = mine.Secret(x)\n y = Relu(b) }")
    with pytest.raises(InputError, match=r"VD3025.*Secret_0"):
        to_half(model)


def test_a_sub_graph_sees_fp32() -> None:
    text = """agraph (float[n, 4] x, bool c) => (float[n, 4] y) {
        a = MatMul(x, w)
        b = If (c) <
            then_branch = g1 () => (float[n, 4] t) { t = Mul(a, a) },
            else_branch = g2 () => (float[n, 4] e) { e = Add(a, w1) }
        >
        y = MatMul(b, w)
    }"""
    model = parsed(text, w=np.eye(4, dtype=np.float32), w1=np.ones((1, 4), np.float32))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32), "c": np.array(False)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    assert result.kept == {"If_1": "has a sub-graph"} and result.half == 2 and result.casts == 4
    close(run(model, feeds), truth, "y")


def test_positions_and_sizes_are_computed_in_fp32() -> None:
    """Angles of 3000 in FP16 are off by one radian; a table that is only repeated to a size is not arithmetic."""
    text = """agraph (float[n, t, 4] x) => (float[n, t, 4] y) {
        shape = Shape(x)
        size = Gather(shape, one)
        number = Cast<to = 1>(size)
        angle = Mul(frequency, number)
        sine = Sin(angle)
        wide = Expand(token, shape)
        h = MatMul(x, w)
        turned = Mul(h, sine)
        y = Add(turned, wide)
    }"""
    constants = {"one": np.array(1), "frequency": np.array([1, 10, 100, 1000.3], np.float32)}
    constants |= {"token": np.ones((1, 1, 4), np.float32), "w": np.eye(4, dtype=np.float32)}
    model = parsed(text, **constants)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    assert {name.split("_")[0] for name in result.kept} == {"Shape", "Cast", "Mul", "Sin"}
    assert Counter(result.kept.values()) == {"has only FP32 around it": 1, "computes with sizes": 2, "angles need FP32": 1}
    close(run_in_half(model, feeds), truth, "y")


def test_the_scales_of_a_resize_stay_float32() -> None:
    text = "agraph (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) { h = Mul(x, k)\n y = Resize(h, , scales) }"
    model = parsed(text, k=np.array(2, np.float32), scales=np.array([1, 1, 2, 2], np.float32))
    result = to_half(model)
    check(model, result)
    assert not result.kept
    assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT


def test_moves_between_fp32_nodes_stay() -> None:
    text = """agraph (float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w)\n b = Reshape(a, s1)
        c = Transpose<perm = [0, 2, 1]>(b)\n d = Reshape(c, s2)\n e = MatMul(d, w)\n f = Relu(e)\n y = MatMul(f, w) }"""
    constants = {"w": np.eye(8, dtype=np.float32), "s1": np.array([-1, 2, 4]), "s2": np.array([-1, 8])}
    model = parsed(text, **constants)
    result = to_half(model, keep=["MatMul_0", "MatMul_4"])
    check(model, result)
    moved = {name for name, why in result.kept.items() if why == "has only FP32 around it"}
    assert moved == {"Reshape_1", "Transpose_2", "Reshape_3"}
    assert result.casts == 2, "into Relu and out of the last product"
    halves = [name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT16]
    assert len(halves) == 1 and model.graph.initializers["w"].dtype == ir.DataType.FLOAT, "a shared constant exists twice"


def test_constants_of_a_shape_and_masks_become_half() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 4] y) { shape = Shape(x)\n zero = ConstantOfShape(shape)
        one = ConstantOfShape<value = float[1] {1.0}>(shape)\n a = Add(x, zero)\n b = Where(c, a, one)\n y = Mul(b, b) }"""
    model = parsed(text, c=np.array([True, False, True, True]))
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    assert list(result.kept) == ["Shape_0"], "a shape is taken of the tensor as it is"
    assert result.casts == 2
    close(run(model, feeds), truth, "y")


def test_attention_in_one_operator_is_checked_inside() -> None:
    shape = "float[n, 2, 7, 8]"
    text = f"agraph ({shape} q, {shape} k, {shape} v) => ({shape} y) {{ y = Attention(q, k, v) }}"
    ranges = {"q": 100.0, "k": 100.0, "v": 1.0, "y": 1.0}
    result = to_half(parsed(text, 23), ranges=ranges)
    assert "scores" in result.kept["Attention_0"] and result.half == 0 and result.casts == 0
    model = parsed(text, 23)
    result = to_half(model, ranges=ranges | {"q": 20.0})
    check(model, result)
    assert result.half == 1 and result.casts == 4


def test_what_is_half_already_is_refused(tiny: bytes) -> None:
    model = from_bytes(tiny)
    to_half(model, keep=["layernorm"])
    before = to_bytes(model)
    with pytest.raises(InputError, match="VD3024"):
        to_half(model)
    assert to_bytes(model) == before
    with pytest.raises(InputError, match=r"VD3024.*no float32"):
        to_half(parsed("agraph (int64[4] x) => (int64[4] y) { y = Add(x, x) }"))


def test_requests_that_make_no_sense_are_refused(tiny: bytes) -> None:
    with pytest.raises(UsageError, match=r"VD2003.*did you mean 'layernorm'"):
        to_half(from_bytes(tiny), keep=["layernrom"])
    with pytest.raises(InputError, match="VD3109"):
        to_half(from_bytes(tiny), ranges={"another/Add_out": 1.0})
    model = from_bytes(tiny)
    with pytest.raises(UsageError):
        to_half(model, keep=["nothing"])
    assert to_bytes(model) == to_bytes(from_bytes(tiny)), "a refusal changes nothing"


def test_the_same_model_gives_the_same_bytes(tiny: bytes) -> None:
    ranges = dict.fromkeys(chosen(from_bytes(tiny)), 1.0) | {"blocks.0/Add_1_out": 1e5}
    found = []
    for keep in itertools.permutations(("softmax", "head", "layernorm")):
        model = from_bytes(tiny)
        result = to_half(model, keep=keep, ranges=ranges)
        found.append((to_bytes(model), result.half, result.casts, list(result.kept)))
    assert all(one == found[0] for one in found)


def test_halves_the_file(tiny: bytes) -> None:
    model = from_bytes(tiny)
    to_half(model)
    floats = [value for value in model.graph.initializers.values() if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)]
    assert {value.dtype for value in floats} == {ir.DataType.FLOAT16}


def test_taps_give_the_largest_of_each_tensor(tiny: bytes) -> None:
    model = from_bytes(tiny)
    before, feeds = to_bytes(model), feeds_of(model, batch=5)
    ranges = ranges_of(model, feeds)
    assert to_bytes(model) == before, "the copy has the taps"
    assert list(tap(model).outputs.values()) == chosen(model)
    everything = from_bytes(tiny)
    names = chosen(everything)
    for node in everything.graph:
        everything.graph.outputs.extend(out for out in node.outputs if out.name in names and not out.is_graph_output())
    found = run(everything, feeds) | feeds
    assert ranges.keys() == set(names)
    for name in names:
        assert ranges[name] == pytest.approx(np.abs(found[name]).max(), rel=1e-5), name
    largest = max(range(5), key=lambda row: np.abs(found["blocks.0/Add_out"][row]).max())
    alone = ranges_of(model, {"pixels": feeds["pixels"][largest : largest + 1]})
    assert alone["blocks.0/Add_out"] == pytest.approx(ranges["blocks.0/Add_out"], rel=1e-5)


def test_what_follows_is_not_measured(tiny: bytes) -> None:
    names = chosen(from_bytes(tiny))
    assert {"pixels", "Add_out", "blocks.0.attn/MatMul_out", "blocks.0.attn.qkv/Split_out_0", "logits"} <= set(names)
    assert not [name for name in names if any(word in name for word in ("Reshape", "Transpose", "Softmax", "Pad", "weight"))]


@pytest.mark.parametrize("place", [0, 1, 100, -1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_taps_show_what_is_not_finite(place: int, bad: float) -> None:
    """ReduceMax of ONNX Runtime drops a NaN that is not first."""
    model = parsed("agraph (float[n, 3, 64] x) => (float[n, 3, 64] y) { y = Neg(x) }")
    x = np.random.default_rng(0).standard_normal((4, 3, 64)).astype(np.float32)
    x.reshape(-1)[place] = bad
    taps = tap(model)
    found = run(taps.model, {"x": x})
    for name in taps.outputs:
        assert np.isnan(found[name]) if np.isnan(bad) else found[name] == np.inf


def test_taps_of_the_oldest_operator_set() -> None:
    model = parsed("agraph (float[4] x) => (float[4] y) { y = Neg(x) }", 13)
    assert ranges_of(model, {"x": np.array([1, -3, 2, 0], np.float32)}) == {"x": 3.0, "y": 3.0}


MASKED = """agraph (float[n, 2, 4, 8] q, float[n, 2, 8, 4] k, float[n, 2, 4, 8] v) => (float[n, 2, 4, 8] y) {
    scores = MatMul(q, k)
    MASK
    hidden = Add(scores, mask)
    shares = Softmax(hidden)
    y = MatMul(shares, v)
}"""


@pytest.mark.parametrize("how", ["mask = Identity(table)", "mask = Where(seen, nothing, never)"])
def test_minus_infinity_in_a_mask_is_no_overflow(how: str) -> None:
    """FP16 has -inf as FP32 has: what is hidden stays hidden, and the rest is measured as if it was alone."""
    seen = np.tril(np.ones((4, 4), bool))
    table = np.where(seen, 0, -np.inf).astype(np.float32)
    constants = {"table": table} if "table" in how else {"seen": seen, "nothing": np.float32(0), "never": np.float32(-np.inf)}
    text = MASKED.replace("MASK", how)
    model = parsed(text, **{name: np.asarray(array) for name, array in constants.items()})
    random = np.random.default_rng(0)
    shapes = {"q": (3, 2, 4, 8), "k": (3, 2, 8, 4), "v": (3, 2, 4, 8)}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    truth, ranges = run(model, feeds), ranges_of(model, feeds)
    largest = np.abs(np.where(seen, feeds["q"] @ feeds["k"], 0)).max()
    assert ranges["hidden"] == pytest.approx(largest, rel=1e-5)
    result = to_half(model, ranges=ranges)
    check(model, result)
    assert not result.kept and not result.overflow and result.unranged == 0
    close(run(model, feeds), truth, "y")
    close(run_in_half(model, feeds), truth, "y")
    feeds["q"][0], feeds["k"] = -np.inf, np.abs(feeds["k"])  # what no mask explains still shows
    assert ranges_of(parsed(text, **constants), feeds)["scores"] == np.inf
