"""What is changed in a foreign ONNX file before an engine sees it; the copy computes the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from vitdeploy.errors import library
from vitdeploy.files import open_regular
from vitdeploy.onnxfile import edits
from vitdeploy.onnxfile.edits import Edit
from vitdeploy.onnxfile.external import BASE, Beside, Range, read_range
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.rules import count_trailing
from vitdeploy.onnxfile.wire import encode_field


def cut_trailing(model: Model) -> list[Edit]:
    """Cuts the empty names at the end of nodes' inputs."""
    counts = ((node, count_trailing(node)) for node in model.nodes)
    return [edit for node, count in counts if count for edit in edits.cut(node.message, node.places[-count:])]


def cut_base(tensors: Iterable[Tensor]) -> list[Edit]:
    """Cuts what is said of the folder of data beside the model: it is the model's, which goes without saying."""
    return [
        edit
        for tensor in tensors
        for edit in edits.cut(tensor.message, (entry.field for entry in tensor.external if entry.key == BASE))
    ]


def inline(model: Model, tiny: dict[Tensor, Range], files: dict[str, Beside]) -> list[Edit]:
    """Brings small tensors from beside the model into it, as raw data at the end of their messages."""
    inner = list[Edit]()
    for tensor, place in tiny.items():
        inner += edits.cut(tensor.message, tensor.cut)
        inner.append(edits.append(tensor.message, encode_field(9, read_range(place, files, model))))
    return inner


def write(model: Model, changes: list[Edit], target: Path) -> None:
    """Write the model with its edits.

    Raises:
        InputError: VD3027, the file became shorter since it was read.
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    with library("file system", target), open_regular(model.path) as source, target.open("xb") as out:
        edits.write(model, source, changes, out)


def copy(files: dict[Path, Beside], folder: Path) -> None:
    """Copy data files into a folder under the names that the model has for them; never as links.

    Raises:
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    for location, beside in files.items():
        target = folder / location
        with library("file system", target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_regular(beside.file) as source, target.open("xb") as out:
                shutil.copyfileobj(source, out)
