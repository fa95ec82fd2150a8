"""What can be quantized, and that its rewritten graph is the same function."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import PROVER, load
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.proof.finite import require_finite
from vitdeploy.proof.thresholds import REWRITTEN
from vitdeploy.quant.pictures import Pictures

Array = NDArray[Any]


def require_float(artifact: Artifact) -> None:
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


def compare_rewritten(source: Artifact, rewritten: Path, pictures: Pictures | None, threads: int | None) -> float:
    """Run the source and the rewritten graph on a few images.

    Args:
        source: What was rewritten.
        rewritten: The ONNX file.
        pictures: Where the images come from; None generates some.
        threads: Of the engine.

    Returns:
        The largest difference over all outputs of floats, as a share of the standard deviation of the source's.

    Raises:
        InputError: VD3110, the source's own output is NaN or infinite.
        MachineError: VD4003, the two differ.
    """
    contract = source.spec.input
    tensor, names = next(pictures.part("ranges"), (None, ())) if pictures is not None else (None, ())
    if tensor is None:
        tensor, names = images.to_tensor(synthetic.pixels(4, contract), contract), ("a generated one",) * 4
    other = Artifact(rewritten.parent, Record(spec=source.spec, made_by="quantize", entry=rewritten.name))
    rows = []
    for each in (source, other):
        with closing(load(PROVER).open(each, OpenConfig(threads=threads))) as runner:
            rows.append(run_any(runner, tensor[:4]))
    floats = [name for name, values in rows[0].items() if values.dtype.kind == "f"]
    return max(_compare(source, name, (rows[0][name], rows[1][name]), names) for name in floats)


def _compare(source: Artifact, output: str, values: tuple[Array, Array], names: Sequence[str]) -> float:
    """The largest difference of one output; ``names`` are the images'."""
    expected, rewritten = (each.astype(np.float64) for each in values)
    require_finite(source, output, expected, names)
    apart = float(np.abs(expected - rewritten).max() / (expected.std() or 1.0))
    if not apart <= REWRITTEN:
        message = f"the rewritten graph's output {output!r} differs from the source by {apart:.2g} of its standard deviation"
        fix = "leave a rewrite out with --skip, and report this model"
        raise MachineError("VD4003", message, file=source.model, fix=fix)
    return apart
