"""The PyTorch original through ``torch.compile``: a peer that the benchmarks register as an engine of their own."""

from __future__ import annotations

import torch

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.pytorch import PyTorch, PyTorchRunner
from vitdeploy.backends.table import Engine

ROW = Engine("torch-compile", f"{__name__}:TorchCompile", "torch", "export", compiles=False, floats=("f32", "bf16"))


class TorchCompile(PyTorch):
    """Opens the original, compiled for each batch size on its own; the first run of each takes tens of seconds."""

    name = ROW.name

    def open(self, artifact: Artifact, config: OpenConfig) -> PyTorchRunner:
        """Build the network; see `PyTorch.open`."""
        runner = super().open(artifact, config)
        # static: kernels for just this shape; fullgraph: a part that stayed eager would go unnoticed; one thread: in this
        # process, with no pool of others that idles while runs are timed
        runner._run = torch.compile(runner._run, fullgraph=True, dynamic=False, options={"compile_threads": 1})
        runner.settings |= {"backend": self.name, "compiler": "inductor, each batch size on its own"}
        return runner
