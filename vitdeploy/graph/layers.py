"""Linear layers of a graph, and the few edits that rewrites of weights are made of.

An initializer may serve several nodes: who rewrites one of them writes a copy, so that the others keep theirs. New nodes and
constants get names that are free, and what nothing uses any more leaves the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import Array, constant, is_constant
from vitdeploy.graph.naming import free


class Linear:
    """One linear layer, x W + b: a MatMul with a constant matrix, and the Add of a constant vector behind it, if any."""

    def __init__(self, matmul: ir.Node) -> None:
        """Of a node that `Linear.of` accepts."""
        self.matmul = matmul
        self.add = _bias_of(matmul)

    @staticmethod
    def of(node: ir.Node | None) -> bool:
        """Whether a node is the product of a linear layer."""
        if node is None or node.op_type != "MatMul" or node.domain != "":
            return False
        weight = node.inputs[1]
        return (
            weight is not None and is_constant(weight) and weight.const_value is not None and len(weight.const_value.shape) == 2
        )

    @property
    def name(self) -> str:
        """The MatMul's name."""
        return str(self.matmul.name)

    @property
    def input(self) -> ir.Value:
        """What it multiplies, float [..., K]."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """Its result with the bias, float [..., M]."""
        return (self.add or self.matmul).outputs[0]

    @property
    def shape(self) -> tuple[int, int]:
        """K and M, without loading the weight."""
        weight = self.matmul.inputs[1]
        assert weight is not None and weight.const_value is not None
        rows, columns = weight.const_value.shape.numpy()
        return rows, columns

    @property
    def weight(self) -> NDArray[np.float32]:
        """W, float32 [K, M]; a copy."""
        found = constant(self.matmul.inputs[1])
        assert found is not None
        return found.astype(np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        """b, float32 [M]; zeros when there is none."""
        found = None if self.add is None else constant(self.add.inputs[1])
        if found is None:
            return np.zeros(self.shape[1], np.float32)
        return np.broadcast_to(found.astype(np.float32).reshape(-1), (self.shape[1],)).copy()

    def write(self, weight: Array | None = None, bias: Array | None = None) -> None:
        """Replace the numbers. A weight that another node uses too is left to it; a missing bias is added when needed."""
        if weight is not None:
            own(self.matmul, 1, weight.astype(np.float32))
        if bias is None or (self.add is None and not np.any(bias)):
            return
        if self.add is None:
            self.add = _append_bias(self.matmul, bias.astype(np.float32))
        else:
            own(self.add, 1, bias.astype(np.float32))


def _bias_of(matmul: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone takes the product."""
    users = list(matmul.outputs[0].uses())
    if len(users) != 1 or matmul.outputs[0].is_graph_output():
        return None
    add = users[0].node
    if add.op_type != "Add" or add.domain != "" or users[0].idx != 0:
        return None
    bias, weight = add.inputs[1], matmul.inputs[1]
    if not is_constant(bias) or bias is None or bias.const_value is None or weight is None or weight.const_value is None:
        return None
    shape, width = bias.const_value.shape.numpy(), weight.const_value.shape.numpy()[1]
    vector = bias.const_value.size == 1 or (bias.const_value.size == width and shape[-1] == width)
    return add if vector and len(shape) <= 2 else None


def _append_bias(matmul: ir.Node, bias: Array) -> ir.Node:
    value = matmul.outputs[0]
    stem = str(matmul.name).removesuffix("/MatMul")
    add = ir.node("Add", [value, add_constant(matmul, f"{stem}.bias", bias)], name=f"{stem}/Add")
    declare(add.outputs[0], value.type, value.shape)
    insert([add], matmul, behind=True)
    substitute(value, add.outputs[0])
    add.replace_input_with(0, value)
    return add


def own(node: ir.Node, index: int, array: Array) -> ir.Value:
    """Give a node's constant input new numbers; other nodes that use the old ones keep them."""
    value = node.inputs[index]
    assert value is not None and node.graph is not None
    if len(list(value.uses())) == 1 and not value.is_graph_output():
        value.const_value = ir.tensor(array, name=value.name)
        declare(value, ir.TensorType(value.const_value.dtype), array.shape)
        return value
    fresh = add_constant(node, f"{node.name}.{value.name}", array)
    node.replace_input_with(index, fresh)
    return fresh


