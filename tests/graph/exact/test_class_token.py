"""The last block cut down to the tokens that are read."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from tests.checkpoints import cases
from tests.checkpoints.cases import CASES
from tests.graph import foreign, vits
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.class_token import keep_class_token
from vitdeploy.graph.structure import Structure, recognise

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
    names = keep_class_token(Editor(model), structure)
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
    assert keep_class_token(Editor(model), again) == []
    assert vits.products(after) < vits.products(before)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CUT)
def test_the_last_block_is_computed_for_the_tokens_that_are_read(name) -> None:
    spec = CASES[name]
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model)
    structure = recognise(model)
    fold.fold_layer_scale(Editor(model), structure)
    check_cut(before, model, structure, 1 + (spec.head == "distilled"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["timm", "torchvision", "ViTForImageClassification"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_last_block_of_other_peoples_networks(name, packed) -> None:
    model = vits.canonical(foreign.script(name, 17))
    before = ir.to_proto(model)
    structure = recognise(model)
    fold.fold_layer_scale(Editor(model), structure)
    fold.fold_query_scale(Editor(model), structure)
    if packed:
        fold.pack_qkv(Editor(model), structure)
        structure = recognise(model)
    check_cut(before, model, structure, 1)


def test_how_many_products_are_saved() -> None:
    """q, projection and MLP of the last block for one token in place of T, and its scores and context: worked out by hand."""
    spec = CASES["plain"]
    model = vits.canonical(vits.quick("plain"))
    before = vits.products(ir.to_proto(model))
    keep_class_token(Editor(model), recognise(model))
    rows = spec.tokens - 1
    weights = 2 * spec.width**2 + 2 * spec.width * spec.mlp_size
    assert before - vits.products(ir.to_proto(model)) == rows * weights + 2 * rows * spec.tokens * spec.width


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_read_every_token_or_turn_their_queries_are_left(name) -> None:
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert keep_class_token(Editor(model), recognise(model)) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_models_that_give_their_tokens_away_are_left() -> None:
    model = vits.canonical(vits.quick("plain", outputs=("tokens",)))
    assert keep_class_token(Editor(model), recognise(model)) == []


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
    assert keep_class_token(Editor(model), structure) == []
