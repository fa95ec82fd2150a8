"""The one walk over an ONNX file: names and sizes, with the place in the file of all that an edit may change.

Only the headers of messages are read, by seeking over everything that is data, so a model of two gigabytes takes as long as
one of two. Nothing is trusted: counts and lengths have caps, and nothing recurses, however deep graphs lie inside graphs.

Several steps of a command look at the same file. It is walked once for all of them: what was read is kept until the file
changes, which its inode, size and times tell. A file that was written a moment ago could change again within one tick of the
file system's clock, so it is not kept.

Source: onnx.proto3 of ONNX (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto, FunctionProto).
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from pathlib import Path
from typing import BinaryIO

from vitdeploy import files
from vitdeploy.errors import InputError
from vitdeploy.kinds import expect
from vitdeploy.onnxfile.model import DTYPES, Entry, Graph, Message, Model, Node, Port, Tensor
from vitdeploy.onnxfile.wire import MOST_AXES, Field, Wire, decode_signed

MOST_NODES = 100_000
"""Nodes, tensors, and graphs; a ViT of 40 blocks has about five thousand nodes."""
LONGEST_METADATA = 16 << 20
"""Bytes of an entry; one beyond this is none of ours, and passed over."""
MOST_KEPT = 4
"""Files that stay read."""
SETTLED_NS = 2_000_000_000
"""Nanoseconds without a change after which the next change is sure to have another time, on any file system."""
_HIGH = bytes(range(128, 256))
_CHUNK = 1 << 20
_LONGEST = 400
"""Characters of a message: names in it are the file's, and may be long."""
_AGAIN = "write or download it again"
_INT64 = 7
_FEW = 512
"""Bytes of whole numbers that are worth reading: they are sizes and axes."""
_RAW = 9
_DATA = (4, 5, 6, 7, _RAW, 10, 11)
"""Fields of a TensorProto that hold its numbers."""
_OF_NODE = {3: "name", 4: "type", 7: "domain", 8: "overload"}
_OF_FUNCTION = {1: "name", 10: "domain", 13: "overload"}
_OF_GRAPH = {11: "inputs", 12: "outputs", 13: "values"}
_kept: dict[tuple[Path, tuple[int, ...]], Model] = {}


def refuse(path: Path, message: str, fix: str = "write or download the model again") -> InputError:
    """The error for a file that would crash or mislead an engine."""
    return InputError("VD3027", message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...", file=path, fix=fix)


def read(path: Path) -> Model:
    """Read the names and sizes of a model.

    Returns:
        What the file holds now; the same object again as long as the file does not change.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else, VD3011 for one that is damaged, VD3027 for one that has
            too many nodes, tensors or graphs.
    """
    expect(path, "onnx", what="an ONNX model")
    try:
        with files.open_regular(path) as stream:
            now, identity = time.time_ns(), _identify(stream)
            kept = _kept.get((path, identity))
            if kept is not None:
                return kept
            model = read_stream(stream, path)
            if now - max(identity[-2:]) > SETTLED_NS and _identify(stream) == identity:
                for oldest in list(_kept)[: max(0, len(_kept) + 1 - MOST_KEPT)]:
                    _kept.pop(oldest, None)
                _kept[path, identity] = model
            return model
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


def read_stream(stream: BinaryIO, path: Path) -> Model:
    """Read the names and sizes of a model from an open file.

    Args:
        stream: The file, or its bytes in memory.
        path: What it is called in messages, and where data beside it is looked for.

    Raises:
        InputError: VD3011, VD3027, as `read`.
    """
    try:
        return _Reader(stream, Model(path, stream.seek(0, os.SEEK_END))).read_model()
    except (EOFError, UnicodeDecodeError, ValueError) as exc:
        raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path, fix=_AGAIN) from exc


