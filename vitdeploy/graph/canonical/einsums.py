"""Einsum, as Flax and Keras write every layer of a ViT with, in the operators of our own export: MatMul between moves.

Source: github.com/onnx/onnx/blob/main/docs/Operators.md#Einsum. A label of both operands and of the result is a batch; one of
both operands alone is summed over; one of one operand and of the result is a row or a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor, declare
from vitdeploy.graph.query import Array, constant, is_constant, maker_name, only_user, other, sizes, text


class _Labels(NamedTuple):
    """What the labels of ``first,second->result`` are."""

    first: str
    second: str
    result: str

    @property
    def batch(self) -> str:
        return "".join(label for label in self.result if label in self.first and label in self.second)

    @property
    def summed(self) -> str:
        return "".join(label for label in self.first if label in self.second and label not in self.result)

    @property
    def rows(self) -> str:
        return "".join(label for label in self.first if label not in self.second)

    @property
    def columns(self) -> str:
        return "".join(label for label in self.second if label not in self.first)


def split_einsum(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write Einsum of two operands as MatMul with the Transposes and Reshapes that it joins; a bias behind a layer comes along.

    Yields:
        The MatMul.
    """
    for node in list(editor.graph):
        labels = _read_labels(node) if node.op_type == "Einsum" and node.domain == "" else None
        if labels is None:
            continue
        first, second = node.inputs
        if is_constant(first) and not is_constant(second):
            labels, first, second = _Labels(labels.second, labels.first, labels.result), second, first
        if first is None or second is None or is_constant(first):
            continue
        apply = _apply_weight if is_constant(second) else _multiply
        product = apply(editor, node, labels, first, second)
        if product is not None:
            yield (product,)


def _read_labels(node: ir.Node) -> _Labels | None:
    """Labels of an equation of two operands; None where one repeats a label, or where one is in an operand alone."""
    equation = text(node, "equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    parts = operands.split(",")
    if not arrow or len(parts) != 2 or len(node.inputs) != 2 or "." in equation:
        return None
    labels = _Labels(parts[0], parts[1], result)
    if any(len(set(part)) != len(part) for part in labels):
        return None
    alone = set(labels.first) ^ set(labels.second)
    return labels if alone <= set(result) and set(result) <= set(operands) and labels.summed else None


def _apply_weight(editor: Editor, node: ir.Node, labels: _Labels, source: ir.Value, weight: ir.Value) -> str | None:
    """A linear layer: what is summed over becomes the channels, and the weight's own labels the columns, both as one axis."""
    numbers, rows, summed, columns = constant(weight), labels.rows, labels.summed, labels.columns
    if numbers is None or labels.batch or not rows or (len(columns) != 1 and labels.result != rows + columns):
        return None
    lengths = dict(zip(labels.second, numbers.shape, strict=True))
    depth, width = (int(np.prod([lengths[label] for label in part])) for part in (summed, columns))
    value = _transpose(editor, node, source, labels.first, rows + summed)
    value = _reshape(editor, node, value, rows, depth) if len(summed) > 1 else value
    order = [labels.second.index(label) for label in summed + columns]
    flat = editor.derive(weight, f"Einsum {labels.second} {summed} {columns}", numbers.transpose(order).reshape(depth, width))
    product = editor.add(node, "MatMul", [value, flat])
    declare(product, source.type, [*_find_sizes(source, labels.first, rows), width])
    matmul, last, old = maker_name(product), product, node.outputs[0]
    added = _find_bias(node, columns, lengths) if labels.result == rows + columns else None
    if added is not None:
        bias, old = added
        last = editor.add(node, "Add", [product, editor.derive(bias, "Einsum", _read(bias).reshape(-1))])
        declare(last, product.type, product.shape)
    if len(columns) != 1:
        last = _reshape(editor, node, last, rows, *(lengths[label] for label in columns))
    return matmul if editor.replace(old, _transpose(editor, node, last, rows + columns, labels.result)) else None


def _multiply(editor: Editor, node: ir.Node, labels: _Labels, first: ir.Value, second: ir.Value) -> str | None:
    """A product of two activations, one label for each of rows, sum and columns."""
    if not (len(labels.rows) == len(labels.summed) == len(labels.columns) == 1):
        return None
    left = _transpose(editor, node, first, labels.first, labels.batch + labels.rows + labels.summed)
    right = _transpose(editor, node, second, labels.second, labels.batch + labels.summed + labels.columns)
    product = editor.add(node, "MatMul", [left, right])
    known = _find_sizes(first, labels.first, labels.batch + labels.rows)
    declare(product, first.type, [*known, *_find_sizes(second, labels.second, labels.columns)])
    matmul, order = maker_name(product), labels.batch + labels.rows + labels.columns
    return matmul if editor.replace(node.outputs[0], _transpose(editor, node, product, order, labels.result)) else None


def _find_bias(node: ir.Node, columns: str, lengths: dict[str, int]) -> tuple[ir.Value, ir.Value] | None:
    """A constant with one number a column that alone is added to the result, and the sum."""
    user = only_user(node.outputs[0], "Add")
    bias = None if user is None else other(user, node.outputs[0])
    if user is None or bias is None or not is_constant(bias):
        return None
    shape = list(_read(bias).shape)
    while len(shape) > len(columns) and shape[0] == 1:
        shape.pop(0)
    return (bias, user.outputs[0]) if shape == [lengths[label] for label in columns] else None


def _read(value: ir.Value) -> Array:
    numbers = constant(value)
    assert numbers is not None
    return numbers


def _transpose(editor: Editor, node: ir.Node, value: ir.Value, labels: str, wanted: str) -> ir.Value:
    if labels == wanted:
        return value
    turned = editor.add(node, "Transpose", [value], perm=tuple(labels.index(label) for label in wanted))
    declare(turned, value.type, _find_sizes(value, labels, wanted))
    return turned


def _reshape(editor: Editor, node: ir.Node, value: ir.Value, kept: str, *lengths: int) -> ir.Value:
    """The first axes as they are, and others of these lengths behind them."""
    target = editor.constant(f"{node.name}.shape", np.array([0] * len(kept) + list(lengths), np.int64))
    shaped = editor.add(node, "Reshape", [value, target])
    declare(shaped, value.type, [*(sizes(value) or [None] * len(kept))[: len(kept)], *lengths])
    return shaped


def _find_sizes(value: ir.Value, labels: str, wanted: str) -> list[object]:
    shape = value.shape if value.shape is not None else [None] * len(labels)
    return [shape[labels.index(label)] for label in wanted]
