"""The nodes of an ONNX file and what is known of the values between them: types, shapes, which are constant, which are zero."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import files
from vitdeploy.errors import TrustError
from vitdeploy.onnxfile.model import DTYPES, Model, Node, Tensor
from vitdeploy.onnxfile.reader import read
from vitdeploy.onnxfile.wire import MOST_AXES

LARGEST = 1 << 20
"""Bytes of a constant beyond which it is not read: zero points are far smaller."""

_MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
_THROUGH = _MOVES | {"DequantizeLinear", "QuantizeLinear", "Cast"}
_SCALE = {"DequantizeLinear": 1, "com.microsoft::MatMulIntegerToFloat": 2}
"""Where the input that gives the output's type stands, when it is not the first."""


class Nodes:
    """The main graph of an ONNX file, nodes in its order; bodies of If, Loop and Scan are left out.

    Data, inside the file or beside it, is read where it is asked for.
    """

    def __init__(self, model: Model) -> None:
        main = model.main
        self.all: tuple[Node, ...] = tuple(main.nodes)
        """Every node."""
        constants = {value: "" for node in self.all if node.type == "Constant" for value in node.outputs}
        constants |= {name: DTYPES.get(tensor.kind, "") for name, tensor in main.tensors.items()}
        ports = (*main.values, *main.inputs, *main.outputs)
        self.dtypes = {port.name: port.dtype for port in ports if port.dtype} | constants
        """Element types of constants, and of what the file declares."""
        self._shapes = {port.name: port.shape for port in ports if port.shape is not None}
        self._shapes |= {name: tuple(tensor.sizes) for name, tensor in main.tensors.items()}
        self._constants = frozenset(constants)
        self._makers = {value: node for node in self.all for value in node.outputs}
        self._path, self._tensors = model.path, main.tensors

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
        """Element type of a value, declared or followed through the graph; "" when unknown."""
        for _ in range(len(self.all)):  # a damaged graph may have a loop
            node = self.maker(value)
            if value in self.dtypes or node is None or not node.inputs:
                break
            if "to" in node.numbers:
                return DTYPES.get(node.numbers["to"], "")
            value = node.inputs[_SCALE.get(node.operator, 0)]
        return self.dtypes.get(value, "")

    def shape(self, value: str) -> tuple[int | str, ...] | None:
        """Sizes of a value, a name or "" for one that may vary; None when the file does not say."""
        return self._shapes.get(value)

    def is_zero(self, value: str) -> bool | None:
        """Whether all elements of a constant are zero; None when it is no constant of the file, or a large one.

        Every number's encoding is of zero bytes exactly when it is zero, and protobuf leaves zeros out.
        """
        tensor = self._tensors.get(value)
        if tensor is None or len(tensor.data) > MOST_AXES:
            return None
        said = {entry.key: entry.value for entry in tensor.external}
        try:
            return self._is_zero_outside(said) if "location" in said else self._is_zero_inside(tensor)
        except (OSError, ValueError, TrustError):
            return None

    def _is_zero_inside(self, tensor: Tensor) -> bool | None:
        if any(part.end - part.start > LARGEST for part in tensor.data):
            return None
        with files.open_regular(self._path) as stream:
            for part in tensor.data:
                stream.seek(part.start)
                if part.value > 0 or any(stream.read(part.end - part.start)):
                    return False
        return True

    def _is_zero_outside(self, entry: dict[str, str]) -> bool | None:
        offset, length = int(entry.get("offset", "0")), int(entry.get("length", "-1"))
        if offset < 0 or length > LARGEST:
            return None
        with files.open_regular(files.inside(self._path.parent, entry["location"])) as stream:
            stream.seek(offset)
            raw = stream.read(length if length >= 0 else LARGEST + 1)
        return None if len(raw) > LARGEST or len(raw) < length else not any(raw)


def read_nodes(path: Path) -> Nodes:
    """The nodes of a file. Weights, inside or beside it, are passed over.

    Raises:
        InputError: As `read`.
    """
    return Nodes(read(path))
