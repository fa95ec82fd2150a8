"""Where in a ViT's graph one can look: the tensors that stand for a module's output, by the module's path.

Files that were written here name their nodes by module; the names survive quantization and conversion. Any other file is read by
what every ViT has, in the order of the graph: softmaxes, and what LayerNormalizations read.
"""

from __future__ import annotations

import re

from vitdeploy.onnxfile.model import Model, Node

CONTEXT = "context"
"""Behind a block's ``attn``: what attention gives, before its projection."""

_LINEAR = re.compile(r"(?:^|[./])(blocks\.\d+\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2))/(Add|Gemm|MatMul)$")
_BLOCK = re.compile(r"(?:^|[./])(blocks\.\d+)/Add(?:_\d+)?$")
_ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"))
_PRODUCTS = frozenset(("MatMul", "Gemm", "MatMulInteger", "MatMulIntegerToFloat"))


def find_points(model: Model) -> dict[str, str]:
    """Points to tensors, in the order of the graph.

    Returns:
        ``blocks.0.attn.qkv``, ``blocks.0.attn.context``, ``blocks.0.attn.proj``, ``blocks.0.mlp.fc1``, ``blocks.0.mlp.fc2`` and
        ``blocks.0``, each of its output; else ``softmax.0`` and ``stream.0`` (what a LayerNormalization reads), by number.
    """
    nodes = model.main.nodes
    makers = {name: node for node in nodes for name in node.outputs}
    named: dict[str, str] = {}
    for node in nodes:
        linear, block = _LINEAR.search(node.name), _BLOCK.search(node.name)
        if linear is not None and node.outputs:
            if linear[1].endswith("attn.proj") and node.type in _PRODUCTS:
                named[linear[1].replace("proj", CONTEXT)] = _find_float(node.inputs[0], makers)
            named.pop(linear[1], None)  # the sum with the bias stands behind the product
            named[linear[1]] = node.outputs[0]
        elif block is not None:
            named.pop(block[1], None)
            named[block[1]] = node.outputs[0]
    return named or _number(nodes)


def _find_float(tensor: str, makers: dict[str, Node]) -> str:
    """What was rounded, scaled or converted to this tensor."""
    while (node := makers.get(tensor)) is not None and (node.type in _ROUNDING or node.name.endswith(".equalise/Mul")):
        tensor = node.inputs[0]
    return tensor


def _number(nodes: list[Node]) -> dict[str, str]:
    points: dict[str, str] = {}
    counts = {"softmax": 0, "stream": 0}
    for node in nodes:
        kind = {"Softmax": "softmax", "LayerNormalization": "stream"}.get(node.type)
        tensor = "" if kind is None else node.outputs[0] if kind == "softmax" else node.inputs[0]
        if kind is not None and tensor not in points.values():
            points[f"{kind}.{counts[kind]}"] = tensor
            counts[kind] += 1
    return points
