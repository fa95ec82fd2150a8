"""INT8 weights alone: activations are quantized at run time, or stay float. No images are needed."""

from __future__ import annotations

from vitdeploy.backends.table import find_target
from vitdeploy.graph import qdq
from vitdeploy.proof.census import Plan
from vitdeploy.quant import rounding
from vitdeploy.quant.preparation import Layout, Prepared
from vitdeploy.recipe import QuantizeConfig


def quantize_weights(prepared: Prepared, config: QuantizeConfig, layout: Layout) -> Plan:
    """INT8 weights, and activations at run time or not at all; no images."""
    names = []
    integer = config.precision == "int8-dynamic" and find_target(config.target).integer_products
    for linear in prepared.structure.linears:
        weight = linear.weight
        scale = rounding.steps(weight, codes=layout.codes)
        codes = rounding.nearest(weight, scale, codes=layout.codes)
        names.append(f"{linear.name}Integer" if integer else linear.name)
        if integer:
            qdq.quantize_at_run_time(prepared.editor, linear, codes, scale)
        else:
            qdq.quantize_weight(prepared.editor, linear, codes, scale)
    prepared.editor.check_interface(config.precision)
    return Plan(dynamic=tuple(names))
