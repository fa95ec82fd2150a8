"""Merged graphs compute what the merged network computes, on both engines, alone and in company; what can't be is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import openvino
import pytest
import torch

from tests.checkpoints import cases
from tests.graph import foreign, vits
from vitdeploy.errors import UsageError
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.class_token import keep_class_token
from vitdeploy.graph.merging.rewrite import count_protected, merge_tokens
from vitdeploy.graph.structure import recognise
from vitdeploy.models.merging import merge_tokens as merge_network
from vitdeploy.recipe import ExportConfig
from vitdeploy.verbs.exporter import trace

CASES = ["plain", "tokens-distilled", "tokens-all", "like-clip", "like-dinov2", "qk-norm", "heads-inner-wider"]
OPERATORS = {
    "Add", "ArgMax", "Concat", "Div", "Equal", "GatherElements", "GatherND", "Log", "MatMul", "Max", "Mul", "Pad", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceSum", "Slice", "TopK", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def merge(model: ir.Model, counts: tuple[int, ...], protected: int) -> onnx.ModelProto:
    before = {node.name for node in model.graph}
    merge_tokens(Editor(model), recognise(model), counts, protected)
    new = [node for node in model.graph if node.name not in before]
    assert {node.op_type for node in new} <= OPERATORS
    return vits.sound(model)


def in_openvino(proto: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([pixels])[0]


def check(proto: onnx.ModelProto, expected) -> None:
    for batch in (1, 3):
        pixels = vits.feed(proto, batch)
        wanted = expected(pixels)
        for got in (foreign.run(proto, pixels)[0], in_openvino(proto, pixels)):
            assert np.abs(got - wanted).max() <= 1e-5 * wanted.std()


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_merged_network(name):
    spec = cases.CASES[name]
    net = merge_network(cases.shaken(spec), (3, *(0,) * (spec.depth - 1)))
    proto = merge(vits.canonical(vits.quick(name)), (3, *(0,) * (spec.depth - 1)), spec.prefix)

    def run(pixels):
        with torch.inference_mode():
            return net(torch.from_numpy(pixels)).numpy()

    check(proto, run)


DEEP = cases.spec("deep", depth=5, registers=2, layer_scale=0.1)


@pytest.mark.parametrize("counts", [(4, 3, 0, 2, 0), (0, 7, 4, 1, 0), (1, 1, 1, 1, 0)])
def test_sizes_are_carried_from_block_to_block(counts):
    """As exported and, after it, with the last block cut down to the class token."""
    net = cases.shaken(DEEP)
    merged = merge_network(net, counts)

    def run(pixels):
        with torch.inference_mode():
            return merged(torch.from_numpy(pixels)).numpy()

    model = trace(net, DEEP, ExportConfig())
    check(merge(model, counts, DEEP.prefix), run)
    before = vits.products(ir.to_proto(model))
    fold.fold_layer_scale(Editor(model), recognise(model))
    assert keep_class_token(Editor(model), recognise(model))
    check(vits.sound(model), run)
    assert vits.products(ir.to_proto(model)) < before


@pytest.mark.parametrize("name", ["timm", "torchvision", "ViTForImageClassification", "CLIPVisionModel"])
def test_other_peoples_networks_are_merged(name):
    """What both engines agree on, and not what it was; of timm's, whose weights are ours by name, the merged network's."""
    model = vits.canonical(foreign.script(name, 17))
    before, structure = ir.to_proto(model), recognise(model)
    assert count_protected(model, structure) == 1
    if name == "CLIPVisionModel":  # gives every token
        with pytest.raises(UsageError, match="has a row for each"):
            merge(model, (5, 0), 1)
        return
    proto = merge(model, (5, 0), 1)
    pixels = vits.feed(proto, 3)
    assert np.abs(foreign.run(proto, pixels)[0] - foreign.run(before, pixels)[0]).max() > 1e-4
    if name == "timm":
        spec = cases.spec("timm", heads=foreign.HEADS, mlp_width=128, layer_scale=0.1)
        net = cases.shaken(spec)
        net.load_state_dict(foreign.network(name).state_dict())
        merged = merge_network(net, (5, 0))
        with torch.inference_mode():
            check(proto, lambda given: merged(torch.from_numpy(given)).numpy())
        return
    check(proto, lambda given: foreign.run(proto, given)[0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pool-mean", "more of them than those at the start"),
        ("pool-max", "more of them than those at the start"),
        ("pool-cls-mean", "more of them than those at the start"),
        ("pool-map", "in another way|more of them"),
        ("rotary-dinov3", "in its own way"),
        ("rotary-eva02", "in its own way"),
        ("relative-blocks", "in its own way"),
        ("position-conditional", "more of them than those at the start|in its own way"),
    ],
)
def test_what_knows_tokens_by_their_place_is_refused_and_unchanged(name, said):
    spec = cases.CASES[name]
    model = vits.canonical(vits.quick(name))
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(UsageError, match=said) as caught:
        merge_tokens(Editor(model), recognise(model), (1, *(0,) * (spec.depth - 1)), spec.prefix)
    assert caught.value.code == "VD2011"
    assert ir.to_proto(model).SerializeToString() == before


def test_an_output_of_all_tokens_is_refused():
    spec = cases.CASES["plain"]
    model = trace(cases.shaken(spec), spec, ExportConfig(outputs=("tokens",)))
    with pytest.raises(UsageError, match="'tokens' has a row for each"):
        merge_tokens(Editor(model), recognise(model), (1, 0), 1)


def test_the_same_bytes_again():
    first, second = (ir.to_proto(trace(cases.shaken(DEEP), DEEP, ExportConfig())) for _ in range(2))
    models = [ir.from_proto(each) for each in (first, second)]
    made = [merge(model, (4, 3, 0, 2, 0), DEEP.prefix).SerializeToString() for model in models]
    assert made[0] == made[1]
