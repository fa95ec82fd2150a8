"""The verb `inspect`: what a file or folder is, told from its bytes, without any engine and mostly without torch.

Names promise nothing: a file is sniffed first. Headers are read and data is passed over, so a model of gigabytes takes as
long as its digest. Nothing of the file is ever run: PyTorch files go through the safe reader of `vitdeploy.checkpoints.families`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import msgspec

from vitdeploy import files, kinds
from vitdeploy.amendments import ContractFile, read_contract
from vitdeploy.artifact import METADATA_SPEC, RECORD, Artifact, Record
from vitdeploy.bundle.bundle import is_bundle, open_bundle
from vitdeploy.checkpoints.headers import Outline, holds_images, is_npz, read_npz, read_safetensors
from vitdeploy.errors import InputError, TrustError, UsageError, needs
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.reader import read
from vitdeploy.onnxfile.summary import OnnxGraph, summarize
from vitdeploy.recipe import Recipe
from vitdeploy.report import Report
from vitdeploy.spec import InputContract, ModelSpec, read_spec

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 has Python 3.10
    import tomli as tomllib

Kind = Literal["artifact", "bundle", "onnx", "checkpoint", "recipe", "spec", "contract", "mapping", "report", "image", "data"]
LARGEST_TEXT = 64 << 20
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
_NOT_PARAMETERS = ("int64", "bool", "string")


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What something is.

    Attributes:
        schema_version: Version of this record.
        path: What was looked at.
        kind: What it is.
        bytes: Size of the file, or of the folder's files that count.
        sha256: Digest of a file; a folder has them in `facts`, a data folder the digest of its listing.
        facts: The rest, in the order in which a person wants to read it; text, numbers, and lists and tables of them.
        graph: The inside of an ONNX model.
        spec: The model, where the file says enough.
        contract: How pixels are prepared for it.
        notes: What is missing, odd or wrong, a sentence each.
    """

    schema_version: int = 1
    path: str
    kind: Kind
    bytes: int = 0
    sha256: str | None = None
    facts: dict[str, Any] = {}
    graph: OnnxGraph | None = None
    spec: ModelSpec | None = None
    contract: InputContract | None = None
    notes: tuple[str, ...] = ()


def inspect(path: str | PathLike[str]) -> Inspection:
    """Say what a file or folder is.

    Args:
        path: An artifact, ONNX model, checkpoint (file or folder), recipe, spec, contract, mapping, report, image or data.

    Raises:
        InputError: It does not exist, is of no known kind, or is damaged so that it can't be told.
        UsageError: A TOML file with an unknown key or a bad value.
        TrustError: A PyTorch file that would run code, or a folder that names files outside of itself.
    """
    path = Path(path)
    if is_bundle(path):
        return _bundle(path)
    if path.is_dir():
        return _folder(path)
    kind = kinds.sniff(path)
    if kind == "onnx":
        return _onnx(path)
    if kind == "zip" and is_npz(path) and holds_images(read_npz(path)):
        return _data(path)
    if kind == "safetensors" or (kind == "zip" and is_npz(path)):
        return _checkpoint(path, {path.name: path})
    if kind in ("zip", "pickle"):
        return _pickle(path)
    if kind == "text" or (kind == "unknown" and path.suffix in (".toml", ".json", *_TABLES)):
        return _text(path)
    if kind in ("empty", "lfs", "html", *kinds.FOREIGN):
        kinds.expect(path, "onnx", what="something that vitdeploy knows")
    if path.suffix == ".tar" or "-images" in path.name:
        return _data(path)
    return _image(path)


def _folder(path: Path) -> Inspection:
    if (path / RECORD).is_file():
        return _artifact(path)
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    names = {entry.name for entry in entries}
    weights = {entry.name: entry for entry in entries if entry.suffix in WEIGHT_SUFFIXES and entry.is_file()}
    if weights or "snapshots" in names or "model.safetensors.index.json" in names:
        return _checkpoint_folder(path, weights)
    kinds.refuse_folder(path)
    return _data(path)


