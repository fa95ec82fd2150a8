"""Reads the graph of an ONNX file: names and sizes, with the place in the file of all that a repair may change.

Nothing that is data is read, and nothing is trusted: depth, counts and lengths have caps, and what protobuf would merge or
overwrite in silence (a message that comes twice where one belongs) is refused, because readers disagree on it.

Source: onnx.proto3 of ONNX (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, FunctionProto).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import BinaryIO

from vitdeploy.errors import InputError
from vitdeploy.files import expect
from vitdeploy.onnxfile.model import Entry, Graph, Message, Model, Node, Tensor
from vitdeploy.onnxfile.summary import MOST_AXES, Field, Wire

DEEPEST = 4
"""Graphs inside graphs; OpenVINO takes twice as long for each, and protobuf gives up at about 30."""
MOST_NODES = 100_000
"""Nodes, and tensors; a ViT of 40 blocks has about five thousand."""
_HIGH = bytes(range(128, 256))
_CHUNK = 1 << 20
_LONGEST = 400
"""Characters of a message: names in it are the file's, and may be long."""
_INT64 = 7
_FEW = 512
"""Bytes of whole numbers that are worth reading: they are sizes and axes."""
_OF_NODE = {3: "name", 4: "operator", 7: "domain", 8: "overload"}
_OF_FUNCTION = {1: "name", 10: "domain", 13: "overload"}


def refuse(path: Path, message: str, fix: str = "write or download the model again") -> InputError:
    """The error for a file that would crash or mislead an engine."""
    return InputError("VD3027", message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...", file=path, fix=fix)


def read(path: Path) -> Model:
    """Read the names and sizes of a model.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else, VD3011 for one that is damaged, VD3027 for one that is
            impossibly deep, or holds what readers disagree on.
    """
    expect(path, "onnx", what="an ONNX model")
    try:
        with path.open("rb") as stream:
            return _Reader(stream, Model(path, path.stat().st_size)).model()
    except (EOFError, UnicodeDecodeError, ValueError) as exc:
        raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path, fix="write or download it again") from exc
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


