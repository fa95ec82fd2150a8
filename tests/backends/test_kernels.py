"""What the engines really execute: graphs that are right run as planned, and every trap is named."""

import platform
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.backends.qdq import Quantizer
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.graph import qdq, storage
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.linear import Linear
from vitdeploy.proof.census import Plan, census, require

CPU = Path("/proc/cpuinfo")
FLAGS = set(CPU.read_text().split()) if CPU.exists() else set()
needs_vnni = pytest.mark.skipif(not FLAGS & {"avx512_vnni", "avx_vnni"}, reason="openvino multiplies these in int8 on VNNI only")
needs_bf16 = pytest.mark.skipif(not FLAGS & {"avx512_bf16", "amx_bf16"}, reason="this CPU has no bfloat16")
only_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="a trap of x86")
ENGINES = ("onnxruntime", "openvino")
BATCHES = ("dynamic", "one", "four")


@pytest.fixture(scope="module")
def one(tiny_static, tmp_path_factory):
    """The artifact for batches of exactly 4, rewritten for exactly 1."""
    model, folder = onnx.load(tiny_static.model), tmp_path_factory.mktemp("one")
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name.endswith(".shape")]:
        shape = numpy_helper.to_array(tensor).copy()
        shape[0] = 1
        tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    del model.graph.value_info[:]
    onnx.save(model, folder / "model.onnx")
    return Artifact(folder, Record(spec=tiny_static.spec, made_by="test"))


@pytest.fixture(params=BATCHES)
def tiny(request, tiny_artifact, tiny_static, one):
    """The tiny ViT with a dynamic batch, and for batches of exactly 1 and 4."""
    return {"dynamic": tiny_artifact, "four": tiny_static, "one": one}[request.param]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def kernels(artifact, engine, precision=None):
    with closing(table.load(engine).open(artifact, OpenConfig(threads=1, precision=precision))) as runner:
        return runner.kernels()


def count(quantizer, folder, engine, **plan):
    """The census of a quantized model, and that an engine accepted it at all."""
    return census(Plan(**plan), kernels(quantizer.write(folder), engine), engine)


def test_float_model_has_no_int8(tiny, engine):
    ran = [kernel for kernel in kernels(tiny, engine) if kernel.role != "other"]
    assert Counter((kernel.role, kernel.precision) for kernel in ran) == {
        ("gemm", "fp32"): 9, ("attention", "fp32"): 4, ("conv", "fp32"): 1,
    }  # fmt: skip
    assert not any(kernel.fallback for kernel in ran)
    whole = Quantizer(tiny)
    assert {kernel.name for kernel in ran} == {*whole.gemms, *whole.attention, "head/Gemm", "patch_embed.proj/Conv"}


@needs_vnni
def test_fused_attention_is_told(tiny, tmp_path):
    """OpenVINO runs scores, softmax and values as one; with a factor that it can't take there, as two products."""
    kinds = [kernel.kind for kernel in kernels(tiny, "openvino") if kernel.role == "attention"]
    assert len(kinds) == 4
    assert all("attention" in kind for kind in kinds)
    split = Quantizer(tiny).static().products(p="u8").write(tmp_path)
    kinds = [kernel.kind for kernel in kernels(split, "openvino") if kernel.role == "attention"]
    assert len(kinds) == 4
    assert not any("attention" in kind for kind in kinds)


def test_nothing_float_is_taken_for_planned(tiny, engine):
    whole = Quantizer(tiny)
    counted = census(Plan(gemms=whole.gemms, attention=whole.attention), kernels(tiny, engine), engine)
    assert counted.missing == whole.gemms + whole.attention
    assert counted.executed == {"gemms": 0, "dynamic": 0, "attention": 0}
    assert counted.reasons == ("its inputs are not quantized in the file",)


