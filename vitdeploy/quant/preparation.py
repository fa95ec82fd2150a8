"""What comes before any rounding: a ViT's graph without what it does not need, its channels turned so that none stands out.

All of it is exact and needs no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.errors import UsageError, nearest
from vitdeploy.graph.canonical.rewrites import NAMES, canonicalise
from vitdeploy.graph.exact import fold, residual
from vitdeploy.graph.structure import Attention, Structure, recognise
from vitdeploy.quant.equalize import Grid

REWRITES = (
    "normalisation",
    "layer-scale",
    "query-scale",
    "pack",
    "class-token",
    "norm-affine",
    "rotation",
    "head-rotation",
)
"""Exact rewrites beyond those of `vitdeploy.graph.canonical.rewrites`, in their order."""


@dataclass(frozen=True)
class Layout:
    """What a target reads.

    Attributes:
        symmetric: Activations are int8 around 0, not uint8.
        floating: Activations and weights are 8-bit floats (E4M3), not whole numbers.
        half: For TensorRT: the float parts become FP16. So steps are FP16 numbers, what is not quantized statically stays
            FP16, and inside attention queries, keys and values are quantized right before the products.
        signed: Asymmetric activations are int8, not uint8 (ARM).
        attention: Queries, keys, values and probabilities are quantized too.
        integer_bias: Biases are int32 behind a DequantizeLinear.
        codes: Greatest code of a weight: 127, 448 with ``floating``, or 63 where products of uint8 and int8 saturate in pairs
            (x86 without VNNI).
        pixels: Mean and standard deviation, in units of one of the pixel's 256 values, that were taken from each channel of the
            input, when the patch embedding is to be quantized too; None leaves it float.
        lane_db: Least ratio of signal to noise of the median token, in dB; below it an input is not quantized statically.
    """

    symmetric: bool = False
    floating: bool = False
    half: bool = False
    signed: bool = False
    attention: bool = False
    integer_bias: bool = False
    codes: int = 127
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    lane_db: float = 20.0

    @property
    def grid(self) -> Grid:
        """What activations are rounded to."""
        return "fp8" if self.floating else "int8" if self.symmetric else "uint8"


@dataclass
class Prepared:
    """A float graph after the exact rewrites."""

    model: ir.Model
    structure: Structure
    rewrites: dict[str, int]


def prepare(model: ir.Model, layout: Layout, skip: Sequence[str] = ()) -> Prepared:
    """Bring a graph into its canonical form and apply the exact rewrites, in place.

    Raises:
        InputError: VD3023 no ViT in it; VD3025 an operator or operator set that can't be edited.
        UsageError: VD2003, a rewrite to skip that does not exist.
    """
    if unknown := [name for name in skip if name not in (*NAMES, *REWRITES)]:
        fix = nearest(unknown[0], (*NAMES, *REWRITES)) or f"choose from: {', '.join((*NAMES, *REWRITES))}"
        raise UsageError("VD2003", f"there is no rewrite {unknown[0]!r}", fix=fix)
    ours = [name for name in skip if name in REWRITES]
    found = {each.name: len(each.nodes) for each in canonicalise(model, skip=[name for name in skip if name not in ours])}
    structure = recognise(model)
    steps: dict[str, Callable[[Structure], int]] = {
        "normalisation": lambda _: len(fold.normalisation(model)),
        "layer-scale": lambda known: len(fold.layer_scale(known)),
        "query-scale": lambda known: len(fold.query_scale(known)),
        "pack": lambda known: len(fold.pack(known)),
        "class-token": lambda known: len(residual.class_token(model, known)),
        "norm-affine": lambda known: sum(fold.norm_affine(site) for site in known.sites),
        "rotation": _rotate,
        "head-rotation": lambda known: _rotate_heads(known, keys=layout.attention),
    }
    for name, apply in steps.items():
        if name not in ours and (name != "rotation" or "norm-affine" not in ours):
            found[name] = apply(structure)
            structure = recognise(model)
    return Prepared(model, structure, {name: count for name, count in found.items() if count})


def _rotate(structure: Structure) -> int:
    norms = [site for site in structure.sites if site.kind == "norm"]
    if not norms or not all(site.only for site in norms):
        return 0
    width = norms[0].linears[0].shape[0]
    return len(norms) if residual.rotate(structure, fold.rotation(width)) else 0


def _rotate_heads(structure: Structure, *, keys: bool) -> int:
    count = 0
    for attention in structure.attentions:
        if plain_values(attention):
            fold.rotate_values(attention, fold.head_rotation(head_size(attention, 2)))
            count += 1
        if keys and plain_keys(attention):
            fold.rotate_keys(attention, fold.head_rotation(head_size(attention, 0), seed=1))
            count += 1
    return count


def head_size(attention: Attention, part: int) -> int:
    """Channels of a head of q (0), k (1) or v (2), where nothing computes behind their layer."""
    columns = attention.columns[part]
    assert columns is not None
    return int(columns.shape[1])


def plain_values(attention: Attention) -> bool:
    """Whether nothing computes between the values' layer and the projection but the attention itself."""
    known = attention.linears[2] is not None and attention.columns[2] is not None
    return known and attention.projection is not None and attention.rows is not None


def plain_keys(attention: Attention) -> bool:
    """Whether nothing computes between the layers of q and k and the scores, so that both can be moved together."""
    both = all(part is not None for part in (*attention.columns[:2], *attention.linears[:2]))
    return both and attention.columns[0].shape == attention.columns[1].shape  # type: ignore[union-attr]