def _identify(stream: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(stream.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Reader(Wire):
    """One pass from the outermost message inwards; graphs inside of graphs wait until the one around them is read."""

    def __init__(self, stream: BinaryIO, model: Model) -> None:
        super().__init__(stream)
        self.model = model
        self.waiting = deque[Graph]()

    def read_model(self) -> Model:
        """ModelProto."""
        model, names, functions = self.model, ["", ""], list[Message]()
        for part in self.fields(0, model.size):
            if part.number == 1 and part.value >= 0:
                model.version, model.version_place = part.value, part
            if part.value >= 0:
                continue
            if part.number in (2, 3):
                names[part.number - 2] = self.text(part)
            elif part.number == 7:
                self._add_graph(Graph(Message(None, part)))
            elif part.number == 8:
                model.opsets.append(self._read_opset(part))
            elif part.number == 14 and part.end - part.start <= LONGEST_METADATA:
                key, value = self.pair(part, LONGEST_METADATA)
                model.metadata[key] = value
            elif part.number == 25:
                functions.append(Message(None, part))
        if len(model.graphs) != 1:
            raise ValueError(f"holds {len(model.graphs)} graphs")
        model.producer = " ".join(name for name in names if name)
        for function in functions:
            self._read_function(function)
        while self.waiting:
            self._read_graph(self.waiting.popleft())
        return model

    def _read_opset(self, whole: Field) -> tuple[str, int]:
        parts = {part.number: part for part in self.fields(whole.start, whole.end)}
        return self.text(parts[1]) if 1 in parts else "", max(parts[2].value, 0) if 2 in parts else 0

    def _add_graph(self, graph: Graph) -> Graph:
        self.model.graphs.append(graph)
        self.waiting.append(graph)
        self._limit(len(self.model.graphs), "graphs")
        return graph

    def _read_graph(self, graph: Graph) -> None:
        whole = graph.message.field
        for part in self.fields(whole.start, whole.end):
            if part.value >= 0:
                continue
            if part.number == 1:
                self._read_node(graph, Message(graph.message, part))
            elif part.number == 2:
                graph.name = self.text(part)
            elif part.number == 5:
                tensor = self._read_tensor(Message(graph.message, part), "the initializer")
                graph.initializers.append(tensor.name)
                self._name_tensor(graph, tensor.name, tensor)
            elif part.number == 15:
                graph.initializers.append(self._read_sparse(Message(graph.message, part), "a sparse initializer"))
            elif part.number in _OF_GRAPH:
                getattr(graph, _OF_GRAPH[part.number]).append(self._read_port(part))

    def _name_tensor(self, graph: Graph, name: str, tensor: Tensor) -> None:
        graph.tensors[name] = tensor
        if tensor.integers is not None:
            graph.constants[name] = tensor.integers

    def _read_function(self, message: Message) -> None:
        function = Graph(message)
        for part in self.fields(message.field.start, message.field.end):
            if part.value >= 0:
                continue
            if part.number == 7:
                self._read_node(function, Message(message, part))
            elif part.number in (4, 5):
                (function.inputs if part.number == 4 else function.outputs).append(Port(self.text(part)))
            elif part.number in _OF_FUNCTION:
                setattr(function, _OF_FUNCTION[part.number], self.text(part))
        self.model.functions.append(function)

    def _read_port(self, whole: Field) -> Port:
        """ValueInfoProto."""
        name, dtype, shape = "", "", None
        for field in self.fields(whole.start, whole.end):
            if field.number == 1:
                name = self.text(field)
            for kind in self.within(field, 2):
                for part in self.within(kind, 1):  # TypeProto.tensor_type
                    if part.number == 1 and part.value >= 0:
                        dtype = DTYPES.get(part.value, f"type {part.value}")
                    elif part.number == 2 and part.value < 0:
                        shape = self._read_shape(part)
        return Port(name, dtype, shape)

    def _read_shape(self, whole: Field) -> tuple[int | str, ...]:
        """TensorShapeProto: a number, a name, or "" for each axis."""
        sizes: list[int | str] = []
        for axis in self.fields(whole.start, whole.end):
            if axis.number != 1 or axis.value >= 0:
                continue
            size: int | str = ""
            for part in self.fields(axis.start, axis.end):
                if part.number == 1 and part.value >= 0:
                    size = part.value if part.value < 1 << 63 else ""  # a negative size: unknown
                elif part.number == 2:
                    size = self.text(part)
            sizes.append(size)
            if len(sizes) > MOST_AXES:
                raise ValueError(f"an input or output has more than {MOST_AXES} axes")
        return tuple(sizes)

    def _read_node(self, graph: Graph, message: Message) -> None:
        """NodeProto; what a Constant says is known from now on."""
        node, attributes = Node(message), list[Message]()
        inputs, outputs = list[str](), list[str]()
        for part in self.fields(message.field.start, message.field.end):
            if part.value >= 0:
                continue
            if part.number == 1:
                inputs.append(self.text(part))
                node.places.append(part)
            elif part.number == 2:
                outputs.append(self.text(part))
            elif part.number in _OF_NODE:
                setattr(node, _OF_NODE[part.number], self.text(part))
            elif part.number == 5:
                attributes.append(Message(message, part))
        node.inputs, node.outputs = tuple(inputs), tuple(outputs)
        node.name = node.name or next(iter(outputs), "")
        graph.nodes.append(node)
        self.model.nodes.append(node)
        self._limit(len(self.model.nodes), "nodes")
        tensors = [tensor for attribute in attributes for tensor in self._read_attribute(node, attribute, graph.depth)]
        if node.type == "Constant" and outputs:
            for tensor in tensors:
                self._name_tensor(graph, outputs[0], tensor)
            for name in ("value_int", "value_ints"):
                if name in node.integers:
                    graph.constants[outputs[0]] = tuple(node.integers[name])

    def _read_attribute(self, node: Node, message: Message, depth: int) -> list[Tensor]:
        """AttributeProto; the tensors that it holds in its field ``t``."""
        name, held, alone = "", list[Message](), Counter[int]()
        numbers, known, kind = list[int](), True, 0
        for part in self.fields(message.field.start, message.field.end):
            if part.number in (3, 8):  # i, ints
                integers = self._read_integers(part)
                numbers += integers or ()
                known = known and integers is not None
            elif part.number == 20 and part.value >= 0:
                kind = part.value
            elif part.number == 1 and part.value < 0:
                name = self.text(part)
            elif part.value < 0 and part.number in (5, 6, 10, 11, 22, 23):  # t, g, tensors, graphs, sparse_tensor, sparse_tensors
                held.append(Message(message, part))
                alone[part.number] += 1
        node.attributes.append(name)
        node.types[name] = kind
        if any(alone[number] > 1 for number in (5, 6, 22)):
            node.merged = name
        where, tensors = f"{node.title}, attribute {name!r}" if held else "", list[Tensor]()
        for inner in held:
            number = inner.field.number
            if number in (6, 11):
                node.graphs.append(self._add_graph(Graph(inner, depth + 1)))
            elif number in (22, 23):
                self._read_sparse(inner, where)
            else:
                tensor = self._read_tensor(inner, where)
                tensors += [tensor] if number == 5 else []
                numbers += tensor.integers or ()
                known = known and tensor.integers is not None
        if numbers and known:
            node.integers[name] = numbers
        return tensors

    def _read_sparse(self, message: Message, where: str) -> str:
        """SparseTensorProto: the name of its values is its own."""
        name = ""
        for part in self.fields(message.field.start, message.field.end):
            if part.number in (1, 2) and part.value < 0:
                tensor = self._read_tensor(Message(message, part), where)
                name = tensor.name if part.number == 1 else name
        return name

    def _read_tensor(self, message: Message, where: str) -> Tensor:
        tensor = Tensor(message, where)
        for part in self.fields(message.field.start, message.field.end, fixed=True):
            if part.number == 1 and part.value != -2:
                tensor.sizes += [part.value] if part.value >= 0 else self.unpack(part)
                if len(tensor.sizes) > MOST_AXES:
                    raise ValueError(f"a tensor has more than {MOST_AXES} axes")
            elif part.number == 2 and part.value >= 0:
                tensor.kind = part.value
            elif part.number == 8 and part.value == -1:
                tensor.name = self.text(part)
            elif part.number == 13 and part.value == -1:
                tensor.external.append(Entry(*self.pair(part), part))
                tensor.cut.append(part)
            elif part.number == 14 and part.value >= 0:
                tensor.outside = part.value
                tensor.cut.append(part)
            elif part.number in _DATA:
                before = tensor.stored.get(part.number, 0) if part.number != _RAW else 0
                tensor.stored[part.number] = before + self._count_entries(part)
                tensor.data += [part] if len(tensor.data) <= MOST_AXES else []
        tensor.where = f"{where} {tensor.name!r}" if where.endswith("initializer") else where
        if tensor.kind == _INT64 and not tensor.outside and [part.number for part in tensor.data] in ([7], [_RAW]):
            integers = self._read_integers(tensor.data[0])
            tensor.integers = None if integers is None else tuple(integers)
        self.model.tensors.append(tensor)
        self._limit(len(self.model.tensors), "tensors")
        return tensor

    def _count_entries(self, part: Field) -> int:
        """How many bytes of raw data, else how many numbers or texts, a field of a tensor holds."""
        length = part.end - part.start
        if part.value >= 0 or part.number == 6 or part.value == -2:
            return 1
        if part.number == _RAW:
            return length
        if part.number in (4, 10):
            return length // (4 if part.number == 4 else 8)
        self.stream.seek(part.start)
        numbers = 0
        while length > 0 and (chunk := self.stream.read(min(_CHUNK, length))):
            numbers += len(chunk.translate(None, _HIGH))  # a number ends with its first byte below 128
            length -= len(chunk)
        return numbers

    def _read_integers(self, part: Field) -> list[int] | None:
        """Whole numbers: one, or packed, or eight bytes each; None, so not known, when they are many."""
        if part.value >= 0:
            return [decode_signed(part.value)]
        if part.end - part.start > _FEW:
            return None
        if part.number != _RAW:
            return [decode_signed(value) for value in self.unpack(part)]
        raw = self.read(part)
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]

    def _limit(self, number: int, what: str) -> None:
        if number > MOST_NODES:
            raise refuse(self.model.path, f"holds more than {MOST_NODES:,} {what}")
