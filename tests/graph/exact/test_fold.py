"""Exact rewrites: the same function afterwards, with the numbers where they were to go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.checkpoints.cases import CASES
from tests.graph import foreign, vits
from tests.graph.foreign import Sketch
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.class_token import keep_class_token
from vitdeploy.graph.exact.rotate import make_head_rotation, rotate_keys, rotate_values
from vitdeploy.graph.query import constant
from vitdeploy.graph.structure import Attention, Structure, recognise
from vitdeploy.quant.preparation import Layout, prepare

FEW = ["plain", "qkv-bias-none", "heads-inner-wider", "like-eva02", "like-siglip"]
CHAIN = [
    "plain", "patch-linear", "patch-no-bias", "one-patch", "tokens-none", "tokens-distilled", "tokens-all",
    "position-conditional", "position-none", "relative-blocks", "relative-shared", "rotary-eva02-qk-norm", "qkv-bias-qv",
    "qk-norm", "attn-norm", "heads-full-width", "mlp-relu", "mlp-swiglu-norm", "mlp-linear", "norm-none",
    "norm-pooled-distilled", "pool-max", "pool-map-swiglu", "head-none-cls-mean", "head-mlp", "depth-1", "like-dinov2",
    "like-dinov3", "like-clip", "like-siglip", "like-beit", "like-eva02",
]  # fmt: skip
"""Together they have every part that a rewrite has to do with."""


def vit(name: str, opset: int | None = None) -> tuple[ir.Model, Structure]:
    model = vits.canonical(vits.quick(name) if opset is None else foreign.script(name, opset))
    return model, recognise(model)


# Normalisation


def normalised(*steps: tuple[str, np.ndarray], channels: int = 3, **attributes) -> tuple[ir.Model, object]:
    sketch = Sketch(shape=("batch", channels, 8, 8))
    value = "x"
    for operator, numbers in steps:
        value = sketch.add(operator, value, sketch.constant(numbers.astype(np.float32)))
    weights = [sketch.weight(4, 3, 4, 4)] + ([sketch.weight(4)] if len(steps) % 2 else [])
    proto = sketch.model(sketch.add("Conv", value, *weights, **({"kernel_shape": [4, 4], "strides": [4, 4]} | attributes)))
    return vits.canonical(proto), proto


MEAN, STD = np.array([0.4, 0.5, 0.6]).reshape(3, 1, 1), np.array([[[[0.2]], [[0.25]], [[0.3]]]])


@pytest.mark.parametrize(
    "steps",
    [
        [("Sub", MEAN), ("Div", STD)],
        [("Mul", 1 / STD), ("Add", -MEAN)],
        [("Div", np.array(255.0)), ("Sub", MEAN), ("Div", STD)],
        [("Add", np.array([0.5])), ("Mul", np.array(2.0)), ("Sub", MEAN), ("Mul", STD), ("Add", MEAN)],
    ],
)
def test_normalisation_goes_into_the_patch_embedding(steps) -> None:
    model, proto = normalised(*steps)
    assert len(fold.fold_normalisation(Editor(model))) == len(steps)
    assert set(vits.operators(model)) == {"Conv"}
    vits.same(proto, model)
    assert fold.fold_normalisation(Editor(model)) == []


@pytest.mark.parametrize(
    ("steps", "attributes"),
    [
        ([("Sub", MEAN)], {"pads": [1, 1, 1, 1]}),
        ([("Sub", MEAN)], {"auto_pad": "SAME_UPPER"}),
        ([("Sub", MEAN)], {"channels": 1}),
        ([("Sub", np.zeros((1, 3, 8, 8)) + MEAN)], {}),
        ([("Pow", np.array(2.0))], {}),
    ],
    ids=["padded", "auto-pad", "one channel becomes three", "a number a pixel", "another operator"],
)
def test_normalisation_that_would_be_another_function_is_left(steps, attributes) -> None:
    model, proto = normalised(*steps, **attributes)
    count = len(model.graph)
    assert fold.fold_normalisation(Editor(model)) == []
    assert len(model.graph) == count
    vits.same(proto, model)


def test_normalised_pixels_that_something_else_reads_stay() -> None:
    sketch = Sketch(shape=("batch", 3, 8, 8))
    value = sketch.add("Sub", "x", sketch.constant(MEAN.astype(np.float32)))
    conv = sketch.add("Conv", value, sketch.weight(3, 3, 1, 1))
    model = vits.canonical(sketch.model(sketch.add("Add", conv, value)))
    assert fold.fold_normalisation(Editor(model)) == []


# Factors and layers


@pytest.mark.parametrize(
    ("name", "opset"), [("like-dinov2", None), ("layer-scale", None), ("timm", 17), ("Dinov2ForImageClassification", 17)]
)
def test_layer_scale_goes_into_the_layers(name, opset) -> None:
    model, structure = vit(name, opset)
    before, muls = ir.to_proto(model), vits.operators(model)["Mul"]
    assert len(fold.fold_layer_scale(Editor(model), structure)) == 4
    assert vits.operators(model)["Mul"] == muls - 4
    vits.same(before, model)
    assert fold.fold_layer_scale(Editor(model), recognise(model)) == []


def test_a_factor_of_one_number_and_of_no_axes_is_folded_and_the_output_keeps_its_name() -> None:
    sketch = Sketch()
    query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
    scores = sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 2, 1]))
    out = sketch.add("MatMul", sketch.add("MatMul", sketch.add("Softmax", scores), value), sketch.weight(16, 16))
    proto = sketch.model(sketch.add("Mul", out, sketch.constant(np.float32(3))))
    model = vits.canonical(proto)
    assert len(fold.fold_layer_scale(Editor(model), recognise(model))) == 1
    vits.same(proto, model)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "opset"), [("timm-unfused", 13), ("timm", 17), ("torchvision", 17), ("CLIPVisionModel", 17)])
def test_query_scale_goes_into_the_weights(name, opset) -> None:
    model, structure = vit(name, opset)
    before, muls = ir.to_proto(model), vits.operators(model)["Mul"]
    assert len(fold.fold_query_scale(Editor(model), structure)) == foreign.DEPTH
    assert vits.operators(model)["Mul"] == muls - foreign.DEPTH
    vits.same(before, model)
    assert fold.fold_query_scale(Editor(model), recognise(model)) == []


@pytest.mark.parametrize("name", ["ViTForImageClassification", "CLIPVisionModel", "DINOv3ViTModel"])
def test_three_layers_become_one(name) -> None:
    model, structure = vit(name, 17)  # DINOv3's keys have no bias
    before, count = ir.to_proto(model), vits.operators(model)["MatMul"]
    assert len(fold.pack_qkv(Editor(model), structure)) == foreign.DEPTH
    assert vits.operators(model)["MatMul"] == count - 2 * foreign.DEPTH
    vits.same(before, model)
    again = recognise(model)
    assert all(attention.packed is not None for attention in again.attentions)
    for known, now in zip(structure.attentions, again.attentions, strict=True):
        for one, two in zip(known.columns, now.columns, strict=True):
            assert (one is None) == (two is None) and (one is None or (one == two).all())
    assert fold.pack_qkv(Editor(model), again) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["plain", "like-eva02", "attn-norm", "like-siglip"])
def test_norms_give_their_weights_away(name) -> None:
    model, structure = vit(name)
    before = ir.to_proto(model)
    norms = [site for site in structure.sites if site.kind == "norm"]
    assert all(fold.fold_norm_affine(Editor(model), site) for site in norms)
    for site in norms:
        assert site.maker is not None
        gamma, beta = fold.read_affine(site.maker)
        assert (gamma == 1).all() and not beta.any()
    vits.same(before, model)
    assert not any(fold.fold_norm_affine(Editor(model), site) for site in recognise(model).sites)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FEW)
def test_every_input_can_be_rescaled_and_that_of_norms_moved(name) -> None:
    model, structure = vit(name)
    before, random = ir.to_proto(model), np.random.default_rng(0)
    for site in structure.sites:
        width = site.linears[0].shape[0]
        factor = random.uniform(0.25, 4, width)
        shift = random.standard_normal(width) if site.kind == "norm" else np.zeros(width)
        (plain,) = vits.peek(ir.from_proto(before), site.value)
        fold.rescale_input(Editor(model), site, factor, shift)
        (moved,) = vits.peek(model, site.value)
        if site is structure.sites[0]:
            np.testing.assert_allclose(moved, (plain - shift) / factor, atol=1e-4)
    vits.same(before, model)


def test_a_layer_on_some_tokens_of_a_rescaled_input_gets_them_rescaled() -> None:
    model, structure = vit("plain")
    before = ir.to_proto(model)
    assert keep_class_token(Editor(model), structure)
    structure = recognise(model)
    assert sum(linear.input is not site.value for site in structure.sites for linear in site.linears) == 1
    for site in structure.sites:
        site.kind = "other"  # as if each were made by something that can't be changed
        fold.rescale_input(Editor(model), site, np.linspace(0.5, 2, site.linears[0].shape[0]), np.zeros(site.linears[0].shape[0]))
    vits.same(before, model)


# Heads


def heads(attention: Attention, part: int) -> tuple[int, ...]:
    columns = attention.columns[part]
    assert columns is not None
    return columns.shape


@pytest.mark.parametrize(("name", "opset"), [*((name, None) for name in FEW), ("timm", 17), ("torchvision", 17)])
def test_values_can_be_moved_and_turned(name, opset) -> None:
    model, structure = vit(name, opset)
    before, random = ir.to_proto(model), np.random.default_rng(1)
    known = [attention for attention in structure.attentions if attention.rows is not None]
    for attention in known:
        shape = heads(attention, 2)
        fold.shift_values(Editor(model), attention, random.uniform(0.5, 2, shape), random.standard_normal(shape))
        rotate_values(Editor(model), attention, make_head_rotation(shape[1]))
    assert known or CASES[name].attn_norm
    vits.same(before, model)


@pytest.mark.parametrize(("name", "opset"), [("plain", None), ("relative-blocks", None), ("timm", 17), ("CLIPVisionModel", 17)])
def test_keys_can_be_moved_and_turned_with_their_queries(name, opset) -> None:
    model, structure = vit(name, opset)
    before, random = ir.to_proto(model), np.random.default_rng(2)
    for attention in structure.attentions:
        shape = heads(attention, 1)
        fold.shift_keys(Editor(model), attention, random.uniform(0.5, 2, shape), random.standard_normal(shape))
        rotate_keys(Editor(model), attention, make_head_rotation(shape[1], seed=3))
    vits.same(before, model)


def test_centred_values_have_no_mean() -> None:
    model, structure = vit("plain")
    attention = structure.attentions[0]
    value = attention.context.inputs[1]
    assert value is not None
    (values,) = vits.peek(model, value)  # [N, h, T, d]
    center = values.mean((0, 2))
    fold.shift_values(Editor(model), attention, np.full(center.shape, 2.0), center)
    (moved,) = vits.peek(model, value)
    np.testing.assert_allclose(moved, (values - center[:, None]) / 2, atol=1e-5)


# All of them


@pytest.mark.sampled(8)
@pytest.mark.parametrize("layout", [Layout(), Layout(attention=True)], ids=["gemms", "attention"])
@pytest.mark.parametrize("name", CHAIN)
def test_all_rewrites_of_our_own_networks(name, layout) -> None:
    before = vits.quick(name)
    model = ir.from_proto(before)
    prepared = prepare(model, layout)
    after = vits.same(before, model)
    spec = CASES[name]
    norms = [site for site in prepared.structure.sites if site.kind == "norm"]
    assert prepared.rewrites["norm-affine"] == len(norms)
    of_stream = [site for site in norms if site.linears[0].shape[0] == spec.width]  # a norm inside a block reads another
    assert prepared.rewrites["rotation"] == len(of_stream) > 0
    for site in norms:
        weight = constant(site.maker.inputs[1]) if site.maker is not None else None
        assert weight is not None and (weight == 1).all()
    assert ("layer-scale" in prepared.rewrites) == (spec.layer_scale is not None)
    second = prepare(ir.from_proto(after), layout, skip=("rotation", "head-rotation")).rewrites
    assert not set(second) & {"layer-scale", "query-scale", "pack", "class-token", "norm-affine", "normalisation"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("layout", [Layout(), Layout(attention=True)], ids=["gemms", "attention"])
@pytest.mark.parametrize(("name", "opset"), vits.FOREIGN)
def test_all_rewrites_of_other_peoples_networks(name, opset, layout) -> None:
    before = foreign.script(name, opset)
    model = ir.from_proto(before)
    prepared = prepare(model, layout)
    vits.same(before, model)
    assert prepared.rewrites["norm-affine"] == 2 * foreign.DEPTH
    assert ("rotation" in prepared.rewrites) == (name != "CLIPVisionModel")  # which gives the stream itself away
    assert vits.operators(model)["Mul"] == {"DINOv3ViTModel": 5 * foreign.DEPTH, "CLIPVisionModel": 2 * foreign.DEPTH}.get(
        name, 0
    )


@pytest.mark.slow
def test_all_rewrites_of_our_own_export() -> None:
    before = vits.exported("like-dinov2")
    model = ir.from_proto(before)
    assert {"layer-scale", "class-token", "norm-affine", "rotation", "head-rotation"} <= set(prepare(model, Layout()).rewrites)
    vits.same(before, model)


def test_all_rewrites_with_every_output_raw_pixels_and_one_batch_size() -> None:
    options = {"outputs": ("tokens", "pooled"), "top_k": 2, "input": "uint8-nhwc", "batch": 3}
    before = vits.quick("layer-scale", **options)
    model = ir.from_proto(before)
    rewrites = prepare(model, Layout(attention=True)).rewrites
    assert {"layer-scale", "norm-affine", "rotation"} <= set(rewrites) and "class-token" not in rewrites
    vits.same(before, model, limit=2e-5)


def test_one_batch_size_of_another_exporter() -> None:
    before = foreign.script("timm", 17, 4)
    model = ir.from_proto(before)
    assert {"query-scale", "class-token", "rotation"} <= set(prepare(model, Layout(attention=True)).rewrites)
    vits.same(before, model)
