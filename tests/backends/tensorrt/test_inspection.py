"""Documents of the engine inspector, made by code after published samples; no real engine was asked.

`classic` follows the layers of TensorRT 10.0 to 10.2 in github.com/NVIDIA/TensorRT issue 4020 (formats in words, ``Weights``,
``TacticName``), `fused` those of the graph compiler inside 10.3 to 10.16 (``Half``, ``Int8``, names of the form
``_gemm_mha_v2``, ``Metadata`` with separators), `eleven` the change described in the migration guide from 10 to 11.
"""

import json

import pytest

from tests.backends.tensorrt import fake_device
from tests.backends.tensorrt.fake_device import FakeCuda, FakeEngine
from vitdeploy.backends.base import Kernel
from vitdeploy.backends.tensorrt import inspection
from vitdeploy.backends.tensorrt.buffers import Port
from vitdeploy.errors import InputError, MachineError
from vitdeploy.proof.census import Plan, census

WORDS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "fp32": "Row major linear FP32",
    "bf16": "Row major linear BF16 format",
    "fp8": "Row major linear FP8 format",
}
SHORT = {"int8": "Int8", "fp16": "Half", "fp32": "Float", "bf16": "BFloat16", "fp8": "FP8"}
SIZES = {"blocks.0.attn.qkv": 1152, "blocks.0.attn.proj": 384, "blocks.0.mlp.fc1": 1536, "blocks.0.mlp.fc2": 384}


def value(precision, shape=(1, 197, 384), words=SHORT):
    return {"Name": "x", "Location": "Device", "Dimensions": list(shape), "Format/Datatype": words[precision]}


def metadata(*names, separator="\x1f"):
    return separator.join(f"[ONNX Layer: {name}]" for name in names)


def classic(name, precision, **more):
    return {
        "Name": name, "LayerType": "CaskGemmMatrixMultiply", "Inputs": [value(precision, words=WORDS)],
        "Outputs": [value("fp16", words=WORDS)], "ParameterType": "MatrixMultiply", "TacticValue": "0x1", "StreamId": 0,
        "Metadata": metadata(name), **more,
    }  # fmt: skip


def fused(names, precision, kind="gemm", title="__myl_Fc_myl0_3", **more):
    inputs = [value(precision)]
    return {"Name": title, "LayerType": kind, "Inputs": inputs, "Outputs": [value("fp16")], "Metadata": metadata(*names), **more}


def eleven(layer):
    """The same layer with the fields apart."""
    moved = dict(layer)
    for side in ("Inputs", "Outputs"):
        moved[side] = [{**each, "Format": "kLINEAR", "Datatype": each["Format/Datatype"]} for each in layer[side]]
        for each in moved[side]:
            del each["Format/Datatype"]
    return moved


def read(*layers, **more):
    return inspection.layers(json.dumps({"Layers": list(layers), **(more or {"Bindings": ["pixels", "logits"]})}))


def mha(precision="fp16", names=("blocks.0.attn/MatMul", "blocks.0.attn/Softmax", "blocks.0.attn/MatMul_1"), **more):
    heads = [value(precision, (6, 197, 64))] * 3
    return fused(names, precision, "kgen", "_gemm_mha_v2_myl0_6", **{"Inputs": heads, **more})


VIT = (
    {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": [value("fp32")], "Outputs": [value("int8")]},
    fused(["patch_embed.proj/Conv"], "fp16", "CaskConvolution", "patch_embed.proj/Conv"),
    *(fused([f"{name}/MatMul", f"{name}/Add"], "int8") for name in SIZES),
    mha(),
    fused(["blocks.0.norm1/LayerNormalization", "blocks.0.norm1/QuantizeLinear"], "fp16", "kgen", "__myl_CastMeanSub_myl0_1"),
)


@pytest.mark.parametrize("change", [lambda layer: layer, eleven], ids=["10", "11"])
def test_a_vit_with_int8_linear_layers_is_counted(change):
    found = read(*(change(layer) for layer in VIT))
    assert inspection.count(found) == {
        "layers": 8, "detailed": True, "opaque": 0, "reformats": 1, "gemms": {"int8": 4}, "convs": {"fp16": 1},
        "attention": {"fused": {"fp16": 1}, "products": {}},
    }  # fmt: skip


def test_the_census_agrees_with_the_plan():
    plan = Plan(gemms=tuple(f"{name}/MatMul" for name in SIZES))
    counted = census(plan, inspection.kernels(read(*VIT)), "tensorrt")
    assert counted.missing == ()
    assert counted.executed["gemms"] == 4
    assert counted.counts == {"gemm/int8": 4, "attention/fp16": 2, "conv/fp16": 1}


def test_the_census_names_what_fell_back():
    layers = [fused(["a/MatMul"], "int8"), fused(["b/DequantizeLinear", "b/MatMul"], "fp16")]
    counted = census(Plan(gemms=("a/MatMul", "b/MatMul")), inspection.kernels(read(*layers)), "tensorrt")
    assert counted.missing == ("b/MatMul",)
    assert counted.fallbacks == ("b/MatMul",)


@pytest.mark.parametrize("words", [WORDS, SHORT], ids=["words", "short"])
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32", "bf16", "fp8"])
def test_precisions_are_read_from_formats(precision, words):
    layer = read(classic("fc/MatMul", precision, Inputs=[value(precision, words=words)]))[0]
    assert layer.precision == precision
    assert inspection.kernels([layer])[0].precision == precision


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_gemm_i8f16_i8i32_f32_tn_n_tilesize128x128x64", "int8"),
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize128x64x64", "fp16"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n", "fp32"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n", "fp8"),
        ("sm80_xmma_gemm_f16f16_i8i32_f32_tn", ""),  # nothing multiplies these two
    ],
)
def test_the_kernels_name_goes_before_its_inputs(tactic, precision):
    assert read(fused(["fc/MatMul"], "int8", TacticName=tactic))[0].precision == precision