@pytest.mark.parametrize("act", ["u8", "s8"])
def test_linear_layers_run_in_int8(tiny, engine, act, tmp_path):
    quantizer = Quantizer(tiny).static(act)
    counted = count(quantizer, tmp_path, engine, gemms=quantizer.gemms)
    assert (counted.missing, counted.fallbacks) == ((), ())
    assert counted.counts == {"gemm/int8": 8, "attention/fp32": 4, "conv/fp32": 1, "gemm/fp32": 1}
    require(counted)


@needs_vnni
def test_attention_runs_in_int8(tiny, engine, tmp_path):
    quantizer = Quantizer(tiny).static().products()
    counted = count(quantizer, tmp_path, engine, gemms=quantizer.gemms, attention=quantizer.attention)
    assert (counted.missing, counted.fallbacks) == ((), ())
    assert counted.counts == {"gemm/int8": 8, "attention/int8": 4, "conv/fp32": 1, "gemm/fp32": 1}


@needs_vnni
def test_weights_only_are_dynamic(tiny, engine, tmp_path):
    quantizer = Quantizer(tiny).weights_only()
    counted = count(quantizer, tmp_path, engine, dynamic=quantizer.gemms)
    assert (counted.missing, counted.fallbacks) == ((), ())
    assert counted.counts == {"gemm/int8-dynamic": 8, "attention/fp32": 4, "conv/fp32": 1, "gemm/fp32": 1}


@pytest.mark.parametrize("wrong", [{"bias": "float"}, {"zeros": False}], ids=["float bias", "no zero point"])
def test_fixed_batch(tiny, tiny_artifact, wrong, tmp_path):
    """ONNX Runtime turns MatMul and Add of known shapes into Gemm, which it multiplies in int8 in one way of writing only."""
    quantizer = Quantizer(tiny).static(**wrong)
    counted = count(quantizer, tmp_path, "onnxruntime", gemms=quantizer.gemms)
    if tiny is tiny_artifact:  # its batch is dynamic
        assert counted.missing == ()
        return
    assert counted.missing == counted.fallbacks == quantizer.gemms
    assert "zero point" in counted.reasons[0]
    with pytest.raises(MachineError, match=r"8 of 8 layers.*blocks\.0\.attn\.qkv/MatMul, .*needs an int32 bias") as caught:
        require(counted)
    assert caught.value.code == "VD4009"
    assert census(Plan(gemms=quantizer.gemms), kernels(quantizer.write(tmp_path), "openvino"), "openvino").missing == ()


@only_x86
def test_shared_signed_activations(tiny_artifact, tmp_path):
    """ONNX Runtime moves int8 activations to uint8 when one product takes them; three stay int8, and in float."""
    quantizer = Quantizer(tiny_artifact).unpacked().static("s8")
    counted = count(quantizer, tmp_path, "onnxruntime", gemms=quantizer.gemms)
    assert set(counted.missing) == {f"blocks.{block}.attn.{letter}/MatMul" for block in (0, 1) for letter in "qkv"}
    assert set(counted.fallbacks) == set(counted.missing)
    assert "must be uint8" in counted.reasons[0]
    other = Quantizer(tiny_artifact).unpacked().static("u8")
    assert count(other, tmp_path, "onnxruntime", gemms=other.gemms).missing == ()


@needs_vnni
def test_quantized_before_the_split(tiny, tmp_path):
    """OpenVINO then writes queries, keys and values in int8 at once; ONNX Runtime multiplies them in float."""
    quantizer = Quantizer(tiny).static().packed()
    plan = {"gemms": quantizer.gemms, "attention": quantizer.attention}
    assert count(quantizer, tmp_path, "openvino", **plan).missing == ()
    counted = count(quantizer, tmp_path, "onnxruntime", **plan)
    assert counted.missing == counted.fallbacks == quantizer.attention
    assert "no Split" in counted.reasons[0]


