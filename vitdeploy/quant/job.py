"""The work of the verb `quantize`, step by step: rewrite, observe, equalize, round, write, and try what was written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact, Record, sanitized, seal, versions
from vitdeploy.backends.base import OpenConfig, count_threads, run_any
from vitdeploy.backends.table import ANY_HEADS, PROVER, find_target, list_judges, list_packages, load
from vitdeploy.backends.targets import settle_target
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.graph import qdq, storage
from vitdeploy.graph.exact.integer_products import fuse_products
from vitdeploy.graph.half.convert import to_half
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.progress import Progress, silent
from vitdeploy.proof import golden
from vitdeploy.proof.census import Plan, census, require
from vitdeploy.proof.worth import Comparison, worth
from vitdeploy.quant import products, rounding
from vitdeploy.quant.calibrator import CalibrateConfig, calibrate
from vitdeploy.quant.int8 import Outcome, Quantizer, wants
from vitdeploy.quant.maxima import maxima
from vitdeploy.quant.moments import Moments, moments
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.pictures import BATCH, Part, Pictures, open_pictures
from vitdeploy.quant.preparation import Layout, Prepared, prepare
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.spec import InputContract

MODEL = "model.onnx"
HALVES = ("first.npz", "second.npz")
"""Files of saved statistics: each has seen every other image."""
SAME = 1e-4
"""Largest difference of the rewritten float graph, as a share of the output's standard deviation."""
_MOMENT_IMAGES = 64
_FEW = 32


def quantize_here(artifact: Artifact, config: QuantizeConfig, out: Path, *, progress: Progress = silent) -> Artifact:
    """As `quantizer.quantize`, without a process of its own: an engine that crashes takes this one with it.

    Raises:
        VitdeployError: As `quantizer.quantize`.
    """
    config = settle_target(config)
    with files.folder(out, ours=RECORD) as folder:
        write(artifact, config, folder, progress)
    return Artifact.open(out, verify=False)


def write(artifact: Artifact, config: QuantizeConfig, folder: Path, progress: Progress = silent) -> None:
    """Quantize into an empty folder: the model, the original's weights, and the record.

    Args:
        artifact: See `quantizer.quantize`.
        config: How.
        folder: Where.
        progress: Hears of each step.

    Raises:
        VitdeployError: As `quantizer.quantize`.
    """
    work = folder / "work"
    work.mkdir()
    source, repairs = sanitized(artifact, work / "repaired")
    _require_float(source)
    pictures = open_pictures(source, config)
    job = _Job(source, config, pictures, work, progress)
    model, plan = job.convert()
    storage.write(model, folder / MODEL, _metadata(artifact))
    record = job.record(artifact, folder)
    found = job.check(Artifact(folder, record), plan)
    if repairs:
        found["notes"] = [*repairs, *job.proof.get("notes", ())]
    shutil.rmtree(work)
    seal(folder, msgspec.structs.replace(record, proof=job.proof | found))


def _require_float(artifact: Artifact) -> None:
    """Refuse a model that is quantized, or of another type than float32, or that takes other images than its contract says."""
    if artifact.record.kind != "onnx":
        message = f"is an engine of {artifact.record.kind}"
        raise UsageError("VD2013", message, file=artifact.folder, fix="give the ONNX artifact that it was compiled from")
    graph, precision, contract = read_graph(artifact.model), artifact.record.precision, artifact.spec.input
    reduced = [name for name in ("float16", "bfloat16") if name in graph.elements]
    if precision != "fp32" or graph.quantization or reduced:
        message = "has quantized operators already" if graph.quantization else f"has numbers of type {', '.join(reduced)}"
        message = f"is {precision} already" if precision != "fp32" else message
        raise InputError("VD3024", message, file=artifact.model, fix="give the FP32 model that it was made from")
    wanted: tuple[int, ...] = (contract.channels, contract.height, contract.width)
    wanted = wanted if contract.tensor.endswith("nchw") else (*wanted[1:], wanted[0])
    takes = (graph.inputs[0].shape or ())[1:] if graph.inputs else ()
    if any(isinstance(size, int) and size != want for size, want in zip(takes, wanted, strict=False)):
        message = f"takes images {list(takes)}, its input contract says {list(wanted)}"
        raise InputError("VD3107", message, file=artifact.model, fix="correct the contract")


