"""The nodes of an ONNX file, one by one, and what follows from them: for machines that have an engine and nothing else."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.onnxfile.model import DTYPES, Model, Node
from vitdeploy.onnxfile.reader import read

_MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_THROUGH = _MOVES | {"DequantizeLinear", "QuantizeLinear", "Cast"}
_SCALE = {"DequantizeLinear": 1, "com.microsoft::MatMulIntegerToFloat": 2}
"""Where the input that gives the output's type stands, when it is not the first."""


class Nodes:
    """The main graph of an ONNX file, nodes in its order; bodies of If, Loop and Scan are left out."""

    def __init__(self, model: Model) -> None:
        main = model.main
        self.all: tuple[Node, ...] = tuple(main.nodes)
        """Every node."""
        constants = {value: "" for node in self.all if node.type == "Constant" for value in node.outputs}
        constants |= {name: DTYPES.get(tensor.kind, "") for name, tensor in main.tensors.items()}
        self.dtypes: dict[str, str] = {**{port.name: port.dtype for port in main.taken}, **constants}
        """Element types of initializers, constants and inputs."""
        self._constants = frozenset(constants)
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

    def is_constant(self, value: str) -> bool:
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


def read_nodes(path: Path) -> Nodes:
    """The nodes of a file. Weights, inside or beside it, are passed over.

    Raises:
        InputError: As `read`.
    """
    return Nodes(read(path))