@needs_vnni
def test_asymmetric_queries(tiny, tmp_path):
    quantizer = Quantizer(tiny).static().products(q="u8")
    counted = count(quantizer, tmp_path, "openvino", gemms=quantizer.gemms, attention=quantizer.attention)
    assert counted.missing == counted.fallbacks == quantizer.attention[::2]  # the scores; values are multiplied in int8 still
    assert "zero point 0" in counted.reasons[0]


@needs_vnni
@pytest.mark.parametrize(("left_out", "missing"), [("q", 0), ("k", 0), ("p", 1), ("v", 1)])
def test_half_a_product_is_not_int8(tiny, left_out, missing, engine, tmp_path):
    quantizer = Quantizer(tiny).static().products(**{left_out: None})
    counted = count(quantizer, tmp_path, engine, gemms=quantizer.gemms, attention=quantizer.attention)
    assert counted.missing == quantizer.attention[missing::2]


def test_integer_operators_are_not_for_openvino(tiny, tmp_path):
    quantizer = Quantizer(tiny).at_run_time()
    counted = count(quantizer, tmp_path, "onnxruntime", dynamic=quantizer.gemms)
    assert counted.missing == ()
    assert counted.counts["gemm/int8-dynamic"] == 8
    assert count(quantizer, tmp_path, "openvino", dynamic=quantizer.gemms).missing == quantizer.gemms