@dataclass
class _Job:
    """One quantization.

    Attributes:
        source: The FP32 artifact.
        config: What is wanted.
        pictures: Calibration images, if any.
        work: A folder for intermediate files.
        progress: Hears of each step.
        proof: What is to be recorded.
    """

    source: Artifact
    config: QuantizeConfig
    pictures: Pictures | None
    work: Path
    progress: Progress
    proof: dict[str, Any] = field(default_factory=dict)

    def convert(self) -> tuple[ir.Model, Plan]:
        """The new graph, and what should run in INT8."""
        config, model = self.config, storage.read(self.source.model)
        if config.precision == "bf16":
            return model, Plan()
        layout = layout_of(config, self.source.spec.input, fixed=_fixed_batch(model))
        self.progress("quantize: rewrite", 0, 5)
        prepared = prepare(model, layout, config.skip)
        products.refuse(prepared.structure, layout)
        storage.write(prepared.model, self.work / MODEL, _metadata(self.source))
        self.proof |= {"rewrites": prepared.rewrites, "rewritten": self._same()}
        if config.precision == "fp16":
            self._halve(prepared.model)
            return prepared.model, Plan()
        if config.precision not in ("int8", "fp8"):
            return prepared.model, _weights_only(prepared, config, layout)
        outcome = self._int8(prepared, layout)
        self.proof |= {"sites": outcome.sites, "notes": outcome.notes, "calibration": self._calibration()}
        if layout.half:
            self._halve(prepared.model)
        elif find_target(config.target).integer_products:
            self.proof["rewrites"] |= {"native-products": fuse_products(prepared.editor)}
            prepared.editor.check_interface("native-products")
        return prepared.model, outcome.plan

    def _same(self) -> float:
        """Run the source and the rewritten graph on a few images; the largest difference, in standard deviations."""
        contract, output = self.source.spec.input, self.source.spec.output
        tensor, names = next(self.pictures.part("ranges"), (None, ())) if self.pictures is not None else (None, ())
        if tensor is None:
            tensor, names = images.to_tensor(synthetic.pixels(4, contract), contract), ("a generated one",) * 4
        rewritten = Artifact(self.work, Record(spec=self.source.spec, made_by="quantize", entry=MODEL))
        found = []
        for each in (self.source, rewritten):
            with closing(load(PROVER).open(each, OpenConfig(threads=self.config.threads))) as runner:
                found.append(run_any(runner, tensor[:4])[output].astype(np.float64))
        bad = ~np.isfinite(found[0]).reshape(len(found[0]), -1).all(1)
        if bad.any():
            message = f"the output {output!r} is nan or infinite on the image {names[int(bad.argmax())]!r}"
            raise InputError("VD3110", message, file=self.source.model, fix="check the weights, and that it takes such images")
        apart = float(np.abs(found[0] - found[1]).max() / (found[0].std() or 1.0))
        if not apart <= SAME:
            message = f"the rewritten graph differs from the source by {apart:.2g} of the output's standard deviation"
            fix = "leave a rewrite out with --skip, and report this model"
            raise MachineError("VD4003", message, file=self.source.model, fix=fix)
        return apart

    def _int8(self, prepared: Prepared, layout: Layout) -> Outcome:
        halves = self._statistics(prepared, layout)
        if self.config.save_statistics is not None:
            _save(halves, Path(self.config.save_statistics))
        self.progress("quantize: equalize", 2, 5)
        quantizer = Quantizer(prepared, layout, halves)
        quantizer.equalize()
        self.progress("quantize: round", 3, 5)
        quantizer.round_weights(self._moments(quantizer))
        self.progress("quantize: write", 4, 5)
        outcome = quantizer.emit(self._some())
        self.progress("quantize", 5, 5)
        outcome.notes += dict.fromkeys(note for half in halves for note in half.notes)
        images = sum(half.images for half in dict.fromkeys(halves))
        if images < _FEW:
            said = "1 image" if images == 1 else f"{images} images"
            outcome.notes.append(f"only {said} set the ranges; {_FEW} or more are advised")
        return outcome

    def _moments(self, quantizer: Quantizer) -> Iterator[tuple[str, Moments]] | None:
        if self.pictures is None:
            return None
        storage.write(quantizer.prepared.model, self.work / MODEL)
        count = count_threads(OpenConfig(threads=self.config.threads))
        return moments(self.work / MODEL, quantizer.widths(), self._some, threads=count, progress=self.progress)

    def _some(self) -> Iterator[NDArray[Any]]:
        """A few dozen images of those that set ranges; none without images."""
        if self.pictures is not None:
            yield from islice(self.pictures.tensors("ranges"), max(1, _MOMENT_IMAGES // BATCH))

    def _statistics(self, prepared: Prepared, layout: Layout) -> tuple[Statistics, Statistics]:
        """Of the two halves of the images, observed or read."""
        contract, config = msgspec.json.encode(self.source.spec.input).decode(), self.config
        if self.pictures is None:
            return _read(Path(str(config.statistics)), files.sha256(self.work / MODEL), contract)
        wanted, source = wants(prepared.structure, layout), self._calibration()["source"]
        half = max(1, (self.pictures.used - self.pictures.held) // 2)
        options = CalibrateConfig(
            limit=config.limit,
            minimum=min(_FEW // 2, half),
            batch=BATCH,
            threads=config.threads,
            contract=contract,
            source=source,
        )

        def observe(part: Part) -> Statistics:
            assert self.pictures is not None
            return calibrate(self.work / MODEL, wanted, self.pictures.part(part), options, progress=self.progress)

        first = observe("first")
        return first, observe("second") if self.pictures.used - self.pictures.held > 1 else first

    def _calibration(self) -> dict[str, Any]:
        if self.pictures is None:
            return {"source": "statistics", "folder": self.config.statistics}
        count, data = self.pictures.used - self.pictures.held, self.pictures.data
        if data is None:
            return {"source": "random", "images": count}
        return {"source": data.name, "digest": data.digest, "images": count}

    def _halve(self, model: ir.Model) -> None:
        """Turn the graph into FP16, with FP32 where the calibration images show that FP16 would overflow."""
        ranges: dict[str, float] = {}
        keep = list(self.config.keep_fp32)
        if self.pictures is not None:
            images = self.pictures.tensors("ranges")
            ranges = maxima(model, images, self.work, spec=self.source.spec, threads=self.config.threads)
        elif "layernorm" not in keep:
            keep.append("layernorm")
            note = "no calibration images: LayerNorm stays FP32, other tensors were not checked for overflow"
            self.proof["notes"] = [*self.proof.get("notes", []), note]
        self.proof["fp16"] = msgspec.to_builtins(to_half(model, keep=keep, ranges=ranges))

    def record(self, artifact: Artifact, folder: Path) -> Record:
        """The record so far, of what was made from the artifact; the PyTorch original's weights come along."""
        weights = artifact.weights
        if weights is not None:
            files.need_space(folder, weights.stat().st_size)
            shutil.copyfile(weights, folder / weights.name)
        return Record(
            precision=self.config.precision,
            entry=MODEL,
            weights=None if weights is None else weights.name,
            spec=self.source.spec,
            made_by="quantize",
            config=msgspec.to_builtins(self.config),
            origin=artifact.record.origin,
            proof=self.proof,
            tools=versions("onnx", "onnx_ir", *list_packages(), "numpy"),
            parent=artifact.id,
        )

    def check(self, made: Artifact, plan: Plan) -> dict[str, Any]:
        """Count the kernels on the target's engines, and say whether it was worth it."""
        config, options = self.config, OpenConfig(threads=self.config.threads)
        there = list_judges(config.target)
        found: dict[str, Any] = {"census": {}}
        for engine in there:
            with closing(load(engine).open(made, options)) as runner:
                counted = census(plan, runner.kernels(), engine)
                require(counted)
                if engine == there[0]:
                    golden.of(runner, made).write(made.folder)
            found["census"][engine] = msgspec.to_builtins(counted)
        if not there:
            golden.make(made, options).write(made.folder)
            verdict = f"{config.precision.upper()}: not run here: no engine of the target {config.target!r} is installed"
            return found | {"verdict": verdict}
        if not config.verify:
            return found
        held = self.pictures is not None and self.pictures.held > 0
        batches: Iterator[NDArray[Any]] = iter(())
        if self.pictures is not None and self.pictures.data is not None:
            batches = self.pictures.tensors("held" if held else "ranges")
        comparison = Comparison(self.source, made, there[0], options, held)
        measured = worth(comparison, batches, progress=self.progress)
        return found | {"worth": msgspec.to_builtins(measured), "verdict": measured.verdict}


def _metadata(artifact: Artifact) -> dict[str, str]:
    return {
        METADATA_SPEC: msgspec.json.encode(artifact.spec).decode(),
        "vitdeploy.spec_sha256": hashlib.sha256(msgspec.json.encode(artifact.spec)).hexdigest(),
        "vitdeploy.parent": artifact.id,
    }


def layout_of(config: QuantizeConfig, contract: InputContract, *, fixed: bool) -> Layout:
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
        integer_bias=fixed and target.integer_bias and not target.integer_products,
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


def _fixed_batch(model: ir.Model) -> bool:
    shape = model.graph.inputs[0].shape
    return shape is not None and len(shape) > 0 and isinstance(shape[0], int)


def _save(halves: tuple[Statistics, Statistics], folder: Path) -> None:
    with files.folder(folder, ours=HALVES[0]) as fresh:
        for half, name in zip(halves, HALVES, strict=True):
            half.save(fresh / name)


def _read(folder: Path, model: str, contract: str) -> tuple[Statistics, Statistics]:
    first, second = (Statistics.load(folder / name) for name in HALVES)
    for half in (first, second):
        if half.model != model or half.contract != contract:
            message = "the statistics are of another model or input contract, or of other rewrites"
            raise InputError("VD3109", message, file=folder, fix="quantize with --calibration, and save them again")
    return (first, first) if first.digest == second.digest else (first, second)


def _weights_only(prepared: Prepared, config: QuantizeConfig, layout: Layout) -> Plan:
    """INT8 weights, and activations at run time or not at all; no images."""
    dynamic = []
    integer = config.precision == "int8-dynamic" and find_target(config.target).integer_products
    for linear in prepared.structure.linears:
        weight = linear.weight
        scale = rounding.steps(weight, codes=layout.codes)
        codes = rounding.nearest(weight, scale, codes=layout.codes)
        dynamic.append(f"{linear.name}Integer" if integer else linear.name)
        if integer:
            qdq.quantize_at_run_time(prepared.editor, linear, codes, scale)
        else:
            qdq.quantize_weight(prepared.editor, linear, codes, scale)
    return Plan(dynamic=tuple(dynamic))
