"""Promises of the rules: what TensorRT refuses or gets wrong is refused by us first, with the node and the remedy.

Where NVIDIA's compiler is installed each rule is shown to be needed: it fails on the same file, or is wrong in silence.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.backends.qdq import Quantizer
from tests.backends.tensorrt import graphs
from tests.backends.tensorrt.graphs import INT8, fp16, linear, whole, written
from vitdeploy.backends.tensorrt import builder, rules
from vitdeploy.backends.tensorrt.backend import TensorRtRtx
from vitdeploy.backends.tensorrt.place import Place
from vitdeploy.backends.tensorrt.rules import Graph, Target, check
from vitdeploy.errors import InputError, MachineError
from vitdeploy.onnxfile.nodes import read_nodes
from vitdeploy.onnxfile.reader import read
from vitdeploy.recipe import CompileConfig

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
CONFIG = CompileConfig(backend="tensorrt-rtx")
ZERO = np.int8(0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def theirs(file: Path) -> builder.Built:
    """What NVIDIA's compiler makes of a file that we refuse."""
    if not RTX:
        pytest.skip("tensorrt-rtx is not installed: our refusal was checked, not that it is needed")
    import tensorrt_rtx

    return builder.build(tensorrt_rtx, file, CONFIG, Place())


def refused(file: Path, *parts: str, target: Target | None = None) -> InputError:
    with pytest.raises(InputError) as error:
        check(file, target or Target())
    said = str(error.value)
    assert error.value.code == "VD3026"
    assert "\n" not in said
    for part in parts:
        assert part in said
    return error.value


# Refused by us, and by NVIDIA's compiler too


def case(name: str):
    """File of a case, what our message has, and what theirs has."""

    def integers(tiny, folder):
        return written(Quantizer(tiny).at_run_time(), folder, half=False).model

    def unsigned(tiny, folder):
        return written(Quantizer(tiny).static("u8", bias="float"), folder, half=False).model

    def bias(tiny, folder):
        return written(Quantizer(tiny).static(INT8, bias="int32"), folder, half=False).model

    def shifted(tiny, folder):
        return graphs.product(folder, np.int8(3))

    def sixteen(tiny, folder):
        return graphs.product(folder, np.int16(0))

    def attention(tiny, folder):
        return graphs.attention(folder, TensorProto.FLOAT)

    quantize = "vitdeploy quantize ARTIFACT --precision int8 --backend tensorrt --data DIR -o OUT"
    return {
        "MatMulInteger": (integers, ("DynamicQuantizeLinear 'blocks.0.attn.qkv/MatMul/Q'", quantize), "DynamicQuantizeLinear"),
        "uint8 around 128": (unsigned, ("type uint8", "(and 15 more of this kind)", quantize), "Non-zero zero point"),
        "int32 bias": (bias, ("DequantizeLinear 'blocks.0.attn.qkv.bias/DQ'", "type int32", quantize), "Int32"),
        "zero point 3": (shifted, ("QuantizeLinear 'Q'", "zero point other than 0", quantize), "Non-zero zero point"),
        "int16": (sixteen, ("QuantizeLinear 'Q'", "type int16"), "unsupported datatype|Failed to import"),
        "Attention in FP32": (attention, ("Attention 'attend' is in FP32", "opset 20", "--precision fp16"), "dedicated kernel"),
    }[name]


CASES = ("MatMulInteger", "uint8 around 128", "int32 bias", "zero point 3", "int16", "Attention in FP32")


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_built_is_refused_by_us_first(name, tiny_static, tmp_path):
    make, ours, said = case(name)
    file = make(tiny_static, tmp_path / "source")
    refused(file, *ours)
    with pytest.raises(MachineError, match=said) as error:
        theirs(file)
    assert error.value.code == "VD4011"


@pytest.mark.skipif(not RTX, reason="tensorrt-rtx is not installed")
@pytest.mark.parametrize("name", CASES)
def test_compile_asks_the_rules_before_the_parser(name, tiny_static, tmp_path, monkeypatch):
    make, ours, _ = case(name)
    artifact = type(tiny_static)(make(tiny_static, tmp_path / "source").parent, tiny_static.record)
    monkeypatch.setattr(builder, "build", lambda *_: pytest.fail("the builder was called"))
    with pytest.raises(InputError) as error:
        TensorRtRtx().compile(artifact, CONFIG, tmp_path)
    assert error.value.code == "VD3026"
    assert ours[0] in str(error.value)


