"""What is recognised in a ViT: which layers, and which column and row belongs to which head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.checkpoints.cases import CASES
from tests.graph import foreign, homemade, vits
from tests.graph.foreign import Sketch
from vitdeploy.errors import InputError
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.linear import is_linear
from vitdeploy.graph.moves import find_root
from vitdeploy.graph.query import sizes
from vitdeploy.graph.structure import Structure, recognise
from vitdeploy.quant.preparation import Layout, prepare

MADE = [
    "plain",
    "tokens-distilled",
    "heads-inner-wider",
    "heads-one",
    "qk-norm",
    "attn-norm",
    "pool-map",
    "like-eva02",
    "mlp-linear",
]


def check_heads(model: ir.Model, structure: Structure) -> tuple[int, int]:
    """Columns and rows against what the graph computes; how many were known."""
    columns, rows = 0, 0
    for attention in structure.attentions:
        for place, (linear, known) in enumerate(zip(attention.linears, attention.columns, strict=True)):
            node, index = ((attention.scores, 0), (attention.scores, 1), (attention.context, 1))[place]
            if linear is not None and known is not None:
                whole, heads = vits.peek(model, linear.output, node.inputs[index])
                heads = heads[:, None] if heads.ndim == 3 else heads
                expected = np.moveaxis(whole[..., known], 1, 2)  # [N, T, h, d] -> [N, h, T, d]
                expected = np.swapaxes(expected, -2, -1) if place == 1 else expected
                scale = heads.ravel()[0] / expected.ravel()[0]
                np.testing.assert_allclose(heads, expected * scale, rtol=1e-4, atol=1e-6)
                columns += 1
        if attention.rows is not None:
            whole, heads = vits.peek(model, attention.projection.input, attention.context.outputs[0])
            heads = heads[:, None] if heads.ndim == 3 else heads
            assert (whole[..., attention.rows] == np.moveaxis(heads, 1, 2)).all()
            rows += 1
    return columns, rows


@pytest.mark.parametrize("name", MADE)
def test_layers_of_our_own_networks(name) -> None:
    spec = CASES[name]
    model = vits.canonical(vits.quick(name))
    structure = recognise(model)
    pool = spec.pool == "map"
    assert len(structure.attentions) == spec.depth + pool
    kinds = [site.kind for site in structure.sites]
    # two norms a block feed layers, and those that stand before a projection or the last layer of an MLP
    inner = spec.attn_norm + spec.mlp_norm
    assert kinds.count("norm") == spec.depth * (2 + inner) + 2 * pool
    assert kinds.count("context") == spec.depth * (not spec.attn_norm) + pool
    single = spec.mlp == "linear"
    assert kinds.count("activation") == spec.depth * (not spec.mlp_norm and not single) + pool
    assert "other" not in kinds
    assert all(site.only for site in structure.sites)
    assert len(structure.linears) == spec.depth * (3 if single else 4) + 4 * pool
    assert [linear.shape[1] for linear in structure.outside] == [spec.classes] * (1 + spec.distillation_token)
    rotated = spec.qk_norm or spec.rotary != "none"
    columns, rows = check_heads(model, structure)
    assert columns == spec.depth * (1 if rotated else 3) + 2 * pool
    assert rows == spec.depth * (not spec.attn_norm) + pool


def test_heads_of_our_own_export_are_where_the_module_puts_them() -> None:
    spec = CASES["heads-inner-wider"]
    structure = recognise(vits.canonical(vits.exported("heads-inner-wider")))
    for index, attention in enumerate(structure.attentions):
        assert attention.packed is not None and attention.packed.name == f"blocks.{index}.attn.qkv/MatMul"
        assert attention.projection is not None and attention.projection.name == f"blocks.{index}.attn.proj/MatMul"
        order = np.arange(3 * spec.inner).reshape(3, spec.heads, spec.head_size)
        for known, expected in zip((*attention.columns, attention.rows), (*order, order[0]), strict=True):
            assert (known == expected).all()


@pytest.mark.parametrize(("name", "opset"), vits.FOREIGN)
def test_layers_of_other_peoples_networks(name, opset) -> None:
    model = vits.canonical(foreign.script(name, opset))
    structure = recognise(model)
    assert len(structure.attentions) == foreign.DEPTH
    assert [site.kind for site in structure.sites] == ["norm", "context", "norm", "activation"] * foreign.DEPTH
    rotated = name == "DINOv3ViTModel"
    assert check_heads(model, structure) == (foreign.DEPTH * (1 if rotated else 3), foreign.DEPTH)


def test_one_batch_size_is_understood() -> None:
    model = vits.canonical(foreign.script("timm", 17, 4))
    assert check_heads(model, recognise(model)) == (3 * foreign.DEPTH, foreign.DEPTH)


@pytest.mark.parametrize("form", ["packed", "multi-head"])
def test_fused_attention_is_recognised_after_it_is_split(form) -> None:
    structure = recognise(vits.canonical(foreign.contrib(form)))
    assert len(structure.attentions) == 2
    assert all(part is not None for attention in structure.attentions for part in (*attention.columns, attention.rows))


@pytest.mark.parametrize(("operator", "nearest"), [("MatMul", "MatMul"), ("Softmax", "Softmax"), (None, "no MatMul at all")])
def test_a_graph_without_a_block_is_refused_by_what_was_looked_for(operator, nearest) -> None:
    sketch = Sketch()
    value = sketch.add("Relu", "x")
    if operator is not None:
        value = sketch.add("MatMul", value, sketch.weight(16, 16))
    if operator == "Softmax":
        value = sketch.add("Softmax", value)
    model = vits.canonical(sketch.model(value))
    with pytest.raises(InputError) as caught:
        recognise(model)
    assert caught.value.code == "VD3023"
    assert "MatMul, Softmax, MatMul" in str(caught.value) and nearest in str(caught.value)


def test_a_softmax_that_is_no_attention_is_named_with_the_tool_that_takes_the_file() -> None:
    sketch = Sketch(shape=("batch", 4, 6, 6))
    maps = sketch.add("Conv", "x", sketch.weight(4, 4, 3, 3), pads=[1] * 4)
    model = vits.canonical(sketch.model(sketch.add("Softmax", sketch.add("MatMul", maps, maps))))
    with pytest.raises(InputError, match="the nearest is Softmax") as caught:
        recognise(model)
    assert "with NNCF or another tool" in str(caught.value.fix)


def test_convolutions_alone_are_refused_with_the_tool_for_them() -> None:
    model = vits.canonical(foreign.export_script(homemade.build("plain"), 20))
    with pytest.raises(InputError, match="it has no attention, the nearest is MatMul") as caught:
        recognise(model)
    assert "with NNCF or another tool" in str(caught.value.fix)


WINDOWED = {
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "window_size": 4},
    "swinv2_tiny_window8_256": {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "window_size": 4},
    "maxvit_rmlp_pico_rw_256": {"depths": (1, 1), "embed_dim": (32, 64)},
    "coatnet_rmlp_nano_rw_224": {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64)},
    "Swin": {},
    "Swinv2": {},
}
"""Networks of timm and transformers whose attention has a bias of relative positions, most of them in windows; what is small."""


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        pytest.param(name, exporter, marks=[pytest.mark.slow] if exporter == "dynamo" or "_" not in name else [])
        for name in WINDOWED
        for exporter in ("script", "dynamo")
        if (name, exporter) not in (("Swin", "dynamo"), ("maxvit_rmlp_pico_rw_256", "dynamo"))  # torch's own exporter fails
    ],
)
def test_windows_and_relative_positions(name, exporter) -> None:
    """Every attention is found, with the columns of each head, and the rewritten graph is the same function."""
    net = foreign.windowed(name, WINDOWED[name])
    before = getattr(foreign, f"export_{exporter}")(net, 20, side=foreign.WINDOW_SIDE)
    model = ir.from_proto(before)
    prepared = prepare(model, Layout())
    structure = prepared.structure
    assert len(structure.attentions) == sum(node.op_type == "Softmax" for node in model.graph)
    assert all(each.projection is not None and each.columns[2] is not None for each in structure.attentions)
    if name != "Swin":  # where windows are shifted, its file computes a size at run time
        assert prepared.rewrites["head-rotation"] == len(structure.attentions)
    inside = {linear.name for linear in structure.linears}
    left = [node for node in model.graph if is_linear(node) and node.name not in inside and "rotate" not in str(node.name)]
    of_tokens = [node.name for node in left if sizes(node.inputs[0])[1:-1] not in ((), (1,), (1, 1))]
    assert len(of_tokens) == (name == "Swinv2"), of_tokens  # its layer between stages stands before the norm, and stays float
    foreign.check(before, ir.to_proto(model), (3, foreign.WINDOW_SIDE, foreign.WINDOW_SIDE), batches=(2,))


def attention(sketch: Sketch, query: str, key: str, value: str, **softmax) -> tuple[str, str]:
    """Scores and context of one head of 16 channels."""
    scores = sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 2, 1]))
    return scores, sketch.add("MatMul", sketch.add("Softmax", scores, **softmax), value)


def test_columns_that_another_node_reads_are_not_given() -> None:
    sketch = Sketch()
    shared, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(2))
    _, context = attention(sketch, shared, shared, value)
    out = sketch.add("MatMul", context, sketch.weight(16, 16))
    recognised = recognise(vits.canonical(sketch.model(sketch.add("Add", out, value)))).attentions[0]
    assert recognised.columns == (None, None, None)


@pytest.mark.parametrize("other", [None, "Relu"])
def test_the_layer_behind_heads_that_were_written_one_by_one_is_in_the_block(other) -> None:
    """Three heads of the full width, one beside the other; not where something else stands among them."""
    sketch = Sketch()
    contexts = []
    for _ in range(3):
        query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
        contexts.append(attention(sketch, query, key, value)[1])
    if other is not None:
        contexts[1] = sketch.add(other, contexts[1])
    joined = sketch.add("Concat", *contexts, axis=-1)
    structure = recognise(vits.canonical(sketch.model(sketch.add("MatMul", joined, sketch.weight(48, 16)))))
    assert len(structure.linears) == 9 + (other is None)
    assert len(structure.outside) == (other is not None)


def test_scaled_values_are_not_taken_for_the_layers_own() -> None:
    sketch = Sketch()
    query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
    scaled = sketch.add("Mul", value, sketch.constant(np.float32(2)))
    _, context = attention(sketch, query, key, scaled)
    recognised = recognise(vits.canonical(sketch.model(sketch.add("MatMul", context, sketch.weight(16, 16))))).attentions[0]
    assert recognised.columns[0] is not None and recognised.columns[2] is None and recognised.rows is None


def test_a_factor_behind_the_bias_of_the_scores_stays() -> None:
    sketch = Sketch()
    query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
    scores = sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 2, 1]))
    scores = sketch.add("Mul", scores, sketch.constant(np.float32(3)))
    biased = sketch.add("Mul", sketch.add("Add", scores, sketch.weight(1, 6, 6)), sketch.constant(np.float32(2)))
    context = sketch.add("MatMul", sketch.add("Softmax", biased), value)
    proto = sketch.model(sketch.add("MatMul", context, sketch.weight(16, 16)))
    model = vits.canonical(proto)
    structure = recognise(model)
    assert len(fold.fold_query_scale(Editor(model), structure)) == 1
    assert vits.operators(model)["Mul"] == 1
    vits.same(proto, model)


def test_a_softmax_over_another_axis_is_no_attention() -> None:
    sketch = Sketch()
    query, key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3))
    _, context = attention(sketch, query, key, value, axis=1)
    with pytest.raises(InputError, match="no block"):
        recognise(vits.canonical(sketch.model(sketch.add("MatMul", context, sketch.weight(16, 16)))))


@pytest.mark.parametrize("between", ["nothing", "softmax"])
def test_a_query_without_a_layer_of_its_own_has_none(between) -> None:
    """It is the input itself, or probabilities: what lies above a softmax belongs to another attention."""
    sketch = Sketch()
    key, value = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(2))
    query = "x" if between == "nothing" else sketch.add("Softmax", sketch.add("MatMul", "x", sketch.weight(16, 16)))
    _, context = attention(sketch, query, key, value)
    recognised = recognise(vits.canonical(sketch.model(sketch.add("MatMul", context, sketch.weight(16, 16))))).attentions[-1]
    assert recognised.linears[0] is None and recognised.columns[0] is None
    assert recognised.columns[1] is not None and recognised.columns[2] is not None


@pytest.mark.parametrize("turned", [True, False])
def test_heads_cut_out_of_tokens_have_no_columns(turned) -> None:
    """[N, T, C] read as [N, h, T, d] without a Transpose: other columns for every token."""
    sketch = Sketch()
    order = numbers(sketch, 0, 6, 2, 8) if turned else numbers(sketch, 0, 2, 6, 8)
    heads = [sketch.add("Reshape", sketch.add("MatMul", "x", sketch.weight(16, 16)), order) for _ in range(3)]
    query, key, value = (sketch.add("Transpose", head, perm=[0, 2, 1, 3]) for head in heads) if turned else heads
    scores = sketch.add("MatMul", query, sketch.add("Transpose", key, perm=[0, 1, 3, 2]))
    context = sketch.add("MatMul", sketch.add("Softmax", scores), value)
    merged = sketch.add("Reshape", sketch.add("Transpose", context, perm=[0, 2, 1, 3]), numbers(sketch, 0, 6, 16))
    (recognised,) = recognise(vits.canonical(sketch.model(sketch.add("MatMul", merged, sketch.weight(16, 16))))).attentions
    expected = np.arange(16).reshape(2, 8)
    for known in (*recognised.columns, recognised.rows):
        assert (known == expected).all() if turned else known is None


def numbers(sketch: Sketch, *values: int) -> str:
    return sketch.constant(np.array(values, np.int64))


@pytest.mark.parametrize("shared", ["nothing", "the same columns", "other columns", "the output"])
def test_packed_columns_are_private_while_nothing_else_reads_them(shared) -> None:
    sketch = Sketch()
    packed = sketch.add("MatMul", "x", sketch.weight(16, 64))
    query, key, value, gate = sketch.add("Split", packed, outputs=4, axis=-1, num_outputs=4)
    _, context = attention(sketch, query, key, value)
    out = sketch.add("MatMul", context, sketch.weight(16, 16))
    reads = {"nothing": gate, "the same columns": query, "other columns": gate}.get(shared)
    ends = (out, packed) if reads is None else (sketch.add("Add", out, reads),)
    (recognised,) = recognise(vits.canonical(sketch.model(*ends))).attentions
    known = [columns is not None for columns in recognised.columns]
    assert known == {"the same columns": [False, True, True], "the output": [False] * 3}.get(shared, [True] * 3)
    for place, columns in enumerate(recognised.columns):
        assert columns is None or (columns == np.arange(16) + 16 * place).all()


def test_a_tensor_that_something_else_reads_is_no_site_of_its_layers_alone() -> None:
    for read in (False, True):
        sketch = Sketch()
        norm = sketch.add("LayerNormalization", "x", sketch.weight(16), axis=-1)
        query, key, value = (sketch.add("MatMul", norm, sketch.weight(16, 16)) for _ in range(3))
        _, context = attention(sketch, query, key, value)
        out = sketch.add("MatMul", context, sketch.weight(16, 16))
        structure = recognise(vits.canonical(sketch.model(sketch.add("Add", out, norm if read else "x"))))
        assert [(site.kind, site.only, len(site.linears)) for site in structure.sites] == [
            ("norm", not read, 3), ("context", True, 1),
        ]  # fmt: skip


@pytest.mark.parametrize(("axes", "root"), [((1,), True), ((2,), False), ((-1,), False), ((0,), False), ((1, 2), False)])
def test_tokens_that_are_selected_lead_back_to_all_tokens(axes, root) -> None:
    sketch = Sketch()
    bounds = (numbers(sketch, *([0] * len(axes))), numbers(sketch, *([4] * len(axes))), numbers(sketch, *axes))
    model = ir.from_proto(sketch.model(sketch.add("Slice", sketch.add("Relu", "x"), *bounds)))
    relu, part = model.graph
    assert find_root(part.outputs[0]) is (relu.outputs[0] if root else part.outputs[0])
    assert find_root(relu.outputs[0]) is relu.outputs[0]