class _Reader(Wire):
    """One pass from the outermost message inwards; depth is capped, so it may recurse."""

    def __init__(self, stream: BinaryIO, found: Model) -> None:
        super().__init__(stream)
        self.found = found

    def model(self) -> Model:
        """ModelProto."""
        found, graphs, functions = self.found, 0, list[Message]()
        for part in self.fields(0, found.size):
            if part.number == 1 and part.value >= 0:
                found.version = part.value
            elif part.number == 8 and part.value < 0:
                found.opsets.append(self._opset(part))
            elif part.number == 7 and part.value < 0:
                graphs += 1
                self._graph(self._message(None, part), 0)
            elif part.number == 25 and part.value < 0:
                functions.append(self._message(None, part))
        for function in functions:  # they may lie before the main graph, whose place is the first of all graphs
            self._function(function)
        if graphs != 1:
            raise ValueError(f"holds {graphs} graphs")
        return found

    def _opset(self, whole: Field) -> tuple[str, int]:
        domain, version = "", 0
        for part in self.fields(whole.start, whole.end):
            if part.number == 1 and part.value < 0:
                domain = self.text(part)
            elif part.number == 2 and part.value >= 0:
                version = part.value
        return domain, version

    def _graph(self, message: Message, depth: int) -> Graph:
        if depth > DEEPEST:
            raise refuse(self.found.path, f"holds graphs inside graphs, more than {DEEPEST} deep")
        graph = Graph(message)
        self.found.graphs.append(graph)
        for part in self.fields(message.start, message.end):
            if part.value >= 0:
                continue
            if part.number == 1:
                self._hang(graph, self._node(self._message(message, part), depth))
            elif part.number == 5:
                tensor = self._tensor(self._message(message, part), "the initializer")
                graph.initializers.append(tensor.name)
                graph.kinds[tensor.name] = tensor.kind
                if tensor.integers is not None:
                    graph.constants[tensor.name] = tensor.integers
            elif part.number == 15:
                graph.initializers.append(self._sparse(self._message(message, part), "a sparse initializer"))
            elif part.number == 11:
                name, axes = self._port(part)
                graph.inputs.append(name)
                graph.axes[name] = axes
            elif part.number == 12:
                graph.outputs.append(self._port(part)[0])
        return graph

    def _hang(self, graph: Graph, node: Node) -> None:
        """Add a node to its graph; what a Constant of whole numbers says is known from now on."""
        graph.nodes.append(node)
        if node.operator == "Constant" and node.outputs:
            found = node.integers.get("value", node.integers.get("value_ints", node.integers.get("value_int")))
            if found is not None:
                graph.constants[node.outputs[0]] = tuple(found)

    def _function(self, message: Message) -> None:
        function = Graph(message)
        for part in self.fields(message.start, message.end):
            if part.value >= 0:
                continue
            if part.number == 7:
                self._hang(function, self._node(self._message(message, part), 0))
            elif part.number in (4, 5):
                (function.inputs if part.number == 4 else function.outputs).append(self.text(part))
            elif part.number in _OF_FUNCTION:
                setattr(function, _OF_FUNCTION[part.number], self.text(part))
        self.found.functions.append(function)

    def _port(self, whole: Field) -> tuple[str, int]:
        """ValueInfoProto: its name, and the axes of its TypeProto.tensor_type."""
        name, axes = "", 0
        for part in self.fields(whole.start, whole.end):
            if part.number == 1 and part.value < 0:
                name = self.text(part)
            for kind in self.within(part, 2):
                for shape in self.within(kind, 1):
                    axes += sum(axis.number == 1 for axis in self.within(shape, 2))
        return name, axes

    def _node(self, message: Message, depth: int) -> Node:
        node, attributes = Node(message), []
        for part in self.fields(message.start, message.end):
            if part.value >= 0:
                continue
            if part.number == 1:
                node.inputs.append(self.text(part))
                node.places.append((self.head, part.end))
            elif part.number == 2:
                node.outputs.append(self.text(part))
            elif part.number in _OF_NODE:
                setattr(node, _OF_NODE[part.number], self.text(part))
            elif part.number == 5:
                attributes.append(self._message(message, part))
        for attribute in attributes:  # now the node has its name
            self._attribute(node, attribute, depth)
        self.found.nodes.append(node)
        self._count(len(self.found.nodes), "nodes")
        return node

    def _attribute(self, node: Node, message: Message, depth: int) -> None:
        name, held, alone = "", list[Message](), Counter[int]()
        numbers, known, kind = list[int](), True, 0
        for part in self.fields(message.start, message.end):
            if part.number in (3, 8):  # i, ints
                found = self._integers(part)
                numbers += found or ()
                known = known and found is not None
            elif part.number == 20 and part.value >= 0:
                kind = part.value
            elif part.number == 1 and part.value < 0:
                name = self.text(part)
            elif part.value < 0 and part.number in (5, 6, 10, 11, 22, 23):  # t, g, tensors, graphs, sparse_tensor, sparse_tensors
                held.append(self._message(message, part))
                alone[part.number] += 1
        node.attributes.append(name)
        node.types[name] = kind
        if numbers and known:
            node.integers[name] = numbers
        if any(alone[number] > 1 for number in (5, 6, 22)):
            raise refuse(self.found.path, f"{node.title} has an attribute {name!r} that holds two values in the place of one")
        where = f"{node.title}, attribute {name!r}"
        for inner in held:
            if inner.number in (5, 10):
                tensor = self._tensor(inner, where)
                if tensor.integers is not None:
                    node.integers[name] = list(tensor.integers)
            elif inner.number in (6, 11):
                node.graphs.append(self._graph(inner, depth + 1))
            else:
                self._sparse(inner, where)

    def _sparse(self, message: Message, where: str) -> str:
        """SparseTensorProto: the name of its values is its own."""
        name = ""
        for part in self.fields(message.start, message.end):
            if part.number in (1, 2) and part.value < 0:
                tensor = self._tensor(self._message(message, part), where)
                name = tensor.name if part.number == 1 else name
        return name

    def _tensor(self, message: Message, where: str) -> Tensor:
        tensor, data = Tensor(message, where), list[Field]()
        for part in self.fields(message.start, message.end, fixed=True):
            if part.number == 1 and part.value != -2:
                tensor.sizes += [part.value] if part.value >= 0 else self.packed(part)
                if len(tensor.sizes) > MOST_AXES:
                    raise ValueError(f"a tensor has more than {MOST_AXES} axes")
            elif part.number == 2 and part.value >= 0:
                tensor.kind = part.value
            elif part.number == 8 and part.value == -1:
                tensor.name = self.text(part)
            elif part.number == 13 and part.value == -1:
                tensor.external.append(self._entry(self.head, part))
            elif part.number == 14 and part.value >= 0:
                tensor.outside = part.value
                tensor.cut.append((self.head, part.end))
            elif part.number in (4, 5, 6, 7, 9, 10, 11):
                found = tensor.stored.get(part.number, 0) if part.number != 9 else 0
                tensor.stored[part.number] = found + self._entries(part)
                data.append(part)
        tensor.where = f"{where} {tensor.name!r}" if where.endswith("initializer") else where
        if tensor.kind == _INT64 and not tensor.outside and [part.number for part in data] in ([7], [9]):
            integers = self._integers(data[0])
            tensor.integers = None if integers is None else tuple(integers)
        self.found.tensors.append(tensor)
        self._count(len(self.found.tensors), "tensors")
        return tensor

    def _entries(self, part: Field) -> int:
        """How many bytes of raw data, else how many numbers or texts, a field of a tensor holds."""
        length = part.end - part.start
        if part.value >= 0 or part.number == 6 or part.value == -2:
            return 1
        if part.number == 9:
            return length
        if part.number in (4, 10):
            return length // (4 if part.number == 4 else 8)
        self.stream.seek(part.start)
        numbers = 0
        while length > 0 and (chunk := self.stream.read(min(_CHUNK, length))):
            numbers += len(chunk.translate(None, _HIGH))  # a number ends with its first byte below 128
            length -= len(chunk)
        return numbers

    def _integers(self, part: Field) -> list[int] | None:
        """Whole numbers: one, or packed, or eight bytes each; None, so not known, when they are many."""
        if part.value >= 0:
            return [_signed(part.value)]
        if part.end - part.start > _FEW:
            return None
        if part.number != 9:
            return [_signed(value) for value in self.packed(part)]
        self.stream.seek(part.start)
        raw = self.stream.read(part.end - part.start)
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]

    def _entry(self, head: int, whole: Field) -> Entry:
        """StringStringEntryProto."""
        pair = ["", ""]
        for part in self.fields(whole.start, whole.end):
            if part.number in (1, 2) and part.value < 0:
                pair[part.number - 1] = self.text(part)
        return Entry(pair[0], pair[1], head, whole.end)

    def _count(self, number: int, what: str) -> None:
        if number > MOST_NODES:
            raise refuse(self.found.path, f"holds more than {MOST_NODES:,} {what}")

    def _message(self, parent: Message | None, part: Field) -> Message:
        """The message that `fields` gave last."""
        return Message(parent, part.number, self.head, part.start, part.end)


def _signed(value: int) -> int:
    """An int64 as protobuf writes it."""
    return (value & (1 << 64) - 1) - (1 << 64 if value >> 63 & 1 else 0)
