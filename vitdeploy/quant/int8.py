"""8 bits for a ViT, from a float graph and calibration images to a graph with Q/DQ.

The order matters. First what is exact and needs no data: fewer operations, and the residual stream and the heads turned so that
no channel stands out (`preparation.prepare`). Then the images are seen once for the ranges, each GEMM input chooses how its
channels share a step, weights are rounded against the second moments of what they will multiply, biases take up what is left in
the mean (`Quantizer`). Nothing is put on residual sums, norms or GELU inputs: they stay float.

Source of the bias correction: Nagel et al. 2019 (Data-Free Quantization), arXiv:1906.04721, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph import qdq
from vitdeploy.graph.exact import fold
from vitdeploy.graph.linear import Linear
from vitdeploy.graph.structure import Attention, Site, Structure
from vitdeploy.proof.census import Plan
from vitdeploy.quant import products, rounding
from vitdeploy.quant.calibrator import Want
from vitdeploy.quant.equalize import Choice, Grid, Limits, Step, choose, step
from vitdeploy.quant.moments import Moments, from_rows
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.patches import quantize_patches
from vitdeploy.quant.preparation import Layout, Prepared, plain_values
from vitdeploy.quant.shares import describe_share
from vitdeploy.record import SiteChoice

Array = NDArray[Any]
ROWS = 512
"""Token rows kept of each GEMM input."""
_WORTH_A_MUL = 0.8
"""Share of the error that may be left where factors cost a Mul in every run."""
_CLIPS = (0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the range of q, k and v among which the one with the least square error is taken."""


