"""Editing a graph: new nodes and constants under free names, one value put in the place of another.

Whatever an edit leaves without a user goes at once, so that "used once" always means once by something that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
Attributes = dict[str, int | float | str | Sequence[int]]


class Editor:
    """Edits the graph of one model, in place.

    Attributes:
        model: The model.
        graph: Its graph.
        opset: The operator set that the graph will have in the end: what is made has to exist there.
    """

    def __init__(self, model: ir.Model, opset: int) -> None:
        """Give a name to every node that has none, or one that another has."""
        self.model = model
        self.opset = opset
        self.graph = model.graph
        self._nodes: set[str] = set()
        self._values: set[str] = set()
        self._derived: dict[tuple[ir.Value, str], ir.Value] = {}
        self.refresh()

    def refresh(self) -> None:
        """Learn all names anew; nodes without one are called ``<operator>_<n>``, the second of two gets a number."""
        self._values = {str(value.name) for value in self.graph.inputs} | set(self.graph.initializers)
        self._values |= {str(value.name) for node in self.graph for value in node.outputs}
        self._nodes.clear()
        for node in [node for node in self.graph if node.name]:
            node.name = _free(str(node.name), self._nodes)
        for node in self.graph:
            if not node.name:
                node.name = _free(f"{node.op_type}_0", self._nodes)

    def constant(self, name: str, array: Array) -> ir.Value:
        """A new initializer.

        Args:
            name: Made free by a number behind it.
            array: Its numbers; not copied.
        """
        free = _free(name, self._values)
        tensor = ir.tensor(array, name=free)
        value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def freeze(self, value: ir.Value, array: Array) -> bool:
        """Put a constant, under the same name, in the place of a value that is computed; whether it was done."""
        if value.is_graph_output():
            return False
        name = str(value.name)
        value.name = _free(f"{name}_computed", self._values)
        self._values.discard(name)
        return self.replace(value, self.constant(name, array))

    def derived(self, source: ir.Value, how: str, array: Array) -> ir.Value:
        """An initializer computed from another: the same one for everybody who asks, so that shared weights stay shared.

        Args:
            source: The initializer it comes from; its name is taken over if nothing uses it in the end.
            how: The computation, in a word.
            array: Its result.
        """
        key = (source, how)
        found = self._derived.get(key)
        if found is None or found.name not in self.graph.initializers:
            found = self._derived[key] = self.constant(str(source.name), array)
        return found

    def restore_names(self) -> None:
        """Give a derived constant the name of the one it comes from, where that one is gone."""
        for (source, _), value in self._derived.items():
            name = str(source.name)
            if name not in self.graph.initializers and self.graph.initializers.get(str(value.name)) is value:
                value.name = name

    def add(self, before: ir.Node, operator: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:  # noqa: ANN401
        """A new node in front of another, named after it.

        Args:
            before: The node that it replaces, or helps.
            operator: Of ONNX's own domain.
            inputs: Its inputs.
            attributes: Its attributes.

        Returns:
            Its output.
        """
        return self.add_many(before, operator, inputs, 1, attributes)[0]

    def add_many(
        self, before: ir.Node, operator: str, inputs: Sequence[ir.Value | None], count: int, attributes: Attributes
    ) -> Sequence[ir.Value]:
        """A new node with ``count`` outputs in front of another, named after it."""
        stem = str(before.name).removesuffix(f"/{before.op_type}")
        name = _free(f"{stem}/{operator}", self._nodes)
        node = ir.node(operator, inputs, attributes, num_outputs=count, name=name)
        for index, value in enumerate(node.outputs):
            value.name = _free(f"{name}_out" + (f"_{index}" if count > 1 else ""), self._values)
        self.graph.insert_before(before, node)
        return node.outputs

    def turn(self, node: ir.Node, axes: Sequence[int]) -> None:
        """Put a Transpose behind a node: who used its output uses the turned one."""
        old = node.outputs[0]
        uses = list(old.uses())
        name = _free(f"{node.name}/Transpose", self._nodes)
        made = ir.node("Transpose", [old], {"perm": tuple(axes)}, name=name)
        made.outputs[0].name = _free(f"{name}_out", self._values)
        self.graph.insert_after(node, made)
        result = made.outputs[0]
        result.type, result.shape = old.type, old.shape
        for use in uses:
            use.node.replace_input_with(use.idx, result)
        if old.is_graph_output():
            outputs = self.graph.outputs
            outputs[list(outputs).index(old)] = result
            old.name, result.name = result.name, old.name

    def move_in(self, branch: ir.Graph, before: ir.Node) -> None:
        """Move the nodes of a sub-graph in front of a node of this one, under names that are free here."""
        for value in list(branch.initializers.values()):
            branch.initializers.pop(str(value.name))
            value.name = _free(str(value.name), self._values)
            self.graph.register_initializer(value)
        nodes = list(branch)
        branch.remove(nodes)
        for node in nodes:
            node.name = _free(node.name or f"{node.op_type}_0", self._nodes)
            for value in node.outputs:
                value.name = _free(str(value.name), self._values)
        self.graph.insert_before(before, nodes)

    def replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Put a value in the place of another, and remove what nobody uses after that.

        The graph's outputs keep their names. An output that would become an input, a constant or a second output is left
        as it is, and so is everything else then.

        Returns:
            Whether it was done.
        """
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                return False
            name, old.name = str(old.name), f"{old.name}_replaced"
            new.name, new.type, new.shape = name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        producer = old.producer()
        if producer is not None:
            self.sweep(producer)
        return True

    def rewire(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Give a node another input, and remove what nobody uses after that."""
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None:
            self._release(old)

    def sweep(self, node: ir.Node) -> bool:
        """Remove a node that nobody uses, and what only it used; whether it was removed."""
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            return False
        inputs = [value for value in node.inputs if value is not None]
        for attribute in node.attributes.values():  # what a branch of an If used, it uses no more
            if attribute.type == ir.AttributeType.GRAPH:
                inner = list(attribute.as_graph().all_nodes())
                inputs += [value for each in inner for value in each.inputs if value is not None and value.graph is self.graph]
                for each in inner:
                    for index in range(len(each.inputs)):
                        each.replace_input_with(index, None)
        self.graph.remove(node, safe=True)
        for value in inputs:
            self._release(value)
        return True

    def _release(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None:
            self.sweep(producer)
        else:
            self.drop(value)

    def drop(self, value: ir.Value) -> bool:
        """Remove an initializer that nobody uses; whether it was removed."""
        if value.uses() or value.is_graph_output() or self.graph.initializers.get(str(value.name)) is not value:
            return False
        self.graph.initializers.pop(str(value.name))
        return True


def _free(name: str, taken: set[str]) -> str:
    """The name, or the same with the first number behind it that makes it new."""
    free, count = name, 0
    stem = name[:-2] if name.endswith("_0") else name
    while free in taken:
        count += 1
        free = f"{stem}_{count}"
    taken.add(free)
    return free


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
    found = constant(value)
    return None if found is None or found.dtype.kind not in "fiu" else float(found.reshape(()))


def whole(node: ir.Node, name: str, index: int | None = None) -> tuple[int, ...] | None:
    """Whole numbers of an attribute, or of the constant input that stands in its place; None when neither says them."""
    if name in node.attributes:
        found = node.attributes[name].value
        return (int(found),) if isinstance(found, int) else tuple(int(each) for each in found)
    if index is None or index >= len(node.inputs):
        return None
    numbers = constant(node.inputs[index])
    return None if numbers is None else tuple(int(each) for each in numbers.reshape(-1))


def integer(node: ir.Node, name: str, default: int) -> int:
    """A whole number of an attribute."""
    found = whole(node, name)
    return default if found is None else found[0]


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
    first, second = node.inputs
    return (second if second is not value else None) if first is value else first


def sizes(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape: numbers, names of sizes that vary, None for a size of which nothing is known; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value or None for size in value.shape)
