"""An engine that vitdeploy does not ship: onnx's own evaluator of its specification, with a compiler that copies the file.

It is all that a new engine has to be: the protocols in one file, and one row.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import onnx
from onnx.reference import ReferenceEvaluator

from vitdeploy.artifact import Artifact
from vitdeploy.backends import settings
from vitdeploy.backends.base import (
    Compiled,
    Kernel,
    OpenConfig,
    Outputs,
    Profile,
    Spent,
    Tensor,
    check_tensor,
    count_threads,
    require_cpu,
    require_f32,
)
from vitdeploy.backends.table import Engine, Target
from vitdeploy.errors import library
from vitdeploy.onnxfile.nodes import Node, Nodes, read_nodes
from vitdeploy.recipe import CompileConfig

ROW = Engine("fake", f"{__name__}:Fake", "onnx", "quantize", target=Target(("int8",)), capped=True)
_MODEL = "copy.onnx"


class Fake:
    """Opens artifacts in the evaluator, and compiles them by copying."""

    name = ROW.name

    def open(self, artifact: Artifact, config: OpenConfig) -> FakeRunner:
        """Load the file."""
        config = settings.merge_settings(self.name, artifact, config, ("threads", "device", "precision"))
        require_cpu(self.name, config)
        require_f32(self.name, config)
        return FakeRunner(artifact, config)

    def compile(self, artifact: Artifact, config: CompileConfig, folder: Path, *, again: bool = False) -> Compiled:
        """Copy the file."""
        settings.require_only(self.name, config, ("backend", "threads", "optimise"))
        shutil.copyfile(artifact.model, folder / _MODEL)
        return Compiled(entry=_MODEL, run=OpenConfig(threads=config.threads), facts={"onnx": onnx.__version__})

    def candidates(self, config: CompileConfig) -> tuple[OpenConfig, ...]:
        """There is nothing to choose."""
        return (OpenConfig(threads=config.threads),)


class FakeRunner:
    """The evaluator with its file."""

    def __init__(self, artifact: Artifact, config: OpenConfig) -> None:
        self._artifact = artifact
        with library("onnx", artifact.model):
            self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(str(artifact.model))
            shape = onnx.load(artifact.model).graph.input[0].type.tensor_type.shape
        self.batch: int | None = shape.dim[0].dim_value or None
        self.settings: dict[str, Any] = {
            "backend": Fake.name,
            "version": onnx.__version__,
            "threads": count_threads(config),
            "device": "cpu",
            "precision": artifact.record.precision,
        }

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        assert self._evaluator is not None
        with library("onnx", self._artifact.model):
            values = self._evaluator.run(None, {self._evaluator.input_names[0]: pixels})
        return {name: value.copy() for name, value in zip(self._evaluator.output_names, values, strict=True)}

    def kernels(self) -> tuple[Kernel, ...]:
        """The products of the file: what is dequantized on both sides counts as a product of integers."""
        nodes = read_nodes(self._artifact.model)
        return tuple(_kernel(node, nodes) for node in nodes.all if node.operator in ("MatMul", "Gemm", "Conv"))

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """The evaluator tells no times: a run is one operator."""
        begun = time.perf_counter()
        for _ in range(runs):
            self.run(tensor)
        run_ms = 1e3 * (time.perf_counter() - begun) / runs
        return Profile(run_ms, (Spent("", "model", run_ms),))

    def close(self) -> None:
        """Drop the evaluator."""
        self._evaluator = None


def _kernel(node: Node, nodes: Nodes) -> Kernel:
    makers = [maker.operator if (maker := nodes.origin(value)) else "" for value in node.inputs[:2]]
    weights = any(nodes.is_constant(value) for value in node.inputs[:2])
    role = "conv" if node.operator == "Conv" else "gemm" if weights else "attention"
    return Kernel(node.name, node.operator, role, "int8" if makers == ["DequantizeLinear"] * 2 else "fp32")