@dataclass
class Outcome:
    """What became of a graph.

    Attributes:
        plan: The nodes that are meant to run in INT8.
        sites: For each GEMM input: what was chosen, and its error.
        notes: What a reader should know.
    """

    plan: Plan
    sites: list[SiteChoice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def wants(structure: Structure, layout: Layout) -> list[Want]:
    """What calibration must observe: the GEMM inputs, and the outputs of the layers of q, k and v where they get a Q."""
    wanted = {site.name: Want(site.name, rows=ROWS) for site in structure.sites}
    for attention in structure.attentions:
        if products.chosen(attention, layout):
            for linear in attention.linears:
                assert linear is not None
                wanted[str(linear.output.name)] = Want(str(linear.output.name), rows=ROWS)
    return list(wanted.values())


@dataclass
class Quantizer:
    """One graph on its way to 8 bits: `equalize`, then `round_weights`, then `emit`.

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
    attention: dict[str, tuple[Step, Step, Step]] = field(default_factory=dict)
    rounded: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)

    def equalize(self) -> None:
        """Choose for every GEMM input how its channels share a step, and write it into the float graph."""
        by_value = {
            attention.projection: attention for attention in self.prepared.structure.attentions if plain_values(attention)
        }
        for attention in self.prepared.structure.attentions:
            if products.chosen(attention, self.layout):
                self._balance(attention)
        for site in self.prepared.structure.sites:
            name, behind = site.name, by_value.get(site.linears[0])
            first, second = (half.sketches[name] for half in self.halves)
            weight = np.concatenate([linear.weight for linear in site.linears], 1)
            choice = choose(first, second.rows if len(second.rows) else first.rows, weight, self._limits(site, behind))
            self._apply(site, behind, choice)
            self.choices[name] = choice
            low, high = zip(*(choice.reach(half.sketches[name]) for half in self.halves), strict=True)
            self.steps[name] = self._step(min(low) * choice.margin, max(high) * choice.margin)
            rows = np.concatenate([half.sketches[name].rows for half in dict.fromkeys(self.halves)])
            self.rows[name] = ((rows - choice.shift) / choice.factor).astype(np.float32)
            if choice.token_db < self.layout.lane_db:
                self.lanes.add(name)
                if behind is not None and self.layout.half:  # all of attention's places, or none
                    self.attention.pop(behind.name, None)
            self.sites.append(site)

    def _step(self, low: float, high: float) -> Step:
        quantizer = step(low, high, self.layout.grid)
        return quantizer.in_half() if self.layout.half else quantizer

    def _limits(self, site: Site, attention: Attention | None) -> Limits:
        free = site.kind == "norm" and site.only
        if site.kind == "context" and attention is not None:
            moved = attention.name in self.attention  # its values are even already
            return Limits(self.layout.grid, not moved, not moved)
        if site.kind == "activation":
            return Limits(self.layout.grid, factors=True, shifts=False, better=_WORTH_A_MUL)
        return Limits(self.layout.grid, free, free)

    def _apply(self, site: Site, attention: Attention | None, choice: Choice) -> None:
        if choice.name == "identity":
            return
        if site.kind == "context":
            assert attention is not None and attention.rows is not None
            fold.shift_values(self.prepared.editor, attention, choice.factor[attention.rows], choice.shift[attention.rows])
        else:
            fold.rescale_input(self.prepared.editor, site, choice.factor, choice.shift)

    def _balance(self, attention: Attention) -> None:
        """Centre keys and values and give q, k and v of all heads one range: then one step serves all of them."""
        low, high, mean = zip(*(self._channels(attention, part) for part in range(3)), strict=True)  # [h, d] each
        center = mean[1], mean[2]
        query = np.maximum(-low[0], high[0]).max(1)  # [h]
        key, value = (np.maximum(center[i] - low[i + 1], high[i + 1] - center[i]).max(1) for i in (0, 1))
        query, key, value = (np.maximum(each, 1e-6 * max(float(each.max()), 1e-12)) for each in (query, key, value))
        ratio = np.sqrt(key / query)  # q * ratio and k / ratio reach equally far
        reach = float((query * ratio).max())
        size = low[0].shape[1]
        fold.shift_keys(self.prepared.editor, attention, np.repeat(ratio[:, None], size, 1), center[0])
        fold.shift_values(self.prepared.editor, attention, np.repeat((value / reach)[:, None], size, 1), center[1])
        self._follow(attention, value / reach, center[1])
        whole = np.stack([ratio, 1 / ratio, reach / value])[:, :, None]  # [3, h, 1]: what q, k and v are multiplied by
        moved = np.stack([np.zeros_like(center[0]), *center])
        rows = [(self._part(attention, part) - moved[part]) * whole[part] for part in range(3)]  # [R, h, d] each
        first, second, third = self._choose_steps(reach, rows)
        self.attention[attention.name] = first, second, third

    def _choose_steps(self, reach: float, rows: Sequence[Array]) -> Iterator[Step]:
        """The steps of q, k and v: each its own right before the products, one for all of them in a packed tensor."""
        grid: Grid = "fp8" if self.layout.floating else "int8"
        steps = [step(-reach * clip, reach * clip, grid) for clip in _CLIPS]
        if self.layout.half:
            steps = [each.in_half() for each in steps]
        for part in rows:
            yield min(steps, key=_measure_loss([part] if self.layout.half else rows))

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

    def _follow(self, attention: Attention, factor: Array, shift: Array) -> None:
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

    def round_weights(self, known: Iterable[tuple[str, Moments]] | None) -> None:
        """Round all weights; without moments of images those of the kept rows serve."""
        sites = {site.name: site for site in self.sites}
        originals = {site.name: name for site, name in zip(self.sites, self.choices, strict=True)}
        known = known or ((site.name, from_rows(self.rows[originals[site.name]])) for site in self.sites)
        for name, moments in known:
            self._round(sites[name], originals[name], moments)

    def _round(self, site: Site, name: str, moments: Moments) -> None:
        quantizer, lane = self.steps[name], name in self.lanes
        weight = np.concatenate([linear.weight for linear in site.linears], 1)
        if lane and self.layout.half:
            return
        rows = self.rows[name]
        scale = rounding.steps(weight, codes=self.layout.codes, half=self.layout.half)
        second = moments.second.copy()
        if not lane:
            second[np.diag_indices(len(second))] += quantizer.noise(rows)
        codes = rounding.compensate(weight, scale, second, codes=self.layout.codes)
        rounded = codes.astype(np.float32) * scale
        noise = np.zeros(len(weight)) if lane or not len(rows) else (quantizer(rows) - rows).mean(0, dtype=np.float64)
        lost = moments.mean @ (weight - rounded) - noise @ rounded
        start = 0
        for linear in site.linears:
            stop = start + linear.shape[1]
            linear.write(self.prepared.editor, bias=linear.bias + lost[start:stop])
            self.rounded[linear.name] = codes[:, start:stop], scale[start:stop]
            start = stop

    def emit(self, pixels: Iterable[Array] = ()) -> Outcome:
        """Write the Q/DQ into the graph.

        Args:
            pixels: Some images as the model takes them, for the weights of the patch embedding.
        """
        editor = self.prepared.editor
        gemms: list[str] = []
        dynamic: list[str] = []
        attention: list[str] = []
        report = []
        for site, (name, choice) in zip(self.sites, self.choices.items(), strict=True):
            lane, quantizer = name in self.lanes, self.steps[name]
            report.append(_row(site, name, choice, quantizer, lane=lane))
            if lane and self.layout.half:
                continue
            if not lane:
                self._quantize(site, quantizer)
            for linear in site.linears:
                codes, scale = self.rounded[linear.name]
                if not lane and self.layout.integer_bias and (self.layout.fixed or _is_matrix(linear.input)):
                    qdq.quantize_bias(editor, linear, scale * quantizer.scale)
                    qdq.separate_relu(editor, linear)
                qdq.quantize_weight(editor, linear, codes, scale[0] if self.layout.floating else scale)
                (dynamic if lane else gemms).append(linear.name)
        for each in self.prepared.structure.attentions:
            if each.name in self.attention:
                products.place(editor, each, self.attention[each.name], self.layout)
                attention += [str(each.scores.name), str(each.context.name)]
        if self.layout.pixels is not None:
            gemms += quantize_patches(editor, self.layout.pixels, pixels, codes=self.layout.codes)
        instead = "stays FP16" if self.layout.half else "activations are quantized at run time"
        notes = [
            f"{name}: {instead}, the median token would have {self.choices[name].token_db:.0f} dB"
            for name in self.choices
            if name in self.lanes
        ]
        notes += products.note_skipped(self.prepared.structure, self.layout)
        notes += [share] if (share := describe_share(editor.graph, {*gemms, *dynamic})) else []
        editor.check_interface("quantize")
        return Outcome(Plan(gemms=tuple(gemms), dynamic=tuple(dynamic), attention=tuple(attention)), report, notes)

    def _quantize(self, site: Site, quantizer: Step) -> None:
        groups: dict[ir.Value, list[Linear]] = {}
        for linear in site.linears:
            groups.setdefault(linear.input, []).append(linear)
        signed = self.layout.signed and quantizer.low == 0
        dtype: np.dtype[Any] = np.dtype(np.int8 if signed or quantizer.low else np.uint8)
        dtype = qdq.E4M3 if quantizer.floating else dtype
        for value, linears in groups.items():
            zero = quantizer.zero - 128 if signed else quantizer.zero
            codes = qdq.Codes(quantizer.scale, zero, dtype)
            qdq.quantize(self.prepared.editor, value, codes, [(linear.matmul, 0) for linear in linears])


def _is_matrix(value: ir.Value) -> bool:
    """Whether a value has a vector for each image, and no tokens."""
    return value.shape is not None and len(value.shape) == 2


def _measure_loss(parts: Sequence[Array]) -> Callable[[Step], float]:
    """What a step loses of tensors: the sum over them of noise to signal, by squares."""

    def measure(quantizer: Step) -> float:
        return sum(float(np.square(quantizer(part) - part).sum() / max(float(np.square(part).sum()), 1e-30)) for part in parts)

    return measure


def _row(site: Site, name: str, choice: Choice, quantizer: Step, *, lane: bool) -> SiteChoice:
    return SiteChoice(
        tensor=name,
        kind=site.kind,
        layers=tuple(linear.name for linear in site.linears),
        chosen=choice.name,
        margin=choice.margin,
        error_db=round(10 * float(np.log10(max(choice.error, 1e-30))), 2),
        untouched_db=round(10 * float(np.log10(max(choice.identity, 1e-30))), 2),
        token_db=round(choice.token_db, 2),
        scale=quantizer.scale,
        zero=quantizer.zero,
        lane=lane,
    )
