"""Every exact rewrite of one block made by hand: the same function afterwards, and the numbers where they were to go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import vits
from tests.graph.blocks import HEADS, WIDTH, block
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.rotate import make_head_rotation, rotate_keys, rotate_values
from vitdeploy.graph.structure import Attention, Structure, recognise

SIZE = WIDTH // HEADS


@pytest.fixture
def made() -> tuple[ir.Model, Structure]:
    model = block(lambda sketch, value: sketch.add("Relu", value), plain=False)
    return model, recognise(model)


def heads(model: ir.Model, attention: Attention) -> list[np.ndarray]:
    """q, k and v, [N, h, T, d] each."""
    query, key, value = (attention.scores.inputs[0], attention.scores.inputs[1], attention.context.inputs[1])
    assert query is not None and key is not None and value is not None
    one, two, three = vits.peek(model, query, key, value)
    return [one, two.swapaxes(2, 3), three]


def close(one: np.ndarray, two: np.ndarray) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_block_is_recognised(made) -> None:
    _, structure = made
    (attention,) = structure.attentions
    assert [(site.kind, site.only, len(site.linears)) for site in structure.sites] == [("norm", True, 3), ("context", True, 1)]
    for columns in (*attention.columns, attention.rows):
        assert columns is not None and (columns == np.arange(WIDTH).reshape(HEADS, SIZE)).all()
    assert [node.op_type for node in attention.scale] == ["Mul"] and not structure.outside


def test_values_are_moved_and_the_projection_undoes_it(made) -> None:
    model, structure = made
    before, (attention,), random = ir.to_proto(model), structure.attentions, np.random.default_rng(0)
    query, key, value = heads(model, attention)
    factor, shift = random.uniform(0.5, 2, (HEADS, SIZE)), random.standard_normal((HEADS, SIZE))
    fold.shift_values(Editor(model), attention, factor, shift)
    moved = heads(model, attention)
    close(moved[2], (value - shift[:, None]) / factor[:, None])
    assert (moved[0] == query).all() and (moved[1] == key).all()
    vits.same(before, model)


def test_keys_are_moved_and_the_queries_undo_it(made) -> None:
    model, structure = made
    before, (attention,), random = ir.to_proto(model), structure.attentions, np.random.default_rng(1)
    query, key, value = heads(model, attention)
    factor, shift = random.uniform(0.5, 2, (HEADS, SIZE)), random.standard_normal((HEADS, SIZE))
    fold.shift_keys(Editor(model), attention, factor, shift)
    moved = heads(model, attention)
    close(moved[0], query * factor[:, None])
    close(moved[1], (key - shift[:, None]) / factor[:, None])
    assert (moved[2] == value).all()
    vits.same(before, model)


def test_heads_are_turned(made) -> None:
    model, structure = made
    before, (attention,), turn = ir.to_proto(model), structure.attentions, make_head_rotation(SIZE, seed=2)
    plain = heads(model, attention)
    rotate_keys(Editor(model), attention, turn)
    turned = heads(model, attention)
    close(turned[0], plain[0] @ turn)
    close(turned[1], plain[1] @ turn)
    assert (turned[2] == plain[2]).all()
    vits.same(before, model)
    rotate_values(Editor(model), attention, turn)
    close(heads(model, attention)[2], plain[2] @ turn)
    vits.same(before, model)


@pytest.mark.parametrize("place", [0, 1])
def test_an_input_is_rescaled_and_its_layers_undo_it(made, place) -> None:
    model, structure = made
    before, site, random = ir.to_proto(model), structure.sites[place], np.random.default_rng(3)
    factor = random.uniform(0.25, 4, WIDTH)
    shift = random.standard_normal(WIDTH) if site.kind == "norm" else np.zeros(WIDTH)
    (plain,) = vits.peek(model, site.value)
    count = len(model.graph)
    fold.rescale_input(Editor(model), site, factor, shift)
    close(vits.peek(model, site.value)[0], (plain - shift) / factor)
    assert len(model.graph) == count + place  # free behind a norm, else one Mul
    vits.same(before, model)


def test_a_norm_gives_its_weights_away(made) -> None:
    model, structure = made
    before, norm = ir.to_proto(model), structure.sites[0]
    (plain,) = vits.peek(model, norm.value)
    gamma, beta = fold.read_affine(norm.maker)
    assert fold.fold_norm_affine(Editor(model), norm) and not fold.fold_norm_affine(Editor(model), norm)
    close(vits.peek(model, norm.value)[0], (plain - beta) / gamma)
    assert not fold.fold_norm_affine(Editor(model), structure.sites[1])
    vits.same(before, model)


@pytest.mark.parametrize("place", [1, 2])
def test_a_norm_gives_a_weight_or_a_bias_alone_away(made, place) -> None:
    model, structure = made
    norm = structure.sites[0]
    neutral = np.ones(WIDTH) if place == 1 else np.zeros(WIDTH)
    Editor(model).own(norm.maker, place, neutral.astype(np.float32))
    before = ir.to_proto(model)
    assert fold.fold_norm_affine(Editor(model), norm)
    gamma, beta = fold.read_affine(norm.maker)
    assert (gamma == 1).all() and not beta.any()
    vits.same(before, model)


def test_factors_go_into_the_layers(made) -> None:
    model, structure = made
    before, (attention,) = ir.to_proto(model), structure.attentions
    query = heads(model, attention)[0]
    (projected,) = vits.peek(model, next(iter(attention.projection.output.uses())).node.outputs[0])
    assert len(fold.fold_query_scale(Editor(model), structure)) == 1 and vits.operators(model)["Mul"] == 1
    close(heads(model, attention)[0], query)
    assert len(fold.fold_layer_scale(Editor(model), structure)) == 1 and vits.operators(model)["Mul"] == 0
    close(vits.peek(model, attention.projection.output)[0], projected)
    assert fold.fold_query_scale(Editor(model), structure) == fold.fold_layer_scale(Editor(model), structure) == []
    vits.same(before, model)


def test_three_layers_are_packed_into_one(made) -> None:
    model, structure = made
    before, (attention,) = ir.to_proto(model), structure.attentions
    weights = [linear.weight for linear in attention.linears]
    assert len(fold.pack_qkv(Editor(model), structure)) == 1 and fold.pack_qkv(Editor(model), structure) == []
    assert vits.operators(model)["MatMul"] == 4 and vits.operators(model)["Split"] == 1
    (again,) = recognise(model).attentions
    assert again.packed is not None and (again.packed.weight == np.concatenate(weights, 1)).all()
    for place, (known, columns) in enumerate(zip(attention.columns, again.columns, strict=True)):
        assert (known == columns).all() and (columns == np.arange(WIDTH).reshape(HEADS, SIZE) + place * WIDTH).all()
    vits.same(before, model)
