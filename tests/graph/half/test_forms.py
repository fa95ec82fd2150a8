"""FP16 forms by schema, and strongly typed graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph.half.graphs import (
    check,
    close,
    from_bytes,
    parsed,
    quantized,
    run,
)
from vitdeploy.errors import InputError
from vitdeploy.graph.half.convert import to_half
from vitdeploy.graph.half.forms import LARGEST, measure_loss


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
        numbers = model.graph.initializers[name].const_value.numpy()
        assert numbers.dtype == array.dtype and (numbers == array).all()
    error = np.abs(run(model, feeds)["y"] - truth["y"]) / truth["y"].std()
    assert error.mean() < 5e-3 and error.max() < 0.05, "a number on the border of two steps may take the other one"


def test_operator_sets_before_19_have_no_fp16_scales() -> None:
    model = quantized(17)
    result = to_half(model)
    check(model, result)
    assert set(result.kept.values()) == {"operator has no FP16 form"}
    assert sorted(result.kept) == ["DequantizeLinear_2", "DequantizeLinear_3", "QuantizeLinear_1"]


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=20))
def test_rounding_is_to_the_nearest_and_keeps_subnormals(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    loss = measure_loss(array)
    grid = np.abs(array.astype(np.float64))
    step = np.where(grid >= 2.0**-14, 2.0 ** (np.floor(np.log2(np.maximum(grid, 2.0**-14))) - 10), 2.0**-24)
    nearest = np.rint(grid / step) * step  # rint rounds ties to even
    assert (nearest == np.abs(array.astype(np.float16).astype(np.float64))).all()
    assert loss.vanished == np.count_nonzero((nearest == 0) & (grid > 0))
    assert loss.subnormal == np.count_nonzero((nearest > 0) & (nearest < 2.0**-14))


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


def test_the_scales_of_a_resize_stay_float32() -> None:
    text = "agraph (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) { h = Mul(x, k)\n y = Resize(h, , scales) }"
    model = parsed(text, k=np.array(2, np.float32), scales=np.array([1, 1, 2, 2], np.float32))
    result = to_half(model)
    check(model, result)
    assert not result.kept
    assert model.graph.initializers["scales"].dtype == ir.DataType.FLOAT


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


def test_halves_the_file(tiny: bytes) -> None:
    model = from_bytes(tiny)
    to_half(model)
    floats = [value for value in model.graph.initializers.values() if value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)]
    assert {value.dtype for value in floats} == {ir.DataType.FLOAT16}