def _artifact(path: Path) -> Inspection:
    artifact = Artifact.open(path, verify=False)
    record, notes = artifact.record, []
    for name, digest in record.files.items():
        if files.sha256(artifact.folder / name) != digest:
            notes.append(f"{name} changed after it was written: its digest is another one")
    inner = _onnx(artifact.model, record) if record.entry.endswith(".onnx") else None
    facts: dict[str, object] = {
        "id": artifact.id,
        "made_by": record.made_by,
        **({} if record.kind == "onnx" else {"engine": record.kind}),
        **({"made_for": artifact.engine} if record.kind == "onnx" and artifact.engine else {}),
        "precision": record.precision,
        **(inner.facts if inner else {}),
        "files": record.files,
        **({"assumed": record.origin.assumption} if record.origin.assumed else {}),
        "origin": msgspec.to_builtins(record.origin),
        "tools": record.tools,
        "parent": record.parent,
        "original": str(artifact.weights) if artifact.weights else artifact.explain_no_weights(),
    }
    return Inspection(
        path=str(path),
        kind="artifact",
        bytes=sum((artifact.folder / name).stat().st_size for name in record.files),
        facts=facts,
        graph=inner.graph if inner else None,
        spec=record.spec,
        contract=record.spec.input,
        notes=(*notes, *(inner.notes if inner else ())),
    )


def _bundle(path: Path) -> Inspection:
    """What a bundle's manifest says; whether that is true, `verify` tells."""
    with open_bundle(path) as bundle:
        facts, size = bundle.describe(), bundle.size
    notes = ("its files were not compared with the manifest; run: vitdeploy verify BUNDLE",)
    return Inspection(path=str(path), kind="bundle", bytes=size, facts=facts, notes=notes)


def _onnx(path: Path, record: Record | None = None) -> Inspection:
    model = read(path)
    graph = summarize(model)
    notes = [] if graph.inputs else ["the graph has no inputs"]
    notes += _findings(path) if record is None or record.kind == "onnx" else []  # an engine's own operators are its own
    spec, text = None, model.metadata.get(METADATA_SPEC)
    if text is None:
        notes.append("carries no input contract: pixels can't be prepared for it without one")
    else:
        try:
            spec = msgspec.json.decode(text, type=ModelSpec)
        except (msgspec.MsgspecError, UsageError) as exc:
            notes.append(f"carries a broken input contract: {exc}")
    facts = {
        **(_model(spec) if spec else {}),
        "weights": describe_weights(graph),
        "quantization": graph.quantization,
        "parameters": graph.parameters,
        "elements": graph.elements,
        "nodes": graph.nodes,
        "dynamic_batch": graph.dynamic_batch,
        "opsets": dict(model.opsets),
        "ir_version": model.version,
        "producer": model.producer,
        "external_data": list(graph.external),
        "metadata": sorted(model.metadata),
    }
    return Inspection(
        path=str(path),
        kind="onnx",
        bytes=path.stat().st_size,
        sha256=files.sha256(path) if record is None else None,
        facts=facts,
        graph=graph,
        spec=spec,
        contract=spec.input if spec else None,
        notes=tuple(notes),
    )


def describe_weights(graph: OnnxGraph) -> str:
    """In one or two words what a model computes with: the most frequent type of its weights, and how it is quantised."""
    dtype = next((name for name in graph.elements if name not in _NOT_PARAMETERS), "none")
    operators = graph.quantization
    if any("Integer" in name or "QLinear" in name for name in operators):
        return f"{dtype}, integer operators"
    return f"{dtype}, Q/DQ" if operators else dtype


def _findings(path: Path) -> list[str]:
    """What no engine would be shown, or what is repaired before one is."""
    try:
        return [f"needs repair: {repair}" for repair in check.check_file(path).repairs]
    except (InputError, TrustError) as exc:
        return [f"will be refused ({exc.code}): {exc.message}"]