def declare(value: ir.Value, type_: ir.TypeProtocol | None, shape: Sequence[object] | ir.Shape | None) -> None:
    """Say what a value is; nothing is said of the shape when it is None."""
    value.type = type_
    value.shape = (
        None if shape is None else ir.Shape([size if isinstance(size, (int, ir.SymbolicDim)) else None for size in shape])
    )


def resized(value: ir.Value, axis: int, size: int) -> ir.Shape | None:
    """A value's shape with another size along one axis."""
    if value.shape is None:
        return None
    sizes = list(value.shape)
    sizes[axis] = size
    return ir.Shape(sizes)


def add_constant(node: ir.Node, name: str, array: Array) -> ir.Value:
    """A new initializer in the graph of ``node``; the name is made free by a number behind it."""
    graph = graph_of(node)
    own_name = free(name, _values(graph))
    tensor = ir.tensor(array, name=own_name)
    value = ir.Value(name=own_name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def insert(nodes: Sequence[ir.Node], place: ir.Node, *, behind: bool = False) -> None:
    """Put nodes before (or behind) another; names that are taken get a number, outputs without one are ``<node>_out``."""
    graph = graph_of(place)
    names, values = {str(node.name) for node in graph}, _values(graph)
    for node in nodes:
        node.name = free(str(node.name), names)
        for index, value in enumerate(node.outputs):
            wanted = value.name or f"{node.name}_out" + (f"_{index}" if len(node.outputs) > 1 else "")
            value.name = free(wanted, values)
    if behind:
        graph.insert_after(place, nodes)
    else:
        graph.insert_before(place, nodes)


def insert_linear(before: ir.Node, value: ir.Value, weight: Array, bias: Array, stem: str) -> Linear:
    """A new linear layer on a tensor, put before a node.

    Args:
        before: The node.
        value: float [..., K].
        weight: float [K, M].
        bias: float [M].
        stem: What its nodes and constants are called.
    """
    matmul = ir.node("MatMul", [value, add_constant(before, f"{stem}.weight", weight.astype(np.float32))], name=f"{stem}/MatMul")
    bias_value = add_constant(before, f"{stem}.bias", bias.astype(np.float32))
    add = ir.node("Add", [matmul.outputs[0], bias_value], name=f"{stem}/Add")
    for node in (matmul, add):
        declare(node.outputs[0], value.type, resized(value, -1, weight.shape[1]))
    insert([matmul, add], before)
    return Linear(matmul)


def insert_split(before: ir.Node, value: ir.Value, widths: Sequence[int], stem: str) -> list[ir.Value]:
    """The channels of a tensor in parts, put before a node.

    Args:
        before: The node.
        value: float [..., K].
        widths: Channels of each part; their sum is K.
        stem: What the node is called.
    """
    sizes = add_constant(before, f"{stem}/Split.split", np.array(widths, np.int64))
    split = ir.node("Split", [value, sizes], {"axis": -1}, num_outputs=len(widths), name=f"{stem}/Split")
    for part, width in zip(split.outputs, widths, strict=True):
        declare(part, value.type, resized(value, -1, width))
    insert([split], before)
    return list(split.outputs)


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Put a value in the place of another for all its users; an output of the graph keeps its name."""
    if old.is_graph_output():
        producer = old.producer()
        assert producer is not None
        name, old.name = str(old.name), free(f"{producer.name}_out", _values(graph_of(producer)))
        new.name, new.type, new.shape = name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove(nodes: Iterable[ir.Node]) -> list[str]:
    """Take nodes that nothing uses out of the graph, with what only they used; the names of the given ones."""
    names = []
    for node in nodes:
        names.append(str(node.name))
        sweep(node)
    return names


def sweep(node: ir.Node) -> None:
    """Remove a node if nothing uses it, and then what only it used."""
    if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = dict.fromkeys(value for value in node.inputs if value is not None)
    graph_of(node).remove(node, safe=True)
    for value in inputs:
        release(value)


def release(value: ir.Value) -> None:
    """Remove what makes a value, or the initializer, if nothing uses it."""
    producer = value.producer()
    if producer is not None:
        sweep(producer)
    elif value.graph is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
        value.graph.initializers.pop(str(value.name))


def first(nodes: Iterable[ir.Node]) -> ir.Node:
    """The node that comes first in its graph."""
    wanted = set(nodes)
    return next(node for node in graph_of(next(iter(wanted))) if node in wanted)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that a node is in."""
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _values(graph: ir.Graph) -> set[str]:
    """Names of all values."""
    names = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    return names | {str(value.name) for node in graph for value in node.outputs}
