"""The work of the verb `quantize`, step by step: rewrite, observe, equalize, round, write, and try what was written."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import METADATA_SPEC, Artifact, Record, sanitize, seal
from vitdeploy.backends.base import OpenConfig, count_threads
from vitdeploy.backends.table import find_target, list_packages
from vitdeploy.errors import UsageError
from vitdeploy.graph import storage
from vitdeploy.graph.exact.integer_products import fuse_products
from vitdeploy.graph.half.convert import to_half
from vitdeploy.machine import find_versions
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.census import Plan
from vitdeploy.quant import halves, products
from vitdeploy.quant.acceptance import try_out
from vitdeploy.quant.int8 import Outcome, Quantizer, wants
from vitdeploy.quant.layout import choose_layout, has_fixed_batch
from vitdeploy.quant.maxima import maxima
from vitdeploy.quant.moments import Moments, moments
from vitdeploy.quant.pictures import BATCH, Pictures, open_pictures
from vitdeploy.quant.preparation import Layout, Prepared, merge, prepare
from vitdeploy.quant.source import compare_rewritten, require_float
from vitdeploy.quant.weights import quantize_weights
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.record import Calibration, QuantizeProof
from vitdeploy.spec import ModelSpec

MODEL = "model.onnx"
_MOMENT_IMAGES = 32
"""More cost passes through the model; of 16, 32 and 64 none was nearer to FP32 by more than 0.4 dB (DINOv2 ViT-S/14)."""
_STEPS = 5
_KEPT_S = 7 * 86_400.0
"""How long the statistics of an interrupted quantization wait for a second run."""


def write(  # noqa: PLR0913 (three of them are keywords that only one caller gives)
    artifact: Artifact,
    config: QuantizeConfig,
    folder: Path,
    *,
    given: Path | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Quantize into an empty folder: the model, the original's weights, and the record.

    Args:
        artifact: See `quantizer.quantize`.
        config: How.
        folder: Where.
        given: The images that the caller's program gave, as `data.stacks.save` wrote them.
        cache: Folder in which an interrupted run's statistics are kept for a second one; None keeps nothing.
        progress: Hears of each step.

    Raises:
        VitdeployError: As `quantizer.quantize`.
    """
    work = folder / "work"
    work.mkdir()
    source, repairs = sanitize(artifact, work / "repaired")
    require_float(source)
    pictures = open_pictures(source, config, given)
    job = _Job(source, config, pictures, work, cache, progress)
    model, plan = job.convert()
    storage.write(model, folder / MODEL, _metadata(artifact, job.spec))
    if config.keep_original:
        artifact.copy_weights(folder)
    record = Record(
        precision=config.precision,
        entry=MODEL,
        weights=artifact.weights.name if config.keep_original and artifact.weights else None,
        original=artifact.locate_original(folder),
        spec=job.spec,
        made_by="quantize",
        config=config,
        origin=artifact.record.origin,
        tools=find_versions("onnx", "onnx_ir", *list_packages(), "numpy"),
        parent=artifact.id,
    )
    accepted = try_out(source, Artifact(folder, record), plan, pictures, progress)
    guessed = artifact.record.origin.notes if artifact.record.made_by == "import" else ()
    seen = () if pictures is None else pictures.notes
    notes = (*repairs, *guessed, *seen, *job.proof.notes)
    job.add(notes=notes, census=accepted.census, worth=accepted.worth, verdict=accepted.verdict)
    shutil.rmtree(work)
    seal(folder, msgspec.structs.replace(record, proof=job.proof))
    job.forget()


