"""The inside of an ONNX file without onnx or any engine: operators, inputs and outputs, what the weights are made of.

Only the headers of messages are read, by seeking over everything that is data, so a model of two gigabytes takes as long as
one of two. Nothing here recurses, every length is checked against the message around it, and each byte is looked at once at
most, so that a hostile file costs no more than its own size allows.

Source: onnx.proto3 of ONNX (GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto, FunctionProto) and the
protobuf wire format (varint, length-delimited fields).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from vitdeploy.errors import InputError
from vitdeploy.files import expect

MOST_FIELDS = 3_000_000
"""Protobuf fields that are looked at; a ViT of 40 blocks has about a hundred thousand."""
LONGEST_NAME = 4096
MOST_NAMES = 10_000
"""Distinct operators, inputs, outputs and external files."""
MOST_AXES = 64
MOST_ELEMENTS = 1 << 53

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
"""TensorProto.DataType to its name."""
_NOT_WEIGHTS = ("int64", "bool", "string")  # shapes, axes, indices
_QDQ = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_AGAIN = "write or download it again"


class Port(msgspec.Struct, frozen=True):
    """An input or output of the graph.

    Attributes:
        name: Its name.
        dtype: Element type, or "" when the file does not say.
        shape: Sizes; a name or "" for an axis that may vary; None when the file says no shape.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


class OnnxGraph(msgspec.Struct, frozen=True, kw_only=True):
    """What a graph is made of, sub-graphs and functions included.

    Attributes:
        name: The graph's name.
        inputs: What it takes; initializers that old writers list among the inputs are left out.
        outputs: What it gives.
        operators: Operator to how many nodes, most frequent first; ``domain::name`` outside ONNX's own domain.
        elements: Element type to how many numbers, of initializers and constants, most first.
        parameters: Numbers that are weights: all but those of type int64, bool and string.
        tensors: Initializers and constants.
        external: Files beside the model that hold data, as it names them.
        subgraphs: Bodies of If, Loop and Scan.
        functions: Functions of the model's own.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: dict[str, int]
    elements: dict[str, int]
    parameters: int
    tensors: int
    external: tuple[str, ...] = ()
    subgraphs: int = 0
    functions: int = 0

    @property
    def nodes(self) -> int:
        """Nodes in all."""
        return sum(self.operators.values())

    @property
    def quantization(self) -> dict[str, int]:
        """Operators that quantise, dequantise or compute in integers, with their counts; empty for a float model."""
        return {name: n for name, n in self.operators.items() if _quantizes(name.rpartition("::")[2])}

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first axis of every input may vary."""
        return bool(self.inputs) and all(port.shape and not isinstance(port.shape[0], int) for port in self.inputs)


def _quantizes(operator: str) -> bool:
    return operator in _QDQ or "Integer" in operator or operator.startswith("QLinear") or operator in ("QGemm", "QAttention")


def read_graph(path: Path) -> OnnxGraph:
    """Look through the graph of an ONNX file.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else, VD3011 for one that is damaged.
    """
    expect(path, "onnx", what="an ONNX model")
    try:
        with path.open("rb") as stream:
            return Walk(stream).model(path.stat().st_size)
    except (EOFError, UnicodeDecodeError, ValueError) as exc:
        raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path, fix=_AGAIN) from exc
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


def stored_bytes(path: Path) -> int:
    """Size of an ONNX file and of the files beside it that hold its data, in bytes.

    Raises:
        InputError: As `read_graph`; VD3001, a file beside it is missing.
    """
    try:
        return sum((path.parent / name).stat().st_size for name in (path.name, *read_graph(path).external))
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


class Field(NamedTuple):
    """A field: its number, its varint (-1 for a length-delimited one, -2 for 4 or 8 bytes) and where its contents lie."""

    number: int
    value: int
    start: int
    end: int


