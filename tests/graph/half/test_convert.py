"""FP16 that cannot overflow: strongly typed, few Casts, and FP32 where FP16 would lose the result."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.half.graphs import (
    check,
    close,
    exported,
    feeds_of,
    from_bytes,
    list_chosen,
    parsed,
    quantized,
    ranges_of,
    run,
    run_in_half,
    to_bytes,
)
from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph.half.convert import LIMIT, to_half


@pytest.mark.sampled(4)
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
    results = run(model, feeds)
    close(results, truth, "logits")
    assert (results["top_k_indices"] == truth["top_k_indices"]).mean() > 0.9


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
    results = run(model, feeds)
    for name in ("y", "top"):
        assert results[name].dtype == np.float32 and np.abs(results[name] - truth[name]).max() <= 2.1, "at most one step of q"
    assert np.abs(results["steps"] - truth["steps"]).max() <= 3


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
    ranges = dict.fromkeys(list_chosen(model), 1.0) | {"Add_out": 300.0}
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


def test_scales_too_small_for_fp16_stay() -> None:
    model = quantized(20, smallest=2e-5)
    result = to_half(model)
    check(model, result)
    assert list(result.kept) == ["DequantizeLinear_3"] and "scale sw is 2e-05" in result.kept["DequantizeLinear_3"]
    assert model.graph.initializers["sw"].dtype == ir.DataType.FLOAT


def test_a_quantizer_whose_quotient_overflows_stays() -> None:
    result = to_half(quantized(20), ranges={"h": 3000.0})
    assert "divided by its scale" in result.kept["QuantizeLinear_1"]


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
    numbers = model.graph.initializers["odd"].const_value.numpy()
    assert numbers.dtype == np.float16 and numbers[1] == pytest.approx(3e-6, rel=0.02)
    assert numbers[2] == 0 and numbers[3] == -np.inf


def test_epsilons_that_fp16_does_not_have_are_told(tiny: bytes) -> None:
    assert not to_half(from_bytes(tiny)).epsilons
    model = from_bytes(tiny)
    for node in model.graph:
        if node.op_type == "LayerNormalization":
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-12)
    result = to_half(model)
    assert result.epsilons["norm/LayerNormalization"] == pytest.approx(1e-12)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert all(node.attributes.get_float("epsilon") == pytest.approx(1e-12) for node in norms), "the attribute survives"
    again = from_bytes(tiny)
    norm = next(node for node in again.graph if node.name == "norm/LayerNormalization")
    norm.attributes["stash_type"] = ir.AttrInt64("stash_type", ir.DataType.FLOAT16.value)
    assert to_half(again).kept == {"norm/LayerNormalization": "its sums are not in FP32 (stash_type)"}


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
    ranges = dict.fromkeys(list_chosen(from_bytes(tiny)), 1.0) | {"blocks.0/Add_1_out": 1e5}
    made = []
    for keep in itertools.permutations(("softmax", "head", "layernorm")):
        model = from_bytes(tiny)
        result = to_half(model, keep=keep, ranges=ranges)
        made.append((to_bytes(model), result.half, result.casts, list(result.kept)))
    assert all(one == made[0] for one in made)
