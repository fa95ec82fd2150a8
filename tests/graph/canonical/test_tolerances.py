"""How near to a form of the books a graph must be: what is as near is rewritten, what is a little further off stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from tests.graph.foreign import Sketch, check, counts, rewritten, run, same, sketched
from tests.graph.vits import canonical, operators


def gelu(sketch: Sketch, source: str, root: float, dtype: type = np.float32) -> str:
    """x/2 (1 + erf(x root))."""
    half, one, root = (sketch.constant(np.array(number, dtype)) for number in (0.5, 1, root))
    total = sketch.add("Add", sketch.add("Erf", sketch.add("Mul", source, root)), one)
    return sketch.add("Mul", sketch.add("Mul", source, total), half)


def tanh_gelu(sketch: Sketch, cubic: float) -> str:
    number = {each: sketch.constant(np.float32(each)) for each in (0.5, 1, cubic, (2 / np.pi) ** 0.5, 3)}
    inner = sketch.add("Add", "x", sketch.add("Mul", number[cubic], sketch.add("Pow", "x", number[3])))
    curve = sketch.add("Tanh", sketch.add("Mul", number[(2 / np.pi) ** 0.5], inner))
    return sketch.add("Mul", sketch.add("Mul", number[0.5], "x"), sketch.add("Add", number[1], curve))


@pytest.mark.parametrize(("off", "fused"), [(5e-6, 1), (-5e-6, 1), (2e-5, 0), (-2e-5, 0)])
def test_a_gelu_is_one_to_the_rounding_of_its_constants(off, fused) -> None:
    """A root that is off by d moves the curve by 0.3 d at most, where the products of float32 are off by 1e-7."""
    sketch = Sketch()
    assert sketched(sketch, gelu(sketch, "x", 0.5**0.5 * (1 + off)))[0]["Gelu"] == fused


@pytest.mark.parametrize(("off", "fused"), [(2e-5, 1), (-2e-5, 1), (3e-4, 0), (-3e-4, 0)])
def test_a_gelu_of_tanh_is_one_to_the_rounding_of_its_constants(off, fused) -> None:
    sketch = Sketch()
    assert sketched(sketch, tanh_gelu(sketch, 0.044715 * (1 + off)))[0]["Gelu"] == fused


@pytest.mark.parametrize(("off", "fused"), [(4e-3, 1), (1.2e-2, 0)])
def test_a_gelu_of_16_bits_may_be_as_far_off_as_its_constants(off, fused) -> None:
    sketch = Sketch()
    narrow = sketch.add("Cast", "x", to=TensorProto.FLOAT16)
    model = canonical(sketch.model(gelu(sketch, narrow, 0.5**0.5 * (1 + off), np.float16), kind=TensorProto.FLOAT16))
    assert operators(model)["Gelu"] == fused


@pytest.mark.parametrize(("off", "fused"), [(5e-7, 1), (-5e-7, 1), (5e-6, 0), (-5e-6, 0)])
@pytest.mark.parametrize("place", ["square", "root", "inverse root", "one"])
def test_powers_of_a_layer_norm_are_those_of_the_book(place, off, fused) -> None:
    sketch = Sketch(17)

    def number(name: str, value: float) -> str:
        return sketch.constant(np.float32(value * (1 + off * (name == place))))

    centred = sketch.add("Sub", "x", sketch.add("ReduceMean", "x", axes=[-1]))
    variance = sketch.add("ReduceMean", sketch.add("Pow", centred, number("square", 2)), axes=[-1])
    shifted = sketch.add("Add", variance, sketch.constant(np.float32(1e-5)))
    if place == "one":
        out = sketch.add("Mul", centred, sketch.add("Div", number("one", 1), sketch.add("Sqrt", shifted)))
    elif place == "inverse root":
        out = sketch.add("Mul", centred, sketch.add("Pow", shifted, number("inverse root", -0.5)))
    else:
        out = sketch.add("Div", centred, sketch.add("Pow", shifted, number("root", 0.5)))
    proto = sketch.model(out)
    after, _ = rewritten(proto)
    assert counts(after)["LayerNormalization"] == fused
    if place != "square":  # of a negative number there is no such power
        check(proto, after, (6, 16))


@pytest.mark.parametrize(("level", "added"), [(-1e9, 1), (-9.9e8, 0), (-2e8, 0)])
def test_scores_weigh_nothing_from_minus_a_billion_on(level, added) -> None:
    sketch = Sketch()
    scores = sketch.add("MatMul", "x", sketch.add("Transpose", "x", perm=[0, 2, 1]))
    hidden = sketch.constant(np.triu(np.ones((6, 6), bool), 1))
    masked = sketch.add("Where", hidden, sketch.constant(np.float32(level)), scores)
    counted, _ = sketched(sketch, sketch.add("MatMul", sketch.add("Softmax", masked), "x"))
    assert (counted["Add"], counted["Where"]) == (added, 1 - added)


def test_the_epsilon_of_a_layer_norm_is_its_own() -> None:
    sketch = Sketch(17)
    centred = sketch.add("Sub", "x", sketch.add("ReduceMean", "x", axes=[-1]))
    variance = sketch.add("ReduceMean", sketch.add("Mul", centred, centred), axes=[-1])
    shifted = sketch.add("Add", sketch.constant(np.float32(0.25)), variance)
    proto = sketch.model(sketch.add("Div", centred, sketch.add("Sqrt", shifted)))
    model = canonical(proto)
    (node,) = model.graph
    assert isinstance(node, ir.Node) and node.attributes.get_float("epsilon") == 0.25
    check(proto, ir.to_proto(model), (6, 16))


# 16 bits: what a rewrite adds has the type of what is there


def in_half(sketch: Sketch, end: str) -> None:
    """Well typed, all of it FP16, and equal to a few units in the last place."""
    proto = sketch.model(sketch.add("Cast", end, to=TensorProto.FLOAT))
    after, _ = rewritten(proto)
    inferred = onnx.shape_inference.infer_shapes(after, check_type=True, strict_mode=True).graph
    inner = {each.name: each.type.tensor_type.elem_type for each in inferred.value_info}
    assert TensorProto.FLOAT not in inner.values() and TensorProto.FLOAT16 in inner.values()
    assert all(node.domain == "" for node in after.graph.node)
    feed = np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)
    same(run(proto, feed), run(after, feed), 4e-3)


def half_weight(sketch: Sketch, *shape: int) -> str:
    return sketch.constant((sketch.random.standard_normal(shape) / 3).astype(np.float16))


def start(opset: int, **domains: int) -> tuple[Sketch, str]:
    sketch = Sketch(opset, **domains)
    return sketch, sketch.add("Cast", "x", to=TensorProto.FLOAT16)


def test_a_factor_of_a_product_in_16_bits() -> None:
    sketch, value = start(14, com_microsoft=1)
    in_half(sketch, sketch.add("FusedMatMul", value, half_weight(sketch, 16, 8), alpha=0.25, domain="com.microsoft"))


@pytest.mark.parametrize("mask", [None, np.tril(np.ones((6, 6), bool))], ids=["all", "mask"])
def test_attention_in_16_bits(mask) -> None:
    sketch, value = start(23)
    parts = [sketch.add("MatMul", value, half_weight(sketch, 16, 16)) for _ in range(3)]
    masks = () if mask is None else (sketch.constant(mask),)
    in_half(sketch, sketch.add("Attention", *parts, *masks, q_num_heads=2, kv_num_heads=2))


def test_scales_and_masks_of_scores_in_16_bits() -> None:
    sketch, value = start(20)
    scaled = sketch.add("Mul", value, sketch.constant(np.float16(0.5)))
    scores = sketch.add("MatMul", scaled, sketch.add("Transpose", sketch.add("Mul", value, sketch.constant(np.float16(0.5))),
                                                     perm=[0, 2, 1]))  # fmt: skip
    masked = sketch.add("Where", sketch.constant(np.triu(np.ones((6, 6), bool), 1)), sketch.constant(np.float16(-np.inf)), scores)
    in_half(sketch, sketch.add("MatMul", sketch.add("Softmax", masked), value))


def test_a_layer_norm_without_weights_in_16_bits() -> None:
    sketch, value = start(17)
    centred = sketch.add("Sub", value, sketch.add("ReduceMean", value, axes=[-1]))
    variance = sketch.add("ReduceMean", sketch.add("Mul", centred, centred), axes=[-1])
    shifted = sketch.add("Add", variance, sketch.constant(np.float16(1e-3)))
    in_half(sketch, sketch.add("Div", centred, sketch.add("Sqrt", shifted)))


def test_a_gate_in_16_bits() -> None:
    sketch, value = start(14, com_microsoft=1)
    in_half(sketch, sketch.add("QuickGelu", value, domain="com.microsoft"))
