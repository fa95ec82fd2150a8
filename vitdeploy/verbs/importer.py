"""A ViT's ONNX file that was made elsewhere, as an artifact.

What the file does not say is taken from its caller: how images become its input, always; which output is judged, and as what,
where the guess from shapes, the last operators and names is wrong. Every guess is noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from vitdeploy import files
from vitdeploy.amendments import read_contract, read_task
from vitdeploy.artifact import Artifact, Record, sanitize
from vitdeploy.backends.base import run_any
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.onnxfile import check
from vitdeploy.onnxfile.model import Port
from vitdeploy.onnxfile.nodes import Nodes
from vitdeploy.onnxfile.precision import read_precision
from vitdeploy.onnxfile.summary import summarize
from vitdeploy.proof import golden
from vitdeploy.record import Origin
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.words import GIVES, Task

Sizes = tuple[int, ...]
"""Of one image's part of an output: without the batch axis."""

_FLOATS = ("float32", "float16", "bfloat16", "float64", "")
_VECTORS = ("embed", "pool", "feat", "hidden", "token", "latent")
"""In the names of outputs that are no classes: those of transformers, optimum, timm and open_clip."""
_CLASSES = ("logit", "prob", "class", "score")
"""In the names of outputs that are, whatever else is in them."""
_BETWEEN = ("Clip", "Max", "Expand", "Add", "Sqrt", "Cast")
"""Between a vector's length and the division by it."""


class Outputs(NamedTuple):
    """What a caller says of a file's outputs; None is to be found out.

    Attributes:
        name: The main one.
        task: What it is.
    """

    name: str | None = None
    task: Task | None = None


def open_foreign(path: Path, contract: Path | InputContract, outputs: Outputs | None = None, *, name: str = "") -> Artifact:
    """A ViT's ONNX file that was made elsewhere, with what it lacks.

    Args:
        path: The file. Its input may have any name, and so may its outputs.
        contract: The input contract, or its file (.toml or .json), which may say the task too.
        outputs: The main output and what it is. It is the first of numbers [N, K] by the shapes that the file declares or,
            where it does not say, that one run shows; else the first of all, as a vector.
        name: Of the model; the file's without one.

    Raises:
        InputError: VD3011 not ONNX; VD3027 it would crash an engine; VD3107 its input does not fit the contract.
        UsageError: As `amendments.read_contract`; VD2003 no such output; VD2010 no output of floats.
        TrustError: VD7001, VD7005 it reaches outside itself.
        MachineError: VD4001, VD4004, VD4007, VD4008: it had to be run, and could not be.
    """
    outputs = outputs or Outputs()
    model = check.check_file(path).model
    graph, nodes = summarize(model), Nodes(model)
    known = contract if isinstance(contract, InputContract) else read_contract(contract)
    spec = ModelSpec(name=name or path.stem, network="module", input=known)
    if len(graph.inputs) != 1 or not graph.outputs:
        raise InputError("VD3107", f"has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, not one image", file=path)
    candidates = _list_candidates(path, graph.outputs, outputs.name)
    sizes = {port.name: _read_sizes(port) for port in candidates}
    chosen = _choose(sizes)
    if chosen is None:
        sizes = _measure(Artifact(path.parent, Record(entry=path.name, spec=spec, made_by="import")), sizes)
        chosen = _choose(sizes) or candidates[0].name
    shape = sizes[chosen]
    assert shape is not None  # it was chosen, or measured
    said = outputs.task or (None if isinstance(contract, InputContract) else read_task(contract))
    task, why = (said, "") if said else _guess_task(nodes, chosen, shape)
    probabilities = task != "embedding" and _ends_with(nodes, chosen) in ("Softmax", "Sigmoid")
    spec = msgspec.structs.replace(spec, classes=math.prod(shape), output_name=chosen, probabilities=probabilities)
    notes = (
        [f"the main output is {chosen!r}; say --output for another"] if outputs.name is None and len(graph.outputs) > 1 else []
    )
    notes += [f"{chosen!r} is taken for {GIVES[task]}: {why}; say --task for another"] if why else []
    record = Record(
        precision=read_precision(model),
        entry=path.name,
        spec=spec.change_task(task),
        made_by="import",
        origin=Origin(notes=tuple(notes)),
    )
    return Artifact(path.parent, record)


def _list_candidates(path: Path, ports: tuple[Port, ...], wanted: str | None) -> list[Port]:
    names = [port.name for port in ports]
    if wanted is not None and wanted not in names:
        fix = nearest(wanted, names) or f"choose from: {', '.join(names)}"
        raise UsageError("VD2003", f"has no output {wanted!r}", file=path, fix=fix)
    floats = [port for port in ports if port.dtype in _FLOATS and wanted in (None, port.name)]
    if not floats:
        message = f"gives {', '.join(f'{port.name} ({port.dtype})' for port in ports)}, and no floating-point numbers"
        raise UsageError("VD2010", message, file=path, fix="export the logits or the embedding, not what follows from them")
    return floats


def _read_sizes(port: Port) -> Sizes | None:
    """What the file declares of an output; None where that is not all."""
    sizes = tuple(size for size in (port.shape or ())[1:] if isinstance(size, int))
    return sizes if port.shape and len(sizes) == len(port.shape) - 1 else None


def _choose(sizes: Mapping[str, Sizes | None]) -> str | None:
    """The first output [N, K], axes of one element left out; None where one before it is not known."""
    for name, each in sizes.items():
        if each is None:
            return None
        if sum(size != 1 for size in each) <= 1:
            return name
    return None


def _measure(artifact: Artifact, wanted: Mapping[str, object]) -> dict[str, Sizes | None]:
    """The sizes of some outputs, by one run on a generated image."""
    contract = artifact.spec.input
    tensor = images.to_tensor(synthetic.pixels(1, contract), contract)
    with files.temporary_folder() as folder:
        sane, _ = sanitize(artifact, Path(folder))
        with closing(golden.open_first(sane)) as runner:
            outputs = run_any(runner, tensor)
    return {name: outputs[name].shape[1:] for name in wanted if outputs[name].ndim}


def _guess_task(nodes: Nodes, name: str, sizes: Sizes) -> tuple[Task, str]:
    """What an output is, and why it is not taken for what is usual."""
    if sum(size != 1 for size in sizes) > 1:
        return "embedding", f"it has {' x '.join(map(str, sizes))} numbers for an image"
    if _is_normalised(nodes, name):
        return "embedding", "its length is made 1"
    if _ends_with(nodes, name) == "Sigmoid":
        return "multi_label", "it ends with a sigmoid"
    words = name.lower()
    if any(word in words for word in _VECTORS) and not any(word in words for word in _CLASSES):
        return "embedding", f"its name is {name!r}"
    return "single_label", ""


def _ends_with(nodes: Nodes, name: str) -> str:
    last = nodes.origin(name)
    return "" if last is None else last.type


def _is_normalised(nodes: Nodes, name: str) -> bool:
    """Whether a vector is divided by its length: LpNormalization, or what exporters write instead."""
    last = nodes.origin(name)
    if last is None or last.type != "Div":
        return last is not None and last.type == "LpNormalization"
    rooted, node = False, nodes.origin(last.inputs[1])
    for _ in _BETWEEN:  # no exporter writes more, and a damaged graph may have a loop
        if node is None or node.type not in _BETWEEN:
            break
        rooted |= node.type == "Sqrt"
        node = next((maker for maker in map(nodes.origin, node.inputs) if maker is not None), None)
    return node is not None and (node.type == "ReduceL2" or (rooted and node.type in ("ReduceSum", "ReduceSumSquare")))
