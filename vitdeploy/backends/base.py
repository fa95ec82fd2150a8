"""The two protocols that an inference engine implements to plug in, and what every engine checks alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.machine import MOST_THREADS, logical_cores
from vitdeploy.recipe import CompileConfig
from vitdeploy.record import OpenConfig as OpenConfig
from vitdeploy.spec import InputContract, ModelSpec

Tensor = NDArray[Any]
"""A model's input: float32 [N, C, H, W], or uint8 [N, C, H, W] / [N, H, W, C], C-contiguous, as the contract says."""

Outputs = dict[str, NDArray[np.float32]]
"""Output name to float32 [N, ...]; the main one is called `ModelSpec.output`, and `run_main` takes it."""

Role = Literal["gemm", "attention", "conv", "other"]
Precision = Literal["int8", "fp8", "fp32", "fp16", "bf16", "int8-dynamic", "other"]


class Kernel(NamedTuple):
    """One thing that an engine executes.

    Attributes:
        name: Name of the product (MatMul, Gemm, Conv) of the source graph that it computes; "" when the engine lost it. For
            everything else the engine's own name.
        kind: The engine's operator or layer type.
        role: ``gemm`` multiplies by constant weights, ``attention`` multiplies two activations or is a whole attention.
        precision: What it multiplies in; ``int8-dynamic`` has int8 weights and quantizes activations at run time.
        fallback: It computes in float although its inputs were quantized: slower than both.
        reason: The likely cause of that, where the engine's file knows one.
    """

    name: str
    kind: str
    role: Role
    precision: Precision
    fallback: bool = False
    reason: str = ""


class Spent(NamedTuple):
    """Where an engine spent time.

    Attributes:
        name: The engine's name of what it executed, made of names of the source graph as far as it keeps them.
        kind: The engine's operator or layer type.
        ms: Mean time of a run, in ms.
    """

    name: str
    kind: str
    ms: float


class Profile(NamedTuple):
    """What an engine's own profiler says of some runs.

    Attributes:
        run_ms: Mean time of a whole run, in ms; what no operator accounts for is the engine's own.
        spent: In order of execution.
    """

    run_ms: float
    spent: tuple[Spent, ...]


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend has compiled.

    Attributes:
        entry: Name of the file, in the folder that was given, that `Backend.open` reads.
        run: How to run it; what `Backend.open` takes where the caller gives nothing.
        facts: For the record: versions, device, key, seconds, memory, what the builder said.
        notes: For people: what was repaired, left out or fell back.
    """

    entry: str
    run: OpenConfig = OpenConfig()
    facts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class Runner(Protocol):
    """A model opened in an engine. It owns memory: use ``contextlib.closing``."""

    @property
    def settings(self) -> dict[str, object]:
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
            MachineError: VD4004, the engine failed; VD4006, out of memory.
        """

    def kernels(self) -> tuple[Kernel, ...]:
        """What the engine really executes, read from its own optimised graph.

        Returns:
            In order of execution; empty for an engine that runs the network as it is written.

        Raises:
            MachineError: VD4004, the engine failed; VD4006, out of memory.
        """

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the time goes, by the engine's own profiler. It slows runs down: shares count, not the sum.

        Args:
            tensor: As `run` takes it.
            runs: How many are counted, at least 1, after one that is not.

        Raises:
            InputError, MachineError: As `run`.
        """

    def close(self) -> None:
        """Free the engine's memory. Closing twice is allowed."""


class Observer(Protocol):
    """The tensors inside an ONNX model, in two sets of buffers that are used in turn.

    It is made from the model (a path, or the bytes of one without external data), the names of the tensors, ``threads`` of a run,
    and ``batch``, the images that a run takes at most.

    Attributes:
        batch: Images that a run takes at most; may grow once the first runs have shown how large the tensors are.
        turn: The set of buffers, 0 or 1, that the next run fills; for the caller to change.

    Raises:
        UsageError: VD2003, no such tensor; VD2011, one is not float, or the model takes more than one input.
        InputError: VD3001 to VD3005, VD3011: the model can't be read.
        MachineError: VD4001, VD4004, VD4006: the engine is missing, refused the model, or ran out of memory.
    """

    batch: int
    turn: int

    def run(self, pixels: Tensor) -> list[Tensor]:
        """Run some images.

        Args:
            pixels: The model's input, n <= `batch` images. Borrowed.

        Returns:
            The tensors in the order of their names, each [n, tokens, C]. They lie in the set of buffers of this `turn` and
            are overwritten by the next run of the same turn.

        Raises:
            InputError: VD3107, the images do not fit the model.
            UsageError: VD2011, the tensors do not show which image is which.
            MachineError: VD4004, the engine failed; VD4006, out of memory.
        """

    def shrink(self, batch: int) -> None:
        """Take fewer images a run from now on, and give the buffers up."""

    @property
    def shrinks(self) -> bool:
        """Whether fewer images a run would be possible."""

    def close(self) -> None:
        """Free the engine's memory and the buffers."""


