"""What a model is made of, as names and sizes, with the place in the file of all that a repair may change.

Source: onnx.proto3 of ONNX (ModelProto, GraphProto, NodeProto, TensorProto, FunctionProto).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""TensorProto.DataType to the size of a number, in bits."""
Key = tuple[str, str, str]
"""Domain, name and overload: what a node calls, and what a function is called."""


@dataclass(eq=False, slots=True)
class Message:
    """Where a message lies: its tag at ``head``, its contents from ``start`` to ``end``."""

    parent: Message | None
    number: int
    head: int
    start: int
    end: int


class Entry(NamedTuple):
    """What is said of data beside the model, and where in the file."""

    key: str
    value: str
    start: int
    end: int


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
        outside: Its `data_location`; 1 means beside the model.
        external: What is said of data beside the model.
        cut: Places of the fields that say that there is some.
        integers: Its numbers, when they are int64, few, and inside the model; else None.
    """

    message: Message
    where: str
    name: str = ""
    kind: int = 0
    sizes: list[int] = field(default_factory=list)
    stored: dict[int, int] = field(default_factory=dict)
    outside: int = 0
    external: list[Entry] = field(default_factory=list)
    cut: list[tuple[int, int]] = field(default_factory=list)
    integers: tuple[int, ...] | None = None


@dataclass(eq=False, slots=True)
class Node:
    """A NodeProto; ``places`` are those of its inputs, ``integers`` its attributes' whole numbers, ``types`` their types."""

    message: Message
    operator: str = ""
    domain: str = ""
    overload: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    integers: dict[str, list[int]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)

    @property
    def key(self) -> Key:
        """What it calls."""
        return self.domain, self.operator, self.overload

    @property
    def title(self) -> str:
        """Its operator and name, for people."""
        name = self.name or next(iter(self.outputs), "")
        operator = self.operator if self.domain in ("", "ai.onnx") else f"{self.domain}::{self.operator}"
        return f"the {operator or 'node'} {name!r}" if name else f"a nameless {operator or 'node'}"


@dataclass(eq=False, slots=True)
class Graph:
    """A GraphProto, or the body of a FunctionProto, which has a domain and a name and no initializers.

    Attributes:
        message: Where it lies.
        domain: Of a function, as are its name and overload.
        name: Of a function.
        overload: Of a function.
        inputs: Names.
        outputs: Names.
        nodes: Without those of graphs inside of it.
        initializers: Names.
        axes: Input to how many axes it says it has; 0 when it does not say.
        constants: Initializer, or output of a Constant, to its few whole numbers.
        kinds: Initializer to the number of its element type.
    """

    message: Message
    domain: str = ""
    name: str = ""
    overload: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    axes: dict[str, int] = field(default_factory=dict)
    constants: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What a function is called."""
        return self.domain, self.name, self.overload


@dataclass(eq=False, slots=True)
class Model:
    """A ModelProto: ``graphs`` and ``tensors`` hold every one at whatever depth, the main graph is the first."""

    path: Path
    size: int
    version: int = 0
    opsets: list[tuple[str, int]] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    functions: list[Graph] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
