"""The share of the multiplications in 8 bits, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vitdeploy.quant.shares import describe_share

GRAPH = """<ir_version: 8, opset_import: ["": 20]>
agraph (float[n, 10, 8] x) => (float[n, 4] y) <float[8, 8] A, int8[8, 24] B, float[24] S, float[8, 4] C> {
    a = MatMul(x, A)
    w = DequantizeLinear<axis = 1>(B, S)
    b = MatMul(a, w)
    p, q, r = Split<axis = -1, num_outputs = 3>(b)
    scores = MatMul(p, A)
    m = ReduceMean<keepdims = 0>(r, axes)
    y = MatMul(m, C)
}"""


def build() -> ir.Model:
    text = GRAPH.replace("<float[8, 8] A, int8[8, 24] B, float[24] S, float[8, 4] C>", "")
    proto = onnx.parser.parse_model(text)
    arrays = {"A": np.ones((8, 8), np.float32), "B": np.ones((8, 24), np.int8), "S": np.ones(24, np.float32)}
    arrays |= {"C": np.ones((8, 4), np.float32), "axes": np.array([1])}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    proto = onnx.shape_inference.infer_shapes(proto)
    model = ir.from_proto(proto)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


@pytest.mark.parametrize(
    ("in_8_bits", "said"),
    [
        ({"a", "b", "scores", "y"}, "100.0 % of the linear layers' multiplications are in 8 bits"),
        ({"a", "b", "scores"}, "99.0 % of the linear layers' multiplications are in 8 bits; in float: y (1.0 %)"),
        ({"b"}, "59.4 % of the linear layers' multiplications are in 8 bits; in float: a (19.8 %), scores (19.8 %), y (1.0 %)"),
    ],
)
def test_layers_in_float_are_named_with_their_share(in_8_bits, said) -> None:
    """640, 1,920, 640 and 32 multiplications."""
    assert describe_share(build().graph, in_8_bits) == said


def test_a_small_layer_is_counted_and_not_named(monkeypatch) -> None:
    monkeypatch.setattr("vitdeploy.quant.shares._LEAST", 0.02)
    said = "99.0 % of the linear layers' multiplications are in 8 bits"
    assert describe_share(build().graph, {"a", "b", "scores"}) == said


def test_many_layers_are_cut_short(monkeypatch) -> None:
    monkeypatch.setattr("vitdeploy.quant.shares._MOST_NAMES", 2)
    assert describe_share(build().graph, set()).endswith("in float: b (59.4 %), a (19.8 %) and 2 more")


def test_a_graph_without_layers_has_nothing_to_say() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {y = Relu(x)}')
    )
    assert describe_share(model.graph, set()) == ""