def test_a_float_product_behind_a_quantized_input_is_no_int8():
    layers = read(
        fused(["a/MatMul"], "int8", Weights={"Type": "Float", "Count": 9}),
        fused(["b/MatMul"], "int8", TacticName="sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n"),
        fused(["c/MatMul"], "fp16", Weights={"Type": "Int8", "Count": 9}),
    )
    assert [(kernel.name, kernel.precision, kernel.fallback) for kernel in inspection.kernels(layers)] == [
        ("a/MatMul", "fp32", True),
        ("b/MatMul", "fp32", True),
        ("c/MatMul", "fp16", False),
    ]


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", "", " "])
@pytest.mark.parametrize("escaped", [True, False])
def test_several_names_are_read_whatever_stands_between(separator, escaped):
    layer = fused([], "int8") | {"Metadata": metadata("q/MatMul", "k/MatMul", "v/MatMul", separator=separator)}
    text = json.dumps({"Layers": [layer]})
    text = text if escaped else text.replace(r"\u001e", "\x1e").replace(r"\u001f", "\x1f")
    kernels = inspection.kernels(inspection.layers(text))
    assert [kernel.name for kernel in kernels] == ["q/MatMul", "k/MatMul", "v/MatMul"]
    assert {kernel.precision for kernel in kernels} == {"int8"}


def test_attention_is_two_products_with_or_without_names():
    named, nameless = inspection.kernels(read(mha("int8"))), inspection.kernels(read(mha("int8", names=())))
    assert [kernel.name for kernel in named] == ["blocks.0.attn/MatMul", "blocks.0.attn/MatMul_1"]
    assert nameless == (Kernel("", "kgen", "attention", "int8"),) * 2
    for kernels in (named, nameless):
        plan = Plan(attention=("blocks.0.attn/MatMul", "blocks.0.attn/MatMul_1"))
        assert census(plan, kernels, "tensorrt").missing == ()


def test_attention_without_a_known_name_is_seen_by_its_parts():
    layer = read(mha() | {"Name": "__myl_Something_myl0_1"})[0]
    assert layer.is_attention


def test_lost_fusion_is_seen():
    scores = fused(["blocks.0.attn/MatMul"], "fp16") | {
        "Inputs": [value("fp16", (6, 197, 64)), value("fp16", (6, 197, 64))], "Outputs": [value("fp16", (6, 197, 197))]
    }  # fmt: skip
    mixed = fused(["blocks.0.attn/MatMul_1"], "fp16") | {
        "Inputs": [value("fp16", (6, 197, 197)), value("fp16", (6, 197, 64))], "Outputs": [value("fp16", (6, 197, 64))]
    }  # fmt: skip
    layers = read(scores, mixed)
    assert inspection.count(layers)["attention"] == {"fused": {}, "products": {"fp16": 2}}
    assert [kernel.role for kernel in inspection.kernels(layers)] == ["attention", "attention"]


@pytest.mark.parametrize("batch", [1, 8])
def test_a_linear_layer_with_a_residual_is_no_attention(batch):
    layer = fused(["blocks.0.attn.proj/MatMul", "blocks.0/Add"], "fp16") | {
        "Inputs": [value("fp16", (batch, 197, 384)), value("fp16", (batch, 197, 384)), value("fp16", (1, 384, 384))],
        "Outputs": [value("fp16", (batch, 197, 384))],
    }
    assert read(layer)[0].role == "gemm"


