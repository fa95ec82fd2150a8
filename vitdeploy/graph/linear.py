"""Linear layers, and what rewrites of weights make of them.

An initializer may serve several nodes: who rewrites one of them writes a copy, so that the others keep theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.query import Array, constant, is_constant, only_user, resize_axis


class Linear:
    """One linear layer, x W + b: a MatMul with a constant matrix, and the Add of a constant vector behind it, if any."""

    def __init__(self, matmul: ir.Node) -> None:
        """Of a node that `is_linear` accepts."""
        self.matmul = matmul
        self.add = _bias_of(matmul)

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
        numbers = constant(self.matmul.inputs[1])
        assert numbers is not None
        return numbers.astype(np.float32)

    @property
    def bias(self) -> NDArray[np.float32]:
        """b, float32 [M]; zeros when there is none."""
        numbers = None if self.add is None else constant(self.add.inputs[1])
        if numbers is None:
            return np.zeros(self.shape[1], np.float32)
        return np.broadcast_to(numbers.astype(np.float32).reshape(-1), (self.shape[1],)).copy()

    def write(self, editor: Editor, weight: Array | None = None, bias: Array | None = None) -> None:
        """Replace the numbers. A weight that another node uses too is left to it; a missing bias is added when needed."""
        if weight is not None:
            editor.own(self.matmul, 1, weight.astype(np.float32))
        if bias is None or (self.add is None and not np.any(bias)):
            return
        if self.add is None:
            self.add = _append_bias(editor, self.matmul, bias.astype(np.float32))
        else:
            editor.own(self.add, 1, bias.astype(np.float32))


def is_linear(node: ir.Node | None) -> bool:
    """Whether a node is the product of a linear layer."""
    weight = node.inputs[1] if node is not None and node.op_type == "MatMul" and node.domain == "" else None
    return weight is not None and is_constant(weight) and weight.const_value is not None and len(weight.const_value.shape) == 2


def _bias_of(matmul: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone takes the product."""
    add = only_user(matmul.outputs[0], "Add")
    if add is None or add.inputs[0] is not matmul.outputs[0]:
        return None
    bias, weight = add.inputs[1], matmul.inputs[1]
    if not is_constant(bias) or bias is None or bias.const_value is None or weight is None or weight.const_value is None:
        return None
    shape, width = bias.const_value.shape.numpy(), weight.const_value.shape.numpy()[1]
    vector = bias.const_value.size == 1 or (bias.const_value.size == width and shape[-1] == width)
    return add if vector and len(shape) <= 2 else None


def _append_bias(editor: Editor, matmul: ir.Node, bias: Array) -> ir.Node:
    value = matmul.outputs[0]
    stem = str(matmul.name).removesuffix("/MatMul")
    add = ir.node("Add", [value, editor.constant(f"{stem}.bias", bias)], name=f"{stem}/Add")
    declare(add.outputs[0], value.type, value.shape)
    editor.insert([add], matmul, behind=True)
    editor.replace(value, add.outputs[0])
    return add


def insert_linear(editor: Editor, before: ir.Node, value: ir.Value, parameters: tuple[Array, Array], stem: str) -> Linear:
    """A new linear layer on a tensor, put before a node.

    Args:
        editor: Of the graph.
        before: The node.
        value: float [..., K].
        parameters: Weight and bias, float [K, M] and [M].
        stem: What its nodes and constants are called.
    """
    roles = zip(("weight", "bias"), parameters, strict=True)
    weight, bias = (editor.constant(f"{stem}.{role}", numbers.astype(np.float32)) for role, numbers in roles)
    matmul = ir.node("MatMul", [value, weight], name=f"{stem}/MatMul")
    add = ir.node("Add", [matmul.outputs[0], bias], name=f"{stem}/Add")
    for node in (matmul, add):
        declare(node.outputs[0], value.type, resize_axis(value, -1, parameters[0].shape[1]))
    editor.insert([matmul, add], before)
    return Linear(matmul)


def insert_split(editor: Editor, before: ir.Node, value: ir.Value, widths: Sequence[int], stem: str) -> list[ir.Value]:
    """The channels of a tensor in parts, put before a node.

    Args:
        editor: Of the graph.
        before: The node.
        value: float [..., K].
        widths: Channels of each part; their sum is K.
        stem: What the node is called.
    """
    sizes = editor.constant(f"{stem}/Split.split", np.array(widths, np.int64))
    split = ir.node("Split", [value, sizes], {"axis": -1}, num_outputs=len(widths), name=f"{stem}/Split")
    for part, width in zip(split.outputs, widths, strict=True):
        declare(part, value.type, resize_axis(value, -1, width))
    editor.insert([split], before)
    return list(split.outputs)
