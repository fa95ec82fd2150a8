"""What a model is made of, as names and sizes, with the place in the file of all that an edit may change.

Source: onnx.proto3 of ONNX (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, FunctionProto).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from vitdeploy.onnxfile.wire import Field

ONNX = ("", "ai.onnx")
"""Names of ONNX's own domain."""
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
"""TensorProto.DataType to its name."""
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""TensorProto.DataType to the size of a number, in bits."""
INT = 2
"""AttributeProto.AttributeType of a whole number."""
Key = tuple[str, str, str]
"""Domain, name and overload: what a node calls, and what a function is called."""


class Port(msgspec.Struct, frozen=True):
    """An input or output of a graph, or a value inside of it that is declared.

    Attributes:
        name: Its name.
        dtype: Element type, or "" when the file does not say.
        shape: Sizes; a name or "" for an axis that may vary; None when the file says no shape.
    """

    name: str
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None


@dataclass(eq=False, slots=True)
class Message:
    """Where a message lies, and the message around it."""

    parent: Message | None
    field: Field


class Entry(NamedTuple):
    """What is said of data beside the model, and where in the file."""

    key: str
    value: str
    field: Field


@dataclass(eq=False, slots=True)
class Tensor:
    """A TensorProto.

    Attributes:
        message: Where it lies.
        where: How people find it: its own name, or its node's and attribute's.
        name: Its name.
        kind: Number of its element type.
        sizes: As they are written, two's complement for negative ones.
        stored: Field number of the data to how many bytes (raw), else how many entries.
        data: The fields of the data, the first ones when they are very many.
        outside: Its `data_location`; 1 means beside the model.
        external: What is said of data beside the model.
        cut: The fields that say that there is some.
        integers: Its numbers, when they are int64, few, and inside the model; else None.
    """

    message: Message
    where: str
    name: str = ""
    kind: int = 0
    sizes: list[int] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)
    data: list[Field] = field(default_factory=list)
    outside: int = 0
    external: list[Entry] = field(default_factory=list)
    cut: list[Field] = field(default_factory=list)
    integers: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """How many bytes they are."""
        return (self.count * BITS[self.kind] + 7) // 8


@dataclass(eq=False, slots=True)
class Node:
    """A NodeProto.

    Attributes:
        message: Where it lies.
        type: Its operator's name in its domain.
        domain: Its operator's domain.
        overload: Of the function that it calls.
        name: Its name; its first output's when it has none.
        inputs: Names of values, "" for one that is left out.
        outputs: Likewise.
        places: The fields of its inputs.
        attributes: Their names.
        types: Attribute to the number of its type.
        integers: Attribute to its whole numbers, when they are few.
        graphs: Those of its attributes.
        merged: An attribute that holds two values in the place of one; None when there is none.
    """

    message: Message
    type: str = ""
    domain: str = ""
    overload: str = ""
    name: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    places: list[Field] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    types: dict[str, int] = field(default_factory=dict)
    integers: dict[str, list[int]] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)
    merged: str | None = None

    @property
    def key(self) -> Key:
        """What it calls."""
        return self.domain, self.type, self.overload

    @property
    def operator(self) -> str:
        """``domain::name``, the name alone in ONNX's own domain."""
        return self.type if self.domain in ONNX else f"{self.domain}::{self.type}"

    @property
    def numbers(self) -> dict[str, int]:
        """Its attributes that are single whole numbers."""
        return {name: values[-1] for name, values in self.integers.items() if self.types[name] in (0, INT)}

    @property
    def title(self) -> str:
        """Its operator and name, for people."""
        operator = self.operator or "node"
        return f"the {operator} {self.name!r}" if self.name else f"a nameless {operator}"


@dataclass(eq=False, slots=True)
class Graph:
    """A GraphProto, or the body of a FunctionProto, which has a domain and no initializers.

    Attributes:
        message: Where it lies.
        depth: How many graphs lie around it.
        domain: Of a function.
        name: Its name.
        overload: Of a function.
        inputs: What it takes; old writers list initializers among the inputs.
        outputs: What it gives.
        values: What else it declares.
        nodes: Without those of graphs inside of it.
        initializers: Names, of sparse ones too.
        tensors: Initializer, or output of a Constant, to its tensor.
        constants: The same to their few whole numbers.
    """

    message: Message
    depth: int = 0
    domain: str = ""
    name: str = ""
    overload: str = ""
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    values: list[Port] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What a function is called."""
        return self.domain, self.name, self.overload

    @property
    def taken(self) -> list[Port]:
        """Inputs that a run must be given."""
        initializers = frozenset(self.initializers)
        return [port for port in self.inputs if port.name not in initializers]


@dataclass(eq=False, slots=True)
class Model:
    """A ModelProto; it may be shared, so nobody changes it once it is read.

    Attributes:
        path: The file.
        size: Its size in bytes.
        version: Of the IR.
        version_place: Where it is said; None when it is not.
        producer: Name and version of the writer.
        opsets: Domains and versions of operator sets, as they are listed.
        metadata: The file's free key-value pairs.
        graphs: At whatever depth; the main graph is the first.
        functions: The model's own.
        tensors: At whatever depth.
        nodes: At whatever depth.
    """

    path: Path
    size: int
    version: int = 0
    version_place: Field | None = None
    producer: str = ""
    opsets: list[tuple[str, int]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)
    functions: list[Graph] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    @property
    def main(self) -> Graph:
        """The main graph."""
        return self.graphs[0]
