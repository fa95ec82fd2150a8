"""A model that also gives the tensors inside it, made without unpacking it.

Calibration must not need the model several times over in memory, so the ONNX file is not parsed into objects: the wanted
tensors are appended to the graph's outputs, and each large weight is replaced by a pointer to the place where it lies in the
original file. The result is a few hundred kilobytes; the engine maps the weights from the file itself.

Source: external data as in ONNX's docs/ExternalData.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from vitdeploy import files
from vitdeploy.errors import UsageError, nearest
from vitdeploy.onnxfile import edits
from vitdeploy.onnxfile.edits import Edit
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.reader import read, read_stream
from vitdeploy.onnxfile.wire import encode_field, encode_varint

_GRAPH_OUTPUT, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 12, 9, 13, 14
_LARGE = 4096  # bytes of a weight from which it stays in its file


class Augmented(NamedTuple):
    """A model with more outputs.

    Attributes:
        model: The ONNX message.
        folder: Where its external data lie; None when it has none.
    """

    model: bytes
    folder: Path | None


def augment(model: Path | bytes, tensors: Sequence[str]) -> Augmented:
    """Append tensors of the main graph to its outputs.

    Args:
        model: An ONNX file (external data may lie beside it), or the bytes of one without external data.
        tensors: Names of values that nodes compute. Those that are outputs already are left as they are.

    Raises:
        InputError: VD3001 to VD3005, VD3011, VD3027: as `read`.
        UsageError: VD2003, the graph computes no such tensor.
    """
    out = BytesIO()
    if isinstance(model, bytes):
        raw = BytesIO(model)
        parsed = read_stream(raw, Path("model.onnx"))
        edits.write(parsed, raw, [_name_outputs(parsed, tensors)], out)
        return Augmented(out.getvalue(), None)
    parsed, whole = read(model), model.resolve()  # engines refuse data behind a link that leads out of the folder
    weights = list(parsed.main.tensors.values())
    beside = any(tensor.external for tensor in weights)
    moved = [] if beside else [edit for tensor in weights for edit in _point(tensor, whole.name)]
    with files.open_regular(model) as stream:
        edits.write(parsed, stream, [*moved, _name_outputs(parsed, tensors)], out)
    return Augmented(out.getvalue(), model.absolute().parent if beside else whole.parent)


def _name_outputs(model: Model, tensors: Sequence[str]) -> Edit:
    computed = {name for node in model.main.nodes for name in node.outputs}
    for name in tensors:
        if name not in computed:
            hint = nearest(name, computed)
            raise UsageError("VD2003", f"the graph computes no tensor {name!r}", fix=hint or "name the output of a node")
    given = {port.name for port in model.main.outputs}
    names = [name for name in dict.fromkeys(tensors) if name not in given]
    outputs = (encode_field(_GRAPH_OUTPUT, encode_field(1, name.encode())) for name in names)
    return edits.append(model.main.message, b"".join(outputs))


def _point(tensor: Tensor, location: str) -> Iterator[Edit]:
    """Leaves a tensor's bytes in the file, when they are many."""
    if [part.number for part in tensor.data] != [_TENSOR_RAW] or tensor.stored[_TENSOR_RAW] < _LARGE:
        return
    raw = tensor.data[0]
    entries = {"location": location, "offset": str(raw.start), "length": str(raw.end - raw.start)}
    said = (encode_field(1, key.encode()) + encode_field(2, value.encode()) for key, value in entries.items())
    outside = encode_varint(_TENSOR_LOCATION << 3) + encode_varint(1)  # EXTERNAL
    yield from edits.cut(tensor.message, (raw, *tensor.cut))
    yield edits.append(tensor.message, b"".join(encode_field(_TENSOR_EXTERNAL, pair) for pair in said) + outside)
