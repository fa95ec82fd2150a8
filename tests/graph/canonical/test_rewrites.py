"""Every exporter's ViT becomes the same few operators, and computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.graph import foreign
from tests.graph.foreign import CLASSES, DEPTH, SIDE, Sketch, check, counts, names_of, rewritten, run
from vitdeploy.errors import UsageError
from vitdeploy.graph.canonical.rewrites import NAMES, canonicalise

KNOWN = {
    "Add", "Concat", "Conv", "Gather", "Gelu", "LayerNormalization", "MatMul", "Mul", "Neg", "Pad", "ReduceMean", "Reshape",
    "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


PACKED = {"LayerNormalization": 2 * DEPTH + 1, "Softmax": DEPTH, "Gelu": DEPTH, "MatMul": 6 * DEPTH + 1, "Pad": 1}
SEPARATE = PACKED | {"MatMul": 8 * DEPTH + 1}
CLIP = {"LayerNormalization": 2 * DEPTH + 1, "Softmax": DEPTH, "Sigmoid": DEPTH, "MatMul": 8 * DEPTH, "Gelu": 0}
EXPORTS = [
    ("script", "timm", 14, PACKED),
    ("dynamo", "timm-unfused", 20, PACKED),
    ("dynamo", "timm", 23, PACKED),
    ("dynamo", "Dinov2ForImageClassification", 23, SEPARATE),
    ("dynamo", "Dinov2ForImageClassification", 18, SEPARATE),
    ("script", "timm-unfused", 13, PACKED),
    ("dynamo", "torchvision", 20, PACKED),
    ("dynamo", "timm", 18, PACKED),
    ("script", "timm", 17, PACKED),
    ("script", "timm-unfused", 18, PACKED),
    ("script", "timm-registers", 17, PACKED),
    ("script", "torchvision", 17, PACKED),
    ("script", "ViTForImageClassification", 14, SEPARATE),
    ("script", "ViTForImageClassification-eager", 17, SEPARATE),
    ("script", "CLIPVisionModel", 17, CLIP),
    ("script", "CLIPVisionModel-eager", 13, CLIP),
    ("script", "DINOv3ViTModel", 17, SEPARATE | {"MatMul": 8 * DEPTH}),
]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("exporter", "network", "opset", "expected"), EXPORTS, ids=lambda each: None if isinstance(each, dict) else str(each)
)
def test_an_export_becomes_the_operators_of_our_own(exporter, network, opset, expected):
    before = getattr(foreign, exporter)(network, opset)
    after, done = rewritten(before)
    check(before, after)
    counted = counts(after)
    assert {name: counted[name] for name in expected} == expected
    assert set(counted) <= KNOWN
    assert [each.version for each in after.opset_import] == [20]
    assert all(rewrite.name in NAMES and (rewrite.nodes or rewrite.name == "opset") for rewrite in done)
    assert rewritten(after)[1] == []


def test_attention_reads_one_scaled_query():
    after, _ = rewritten(foreign.script("timm", 17))
    makers = {name: node for node in after.graph.node for name in node.output}
    for softmax in (node for node in after.graph.node if node.op_type == "Softmax"):
        scores = makers[softmax.input[0]]
        assert scores.op_type == "MatMul"
        assert [makers[name].op_type for name in scores.input] == ["Mul", "Transpose"]
        number = next(each for each in after.graph.initializer if each.name == makers[scores.input[0]].input[1])
        assert onnx.numpy_helper.to_array(number) == pytest.approx(0.25)


def test_our_own_export_is_canonical_but_for_its_head(tiny_artifact):
    path = tiny_artifact.folder / "model.onnx"
    before = onnx.load(path)
    after, done = rewritten(before)
    assert [rewrite.name for rewrite in done] == ["gemm"]
    gemm = next(node for node in before.graph.node if node.op_type == "Gemm")
    assert [node for node in before.graph.node if node is not gemm] == [
        node for node in after.graph.node if node.name not in done[0].nodes
    ]
    kept = {each.name: each for each in after.graph.initializer}
    assert all(kept[each.name] == each for each in before.graph.initializer if each.name not in gemm.input)
    assert [
        each.name for each in after.graph.initializer if each.name not in {one.name for one in before.graph.initializer}
    ] == []
    check(before, after, (3, 16, 24))
    assert rewritten(after)[1] == []


def test_our_own_static_export_is_canonical_too(tiny_static):
    before = onnx.load(tiny_static.folder / "model.onnx")
    after, done = rewritten(before)
    assert names_of(done) == {"gemm"}
    check(before, after, (3, 16, 24), (4,))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_each_rewrite_can_be_left_out(name):
    for before in (foreign.script("timm", 14), foreign.dynamo("timm", 23)):
        opset = before.opset_import[0].version
        skip = (name, "opset") if name == "attention" and opset == 23 else (name,)
        after, done = rewritten(before, *skip)
        assert name not in names_of(done)
        check(before, after, batches=(3,))


def test_a_rewrite_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="did you mean 'gelu'") as caught:
        canonicalise(ir.from_proto(foreign.script("timm", 14)), skip=("gellu",))
    assert caught.value.code == "VD2003"


def test_a_batch_of_one_size_stays_that_size():
    before = foreign.script("timm", 14, 2)
    after, _ = rewritten(before)
    assert set(counts(after)) <= KNOWN
    check(before, after, batches=(2,))


def test_shapes_are_known_afterwards():
    model = ir.from_proto(foreign.script("timm", 17))
    canonicalise(model)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert [str(size) for size in softmax.outputs[0].shape] == ["batch", "2", "17", "17"]
    assert all(value.shape is not None and value.dtype is not None for node in model.graph for value in node.outputs)


def test_shapes_that_the_file_only_claims_are_not_believed():
    before = onnx.ModelProto()
    before.CopyFrom(foreign.script("timm", 17))
    # as a tool leaves it that made the batch dynamic in the inputs alone
    claimed = next(node for node in before.graph.node if node.op_type == "Conv").output[0]
    before.graph.value_info.append(helper.make_tensor_value_info(claimed, TensorProto.FLOAT, (1, 32, 4, 4)))
    after, _ = rewritten(before)
    check(foreign.script("timm", 17), after)


def test_weights_are_not_loaded():
    model = ir.from_proto(foreign.dynamo("timm", 18))
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
            value = node.inputs[1]

            def load():
                raise AssertionError("a weight was loaded")

            value.const_value = ir.LazyTensor(load, dtype=value.const_value.dtype, shape=value.const_value.shape, name=value.name)
    canonicalise(model)
    assert sum(isinstance(value.const_value, ir.LazyTensor) for value in model.graph.initializers.values()) == 4 * DEPTH


def test_names_stay_and_are_given():
    sketch = Sketch()
    first = sketch.add("MatMul", "x", sketch.weight(16, 16), name="fc")
    second = sketch.add("Add", sketch.weight(16), first)
    third = sketch.add("MatMul", second, sketch.weight(16, 16), name="fc")
    model = ir.from_proto(sketch.model(sketch.add("Relu", third)))
    canonicalise(model)
    assert [node.name for node in model.graph] == ["fc", "Add_0", "fc_1", "Relu_0"]
    assert [value.name for value in model.graph.outputs] == ["v3_0"]


def test_the_graph_computes_classes():
    """The networks are not degenerate: different images, different logits."""
    feed = np.random.default_rng(0).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)
    logits = run(foreign.script("timm", 17), feed)[0]
    assert logits.shape == (3, CLASSES) and np.abs(logits[0] - logits[1]).max() > 1e-3