# Refused by us, and built by NVIDIA's compiler into something else


@pytest.mark.parametrize("zero", [np.uint8(0), None], ids=["written", "by default"])
def test_unsigned_codes_from_0_build_and_are_wrong(zero, tmp_path):
    """QuantizeLinear gives 0 to 255; the engine clips at 127, so large values are halved."""
    file = graphs.product(tmp_path, zero)
    refused(file, "QuantizeLinear 'Q' has codes of type uint8", "be wrong")
    built = theirs(file)
    if zero is not None:
        assert any("Defaulting to INT8" in warning for warning in built.facts["warnings"])


def test_a_default_type_that_is_said_is_fine(tmp_path):
    assert check(graphs.product(tmp_path, None, output_dtype=TensorProto.INT8), Target()) == ()


def test_norms_by_hand_in_fp16(tmp_path):
    file = graphs.layer_norm(tmp_path)
    refused(file, "ReduceMean 'variance'", "256 x 256 is infinite", "--precision fp16")
    assert any("layernorm" in warning.lower() for warning in theirs(file).facts["warnings"])
    pixels = np.full((1, graphs.TOKENS, graphs.WIDTH), 0, np.float16)
    pixels[..., 0] = 1418  # what the residual stream of a ViT-B has
    with np.errstate(over="ignore"):
        assert np.isinf(np.square(pixels)).any()


def test_norms_by_hand_in_fp32_are_fine(tmp_path):
    assert check(graphs.layer_norm(tmp_path, TensorProto.FLOAT), Target()) == ()


def test_activations_with_a_scale_each_channel(tmp_path):
    file = graphs.product(tmp_path, np.zeros(16, np.int8), scale=np.full(16, 0.05, np.float16))
    refused(file, "QuantizeLinear 'Q' quantizes an activation with 16 scales")


def test_a_scale_of_one_element_is_a_single_one(tmp_path):
    file = graphs.product(tmp_path, np.zeros(1, np.int8), scale=np.full(1, 0.05, np.float16))
    assert check(file, Target()) == ()


def test_operators_of_other_engines(tmp_path):
    node = helper.make_node("FastGelu", ["pixels"], ["y"], "gelu", domain="com.microsoft")
    file = graphs.single(tmp_path, [node], {})
    refused(file, "com.microsoft::FastGelu 'gelu'", "'com.microsoft'", "--backend tensorrt")
    node = helper.make_node("Thing", ["pixels"], ["y"], "thing", domain="elsewhere")
    refused(graphs.single(tmp_path, [node], {}), "elsewhere::Thing 'thing'", "ONNX's own operators")


def test_a_damaged_file(tiny_static, tmp_path):
    (tmp_path / "model.onnx").write_bytes(tiny_static.model.read_bytes()[:-500])
    with pytest.raises(InputError) as error:
        check(tmp_path / "model.onnx", Target())
    assert error.value.code == "VD3011"


# Devices


@pytest.mark.parametrize(
    ("dtype", "rtx", "capability", "fine"),
    [
        ("fp8", False, (8, 7), False),
        ("fp8", False, (8, 9), True),
        ("fp8", False, (11, 0), True),
        ("fp32", True, (7, 5), False),
        ("fp32", False, (7, 5), True),
        ("fp32", True, (8, 0), True),
        ("fp16", True, (7, 5), True),
        ("int8", True, (7, 5), True),
    ],
)
def test_arithmetic_that_a_device_has(dtype, rtx, capability, fine, tiny_static, tmp_path):
    ways = {"fp8": lambda: written(whole(tiny_static).fp8(), tmp_path), "fp16": lambda: fp16(tiny_static, tmp_path)}
    ways |= {"int8": lambda: written(linear(tiny_static), tmp_path), "fp32": lambda: tiny_static}
    file = ways[dtype]().model
    target = Target(rtx, (capability, (12, 0)))
    if fine:
        assert check(file, target) == ()
    else:
        refused(file, f"the device has {capability[0]}.{capability[1]}", "needs compute capability 8.", target=target)


