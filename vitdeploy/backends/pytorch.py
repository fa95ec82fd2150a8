"""PyTorch: the original network, rebuilt from the artifact's spec and weights. What the other engines are compared with.

It runs as it is written, in float32, or in bfloat16 where that is asked for.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from vitdeploy.artifact import Artifact
from vitdeploy.backends import settings
from vitdeploy.backends.base import (
    Kernel,
    OpenConfig,
    Outputs,
    Profile,
    Spent,
    Tensor,
    check_tensor,
    count_threads,
    require_cpu,
)
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.data import images
from vitdeploy.errors import InputError, UsageError, library
from vitdeploy.files import sha256
from vitdeploy.models.modules import load_module
from vitdeploy.onnxfile.points import CONTEXT
from vitdeploy.spec import ModelSpec

_PRECISIONS = {None: "fp32", "f32": "fp32", "bf16": "bf16"}
_TAKES = ("threads", "device", "precision")

_Function = Callable[[torch.Tensor], torch.Tensor]


class PyTorch:
    """Opens the PyTorch original of an artifact."""

    name = "pytorch"

    def open(self, artifact: Artifact, config: OpenConfig) -> PyTorchRunner:
        """Build the network and load its weights.

        The number of threads is PyTorch's own and holds for the whole process.

        Raises:
            UsageError: VD2011, another device than ``cpu``, precision than ``f32`` or ``bf16``, or a setting that PyTorch does
                not have.
            InputError: VD3010, the original's weights are neither in the artifact nor beside it; else as `safetensors.rebuild`.
            MachineError: VD4004, torch failed; VD4006, out of memory.
        """
        config = settings.merge_settings(self.name, artifact, config, _TAKES)
        require_cpu(self.name, config)
        if config.precision not in _PRECISIONS:
            message = f"the backend {self.name!r} computes in 'f32' or 'bf16' on the CPU, not in {config.precision!r}"
            raise UsageError("VD2011", message, fix="leave the precision out, or use bf16")
        return PyTorchRunner(artifact, require_weights(artifact), config)


def require_weights(artifact: Artifact) -> Path:
    """The original's weights, compared with their digest where they lie beside the artifact.

    Raises:
        InputError: VD3010, they are not there, or changed.
    """
    path, origin = artifact.weights, artifact.record.origin
    if path is None:
        fix = "put the folder that `vitdeploy export` wrote beside it, or make it again with --keep-original"
        here = shlex.quote(str(artifact.folder if artifact.record.files else artifact.model))
        if origin.module:
            fix = f"run: vitdeploy validate {here} --against {shlex.quote(origin.module)}"
        elif not origin.state_sha256:
            fix = f"leave pytorch out, or import its code: vitdeploy validate {here} --against FILE.py:FUNCTION"
        raise InputError("VD3010", artifact.explain_no_weights(), file=artifact.model, fix=fix)
    if artifact.record.weights is None and sha256(path) != origin.state_sha256:
        raise InputError("VD3010", "changed after 'export' wrote it", file=path, fix="export again")
    return path


class PyTorchRunner:
    """The network in evaluation mode.

    A file that takes raw bytes has the normalisation inside; here it is done before the network, so that all backends take
    the same tensor.
    """

    batch: int | None = None

    def __init__(self, artifact: Artifact, weights: Path, config: OpenConfig) -> None:
        self._contract = artifact.spec.input
        self._plain = msgspec.structs.replace(self._contract, tensor="float32-nchw")
        spec = msgspec.structs.replace(artifact.spec, input=self._plain)
        half = config.precision == "bf16"
        with library("torch", weights):
            torch.set_num_threads(count_threads(config))
            network: Any = rebuild(spec, weights)
            self._network: nn.Module | None = network
            self._run: _Function | None = _in_bfloat16(network) if half else network
        self._output = spec.output
        self._inside: Outputs = {}
        self.settings: dict[str, object] = {
            "backend": PyTorch.name,
            "version": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            "precision": _PRECISIONS[config.precision],
        }
        if half:
            self.settings["bf16"] = "autocast, weights of linear layers and convolutions kept in bfloat16"

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. The main output only."""
        pixels = check_tensor(tensor, self._contract)
        if self._contract.tensor != "float32-nchw":
            raw = pixels.transpose(0, 2, 3, 1) if self._contract.tensor == "uint8-nchw" else pixels
            pixels = images.to_tensor(raw, self._plain)
        pixels = pixels if pixels.flags.writeable else pixels.copy()  # torch warns about read-only memory
        assert self._run is not None
        with library("torch"), torch.inference_mode():
            result = self._run(torch.from_numpy(pixels))
            return {self._output: np.array(result.numpy(), np.float32), **self._inside}

    def tap(self) -> tuple[str, ...]:
        """Let `run` give what is inside, too: each block and its layers, by the modules' paths.

        Returns:
            The names: as `onnxfile.points.find_points` has them; and with ``.scaled`` behind it what LayerScale makes of it.
        """
        network: Any = self._run
        self._inside = {}
        names: list[str] = []
        for path, module in network.named_modules():
            if not re.fullmatch(r"blocks\.\d+(\.(attn\.(qkv|proj)|mlp\.fc[12]|ls[12]))?", path):
                continue
            name = path.replace("ls1", "attn.proj.scaled").replace("ls2", "mlp.fc2.scaled")
            if not isinstance(module, nn.Identity):
                module.register_forward_hook(partial(self._note, name))
                names.append(name)
            if path.endswith("attn.proj"):
                names.append(context := path.replace("proj", CONTEXT))
                module.register_forward_pre_hook(partial(self._note_input, context))
        return tuple(names)

    def _note(self, name: str, module: nn.Module, given: object, result: torch.Tensor) -> None:
        self._inside[name] = np.array(result.float().numpy())

    def _note_input(self, name: str, module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._inside[name] = np.array(given[0].float().numpy())

    def kernels(self) -> tuple[Kernel, ...]:
        """None: PyTorch runs the layers of the network as it is written, and nothing in it is quantized."""
        return ()

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the time goes, by ATen's operators; see `Runner.profile`."""
        assert self._network is not None
        return _profile(self._network, partial(self.run, tensor), runs)

    def close(self) -> None:
        """Drop the network."""
        self._run = self._network = None


class ModuleRunner:
    """A network of the user's own code, which is imported and run, in this process; see `models.modules`.

    Args:
        reference: ``package.file:factory``.
        spec: Of what it is compared with: it takes the same images and gives an output of that name.

    Attributes:
        contract: As the spec's, in float32.
        classes: Numbers that it gives for an image.

    Raises:
        UsageError: VD2012; InputError: VD3022; MachineError: VD4004; as `load_module`.
    """

    batch: int | None = None

    def __init__(self, reference: str, spec: ModelSpec) -> None:
        self.contract = msgspec.structs.replace(spec.input, tensor="float32-nchw")
        loaded = load_module(reference, self.contract)
        self.classes = loaded.classes
        self._network, self._output = loaded.net, spec.output
        self.settings: dict[str, object] = {
            "backend": PyTorch.name,
            "version": str(torch.__version__),
            "device": "cpu",
            "precision": "fp32",
        }

    def configure(self, config: OpenConfig) -> ModuleRunner:
        """The same; the number of threads is PyTorch's own and holds for the whole process."""
        torch.set_num_threads(count_threads(config))
        self.settings["threads"] = torch.get_num_threads()
        return self

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`."""
        pixels = check_tensor(tensor, self.contract)
        with library("torch"), torch.inference_mode():
            return {self._output: np.array(self._network(torch.from_numpy(pixels.copy())).numpy(), np.float32)}

    def kernels(self) -> tuple[Kernel, ...]:
        """None, as of `PyTorchRunner`."""
        return ()

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """As of `PyTorchRunner`."""
        return _profile(self._network, partial(self.run, tensor), runs)

    def close(self) -> None:
        """Nothing is held that is not the user's."""


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


def _profile(network: nn.Module, run: Callable[[], object], runs: int) -> Profile:
    """Time by operator, each under the path of the numbered layer that it is in (``blocks.3``), if any."""
    layers = {path: module for path, module in network.named_modules() if re.search(r"(?:^|\.)[a-z]+\.\d+$", path)}
    opened: list[Any] = []

    def enter(path: str, _: nn.Module, __: object) -> None:
        opened.append(torch.profiler.record_function(path))
        opened[-1].__enter__()

    def leave(_: nn.Module, __: object, ___: object) -> None:
        opened.pop().__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(partial(enter, path)) for path, module in layers.items()]
    hooks += [module.register_forward_hook(leave) for module in layers.values()]
    try:
        run()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            begun = time.perf_counter_ns()
            for _ in range(runs):
                run()
            run_ms = (time.perf_counter_ns() - begun) / 1e6 / runs
    finally:
        for hook in hooks:
            hook.remove()
    spent: dict[tuple[str, str], float] = {}
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.name not in layers:
            parent = event.cpu_parent
            while parent is not None and parent.name not in layers:
                parent = parent.cpu_parent
            key = ("" if parent is None else parent.name, event.name)
            spent[key] = spent.get(key, 0.0) + event.self_cpu_time_total / 1e3 / runs
    return Profile(run_ms, tuple(Spent(*key, ms) for key, ms in spent.items()))
