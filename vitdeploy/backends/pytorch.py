"""PyTorch: the original network, rebuilt from the artifact's spec and weights. What the other engines are compared with.

It runs as it is written, in float32, unless something else is asked for: in bfloat16, through ``torch.compile``, or both.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from vitdeploy.artifact import Artifact
from vitdeploy.backends import settings
from vitdeploy.backends.base import Kernel, OpenConfig, Outputs, Tensor, checked, only_cpu, threads
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.data import images
from vitdeploy.errors import InputError, MachineError, UsageError, library

_PRECISIONS = {None: "fp32", "f32": "fp32", "bf16": "bf16"}
_TAKES = ("threads", "device", "precision", "compiled")
_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"compile_threads": 1}
"""Of ``torch.compile``: in this process, with no pool of others that idles while runs are timed."""
_MOST_SIZES = 1024
"""Batch sizes that one process compiles for; PyTorch's own limit is 8, over all networks, and goes on uncompiled behind it."""

_Function = Callable[[torch.Tensor], torch.Tensor]


class PyTorch:
    """Opens the PyTorch original of an artifact."""

    name = "pytorch"

    def open(self, artifact: Artifact, config: OpenConfig) -> PyTorchRunner:
        """Build the network and load its weights.

        The number of threads is PyTorch's own and holds for the whole process. With `OpenConfig.compiled`, the first run of
        each batch size compiles, which takes tens of seconds.

        Raises:
            UsageError: VD2011, another device than ``cpu``, precision than ``f32`` or ``bf16``, or a setting that PyTorch does
                not have.
            InputError: VD3010, the artifact does not carry the original (a bare .onnx); else as `safetensors.rebuild`.
            MachineError: VD4004, torch failed; VD4006, out of memory; VD4010, no C++ compiler for ``torch.compile``.
        """
        config = settings.merge_settings(self.name, artifact, config, _TAKES)
        only_cpu(self.name, config)
        if config.precision not in _PRECISIONS:
            message = f"the backend {self.name!r} computes in 'f32' or 'bf16' on the CPU, not in {config.precision!r}"
            raise UsageError("VD2011", message, fix="leave the precision out, or use bf16")
        if artifact.weights is None:
            fix = "give the folder that `vitdeploy export` wrote"
            raise InputError("VD3010", "does not carry the PyTorch original's weights", file=artifact.model, fix=fix)
        if config.compiled:
            _find_compiler()
        return PyTorchRunner(artifact, config)


class PyTorchRunner:
    """The network in evaluation mode.

    A file that takes raw bytes has the normalisation inside; here it is done before the network, so that all backends take
    the same tensor.
    """

    batch: int | None = None

    def __init__(self, artifact: Artifact, config: OpenConfig) -> None:
        assert artifact.weights is not None
        self._contract = artifact.spec.input
        self._plain = msgspec.structs.replace(self._contract, tensor="float32-nchw")
        spec = msgspec.structs.replace(artifact.spec, input=self._plain)
        half = config.precision == "bf16"
        with library("torch", artifact.weights):
            torch.set_num_threads(threads(config))
            network: Any = rebuild(spec, artifact.weights)
            self._run: _Function | None = _in_bfloat16(network) if half else network
            if config.compiled:
                # static: kernels for just this shape; fullgraph: a part that stayed eager would go unnoticed
                self._run = torch.compile(self._run, fullgraph=True, dynamic=False, options=dict(_OPTIONS))
        self._compiled_for: set[int] | None = set() if config.compiled else None
        self._output = spec.output
        self.settings: dict[str, Any] = {
            "backend": PyTorch.name,
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "precision": _PRECISIONS[config.precision],
            "compiled": config.compiled,
        }
        if half:
            self.settings["bf16"] = "autocast, weights of linear layers and convolutions kept in bfloat16"
        if config.compiled:
            self.settings["compiler"] = "inductor, each batch size on its own"

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. The main output only."""
        pixels = checked(tensor, self._contract)
        if self._contract.tensor != "float32-nchw":
            raw = pixels.transpose(0, 2, 3, 1) if self._contract.tensor == "uint8-nchw" else pixels
            pixels = images.to_tensor(raw, self._plain)
        pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns about read-only memory
        assert self._run is not None
        with library("torch"), torch.inference_mode(), _room_for(len(pixels), self._compiled_for):
            result = self._run(torch.from_numpy(pixels))
            return {self._output: np.array(result.numpy(), np.float32)}

    def kernels(self) -> tuple[Kernel, ...]:
        """None: PyTorch runs the layers of the network as it is written, and nothing in it is quantized."""
        return ()

    def close(self) -> None:
        """Drop the network."""
        self._run = None


def _in_bfloat16(network: nn.Module) -> _Function:
    """The network with its products in bfloat16; sums of the residual stream, norms and the result stay float32.

    Autocast alone would convert the weights in every run, so those of the layers that multiply are converted here, once.
    Converting the whole network is hardly faster, and its output is further from that in float32.

    Args:
        network: Changed in place.
    """
    for part in network.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.to(torch.bfloat16)

    def run(pixels: torch.Tensor) -> torch.Tensor:  # [N, C, H, W]
        with torch.autocast("cpu", torch.bfloat16):
            result: torch.Tensor = network(pixels)
        return result.float()

    return run


@contextmanager
def _room_for(size: int, known: set[int] | None) -> Iterator[None]:
    """Let the first run of a batch size compile, however many were compiled before it.

    Args:
        size: The batch.
        known: Sizes that are compiled, to which this one is added; None where nothing is compiled.

    Raises:
        MachineError: VD4004, it does not compile.
    """
    if known is None or size in known:
        yield
        return
    import torch._dynamo  # seconds, and only needed here

    limits: Any = torch._dynamo.config
    room = limits.patch(recompile_limit=_MOST_SIZES, accumulated_recompile_limit=_MOST_SIZES)
    with room, warnings.catch_warnings(), library("torch.compile"):
        warnings.simplefilter("ignore")  # of PyTorch about its own parts
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as exc:
            raise _innermost(exc) from exc
    known.add(size)


def _innermost(error: Exception) -> Exception:
    """What went wrong, out of what PyTorch has wrapped around it."""
    while isinstance(inner := getattr(error, "inner_exception", None), Exception):
        error = inner
    return error


def _find_compiler() -> None:
    """Look for the C++ compiler now, and not in the middle of the first run.

    Raises:
        MachineError: VD4010, none of those that PyTorch looks for answers.
    """
    with library("torch"):
        from torch._inductor import config

        found: Any = config.cpp.cxx
    names = [name for name in (found if isinstance(found, list | tuple) else [found]) if name]
    if not any(_answers(name) for name in names):
        message = f"torch.compile needs a C++ compiler; none answers (looked for {', '.join(names)})"
        raise MachineError("VD4010", message, fix="install g++, or name a compiler in the variable CXX")


def _answers(compiler: str) -> bool:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, check=False)  # noqa: S603 (what PyTorch would run)
    except OSError:
        return False
    return done.returncode == 0
