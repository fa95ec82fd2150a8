"""Second moments: the same however they are grouped and whatever the batches, and fit to be inverted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.quant.networks import HIDDEN, network, pictures, stream
from vitdeploy.backends.onnxruntime.observer import OnnxRuntimeObserver
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError
from vitdeploy.quant import moments as module
from vitdeploy.quant.moments import from_rows, moments

WIDTHS = {"hidden": HIDDEN, "active": HIDDEN, "turned again": HIDDEN}
OWN = 4 * HIDDEN * (HIDDEN + module.ROWS)
"""Bytes of one tensor."""


@pytest.fixture(params=["plain", "no shapes", "fixed batch"])
def model(request, tmp_path):
    """Where the graph tells no shapes, the observer begins with one image a run and takes more later."""
    made = network(shapes=request.param != "no shapes", batch=4 if request.param == "fixed batch" else "batch")
    made.graph.node.append(onnx.helper.make_node("Neg", ["active"], ["turned again"]))
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    return path


def batches(size: int, count: int = 37):
    return [pixels for pixels, _ in stream(pictures(count), size)]


def found(model, size=8, **settings):
    return dict(moments(model, WIDTHS, lambda: batches(size), threads=1, **settings))


@pytest.mark.parametrize("rows", [1024, 7])
def test_are_what_numpy_computes_of_every_row_once(model, rows, monkeypatch):
    """However many rows wait for each other: the batches have fewer and more, and no multiple of 7."""
    monkeypatch.setattr(module, "ROWS", rows)
    matrix = next(onnx.numpy_helper.to_array(each) for each in onnx.load(model).graph.initializer if each.name == "matrix")
    hidden = (pictures(37) @ matrix).reshape(-1, HIDDEN).astype(np.float64)
    active = np.maximum(hidden, 0)
    for size in (1, 5, 8, 37):
        got = found(model, size)
        assert list(got) == list(WIDTHS)
        for name, rows in (("hidden", hidden), ("active", active), ("turned again", -active)):
            np.testing.assert_allclose(got[name].second, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-3)
            np.testing.assert_allclose(got[name].mean, rows.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", [1, OWN, 2 * OWN + 1])
def test_groups_give_what_one_group_gives(model, monkeypatch, memory):
    whole, opened, passes = found(model), [], []

    class Counting(OnnxRuntimeObserver):
        def __init__(self, model, names, **settings):
            opened.append(tuple(names))
            super().__init__(model, names, **settings)

    def again():
        passes.append(None)
        return batches(8)

    monkeypatch.setattr(module, "open_observer", Counting)
    monkeypatch.setattr(module, "MEMORY", memory)
    got = dict(moments(model, WIDTHS, again, threads=1))
    assert [name for group in opened for name in group] == list(WIDTHS)
    assert len(opened) == len(passes) == (2 if memory > 2 * OWN else 3)
    for name in WIDTHS:
        np.testing.assert_array_equal(got[name].second, whole[name].second)
        np.testing.assert_array_equal(got[name].mean, whole[name].mean)


def test_a_matrix_is_let_go_before_the_next_group(model, monkeypatch):
    """Only one group is ever in memory: nothing is computed before it is asked for."""
    monkeypatch.setattr(module, "MEMORY", 1)
    passes = []

    def again():
        passes.append(None)
        return batches(8)

    stream_of = moments(model, WIDTHS, again, threads=1)
    for count in range(1, len(WIDTHS) + 1):
        next(stream_of)
        assert len(passes) == count


def test_progress_is_told(model):
    heard = []
    found(model, progress=lambda *news: heard.append(news))
    assert heard == [("moments", 0, 1), ("moments", 1, 1)]


def test_an_image_that_does_not_fit_is_refused(model):
    with pytest.raises(InputError, match="VD3107"):
        dict(moments(model, WIDTHS, lambda: [pictures(4)[..., :2]], threads=1))


def test_of_a_vit(tiny_artifact):
    """The moments of a real graph belong to the tensor that they are named after."""
    pixels = images.to_tensor(synthetic.pixels(12, tiny_artifact.spec.input), tiny_artifact.spec.input)
    widths = {"blocks.0.norm1/LayerNormalization_out": 32, "blocks.1.mlp/Gelu_out": 128}
    got = dict(moments(tiny_artifact.model, widths, lambda: [pixels[:7], pixels[7:]], threads=1))
    observer = OnnxRuntimeObserver(tiny_artifact.model, list(widths), threads=1, batch=4)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in widths}
    for place in range(12):
        for name, values in zip(widths, observer.run(pixels[place : place + 1]), strict=True):
            rows[name].append(values.reshape(-1, widths[name]).astype(np.float64))
    observer.close()
    for name in widths:
        whole = np.concatenate(rows[name])
        np.testing.assert_allclose(got[name].second, whole.T @ whole / len(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 64, 1000])
def test_of_kept_rows_can_be_inverted(count):
    """However few they are; what they say of single channels stays as it is."""
    rows = np.random.default_rng(count).normal(size=(count, 64)).astype(np.float32) + 3
    got = from_rows(rows)
    assert np.linalg.eigvalsh(got.second).min() > 0
    np.testing.assert_allclose(np.diag(got.second), np.square(rows, dtype=np.float64).mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.mean, rows.mean(0, dtype=np.float64))
    assert (got.second == got.second.T).all()
    full = (rows.T @ rows / count).astype(np.float64)
    apart = np.abs(got.second - full).max() / np.abs(full).max()
    assert apart == pytest.approx(64 / (64 + count) * np.abs(full - np.diag(np.diag(full))).max() / np.abs(full).max(), rel=0.01)
