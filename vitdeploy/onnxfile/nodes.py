"""The nodes of an ONNX file, one by one, without onnx: for machines that have an engine and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

from vitdeploy.errors import InputError
from vitdeploy.onnxfile.summary import DTYPES, Walk

_ONNX = ("", "ai.onnx")
_MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_THROUGH = _MOVES | {"DequantizeLinear", "QuantizeLinear", "Cast"}
_SCALE = {"DequantizeLinear": 1, "com.microsoft::MatMulIntegerToFloat": 2}
"""Where the input that gives the output's type stands, when it is not the first."""


class Node(NamedTuple):
    """A node.

    Attributes:
        operator: ``domain::name``, the name alone in ONNX's own domain.
        name: Its name; its first output's when it has none.
        inputs: Names of values, "" for one that is left out.
        outputs: Likewise.
        numbers: Its attributes that are single whole numbers.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, int]


class Nodes:
    """The main graph of an ONNX file, nodes in its order; bodies of If, Loop and Scan are left out.

    Args:
        path: The file. Weights, inside or beside it, are passed over.

    Raises:
        InputError: VD3011, the file is not a whole ONNX model.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                walk = _NodeWalk(stream)
                graph = walk.model(path.stat().st_size)
        except (EOFError, UnicodeDecodeError, ValueError) as exc:
            raise InputError("VD3011", f"is not a whole ONNX file ({exc})", file=path) from exc
        self.all: tuple[Node, ...] = tuple(reversed(walk.found))  # the walk's stack gives the last first
        """Every node."""
        self.dtypes: dict[str, str] = {**{port.name: port.dtype for port in graph.inputs}, **walk.constants}
        """Element types of initializers, constants and inputs."""
        self._constants = frozenset(walk.constants)
        self._makers = {value: node for node in self.all for value in node.outputs}

    def maker(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs, initializers and names that the graph does not have."""
        return self._makers.get(value)

    def origin(self, value: str) -> Node | None:
        """The node that computes a value's numbers: its maker, or the nearest one before those that only move them."""
        for _ in range(len(self.all)):  # a damaged graph may have a loop
            node = self.maker(value)
            if node is None or node.operator not in _MOVES or not node.inputs:
                return node
            value = node.inputs[0]
        return None

    def constant(self, value: str) -> bool:
        """Whether a value is the same in every run: a constant, or one that is only dequantized, cast or moved."""
        for _ in range(len(self.all)):  # a damaged graph may have a loop
            node = self.maker(value)
            if value in self._constants or node is None or node.operator not in _THROUGH or not node.inputs:
                break
            value = node.inputs[0]
        return value in self._constants

    def dtype(self, value: str) -> str:
        """Element type of a value, as far as it follows from initializers, inputs and Casts; "" when it does not."""
        for _ in range(len(self.all)):  # a damaged graph may have a loop
            node = self.maker(value)
            if value in self.dtypes or node is None or not node.inputs:
                break
            if "to" in node.numbers:
                return DTYPES.get(node.numbers["to"], "")
            value = node.inputs[_SCALE.get(node.operator, 0)]
        return self.dtypes.get(value, "")


class _NodeWalk(Walk):
    """Keeps the nodes of the main graph and the types of its constants, instead of counting them."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.found: list[Node] = []
        self.constants: dict[str, str] = {}

    def node(self, start: int, end: int, _: str) -> None:
        """NodeProto."""
        texts: dict[int, list[str]] = {number: [] for number in (1, 2, 3, 4, 7)}  # input, output, name, op_type, domain
        numbers: dict[str, int] = {}
        dtype = ""
        for field in self.fields(start, end):
            if field.number in texts:
                texts[field.number].append(self.text(field))
            elif field.number == 5 and field.value < 0:
                name, number, tensor = self._attribute(field.start, field.end)
                dtype = tensor or dtype
                if number is not None:
                    numbers[name] = number
        operator, domain = "".join(texts[4]), "".join(texts[7])
        if operator == "Constant":
            self.constants.update(dict.fromkeys(texts[2], dtype))
        whole = operator if domain in _ONNX else f"{domain}::{operator}"
        name = "".join(texts[3]) or next(iter(texts[2]), "")
        self.found.append(Node(whole, name, tuple(texts[1]), tuple(texts[2]), numbers))

    def function(self, start: int, end: int, _: str) -> None:
        """FunctionProto: not of the main graph."""

    def tensor(self, start: int, end: int, kind: str) -> None:
        """TensorProto of an initializer."""
        name, dtype = "", 0
        for field in self.fields(start, end):
            if field.number == 2 and field.value >= 0:
                dtype = field.value
            elif field.number == 8:
                name = self.text(field)
        if kind == "initializer":
            self.constants[name] = DTYPES.get(dtype, "")

    def _attribute(self, start: int, end: int) -> tuple[str, int | None, str]:
        """AttributeProto: its name, its whole number, and the element type of its tensor."""
        name, number, dtype = "", None, ""
        for field in self.fields(start, end):
            if field.number == 1:
                name = self.text(field)
            elif field.number == 3 and field.value >= 0:
                number = field.value - (1 << 64 if field.value >> 63 else 0)  # two's complement
            for part in self.within(field, 5):
                if part.number == 2 and part.value >= 0:
                    dtype = DTYPES.get(part.value, "")
        return name, number, dtype
