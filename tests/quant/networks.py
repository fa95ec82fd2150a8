"""A small network whose arithmetic is exact, and calibrations of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.quant.calibrator import CalibrateConfig, Images, Want, calibrate
from vitdeploy.quant.observations import Statistics

TOKENS, WIDTH, HIDDEN = 3, 4, 6
WANTS = (Want("hidden", rows=16), Want("active", rows=5), Want("weights", rows=0))


def network(*, batch: str | int = "batch", shapes: bool = True, first: str = "images") -> onnx.ModelProto:
    """Tokens times a matrix of powers of two (so that no rounding depends on the batch), a Relu, a softmax over tokens.

    Args:
        batch: The first axis of the input.
        shapes: Whether the graph lets an engine know the tensors' shapes.
        first: ``images``, or ``tokens`` when inner tensors have the tokens along their first axis.
    """
    matrix = 2.0 ** np.random.default_rng(0).integers(-2, 3, (WIDTH, HIDDEN))
    size = [batch, TOKENS, WIDTH]
    initializers = [numpy_helper.from_array(matrix.astype(np.float32), "matrix")]
    start = "pixels"
    nodes = []
    if not shapes:  # a reshape to a computed shape hides it
        nodes += [helper.make_node("Shape", ["pixels"], ["size"]), helper.make_node("Abs", ["size"], ["hiding"])]
        nodes += [helper.make_node("Reshape", ["pixels", "hiding"], ["hidden from inference"])]
        start = "hidden from inference"
    if first == "tokens":
        nodes.append(helper.make_node("Transpose", [start], ["turned"], perm=[1, 0, 2]))
        start = "turned"
    nodes += [
        helper.make_node("MatMul", [start, "matrix"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Softmax", ["hidden"], ["weights"]),
        helper.make_node("ReduceMax", ["weights"], ["out"], keepdims=0),
        helper.make_node("Shape", ["hidden"], ["whole numbers"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def pictures(count: int, *, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Small whole numbers: their products and sums are exact in float32."""
    return (scale * np.random.default_rng(seed).integers(-64, 64, (count, TOKENS, WIDTH))).astype(np.float32)


def stream(pixels: np.ndarray, size: int = 8, *, order: np.ndarray | None = None) -> Iterator[Images]:
    order = np.arange(len(pixels)) if order is None else order
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield pixels[part], tuple(f"image {place}" for place in part)


def run(model: Path | bytes, batches, **settings) -> Statistics:
    options = {"limit": 500, "minimum": 500, "threads": 1} | settings
    return calibrate(model, WANTS, batches, CalibrateConfig(**options))


def saved(statistics: Statistics, folder: Path) -> bytes:
    """Everything it knows, to the bit."""
    statistics.notes.clear()
    statistics.save(folder / "compare.zip")
    return (folder / "compare.zip").read_bytes()
