"""The largest magnitude of every float tensor over calibration images: whether FP16 can hold it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.graph import storage
from vitdeploy.graph.half.ranges import tap
from vitdeploy.spec import ModelSpec


def maxima(
    model: ir.Model, batches: Iterable[NDArray[Any]], folder: Path, *, spec: ModelSpec, threads: int | None
) -> dict[str, float]:
    """Largest magnitude of each float tensor; infinity or NaN where one appeared.

    Args:
        model: The graph.
        batches: Images as the graph takes them.
        folder: For the observed form of the graph, which is removed again.
        spec: The model's input contract.
        threads: Threads of the engine; None is the number of cores.

    Raises:
        MachineError: VD4004, the engine failed; VD4006, out of memory.
    """
    taps = tap(model)
    observed = Artifact(folder, Record(spec=spec, made_by="quantize", entry="observed.onnx"))
    storage.write(taps.model, observed.model)
    largest = dict.fromkeys(taps.outputs.values(), 0.0)
    try:
        with closing(table.load(table.PROVER).open(observed, OpenConfig(threads=threads))) as runner:
            for batch in batches:
                size = runner.batch or len(batch)
                for start in range(0, len(batch), size):
                    part = batch[start : start + size]
                    outputs = runner.run(np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]))
                    for name, tensor in taps.outputs.items():
                        largest[tensor] = float(np.maximum(largest[tensor], np.float64(outputs[name].reshape(()))))
    finally:
        for left in folder.glob("observed.onnx*"):
            left.unlink()
    return largest
