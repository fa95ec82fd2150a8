"""Quantized products as ONNX Runtime's own operator, in place of a pattern that its optimiser must recognise.

DequantizeLinear, DequantizeLinear, MatMul, Add become one MatMulIntegerToFloat with the bias inside. The optimiser makes the
same of the pattern, but leaves the bias outside, and with a fixed batch it first makes a Gemm, which it then runs in float.
"""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import MICROSOFT, constant, only_user


def fuse_products(editor: Editor) -> int:
    """Write every product of two dequantized tensors, the second a constant, as MatMulIntegerToFloat.

    Returns:
        How many there were. Nodes keep the names of the MatMuls.
    """
    products = [node for node in editor.graph if node.op_type == "MatMul" and _is_dequantized(node)]
    for node in products:
        left, right = (value.producer() for value in node.inputs if value is not None)
        assert left is not None and right is not None
        factors = [(left.inputs[place], right.inputs[place]) for place in range(3)]
        inputs = [value for pair in factors for value in pair]  # A, B, their scales, their zero points
        add = _find_bias(node)
        if add is not None:
            inputs.append(add.inputs[1])
        node.op_type, node.domain = "MatMulIntegerToFloat", MICROSOFT
        node.resize_inputs(len(inputs))
        for place, value in reversed(list(enumerate(inputs))):  # what a DequantizeLinear lets go of is used by then
            assert value is not None
            editor.rewire(node, place, value)
        if add is not None:
            editor.replace(add.outputs[0], node.outputs[0])
    if products:
        editor.model.opset_imports[MICROSOFT] = 1
    return len(products)


def _find_bias(node: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone takes the product."""
    add = only_user(node.outputs[0], "Add")
    vector = None if add is None else constant(add.inputs[1])
    return add if vector is not None and vector.ndim == 1 and vector.size > 1 else None


def _is_dequantized(node: ir.Node) -> bool:
    """Whether both factors come from a DequantizeLinear with a zero point, and the second holds a constant matrix."""
    makers = [None if value is None else value.producer() for value in node.inputs]
    if any(maker is None or maker.op_type != "DequantizeLinear" or len(maker.inputs) < 3 for maker in makers):
        return False
    codes = makers[1].inputs[0] if makers[1] is not None else None
    return codes is not None and codes.producer() is None and codes.const_value is not None and len(codes.const_value.shape) == 2