class Backend(Protocol):
    """An inference engine, by name."""

    name: str

    def open(self, artifact: Artifact, config: OpenConfig) -> Runner:
        """Load a model, ready to run.

        Raises:
            MachineError: VD4001 the engine is not installed; VD4004 it refused the model; VD4010 its device is not usable.
            InputError: The artifact lacks what this backend needs.
            UsageError: VD2011, a setting that it does not have; VD2013, the artifact was compiled for another engine.
            TrustError: VD7004, the engine in the artifact was not built here, or changed since.
        """


class Compiler(Backend, Protocol):
    """A backend that makes engines, too."""

    def compile(self, artifact: Artifact, config: CompileConfig, folder: Path, *, again: bool = False) -> Compiled:
        """Make an engine from an ONNX artifact.

        Args:
            artifact: Its kind is ``onnx``.
            config: How; ``config.backend`` is this backend's name.
            folder: Empty, for the engine's files. Called in a child process: a crash or a hang ends that alone.
            again: An engine of the same settings came out wrong: what was learned in building it is dropped.

        Raises:
            UsageError: VD2011, a setting that this backend does not have.
            InputError: VD3026, the graph can't run in this engine as it is meant.
            MachineError: VD4010 device not usable; VD4011 the engine could not be built; VD4004, VD4006.
        """

    def candidates(self, config: CompileConfig) -> tuple[OpenConfig, ...]:
        """Settings that are worth measuring on this machine, the usual one first. Engines that only compile have none."""


def count_threads(config: OpenConfig) -> int:
    """The number of threads to ask an engine for: the config's, or the cores that this process may use.

    Raises:
        UsageError: VD2003, more than any machine has.
    """
    if config.threads is not None:
        if config.threads > MOST_THREADS:
            raise UsageError("VD2003", f"threads is {config.threads}", fix=f"use {MOST_THREADS} or fewer")
        return config.threads
    return logical_cores()


def require_cpu(name: str, config: OpenConfig) -> None:
    """Refuse another device than ``cpu``: an engine that fell back in silence would make the numbers a lie.

    Raises:
        UsageError: VD2011.
    """
    if config.device not in (None, "cpu"):
        message = f"the backend {name!r} runs on 'cpu', not on {config.device!r}"
        raise UsageError("VD2011", message, fix="leave the device out")


def require_f32(name: str, config: OpenConfig) -> None:
    """Refuse another precision than ``f32``, as `require_cpu` refuses a device.

    Raises:
        UsageError: VD2011.
    """
    if config.precision not in (None, "f32"):
        message = f"the backend {name!r} computes float parts in 'f32', not in {config.precision!r}"
        raise UsageError("VD2011", message, fix="leave the precision out, or convert the model with vitdeploy quantize")


def check_tensor(tensor: Tensor, contract: InputContract, batch: int | None = None) -> Tensor:
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


def find_largest_batch(runner: Runner) -> int | None:
    """The most images that the model takes at once, or None for any number or where the engine does not say."""
    largest = runner.settings.get("largest_batch")
    return largest if isinstance(largest, int) else None


def run_any(runner: Runner, tensor: Tensor) -> Outputs:
    """Run any number of images, also on a model whose batch is fixed or has an upper end.

    A fixed batch is filled up with copies of the last image and the copies' outputs are dropped: in a ViT no image sees its
    neighbours.

    Args:
        runner: Any.
        tensor: As `Runner.run` takes it, any N >= 1.

    Raises:
        InputError: VD3107, shape or dtype do not fit the model.
        MachineError: The engine failed.
    """
    size, count = runner.batch, len(tensor)
    most = size or find_largest_batch(runner) or count
    if count in (0, size) or (size is None and count <= most):
        return runner.run(tensor)
    parts = []
    for start in range(0, count, most):
        part = tensor[start : start + most]
        missing = 0 if size is None else size - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, 0)]) if missing else part
        parts.append({name: rows[: len(part)] for name, rows in runner.run(full).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_main(runner: Runner, tensor: Tensor, spec: ModelSpec) -> NDArray[np.float32]:
    """The main output of any number of images.

    Args:
        runner: Any.
        tensor: As `Runner.run` takes it, any N >= 1.
        spec: Of the model.

    Returns:
        float32 [N, K]: whatever axes lie between or behind, as in [N, 1, K], are flattened.

    Raises:
        InputError: VD3107, shape or dtype do not fit the model.
        MachineError: VD4011, the model has no such output; the engine failed.
    """
    outputs = run_any(runner, tensor)
    if spec.output not in outputs:
        message = f"has the outputs {', '.join(outputs)}, and not its main one, {spec.output!r}"
        raise MachineError("VD4011", message, fix="make the artifact again")
    return outputs[spec.output].astype(np.float32, copy=False).reshape(len(tensor), -1)
