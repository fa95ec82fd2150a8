"""INT8 for a ViT, from a float graph and calibration images to a graph with Q/DQ.

The order matters. First what is exact and needs no data: fewer operations, and the residual stream and the heads turned so that
no channel stands out (`prepare`). Then the images are seen once for the ranges, each GEMM input chooses how its channels share
a step, weights are rounded against the second moments of what they will multiply, biases take up what is left in the
mean (`Quantizer`). Nothing is put on residual sums, norms or GELU inputs: they stay float.

Source of the bias correction: Nagel et al. 2019 (Data-Free Quantization), arXiv:1906.04721, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.errors import UsageError, nearest
from vitdeploy.graph import fold, qdq, residual
from vitdeploy.graph.canonical import NAMES, canonicalise
from vitdeploy.graph.census import Plan
from vitdeploy.graph.structure import Attention, Linear, Site, Structure, recognise
from vitdeploy.quant import rounding
from vitdeploy.quant.calibrator import Want
from vitdeploy.quant.equalize import Choice, Limits, Step, choose, step
from vitdeploy.quant.moments import Moments, from_rows
from vitdeploy.quant.patches import quantize_patches
from vitdeploy.quant.statistics import Statistics

Array = NDArray[Any]
ROWS = 512
"""Token rows kept of each GEMM input."""
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
"""Exact rewrites beyond those of `vitdeploy.graph.canonical`, in their order."""
_WORTH_A_MUL = 0.8
"""Share of the error that may be left where factors cost a Mul in every run."""
_CLIPS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the range of q, k and v among which the one with the least square error is taken."""


@dataclass(frozen=True)
class Layout:
    """What a target reads.

    Attributes:
        symmetric: Activations are int8 around 0, not uint8.
        signed: Asymmetric activations are int8, not uint8 (ARM).
        attention: Queries, keys, values and probabilities are quantized too.
        integer_bias: Biases are int32 behind a DequantizeLinear.
        codes: Greatest code of a weight: 127, or 63 where products of uint8 and int8 saturate in pairs (x86 without VNNI).
        pixels: Mean and standard deviation, in units of one of the pixel's 256 values, that were taken from each channel of the
            input, when the patch embedding is to be quantized too; None leaves it float.
        lane_db: Least ratio of signal to noise of the median token, in dB; below it an input is not quantized statically.
    """

    symmetric: bool = False
    signed: bool = False
    attention: bool = False
    integer_bias: bool = False
    codes: int = 127
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    lane_db: float = 20.0


@dataclass
class Prepared:
    """A float graph after the exact rewrites."""

    model: ir.Model
    structure: Structure
    rewrites: dict[str, int]


@dataclass
class Outcome:
    """What became of a graph.

    Attributes:
        plan: The nodes that are meant to run in INT8.
        sites: For each GEMM input: what was chosen, and its error.
        notes: What a reader should know.
    """

    plan: Plan
    sites: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
            fold.rotate_values(attention, fold.head_rotation(_head_size(attention, 2)))
            count += 1
        if keys and plain_keys(attention):
            fold.rotate_keys(attention, fold.head_rotation(_head_size(attention, 0), seed=1))
            count += 1
    return count


def _head_size(attention: Attention, part: int) -> int:
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


def wants(structure: Structure, layout: Layout) -> list[Want]:
    """What calibration must observe: the GEMM inputs, and the outputs of the layers of q, k and v where they get a Q."""
    found = {site.name: Want(site.name, rows=ROWS) for site in structure.sites}
    if layout.attention:
        for attention in structure.attentions:
            if plain_keys(attention) and plain_values(attention):
                for linear in attention.linears:
                    assert linear is not None
                    found[str(linear.output.name)] = Want(str(linear.output.name), rows=ROWS)
    return list(found.values())


