"""What comes before any rounding: a ViT's graph without what it does not need, its channels turned so that none stands out.

All of it is exact and needs no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import onnx_ir as ir

from vitdeploy.backends.table import ANY_HEADS, Heads
from vitdeploy.errors import UsageError, nearest
from vitdeploy.graph.canonical.rewrites import NAMES, canonicalise
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold, rotate
from vitdeploy.graph.exact.class_token import keep_class_token
from vitdeploy.graph.exact.head_axes import give_heads_an_axis
from vitdeploy.graph.merging.rewrite import count_protected, count_tokens, list_blocks, merge_tokens
from vitdeploy.graph.structure import Attention, Structure, recognise
from vitdeploy.quant.equalize import Grid
from vitdeploy.schedule import resolve_schedule
from vitdeploy.spec import ModelSpec

REWRITES = (
    "normalisation",
    "layer-scale",
    "query-scale",
    "pack",
    "heads",
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
        heads: Those for which the target has an attention in 8 bits.
        integer_bias: Biases of products of two matrices are int32 behind a DequantizeLinear: the engine makes a Gemm of them.
        fixed: The batch is fixed, so that the engine takes every product for one of two matrices.
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
    heads: Heads = ANY_HEADS
    integer_bias: bool = False
    fixed: bool = False
    codes: int = 127
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    lane_db: float = 20.0

    @property
    def grid(self) -> Grid:
        """What activations are rounded to."""
        return "fp8" if self.floating else "int8" if self.symmetric else "uint8"


@dataclass
class Prepared:
    """A float graph after the exact rewrites, and the editor that all further edits go through."""

    editor: Editor
    structure: Structure
    rewrites: dict[str, int]

    @property
    def model(self) -> ir.Model:
        """The model that is edited."""
        return self.editor.model


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
    counts = {each.name: len(each.nodes) for each in canonicalise(model, skip=[name for name in skip if name not in ours])}
    editor, structure = Editor(model), recognise(model)
    steps: dict[str, Callable[[Structure], int]] = {
        "normalisation": lambda _: len(fold.fold_normalisation(editor)),
        "layer-scale": lambda known: len(fold.fold_layer_scale(editor, known)),
        "query-scale": lambda known: len(fold.fold_query_scale(editor, known)),
        "pack": lambda known: len(fold.pack_qkv(editor, known)),
        "heads": lambda known: len(give_heads_an_axis(editor, known)),
        "class-token": lambda known: len(keep_class_token(editor, known)),
        "norm-affine": lambda known: sum(fold.fold_norm_affine(editor, site) for site in known.sites),
        "rotation": lambda known: _rotate(editor, known),
        "head-rotation": lambda known: _rotate_heads(editor, known, keys=layout.attention),
    }
    for name, apply in steps.items():
        if name not in ours and (name != "rotation" or "norm-affine" not in ours):
            counts[name] = apply(structure)
            editor.check_interface(name)
            structure = recognise(model)
    return Prepared(editor, structure, {name: count for name, count in counts.items() if count})


def merge(prepared: Prepared, spec: ModelSpec, schedule: str) -> ModelSpec:
    """Let a graph merge tokens, in place; what comes before is exact, this is another function.

    Args:
        prepared: The graph.
        spec: Its own.
        schedule: As `vitdeploy.schedule` reads it.

    Returns:
        The spec with what is merged.

    Raises:
        UsageError: VD2003, the schedule is none of this model; VD2011, tokens of this graph can't be merged.
    """
    protected = spec.prefix if spec.network == "vit" else count_protected(prepared.model, prepared.structure)
    if spec.merged or protected is None:
        why = "it merges tokens already" if spec.merged else "how many are patches is not known: no convolution makes them"
        raise UsageError("VD2011", f"tokens can't be merged: {why}", fix="leave out --merge-tokens")
    blocks = list_blocks(prepared.structure)
    merged = resolve_schedule(schedule, len(blocks), count_tokens(blocks[0]), protected)
    names = merge_tokens(prepared.editor, prepared.structure, merged, protected)
    prepared.editor.check_interface("merge-tokens")
    prepared.structure = recognise(prepared.model)
    prepared.rewrites["merge-tokens"] = len(names)
    return msgspec.structs.replace(spec, merged=merged)


def _rotate(editor: Editor, structure: Structure) -> int:
    """The norms that read a stream that was turned; a network of stages has a stream for each width."""
    widths = [site.linears[0].shape[0] for site in structure.sites if site.kind == "norm"]
    count = 0
    for width in dict.fromkeys(widths):
        norms = [site for site in structure.sites if site.kind == "norm" and site.linears[0].shape[0] == width]
        if all(site.only for site in norms) and rotate.rotate_stream(editor, structure, rotate.make_rotation(width)):
            count += len(norms)
            structure = recognise(editor.model)
    return count


def _rotate_heads(editor: Editor, structure: Structure, *, keys: bool) -> int:
    count = 0
    for attention in structure.attentions:
        if plain_values(attention):
            rotate.rotate_values(editor, attention, rotate.make_head_rotation(head_size(attention, 2)))
            count += 1
        if keys and plain_keys(attention):
            rotate.rotate_keys(editor, attention, rotate.make_head_rotation(head_size(attention, 0), seed=1))
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
