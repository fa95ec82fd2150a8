"""Running a built engine: TensorRT's own bindings for the engine, ctypes for the device, nothing else.

A run copies pixels into pinned memory, uploads them, executes, downloads the outputs and waits; so the time of `run` includes
the transfers, and `TensorRtRunner.compute_ms` is the device's share of it. Execution is replayed as a CUDA graph where it can
be. A graph belongs to one batch size and to the execution context that it was captured from, which must not change afterwards:
each batch size has a context of its own, and all share one scratch memory, as they never run at the same time.

Executed so far: against a fake engine on a fake device only, never on a GPU. That every attribute exists is tested against
NVIDIA's real bindings from 10.3 to 11.4.

Source: NVIDIA TensorRT documentation, "CUDA Graphs" (one enqueue before the capture; one context per captured graph, sharing
device memory) and `ICudaEngine`, `IExecutionContext` of the Python API.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from vitdeploy import errors
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import Kernel, OpenConfig, Outputs, Profile, Spent, Tensor, check_tensor
from vitdeploy.backends.tensorrt import inspection, library
from vitdeploy.backends.tensorrt.buffers import Buffers, Port, Shape, ports
from vitdeploy.backends.tensorrt.cuda import require
from vitdeploy.backends.tensorrt.device import Cuda
from vitdeploy.backends.tensorrt.place import read_ordinal
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.recipe import CompileConfig

SESSIONS = 8
"""Batch sizes that are kept ready; the one that was not used for longest goes first."""
_SOURCE = "model.onnx"
"""The file that the engine was built from, beside it."""


class _Batches(NamedTuple):
    """Batch sizes that an engine takes, and the one that its kernels were chosen for."""

    smallest: int
    usual: int
    largest: int


class _Session:
    """An execution context for one batch size, with its graph once there is one.

    Nothing else keeps the context: set to None it is gone, although a traceback may still hold the session.
    """

    def __init__(self, context: Any) -> None:  # noqa: ANN401 (a library without types)
        self.context: Any = context
        self.shapes: dict[str, Shape] = {}
        self.graph = 0


class TensorRtRunner:
    """A built engine on one device. Not for several threads at once.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        plan: The serialized engine. It is executable code: the caller has made sure that it was built here.
        artifact: What it was built from; its spec says what the input is.
        config: ``device`` is ``cuda`` or ``cuda:1``; ``graph`` None replays where that works, True insists; ``spin`` None leaves
            the way of waiting to CUDA. Threads mean nothing here.
        cuda: The device; None finds it.

    Raises:
        UsageError: VD2011, the device is no ``cuda:N``, or there are fewer.
        MachineError: VD4010 no device; VD4004 the engine can't be loaded, or not captured although that was asked; VD4011
            it is not an engine of this model; VD4006 out of memory.
    """

    def __init__(self, module: Any, plan: bytes, artifact: Artifact, config: OpenConfig, cuda: Cuda | None = None) -> None:  # noqa: ANN401
        self._module: Any = module
        self._artifact = artifact
        self._config = config
        self._cuda: Cuda = cuda or require()
        self._ordinal = _present(config.device, self._cuda)
        self._log = library.log(module)
        self._sessions: dict[int, _Session] = {}
        self._refused = "" if config.graph is not False else "not asked for"
        self.compute_ms: float | None = None
        """Milliseconds that the device computed in the last run, without the transfers; None before the first."""
        self._owned = ExitStack()
        try:
            self._open(plan, self._owned)
        except BaseException:
            with suppress(MachineError):  # what went wrong first is what people should read
                self.close()
            raise

    def _open(self, plan: bytes, owned: ExitStack) -> None:
        """Load the engine, and run its usual batch once. What is taken first is given back last."""
        self._cuda.use(self._ordinal)
        if self._config.spin is not None:
            self._cuda.schedule(self._config.spin)
        self._stream = self._cuda.stream()
        owned.callback(self._cuda.destroy_stream, self._stream)
        self._start = self._cuda.event()
        owned.callback(self._cuda.destroy_event, self._start)
        self._end = self._cuda.event()
        owned.callback(self._cuda.destroy_event, self._end)
        self._buffers = Buffers(self._cuda)
        owned.callback(self._buffers.close)
        self._runtime: Any = None
        self._engine: Any = None
        with self._listening() as said:
            self._runtime = self._module.Runtime(self._log.native)
            # an engine for later versions carries its own runtime, as code
            config = self._artifact.record.config
            self._runtime.engine_host_code_allowed = isinstance(config, CompileConfig) and config.compatible
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise self._failure("the engine can't be loaded", said)
            self._scratch_size = int(self._engine.device_memory_size_v2)
        self._scratch = self._cuda.allocate(max(self._scratch_size, 1))
        owned.callback(self._cuda.free, self._scratch)
        owned.callback(self._drop_engine)  # before its memory
        owned.callback(self._drop_sessions)
        self._input, self._outputs = ports(self._engine, self._module, self._artifact)
        self._ports = (self._input, *self._outputs)
        self._batches = self._sizes()
        dtype = self._artifact.spec.input.tensor.partition("-")[0]
        self._execute(np.zeros((self._batches.usual, *self._input.shape[1:]), dtype))
        self._facts = self._describe()

    @property
    def settings(self) -> dict[str, object]:
        """See `Runner.settings`. ``graph`` whether runs are replayed, ``graph_refused`` why not; times include ``transfers``."""
        return {**self._facts, "graph": not self._refused, **({"graph_refused": self._refused} if self._refused else {})}

    @property
    def batch(self) -> int | None:
        """The one batch size that the engine takes, or None for those up to its largest."""
        return self._batches.largest if self._batches.smallest == self._batches.largest else None

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. Float outputs come as float32, indices as the integers that they are.

        Raises:
            InputError: VD3107, also for a batch outside the sizes that the engine was built for.
            MachineError: VD4004, the engine failed; VD4006, out of memory.
        """
        return self._execute(self._take(tensor))

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`. Read from the engine inspector, for the usual batch."""
        self._cuda.use(self._ordinal)
        source = self._artifact.folder / _SOURCE
        known = inspection.roles(source) if source.is_file() else None
        return inspection.kernels(inspection.inspect(self._module, self._engine), known)

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the device's time goes, by layers of the engine; see `Runner.profile`. No graph is replayed meanwhile.

        Raises:
            InputError, MachineError: As `run`.
        """
        pixels, heard, run_ms = self._take(tensor), dict[str, float](), 0.0
        session = self._prepare(len(pixels))
        try:
            self._buffers.upload(self._input, pixels, self._stream)
            self._enqueue(session)
            self._cuda.wait(self._stream)
            profiler = library.make_profiler(self._module, heard)  # nothing else keeps it
            session.context.profiler = profiler
            for _ in range(runs):
                self._cuda.record(self._start, self._stream)
                self._enqueue(session)
                self._cuda.record(self._end, self._stream)
                self._cuda.wait(self._stream)
                run_ms += self._cuda.time_between(self._start, self._end) / runs
        finally:
            session.context = None
        layers = {layer.name: layer for layer in inspection.inspect(self._module, self._engine)}
        return Profile(run_ms, tuple(_name_spent(layers.get(name), name, ms / runs) for name, ms in heard.items()))

    def close(self) -> None:
        """Free contexts, engine, memory and stream, in this order. Closing twice is allowed."""
        self._owned.close()

    def _take(self, tensor: Tensor) -> Tensor:
        """The pixels of a batch that the engine takes, with its device made the thread's current one."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        smallest, _, largest = self._batches
        if not smallest <= len(pixels) <= largest:
            message = f"the batch is {len(pixels)}, the engine was built for {smallest} to {largest}"
            fix = f"use at most {largest}, or compile with a larger largest_batch"
            raise InputError("VD3107", message, fix=fix if len(pixels) > largest else f"use at least {smallest}")
        self._cuda.use(self._ordinal)
        return pixels

    def _execute(self, pixels: Tensor) -> Outputs:
        """One run, and the capture of its graph when it was the first of its batch size."""
        session, stream = self._session(len(pixels)), self._stream
        self._buffers.upload(self._input, pixels, stream)
        self._cuda.record(self._start, stream)
        if session.graph:
            self._cuda.launch(session.graph, stream)
        else:
            self._enqueue(session)
        self._cuda.record(self._end, stream)
        for port in self._outputs:
            self._buffers.download(port, session.shapes[port.name], stream)
        self._cuda.wait(stream)
        self.compute_ms = self._cuda.time_between(self._start, self._end)
        outputs = {port.name: self._buffers.take(port, session.shapes[port.name]) for port in self._outputs}
        if not session.graph and not self._refused:
            self._capture(session)
        return outputs

    def _session(self, batch: int) -> _Session:
        """The context for a batch size, made when it is new."""
        session = self._sessions.pop(batch, None)
        if session is None:
            while len(self._sessions) >= SESSIONS:
                self._drop(self._sessions.pop(next(iter(self._sessions))))
            session = self._prepare(batch)
        self._sessions[batch] = session  # last: the one used most recently
        return session

    def _prepare(self, batch: int) -> _Session:
        """A context with its shapes and addresses; buffers grow first where they are too small."""
        with self._listening() as said:
            strategy = self._module.ExecutionContextAllocationStrategy.USER_MANAGED
            session = _Session(self._engine.create_execution_context(strategy))
            try:
                if session.context is None:
                    raise self._failure("no execution context could be made", said)
                self._shape(session, batch, said)
                self._reserve(batch, {port: session.shapes[port.name] for port in self._ports})
                for port in self._ports:
                    if not session.context.set_tensor_address(port.name, self._buffers.address(port)):
                        raise self._failure(f"the engine does not take the memory for {port.name!r}", said)
            except BaseException:
                session.context = None
                raise
        return session

    def _shape(self, session: _Session, batch: int, said: list[library.Message]) -> None:
        """Give a new context its scratch memory and its batch size, and learn the outputs' sizes."""
        session.context.set_device_memory(self._scratch, self._scratch_size)
        taken = session.context.set_input_shape(self._input.name, (batch, *self._input.shape[1:]))
        if not taken or session.context.infer_shapes():
            raise self._failure(f"the engine does not take a batch of {batch}", said)
        for port in self._ports:
            shape = tuple(session.context.get_tensor_shape(port.name))
            if not shape or shape[0] != batch or min(shape) < 1:
                message = f"the engine gives {port.name!r} as {list(shape)} for a batch of {batch}"
                raise MachineError("VD4011", message, file=self._artifact.model)
            session.shapes[port.name] = shape

    def _reserve(self, batch: int, needed: dict[Port, Shape]) -> None:
        """Make room for a batch. The sessions know the old addresses, so they go when buffers move."""
        if self._buffers.holds(needed):
            return
        self._drop_sessions()
        room = min(self._batches.largest, 1 << (batch - 1).bit_length())
        self._buffers.grow({port: (room, *shape[1:]) for port, shape in needed.items()})

    def _enqueue(self, session: _Session) -> None:
        with self._listening() as said:
            if not session.context.execute_async_v3(self._stream):
                raise self._failure("the engine failed", said)

    def _capture(self, session: _Session) -> None:
        """Write down the execution as a graph, its first run being done. Where that fails, all later runs go without."""
        try:
            capturable = getattr(session.context, "is_stream_capturable", None)  # TensorRT-RTX only
            if capturable is not None and not capturable(self._stream):
                raise MachineError("VD4004", "the engine says that it can't be captured")
            self._cuda.begin_capture(self._stream)
            try:
                self._enqueue(session)
            except MachineError:
                self._cuda.abandon_capture(self._stream)
                raise
            session.graph = self._cuda.end_capture(self._stream)
        except MachineError as exc:
            if self._config.graph:
                fix = "leave graph out: the engine then runs without one"
                raise MachineError("VD4004", f"no CUDA graph: {exc.message}", file=exc.file, fix=fix) from exc
            self._refused = exc.message

    def _drop(self, session: _Session) -> None:
        graph, session.graph, session.context = session.graph, 0, None
        if graph:
            self._cuda.destroy_graph(graph)

    def _drop_sessions(self) -> None:
        with suppress(MachineError):  # a run that failed may have left work
            self._cuda.wait(self._stream)
        with ExitStack() as each:  # all go, also when one can't
            for session in self._sessions.values():
                each.callback(self._drop, session)
            self._sessions = {}

    def _drop_engine(self) -> None:
        self._engine = None
        self._runtime = None

    def _sizes(self) -> _Batches:
        """The batch sizes of the engine's one profile, or its fixed one."""
        fixed = self._input.shape[0]
        if fixed > 0:
            return _Batches(fixed, fixed, fixed)
        with self._listening():
            smallest, usual, largest = self._engine.get_tensor_profile_shape(self._input.name, 0)
            return _Batches(int(smallest[0]), int(usual[0]), int(largest[0]))

    def _describe(self) -> dict[str, object]:
        """The part of the settings that stays as it is."""
        device, versions = self._cuda.describe(self._ordinal), self._cuda.versions()
        return {
            "backend": "tensorrt-rtx" if library.is_rtx(self._module) else "tensorrt",
            "version": self._module.__version__,
            "threads": 1,
            "device": f"cuda:{self._ordinal}",
            "device_name": device.name,
            "capability": device.capability,
            "cuda": versions.runtime,
            "driver": versions.driver,
            "precision": self._artifact.record.precision,
            "transfers": True,
            "spin": self._config.spin,
            "largest_batch": self._batches.largest,
        }

    @contextmanager
    def _listening(self) -> Iterator[list[library.Message]]:
        """What the library raises becomes one of ours; what it says is kept meanwhile."""
        with self._log.listening() as said, errors.library("tensorrt", self._artifact.model):
            yield said

    def _failure(self, what: str, said: list[library.Message]) -> MachineError:
        """An error with the engine's own last words."""
        words = [message.text for message in said if message.severity == "error"]
        message = f"tensorrt: {what}" + (f": {words[-1].strip()[:300]}" if words else "")
        memory = any("out of memory" in text.lower() or "OutOfMemory" in text for text in words)
        fix = "use a smaller batch" if memory else "compile it again on this machine"
        return MachineError("VD4006" if memory else "VD4004", message, file=self._artifact.model, fix=fix)


def _present(device: str | None, cuda: Cuda) -> int:
    """The number of a device that is there."""
    number, count = read_ordinal(device), cuda.count()
    if number >= count:
        raise UsageError("VD2011", f"there is no device cuda:{number}, there are {count}", fix="use a smaller number")
    return number


def _name_spent(layer: inspection.Layer | None, name: str, ms: float) -> Spent:
    """A layer's time under the first ONNX node that it computes, where the inspector tells."""
    if layer is None:
        return Spent(name, "layer", ms)
    return Spent(next(iter(layer.sources), name), layer.kind or "layer", ms)
