"""The patch embedding in INT8: the pixels' own values as codes, whatever the patch's shape, and the function is the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph.editor import Editor
from vitdeploy.quant import patches as module
from vitdeploy.quant.patches import quantize_patches

MEAN, STD = (120.0, 100.0, 110.0), (60.0, 50.0, 70.0)
RAW = ((0.0,) * 3, (1.0,) * 3)
CHANNELS, HEIGHT, WIDTH, COLUMNS = 3, 2, 5, 7


def pixels(count: int = 6) -> np.ndarray:
    """uint8 [n, C, 2 patches and a row, 3 patches and two columns]."""
    return np.random.default_rng(1).integers(0, 256, (count, CHANNELS, 2 * HEIGHT + 1, 3 * WIDTH + 2)).astype(np.uint8)


def normalised(images: np.ndarray) -> np.ndarray:
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (MEAN, STD))
    return ((images - mean) / std).astype(np.float32)


def embedding(*, bias: bool = True, pads: int = 0, between: str = "", channels: int = CHANNELS) -> ir.Model:
    """A convolution whose stride is its size; on the way to it a Cast, or something that computes."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(COLUMNS, channels, HEIGHT, WIDTH)).astype(np.float32)
    constants = [numpy_helper.from_array(weight, "weight")]
    if bias:
        constants.append(numpy_helper.from_array(generator.normal(size=COLUMNS).astype(np.float32), "bias"))
    nodes = [helper.make_node(between, ["pixels"], ["moved"], **({"to": 1} if between == "Cast" else {}))] if between else []
    inputs = ["moved" if between else "pixels", "weight", *(["bias"] if bias else [])]
    size = {"kernel_shape": [HEIGHT, WIDTH], "strides": [HEIGHT, WIDTH], "pads": [pads] * 4}
    nodes.append(helper.make_node("Conv", inputs, ["out"], name="embed", **size))
    kind = TensorProto.UINT8 if between == "Cast" else TensorProto.FLOAT
    taken = helper.make_tensor_value_info("pixels", kind, ["n", channels, 2 * HEIGHT + 1, 3 * WIDTH + 2])
    given = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [taken], [given], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def run(model: ir.Model, images: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {"pixels": images})[0]


def constants(model: ir.Model) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in ir.to_proto(model).graph.initializer}


@pytest.mark.parametrize("last", [False, True])
def test_moments_are_those_of_the_patches_one_by_one(last):
    """Patches that are wider than high, on images that they do not fill; channels first or last."""
    images = pixels()
    factor, offset = np.array([2.0, 3.0, 5.0])[:, None, None], np.array([1.0, -7.0, 4.0])[:, None, None]
    rows = []
    for image in images * factor + offset:
        for top in range(0, 2 * HEIGHT, HEIGHT):
            for left in range(0, 3 * WIDTH, WIDTH):
                rows.append(image[:, top : top + HEIGHT, left : left + WIDTH].reshape(-1))
    assert len(rows) == 6 * len(images)
    expected = np.mean([np.outer(row, row) for row in rows], 0)
    given = np.moveaxis(images, 1, -1) if last else images
    shape = (COLUMNS, CHANNELS, HEIGHT, WIDTH)
    found = module._patch_moments([given[:2].astype(np.float32), given[2:].astype(np.float32)], shape, (factor, offset))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(module._patch_moments([], shape, (factor, offset)), np.eye(CHANNELS * HEIGHT * WIDTH))


