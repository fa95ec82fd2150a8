"""What follows from the nodes of a file: makers, constants, element types."""

import onnx
import pytest
from onnx import TensorProto, helper

from vitdeploy.errors import InputError
from vitdeploy.onnxfile.nodes import read_nodes


@pytest.fixture
def written(tmp_path):
    """x [2] float16 -> Cast -> Add; a weight through DequantizeLinear and Transpose; a nameless node, another domain."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], "Cast", to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["w", "s"], ["dq"], "DQ"),
        helper.make_node("Transpose", ["dq"], ["moved"], "Transpose"),
        helper.make_node("Add", ["wide", "moved"], ["sum"]),
        helper.make_node("Constant", [], ["c"], "Constant", value=helper.make_tensor("v", TensorProto.DOUBLE, [1], [1.0])),
        helper.make_node("Own", ["sum", "", "c"], ["y"], "Own", domain="mine", flag=7),
    ]
    constants = [helper.make_tensor("w", TensorProto.INT8, [2], [1, 2]), helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])]
    ports = [
        helper.make_tensor_value_info(name, kind, [2]) for name, kind in (("x", TensorProto.FLOAT16), ("y", TensorProto.FLOAT))
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], constants))
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_constants_and_types_follow_from_the_graph(written):
    graph = read_nodes(written)
    assert [graph.is_constant(value) for value in ("w", "dq", "moved", "c")] == [True] * 4
    assert [graph.is_constant(value) for value in ("x", "wide", "sum", "y", "nothing")] == [False] * 5
    types = {value: graph.dtype(value) for value in ("x", "wide", "sum", "w", "moved", "c", "nothing")}
    assert types == {
        "x": "float16", "wide": "float32", "sum": "float32", "w": "int8", "moved": "float32", "c": "float64", "nothing": "",
    }  # fmt: skip
    assert graph.origin("moved").name == "DQ"
    assert graph.origin("x") is None
    own = graph.all[-1]
    assert (own.operator, own.inputs, own.numbers) == ("mine::Own", ("sum", "", "c"), {"flag": 7})
    assert graph.all[3].name == "sum"  # a nameless node is called after its output


def test_damaged_file_is_one_error(written):
    written.write_bytes(written.read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        read_nodes(written)
    assert caught.value.code == "VD3011"


def test_a_loop_ends(tmp_path):
    nodes = [helper.make_node("Reshape", ["a", "s"], ["b"]), helper.make_node("Reshape", ["b", "s"], ["a"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), tmp_path / "loop.onnx")
    graph = read_nodes(tmp_path / "loop.onnx")
    assert (graph.is_constant("a"), graph.dtype("a"), graph.origin("a")) == (False, "", None)
