"""Names of what the exporter wrote: module paths, roles of constants, no name twice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from vitdeploy.graph.names import SCOPES, list_shape_arithmetic, name_by_module


def make_input(name: str, array: np.ndarray | None = None, *shape: int) -> ir.Value:
    if array is None:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    tensor = ir.Tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def build(operator: str, *arrays: np.ndarray, scopes: list[str] | None = None) -> tuple[ir.Model, ir.Node]:
    """One node of one module, with anonymous constants behind its first input."""
    pixels = make_input("x", None, 2, 3, 4)
    constants = [make_input(f"val_{place}", array) for place, array in enumerate(arrays)]
    node = ir.node(operator, [pixels, *constants], name="node_1")
    node.outputs[0].name = "y"
    if scopes is not None:
        node.metadata_props[SCOPES] = str(scopes)
    graph = ir.Graph([pixels], node.outputs, nodes=[node], initializers=constants, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10), node


WHOLE = np.array([0], np.int64)


@pytest.mark.parametrize(
    ("operator", "arrays", "roles"),
    [
        ("Slice", [WHOLE] * 4, ["starts", "ends", "axes", "steps"]),
        ("Reshape", [WHOLE], ["shape"]),
        ("Gather", [WHOLE], ["index"]),
        ("Pad", [WHOLE, np.float32([0.0])], ["pads", "constant_2"]),
        ("Mul", [np.float32([2.0])], ["constant_1"]),
        ("MatMul", [np.ones((4, 5), np.float32)], ["weight"]),
        ("MatMul", [np.ones((2, 4, 5), np.float32)], ["constant_1"]),
    ],
)
def test_an_anonymous_constant_is_called_after_its_role(operator, arrays, roles) -> None:
    model, node = build(operator, *arrays, scopes=["", "blocks.0.attn", "aten"])
    name_by_module(model)
    assert node.name == f"blocks.0.attn/{operator}"
    before = "blocks.0.attn" if roles == ["weight"] else node.name
    names = [f"{before}.{role}" for role in roles]
    assert [value.name for value in node.inputs[1:]] == names
    assert list(model.graph.initializers) == names


@pytest.mark.parametrize(
    ("scopes", "root", "path"),
    [
        (["", "head", "linear"], "", "head/"),
        (["", "net", "net.head", "linear"], "net", "head/"),
        (["", "net", "linear"], "net", ""),
        (["", "network.head", "linear"], "net", "network.head/"),
        (["linear"], "", ""),
        (None, "", ""),
    ],
)
def test_a_node_is_called_after_its_module(scopes, root, path) -> None:
    model, node = build("Relu", scopes=scopes)
    name_by_module(model, root=root)
    assert node.name == f"{path}Relu"
    assert (model.graph.inputs[0].name, node.outputs[0].name) == ("x", "y")
    assert not node.metadata_props


def test_shape_arithmetic_is_listed() -> None:
    model, node = build("Shape")
    assert list_shape_arithmetic(model) == [node.name]
    assert list_shape_arithmetic(build("Relu")[0]) == []
