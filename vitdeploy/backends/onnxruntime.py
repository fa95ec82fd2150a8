"""ONNX Runtime: the exported file on the CPU, in float32 as it is written."""

from __future__ import annotations

from typing import Any

import onnxruntime

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Outputs, Tensor, checked, only_cpu, threads
from vitdeploy.errors import EnvironmentError_, library

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntime:
    """Opens artifacts in ONNX Runtime."""

    name = "onnxruntime"

    def open(self, artifact: Artifact, config: OpenConfig) -> OnnxRuntimeRunner:
        """Load the file with all graph optimisations.

        Raises:
            UsageError: VD2011, another device than ``cpu``.
            EnvironmentError_: VD4004, the engine refused the model or the provider; VD4006, out of memory.
        """
        only_cpu(self.name, config)
        return OnnxRuntimeRunner(artifact, threads(config))


class OnnxRuntimeRunner:
    """A session. Intra-operator threads as asked, operators one after the other: a ViT has no parallel branches."""

    def __init__(self, artifact: Artifact, count: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what fails is raised; warnings about provider choice are noise here
        with library("onnxruntime", artifact.model):
            session = onnxruntime.InferenceSession(str(artifact.model), options, providers=[_PROVIDER])
        used = session.get_providers()
        if used != [_PROVIDER]:
            raise EnvironmentError_("VD4004", f"onnxruntime: uses {used} instead of {_PROVIDER}", file=artifact.model)
        self._session: Any = session
        self._artifact = artifact
        self._input = session.get_inputs()[0]
        self._names = [output.name for output in session.get_outputs()]
        self.settings: dict[str, Any] = {
            "backend": OnnxRuntime.name,
            "version": onnxruntime.__version__,
            "threads": count,
            "device": "cpu",
            "precision": artifact.record.precision,
        }

    @property
    def batch(self) -> int | None:
        """The batch written into the file, or None when it is dynamic."""
        first = self._input.shape[0]
        return first if isinstance(first, int) else None

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = checked(tensor, self._artifact.spec.input, self.batch)
        with library("onnxruntime", self._artifact.model):
            values = self._session.run(self._names, {self._input.name: pixels})
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Drop the session."""
        self._session = None
