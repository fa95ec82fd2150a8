"""Linear layers: what is written to one of them stays with it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import foreign, vits
from tests.graph.foreign import Sketch
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.linear import Linear, insert_linear, insert_split


def test_shared_weights_are_left_to_the_other_layer() -> None:
    sketch = Sketch()
    weight = sketch.weight(16, 16)
    first = sketch.add("MatMul", "x", weight)
    proto = sketch.model(sketch.add("MatMul", sketch.add("Relu", first), weight))
    model = vits.canonical(proto)
    one, two = (Linear(node) for node in model.graph if node.op_type == "MatMul")
    before = two.weight
    one.write(Editor(model), 2 * one.weight)
    assert (two.weight == before).all() and (one.weight == 2 * before).all()
    two.write(Editor(model), 0.5 * before, np.zeros(16))
    vits.same(proto, model)
    assert len(model.graph.initializers) == 2


def test_a_bias_is_added_behind_a_layer_that_makes_an_output() -> None:
    sketch = Sketch()
    proto = sketch.model(sketch.add("MatMul", "x", sketch.weight(16, 16)))
    model = vits.canonical(proto)
    linear = Linear(model.graph.node(0))
    linear.write(Editor(model), bias=np.ones(16))
    after = vits.sound(model)
    assert after.graph.output[0].name == proto.graph.output[0].name
    pixels = vits.feed(proto, 2)
    np.testing.assert_allclose(foreign.run(after, pixels)[0], foreign.run(proto, pixels)[0] + 1, rtol=1e-6, atol=1e-6)
    assert Linear(linear.matmul).add is linear.add


@pytest.mark.parametrize(
    ("shape", "is_bias"),
    [((12,), True), ((1, 12), True), ((), True), ((1,), True), ((6, 12), False), ((1, 1, 12), False), ((6, 1), False)],
)
def test_what_is_added_is_a_bias_when_it_is_one_number_a_column(shape, is_bias) -> None:
    sketch = Sketch()
    table = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    out = sketch.add("Add", sketch.add("MatMul", "x", sketch.weight(16, 12)), sketch.constant(table))
    linear = Linear(ir.from_proto(sketch.model(out)).graph.node(0))
    assert (linear.add is not None) == is_bias and linear.shape == (16, 12)
    expected = np.broadcast_to(table.reshape(-1), 12) if is_bias else np.zeros(12)
    assert linear.bias.dtype == np.float32 and (linear.bias == expected).all()
    assert (linear.output is linear.matmul.outputs[0]) != is_bias


@pytest.mark.parametrize("read", ["twice", "output", "subtracted"])
def test_a_sum_that_is_not_the_products_alone_is_no_bias(read) -> None:
    sketch = Sketch()
    product = sketch.add("MatMul", "x", sketch.weight(16, 12))
    out = sketch.add("Sub" if read == "subtracted" else "Add", product, sketch.weight(12))
    ends = {"twice": (out, sketch.add("Relu", product)), "output": (out, product), "subtracted": (out,)}[read]
    assert Linear(ir.from_proto(sketch.model(*ends)).graph.node(0)).add is None


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_written_is_what_is_computed(bias) -> None:
    sketch = Sketch()
    product = sketch.add("MatMul", "x", sketch.weight(16, 12))
    model = ir.from_proto(sketch.model(sketch.add("Add", product, sketch.weight(12)) if bias else product))
    linear, random = Linear(model.graph.node(0)), np.random.default_rng(2)
    weight, vector = random.standard_normal((16, 12)), random.standard_normal(12)
    pixels = random.standard_normal((2, 6, 16)).astype(np.float32)
    linear.write(Editor(model), weight)
    if not bias:
        linear.write(Editor(model), bias=np.zeros(12))
        assert linear.add is None  # nothing to add
    linear.write(Editor(model), bias=vector)
    assert (linear.weight == weight.astype(np.float32)).all() and (linear.bias == vector.astype(np.float32)).all()
    np.testing.assert_allclose(foreign.run(ir.to_proto(model), pixels)[0], pixels @ weight + vector, rtol=1e-4, atol=1e-5)


def test_new_layers_and_parts_of_channels() -> None:
    sketch = Sketch()
    model = vits.canonical(sketch.model(sketch.add("Relu", "x")))
    editor, random, relu = Editor(model), np.random.default_rng(3), model.graph.node(0)
    weight, bias = random.standard_normal((16, 12)), random.standard_normal(12)
    value = relu.inputs[0]
    assert value is not None
    linear = insert_linear(editor, relu, value, (weight, bias), "new")
    parts = insert_split(editor, relu, linear.output, [3, 9], "new")
    assert [list(part.shape)[1:] for part in parts] == [[6, 3], [6, 9]] and linear.name == "new/MatMul"
    editor.rewire(relu, 0, parts[1])
    model.graph.outputs[0].shape = None
    pixels = random.standard_normal((2, 6, 16)).astype(np.float32)
    expected = np.maximum(pixels @ weight + bias, 0)[..., 3:]
    np.testing.assert_allclose(foreign.run(ir.to_proto(model), pixels)[0], expected, rtol=1e-4, atol=1e-5)
