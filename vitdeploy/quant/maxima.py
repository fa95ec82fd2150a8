"""The largest magnitude of every float tensor over calibration images: whether FP16 can hold it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from vitdeploy.errors import library
from vitdeploy.graph import storage
from vitdeploy.graph.half.ranges import tapped


def maxima(model: ir.Model, batches: Iterable[NDArray[Any]], folder: Path, *, threads: int) -> dict[str, float]:
    """Largest magnitude of each float tensor; infinity or NaN where one appeared.

    Args:
        model: The graph.
        batches: Images as the graph takes them.
        folder: For the observed form of the graph, which is removed again.
        threads: Threads of the engine.

    Raises:
        MachineError: VD4004, the engine failed; VD4006, out of memory.
    """
    taps = tapped(model)
    path = folder / "observed.onnx"
    storage.write(taps.model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in model.graph.initializers.values()):
        options.add_session_config_entry("session.disable_quant_qdq", "1")  # it takes 8-bit floats for integers, and then fails
    names = list(taps.outputs)
    found = dict.fromkeys(taps.outputs.values(), 0.0)
    try:
        with library("onnxruntime", path):
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            fixed = session.get_inputs()[0].shape[0]
            for batch in batches:
                size = fixed if isinstance(fixed, int) else len(batch)
                for start in range(0, len(batch), size):
                    part = batch[start : start + size]
                    whole = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
                    for name, value in zip(names, session.run(names, {session.get_inputs()[0].name: whole}), strict=True):
                        tensor = taps.outputs[name]
                        found[tensor] = float(np.maximum(found[tensor], np.float64(np.asarray(value).reshape(()))))
    finally:
        for left in folder.glob("observed.onnx*"):
            left.unlink()
    return found
