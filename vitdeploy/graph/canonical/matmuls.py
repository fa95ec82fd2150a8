"""Linear layers in the one form that later steps know: MatMul with a constant [K, M], and Add of a constant [M].

Source: y = alpha A' B' + beta C, github.com/onnx/onnx/blob/main/docs/Operators.md#Gemm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.linear import Linear, is_linear
from vitdeploy.graph.query import (
    MICROSOFT,
    constant,
    integer,
    is_constant,
    maker,
    maker_name,
    only_user,
    other,
    real,
    sizes,
    whole,
)


def split_gemm(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write Gemm with a constant matrix as MatMul and Add, on the tensor as it was before it was flattened to two axes.

    Yields:
        The nodes that took its place.
    """
    for node in list(editor.graph):
        if node.op_type != "Gemm" or node.domain != "" or integer(node, "transA", 0) or not is_constant(node.inputs[1]):
            continue
        bias, old = node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
        if bias is not None and _make_bias(editor, node, bias) is None:
            continue
        product = editor.add(node, "MatMul", [node.inputs[0], _make_weight(editor, node)])
        made = [maker_name(product)]
        if bias is not None:
            product = editor.add(node, "Add", [product, _make_bias(editor, node, bias)])
            made.append(maker_name(product))
        product.shape, product.type = old.shape, old.type
        editor.replace(old, product)
        yield tuple(made)


def split_matmul(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write com.microsoft's FusedMatMul as MatMul, with the Transposes and the factor that it joins.

    Yields:
        The MatMul.

    Source: github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedMatMul.
    """
    for node in list(editor.graph):
        if (
            node.domain != MICROSOFT
            or node.op_type != "FusedMatMul"
            or integer(node, "transBatchA", 0)
            or integer(node, "transBatchB", 0)
        ):
            continue
        first, second = (_turn(editor, node, place, name) for place, name in enumerate(("transA", "transB")))
        if first is None or second is None:
            continue
        alpha = real(node, "alpha", 1.0)
        if alpha != 1:
            factor = editor.constant(f"{node.name}.alpha", np.array(alpha, (first.dtype or ir.DataType.FLOAT).numpy()))
            first = editor.add(node, "Mul", [first, factor])
        product = editor.add(node, "MatMul", [first, second])
        editor.replace(node.outputs[0], product)
        yield (maker_name(product),)


def _turn(editor: Editor, node: ir.Node, place: int, name: str) -> ir.Value | None:
    """An operand with its last two axes exchanged where the node says so; None while its rank is not known."""
    value = node.inputs[place]
    if value is None or not integer(node, name, 0):
        return value
    shape = sizes(value)
    if shape is None or len(shape) < 2:
        return None
    rank = len(shape)
    turned = editor.add(node, "Transpose", [value], perm=(*range(rank - 2), rank - 1, rank - 2))
    turned.type = value.type
    return turned


def _make_weight(editor: Editor, node: ir.Node) -> ir.Value:
    """The matrix as MatMul takes it."""
    value, alpha = node.inputs[1], real(node, "alpha", 1.0)
    assert value is not None
    turned = integer(node, "transB", 0)
    if alpha == 1 and not turned:
        return value
    weight = constant(value)
    assert weight is not None
    weight = weight.T if turned else weight
    scaled = np.ascontiguousarray(weight if alpha == 1 else (weight * alpha).astype(weight.dtype))
    return editor.derive(value, f"Gemm {turned} {alpha}", scaled)


def _make_bias(editor: Editor, node: ir.Node, value: ir.Value) -> ir.Value | None:
    """What is added, one number a column; None when it is a matrix or computed and has a factor."""
    beta = real(node, "beta", 1.0)
    bias = constant(value)
    if bias is None:
        return value if beta == 1 else None
    if bias.ndim > 1 and bias.shape[0] != 1:
        return None
    if beta == 1 and bias.ndim == 1:
        return value
    flat = bias.reshape(-1)
    return editor.derive(value, f"Gemm {beta}", flat if beta == 1 else (flat * beta).astype(bias.dtype))


def unflatten(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Let a linear layer between two Reshapes take the shape that the second one gives, and leave that one out.

    Yields:
        The MatMul.
    """
    for node in list(editor.graph):
        flat = maker(node.inputs[0], "Reshape") if is_linear(node) else None
        rows = None if flat is None else sizes(flat.outputs[0])
        if flat is None or rows is None or len(rows) != 2:
            continue
        last = Linear(node).output
        back = only_user(last, "Reshape")
        shape = None if back is None else sizes(back.outputs[0])
        columns = sizes(node.outputs[0])
        if back is None or shape is None or columns is None or shape[-1:] != columns[-1:] or not isinstance(rows[1], int):
            continue
        target = [size if isinstance(size, int) else -1 for size in shape[:-1]] + [rows[1]]
        if target.count(-1) > 1 or 0 in target or not editor.replace(back.outputs[0], last):
            continue
        tokens = editor.add(node, "Reshape", [flat.inputs[0], editor.constant(f"{node.name}.shape", np.array(target, np.int64))])
        tokens.shape, tokens.type = ir.Shape([*shape[:-1], rows[1]]), flat.outputs[0].type
        editor.rewire(node, 0, tokens)
        node.outputs[0].shape = last.shape = ir.Shape(shape)
        yield (str(node.name),)


def lead_batch(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Let a linear layer that takes [tokens, batch, channels] take the batch first, turning before and behind it.

    Yields:
        The MatMul.
    """
    batch = {shape[0] for value in editor.graph.inputs if (shape := sizes(value))} - {None}
    for node in list(editor.graph):
        source = node.inputs[0] if is_linear(node) else None
        shape = sizes(source)
        if source is None or shape is None or len(shape) != 3 or shape[1] not in batch or not isinstance(shape[0], int):
            continue
        end = Linear(node).add or node
        if isinstance(shape[1], int) and not (_is_turn(source.producer()) or _meets_turn(end)):
            continue  # which of two numbers is the batch can't be told
        turned = editor.add(node, "Transpose", [source], perm=(1, 0, 2))
        turned.shape, turned.type = ir.Shape([shape[1], shape[0], shape[2]]), source.type
        editor.rewire(node, 0, turned)
        editor.turn(end, (1, 0, 2))
        for each in {node, end}:
            columns = sizes(each.outputs[0])
            each.outputs[0].shape = ir.Shape([shape[1], shape[0], None if columns is None else columns[-1]])
        yield (str(node.name),)


def _meets_turn(node: ir.Node) -> bool:
    """Whether a node's output alone goes into a Transpose of the first two axes, or is added to what comes from one."""
    user = only_user(node.outputs[0])
    beside = other(user, node.outputs[0]) if user is not None and user.op_type == "Add" else None
    return _is_turn(user) or (beside is not None and _is_turn(beside.producer()))


def _is_turn(node: ir.Node | None) -> bool:
    """Whether a node exchanges the first two of three axes."""
    return node is not None and node.op_type == "Transpose" and whole(node, "perm") == (1, 0, 2)
