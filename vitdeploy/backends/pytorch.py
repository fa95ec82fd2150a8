"""PyTorch: the original network, rebuilt from the artifact's spec and weights. What the other engines are compared with."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import torch

from vitdeploy import images
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Outputs, Tensor, checked, only_cpu, only_f32, threads
from vitdeploy.errors import InputError, library
from vitdeploy.graph.census import Kernel
from vitdeploy.models import original


class PyTorch:
    """Opens the PyTorch original of an artifact."""

    name = "pytorch"

    def open(self, artifact: Artifact, config: OpenConfig) -> PyTorchRunner:
        """Build the network and load its weights.

        The number of threads is PyTorch's own and holds for the whole process.

        Raises:
            UsageError: VD2011, another device than ``cpu`` or precision than ``f32``.
            InputError: VD3010, the artifact does not carry the original (a bare .onnx); else as `models.original`.
            EnvironmentError_: VD4004, torch failed; VD4006, out of memory.
        """
        only_cpu(self.name, config)
        only_f32(self.name, config)
        return PyTorchRunner(artifact, threads(config))


class PyTorchRunner:
    """The network in evaluation mode, eager, float32.

    A file that takes raw bytes has the normalisation inside; here it is done before the network, so that all backends take
    the same tensor.
    """

    batch: int | None = None

    def __init__(self, artifact: Artifact, count: int) -> None:
        if artifact.weights is None:
            fix = "give the folder that `vitdeploy export` wrote"
            raise InputError("VD3010", "does not carry the PyTorch original's weights", file=artifact.model, fix=fix)
        self._contract = artifact.spec.input
        self._plain = msgspec.structs.replace(self._contract, tensor="float32-nchw")
        spec = msgspec.structs.replace(artifact.spec, input=self._plain)
        with library("torch", artifact.weights):
            torch.set_num_threads(count)
            self._model: Any = original(spec, artifact.weights)
        self._output = spec.output
        self.settings: dict[str, Any] = {
            "backend": PyTorch.name,
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "precision": "fp32",
        }

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. The main output only."""
        pixels = checked(tensor, self._contract)
        if self._contract.tensor != "float32-nchw":
            raw = pixels.transpose(0, 2, 3, 1) if self._contract.tensor == "uint8-nchw" else pixels
            pixels = images.to_tensor(raw, self._plain)
        pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns about read-only memory
        with library("torch"), torch.inference_mode():
            result = self._model(torch.from_numpy(pixels))
            return {self._output: np.array(result.numpy(), np.float32)}

    def kernels(self) -> tuple[Kernel, ...]:
        """None: eager PyTorch runs the network as it is written, in float32."""
        return ()

    def close(self) -> None:
        """Drop the network."""
        self._model = None
