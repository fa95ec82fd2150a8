"""Convolutions of 1 x 1 pixels are linear layers: every layer of such a block is recognised, and nothing is turned twice."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.graph import foreign, homemade, vits
from tests.graph.foreign import Sketch, names_of, sketched
from tests.graph.homemade import DEPTH
from vitdeploy.quant.preparation import Layout, prepare

FORMS = ["conv-queries", "conv-values", "conv-fused", "conv-local"]
SLOW = [pytest.param(name, "dynamo", marks=pytest.mark.slow) for name in ("conv-values", "conv-local")]


@functools.cache
def exported(name: str, exporter: str = "script") -> onnx.ModelProto:
    return getattr(foreign, f"export_{exporter}")(homemade.build(name), 20)


@pytest.mark.parametrize(("name", "exporter"), [*((name, "script") for name in FORMS), *SLOW])
def test_a_block_of_convolutions_gets_every_rewrite(name, exporter) -> None:
    before = exported(name, exporter)
    model = ir.from_proto(before)
    prepared = prepare(model, Layout())
    counted = prepared.rewrites
    assert (counted["query-scale"], counted["head-rotation"], counted["rotation"]) == (DEPTH, DEPTH, 2 * DEPTH)
    assert len(prepared.structure.linears) == 4 * DEPTH
    assert sum(node.op_type == "Conv" for node in model.graph) == 1 + (DEPTH if name == "conv-local" else 0)
    local = 2 * DEPTH if name == "conv-local" else 0  # the depth-wise convolution wants its channels second
    # once behind the patches; q, k, v, what comes of the heads, and where heads are cut from channels second in each block
    assert sum(node.op_type == "Transpose" for node in model.graph) <= 1 + 5 * DEPTH + local
    vits.same(before, model)


def conv(sketch: Sketch, value: str, size: int = 6, **attributes) -> str:
    return sketch.add("Conv", value, sketch.weight(size, 6, *attributes.pop("kernel", (1, 1))), sketch.weight(size), **attributes)


def hidden(**attributes) -> tuple[Sketch, str]:
    """A convolution behind another, so that it takes no pixels."""
    sketch = Sketch(shape=("batch", 6, 5, 4))
    return sketch, conv(sketch, sketch.add("Softmax", "x", axis=1), **attributes)


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_convolution_is_a_product_whatever_its_axes(rank) -> None:
    sketch = Sketch(shape=("batch", 6, *(5, 4, 3)[: rank - 2]))
    weight = sketch.weight(8, 6, *(1,) * (rank - 2))
    counted, done = sketched(sketch, sketch.add("Conv", sketch.add("Softmax", "x", axis=1), weight))
    assert (counted["MatMul"], counted["Conv"]) == (1, 0) and "pointwise" in names_of(done)


@pytest.mark.parametrize(
    "attributes",
    [{"strides": [2, 1]}, {"pads": [0, 0, 1, 0]}, {"kernel": (1, 3)}, {"kernel": (3, 1), "pads": [1, 0, 1, 0]}],
    ids=["strides", "pads", "wide", "tall"],
)
def test_other_convolutions_are_left(attributes) -> None:
    sketch, value = hidden(**attributes)
    counted, done = sketched(sketch, value)
    assert counted["Conv"] == 1 and "pointwise" not in names_of(done)


def test_groups_and_pixels_are_left() -> None:
    sketch = Sketch(shape=("batch", 6, 5, 4))
    first = sketch.add("Div", conv(sketch, sketch.add("Sub", "x", sketch.weight(6, 1, 1))), sketch.constant(np.float32(2)))
    value = sketch.add("Conv", first, sketch.weight(6, 3, 1, 1), group=2)
    counted, done = sketched(sketch, value)
    assert counted["Conv"] == 2 and "pointwise" not in names_of(done)


@pytest.mark.parametrize("operator", ["Add", "Mul"])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1), (5, 4), (6, 5, 1), (1, 1, 5, 4)])
def test_constants_are_turned_with_what_they_go_with(operator, shape) -> None:
    sketch, value = hidden()
    value = conv(sketch, sketch.add("Relu", sketch.add(operator, value, sketch.weight(*shape))))
    counted, _ = sketched(sketch, value)
    assert counted["Transpose"] == 2


def test_a_map_that_is_not_turned_joins_a_residual_stream() -> None:
    sketch, value = hidden()
    local = sketch.add("Conv", value, sketch.weight(6, 1, 3, 3), group=6, pads=[1] * 4)
    counted, _ = sketched(sketch, conv(sketch, sketch.add("Add", value, local)))
    assert (counted["Conv"], counted["MatMul"]) == (1, 2)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1], [2]])
def test_pooling_of_pixels_takes_channels_last(axes, keepdims) -> None:
    sketch, value = hidden()
    value = sketch.add("ReduceMean", value, sketch.constant(np.array(axes)), keepdims=keepdims)
    counted, _ = sketched(sketch, value)
    assert counted["Transpose"] == (1 if set(axes) != {1, 2} and len(axes) == 2 and not keepdims else 2)


def test_a_map_becomes_tokens_in_one_reshape() -> None:
    sketch, value = hidden()
    flat = sketch.add("Reshape", value, sketch.constant(np.array([0, 6, 20])))
    counted, _ = sketched(sketch, sketch.add("Softmax", sketch.add("Transpose", flat, perm=[0, 2, 1])))
    assert (counted["Transpose"], counted["Reshape"]) == (1, 1)


def test_tokens_that_were_turned_before_positions_are_added_stay() -> None:
    """Of three axes the way there is the way back: nothing may be turned for ever."""
    sketch = Sketch(shape=("batch", 6, 5))
    value = sketch.add("Add", sketch.add("Transpose", "x", perm=[0, 2, 1]), sketch.weight(1, 5, 6))
    value = sketch.add("Transpose", sketch.add("LayerNormalization", value, sketch.weight(6), axis=-1), perm=[0, 2, 1])
    _, done = sketched(sketch, sketch.add("Add", value, sketch.weight(1, 6, 5)))
    assert "channels-last" not in names_of(done)
