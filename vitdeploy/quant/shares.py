"""How much of a model runs in 8 bits, and what does not: a layer that stays in float is named, never passed over."""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from vitdeploy.graph.query import sizes

_LEAST = 0.005
"""Share of the multiplications from which a layer in float is named: the head of a classifier stays below."""
_MOST_NAMES = 5


def describe_share(graph: ir.Graph, in_8_bits: Collection[str]) -> str:
    """One sentence: the share of the linear layers' multiplications in 8 bits, and the layers that stay in float.

    Args:
        graph: With its Q/DQ; shapes are those of one image.
        in_8_bits: Names of the products that are meant to run in 8 bits.

    Returns:
        For a reader; "" for a graph without linear layers of known size.
    """
    counts = {str(node.name): count for node in graph if (count := _count_multiplications(node))}
    total = sum(counts.values())
    if not total:
        return ""
    left = sorted((name for name in counts if name not in in_8_bits), key=lambda name: -counts[name])
    named = [f"{name} ({100 * counts[name] / total:.1f} %)" for name in left if counts[name] >= _LEAST * total]
    share = 100 * (1 - sum(counts[name] for name in left) / total)
    more = f" and {len(named) - _MOST_NAMES} more" if len(named) > _MOST_NAMES else ""
    float_layers = f"; in float: {', '.join(named[:_MOST_NAMES])}{more}" if named else ""
    return f"{share:.1f} % of the linear layers' multiplications are in 8 bits{float_layers}"


def _count_multiplications(node: ir.Node) -> int:
    """Of a product with a weight, for one image; a size that the file does not say counts as 1."""
    if node.op_type != "MatMul" or node.domain != "":
        return 0
    weight, source = node.inputs[1], sizes(node.inputs[0])
    maker = None if weight is None else weight.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        weight, maker = maker.inputs[0], None if maker.inputs[0] is None else maker.inputs[0].producer()
    shape = sizes(weight)
    if maker is not None or weight is None or weight.const_value is None or shape is None or len(shape) != 2:
        return 0
    tokens = [size for size in (source or ())[1:-1] if isinstance(size, int)]
    return math.prod(size for size in (*tokens, *shape) if isinstance(size, int))
