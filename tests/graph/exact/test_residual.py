"""The residual stream: turned as a whole or not at all, and cut down to the tokens that are read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.checkpoints import cases
from tests.checkpoints.cases import CASES
from tests.graph import foreign, vits
from vitdeploy.graph.exact import fold, residual
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
    fold.layer_scale(structure)
    for site in structure.sites:
        fold.norm_affine(site)
    return model, recognise(model)


@pytest.mark.parametrize("name", TURNED)
def test_the_stream_is_turned(name) -> None:
    before = vits.quick(name)
    model, structure = bare(before)
    count, stream = vits.operators(model)["MatMul"], first_sum(structure)
    (plain,) = vits.peek(model, stream)
    turn = fold.rotation(CASES[name].width)
    assert residual.rotate(structure, turn)
    assert vits.operators(model)["MatMul"] <= count + TURNED[name]
    (turned,) = vits.peek(model, stream)
    np.testing.assert_allclose(turned, plain @ turn, atol=2e-4)
    vits.same(before, model)
    assert residual.rotate(recognise(model), fold.rotation(CASES[name].width, seed=1))
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
    assert residual.rotate(structure, fold.rotation(foreign.WIDTH))
    vits.same(before, model)


def unfolded() -> ir.Model:
    """Norms that kept their weights."""
    return vits.canonical(vits.quick("plain"))


def scaled() -> ir.Model:
    """LayerScale left where it is: four writers without weights of their own."""
    model = vits.canonical(vits.quick("layer-scale"))
    for site in recognise(model).sites:
        fold.norm_affine(site)
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
    assert not residual.rotate(structure, fold.rotation(structure.attentions[0].projection.shape[1]))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


# Class token

CUT = [
    "plain",
    "tokens-distilled",
    "tokens-all",
    "like-clip",
    "like-dinov2",
    "relative-blocks",
    "heads-inner-wider",
    "mlp-linear",
    "depth-1",
]
WHOLE = ["tokens-none", "pool-mean", "pool-max", "pool-cls-mean", "pool-map", "qk-norm", "rotary-dinov3"]


def check_cut(before: onnx.ModelProto, model: ir.Model, structure: Structure, count: int) -> None:
    names = residual.class_token(model, structure)
    assert names and set(names) <= {node.name for node in model.graph}
    after = vits.same(before, model)
    again = recognise(model)
    attention = again.attentions[-1]
    tokens = again.attentions[0].scores.outputs[0].shape if len(again.attentions) > 1 else None
    scores = attention.scores.outputs[0].shape
    assert scores is not None and scores[-2] == count and (tokens is None or scores[-1] == tokens[-1])
    for linear in (attention.linears[0], attention.projection):
        assert linear is not None and linear.output.shape is not None and linear.output.shape[1] == count
    assert attention.rows is not None and all(part is not None for part in attention.columns)
    assert residual.class_token(model, again) == []
    assert vits.products(after) < vits.products(before)


@pytest.mark.parametrize("name", CUT)
def test_the_last_block_is_computed_for_the_tokens_that_are_read(name) -> None:
    spec = CASES[name]
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model)
    structure = recognise(model)
    fold.layer_scale(structure)
    check_cut(before, model, structure, 1 + (spec.head == "distilled"))


@pytest.mark.parametrize("name", ["timm", "torchvision", "ViTForImageClassification"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_last_block_of_other_peoples_networks(name, packed) -> None:
    model = vits.canonical(foreign.script(name, 17))
    before = ir.to_proto(model)
    structure = recognise(model)
    fold.layer_scale(structure)
    fold.query_scale(structure)
    if packed:
        fold.pack(structure)
        structure = recognise(model)
    check_cut(before, model, structure, 1)


def test_how_many_products_are_saved() -> None:
    """q, projection and MLP of the last block for one token in place of T, and its scores and context: worked out by hand."""
    spec = CASES["plain"]
    model = vits.canonical(vits.quick("plain"))
    before = vits.products(ir.to_proto(model))
    residual.class_token(model, recognise(model))
    rows = spec.tokens - 1
    weights = 2 * spec.width**2 + 2 * spec.width * spec.mlp_size
    assert before - vits.products(ir.to_proto(model)) == rows * weights + 2 * rows * spec.tokens * spec.width


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_read_every_token_or_turn_their_queries_are_left(name) -> None:
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert residual.class_token(model, recognise(model)) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_models_that_give_their_tokens_away_are_left() -> None:
    model = vits.canonical(vits.quick("plain", outputs=("tokens",)))
    assert residual.class_token(model, recognise(model)) == []


@pytest.mark.parametrize("tokens", [4, 8, 32, 48, 96])
def test_as_many_tokens_as_heads_channels_or_units_confuse_nothing(tokens, monkeypatch) -> None:
    name = f"as-many-tokens-{tokens}"
    monkeypatch.setitem(CASES, name, cases.spec(name, input=cases.contract(8, 8 * (tokens - 1))))
    assert CASES[name].tokens == tokens
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model)
    check_cut(before, model, recognise(model), 1)


def test_a_batch_of_as_many_images_as_tokens_confuses_nothing() -> None:
    model = vits.canonical(vits.quick("plain", batch=CASES["plain"].tokens))
    before = ir.to_proto(model)
    check_cut(before, model, recognise(model), 1)


def test_a_block_that_reads_an_earlier_stream_behind_the_last_one_is_left() -> None:
    model = vits.canonical(vits.quick("plain"))
    structure = recognise(model)
    last = structure.attentions[-1].projection
    first = structure.attentions[0].projection
    assert last is not None and first is not None
    early, late = (next(iter(part.output.uses())).node for part in (first, last))
    skip = ir.node("Add", [late.outputs[0], early.outputs[0]], name="skip")
    skip.outputs[0].name, skip.outputs[0].type, skip.outputs[0].shape = "skip_out", late.outputs[0].type, late.outputs[0].shape
    late.outputs[0].replace_all_uses_with(skip.outputs[0])
    skip.replace_input_with(0, late.outputs[0])
    model.graph.insert_after(late, skip)
    vits.sound(model)
    assert residual.class_token(model, structure) == []
