"""Quantized products as ONNX Runtime's own operator, in place of a pattern that its optimiser must recognise.

DequantizeLinear, DequantizeLinear, MatMul, Add become one MatMulIntegerToFloat with the bias inside. The optimiser makes the
same of the pattern, but leaves the bias outside, and with a fixed batch it first makes a Gemm, which it then runs in float.
"""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.structure import constant

DOMAIN = "com.microsoft"


def fuse(model: ir.Model) -> int:
    """Write every product of two dequantized tensors, the second a constant, as MatMulIntegerToFloat, in place.

    Returns:
        How many there were. Nodes keep the names of the MatMuls.
    """
    graph = model.graph
    found = [node for node in graph if node.op_type == "MatMul" and _dequantized(node)]
    for node in found:
        left, right = (value.producer() for value in node.inputs if value is not None)
        assert left is not None and right is not None
        factors = [(left.inputs[place], right.inputs[place]) for place in range(3)]
        inputs = [value for pair in factors for value in pair]  # A, B, their scales, their zero points
        last = _bias(node) or node
        if last is not node:
            inputs.append(last.inputs[1])
        fused = ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN, name=node.name)
        old, new = last.outputs[0], fused.outputs[0]
        graph.insert_before(node, fused)
        new.name, new.shape, new.type = f"{old.name}.fused", old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        for each in dict.fromkeys((last, node)):
            graph.remove(each, safe=True)
    for node in [node for node in graph if node.op_type == "DequantizeLinear" and not list(node.outputs[0].uses())]:
        graph.remove(node, safe=True)
    if found:
        model.opset_imports[DOMAIN] = 1
    return len(found)


def _bias(node: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone takes the product."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    vector = constant(users[0].inputs[1])
    return users[0] if vector is not None and vector.ndim == 1 and vector.size > 1 else None


def _dequantized(node: ir.Node) -> bool:
    """Whether both factors come from a DequantizeLinear with a zero point, and the second holds a constant matrix."""
    makers = [None if value is None else value.producer() for value in node.inputs]
    if any(maker is None or maker.op_type != "DequantizeLinear" or len(maker.inputs) < 3 for maker in makers):
        return False
    codes = makers[1].inputs[0] if makers[1] is not None else None
    return codes is not None and codes.producer() is None and codes.const_value is not None and len(codes.const_value.shape) == 2