@pytest.mark.parametrize("bias", [False, True])
def test_the_pixels_lose_nothing(bias):
    """The result is that of the rounded weights and the pixels themselves: each pixel is its own code."""
    before, after = embedding(bias=bias), embedding(bias=bias)
    assert quantize_patches(Editor(after), (MEAN, STD), [normalised(pixels())], codes=127) == ["embed"]
    stored = constants(after)
    weight = constants(before)["weight"]
    codes, scale = stored["weight.codes"].astype(np.float64), stored["weight.scale"][:, None, None, None]
    std = np.array(STD)[:, None, None]
    images = pixels()
    rounded = (codes * scale).astype(np.float32)
    zero = int(next(value for name, value in stored.items() if name.endswith(".zero") and value.dtype == np.uint8))
    assert zero == 110, "the mean pixel"
    shift = np.array(MEAN)[:, None, None]
    old = constants(before).get("bias", np.zeros(COLUMNS))
    moved = old - (weight * ((shift - zero) / std)).sum((1, 2, 3))
    found = run(after, normalised(images))
    for row, column in ((0, 0), (1, 2), (0, 1)):
        top, left = row * HEIGHT, column * WIDTH
        patch = images[:, :, top : top + HEIGHT, left : left + WIDTH].astype(np.float64) - zero
        expected = np.einsum("nchw,mchw->nm", patch, rounded) + moved
        np.testing.assert_allclose(found[:, :, row, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("contract", "between", "zero"), [((MEAN, STD), "", 110), (RAW, "Cast", 128)])
def test_is_close_to_what_it_was(contract, between, zero):
    before, after = embedding(between=between), embedding(between=between)
    images = pixels() if between else normalised(pixels())
    quantize_patches(Editor(after), contract, [images], codes=127)
    expected = run(before, images)
    assert np.abs(run(after, images) - expected).max() < 0.02 * expected.std()
    assert zero in [int(value) for name, value in constants(after).items() if name.endswith(".zero") and not value.ndim]


def channels_last() -> ir.Model:
    """The same convolution behind two moves of raw pixels [n, W, H, C]."""
    proto = ir.to_proto(embedding())
    del proto.graph.input[:]
    size = ["n", 3 * WIDTH + 2, 2 * HEIGHT + 1, CHANNELS]
    proto.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, size))
    proto.graph.node[0].input[0] = "moved"
    moves = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=1),
        helper.make_node("Transpose", ["floats"], ["turned"], perm=[0, 3, 1, 2]),  # [n, C, W, H]
        helper.make_node("Transpose", ["turned"], ["moved"], perm=[0, 1, 3, 2]),
    ]
    nodes = [*moves, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return ir.from_proto(proto)


@pytest.mark.parametrize("contract", [RAW, ((0.0, 10.0, 20.0), (1.0, 0.5, 0.25))])
def test_pixels_with_channels_last_are_quantized_before_they_are_moved(contract):
    """OpenVINO runs the convolution in float when the pair stands behind the Transpose."""
    images = pixels().transpose(0, 3, 2, 1)
    before, after = channels_last(), channels_last()
    assert quantize_patches(Editor(after), contract, [images], codes=127) == ["embed"]
    kinds = [node.op_type for node in after.graph if node.op_type in ("QuantizeLinear", "Transpose", "Conv")]
    assert kinds == ["QuantizeLinear", "Transpose", "Transpose", "Conv"]
    factor = next(value for name, value in constants(after).items() if name.startswith("pixels.factor"))
    assert factor.ravel().tolist() == list(contract[1])
    assert factor.shape[-1] == CHANNELS
    expected = run(before, images)
    assert np.abs(run(after, images) - expected).max() < 0.05 * expected.std()


def test_a_moved_image_that_somebody_else_reads_stays_as_it_is():
    model = channels_last()
    turned = next(node for node in model.graph if node.op_type == "Transpose").outputs[0]
    model.graph.append(ir.node("Relu", [turned], name="other"))
    quantize_patches(Editor(model), RAW, [], codes=127)
    other = next(node for node in model.graph if node.name == "other")
    assert other.inputs[0] is turned
    assert turned.producer().inputs[0].producer().op_type == "Cast"


@pytest.mark.parametrize("given", [{"pads": 1}, {"between": "Relu"}, {"channels": 4}])
def test_what_is_no_patch_embedding_of_these_pixels_stays_float(given):
    model = embedding(**given)
    before = sorted(constants(model)), [node.op_type for node in model.graph]
    assert quantize_patches(Editor(model), (MEAN, STD), [], codes=127) == []
    assert (sorted(constants(model)), [node.op_type for node in model.graph]) == before


@pytest.mark.parametrize("codes", [63, 127])
def test_codes_reach_their_greatest_and_no_further(codes):
    model = embedding()
    quantize_patches(Editor(model), (MEAN, STD), [], codes=codes)
    assert np.abs(constants(model)["weight.codes"].astype(int)).max() == codes