@dataclass
class _Job:
    """One quantization.

    Attributes:
        source: The FP32 artifact.
        config: What is wanted.
        pictures: Calibration images, if any.
        work: A folder for intermediate files.
        cache: See `write`.
        progress: Hears of each step.
        proof: What is to be recorded.
        states: Where this quantization's statistics are kept until it is done.
        spec: Of what is made.
    """

    source: Artifact
    config: QuantizeConfig
    pictures: Pictures | None
    work: Path
    cache: Path | None
    progress: Progress
    proof: QuantizeProof = field(default_factory=QuantizeProof)
    states: Path | None = None
    spec: ModelSpec = field(init=False)

    def __post_init__(self) -> None:
        """What is made computes what the source does, until tokens are merged."""
        self.spec = self.source.spec

    def add(self, **more: object) -> None:
        """Add to the proof."""
        self.proof = msgspec.structs.replace(self.proof, **more)

    def convert(self) -> tuple[ir.Model, Plan]:
        """The new graph, and what should run in INT8."""
        config, model = self.config, storage.read(self.source.model)
        if config.precision == "bf16":
            if config.merge_tokens is not None:
                message = "bf16 leaves the file as it is, so that no tokens are merged"
                raise UsageError("VD2011", message, fix="give --merge-tokens to vitdeploy export")
            return model, Plan()
        layout = choose_layout(config, self.source.spec.input, fixed=has_fixed_batch(model))
        prepared = self._rewrite(model, layout)
        if config.precision == "fp16":
            self._halve(prepared.model)
            return prepared.model, Plan()
        if config.precision not in ("int8", "fp8"):
            return prepared.model, quantize_weights(prepared, config, layout)
        statistics = self._observe(prepared, layout)
        quantizer = Quantizer(prepared, layout, statistics)
        self.progress("quantize: equalize", 2, _STEPS)
        quantizer.equalize()
        self.progress("quantize: round", 3, _STEPS)
        quantizer.round_weights(self._moments(quantizer))
        self.progress("quantize: write", 4, _STEPS)
        outcome = quantizer.emit(self._some())
        self._report(outcome, statistics)
        if layout.half:
            self._halve(prepared.model)
        elif find_target(config.target).integer_products:
            self.add(rewrites=self.proof.rewrites | {"native-products": fuse_products(prepared.editor)})
            prepared.editor.check_interface("native-products")
        self.progress("quantize", _STEPS, _STEPS)
        return prepared.model, outcome.plan

    def _rewrite(self, model: ir.Model, layout: Layout) -> Prepared:
        """What is exact and needs no data; shown to be the same function."""
        self.progress("quantize: rewrite", 0, _STEPS)
        prepared = prepare(model, layout, self.config.skip)
        products.refuse(prepared.structure, layout)
        storage.write(prepared.model, self.work / MODEL, _metadata(self.source, self.spec))
        apart = compare_rewritten(self.source, self.work / MODEL, self.pictures, self.config.threads)
        if self.config.merge_tokens is not None:
            self.spec = merge(prepared, self.spec, self.config.merge_tokens)
            storage.write(prepared.model, self.work / MODEL, _metadata(self.source, self.spec))
        self.add(rewrites=prepared.rewrites, rewritten=apart)
        return prepared

    def _observe(self, prepared: Prepared, layout: Layout) -> halves.Halves:
        """Statistics of the two halves of the images, observed or read."""
        model, config = self.work / MODEL, self.config
        if self.pictures is None:
            contract = msgspec.json.encode(self.source.spec.input).decode()
            return halves.read(Path(str(config.statistics)), files.sha256(model), contract)
        wanted = wants(prepared.structure, layout)
        if self.cache is not None:
            _forget_old(self.cache)
            self.states = self.cache / halves.key_of(model, wanted, self.pictures)
        statistics = halves.observe(model, wanted, self.pictures, self.states, self.progress)
        if config.save_statistics is not None:
            halves.save(statistics, Path(config.save_statistics))
        return statistics

    def _moments(self, quantizer: Quantizer) -> Iterator[tuple[str, Moments]] | None:
        if self.pictures is None:
            return None
        storage.write(quantizer.prepared.model, self.work / MODEL)
        count = count_threads(OpenConfig(threads=self.config.threads))
        return moments(self.work / MODEL, quantizer.widths(), self._some, threads=count, progress=self.progress)

    def _some(self) -> Iterator[NDArray[Any]]:
        """A few dozen images of those that set ranges; none without images."""
        if self.pictures is not None:
            yield from islice(self.pictures.tensors("ranges"), _MOMENT_IMAGES // BATCH)

    def _report(self, outcome: Outcome, statistics: halves.Halves) -> None:
        distinct = tuple(dict.fromkeys(statistics))
        notes = [*outcome.notes, *dict.fromkeys(note for half in distinct for note in half.notes)]
        images = sum(half.images for half in distinct)
        if images < halves.FEW:
            said = "1 image" if images == 1 else f"{images} images"
            notes.append(f"only {said} set the ranges; {halves.FEW} or more are advised")
        self.add(sites=tuple(outcome.sites), notes=tuple(notes), calibration=self._calibration())

    def _calibration(self) -> Calibration:
        if self.pictures is None:
            return Calibration(source="statistics", folder=str(self.config.statistics))
        images = self.pictures.used - self.pictures.held
        pictures = self.pictures
        return Calibration(source=pictures.name, digest=pictures.digest, images=images, seen=pictures.seen_images)

    def _halve(self, model: ir.Model) -> None:
        """Turn the graph into FP16, with FP32 where the calibration images show that FP16 would overflow."""
        ranges: dict[str, float] = {}
        keep = list(self.config.keep_fp32)
        if self.pictures is not None:
            images = self.pictures.part("ranges")
            ranges = maxima(model, images, self.work, spec=self.source.spec, threads=self.config.threads)
        elif "layernorm" not in keep:
            keep.append("layernorm")
            note = "no calibration images: LayerNorm stays FP32, other tensors were not checked for overflow"
            self.add(notes=(*self.proof.notes, note))
        self.add(fp16=to_half(model, keep=keep, ranges=ranges))

    def forget(self) -> None:
        """Remove what was kept for a second run: this one is done."""
        if self.states is not None:
            shutil.rmtree(self.states, ignore_errors=True)


def _forget_old(cache: Path) -> None:
    """Remove what interrupted runs have left and nobody came back for."""
    with suppress(OSError):
        for state in cache.iterdir():
            if time.time() - state.stat().st_mtime > _KEPT_S:
                shutil.rmtree(state, ignore_errors=True)


def _metadata(parent: Artifact, spec: ModelSpec) -> dict[str, str]:
    return {
        METADATA_SPEC: msgspec.json.encode(spec).decode(),
        "vitdeploy.spec_sha256": hashlib.sha256(msgspec.json.encode(spec)).hexdigest(),
        "vitdeploy.parent": parent.id,
    }