def test_a_product_of_two_computed_tensors_is_not_taken_for_a_quantized_one(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]>
        agraph (float[1, 4, 4] x) => (float[1, 4, 4] y) { a = Relu(x)  b = Neg(x)  y = MatMul(a, b) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "product.onnx")
    refused(tmp_path / "product.onnx", "MatMul", "is in float32", target=Target(True, ((7, 5), (12, 0))))


def test_attention_in_half_is_fine(tmp_path):
    assert check(graphs.attention(tmp_path, TensorProto.FLOAT16), Target()) == ()


# Notes


def test_int8_among_fp32_is_said_to_be_slow(tiny_static, tmp_path):
    (note,) = check(written(linear(tiny_static), tmp_path, half=False).model, Target())
    assert "float parts are FP32: INT8 will be slower than FP16" in note


@pytest.mark.parametrize(
    ("places", "count"),
    [
        ({"p": None}, 4),
        ({"v": None}, 4),
        ({"p": None, "v": None}, 3),
        ({"q": None, "k": None, "p": None}, 2),
    ],
)
def test_attention_quantized_in_part_is_said_to_be_slow(places, count, tiny_static, tmp_path):
    some = {"q": INT8, "k": INT8, "p": INT8, "v": INT8} | places
    (note,) = check(written(linear(tiny_static).products(**some), tmp_path).model, Target())
    assert f"attention 'blocks.0.attn/Softmax' (and 1 more) is quantized in {count} of 5 places" in note


def test_attention_without_a_quantized_result_is_a_part_too(tiny_static, tmp_path):
    quantizer = graphs.Placed(tiny_static).products(q=INT8, k=INT8, p=INT8, v=INT8)  # no linear layer, so no projection
    (note,) = check(written(quantizer, tmp_path).model, Target())
    assert "in 4 of 5 places" in note


@pytest.mark.parametrize("way", [linear, whole])
def test_none_or_all_of_attention_is_fine(way, tiny_artifact, tmp_path):
    file = written(way(tiny_artifact), tmp_path).model
    assert check(file, Target()) == ()
    attentions = Graph(read(file)).attentions
    assert [each.places for each in attentions] == [1 if way is linear else 5] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"queries": [4, 2, 7, 48]}, "heads of 48 numbers"),
        ({"scores": [4, 2, 577, 577]}, "577 tokens"),
        ({"scores": [4, 2, 512, 512]}, ""),
        ({"queries": [4, 2, 7, "n"], "scores": [4, 2, "n", "n"]}, ""),
    ],
)
def test_attention_that_is_too_large_for_int8_is_said_to_be_slow(change, said, tiny_static, tmp_path):
    """The declared shapes are edited: no product of that size is needed to read them."""
    file = written(whole(tiny_static), tmp_path).model
    model = onnx.load(file)
    first = Graph(read(file)).attentions[0]
    for part, shape in change.items():
        name = getattr(first, part)
        for kept in [value for value in model.graph.value_info if value.name == name]:
            model.graph.value_info.remove(kept)
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))
    onnx.save(model, file)
    notes = check(file, Target())
    assert [said in note for note in notes] == ([True] if said else [])


def test_fp8_attention_has_no_such_limits(tiny_static, tmp_path):
    file = written(whole(tiny_static).fp8(), tmp_path).model
    model = onnx.load(file)
    name = Graph(read(file)).attentions[0].queries
    for kept in [value for value in model.graph.value_info if value.name == name]:
        model.graph.value_info.remove(kept)
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, [4, 2, 7, 48]))
    onnx.save(model, file)
    assert check(file, Target()) == ()


# Reading zero points without onnx


def stored(zero: onnx.TensorProto, folder: Path) -> Path:
    zero.name = "z"
    return graphs.product(folder, zero)


