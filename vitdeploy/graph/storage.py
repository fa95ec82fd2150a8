"""Writing a graph to a file: the same bytes for the same graph, and weights beside it when protobuf's limit is near."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from vitdeploy.errors import library
from vitdeploy.onnxfile import versions

LARGEST_INLINE = 1900 << 20
"""Bytes of weights above which they go to ``<name>.data``: protobuf ends at 2 GiB."""


def read(path: Path) -> ir.Model:
    """A graph with its weights in memory only as they are used.

    Raises:
        MachineError: VD4004, onnx can't read it.
    """
    with library("onnx", path):
        return ir.load(path)


def write(model: ir.Model, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Serialise a graph, under the lowest IR version that it needs; initializers that nothing uses are dropped from it.

    Args:
        model: The graph; its metadata is replaced when some is given.
        path: The file; weights beyond protobuf's limit go to ``<name>.data`` beside it.
        metadata: Metadata of the model.
    """
    if metadata is not None:
        model.metadata_props.clear()
        model.metadata_props.update(metadata)
    model.doc_string = None
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            model.graph.initializers.pop(name)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    with library("onnx", path):
        if size > LARGEST_INLINE:
            ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024)
        else:
            ir.external_data.load_to_model(model)  # else the new file names data that lies beside the old one
            path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    versions.settle(path)
