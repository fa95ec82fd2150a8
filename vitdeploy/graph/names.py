"""Names that lead back to the module: `blocks.3.attn.qkv/MatMul` instead of `node_MatMul_142`.

The exporter leaves each node's module path in its metadata. Here it becomes the node's name, its output's name and the
name of the constants it brought along, and everything else (stack traces, file paths, doc strings) is dropped: the same
model gives the same bytes on any machine.
"""

from __future__ import annotations

import ast

import onnx_ir as ir

from vitdeploy.graph.editor import free_name

SCOPES = "pkg.torch.onnx.name_scopes"
_ROLES = {
    ("Reshape", 1): "shape",
    ("Pad", 1): "pads",
    ("Gather", 1): "index",
    ("Slice", 1): "starts",
    ("Slice", 2): "ends",
    ("Slice", 3): "axes",
    ("Slice", 4): "steps",
}
_AT_RUN_TIME = frozenset(("Shape", "Size", "Identity", "Expand", "Range"))
_PARAMETERS = {
    ("LayerNormalization", 1): "weight",
    ("LayerNormalization", 2): "bias",
    ("Conv", 2): "bias",
    ("Gemm", 2): "bias",
    ("Add", 1): "bias",
    ("Mul", 1): "gamma",
}


def name_by_module(model: ir.Model, *, root: str = "") -> None:
    """Rename nodes, values and anonymous constants after the modules they come from, in place.

    Args:
        model: As the exporter returns it; graph inputs and outputs keep their names.
        root: Module path to leave out, such as the wrapper that was exported.
    """
    graph = model.graph
    kept = {value.name for value in (*graph.inputs, *graph.outputs)}
    taken: set[str] = {name for name in (*kept, *graph.initializers) if name is not None}
    paths: dict[ir.Node, str] = {}
    for node in graph:
        paths[node] = _read_path(node, paths, root)
        node.name = free_name(f"{paths[node]}/{node.op_type}" if paths[node] else node.op_type, taken)
        for index, value in enumerate(node.outputs):
            if value.name not in kept:
                value.name = free_name(node.name + "_out" + (f"_{index}" if len(node.outputs) > 1 else ""), taken)
    for name in [name for name in graph.initializers if root and name.startswith(root + ".")]:
        _rename(graph, graph.initializers[name], free_name(name[len(root) + 1 :], taken))
    for node in graph:
        _own_parameters(node, paths[node], graph, taken)
        _name_constants(node, paths[node], graph, taken)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
    graph.doc_string = None


def _read_path(node: ir.Node, paths: dict[ir.Node, str], root: str) -> str:
    """The module that made a node; a node made by an optimiser belongs where its first input was made."""
    text = node.metadata_props.get(SCOPES)
    if text is None:
        makers = (value.producer() for value in node.inputs if value is not None)
        return next((paths[maker] for maker in makers if maker is not None and maker in paths), "")
    scopes = [str(scope) for scope in ast.literal_eval(text)]
    path = scopes[-2] if len(scopes) > 1 else ""
    if root and (path == root or path.startswith(root + ".")):
        path = path[len(root) + 1 :]
    return path


def _own_parameters(node: ir.Node, path: str, graph: ir.Graph, taken: set[str]) -> None:
    """Give a node its own copy of a vector that the exporter merged with an equal one of another module.

    All LayerNorms of a fresh model share one weight otherwise, and whoever edits one of them edits them all.
    """
    for index, value in enumerate(node.inputs):
        role = _PARAMETERS.get((node.op_type, index))
        if role is None or value is None or value.name not in graph.initializers or value.const_value is None:
            continue
        stem, dot, kind = str(value.name).rpartition(".")
        if not dot or kind not in _PARAMETERS.values() or stem == path or not path or len(value.const_value.shape) != 1:
            continue
        name = free_name(f"{path}.{role}", taken)
        tensor = ir.Tensor(value.const_value.numpy(), name=name)
        copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
        graph.initializers[name] = copy
        node.replace_input_with(index, copy)


def _name_constants(node: ir.Node, path: str, graph: ir.Graph, taken: set[str]) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or value.name is None or value.name not in graph.initializers or not value.name.startswith("val_"):
            continue
        matrix = node.op_type in ("MatMul", "Gemm") and value.shape is not None and len(value.shape) == 2
        role = "weight" if matrix else _ROLES.get((node.op_type, index), f"constant_{index}")
        _rename(graph, value, free_name(f"{path}.weight" if matrix and path else f"{node.name}.{role}", taken))


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    old, value.name = str(value.name), name
    if old in graph.initializers:  # the table of initializers is keyed by name
        graph.initializers[name] = graph.initializers.pop(old)


def list_shape_arithmetic(model: ir.Model) -> list[str]:
    """Names of nodes that compute shapes at run time, or nothing at all: where a "dynamic" batch gets frozen."""
    return [str(node.name) for node in model.graph if node.op_type in _AT_RUN_TIME]
