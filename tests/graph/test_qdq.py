"""Q/DQ pairs: what they round to, where they stand, and what they leave alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from tests.graph import foreign, vits
from tests.graph.foreign import Sketch
from vitdeploy.graph import qdq
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.linear import Linear, is_linear
from vitdeploy.graph.structure import recognise

WIDTH, UNITS = 16, 12


def layer(*, bias: bool = True) -> tuple[ir.Model, Linear]:
    """One linear layer on [batch, 6, 16]."""
    sketch = Sketch()
    out = sketch.add("MatMul", "x", sketch.weight(WIDTH, UNITS))
    model = vits.canonical(sketch.model(sketch.add("Add", out, sketch.weight(UNITS)) if bias else out))
    return model, linears(model)[0]


def linears(model: ir.Model) -> list[Linear]:
    return [Linear(node) for node in model.graph if is_linear(node)]


def rounded(numbers: np.ndarray, scale: float, zero: int, dtype: type) -> np.ndarray:
    """What ONNX says of QuantizeLinear and DequantizeLinear."""
    limits = np.iinfo(dtype)
    codes = np.clip(np.rint(numbers / np.float32(scale)) + zero, limits.min, limits.max)
    return ((codes - zero) * np.float32(scale)).astype(np.float32)


def weight_codes(linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    weight = linear.weight
    scale = np.abs(weight).max(0) / 127
    return np.rint(weight / scale).astype(np.int8), scale


@pytest.mark.parametrize(("zero", "dtype"), [(0, np.int8), (-5, np.int8), (101, np.uint8)])
def test_a_tensor_is_rounded_for_the_uses_that_are_named(zero, dtype) -> None:
    sketch = Sketch()
    value = sketch.add("Relu", "x")
    first, second = sketch.add("MatMul", value, sketch.weight(WIDTH, UNITS)), sketch.add("MatMul", value, sketch.weight(WIDTH, 4))
    model = vits.canonical(sketch.model(first, second))
    one, two = linears(model)
    plain = vits.peek(model, one.input)[0]
    qdq.quantize(Editor(model), one.input, qdq.Codes(0.02, zero, dtype), [(one.matmul, 0)])
    after = vits.sound(model)
    seen, other = vits.peek(model, one.input, two.input)
    np.testing.assert_allclose(seen, rounded(plain, 0.02, zero, dtype), atol=1e-6)
    assert (other == plain).all()
    names = [node.name for node in after.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert names == [
        f"{one.matmul.inputs[0].name.removesuffix('.dequantized')}/{kind}Linear" for kind in ("Quantize", "Dequantize")
    ]


@pytest.mark.parametrize(("zero", "pairs"), [(101, 3), (0, 1)])
def test_codes_are_joined_where_the_tensor_is(zero, pairs) -> None:
    """Of parts that are joined themselves, too. Where 0 is its own code, the pair stands behind the whole."""
    sketch = Sketch()
    inner = sketch.add("Concat", sketch.add("Relu", "x"), sketch.add("Neg", "x"), axis=1)
    whole = sketch.add("Concat", inner, sketch.add("Tanh", "x"), axis=1)
    model = vits.canonical(sketch.model(sketch.add("MatMul", whole, sketch.weight(WIDTH, UNITS)), whole))
    (one,) = linears(model)
    plain = vits.peek(model, one.input)[0]
    qdq.quantize(Editor(model), one.input, qdq.Codes(0.02, zero, np.uint8), [(one.matmul, 0)])
    after = vits.sound(model)
    assert [node.op_type for node in after.graph.node].count("QuantizeLinear") == pairs
    np.testing.assert_allclose(vits.peek(model, one.input)[0], rounded(plain, 0.02, zero, np.uint8), atol=1e-6)


def test_one_tensor_can_be_rounded_twice() -> None:
    sketch = Sketch()
    first, second = (sketch.add("MatMul", "x", sketch.weight(WIDTH, 4)) for _ in range(2))
    model = vits.canonical(sketch.model(first, second))
    one, two = linears(model)
    source = one.input
    for linear, scale in ((one, 0.5), (two, 0.25)):
        qdq.quantize(Editor(model), source, qdq.Codes(scale, 0, np.int8), [(linear.matmul, 0)])
    vits.sound(model)
    assert not np.array_equal(*vits.peek(model, one.input, two.input))


def test_weights_have_one_step_an_output_channel() -> None:
    model, linear = layer()
    codes, scale = weight_codes(linear)
    pixels = vits.feed(ir.to_proto(model), 3)
    expected = pixels @ (codes * scale) + linear.bias
    qdq.quantize_weight(Editor(model), linear, codes, scale)
    after = vits.sound(model)
    np.testing.assert_allclose(foreign.run(after, pixels)[0], expected, rtol=1e-5, atol=1e-5)
    (node,) = [node for node in after.graph.node if node.op_type == "DequantizeLinear"]
    assert [each.i for each in node.attribute] == [1] and len(node.input) == 3
    sizes = {each.name: (each.data_type, list(each.dims)) for each in after.graph.initializer}
    assert [sizes[name] for name in node.input] == [(3, [WIDTH, UNITS]), (1, [UNITS]), (3, [UNITS])]


def test_a_weight_that_two_layers_share_stays_for_the_other() -> None:
    sketch = Sketch()
    weight = sketch.weight(WIDTH, WIDTH)
    out = sketch.add("MatMul", sketch.add("Relu", sketch.add("MatMul", "x", weight)), weight)
    model = vits.canonical(sketch.model(out))
    one, two = linears(model)
    before = two.weight
    qdq.quantize_weight(Editor(model), one, *weight_codes(one))
    vits.sound(model)
    assert (two.weight == before).all()
    qdq.quantize_weight(Editor(model), two, *weight_codes(two))
    assert "FLOAT" not in {str(value.dtype) for value in model.graph.initializers.values() if len(value.shape or ()) == 2}
    vits.sound(model)


def test_biases_are_int32_of_the_step_of_the_sum() -> None:
    model, linear = layer()
    scale = np.geomspace(1e-4, 1e-2, UNITS)
    bias = linear.bias
    assert qdq.quantize_bias(Editor(model), linear, scale)
    after = vits.sound(model)
    pixels = vits.feed(after, 2)
    step = scale.astype(np.float32)
    np.testing.assert_allclose(foreign.run(after, pixels)[0], pixels @ linear.weight + np.rint(bias / step) * step, atol=1e-5)
    (node,) = [node for node in after.graph.node if node.op_type == "DequantizeLinear"]
    sizes = {each.name: (each.data_type, list(each.dims)) for each in after.graph.initializer}
    assert [sizes[name] for name in node.input] == [(6, [UNITS]), (1, [UNITS]), (6, [UNITS])]


@pytest.mark.parametrize("step", [1e-12, 1e-60, 0.0])
def test_a_bias_whose_code_would_overflow_stays_float(step) -> None:
    model, linear = layer()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    scale = np.full(UNITS, 0.01)
    scale[3] = step
    assert not qdq.quantize_bias(Editor(model), linear, scale)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_the_largest_code_of_a_bias_is_kept_and_one_more_is_not() -> None:
    for codes, fits in ((qdq.LARGEST_BIAS, True), (qdq.LARGEST_BIAS + 128, False)):
        model, linear = layer()
        linear.write(Editor(model), bias=np.full(UNITS, codes * 2.0**-20))
        assert qdq.quantize_bias(Editor(model), linear, np.full(UNITS, 2.0**-20)) == fits


def test_a_layer_without_bias_has_none_to_quantize() -> None:
    model, linear = layer(bias=False)
    assert not qdq.quantize_bias(Editor(model), linear, np.ones(UNITS))


def test_a_convolution_has_one_step_an_output_channel() -> None:
    sketch = Sketch(shape=("batch", 3, 8, 8))
    proto = sketch.model(sketch.add("Conv", "x", sketch.weight(5, 3, 4, 4), sketch.weight(5), strides=[4, 4]))
    model = vits.canonical(proto)
    conv = model.graph.node(0)
    weight = np.asarray(conv.inputs[1].const_value.numpy())
    scale = np.abs(weight).max((1, 2, 3)) / 127
    codes = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    qdq.quantize_convolution(Editor(model), conv, codes, scale)
    after = vits.sound(model)
    assert [each.i for each in after.graph.node[0].attribute] == [0]
    pixels = vits.feed(proto, 2)
    patches = pixels.reshape(2, 3, 2, 4, 2, 4)  # [N, C, rows, kh, columns, kw]
    kernel, bias = codes * scale[:, None, None, None], np.asarray(conv.inputs[2].const_value.numpy())
    expected = np.einsum("ncyixj,mcij->nmyx", patches, kernel) + bias[:, None, None]
    np.testing.assert_allclose(foreign.run(after, pixels)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_layers_of_one_input_share_its_range_at_run_time(order) -> None:
    sketch = Sketch()
    value = sketch.add("Relu", "x")
    outs = [sketch.add("Add", sketch.add("MatMul", value, sketch.weight(WIDTH, UNITS)), sketch.weight(UNITS)) for _ in range(3)]
    proto = sketch.model(*outs)
    model = vits.canonical(proto)
    layers = linears(model)
    pixels = vits.feed(proto, 3)
    step = np.float32(pixels.max() / 255)  # of what is behind a Relu
    codes = rounded(np.maximum(pixels, 0), float(step), 0, np.uint8)
    expected = [codes @ np.multiply(*weight_codes(layer)) + layer.bias for layer in layers]
    for index in order:
        qdq.quantize_at_run_time(Editor(model), layers[index], *weight_codes(layers[index]))
    after = vits.sound(model)
    counted = vits.operators(model)
    assert counted["DynamicQuantizeLinear"] == 1 and counted["MatMulInteger"] == 3 and not counted["MatMul"]
    assert [each.name for each in after.graph.output] == outs
    for one, two in zip(expected, foreign.run(after, pixels), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def test_codes_of_the_run_time_form_are_exact() -> None:
    model, linear = layer(bias=False)
    codes, scale = weight_codes(linear)
    pixels = vits.feed(ir.to_proto(model), 3)
    low, high = min(0.0, float(pixels.min())), max(0.0, float(pixels.max()))
    step = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / step), 0, 255))
    expected = rounded(pixels, float(step), zero, np.uint8) @ (codes * scale)
    name = linear.name
    qdq.quantize_at_run_time(Editor(model), linear, codes, scale)
    after = vits.sound(model)
    np.testing.assert_allclose(foreign.run(after, pixels)[0], expected, rtol=1e-4, atol=1e-5)
    assert f"{name}Integer" in {node.name for node in after.graph.node}  # as the plan of the census calls it


@pytest.mark.parametrize("form", ["static", "dynamic"])
def test_a_whole_network(form) -> None:
    proto = vits.quick("like-clip")
    model = vits.canonical(proto)
    for site in recognise(model).sites:
        if form == "static":
            (seen,) = vits.peek(model, site.value)
            high, low = max(0.0, float(seen.max())), min(0.0, float(seen.min()))
            step = (high - low) / 255
            codes = qdq.Codes(step, round(-low / step), np.uint8)
            qdq.quantize(Editor(model), site.value, codes, [(linear.matmul, 0) for linear in site.linears])
        for linear in site.linears:
            codes, scale = weight_codes(linear)
            if form == "dynamic":
                qdq.quantize_at_run_time(Editor(model), linear, codes, scale)
            else:
                assert linear.add is None or qdq.quantize_bias(Editor(model), linear, scale * step)
                qdq.quantize_weight(Editor(model), linear, codes, scale)
    after = vits.sound(model)
    pixels = vits.feed(proto, 3)
    plain, result = foreign.run(proto, pixels)[0], foreign.run(after, pixels)[0]
    assert 0 < np.abs(result - plain).max() < 0.3 * plain.std()


def test_8_bit_floats() -> None:
    """An activation and a weight in E4M3, one step each; ONNX Runtime computes what NumPy says of them."""
    model, linear = layer()
    weight, bias, value = linear.weight, linear.bias, linear.input
    scale = np.asarray(np.abs(weight).max() / qdq.LARGEST_E4M3, np.float32)
    codes = (weight / scale).astype(qdq.E4M3)
    qdq.quantize(Editor(model), value, qdq.Codes(0.01, 0, qdq.E4M3), [(linear.matmul, 0)])
    qdq.quantize_weight(Editor(model), linear, codes, scale)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    pixels = vits.feed(after, 3)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    restored = np.clip(pixels / np.float32(0.01), -448, 448).astype(qdq.E4M3).astype(np.float32) * np.float32(0.01)
    expected = restored @ (codes.astype(np.float32) * scale) + bias
    result = session.run(None, {after.graph.input[0].name: pixels})[0]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    (node,) = [node for node in after.graph.node if node.input[0].endswith(".codes")]
    assert not node.attribute, "one step for all has no axis"


def test_a_relu_behind_a_layer_is_written_as_a_maximum() -> None:
    sketch = Sketch()
    total = sketch.add("Add", sketch.add("MatMul", "x", sketch.weight(WIDTH, UNITS)), sketch.weight(UNITS))
    model = vits.canonical(sketch.model(sketch.add("Relu", total)))
    linear, editor = linears(model)[0], Editor(model)
    pixels = vits.feed(ir.to_proto(model), 3)
    before = foreign.run(ir.to_proto(model), pixels)
    name = model.graph.outputs[0].name
    assert qdq.separate_relu(editor, linear)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "Max"]
    assert (model.graph.outputs[0].name, model.graph.outputs[0].shape) == (name, linear.output.shape)
    foreign.same(before, foreign.run(vits.sound(model), pixels))
    assert not qdq.separate_relu(editor, linear)