def _checkpoint_folder(path: Path, weights: dict[str, Path]) -> Inspection:
    """A folder as Hugging Face, timm and open_clip write it; with torch, by the rules that an export will use."""
    try:
        from vitdeploy.checkpoints import folders
    except ModuleNotFoundError:
        return _checkpoint(path, {name: file for name, file in weights.items() if name.endswith(".safetensors")} or weights)
    layout = folders.find(path)
    inspection = _checkpoint(path, layout.weights, layout.config, layout.preprocessor)
    return msgspec.structs.replace(inspection, notes=(*layout.notes, *inspection.notes))


def _checkpoint(
    path: Path,
    weights: Mapping[str, Path],
    config: Mapping[str, object] | None = None,
    preprocessor: Mapping[str, object] | None = None,
) -> Inspection:
    """A checkpoint, by the headers of its files."""
    tensors: dict[str, Outline] = {}
    for file in weights.values():
        kind = kinds.sniff(file)
        if kind in ("zip", "pickle") and not is_npz(file):
            return _pickle(path)
        tensors |= read_npz(file) if kind == "zip" else read_safetensors(file)
    try:
        from vitdeploy.checkpoints import outline
    except ModuleNotFoundError:
        return _describe(path, weights, tensors, ("", None, ("install vitdeploy[export] to learn library and model",)))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return _describe(path, weights, tensors, outline.describe(path, shapes, config or {}, preprocessor or {}))


def _pickle(path: Path) -> Inspection:
    """A checkpoint that has to be read whole, without running it."""
    with needs("export"):
        from vitdeploy.checkpoints import checkpoint, folders, outline
    read = checkpoint.read(path)
    tensors = {name: Outline(str(tensor.dtype)[6:], tuple(tensor.shape)) for name, tensor in read.state.items()}
    weights = folders.find(path).weights if path.is_dir() else {path.name: path}
    return _describe(path, weights, tensors, outline.identify(read))


def _describe(
    path: Path,
    weights: Mapping[str, Path],
    tensors: dict[str, Outline],
    identity: tuple[str, ModelSpec | None, tuple[str, ...]],
) -> Inspection:
    source, spec, notes = identity
    elements: dict[str, int] = {}
    for tensor in tensors.values():
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    facts: dict[str, object] = {"source": source or "unknown"}
    if spec is not None:
        facts |= _model(spec)
    facts |= {
        "parameters": sum(count for dtype, count in elements.items() if dtype not in _NOT_PARAMETERS),
        "elements": dict(sorted(elements.items(), key=lambda item: -item[1])),
        "tensors": len(tensors),
        "first": list(tensors)[:5],
        "files": {name: files.sha256(file) for name, file in weights.items()},
    }
    return Inspection(
        path=str(path),
        kind="checkpoint",
        bytes=sum(file.stat().st_size for file in weights.values()),
        sha256=None if path.is_dir() else files.sha256(path),
        facts=facts,
        spec=spec,
        contract=spec.input if spec else None,
        notes=tuple(notes),
    )


def _model(spec: ModelSpec) -> dict[str, object]:
    """Which model: its name, its architecture in a line, its image size, and what the head gives."""
    patch = f"{spec.patch[0]} x {spec.patch[1]}"
    vit = f"ViT of {spec.depth} blocks, width {spec.width}, {spec.heads} heads, patch {patch}"
    return {
        "name": spec.name,
        "architecture": vit if spec.network == "vit" else "a network of the user's own code",
        "image": [spec.input.height, spec.input.width],
        "embedding" if spec.head == "projection" else "classes": spec.classes,
        "task": spec.task,
    }


