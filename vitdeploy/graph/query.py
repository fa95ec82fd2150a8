"""Questions about a graph that is left as it is: a constant's numbers, who makes a value and who takes it, its sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initializer; None for anything that is computed or fed."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, told without loading it."""
    return value is not None and value.producer() is None and value.const_value is not None


def number(value: ir.Value | None) -> float | None:
    """The one number of a constant that has one, of any rank; None for all else."""
    if value is None or not is_constant(value) or value.const_value is None or value.const_value.size != 1:
        return None
    numbers = constant(value)
    return None if numbers is None or numbers.dtype.kind not in "fiu" else float(numbers.reshape(()))


def whole(node: ir.Node, name: str, index: int | None = None) -> tuple[int, ...] | None:
    """Whole numbers of an attribute, or of the constant input that stands in its place; None when neither says them."""
    if name in node.attributes:
        value = node.attributes[name].value
        return (int(value),) if isinstance(value, int) else tuple(int(each) for each in value)
    if index is None or index >= len(node.inputs):
        return None
    numbers = constant(node.inputs[index])
    return None if numbers is None else tuple(int(each) for each in numbers.reshape(-1))


def integer(node: ir.Node, name: str, default: int) -> int:
    """A whole number of an attribute."""
    numbers = whole(node, name)
    return default if numbers is None else numbers[0]


def real(node: ir.Node, name: str, default: float) -> float:
    """A real number of an attribute."""
    return float(node.attributes[name].value) if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    """The text of an attribute."""
    return str(node.attributes[name].value) if name in node.attributes else default


def maker(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes a value, if it is one of these operators of ONNX's own domain."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in operators else None


def maker_name(value: ir.Value) -> str:
    """The name of the node that makes a value."""
    node = value.producer()
    assert node is not None
    return str(node.name)


def only_user(value: ir.Value, *operators: str) -> ir.Node | None:
    """The one node that uses a value, if nothing else does and it is one of these operators (any, when none is named)."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if not operators or (node.domain == "" and node.op_type in operators) else None


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The second operand of a node with two; None when both are the same."""
    if len(node.inputs) != 2:
        return None
    one, two = node.inputs
    return (two if two is not value else None) if one is value else one


def sizes(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape: numbers, names of sizes that vary, None for a size of which nothing is known; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value or None for size in value.shape)


def resize_axis(value: ir.Value, axis: int, size: int) -> ir.Shape | None:
    """A value's shape with another size along one axis."""
    if value.shape is None:
        return None
    changed = list(value.shape)
    changed[axis] = size
    return ir.Shape(changed)


def find_first(nodes: Iterable[ir.Node]) -> ir.Node:
    """The node that comes first in its graph."""
    wanted = set(nodes)
    some = next(iter(wanted))
    assert isinstance(some.graph, ir.Graph)
    return some if len(wanted) == 1 else next(node for node in some.graph if node in wanted)
