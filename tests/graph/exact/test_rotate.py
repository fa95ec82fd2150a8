"""Rotations: of the residual stream as a whole or not at all, and the matrices that they are made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.cases import CASES
from tests.graph import foreign, vits
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.rotate import make_head_rotation, make_rotation, rotate_stream
from vitdeploy.graph.structure import Structure, recognise

TURNED = {
    "plain": 1, "patch-linear": 1, "position-conditional": 3, "tokens-distilled": 2, "pool-mean": 1, "pool-map": 1,
    "like-clip": 2, "like-dinov2": 1, "like-dinov3": 1, "like-beit": 1, "like-eva02": 1, "mlp-linear": 1, "attn-norm": 1,
}  # fmt: skip
"""Networks, and how many products with R there are in the graph at most: before what reads the stream, behind a norm."""


def bare(proto: onnx.ModelProto) -> tuple[ir.Model, Structure]:
    """A network whose norms gave their weights away."""
    model = vits.canonical(proto)
    structure = recognise(model)
    fold.fold_layer_scale(Editor(model), structure)
    for site in structure.sites:
        fold.fold_norm_affine(Editor(model), site)
    return model, recognise(model)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", TURNED)
def test_the_stream_is_turned(name) -> None:
    before = vits.quick(name)
    model, structure = bare(before)
    count, stream = vits.operators(model)["MatMul"], first_sum(structure)
    (plain,) = vits.peek(model, stream)
    turn = make_rotation(CASES[name].width)
    assert rotate_stream(Editor(model), structure, turn)
    assert vits.operators(model)["MatMul"] <= count + TURNED[name]
    (turned,) = vits.peek(model, stream)
    np.testing.assert_allclose(turned, plain @ turn, atol=2e-4)
    vits.same(before, model)
    assert rotate_stream(Editor(model), recognise(model), make_rotation(CASES[name].width, seed=1))
    vits.same(before, model, limit=2e-5)


def first_sum(structure: Structure) -> ir.Value:
    """The stream behind the first attention."""
    projection = structure.attentions[0].projection
    assert projection is not None
    return next(iter(projection.output.uses())).node.outputs[0]


@pytest.mark.parametrize(("name", "opset"), [each for each in vits.FOREIGN if each[0] != "CLIPVisionModel"])
def test_streams_of_other_peoples_networks_are_turned(name, opset) -> None:
    before = foreign.script(name, opset)
    model, structure = bare(before)
    assert rotate_stream(Editor(model), structure, make_rotation(foreign.WIDTH))
    vits.same(before, model)


def unfolded() -> ir.Model:
    """Norms that kept their weights."""
    return vits.canonical(vits.quick("plain"))


def scaled() -> ir.Model:
    """LayerScale left where it is: four writers without weights of their own."""
    model = vits.canonical(vits.quick("layer-scale"))
    for site in recognise(model).sites:
        fold.fold_norm_affine(Editor(model), site)
    return model


def given_away() -> ir.Model:
    """The stream itself is an output."""
    return bare(foreign.script("CLIPVisionModel", 17))[0]


def fed() -> ir.Model:
    """The stream itself is the input."""
    return bare(foreign.contrib("packed"))[0]


@pytest.mark.parametrize("make", [unfolded, scaled, given_away, fed])
def test_a_stream_that_is_not_understood_is_left_to_the_byte(make) -> None:
    model = make()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    structure = recognise(model)
    assert not rotate_stream(Editor(model), structure, make_rotation(structure.attentions[0].projection.shape[1]))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@settings(deadline=None)  # a busy machine is no mistake
@given(st.integers(1, 96), st.integers(0, 5))
def test_rotations_are_orthogonal_and_keep_the_mean(width, seed) -> None:
    turn = make_rotation(width, seed)
    assert turn.shape == (width, width) and turn.dtype == np.float64
    np.testing.assert_allclose(turn @ turn.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(turn.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(turn.sum(0), 1, atol=1e-12)
    assert (turn == make_rotation(width, seed)).all()
    head = make_head_rotation(width, seed)
    np.testing.assert_allclose(head @ head.T, np.eye(width), atol=1e-12)
    assert (head == make_head_rotation(width, seed)).all()


@pytest.mark.parametrize("width", [192, 384, 768, 1024])
def test_rotations_spread_one_channel_over_all(width) -> None:
    """Elements are near 1/sqrt(C), where the identity's largest is 1; the channel that the reflection is about is worst."""
    turn = np.abs(make_rotation(width)) * np.sqrt(width)
    assert turn[1:, 1:].max() < 2 and turn.max() < 6
    assert np.abs(make_head_rotation(width)).max() < 1.5 / np.sqrt(width)
    assert not np.allclose(make_rotation(width), make_rotation(width, seed=1))