class Wire:
    """Fields of protobuf messages in a file, by seeking over what is data.

    Args:
        stream: The file, opened for reading.

    Attributes:
        head: Where the field begins, tag and all, that `fields` gave last.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.seen, self.head = stream, 0, 0

    def within(self, field: Field, number: int) -> Iterator[Field]:
        """The fields of a message, when ``field`` is a message and has that number."""
        return self.fields(field.start, field.end) if field.number == number and field.value < 0 else iter(())

    def text(self, field: Field) -> str:
        """A name."""
        if field.value >= 0:
            return ""
        if field.end - field.start > LONGEST_NAME:
            raise ValueError(f"a name of {field.end - field.start:,} bytes")
        self.stream.seek(field.start)
        return self.stream.read(field.end - field.start).decode()

    def packed(self, field: Field) -> list[int]:
        """Numbers written one behind the other."""
        if field.end - field.start > 10 * MOST_AXES:
            raise ValueError(f"a tensor has more than {MOST_AXES} axes")
        self.stream.seek(field.start)
        raw, at, found = self.stream.read(field.end - field.start), 0, []
        while at < len(raw):
            value, at = _varint(raw, at)
            found.append(value)
        return found

    def fields(self, start: int, end: int, *, fixed: bool = False) -> Iterator[Field]:
        """The fields of a message, in order.

        Args:
            start: Where the message begins, in bytes.
            end: Where it ends.
            fixed: Whether numbers of 4 and 8 bytes are wanted; else they are passed over.

        Raises:
            ValueError: The message is damaged, or has more fields than `MOST_FIELDS`.
            EOFError: A field reaches past the end of its message.
        """
        while start < end:
            self.seen += 1
            if self.seen > MOST_FIELDS:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            self.stream.seek(start)
            head = self.stream.read(min(20, end - start))
            tag, used = _varint(head, 0)
            wire = tag & 7
            if wire == 0:
                value, used = _varint(head, used)
                self.head, start = start, start + used
                yield Field(tag >> 3, value, start, start)
                continue
            if wire not in (1, 2, 5):
                raise ValueError(f"unknown wire type {wire}")
            length, used = _varint(head, used) if wire == 2 else (8 if wire == 1 else 4, used)
            at, begin, start = start, start + used, start + used + length
            if start > end:
                raise EOFError(f"a field of {length} bytes reaches past the end")
            if wire == 2 or fixed:
                self.head = at
                yield Field(tag >> 3, -1 if wire == 2 else -2, begin, start)


class Walk(Wire):
    """One pass over a file; messages that wait to be looked at are on a stack of kind, start and end."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.stack: list[tuple[str, int, int]] = []
        self.names = [""]
        self.ports: dict[str, list[Port]] = {"inputs": [], "outputs": []}
        self.operators: dict[str, int] = {}
        self.elements: dict[str, int] = {}
        self.initializers: set[str] = set()
        self.external: dict[str, None] = {}
        self.counts = {"tensors": 0, "subgraphs": 0, "functions": 0, "graphs": 0}

    def model(self, size: int) -> OnnxGraph:
        """Everything, from the outermost message inwards."""
        looks = {
            "graph": self.graph, "subgraph": self.graph, "function": self.function, "node": self.node,
            "attribute": self.attribute, "initializer": self.tensor, "tensor": self.tensor, "sparse": self.sparse,
        }  # fmt: skip
        for field in self.fields(0, size):
            if field.number == 7:
                self.push("graph", field)
                self.counts["graphs"] += 1
            elif field.number == 25:
                self.push("function", field)
                self.counts["functions"] += 1
        if self.counts["graphs"] != 1:
            raise ValueError(f"holds {self.counts['graphs']} graphs")
        while self.stack:
            kind, start, end = self.stack.pop()
            looks[kind](start, end, kind)
        ordered = [dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))) for found in (self.operators, self.elements)]
        return OnnxGraph(
            name=self.names[-1],
            inputs=tuple(port for port in self.ports["inputs"] if port.name not in self.initializers),
            outputs=tuple(self.ports["outputs"]),
            operators=ordered[0],
            elements=ordered[1],
            parameters=sum(n for dtype, n in self.elements.items() if dtype not in _NOT_WEIGHTS),
            tensors=self.counts["tensors"],
            external=tuple(self.external),
            subgraphs=self.counts["subgraphs"],
            functions=self.counts["functions"],
        )

    def graph(self, start: int, end: int, kind: str) -> None:
        """GraphProto."""
        main = kind == "graph"
        for field in self.fields(start, end):
            if field.number == 1:
                self.push("node", field)
            elif field.number == 5:
                self.push("initializer" if main else "tensor", field)
            elif field.number == 15:
                self.push("sparse", field)
            elif main and field.number == 2:
                self.names.append(self.text(field))
            elif main and field.number in (11, 12):
                self.port("inputs" if field.number == 11 else "outputs", field)

    def function(self, start: int, end: int, _: str) -> None:
        """FunctionProto."""
        for field in self.fields(start, end):
            if field.number == 7:
                self.push("node", field)

    def node(self, start: int, end: int, _: str) -> None:
        """NodeProto."""
        operator, domain = "", ""
        for field in self.fields(start, end):
            if field.number == 4:
                operator = self.text(field)
            elif field.number == 7:
                domain = self.text(field)
            elif field.number == 5:
                self.push("attribute", field)
        name = operator if domain in ("", "ai.onnx") else f"{domain}::{operator}"
        self.operators[name] = self.operators.get(name, 0) + 1
        _limit(self.operators)

    def attribute(self, start: int, end: int, _: str) -> None:
        """AttributeProto: only tensors and graphs matter."""
        for field in self.fields(start, end):
            if field.number in (5, 10):
                self.push("tensor", field)
            elif field.number in (6, 11):
                self.push("subgraph", field)
                self.counts["subgraphs"] += 1

    def sparse(self, start: int, end: int, _: str) -> None:
        """SparseTensorProto: its values and indices are tensors."""
        for field in self.fields(start, end):
            if field.number in (1, 2):
                self.push("tensor", field)

    def tensor(self, start: int, end: int, kind: str) -> None:
        """TensorProto: type and sizes; the data itself is passed over."""
        sizes: list[int] = []
        dtype = 0
        for field in self.fields(start, end):
            if field.number == 1:
                sizes += [field.value] if field.value >= 0 else self.packed(field)
                if len(sizes) > MOST_AXES:
                    raise ValueError(f"a tensor has more than {MOST_AXES} axes")
            elif field.number == 2 and field.value >= 0:
                dtype = field.value
            elif field.number == 8 and kind == "initializer":
                self.initializers.add(self.text(field))
            elif field.number == 13:
                self.location(field)
        count = math.prod(sizes)
        name = DTYPES.get(dtype, f"type {dtype}")
        total = self.elements.get(name, 0) + count
        if total > MOST_ELEMENTS:
            raise ValueError(f"a tensor of {' x '.join(map(str, sizes))[:80]} numbers is impossible")
        self.elements[name] = total
        _limit(self.elements)
        self.counts["tensors"] += 1

    def location(self, entry: Field) -> None:
        """StringStringEntryProto of a tensor's external data: remember the file."""
        pair = ["", ""]
        for field in self.fields(entry.start, entry.end):
            if field.number in (1, 2):
                pair[field.number - 1] = self.text(field)
        if pair[0] == "location":
            self.external[pair[1]] = None
            _limit(self.external)

    def port(self, side: str, whole: Field) -> None:
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
                        shape = self.shape(part)
        self.ports[side].append(Port(name, dtype, shape))
        _limit(self.ports[side])

    def shape(self, whole: Field) -> tuple[int | str, ...]:
        """TensorShapeProto: a number, a name, or "" for each axis."""
        found: list[int | str] = []
        for field in self.fields(whole.start, whole.end):
            if field.number != 1 or field.value >= 0:
                continue
            size: int | str = ""
            for part in self.fields(field.start, field.end):
                if part.number == 1 and part.value >= 0:
                    size = part.value if part.value < 1 << 63 else ""  # a negative size: unknown
                elif part.number == 2:
                    size = self.text(part)
            found.append(size)
            if len(found) > MOST_AXES:
                raise ValueError(f"an input or output has more than {MOST_AXES} axes")
        return tuple(found)

    def push(self, kind: str, field: Field) -> None:
        """Look at a message later; a number in its place is a field that nobody knows, as in protobuf."""
        if field.value < 0:
            self.stack.append((kind, field.start, field.end))


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number and where the next one begins."""
    value = 0
    for used, byte in enumerate(raw[at : at + 10]):
        value |= (byte & 0x7F) << 7 * used
        if byte < 0x80:
            return value, at + used + 1
    raise EOFError("cut off inside a number" if len(raw) - at < 10 else "number too long")


def _limit(found: dict[str, int] | dict[str, None] | list[Port]) -> None:
    if len(found) > MOST_NAMES:
        raise ValueError(f"more than {MOST_NAMES:,} names of one kind")