@dataclass
class Quantizer:
    """One graph on its way to INT8: `equalize`, then `round_weights`, then `emit`.

    Attributes:
        prepared: The float graph.
        layout: What the target reads.
        halves: Statistics of the two halves of the images; the same object twice where there is only one.
    """

    prepared: Prepared
    layout: Layout
    halves: tuple[Statistics, Statistics]
    choices: dict[str, Choice] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    lanes: set[str] = field(default_factory=set)
    attention: dict[str, Step] = field(default_factory=dict)
    rounded: dict[str, tuple[NDArray[np.int8], Array]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)

    def equalize(self) -> None:
        """Choose for every GEMM input how its channels share a step, and write it into the float graph."""
        by_value = {
            attention.projection: attention for attention in self.prepared.structure.attentions if plain_values(attention)
        }
        if self.layout.attention:
            for attention in self.prepared.structure.attentions:
                self._balance(attention)
        for site in self.prepared.structure.sites:
            name, behind = site.name, by_value.get(site.linears[0])
            first, second = (half.sketches[name] for half in self.halves)
            weight = np.concatenate([linear.weight for linear in site.linears], 1)
            choice = choose(first, second.rows if len(second.rows) else first.rows, weight, self._limits(site, behind))
            self._apply(site, behind, choice)
            self.choices[name] = choice
            low, high = zip(*(choice.reach(half.sketches[name]) for half in self.halves), strict=True)
            self.steps[name] = step(min(low) * choice.margin, max(high) * choice.margin, symmetric=self.layout.symmetric)
            rows = np.concatenate([half.sketches[name].rows for half in dict.fromkeys(self.halves)])
            self.rows[name] = ((rows - choice.shift) / choice.factor).astype(np.float32)
            if choice.token_db < self.layout.lane_db:
                self.lanes.add(name)
            self.sites.append(site)

    def _limits(self, site: Site, attention: Attention | None) -> Limits:
        free = site.kind == "norm" and site.only
        if site.kind == "context" and attention is not None:
            return Limits(self.layout.symmetric, not self.layout.attention, not self.layout.attention)
        if site.kind == "activation":
            return Limits(self.layout.symmetric, factors=True, shifts=False, better=_WORTH_A_MUL)
        return Limits(self.layout.symmetric, free, free)

    def _apply(self, site: Site, attention: Attention | None, choice: Choice) -> None:
        if choice.name == "identity":
            return
        if site.kind == "context":
            assert attention is not None and attention.rows is not None
            fold.shift_values(attention, choice.factor[attention.rows], choice.shift[attention.rows])
        else:
            fold.rescale_input(site, choice.factor, choice.shift)

    def _balance(self, attention: Attention) -> None:
        """Centre keys and values and give q, k and v of all heads one range: then one step serves all of them."""
        if not (plain_keys(attention) and plain_values(attention)):
            return
        low, high, mean = zip(*(self._channels(attention, part) for part in range(3)), strict=True)  # [h, d] each
        center = mean[1], mean[2]
        query = np.maximum(-low[0], high[0]).max(1)  # [h]
        key, value = (np.maximum(center[i] - low[i + 1], high[i + 1] - center[i]).max(1) for i in (0, 1))
        query, key, value = (np.maximum(each, 1e-6 * max(float(each.max()), 1e-12)) for each in (query, key, value))
        ratio = np.sqrt(key / query)  # q * ratio and k / ratio reach equally far
        reach = float((query * ratio).max())
        size = low[0].shape[1]
        fold.shift_keys(attention, np.repeat(ratio[:, None], size, 1), center[0])
        fold.shift_values(attention, np.repeat((value / reach)[:, None], size, 1), center[1])
        self._moved(attention, value / reach, center[1])
        whole = np.stack([ratio, 1 / ratio, reach / value])[:, :, None]  # [3, h, 1]: what q, k and v are multiplied by
        moved = np.stack([np.zeros_like(center[0]), *center])
        rows = [(self._part(attention, part) - moved[part]) * whole[part] for part in range(3)]  # [R, h, d] each
        steps = (step(-reach * clip, reach * clip, symmetric=True) for clip in _CLIPS)
        self.attention[attention.name] = min(steps, key=_lost(rows))

    def _channels(self, attention: Attention, part: int) -> tuple[Array, Array, Array]:
        linear, columns = attention.linears[part], attention.columns[part]
        assert linear is not None and columns is not None
        sketches = [half.sketches[str(linear.output.name)] for half in dict.fromkeys(self.halves)]
        low = np.minimum.reduce([sketch.channel_minimum for sketch in sketches])
        high = np.maximum.reduce([sketch.channel_maximum for sketch in sketches])
        seen = np.array([sketch.seen for sketch in sketches], np.float64)
        mean = np.average([sketch.channel_mean for sketch in sketches], 0, seen)
        return low[columns].astype(np.float64), high[columns].astype(np.float64), mean[columns]

    def _part(self, attention: Attention, part: int) -> Array:
        """Kept rows of q, k or v, float [R, h, d]."""
        linear, columns = attention.linears[part], attention.columns[part]
        assert linear is not None and columns is not None
        return np.concatenate([half.sketches[str(linear.output.name)].rows for half in dict.fromkeys(self.halves)])[:, columns]

    def _moved(self, attention: Attention, factor: Array, shift: Array) -> None:
        """Follow values that changed into the statistics of the projection's input."""
        rows, projection = attention.rows, attention.projection
        assert rows is not None and projection is not None
        whole, offset = np.ones(projection.shape[0]), np.zeros(projection.shape[0])
        whole[rows], offset[rows] = factor[:, None], shift
        for half in dict.fromkeys(self.halves):
            half.sketches[str(projection.input.name)].transform(whole, offset)

    def widths(self) -> dict[str, int]:
        """Tensors whose second moments `round_weights` needs, and their channels."""
        return {site.name: site.linears[0].shape[0] for site in self.sites}

    def round_weights(self, found: Iterable[tuple[str, Moments]] | None) -> None:
        """Round all weights; without moments of images those of the kept rows serve."""
        sites = {site.name: site for site in self.sites}
        originals = {site.name: name for site, name in zip(self.sites, self.choices, strict=True)}
        known = found or ((site.name, from_rows(self.rows[originals[site.name]])) for site in self.sites)
        for name, moments in known:
            self._round(sites[name], originals[name], moments)

    def _round(self, site: Site, name: str, moments: Moments) -> None:
        quantizer, lane = self.steps[name], name in self.lanes
        weight = np.concatenate([linear.weight for linear in site.linears], 1)
        scale = rounding.steps(weight, codes=self.layout.codes)
        second = moments.second.copy()
        if not lane:
            second[np.diag_indices(len(second))] += quantizer.scale**2 / 12
        codes = rounding.compensated(weight, scale, second, codes=self.layout.codes)
        rounded = codes * scale
        rows = self.rows[name]
        noise = np.zeros(len(weight)) if lane or not len(rows) else (quantizer(rows) - rows).mean(0, dtype=np.float64)
        lost = moments.mean @ (weight - rounded) - noise @ rounded
        start = 0
        for linear in site.linears:
            stop = start + linear.shape[1]
            linear.write(bias=linear.bias + lost[start:stop])
            self.rounded[linear.name] = codes[:, start:stop], scale[start:stop]
            start = stop

    def emit(self, pixels: Iterable[Array] = ()) -> Outcome:
        """Write the Q/DQ into the graph.

        Args:
            pixels: Some images as the model takes them, for the weights of the patch embedding.
        """
        gemms: list[str] = []
        dynamic: list[str] = []
        attention: list[str] = []
        report = []
        for site, (name, choice) in zip(self.sites, self.choices.items(), strict=True):
            lane, quantizer = name in self.lanes, self.steps[name]
            if not lane:
                self._quantize(site, quantizer)
            for linear in site.linears:
                codes, scale = self.rounded[linear.name]
                if not lane and self.layout.integer_bias:
                    qdq.quantize_bias(linear, scale * quantizer.scale)
                qdq.quantize_weight(linear, codes, scale)
                (dynamic if lane else gemms).append(linear.name)
            report.append(_row(site, name, choice, quantizer, lane=lane))
        for each in self.prepared.structure.attentions:
            if each.name in self.attention:
                self._quantize_attention(each, self.attention[each.name])
                attention += [str(each.scores.name), str(each.context.name)]
        if self.layout.pixels is not None:
            gemms += quantize_patches(self.prepared.model, self.layout.pixels, pixels, codes=self.layout.codes)
        lanes = [
            f"{name}: activations are quantized at run time, the median token would have {self.choices[name].token_db:.0f} dB"
            for name in self.choices
            if name in self.lanes
        ]
        return Outcome(Plan(gemms=tuple(gemms), dynamic=tuple(dynamic), attention=tuple(attention)), report, lanes)

    def _quantize(self, site: Site, quantizer: Step) -> None:
        groups: dict[ir.Value, list[Linear]] = {}
        for linear in site.linears:
            groups.setdefault(linear.input, []).append(linear)
        signed = self.layout.signed and quantizer.low == 0
        dtype: type[np.generic] = np.int8 if signed or quantizer.low else np.uint8
        for value, linears in groups.items():
            zero = quantizer.zero - 128 if signed else quantizer.zero
            qdq.quantize(value, quantizer.scale, zero, dtype, [(linear.matmul, 0) for linear in linears])

    def _quantize_attention(self, attention: Attention, quantizer: Step) -> None:
        """q, k and v before they are split into heads, with one step; probabilities in 255 steps from 0 to 1."""
        done: set[ir.Value] = set()
        for linear in attention.linears:
            assert linear is not None
            value = linear.output
            if value not in done:
                done.add(value)
                qdq.quantize(value, quantizer.scale, 0, np.int8, [(use.node, use.idx) for use in value.uses()])
        qdq.quantize(attention.softmax.outputs[0], float(np.float32(1 / 255)), 0, np.uint8, [(attention.context, 0)])


def _lost(parts: Sequence[Array]) -> Callable[[Step], float]:
    """What a step loses of tensors: the sum over them of noise to signal, by squares."""

    def lost(quantizer: Step) -> float:
        return sum(float(np.square(quantizer(part) - part).sum() / max(float(np.square(part).sum()), 1e-30)) for part in parts)

    return lost


def _row(site: Site, name: str, choice: Choice, quantizer: Step, *, lane: bool) -> dict[str, Any]:
    return {
        "tensor": name,
        "kind": site.kind,
        "layers": [linear.name for linear in site.linears],
        "chosen": choice.name,
        "margin": choice.margin,
        "error_db": round(10 * float(np.log10(max(choice.error, 1e-30))), 2),
        "untouched_db": round(10 * float(np.log10(max(choice.identity, 1e-30))), 2),
        "token_db": round(choice.token_db, 2),
        "scale": quantizer.scale,
        "zero": quantizer.zero,
        "lane": lane,
    }
