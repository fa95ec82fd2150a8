"""The largest magnitude of every float tensor over calibration images: whether FP16 can hold it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig, Runner
from vitdeploy.errors import InputError
from vitdeploy.graph import storage
from vitdeploy.graph.half.ranges import Taps, tap
from vitdeploy.spec import ModelSpec


def maxima(
    model: ir.Model,
    batches: Iterable[tuple[NDArray[Any], Sequence[str]]],
    folder: Path,
    *,
    spec: ModelSpec,
    threads: int | None,
) -> dict[str, float]:
    """Largest magnitude of each float tensor; infinity where one appeared.

    Args:
        model: The graph.
        batches: Images as the graph takes them, with their names.
        folder: For the observed form of the graph, which is removed again.
        spec: The model's input contract.
        threads: Threads of the engine; None is the number of cores.

    Raises:
        InputError: VD3110, a tensor is NaN on an image.
        MachineError: VD4004, the engine failed; VD4006, out of memory.
    """
    taps = tap(model)
    observed = Artifact(folder, Record(spec=spec, made_by="quantize", entry="observed.onnx"))
    storage.write(taps.model, observed.model)
    largest = dict.fromkeys(taps.outputs.values(), 0.0)
    try:
        with closing(table.load(table.PROVER).open(observed, OpenConfig(threads=threads))) as runner:
            for batch, names in batches:
                size = runner.batch or len(batch)
                for start in range(0, len(batch), size):
                    part = batch[start : start + size]
                    for tensor, value in _run(runner, part, taps).items():
                        largest[tensor] = max(largest[tensor], value)
                        if math.isnan(value):
                            _refuse_nan(runner, part, names[start:], taps)
    finally:
        for left in folder.glob("observed.onnx*"):
            left.unlink()
    return largest


def _run(runner: Runner, part: NDArray[Any], taps: Taps) -> dict[str, float]:
    """Tensor to its largest magnitude on a few images; a fixed batch is filled up with the last."""
    size = runner.batch or len(part)
    outputs = runner.run(np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]))
    return {tensor: float(outputs[name].reshape(())) for name, tensor in taps.outputs.items()}


def _refuse_nan(runner: Runner, part: NDArray[Any], names: Sequence[str], taps: Taps) -> NoReturn:
    """Name the first image of the batch that gives NaN, and the first tensor: what comes after it is NaN too."""
    for place, name in zip(range(len(part)), names, strict=False):
        tensor = next(
            (tensor for tensor, value in _run(runner, part[place : place + 1], taps).items() if math.isnan(value)), None
        )
        if tensor is not None:
            message = f"the tensor {tensor!r} is NaN on the image {name!r}"
            break
    else:
        message = f"a tensor is NaN on the images {names[0]!r} to {names[len(part) - 1]!r} together, and on none of them alone"
    raise InputError("VD3110", message, fix="check the weights, and that the image is prepared as the model wants")
