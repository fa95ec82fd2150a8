"""What a target's engine reads best: the form of a quantized graph, from the settings alone."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.backends.table import ANY_HEADS, find_target
from vitdeploy.graph import qdq
from vitdeploy.quant.preparation import Layout
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.spec import InputContract


def choose_layout(config: QuantizeConfig, contract: InputContract, *, fixed: bool) -> Layout:
    """What the target reads best.

    Args:
        config: Target, instruction set, attention.
        contract: The input's normalisation.
        fixed: Whether the model's batch is fixed.
    """
    target = find_target(config.target)
    return Layout(
        symmetric=target.symmetric,
        floating=config.precision == "fp8",
        half=target.half,
        signed=config.isa == "neon-dotprod" and target.signed_on_arm,
        attention=config.attention,
        heads=target.find_heads(config.precision) or ANY_HEADS,
        pixels=_pixels(contract) if target.raw_pixels else None,
        integer_bias=target.integer_bias and not target.integer_products,
        fixed=fixed,
        codes=_codes(config),
        lane_db=config.lane_db,
    )


def _codes(config: QuantizeConfig) -> int:
    """Greatest code of a weight."""
    if config.precision == "fp8":
        return qdq.LARGEST_E4M3
    return 63 if config.isa == "avx2" else 127


def _pixels(contract: InputContract) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the input's channels in steps of a pixel; 0 and 1 where it is raw."""
    if contract.tensor != "float32-nchw":
        return (0.0,) * contract.channels, (1.0,) * contract.channels
    return tuple(255 * mean for mean in contract.mean), tuple(255 * std for std in contract.std)


def has_fixed_batch(model: ir.Model) -> bool:
    """Whether the model takes batches of one size only."""
    shape = model.graph.inputs[0].shape
    return shape is not None and len(shape) > 0 and isinstance(shape[0], int)