def _text(path: Path) -> Inspection:
    if path.suffix in _TABLES:
        return _data(path)
    size = path.stat().st_size
    if path.suffix not in (".toml", ".json") or size > LARGEST_TEXT:
        raise InputError("VD3005", "is a text file of no kind that vitdeploy knows", file=path)
    try:
        text = files.read_bytes(path, files.LARGEST_TEXT).decode()
        table = tomllib.loads(text) if path.suffix == ".toml" else msgspec.json.decode(text)
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError("VD3005", f"is not valid {path.suffix[1:].upper()}: {exc}", file=path) from exc
    made: dict[str, Any] = {"path": str(path), "bytes": size, "sha256": files.sha256(path)}
    keys = set(table) if isinstance(table, dict) else set()
    if "rename" in keys:
        return _read_mapping(table, made)
    if "model" in keys:
        recipe = Recipe.load(path)
        stages = [name for name in recipe.__struct_fields__ if name != "model" and getattr(recipe, name) is not None]
        facts = {"model": recipe.model.source, "weights": recipe.model.weights, "stages": stages}
        return Inspection(**made, kind="recipe", facts=facts)
    if {"title", "rows"} <= keys:
        return _report(path, made)
    if path.name == RECORD:
        return _artifact(path.absolute().parent)
    if path.name == "config.json" and keys & {"model_type", "architecture", "architectures"}:
        return _folder(path.absolute().parent)  # it describes the weights beside it
    if keys and keys <= set(ContractFile.__struct_fields__):
        contract = read_contract(path)
        more = {"task": table["task"]} if "task" in keys else {}
        return Inspection(**made, kind="contract", contract=contract, facts={"image": [contract.height, contract.width], **more})
    if "name" in keys:
        spec = read_spec(path)
        return Inspection(**made, kind="spec", spec=spec, contract=spec.input, facts=_model(spec))
    fix = "a recipe has a table [model], a spec has a name, a mapping has a table [rename]"
    raise InputError("VD3005", "is neither a recipe nor a spec, contract, mapping or report", file=path, fix=fix)


def _read_mapping(table: dict[str, Any], made: dict[str, Any]) -> Inspection:
    counts = {name: len(table[name]) for name in ("rename", "leave_out", "change") if isinstance(table.get(name), dict)}
    spec = table.get("spec")
    named = spec if isinstance(spec, str) else "in the file"
    return Inspection(**made, kind="mapping", facts={"spec": named, "patterns": counts})


def _report(path: Path, made: dict[str, Any]) -> Inspection:
    try:
        report = msgspec.json.decode(files.read_bytes(path, files.LARGEST_TEXT), type=Report, strict=False)
    except msgspec.MsgspecError as exc:
        raise InputError("VD3005", f"is no report: {exc}", file=path) from exc
    facts = {
        "title": report.title,
        "taken": report.taken,
        "machine": report.machine.cpu,
        "reference": report.reference,
        "subjects": [row.subject for row in report.rows],
        "parts": [part.title for part in report.parts],
    }
    return Inspection(**made, kind="report", facts=facts, notes=report.notes)


def _data(path: Path) -> Inspection:
    from vitdeploy.data.dataset import open_dataset

    try:
        data = open_dataset(path)
    except UsageError as exc:  # several splits: say which
        return Inspection(path=str(path), kind="data", notes=(f"{exc.message}; {exc.fix}",))
    classes = data.classes
    facts = {
        "images": len(data),
        "labels": data.labels is not None,
        "classes": None if classes is None else len(classes),
        "first_classes": list(classes[:5]) if classes else [],
    }
    size = path.stat().st_size if path.is_file() else 0
    return Inspection(path=str(path), kind="data", bytes=size, sha256=data.digest, facts=facts)


def _image(path: Path) -> Inspection:
    from PIL import Image

    from vitdeploy.data.images import orientation

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size: nothing is decoded here
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                turned = orientation(image.info.get("exif"))
                facts = {"format": image.format, "height": image.height, "width": image.width, "mode": image.mode}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        fix = "give a model, a checkpoint, a recipe, an image (JPEG, PNG, WebP, BMP) or data"
        raise InputError("VD3005", "is of no kind that vitdeploy knows", file=path, fix=fix) from exc
    facts["exif_orientation"] = turned
    return Inspection(path=str(path), kind="image", bytes=path.stat().st_size, sha256=files.sha256(path), facts=facts)
