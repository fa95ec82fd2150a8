"""The inside of an ONNX file in numbers: operators, inputs and outputs, what the weights are made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from vitdeploy.errors import InputError
from vitdeploy.onnxfile.model import DTYPES, Model, Port
from vitdeploy.onnxfile.reader import read

MOST_NAMES = 10_000
"""Distinct operators, inputs, outputs and external files."""
MOST_ELEMENTS = 1 << 53
_NOT_WEIGHTS = ("int64", "bool", "string")  # shapes, axes, indices
_QDQ = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


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
        InputError: VD3001 to VD3005 for a file that is something else, VD3011 for one that is damaged, VD3027 for one that has
            too many nodes, tensors or graphs.
    """
    return summarize(read(path))


def summarize(model: Model) -> OnnxGraph:
    """Count what a model is made of.

    Raises:
        InputError: VD3011, it has too many names, or impossible sizes.
    """
    elements = Counter[str]()
    for tensor in model.tensors:
        dtype = DTYPES.get(tensor.kind, f"type {tensor.kind}")
        elements[dtype] += tensor.count
        if elements[dtype] > MOST_ELEMENTS:
            raise _refuse(model, f"a tensor of {' x '.join(map(str, tensor.sizes))[:80]} numbers is impossible")
    operators = Counter(node.operator for node in model.nodes)
    external = {entry.value: None for tensor in model.tensors for entry in tensor.external if entry.key == "location"}
    inputs, outputs = tuple(model.main.taken), tuple(model.main.outputs)
    if any(len(names) > MOST_NAMES for names in (operators, elements, external, inputs, outputs)):
        raise _refuse(model, f"more than {MOST_NAMES:,} names of one kind")
    return OnnxGraph(
        name=model.main.name,
        inputs=inputs,
        outputs=outputs,
        operators=_order(operators),
        elements=_order(elements),
        parameters=sum(count for dtype, count in elements.items() if dtype not in _NOT_WEIGHTS),
        tensors=len(model.tensors),
        external=tuple(external),
        subgraphs=len(model.graphs) - 1,
        functions=len(model.functions),
    )


def list_files(path: Path) -> tuple[Path, ...]:
    """An ONNX file, and the files beside it that hold its data, whatever their names.

    Raises:
        InputError: As `read_graph`.
    """
    return (path, *(path.parent / name for name in sorted(read_graph(path).external)))


def count_stored_bytes(path: Path) -> int:
    """Size of an ONNX file and of the files beside it that hold its data, in bytes.

    Raises:
        InputError: As `read_graph`; VD3001, a file beside it is missing.
    """
    try:
        return sum(each.stat().st_size for each in list_files(path))
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


def _refuse(model: Model, why: str) -> InputError:
    return InputError("VD3011", f"is not a whole ONNX file ({why})", file=model.path, fix="write or download it again")


def _order(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
