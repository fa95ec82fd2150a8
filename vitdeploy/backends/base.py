"""The two protocols that an inference engine implements to plug in, and what every engine checks alike."""

from __future__ import annotations

import os
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.errors import InputError, UsageError
from vitdeploy.graph.census import Kernel
from vitdeploy.spec import InputContract

Tensor = NDArray[Any]
"""A model's input: float32 [N, C, H, W], or uint8 [N, C, H, W] / [N, H, W, C], C-contiguous, as the contract says."""

Outputs = dict[str, NDArray[np.float32]]
"""Output name to float32 [N, ...]; the main one is called `ModelSpec.output`: ``logits``, ``embedding`` or ``pooled``."""


class OpenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine runs.

    Attributes:
        threads: Threads inside one run; None is the number of cores this process may use.
        device: ``cpu``, or what the backend calls another device.
        precision: What float parts of the model are computed in, whatever the file holds; None is ``f32``, or what the artifact
            was made for (``bf16``).
    """

    threads: int | None = None
    device: str = "cpu"
    precision: Literal["f32", "bf16", "f16"] | None = None


class Runner(Protocol):
    """A model opened in an engine. It owns memory: use ``contextlib.closing``."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on: engine, version, threads, device, precision.

        Precision is what the artifact was made for, with what its float parts are computed in when that is not fp32: ``fp32``,
        ``bf16``, ``int8``, ``int8+bf16``.
        """

    @property
    def batch(self) -> int | None:
        """The one batch size that the model takes, or None for any."""

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch and wait for it.

        Args:
            tensor: What the artifact's input contract names, any N >= 1 for a dynamic batch. Borrowed.

        Returns:
            New arrays; the caller may keep them.

        Raises:
            InputError: VD3107, shape, dtype or batch do not fit the model.
            EnvironmentError_: VD4004, the engine failed; VD4006, out of memory.
        """

    def kernels(self) -> tuple[Kernel, ...]:
        """What the engine really executes, read from its own optimised graph.

        Returns:
            In order of execution; empty for an engine that runs the network as it is written.

        Raises:
            EnvironmentError_: VD4004, the engine failed; VD4006, out of memory.
        """

    def close(self) -> None:
        """Free the engine's memory. Closing twice is allowed."""


class Backend(Protocol):
    """An inference engine, by name."""

    name: str

    def open(self, artifact: Artifact, config: OpenConfig) -> Runner:
        """Load a model, ready to run.

        Raises:
            EnvironmentError_: VD4001 the engine is not installed; VD4004 it refused the model.
            InputError: The artifact lacks what this backend needs.
        """


def threads(config: OpenConfig) -> int:
    """The number of threads to ask an engine for: the config's, or the cores that this process may use."""
    if config.threads is not None:
        return config.threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def only_cpu(name: str, config: OpenConfig) -> None:
    """Refuse another device than ``cpu``: an engine that fell back in silence would make the numbers a lie.

    Raises:
        UsageError: VD2011.
    """
    if config.device != "cpu":
        message = f"the backend {name!r} runs on 'cpu', not on {config.device!r}"
        raise UsageError("VD2011", message, fix="leave the device out")


def only_f32(name: str, config: OpenConfig) -> None:
    """Refuse another precision than ``f32``, as `only_cpu` refuses a device.

    Raises:
        UsageError: VD2011.
    """
    if config.precision not in (None, "f32"):
        message = f"the backend {name!r} computes float parts in 'f32', not in {config.precision!r}"
        raise UsageError("VD2011", message, fix="leave the precision out, or convert the model with vitdeploy quantize")


def checked(tensor: Tensor, contract: InputContract, batch: int | None = None) -> Tensor:
    """The tensor, C-contiguous, if it is what the contract names.

    Args:
        tensor: Any array.
        contract: `InputContract.tensor`, channels, height and width count.
        batch: The one batch size allowed, or None for any N >= 1.

    Raises:
        InputError: VD3107, naming what came and what the model takes.
    """
    size = (contract.height, contract.width)
    shape = (*size, contract.channels) if contract.tensor == "uint8-nhwc" else (contract.channels, *size)
    dtype = contract.tensor.partition("-")[0]
    fits = tensor.dtype == dtype and tensor.shape[1:] == shape and len(tensor) >= 1
    if not fits or (batch is not None and len(tensor) != batch):
        takes = ", ".join(str(part) for part in ("N" if batch is None else batch, *shape))
        message = f"the tensor is {tensor.dtype} {list(tensor.shape)}, the model takes {dtype} [{takes}]"
        fix = "prepare pixels with images.to_tensor(pixels, artifact.spec.input)"
        raise InputError("VD3107", message, fix=f"use batch {batch}" if fits else fix)
    return np.ascontiguousarray(tensor)


def run_any(runner: Runner, tensor: Tensor) -> Outputs:
    """Run any number of images, also on a model whose batch is fixed.

    A fixed batch is filled up with copies of the last image and the copies' outputs are dropped: in a ViT no image sees its
    neighbours.

    Args:
        runner: Any.
        tensor: As `Runner.run` takes it, any N >= 1.

    Raises:
        InputError: VD3107, shape or dtype do not fit the model.
        EnvironmentError_: The engine failed.
    """
    size, count = runner.batch, len(tensor)
    if size is None or size == count or count == 0:
        return runner.run(tensor)
    parts = []
    for start in range(0, count, size):
        part = tensor[start : start + size]
        missing = size - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        parts.append({name: rows[: len(part)] for name, rows in runner.run(full).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
