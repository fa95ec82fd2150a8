"""How large tensors get: what follows from what, to the number, and where the limits are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.half.graphs import parsed, ranges_of
from vitdeploy.graph.half.convert import LIMIT, to_half
from vitdeploy.graph.half.forms import LARGEST, SMALLEST, fill_types
from vitdeploy.graph.half.ranges import bound_tensors, largest, tap

FRAME = "agraph (float[2, 3, 4] x, float[2, 3, 4] other) => (float[] y) { y = BODY }"


def bound(body: str, ranges: dict[str, float], **constants: Any) -> float | None:
    """What is known of y."""
    model = parsed(FRAME.replace("BODY", body), **{name: np.asarray(each) for name, each in constants.items()})
    return {str(value.name): size for value, size in bound_tensors(model, ranges).items()}.get("y")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("Transpose(x)", 3.5),
        ("Reshape(x, shape)", 3.5),
        ("Concat<axis = 0>(x, other)", 5.0),
        ("Concat<axis = 0>(x, table)", 7.0),
        ("Concat<axis = 0>(x, small)", 3.5),
        ("ReduceMean(x)", 3.5),
        ("Slice(x, starts, ends)", 3.5),
        ("Relu(x)", 3.5),
        ("Neg(x)", 3.5),
        ("Gelu(x)", 3.5),
        ("Softmax(x)", 1.0),
        ("Tanh(x)", 1.0),
        ("Cast<to = 1>(x)", 3.5),
        ("Cast<to = 1>(shape)", None),
        ("Add(x, other)", None),
        ("Mul(x, table)", None),
        ("ReduceSum(x)", None),
    ],
)
def test_what_follows_from_the_largest_input(body, expected) -> None:
    constants = {"shape": [6, 4], "starts": [0], "ends": [1]}
    constants |= {"table": np.full((1, 3, 4), -7, np.float32), "small": np.full((1, 3, 4), 2, np.float32)}
    assert bound(body, {"x": 3.5, "other": 5.0}, **constants) == expected


def test_nothing_follows_while_one_input_is_not_known() -> None:
    assert bound("Concat<axis = 0>(x, other)", {"x": 3.5}) is None


def test_what_was_measured_counts_more_than_what_follows() -> None:
    assert bound("Relu(x)", {"x": 3.5, "y": 2.0}) == 2.0


@pytest.mark.parametrize(
    ("codes", "zero", "expected"),
    [
        ("uint8", 100, 155 * 0.5),
        ("uint8", 200, 200 * 0.5),
        ("int8", 0, 128 * 0.5),
        ("int8", -100, 227 * 0.5),
        ("int8", None, 128 * 0.5),
    ],
)
def test_a_dequantized_tensor_is_as_large_as_its_codes_allow(codes, zero, expected) -> None:
    text = f"agraph ({codes}[2, 4] q) => (float[2, 4] y) {{ y = DequantizeLinear(q, s{'' if zero is None else ', z'}) }}"
    constants = {"s": np.float32(0.5)} | ({} if zero is None else {"z": np.array(zero, codes)})
    model = parsed(text, **{name: np.asarray(each) for name, each in constants.items()})
    assert [size for value, size in bound_tensors(model, {}).items() if value.name == "y"] == [expected]


def test_constant_codes_are_as_large_as_they_are() -> None:
    text = "agraph (float[2] x) => (float[2] y) { w = DequantizeLinear<axis = 0>(q, s, z)\n y = Mul(x, w) }"
    model = parsed(text, q=np.array([-3, 90], np.int8), s=np.array([0.5, 0.25], np.float32), z=np.array([1, -2], np.int8))
    fill_types(model)
    sizes = {str(value.name): size for value, size in bound_tensors(model, {}).items()}
    assert sizes["w"] == max(abs(90 + 2), abs(-3 - 1)) * 0.5


def test_infinities_are_no_sizes() -> None:
    assert largest(np.array([1, -4, np.inf, -np.inf, np.nan])) == 4 and largest(np.array([-np.inf])) == 0
    assert largest(np.zeros(0)) == 0


def test_minus_infinity_that_no_mask_explains_shows() -> None:
    """An Add of two tensors that are computed hides nothing."""
    model = parsed(FRAME.replace("BODY", "Add(x, other)").replace("float[] y", "float[2, 3, 4] y"))
    feeds = {name: np.ones((2, 3, 4), np.float32) for name in ("x", "other")}
    feeds["other"][0, 1, 2] = -np.inf
    ranges = ranges_of(model, feeds)
    assert ranges["x"] == 1 and ranges["y"] == np.inf
    assert len(tap(model).model.graph) == 1 + 3 * 7  # sum, and seven nodes a tensor: none for masks


# Limits


def above(number: float) -> float:
    return float(np.nextafter(np.float32(number), np.float32(np.inf)))


@pytest.mark.parametrize(("size", "kept"), [(LIMIT, 0), (above(LIMIT), 3)])
def test_a_tensor_may_reach_half_of_what_fp16_holds(size, kept) -> None:
    model = parsed("agraph (float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w)\n b = MatMul(a, w)\n y = MatMul(b, w) }",
                   w=np.eye(4, dtype=np.float32))  # fmt: skip
    result = to_half(model, ranges={"x": 1.0, "a": size, "b": 1.0, "y": 1.0})
    assert len(result.overflow) == bool(kept)
    assert set(result.kept) == ({"MatMul_0", "MatMul_1"} if kept else set())
    assert [(each.node, each.tensor, each.max_abs) for each in result.overflow] == ([("MatMul_0", "a", size)] if kept else [])


def test_a_size_of_whole_numbers_is_no_overflow() -> None:
    """Only float32 tensors become FP16: others are left out however large they are."""
    model = parsed("agraph (int64[n, 4] i, float[n, 4] x) => (float[n, 4] y) { f = Cast<to = 1>(i)\n y = Add(f, x) }")
    result = to_half(model, ranges={"i": 1e9, "f": 10.0, "x": 1.0, "y": 1.0})
    assert not result.overflow


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (LARGEST, ""),
        (above(LARGEST), "constant w reaches 6.55e+04"),
        (SMALLEST / 2, "constant w would become 0"),
        (above(SMALLEST / 2), ""),
        (0.0, ""),
    ],
)
def test_constants_up_to_the_largest_and_above_half_the_smallest_number_fit(number, reason) -> None:
    model = parsed("agraph (float[n, 4] x) => (float[n, 4] y) { h = Neg(x)\n y = Mul(h, w) }", w=np.full(4, number, np.float32))
    result = to_half(model)
    assert result.kept.get("Mul_1", "") == reason
    kept = model.graph.initializers["w"].const_value.numpy()
    assert kept.dtype == (np.float32 if reason else np.float16)
    np.testing.assert_array_equal(kept.astype(np.float32), np.float32(number).astype(np.float16 if not reason else np.float32))


@pytest.mark.parametrize(
    ("body", "fits", "too_large"),
    [
        ("LayerNormalization<axis = -1>(h, w)", LIMIT**0.5 * (1 - 1e-6), LIMIT**0.5 * (1 + 1e-6)),
        ("ReduceMean(h, last)", None, None),
        ("ReduceMean<keepdims = 1>(h)", None, None),
        ("GlobalAveragePool(h)", None, None),
    ],
)
def test_what_is_summed_inside_may_reach_half_of_what_fp16_holds(body, fits, too_large) -> None:
    """By 2 x 3 x 4 numbers: all of them, or four, or twelve, are summed."""
    count = {"ReduceMean(h, last)": np.inf, "ReduceMean<keepdims = 1>(h)": 24, "GlobalAveragePool(h)": 4}.get(body, 1)
    text = f"agraph (float[2, 3, 4] x) => (float[] y) {{ h = MatMul(x, m)\n y = {body} }}"
    constants = {"w": np.ones(4, np.float32), "m": np.eye(4, dtype=np.float32), "last": np.array([-1])}
    if "last" in body:
        count = 4
    pairs = ((LIMIT / count, True), (above(LIMIT / count), False)) if fits is None else ((fits, True), (too_large, False))
    for size, half in pairs:
        result = to_half(parsed(text, **constants), ranges={"x": 1.0, "h": size, "y": 1.0})
        assert (not result.kept) == half, (size, result.kept)


@pytest.mark.parametrize(("rank", "heads"), [(4, 1), (3, 2)])
def test_the_scores_inside_an_attention_may_reach_half_of_what_fp16_holds(rank, heads) -> None:
    """|q k| is at most the head size, 8, times both maxima."""
    shape, attributes = ("float[1, 2, 7, 8]", "") if rank == 4 else ("float[1, 7, 16]", "<q_num_heads = 2, kv_num_heads = 2>")
    text = f"agraph ({shape} q, {shape} k, {shape} v) => ({shape} y) {{ y = Attention{attributes}(q, k, v) }}"
    for size, half in ((LIMIT / 8 / 2, True), (above(LIMIT / 8 / 2), False)):
        assert (to_half(parsed(text, 23), ranges={"q": size, "k": 2.0, "v": 1.0, "y": 1.0}).half == 1) == half


PAIR = """agraph (float[n, 2] x) => (float[n, 2] y) {
    h = Neg(x)
    q = QuantizeLinear(h, s, z)
    y = DequantizeLinear(q, s, z)
}"""


@pytest.mark.parametrize(("size", "half"), [(LARGEST / 4, True), (above(LARGEST / 4), False)])
def test_a_tensor_divided_by_its_scale_fits(size, half) -> None:
    model = parsed(PAIR, s=np.array(0.25, np.float32), z=np.array(0, np.int8))
    result = to_half(model, ranges={"x": 1.0, "h": size})
    assert ("QuantizeLinear_1" not in result.kept) == half


def test_the_smallest_scale_counts() -> None:
    scales, zeros = np.array([1, 2.0**-14], np.float32), np.zeros(2, np.int8)
    assert "QuantizeLinear_1" not in to_half(parsed(PAIR, s=scales, z=zeros)).kept
    scales[1] = np.nextafter(scales[1], np.float32(0))
    assert "too small" in to_half(parsed(PAIR, s=scales, z=zeros)).kept["QuantizeLinear_1"]
