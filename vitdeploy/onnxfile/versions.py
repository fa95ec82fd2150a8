"""The version of ONNX's IR that a file needs, which is often lower than the one it says.

Writers stamp the newest version that they know, and engines refuse what is newer than they are, whatever is in the file: a
graph that an engine of 2023 could run is turned away because of one number. The operator set decides what nodes mean; a file
needs the IR version of the release that brought its operator set, or of what else it makes use of.

What a lower version does not know and passes over (metadata of nodes and values, types inside functions, hints for several
devices) changes nothing that is computed.

Source: the table of releases in ONNX's docs/Versioning.md, and the history of `Version` in onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vitdeploy.errors import library
from vitdeploy.onnxfile.edits import Edit
from vitdeploy.onnxfile.model import DTYPES, ONNX, Model
from vitdeploy.onnxfile.reader import read
from vitdeploy.onnxfile.wire import encode_varint

_OPSETS = {8: 3, 9: 4, 10: 5, 11: 6, 14: 7, 18: 8, 20: 9, 22: 10, 23: 11, 24: 12, 27: 13, 28: 14}
"""The last operator set of each IR version that came with one."""
_LEAST = 4
"""The first version in which a weight need not be an input too."""
_FUNCTIONS, _OVERLOADS = 8, 10
_ELEMENTS = {
    "float8e4m3fn": 9, "float8e4m3fnuz": 9, "float8e5m2": 9, "float8e5m2fnuz": 9, "uint4": 10, "int4": 10,
    "float4e2m1": 11, "float8e8m0": 12, "uint2": 13, "int2": 13,
}  # fmt: skip
_NAMING = ("to", "dtype", "output_dtype")
"""Attributes that name an element type."""


def find_lowest(model: Model) -> int:
    """The lowest IR version whose readers understand a model; its own where it has what is newer than this table."""
    opsets = [version for domain, version in model.opsets if domain in ONNX]
    elements = set(_list_elements(model))
    if max(opsets, default=0) > max(_OPSETS) or any(each and each not in DTYPES.values() for each in elements):
        return model.version
    needed = [_LEAST, *(min(ir for last, ir in _OPSETS.items() if opset <= last) for opset in opsets)]
    needed += [_ELEMENTS[each] for each in elements if each in _ELEMENTS]
    if model.functions:
        needed.append(_OVERLOADS if any(function.overload for function in model.functions) else _FUNCTIONS)
    return max(needed)


def _list_elements(model: Model) -> Iterator[str]:
    """The element types of tensors and of all that is declared, and those that attributes name."""
    for kind in (tensor.kind for tensor in model.tensors):
        yield DTYPES.get(kind, f"type {kind}")
    for graph in (*model.graphs, *model.functions):
        yield from (port.dtype for port in (*graph.inputs, *graph.outputs, *graph.values))
    for node in model.nodes:
        kinds = (node.numbers[name] for name in _NAMING if node.numbers.get(name))
        yield from (DTYPES.get(kind, f"type {kind}") for kind in kinds)


def lower(model: Model) -> list[Edit]:
    """Has the model say the lowest IR version that it needs, if it says a higher one."""
    place, lowest = model.version_place, find_lowest(model)
    return [] if place is None or lowest >= model.version else [Edit(place.head, place.end, _encode(lowest), None)]


def settle(path: Path) -> None:
    """Have a file that was just written say the lowest IR version that it needs, in place.

    Raises:
        InputError: As `reader.read`.
        MachineError: VD4004, the file system failed.
    """
    model = read(path)
    place, new = model.version_place, _encode(find_lowest(model))
    assert place is not None and place.end - place.head == len(new), "a version below 128, as every library writes it"
    with library("file system", path), path.open("r+b") as stream:
        stream.seek(place.head)
        stream.write(new)


def _encode(version: int) -> bytes:
    """ModelProto.ir_version."""
    return encode_varint(1 << 3) + encode_varint(version)
