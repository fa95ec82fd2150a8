"""Linear layers: what is written to one of them stays with it."""

from __future__ import annotations

import numpy as np

from tests.graph import foreign, vits
from tests.graph.foreign import Sketch
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.linear import Linear


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
