"""Attention as people write it themselves gets every exact rewrite, whatever way its heads go."""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir
import pytest
from torch import nn

from tests.graph import foreign, homemade, vits
from tests.graph.homemade import DEPTH, HEADS, TOKENS
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.head_axes import give_heads_an_axis
from vitdeploy.graph.query import maker, sizes
from vitdeploy.graph.structure import recognise
from vitdeploy.quant.preparation import Layout, prepare

MOVES = ("Transpose", "Reshape", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze")


@functools.cache
def exported(name: str, exporter: str = "script", batch: int | None = None) -> onnx.ModelProto:
    return getattr(foreign, f"export_{exporter}")(homemade.build(name), 20, batch)


def count_moves(model: ir.Model) -> int:
    return sum(node.op_type in MOVES for node in model.graph)


SLOW = [pytest.param(name, "dynamo", None, marks=pytest.mark.slow) for name in ("probabilities", "tokens-first", "encoder")]
NAMES = ["fused", "probabilities", "tokens-first", "encoder", "encoder-mean", "one-head", "causal"]


@pytest.mark.parametrize(
    ("name", "exporter", "batch"), [*((name, "script", size) for name in NAMES for size in (None, 1)), *SLOW]
)
def test_every_rewrite_is_made_whatever_way_the_heads_go(name, exporter, batch) -> None:
    before = exported(name, exporter, batch)
    model = ir.from_proto(before)
    prepared = prepare(model, Layout())
    counted = prepared.rewrites
    assert (counted["query-scale"], counted["head-rotation"], counted["rotation"]) == (DEPTH, DEPTH, 2 * DEPTH)
    assert bool(counted.get("class-token")) == (name != "encoder-mean")
    assert [node.name for node in model.graph if "rotate" in str(node.name)] in ([], [prepared.structure.outside[0].name])
    for attention in prepared.structure.attentions:
        assert len(sizes(attention.scores.outputs[0]) or ()) == 4
    # a Split, two moves for each of q, k and v, two behind; the last block has another Split and what takes the token
    assert count_moves(model) <= 9 * DEPTH + 7
    vits.same(before, model)


def test_images_and_heads_on_one_axis_are_parted() -> None:
    before = exported("probabilities")
    model = vits.canonical(before)
    structure = recognise(model)
    assert [sizes(each.scores.outputs[0])[1:] for each in structure.attentions] == [(TOKENS, TOKENS)] * DEPTH
    fold.fold_query_scale(Editor(model), structure)
    assert give_heads_an_axis(Editor(model), structure) == [each.name for each in structure.attentions]
    vits.same(before, model)
    again = recognise(model)
    for attention in again.attentions:
        assert sizes(attention.scores.outputs[0]) == ("batch", HEADS, TOKENS, TOKENS)
        assert attention.packed is not None and all(part is not None for part in (*attention.columns, attention.rows))
    assert give_heads_an_axis(Editor(model), again) == []


def test_a_factor_between_a_layer_and_its_product_leaves_the_way_as_it_is() -> None:
    model = vits.canonical(exported("probabilities"))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert give_heads_an_axis(Editor(model), recognise(model)) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_short_way_is_left(tiny_artifact) -> None:
    """Our own export's."""
    model = vits.canonical(onnx.load(tiny_artifact.folder / "model.onnx"))
    structure = recognise(model)
    fold.fold_query_scale(Editor(model), structure)
    assert give_heads_an_axis(Editor(model), structure) == []


def test_columns_that_another_node_reads_leave_the_way_as_it_is() -> None:
    model = vits.canonical(exported("probabilities"))
    structure = recognise(model)
    fold.fold_query_scale(Editor(model), structure)
    first = structure.attentions[0]
    assert first.packed is not None
    output = model.graph.outputs[0]
    spy = ir.node("ReduceMean", [first.packed.output], {"keepdims": 0}, name="spy")
    spy.outputs[0].name = "spied"
    model.graph.append(spy)
    model.graph.outputs.append(spy.outputs[0])
    assert output.name != "spied"
    assert give_heads_an_axis(Editor(model), recognise(model)) == [structure.attentions[1].name]


@pytest.mark.parametrize("name", ["plain", "heads-inner-wider", "tokens-distilled"])
def test_a_long_way_of_our_own_network_is_made_short(name) -> None:
    before = vits.quick(name)
    model = vits.canonical(before)
    structure = recognise(model)
    fold.fold_query_scale(Editor(model), structure)
    moves = count_moves(model)
    assert len(give_heads_an_axis(Editor(model), structure)) == len(structure.attentions)
    assert count_moves(model) < moves
    vits.same(before, model)


def test_heads_in_another_order_are_led_back() -> None:
    """Channels of the heads interleaved: c of head h is column c * HEADS + h."""

    class Interleaved(homemade.Block):
        def forward(self, x):
            y = self.before(x)
            packed = nn.functional.linear(y, self.attention.in_proj_weight, self.attention.in_proj_bias)
            parts = packed.unflatten(-1, (3, x.shape[-1] // HEADS, HEADS)).permute(2, 0, 4, 1, 3).flatten(1, 2)  # [3, N h, T, d]
            q, k, v = parts[0], parts[1], parts[2]
            mixed = ((q @ k.transpose(1, 2)) * 0.3).softmax(-1) @ v
            x = x + self.attention.out_proj(mixed.unflatten(0, (-1, HEADS)).permute(0, 2, 3, 1).flatten(2))
            return x + self.down(nn.functional.gelu(self.up(self.between(x))))

    net = homemade.build("probabilities")
    for place in range(DEPTH):
        old = net.blocks[place]
        net.blocks[place] = Interleaved()
        net.blocks[place].load_state_dict(old.state_dict())
    before = foreign.export_script(net.eval(), 20)
    model = ir.from_proto(before)
    prepared = prepare(model, Layout())
    assert prepared.rewrites["heads"] == DEPTH and prepared.rewrites["class-token"]
    assert all(maker(each.scores.inputs[0], "Transpose") is not None for each in prepared.structure.attentions)
    vits.same(before, model)
