"""Products of integers as ONNX Runtime's own operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from tests.graph import vits
from tests.graph.foreign import Sketch
from vitdeploy.graph import qdq
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact.integer_products import fuse_products
from vitdeploy.graph.linear import Linear, is_linear
from vitdeploy.graph.structure import recognise


def quantized(*, bias: bool, behind: str = "", shared: bool = False) -> tuple[ir.Model, Editor]:
    """One or two layers on [batch, 6, 16] in INT8; the last node is the product, its bias or what stands behind."""
    sketch = Sketch()
    outputs = []
    for _ in range(1 + shared):
        out = sketch.add("MatMul", "x", sketch.weight(16, 12))
        out = sketch.add("Add", out, sketch.weight(12)) if bias else out
        outputs.append(sketch.add(behind, out) if behind else out)
    model = vits.canonical(sketch.model(*outputs))
    editor = Editor(model)
    layers = [Linear(node) for node in model.graph if is_linear(node)]
    qdq.quantize(editor, model.graph.inputs[0], qdq.Codes(0.03, 128, np.uint8), [(layer.matmul, 0) for layer in layers])
    for layer in layers:
        scale = np.abs(layer.weight).max(0) / 127
        qdq.quantize_weight(editor, layer, np.rint(layer.weight / scale).astype(np.int8), scale)
    return model, editor


def run(proto, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels})


@pytest.mark.parametrize("behind", ["", "Relu"], ids=["output", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_product_keeps_its_name_and_that_of_the_output_it_makes(bias, behind, shared) -> None:
    model, editor = quantized(bias=bias, behind=behind, shared=shared)
    before = ir.to_proto(model)
    names = [node.name for node in before.graph.node if node.op_type == "MatMul"]
    assert fuse_products(editor) == len(names) == 1 + shared
    editor.check_interface("native-products")
    assert vits.operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": len(names)} | (
        {behind: len(names)} if behind else {}
    )
    assert [node.name for node in model.graph if node.op_type == "MatMulIntegerToFloat"] == names
    after = ir.to_proto(model)
    assert [each.name for each in after.graph.output] == [each.name for each in before.graph.output]
    used = {name for node in after.graph.node for name in node.input}
    assert {each.name for each in after.graph.initializer} <= used
    pixels = vits.feed(before, 3)
    for one, two in zip(run(before, pixels), run(after, pixels), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["Relu", "Gelu"])
def test_a_head_that_is_an_mlp_keeps_the_name_of_its_output(activation) -> None:
    sketch = Sketch()
    query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
    scores = sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 2, 1]))
    out = sketch.add("MatMul", sketch.add("MatMul", sketch.add("Softmax", scores), value), sketch.weight(16, 16))
    hidden = sketch.add(activation, sketch.add("MatMul", out, sketch.weight(16, 12)))
    logits = sketch.add("Add", sketch.add("MatMul", hidden, sketch.weight(12, 5)), sketch.weight(5))
    model = vits.canonical(sketch.model(logits))
    editor = Editor(model)
    last = recognise(model).linears[-1]
    assert last.output is model.graph.outputs[0] and last.add is not None
    qdq.quantize(editor, last.input, qdq.Codes(0.03, 128, np.uint8), [(last.matmul, 0)])
    scale = np.abs(last.weight).max(0) / 127
    qdq.quantize_weight(editor, last, np.rint(last.weight / scale).astype(np.int8), scale)
    assert fuse_products(editor) == 1
    editor.check_interface("native-products")
    made = model.graph.outputs[0].producer()
    assert model.graph.outputs[0].name == logits and made is not None and made.op_type == "MatMulIntegerToFloat"


def test_nothing_is_fused_in_a_float_graph() -> None:
    model = vits.canonical(vits.quick("plain"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert fuse_products(Editor(model)) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
