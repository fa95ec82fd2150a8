"""Editing a graph: new nodes and constants under free names, one value put in the place of another.

Names are collected once, when an editor is made, so that an insertion costs the same in a large graph as in a small one: give
one editor to all that edits the graph, or `Editor.refresh` it after an edit by other means. Whatever an edit leaves without a
user goes at once, so that "used once" always means once by something that counts. onnx_ir's `RemoveUnusedNodesPass` is not used
for that: it goes over the whole graph, and does not let go of what the branches of an If use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx_ir as ir

from vitdeploy.graph.query import Array, maker_name

Attributes = dict[str, int | float | str | Sequence[int]]


class Editor:
    """Edits the graph of one model, in place.

    Attributes:
        model: The model.
        graph: Its graph.
        opset: The operator set that the graph will have in the end: what is made has to exist there.
    """

    def __init__(self, model: ir.Model, opset: int | None = None) -> None:
        """Give a name to every node that has none, or one that another has.

        Args:
            model: The model.
            opset: None for the one that the model has.
        """
        self.model = model
        self.graph = model.graph
        self.opset = model.graph.opset_imports[""] if opset is None else opset
        self._interface = _interface(model.graph)
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
            node.name = free_name(str(node.name), self._nodes)
        for node in self.graph:
            if not node.name:
                node.name = free_name(f"{node.op_type}_0", self._nodes)

    def check_interface(self, rewrite: str) -> None:
        """Make sure that the graph's inputs and outputs are called what they were when the editor was made.

        Args:
            rewrite: What was done last, for the message.

        Raises:
            AssertionError: They are not: a mistake of the rewrite, which must not leave this package as a KeyError of an engine.
        """
        names = _interface(self.graph)
        if names != self._interface:
            raise AssertionError(f"the rewrite {rewrite!r} made inputs and outputs {names} of {self._interface}")

    def constant(self, name: str, array: Array) -> ir.Value:
        """A new initializer.

        Args:
            name: Made free by a number behind it.
            array: Its numbers; not copied.
        """
        own_name = free_name(name, self._values)
        tensor = ir.tensor(array, name=own_name)
        value = ir.Value(name=own_name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def freeze(self, value: ir.Value, array: Array) -> bool:
        """Put a constant, under the same name, in the place of a value that is computed; whether it was done."""
        if value.is_graph_output():
            return False
        name = str(value.name)
        value.name = free_name(f"{name}_computed", self._values)
        self._values.discard(name)
        return self.replace(value, self.constant(name, array))

    def derive(self, source: ir.Value, how: str, array: Array) -> ir.Value:
        """An initializer computed from another: the same one for everybody who asks, so that shared weights stay shared.

        Args:
            source: The initializer it comes from; its name is taken over if nothing uses it in the end.
            how: The computation, in a word.
            array: Its result.
        """
        value = self._derived.get((source, how))
        if value is None or self.graph.initializers.get(str(value.name)) is not value:
            value = self._derived[source, how] = self.constant(str(source.name), array)
        return value

    def restore_names(self) -> None:
        """Give a derived constant the name of the one it comes from, where that one is gone."""
        for (source, _), value in self._derived.items():
            name = str(source.name)
            if name not in self._values and self.graph.initializers.get(str(value.name)) is value:
                self._values.discard(str(value.name))
                value.name = name
                self._values.add(name)

    def own(self, node: ir.Node, index: int, array: Array, role: str = "bias") -> None:
        """Give a node's constant input new numbers; other nodes that use the old ones keep them.

        Args:
            node: The node.
            index: Of the input; it may be one that the node does not have yet.
            array: The numbers.
            role: What an input is called that the node did not have.
        """
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            node.resize_inputs(max(index + 1, len(node.inputs)))
            node.replace_input_with(index, self.constant(f"{node.name}.{role}", array))
        elif len(list(value.uses())) == 1 and not value.is_graph_output():
            value.const_value = ir.tensor(array, name=value.name)
            declare(value, ir.TensorType(value.const_value.dtype), array.shape)
        else:
            node.replace_input_with(index, self.constant(f"{node.name}.{value.name}", array))

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
        node = ir.node(operator, inputs, attributes, num_outputs=count, name=f"{stem}/{operator}")
        self.insert([node], before)
        return node.outputs

    def insert(self, nodes: Sequence[ir.Node], place: ir.Node, *, behind: bool = False) -> None:
        """Put nodes before (or behind) another; names that are taken get a number, outputs without one are ``<node>_out``."""
        for node in nodes:
            node.name = free_name(str(node.name), self._nodes)
            for index, value in enumerate(node.outputs):
                wanted = value.name or f"{node.name}_out" + (f"_{index}" if len(node.outputs) > 1 else "")
                value.name = free_name(wanted, self._values)
        if behind:
            self.graph.insert_after(place, nodes)
        else:
            self.graph.insert_before(place, nodes)

    def turn(self, node: ir.Node, axes: Sequence[int]) -> None:
        """Put a Transpose behind a node: who used its output uses the turned one."""
        old = node.outputs[0]
        turned = ir.node("Transpose", [old], {"perm": tuple(axes)}, name=f"{node.name}/Transpose")
        turned.outputs[0].type, turned.outputs[0].shape = old.type, old.shape
        self.insert([turned], node, behind=True)
        self.replace(old, turned.outputs[0])

    def move_in(self, branch: ir.Graph, before: ir.Node) -> None:
        """Move the nodes of a sub-graph in front of a node of this one, under names that are free here."""
        for value in list(branch.initializers.values()):
            branch.initializers.pop(str(value.name))
            value.name = free_name(str(value.name), self._values)
            self.graph.register_initializer(value)
        nodes = list(branch)
        branch.remove(nodes)
        for node in nodes:
            node.name = node.name or f"{node.op_type}_0"
        self.insert(nodes, before)

    def replace(self, old: ir.Value, new: ir.Value) -> bool:
        """Put a value in the place of another, for all but the node that makes it of the other; remove what nobody uses then.

        The graph's outputs keep their names. An output that would become an input, a constant or a second output is left
        as it is, and so is everything else then.

        Returns:
            Whether it was done.
        """
        maker = new.producer()
        if old.is_graph_output():
            if maker is None or new.is_graph_output():
                return False
            name = str(old.name)
            self._values.discard(str(new.name))
            old.name = free_name(f"{maker_name(old)}_out", self._values)
            new.name, new.type, new.shape = name, old.type, old.shape
        kept = [] if maker is None else [index for index, value in enumerate(maker.inputs) if value is old]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        for index in kept:
            assert maker is not None
            maker.replace_input_with(index, old)
        self._release(old)
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
        self._nodes.discard(str(node.name))
        self._values.difference_update(str(value.name) for value in node.outputs)
        for value in inputs:
            self._release(value)
        return True

    def drop(self, value: ir.Value) -> bool:
        """Remove an initializer that nobody uses; whether it was removed."""
        if value.uses() or value.is_graph_output() or self.graph.initializers.get(str(value.name)) is not value:
            return False
        self.graph.initializers.pop(str(value.name))
        self._values.discard(str(value.name))
        return True

    def _release(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None:
            self.sweep(producer)
        else:
            self.drop(value)


def declare(value: ir.Value, type_: ir.TypeProtocol | None, shape: Iterable[object] | None) -> None:
    """Say what a value is; nothing is said of the shape when it is None."""
    value.type = type_
    value.shape = (
        None if shape is None else ir.Shape([size if isinstance(size, (int, ir.SymbolicDim)) else None for size in shape])
    )


def free_name(name: str, taken: set[str]) -> str:
    """The name, or the same with the first number behind it that makes it new; it is taken from now on."""
    free, count = name, 0
    stem = name[:-2] if name.endswith("_0") else name
    while free in taken:
        count += 1
        free = f"{stem}_{count}"
    taken.add(free)
    return free


def _interface(graph: ir.Graph) -> tuple[list[str], list[str]]:
    return [str(value.name) for value in graph.inputs], [str(value.name) for value in graph.outputs]