@needs_vnni
def test_weights_only_without_groups_are_float(tiny_artifact, tmp_path, monkeypatch):
    """Whether int8 weights make an int8 product is seen, not believed: with groups switched off they are decompressed."""
    from vitdeploy.backends.openvino import backend

    class Runner(backend.OpenVinoRunner):
        def __setattr__(self, name, value):
            super().__setattr__(name, {**value, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if name == "_wanted" else value)

    quantizer = Quantizer(tiny_artifact).weights_only()
    runner = Runner(quantizer.write(tmp_path), OpenConfig(threads=1))
    counted = census(Plan(dynamic=quantizer.gemms), runner.kernels(), "openvino")
    assert counted.missing == counted.fallbacks == quantizer.gemms


@needs_vnni
def test_a_bias_that_stays_apart_is_no_convolution(tiny_artifact, tmp_path):
    """Where the size of a convolution's output is read, OpenVINO adds the bias behind it, under the convolution's name."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 16, 24] pixels) => (float[N, 32, 7] y)
        <float scale = {1.0}, uint8 zero = {128}, int64[3] flat = {0, 32, -1}, int64 first = {0}, int64[2] rest = {32, 1}>
        {
            q = QuantizeLinear(pixels, scale, zero)
            x = DequantizeLinear(q, scale, zero)
            [conv] c = Conv(x, weight, bias)
            tokens = Reshape(c, flat)
            shape = Shape(c)
            axis = Constant<value_ints = [0]>()
            count = Gather(shape, axis)
            size = Concat<axis = 0>(count, rest)
            more = Expand(token, size)
            y = Concat<axis = 2>(tokens, more)
        }"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (32, 3, 8, 8)).astype(np.int8)
    arrays = {"codes": codes, "steps": np.full(32, 0.01, np.float32), "zeros": np.zeros(32, np.int8)}
    arrays |= {
        "bias": generator.normal(size=32).astype(np.float32),
        "token": generator.normal(size=(1, 32, 1)).astype(np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    weight = onnx.helper.make_node("DequantizeLinear", ["codes", "steps", "zeros"], ["weight"], axis=0)
    model.graph.node.insert(0, weight)
    onnx.save(model, tmp_path / "model.onnx")
    counted = census(
        Plan(gemms=("conv",)),
        kernels(Artifact(tmp_path, Record(spec=tiny_artifact.spec, made_by="test")), "openvino"),
        "openvino",
    )
    assert (counted.missing, counted.counts["conv/int8"]) == ((), 1)


@needs_vnni
def test_tokens_that_are_joined_of_two_maps(tiny_artifact, tmp_path):
    """As a class token that went round a convolution; OpenVINO fails over a Q/DQ pair right behind the Concat."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 16, 24] pixels) => (float[N, 4, 16] y)
        <int64[3] rows = {0, 3, -1}>
        {
            x = Reshape(pixels, rows)
            first, rest = Split<axis = 1>(x, counts)
            token = Relu(first)
            tokens = Concat<axis = 1>(token, x)
            [layer] product = MatMul(tokens, weight)
            y = Relu(product)
        }"""
    proto = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(384, 16)).astype(np.float32)
    arrays = {"weight": weight, "counts": np.array([1, 2])}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    linear = Linear(next(node for node in model.graph if node.name == "layer"))
    steps = np.abs(weight).max(0) / 127
    qdq.quantize(Editor(model), linear.input, qdq.Codes(0.02, 128, np.uint8), [(linear.matmul, 0)])
    qdq.quantize_weight(Editor(model), linear, np.rint(weight / steps).astype(np.int8), steps)
    storage.write(model, tmp_path / "model.onnx")
    artifact = Artifact(tmp_path, Record(spec=tiny_artifact.spec, made_by="test"))
    for engine in ENGINES:
        assert census(Plan(gemms=("layer",)), kernels(artifact, engine), engine).missing == ()


@needs_bf16
def test_bfloat16_on_request(tiny_artifact, tmp_path):
    counted = Counter((kernel.role, kernel.precision) for kernel in kernels(tiny_artifact, "openvino", "bf16"))
    assert (counted["gemm", "bf16"], counted["attention", "bf16"], counted["gemm", "fp32"]) == (9, 4, 0)
    quantized = Quantizer(tiny_artifact).static().write(tmp_path)
    for artifact, precision, ran in (
        (tiny_artifact, "bf16", "bf16"),
        (quantized, None, "int8"),
        (quantized, "bf16", "int8+bf16"),
    ):
        with closing(table.load("openvino").open(artifact, OpenConfig(precision=precision))) as runner:
            assert runner.settings["precision"] == ran


def test_precision_that_the_cpu_lacks_is_refused(tiny_artifact):
    """OpenVINO would compute in the nearest one, and say nothing."""
    try:
        with closing(table.load("openvino").open(tiny_artifact, OpenConfig(precision="f16"))) as runner:
            assert runner.settings["precision"] == "fp16"
    except UsageError as refused:
        assert refused.code == "VD2011"
        assert "'f16'" in refused.message


@pytest.mark.parametrize(("name", "precision"), [("onnxruntime", "bf16"), ("pytorch", "f16"), ("openvino", "f8")])
def test_unknown_precision_is_refused(name, precision, tiny_artifact):
    with pytest.raises(UsageError, match=f"'{precision}'") as caught:
        table.load(name).open(tiny_artifact, OpenConfig(precision=precision))
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("name", ["pytorch", *ENGINES])
def test_f32_is_what_all_have(name, tiny_artifact):
    with closing(table.load(name).open(tiny_artifact, OpenConfig(threads=1, precision="f32"))) as runner:
        assert runner.settings["precision"] == "fp32"


def test_pytorch_runs_the_network_as_written(tiny_artifact):
    assert kernels(tiny_artifact, "pytorch") == ()


def test_looking_leaves_nothing_behind(tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernels(tiny_artifact, "onnxruntime")
    assert list(tmp_path.iterdir()) == []


def test_looking_keeps_the_signal_stack(tiny_artifact):
    """As after opening: Ctrl-C must stay an interrupt."""
    import ctypes

    from vitdeploy.backends.openvino.backend import _SignalStack

    def stack():
        now = _SignalStack()
        if ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) != 0:
            pytest.skip("no sigaltstack")
        return now.memory, now.flags, now.size

    before = stack()
    assert kernels(tiny_artifact, "openvino")
    assert stack() == before