def test_a_name_with_mha_in_it_is_no_attention():
    assert not read(fused(["mha.0.fc/MatMul"], "fp16", title="mha.0.fc/MatMul"))[0].is_attention


def test_a_product_inside_a_generated_kernel_is_found_there():
    pointwise = fused(["fc/MatMul", "fc/Add"], "int8", "kgen", "__myl_MulAdd_myl0_4")
    assert [kernel.name for kernel in inspection.kernels(read(pointwise))] == ["fc/MatMul"]
    gemm = fused(["fc/MatMul"], "int8")
    after = inspection.kernels(read(gemm, fused(["fc/MatMul", "fc/Add"], "fp16", "kgen", "__myl_MulAdd_myl0_4")))
    assert [(kernel.name, kernel.role, kernel.precision) for kernel in after] == [
        ("fc/MatMul", "gemm", "int8"),
        ("__myl_MulAdd_myl0_4", "other", "fp16"),
    ]


def test_a_part_that_was_taken_as_a_whole_answers_for_nothing():
    layer = fused(["a/MatMul", "b/MatMul"], "int8", "Myelin", "{ForeignNode[a/MatMul...b/MatMul]}")
    layers = read(layer)
    assert inspection.count(layers)["opaque"] == 1
    assert [kernel.role for kernel in inspection.kernels(layers)] == ["other"]


def test_an_engine_that_tells_only_names_is_said_to():
    found = read("blocks.0.attn.qkv/MatMul", "blocks.0/Add")
    assert inspection.count(found) == {
        "layers": 2, "detailed": False, "opaque": 0, "reformats": 0, "gemms": {}, "convs": {},
        "attention": {"fused": {}, "products": {}},
    }  # fmt: skip
    assert [kernel.role for kernel in inspection.kernels(found)] == ["other", "other"]


def test_formats_that_are_not_told_are_unknown():
    layer = classic("fc/MatMul", "fp16", Inputs=[{"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}])
    assert inspection.count(read(layer))["gemms"] == {"unknown": 1}


@pytest.mark.parametrize(
    "item",
    [None, 7, [], {}, {"Name": 3, "LayerType": ["x"], "Inputs": "many", "Outputs": [1, None, {"Dimensions": "?"}], "Weights": 4}],
)
def test_strange_layers_do_no_harm(item):
    assert len(inspection.kernels(read(item, fused(["a/MatMul"], "int8")))) == 2


@pytest.mark.parametrize("text", ["", "no", "[]", "{}", '{"Layers": 3}', "[" * 100_000])
def test_what_is_no_document_is_one_error(text):
    with pytest.raises(MachineError) as caught:
        inspection.layers(text)
    assert caught.value.code == "VD4004"


def test_the_graphs_own_names_go_before_guesses(tiny_artifact):
    known = inspection.roles(tiny_artifact.model)
    assert known["patch_embed.proj/Conv"] == "conv"
    assert known["blocks.0.attn/MatMul"] == known["blocks.1.attn/MatMul_1"] == "attention"
    assert known["blocks.0.attn.qkv/MatMul"] == known["head/Gemm"] == "gemm"
    assert len(known) == 2 * 6 + 2
    layers = read(fused(["blocks.0.attn/MatMul", "strange"], "fp16"), fused(["strange", "other/MatMul"], "fp16"))
    first, second = inspection.kernels(layers, known)
    assert first[:3] == ("blocks.0.attn/MatMul", "gemm", "attention")
    assert second.name == ""


def test_a_graph_that_can_not_be_read_is_one_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(InputError):
        inspection.roles(tmp_path / "model.onnx")


@pytest.mark.parametrize("batch", [-1, 4])
def test_a_dynamic_engine_is_asked_at_its_usual_sizes(batch):
    cuda = FakeCuda()
    shapes = [(size, 3, 4, 6) for size in ((1, 2, 8) if batch < 0 else (4, 4, 4))]
    engine = FakeEngine(cuda, Port("pixels", "FLOAT", (batch, 3, 4, 6)), (Port("logits", "FLOAT", (batch, 5)),), shapes)
    asked = []

    class Inspector:
        execution_context = None

        def get_engine_information(self, wanted):
            assert wanted is fake_device.FORMATS.JSON
            asked.append(self.execution_context and self.execution_context._shape)
            return json.dumps({"Layers": list(VIT)})

    engine.create_engine_inspector = Inspector
    counts = inspection.summary(fake_device.module(engine), engine)
    assert asked == [(2, 3, 4, 6) if batch < 0 else None]
    assert counts["gemms"] == {"int8": 4}
    json.dumps(counts)
    assert cuda.live == {}