@pytest.mark.parametrize("value", [0, 1, -1, 127])
@pytest.mark.parametrize("way", ["raw", "numbers", "beside", "constant"])
def test_zero_points_are_read_wherever_they_are(way, value, tmp_path):
    zero = helper.make_tensor("z", TensorProto.INT8, [], [value])
    if way == "raw":
        zero = numpy_helper.from_array(np.array(value, np.int8), "z")
        assert zero.raw_data
    if way == "beside":
        (tmp_path / "zero.bin").write_bytes(b"\7" * 5 + np.array(value, np.int8).tobytes() + b"\7")
        zero = onnx.TensorProto(name="z", data_type=TensorProto.INT8, data_location=TensorProto.EXTERNAL)
        for key, text in (("location", "zero.bin"), ("offset", "5"), ("length", "1")):
            zero.external_data.add(key=key, value=text)
    file = stored(zero, tmp_path)
    if way == "constant":
        model = onnx.load(file)
        kept = [tensor for tensor in model.graph.initializer if tensor.name != "z"]
        model.graph.ClearField("initializer")
        model.graph.initializer.extend(kept)
        model.graph.node.insert(0, helper.make_node("Constant", [], ["z"], "zero", value=zero))
        onnx.save(model, file)
    if value == 0:
        assert check(file, Target()) == ()
    else:
        refused(file, "QuantizeLinear 'Q' has a zero point other than 0")


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../zero.bin", "length": "1"},
        {"location": "absent.bin", "length": "1"},
        {"location": "zero.bin", "offset": "-1", "length": "1"},
        {"location": "zero.bin", "offset": "x"},
        {"location": "zero.bin", "offset": "3", "length": "9"},
        {"location": "zero.bin", "length": str(1 << 40)},
    ],
)
def test_data_outside_that_cannot_be_read_is_never_taken_for_zero(entries, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "zero.bin").write_bytes(b"\0\0\0\0")
    zero = onnx.TensorProto(name="z", data_type=TensorProto.INT8, data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        zero.external_data.add(key=key, value=text)
    refused(stored(zero, folder), "not a readable constant")


def test_a_zero_point_that_is_computed(tmp_path):
    file = graphs.product(tmp_path, np.int8(0))
    model = onnx.load(file)
    for node in model.graph.node[:2]:
        node.input[2] = "computed"
    model.graph.node.insert(0, helper.make_node("Sub", ["z", "z"], ["computed"], "sub"))
    model.graph.value_info.append(helper.make_tensor_value_info("computed", TensorProto.INT8, []))
    onnx.save(model, file)
    refused(file, "zero point 'computed' that is not a readable constant")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.float32, np.float16]),
    numbers=st.lists(st.sampled_from([0, 0, 0, 1, 7]), min_size=0, max_size=9),
    raw=st.booleans(),
)
def test_zero_is_what_numpy_says(kind, numbers, raw, tmp_path_factory):
    array = np.array(numbers, kind)
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = numpy_helper.from_array(array, "c") if raw else helper.make_tensor("c", dtype, array.shape, array)
    output = helper.make_tensor_value_info("c", dtype, array.shape)
    model = helper.make_model(helper.make_graph([], "g", [], [output], [tensor]))
    file = tmp_path_factory.mktemp("zeros") / "model.onnx"
    onnx.save(model, file)
    tensors = read_nodes(file)
    assert tensors.is_zero("c") == (not array.any())
    assert tensors.shape("c") == array.shape
    assert tensors.is_zero("absent") is None


def test_shapes_and_types_are_those_that_onnx_reads(tiny_artifact):
    truth, tensors = onnx.load(tiny_artifact.model).graph, read_nodes(tiny_artifact.model)
    for value in (*truth.value_info, *truth.input, *truth.output):
        sizes = tuple(size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim)
        assert tensors.shape(value.name) == sizes
    for tensor in truth.initializer:
        assert tensors.shape(tensor.name) == tuple(tensor.dims)
        assert tensors.is_zero(tensor.name) == (not numpy_helper.to_array(tensor).any())


def test_a_value_that_the_file_does_not_declare_is_followed(tmp_path, tiny_static):
    file = written(linear(tiny_static), tmp_path).model
    model, before = onnx.load(file), Graph(read(file))
    model.graph.ClearField("value_info")
    onnx.save(model, file)
    after = Graph(read(file))
    assert [after.nodes.dtype(node.outputs[0]) for node in after.products] == [
        before.nodes.dtype(node.outputs[0]) for node in before.products
    ]
    assert check(file, Target()) == rules.check(file, Target(rtx=True)) == ()
