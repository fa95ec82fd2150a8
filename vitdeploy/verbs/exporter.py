"""The verb `export`: a ViT and its weights become an ONNX artifact that has been run and compared before it is accepted.

A "dynamic" batch that was only declared is the most common lie of exported ViTs: some constant of the example batch stays in
the graph. So the file is run at several batch sizes, and every row must equal PyTorch's row and the row run alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from vitdeploy import files
from vitdeploy.artifact import METADATA_SPEC, OURS, Artifact, Record, check_place, seal
from vitdeploy.backends.table import PROVER, TABLE
from vitdeploy.checkpoints.loader import Original, load
from vitdeploy.data import LoadConfig, open_dataset
from vitdeploy.errors import InputError, MachineError, UsageError, library
from vitdeploy.graph import storage
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.merging.rewrite import merge_tokens
from vitdeploy.graph.names import list_shape_arithmetic, name_by_module
from vitdeploy.graph.structure import recognise
from vitdeploy.machine import find_versions
from vitdeploy.models import merging
from vitdeploy.models.freeze import absorb_normalisation, freeze
from vitdeploy.models.modules import load_module
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.progress import Progress, silent
from vitdeploy.proof.contest import try_contract
from vitdeploy.proof.exported import compare, prove
from vitdeploy.recipe import ExportConfig, ModelConfig
from vitdeploy.record import ContractTrial, Origin
from vitdeploy.schedule import resolve_schedule
from vitdeploy.spec import ModelSpec
from vitdeploy.words import GIVES

MODEL, WEIGHTS = "model.onnx", "weights.safetensors"
STEPS = ("load", "trace", "write", "prove")


def export(  # noqa: PLR0913 (three of them are keywords that most callers leave out)
    model: ModelConfig | str,
    config: ExportConfig | None,
    out: files.PathName,
    *,
    against: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Artifact:
    """Export a ViT to ONNX and prove that the file computes the same.

    Args:
        model: Which model and weights, or its source alone.
        config: How; None is as usual.
        out: Folder to write. What the same verb made there from the same source is replaced in one step.
        against: ``package.file:factory`` of the network that the model was described after, which is imported and run: the two
            must give the same. No recipe or record names it, so that none can run code.
        force: Replace any artifact that lies there; never a source, and nothing that vitdeploy did not write.
        progress: Hears of each step.

    Returns:
        The artifact: ``model.onnx``, ``weights.safetensors`` (the PyTorch original), ``golden.npz`` (a few generated
        images with the file's outputs, for devices that have nothing else to compare with) and the record with the proof.

    Raises:
        UsageError: Unknown model, impossible options, unusable ``out``.
        InputError: Weights that are damaged or do not fit; labelled images that can't be read; VD3029, ``against`` is another
            function.
        MachineError: VD4003 the file does not compute the same; VD4002 disk full; VD4004 torch failed.
    """
    model = ModelConfig(source=model) if isinstance(model, str) else model
    config, out = config or ExportConfig(), Path(out)
    source, origin = _load(model, config, out, force=force, progress=progress)
    spec = _as_exported(source.spec, config)
    apart = {} if against is None else {against: _compare(source, against, config)}
    trial = _try_contract(source, config, progress)
    progress("export: trace", 1, len(STEPS))
    graph = trace(source.net, spec, config)
    with files.folder(out, ours=OURS) as folder:
        progress("export: write", 2, len(STEPS))
        weights = _write_original(source.net, folder)
        if weights is not None:
            origin = msgspec.structs.replace(origin, state_sha256=files.sha256(folder / weights))
        storage.write(graph, folder / MODEL, metadata(spec, origin))
        progress("export: prove", 3, len(STEPS))
        proof, golden = prove(_merge(source.net, spec), Artifact(folder, Record(spec=spec, made_by="export")), config)
        golden.write(folder)
        record = Record(
            spec=spec,
            weights=weights,
            made_by="export",
            config=config,
            origin=origin,
            proof=msgspec.structs.replace(proof, contract=trial, against=apart),
            tools=find_versions("torch", "onnx", "onnxscript", "onnx_ir", TABLE[PROVER].package),
            parent=source.parent,
        )
        record = seal(folder, record)
    progress("export", len(STEPS), len(STEPS))
    return Artifact(out, record)


def _load(model: ModelConfig, config: ExportConfig, out: Path, *, force: bool, progress: Progress) -> tuple[Original, Origin]:
    """What was named; refused where ``out`` can't be taken, as early as that is known."""
    named = [Path(name) for name in (model.source, model.weights, model.contract) if name]
    check_place(out, sources=named, replaces=_is_export, force=force)
    progress("export: load", 0, len(STEPS))
    source = load(model, config.image_size)
    origin = msgspec.convert(source.origin, Origin)
    check_place(out, sources=named, replaces=partial(_is_next, source, origin), force=force)
    return source, origin


def _is_export(old: Record) -> bool:
    return old.made_by == "export"


def _is_next(source: Original, origin: Origin, old: Record) -> bool:
    said = {name: getattr(origin, name) for name in ("state_sha256", "assumed", "assumed_from")}  # not what was read
    known = msgspec.structs.replace(old.origin, **said)
    return _is_export(old) and (known, old.parent, old.spec.name) == (origin, source.parent, source.spec.name)


def _compare(source: Original, against: str, config: ExportConfig) -> float:
    """How far the network is from the user's, which is imported and run; that the file is the network is proven later."""
    if source.spec.network == "module":
        message = f"{source.spec.name!r} is imported code itself, which the file is compared with in any case"
        raise UsageError("VD2010", message, fix="leave out --against")
    return compare(load_module(against, source.spec.input).net, source.net, source.spec, config.tolerance)


def _try_contract(source: Original, config: ExportConfig, progress: Progress) -> ContractTrial | None:
    """The input contract beside other usual ones, where labelled images were given."""
    if config.data is None:
        return None
    if not source.spec.classifies:
        message = f"{source.spec.name!r} gives no classes, so labelled images say nothing of its input"
        raise UsageError("VD2011", message, fix="leave out --data")

    def predict(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = source.net(torch.from_numpy(pixels)).numpy()
        return logits

    data = open_dataset(Path(config.data), split=config.split)
    return try_contract(predict, source.spec, data, LoadConfig(limit=config.limit), progress=progress)


def _write_original(net: nn.Module, folder: Path) -> str | None:
    """The PyTorch original's weights beside the model; None for a network of the user's own code, which no spec rebuilds."""
    if not isinstance(net, VisionTransformer):
        return None
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    files.need_space(folder, 2 * sum(tensor.nbytes for tensor in state.values()))
    with library("safetensors", folder):
        save_file(state, folder / WEIGHTS)
    mask = os.umask(0)
    os.umask(mask)
    (folder / WEIGHTS).chmod(0o666 & ~mask)  # safetensors writes for the owner alone; a device's service is another user
    return WEIGHTS


def trace(source: nn.Module, spec: ModelSpec, config: ExportConfig) -> ir.Model:
    """Trace the frozen model to a cleaned ONNX graph.

    Raises:
        UsageError: VD2011, tokens of this model can't be merged.
        MachineError: VD4004 torch's exporter failed; VD4003 the graph computes shapes at run time.
        InputError: VD3022, code of the user's makes the batch a constant.
    """
    program = Program(source, spec, config)
    batch = config.batch or 2
    contract = spec.input
    shape = (batch, contract.channels, contract.height, contract.width)
    if contract.tensor == "uint8-nhwc":
        shape = (batch, contract.height, contract.width, contract.channels)
    example = torch.zeros(shape, dtype=torch.float32 if contract.tensor == "float32-nchw" else torch.uint8)
    dynamic = None if config.batch else ({0: torch.export.Dim("batch", min=1)},)
    noisy = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [logger.level for logger in noisy]
    with library("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations; what matters is proven below
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                opset_version=config.opset,
                input_names=["pixels"],
                output_names=list(program.names),
                dynamic_shapes=dynamic,
                optimize=True,
                verbose=False,
            )
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)
    assert exported is not None
    graph = exported.model
    name_by_module(graph, root="model")
    if config.batch is None:
        _check_free_batch(graph)
    if spec.network == "vit" and (leftover := list_shape_arithmetic(graph)):
        message = f"the graph computes shapes at run time in {len(leftover)} nodes, first {leftover[0]}"
        raise MachineError("VD4003", message, fix="report this with the model's spec")
    if spec.merged:
        merge_tokens(Editor(graph), recognise(graph), spec.merged, spec.prefix)
    return graph


def _check_free_batch(graph: ir.Model) -> None:
    """Refuse a graph whose first axis is a number, which torch's exporter makes of a batch that the code turns into one."""
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None and isinstance(value.shape[0], int):
            message = f"the network's code fixes the batch at the example's, {value.shape[0]}: it makes a plain number of it"
            fix = "divide whole numbers with // and take no int() or float() of them, or use --batch N"
            raise InputError("VD3022", message, fix=fix)


class Program(nn.Module):
    """What is traced: the frozen model between the file's input and its named outputs."""

    def __init__(self, source: nn.Module, spec: ModelSpec, config: ExportConfig) -> None:
        super().__init__()
        self.model = freeze(source) if isinstance(source, VisionTransformer) else source
        self.tensor, self.top_k, self.scaled = spec.input.tensor, config.top_k, False
        if self.tensor != "float32-nchw" and isinstance(self.model, VisionTransformer):
            absorb_normalisation(self.model)
        elif self.tensor != "float32-nchw":  # nothing is known of the first layer: the normalisation stays an operation
            self.scaled = True
            for name, values in (("mean", spec.input.mean), ("std", spec.input.std)):
                self.register_buffer(name, 255 * torch.tensor(values)[:, None, None])  # [C, 1, 1]
        self.outputs = (spec.output, *(name for name in config.outputs if name != spec.output))
        self.names = self.outputs + (() if config.top_k is None else ("top_k_probabilities", "top_k_indices"))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:  # float32 [B, C, H, W], or uint8 [B, H, W, C] or [B, C, H, W]
        """The named outputs, in the order of `names`."""
        pixels = pixels.float()  # before anything moves: TensorRT transposes no bytes
        if self.tensor == "uint8-nhwc":
            pixels = pixels.permute(0, 3, 1, 2)  # [B, C, H, W]
        if self.scaled:
            pixels = (pixels - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        if len(self.outputs) > 1:
            named = cast(VisionTransformer, self.model).outputs(pixels)
            outputs = [named[name] for name in self.outputs]
        else:
            outputs = [self.model(pixels)]
        if self.top_k is not None:
            outputs += torch.topk(outputs[0].softmax(-1), self.top_k)  # 2 x [B, K]
        return tuple(outputs)


def metadata(spec: ModelSpec, origin: Origin) -> dict[str, str]:
    """What the file says of itself."""
    return {
        METADATA_SPEC: msgspec.json.encode(spec).decode(),
        "vitdeploy.spec_sha256": hashlib.sha256(msgspec.json.encode(spec)).hexdigest(),
        "vitdeploy.weights_sha256": origin.state_sha256,
        "vitdeploy.versions": msgspec.json.encode(find_versions("torch", "onnx", "onnxscript"), order="sorted").decode(),
    }


def _merge(net: nn.Module, spec: ModelSpec) -> nn.Module:
    """What the file is to compute: the original, with its tokens merged where the file merges them."""
    return merging.merge_tokens(cast(VisionTransformer, net), spec.merged) if spec.merged else net


def _as_exported(spec: ModelSpec, config: ExportConfig) -> ModelSpec:
    """The spec as the file takes its input, after checking options that depend on the model."""
    if config.top_k is not None and not spec.classifies:
        message = f"top-k needs classes of which one is right, {spec.name!r} gives {GIVES[spec.task]}"
        raise UsageError("VD2011", message, fix="leave out --top-k")
    if config.top_k is not None and config.top_k > spec.classes:
        raise UsageError("VD2011", f"top-k is {config.top_k}, the model has {spec.classes} classes", fix=f"use {spec.classes}")
    if config.outputs and spec.network == "module":
        message = f"a module has one output, {', '.join(config.outputs)} can't be had"
        raise UsageError("VD2011", message, fix="leave out --outputs")
    spec = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor=config.input))
    if config.merge_tokens is None:
        return spec
    if spec.network == "module":
        message = "a module's blocks are not known here"
        raise UsageError("VD2011", message, fix="leave out --merge-tokens, and give it to vitdeploy quantize")
    merged = resolve_schedule(config.merge_tokens, spec.depth, spec.tokens, spec.prefix)
    return msgspec.structs.replace(spec, merged=merged)
