"""What stays in FP32: named parts, sums of squares, angles and sizes, wherever they stand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.half.graphs import (
    NORM,
    check,
    close,
    exported,
    feeds_of,
    from_bytes,
    parsed,
    run,
    run_in_half,
)
from vitdeploy.graph.half.convert import to_half
from vitdeploy.graph.half.keep import ISLANDS

KEPT = {
    "layernorm": {"blocks.0.norm1/LayerNormalization", "blocks.1.norm2/LayerNormalization", "norm/LayerNormalization"},
    "softmax": {"blocks.0.attn/Softmax", "blocks.1.attn/Softmax"},
    "attention": {"blocks.0.attn/MatMul", "blocks.0.attn/Softmax", "blocks.0.attn/MatMul_1"},
    "gelu": {"blocks.0.mlp/Gelu", "blocks.1.mlp/Gelu"},
    "residual": {"blocks.0/Add", "blocks.0/Add_1", "blocks.1/Add", "blocks.1/Add_1"},
    "embedding": {"patch_embed.proj/Conv", "patch_embed/Transpose", "Add"},
    "head": {"Gather", "norm/LayerNormalization", "head/Gemm"},
}


COUNT = {"layernorm": 5, "softmax": 2, "attention": 6, "gelu": 2, "residual": 4, "embedding": 5, "head": 3}


@pytest.mark.parametrize("island", ISLANDS)
def test_what_is_asked_for_stays_in_fp32(tiny: bytes, island: str) -> None:
    model = from_bytes(tiny)
    feeds = feeds_of(model)
    truth = run(model, feeds)
    result = to_half(model, keep=[island])
    check(model, result)  # which sees that no tensor of a kept node is FP16
    assert set(result.kept) >= KEPT[island]
    assert Counter(result.kept.values()) == {f"keep {island}": COUNT[island]}
    assert result.islands == (island,)
    close(run_in_half(model, feeds), truth, "logits")


def test_a_single_node_can_be_kept(tiny: bytes) -> None:
    model = from_bytes(tiny)
    result = to_half(model, keep={"blocks.1.mlp.fc2/MatMul"})
    check(model, result)
    assert result.kept == {"blocks.1.mlp.fc2/MatMul": "keep blocks.1.mlp.fc2/MatMul"}
    assert model.graph.initializers["blocks.1.mlp.fc2.weight"].dtype == ir.DataType.FLOAT
    assert result.casts == 4


@pytest.mark.parametrize("island", ["layernorm", "head", "embedding", "gelu"])
def test_islands_of_other_vits(island: str) -> None:
    """Silu is written out, q and k are normalised, the mean of the tokens is the head's."""
    model = from_bytes(exported("like-eva02"))
    result = to_half(model, keep=[island])
    check(model, result)
    operators = Counter(node.op_type for node in model.graph if node.name in result.kept)
    expected = {
        "layernorm": {"LayerNormalization": 7},
        "head": {"Slice": 1, "ReduceMean": 1, "LayerNormalization": 1, "Gemm": 1},
        "embedding": {"Conv": 1, "Reshape": 1, "Transpose": 1, "Pad": 1, "Add": 1},
        "gelu": {"Sigmoid": 2, "Mul": 2},
    }
    assert operators == expected[island]


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
@pytest.mark.parametrize("square", ["square = Pow(centred, two)", "square = Mul(centred, centred)"])
def test_a_norm_in_several_operators_stays_in_fp32(opset: int, square: str) -> None:
    """TorchScript's form. Activations around 400 have squares that FP16 does not hold."""
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in
              (("w0", (16, 16)), ("gamma", (16,)), ("beta", (16,)), ("w1", (16, 24)), ("w2", (24, 5)))}  # fmt: skip
    arrays["w0"] *= 100
    axes, axis = ("axes = [-1]", "") if opset < 18 else ("keepdims = 1", ", axis")
    text = NORM.replace("SQUARE", square).replace("AXES", axes).replace("AXIS", axis)
    model = parsed(text, opset, **arrays)
    feeds = {"x": random.standard_normal((2, 7, 16)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    sums = [name for name, why in result.kept.items() if why == "sums squares"]
    operators = Counter(name.split("_")[0] for name in sums)
    squares = {"Pow": 1} if "Pow" in square else {"Mul": 1}
    assert operators == Counter({"ReduceMean": 2, "Sub": 1, "Add": 1, "Sqrt": 1, "Div": 1}) + Counter(squares)
    assert set(result.kept) == set(sums)
    assert result.casts == 4, "input, into the norm, out of it, output"
    close(run_in_half(model, feeds), truth, "y")
    close(run(model, feeds), truth, "y")  # ONNX Runtime makes one operator of it, Casts included
    assert not [node for node in model.graph if node.op_type == "Constant"]


def test_gelu_in_five_operators_is_one_island() -> None:
    """Before operator set 20. The curve stays in FP32 as a whole, the layers around it do not."""
    random = np.random.default_rng(0)
    shapes = {"w0": (16, 16), "gamma": (16,), "beta": (16,), "w1": (16, 24), "w2": (24, 5)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    text = NORM.replace("SQUARE", "square = Pow(centred, two)").replace("AXES", "axes = [-1]").replace("AXIS", "")
    model = parsed(text, 17, **arrays)
    feeds = {"x": random.standard_normal((2, 7, 16)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model, keep=["gelu"])
    check(model, result)
    gelu = Counter(name.split("_")[0] for name, why in result.kept.items() if why == "keep gelu")
    assert gelu == {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
    close(run(model, feeds), truth, "y")


def test_squares_of_lengths_stay_in_fp32_with_their_epsilon() -> None:
    """x / max(|x|, 1e-12), as embeddings are normalised: FP16 has no 1e-12."""
    text = """agraph (float[n, 8] x) => (float[n, 8] y) {
        h = MatMul(x, w)
        length = ReduceL2<keepdims = 1>(h, axis)
        safe = Clip(length, least)
        y = Div(h, safe)
    }"""
    constants = {"w": 300 * np.eye(8, dtype=np.float32), "axis": np.array([-1]), "least": np.array(1e-12, np.float32)}
    model = parsed(text, **constants)
    result = to_half(model)
    check(model, result)
    assert set(result.kept.values()) == {"sums squares", "constant least would become 0"}
    assert {name.split("_")[0] for name in result.kept} == {"ReduceL2", "Clip", "Div"}
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}
    np.testing.assert_allclose(np.linalg.norm(run_in_half(model, feeds)["y"], axis=-1), 1, rtol=1e-3)


def test_positions_and_sizes_are_computed_in_fp32() -> None:
    """Angles of 3000 in FP16 are off by one radian; a table that is only repeated to a size is not arithmetic."""
    text = """agraph (float[n, t, 4] x) => (float[n, t, 4] y) {
        shape = Shape(x)
        size = Gather(shape, one)
        number = Cast<to = 1>(size)
        angle = Mul(frequency, number)
        sine = Sin(angle)
        wide = Expand(token, shape)
        h = MatMul(x, w)
        turned = Mul(h, sine)
        y = Add(turned, wide)
    }"""
    constants = {"one": np.array(1), "frequency": np.array([1, 10, 100, 1000.3], np.float32)}
    constants |= {"token": np.ones((1, 1, 4), np.float32), "w": np.eye(4, dtype=np.float32)}
    model = parsed(text, **constants)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
    truth = run(model, feeds)
    result = to_half(model)
    check(model, result)
    assert {name.split("_")[0] for name in result.kept} == {"Shape", "Cast", "Mul", "Sin"}
    assert Counter(result.kept.values()) == {"has only FP32 around it": 1, "computes with sizes": 2, "angles need FP32": 1}
    close(run_in_half(model, feeds), truth, "y")
