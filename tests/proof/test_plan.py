"""The plan that a file itself tells is the plan that quantizing had."""

import msgspec
import pytest
from onnx import TensorProto, helper

from tests.backends.qdq import Quantizer
from vitdeploy.proof.census import Plan
from vitdeploy.proof.plan import read_plan
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.verbs.quantizer import quantize

BLOCKS = 2


def test_a_float_model_plans_nothing(tiny_artifact):
    assert read_plan(tiny_artifact.model) == Plan()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("precision", "target", "part"),
    [
        ("int8", "onnxruntime", "gemms"),
        ("int8", "openvino", "gemms"),
        ("int8", "portable", "gemms"),
        ("int8", "tensorrt", "gemms"),
        ("int8-dynamic", "onnxruntime", "dynamic"),
        ("int8-weight-only", "onnxruntime", "dynamic"),
        ("int8-weight-only", "openvino", "dynamic"),
    ],
)
def test_what_quantize_wrote_plans_every_linear_layer(tiny_artifact, tmp_path, precision, target, part):
    config = QuantizeConfig(precision=precision, target=target, calibration="random", limit=16, verify=False, threads=1)
    made = quantize(tiny_artifact, config, tmp_path / "made")
    parts = msgspec.structs.asdict(read_plan(made.model))
    names = parts.pop(part)
    assert parts.pop("ours"), "unless somebody says otherwise"
    assert len(names) >= 4 * BLOCKS
    assert not any(parts.values())
    for engine, counted in made.record.proof.census.items():
        assert counted.planned[part] == len(names), engine


def test_a_product_of_one_factor_is_in_no_part(tmp_path):
    """No engine takes such a file; what the plan says of it must not be made up."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b")]
    scale, zero = helper.make_tensor("s", 1, [], [1.0]), helper.make_tensor("z", 3, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d"], ["b"], name="half"),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [scale, zero])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert read_plan(tmp_path / "model.onnx") == Plan()


def test_attention_is_told_apart(tiny_artifact, tmp_path):
    made = Quantizer(tiny_artifact).static().products().write(tmp_path)
    assert len(read_plan(made.model).attention) == 2 * BLOCKS
