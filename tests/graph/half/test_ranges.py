"""How large tensors get: what is measured, what follows, and what a mask hides."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.half.graphs import (
    check,
    close,
    feeds_of,
    from_bytes,
    list_chosen,
    parsed,
    ranges_of,
    run,
    run_in_half,
    to_bytes,
)
from vitdeploy.graph.half.convert import to_half
from vitdeploy.graph.half.ranges import tap


def test_a_dequantized_tensor_beyond_fp16_is_found() -> None:
    model = parsed(
        "agraph (uint8[n, 4] x) => (float[n, 4] y) { d = DequantizeLinear(x, s)\n e = Relu(d)\n y = Mul(e, k) }",
        s=np.array(200, np.float32),
        k=np.array(1e-3, np.float32),
    )
    result = to_half(model)
    assert {one.tensor: one.max_abs for one in result.overflow} == {"d": 51000.0, "e": 51000.0}
    check(model, result)


def test_taps_give_the_largest_of_each_tensor(tiny: bytes) -> None:
    model = from_bytes(tiny)
    before, feeds = to_bytes(model), feeds_of(model, batch=5)
    ranges = ranges_of(model, feeds)
    assert to_bytes(model) == before, "the copy has the taps"
    assert list(tap(model).outputs.values()) == list_chosen(model)
    everything = from_bytes(tiny)
    names = list_chosen(everything)
    for node in everything.graph:
        everything.graph.outputs.extend(out for out in node.outputs if out.name in names and not out.is_graph_output())
    results = run(everything, feeds) | feeds
    assert ranges.keys() == set(names)
    for name in names:
        assert ranges[name] == pytest.approx(np.abs(results[name]).max(), rel=1e-5), name
    largest = max(range(5), key=lambda row: np.abs(results["blocks.0/Add_out"][row]).max())
    alone = ranges_of(model, {"pixels": feeds["pixels"][largest : largest + 1]})
    assert alone["blocks.0/Add_out"] == pytest.approx(ranges["blocks.0/Add_out"], rel=1e-5)


def test_what_follows_is_not_measured(tiny: bytes) -> None:
    names = list_chosen(from_bytes(tiny))
    assert {"pixels", "Add_out", "blocks.0.attn/MatMul_out", "blocks.0.attn.qkv/Split_out_0", "logits"} <= set(names)
    assert not [name for name in names if any(word in name for word in ("Reshape", "Transpose", "Softmax", "Pad", "weight"))]


@pytest.mark.parametrize("place", [0, 1, 100, -1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_taps_show_what_is_not_finite(place: int, bad: float) -> None:
    """ReduceMax of ONNX Runtime drops a NaN that is not first."""
    model = parsed("agraph (float[n, 3, 64] x) => (float[n, 3, 64] y) { y = Neg(x) }")
    x = np.random.default_rng(0).standard_normal((4, 3, 64)).astype(np.float32)
    x.reshape(-1)[place] = bad
    taps = tap(model)
    results = run(taps.model, {"x": x})
    for name in taps.outputs:
        assert np.isnan(results[name]) if np.isnan(bad) else results[name] == np.inf


def test_taps_of_the_oldest_operator_set() -> None:
    model = parsed("agraph (float[4] x) => (float[4] y) { y = Neg(x) }", 13)
    assert ranges_of(model, {"x": np.array([1, -3, 2, 0], np.float32)}) == {"x": 3.0, "y": 3.0}


MASKED = """agraph (float[n, 2, 4, 8] q, float[n, 2, 8, 4] k, float[n, 2, 4, 8] v) => (float[n, 2, 4, 8] y) {
    scores = MatMul(q, k)
    MASK
    hidden = Add(scores, mask)
    shares = Softmax(hidden)
    y = MatMul(shares, v)
}"""


@pytest.mark.parametrize("how", ["mask = Identity(table)", "mask = Where(seen, nothing, never)"])
def test_minus_infinity_in_a_mask_is_no_overflow(how: str) -> None:
    """FP16 has -inf as FP32 has: what is hidden stays hidden, and the rest is measured as if it was alone."""
    seen = np.tril(np.ones((4, 4), bool))
    table = np.where(seen, 0, -np.inf).astype(np.float32)
    constants = {"table": table} if "table" in how else {"seen": seen, "nothing": np.float32(0), "never": np.float32(-np.inf)}
    text = MASKED.replace("MASK", how)
    model = parsed(text, **{name: np.asarray(array) for name, array in constants.items()})
    random = np.random.default_rng(0)
    shapes = {"q": (3, 2, 4, 8), "k": (3, 2, 8, 4), "v": (3, 2, 4, 8)}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    taps, mine = tap(model), {node.name for node in model.graph}
    assert all(
        node.name.startswith(tuple(f"{name}/" for name in taps.outputs)) for node in taps.model.graph if node.name not in mine
    )
    truth, ranges = run(model, feeds), ranges_of(model, feeds)
    largest = np.abs(np.where(seen, feeds["q"] @ feeds["k"], 0)).max()
    assert ranges["hidden"] == pytest.approx(largest, rel=1e-5)
    result = to_half(model, ranges=ranges)
    check(model, result)
    assert not result.kept and not result.overflow and result.unranged == 0
    close(run(model, feeds), truth, "y")
    close(run_in_half(model, feeds), truth, "y")
    feeds["q"][0], feeds["k"] = -np.inf, np.abs(feeds["k"])  # what no mask explains still shows
    assert ranges_of(parsed(text, **constants), feeds)["scores"] == np.inf
