"""A CUDA device and an engine in host memory: small, but strict about order, sizes, lifetimes and addresses.

A stream is a queue that does nothing until somebody waits for it, so a result that is read too early is not there. Memory is
real memory at real addresses; whatever is used after it was freed, or beyond its end, is an assertion.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np

from vitdeploy.backends.tensorrt.device import Device, Memory, Versions
from vitdeploy.errors import MachineError

DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}
SCRATCH = 4096


class FakeCuda:
    """See `vitdeploy.backends.tensorrt.device.Cuda`.

    Attributes:
        calls: Every call, in order: its name and arguments.
        ran: What the device really did, in order.
        live: What is allocated and not yet given back.
        fail: Name of a method to the number of its call, from 1, that fails.
    """

    def __init__(self, devices=1):
        self.calls, self.ran, self.live, self.fail = [], [], {}, {}
        self.contexts = weakref.WeakSet()
        self.current = None
        self.capturing = None
        self._devices = devices
        self._counts = Counter()
        self._numbers = itertools.count(1)
        self._blocks, self._queues, self._times, self._graphs = {}, {}, {}, {}
        self._clock = 0.0

    # what the tests ask

    def names(self):
        return [name for name, *_ in self.calls]

    def read(self, address, shape, dtype):
        """Device or host memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._check(address, size)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def kernel(self, stream, work):
        """Queue a function, as an engine's enqueue does."""
        self._queue(stream, "execute", work)

    # the protocol

    def count(self):
        return self._devices

    def versions(self):
        return Versions("12.6", "12.8")

    def describe(self, ordinal):
        return Device(f"Fake {ordinal}", "8.7", True)

    def use(self, ordinal):
        assert 0 <= ordinal < self._devices
        self.current = ordinal

    def schedule(self, spin):
        self._note("schedule", spin)

    def memory(self):
        return Memory(1 << 30, 2 << 30)

    def allocate(self, size):
        return self._block("allocate", size)

    def free(self, address):
        for context in self.contexts:
            assert address not in context.addresses(), "freed while a context uses it"
        self._unblock("free", "allocate", address)

    def allocate_pinned(self, size):
        return self._block("allocate_pinned", size)

    def free_pinned(self, address):
        self._unblock("free_pinned", "allocate_pinned", address)

    def upload(self, target, source, size, stream):
        self._copy("upload", target, source, size, stream, ("allocate", "allocate_pinned"))

    def download(self, target, source, size, stream):
        self._copy("download", target, source, size, stream, ("allocate_pinned", "allocate"))

    def stream(self):
        self._note("stream")
        number = self._new("stream")
        self._queues[number] = []
        return number

    def wait(self, stream):
        assert self.capturing is None, "waiting is not allowed while capturing"
        queue, self._queues[stream] = self._queues[stream], []  # lost when this fails, as on a device that has failed
        self._note("wait", stream)
        for name, work in queue:
            self.ran.append(name)
            work()
        self.ran.append("waited")

    def destroy_stream(self, stream):
        assert not self._queues.pop(stream), "work is left in the queue"
        self._give_back("destroy_stream", stream)

    def event(self):
        self._note("event")
        return self._new("event")

    def record(self, event, stream):
        assert event in self.live
        self._queue(stream, "record", lambda: self._tick(event))

    def time_between(self, start, end):
        self._note("time_between")
        return self._times[end] - self._times[start]

    def destroy_event(self, event):
        self._give_back("destroy_event", event)

    def begin_capture(self, stream):
        self._note("begin_capture", stream)
        assert self.capturing is None and not self._queues[stream]
        self.capturing = []

    def end_capture(self, stream):
        written, self.capturing = self.capturing, None
        self._note("end_capture", stream)
        assert written, "nothing was captured"
        number = self._new("graph")
        self._graphs[number] = written
        return number

    def abandon_capture(self, stream):
        self._note("abandon_capture", stream)
        self.capturing = None

    def launch(self, graph, stream):
        assert graph in self.live
        self._note("launch", graph)
        for name, work in self._graphs[graph]:
            self._queues[stream].append((f"graph {name}", work))

    def destroy_graph(self, graph):
        self._give_back("destroy_graph", graph)

    # how

    def _note(self, name, *arguments):
        self.calls.append((name, *arguments))
        self._counts[name] += 1
        if self.fail.get(name) == self._counts[name]:
            raise MachineError("VD4006" if "allocate" in name else "VD4004", f"CUDA: {name} failed on purpose")

    def _new(self, kind):
        number = next(self._numbers)
        self.live[number] = kind
        return number

    def _give_back(self, name, number):
        assert number in self.live, f"{name} of what is not there"
        del self.live[number]
        self._note(name, number)

    def _block(self, name, size):
        assert size > 0
        self._note(name, size)
        block = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        self._blocks[address] = (block, size)
        self.live[address] = name
        return address

    def _unblock(self, name, kind, address):
        assert self.live.get(address) == kind, f"{name} of what {kind} did not give"
        ctypes.memset(address, 0xEE, self._blocks[address][1])
        del self._blocks[address]
        self._give_back(name, address)

    def _check(self, address, size):
        held = next(
            (start for start, (_, room) in self._blocks.items() if start <= address and address + size <= start + room), None
        )
        assert held is not None, f"{size} bytes at {address:#x} are not allocated"
        return held

    def _copy(self, name, target, source, size, stream, kinds):
        for address, kind in zip((target, source), kinds, strict=True):
            assert self.live[self._check(address, size)] == kind, f"{name} the wrong way"

        def work():
            self._check(target, size), self._check(source, size)
            ctypes.memmove(target, source, size)

        self._queue(stream, name, work, size)

    def _queue(self, stream, name, work, *arguments):
        self._note(name, *arguments)
        assert stream in self._queues
        (self._queues[stream] if self.capturing is None else self.capturing).append((name, work))

    def _tick(self, event):
        self._clock += 1.5
        self._times[event] = self._clock


class _Member:
    def __init__(self, name):
        self.name = name


def _enumeration(*names):
    return SimpleNamespace(**{name: _Member(name) for name in names})


class FakeContext:
    """An execution context; its engine is `FakeEngine`."""

    def __init__(self, engine):
        self._engine, self._cuda = engine, engine.cuda
        self._shape, self._tensors, self._scratch, self._captured = None, {}, (0, 0), False
        self.profiler = None
        self._cuda.contexts.add(self)

    def addresses(self):
        return {self._scratch[0], *self._tensors.values()}

    def set_device_memory(self, address, size):
        self._change()
        assert address % 256 == 0 and size >= self._engine.device_memory_size_v2
        self._scratch = (address, size)

    def set_input_shape(self, name, shape):
        self._change()
        assert name == self._engine.input.name
        least, _, most = self._engine.profile
        if not least[0] <= shape[0] <= most[0] or tuple(shape[1:]) != tuple(least[1:]):
            self._engine.say(f"shape {shape} is outside the profile")
            return False
        self._shape = tuple(shape)
        return True

    def infer_shapes(self):
        return [] if self._shape else [self._engine.input.name]

    def get_tensor_shape(self, name):
        port = next(port for port in (self._engine.input, *self._engine.outputs) if port.name == name)
        return [self._shape[0], *port.shape[1:]] if port.shape[0] < 0 else list(port.shape)

    def set_tensor_address(self, name, address):
        self._change()
        self._tensors[name] = address
        return True

    def execute_async_v3(self, stream):
        engine, cuda = self._engine, self._cuda
        engine.enqueues += 1
        if engine.broken == "always" or (engine.broken == "capturing" and cuda.capturing is not None):
            engine.say("the kernel would not start")
            return False
        assert set(self._tensors) == {port.name for port in (engine.input, *engine.outputs)} and self._shape
        assert cuda.live[self._scratch[0]] == "allocate"
        self._captured |= cuda.capturing is not None
        shape, tensors = self._shape, dict(self._tensors)
        try:
            cuda.kernel(stream, lambda: engine.compute(shape, tensors))
        except MachineError as exc:  # a native library says no more than that
            engine.say(exc.message)
            return False
        if self.profiler is not None:
            assert self.profiler.started and cuda.capturing is None
            for name, ms in engine.layer_ms.items():
                self.profiler.report_layer_time(name, ms)
        return True

    def _change(self):
        assert not self._captured, "a context was changed after its graph was captured"


class FakeEngine:
    """A linear layer: every output is the flat input times `weights`, in the output's own type."""

    def __init__(self, cuda, input, outputs, profile, broken=""):
        self.cuda, self.input, self.outputs, self.profile, self.broken = cuda, input, outputs, profile, broken
        self.device_memory_size_v2, self.enqueues, self.listener = SCRATCH, 0, None
        self.text = json.dumps({"Layers": []})
        self.no_context = False
        self.layer_ms = {}

    num_io_tensors = property(lambda self: 1 + len(self.outputs))

    def _port(self, name):
        return next(port for port in (self.input, *self.outputs) if port.name == name)

    def get_tensor_name(self, index):
        return (*self.outputs, self.input)[index].name  # the input need not come first

    def get_tensor_mode(self, name):
        return MODES.INPUT if name == self.input.name else MODES.OUTPUT

    def get_tensor_dtype(self, name):
        return _Member(self._port(name).kind)

    def get_tensor_shape(self, name):
        return list(self._port(name).shape)

    def get_tensor_profile_shape(self, name, index):
        assert name == self.input.name and index == 0
        return [list(shape) for shape in self.profile]

    def create_execution_context(self, strategy):
        assert strategy is STRATEGIES.USER_MANAGED
        return None if self.no_context else FakeContext(self)

    def create_engine_inspector(self):
        inspector = SimpleNamespace(execution_context=None)
        inspector.get_engine_information = lambda wanted: self.text if wanted is FORMATS.JSON else ""
        return inspector

    def say(self, text):
        self.listener.log(SimpleNamespace(value=1), text)

    @staticmethod
    def weights(port, depth):
        """float32 [depth, columns], the same every time."""
        return np.random.default_rng(port.shape[-1]).standard_normal((depth, port.shape[-1])).astype(np.float32) / depth

    def compute(self, shape, tensors):
        raw = self.cuda.read(tensors[self.input.name], shape, DTYPES[self.input.kind])
        flat = _from_memory(raw, self.input.kind).reshape(shape[0], -1)
        for port in self.outputs:
            result = flat @ self.weights(port, flat.shape[1])
            memory = self.cuda.read(tensors[port.name], (shape[0], *port.shape[1:]), DTYPES[port.kind])
            memory[...] = (result.view(np.uint32) >> 16).astype(np.uint16) if port.kind == "BF16" else result.astype(memory.dtype)


def _from_memory(raw, kind):
    return (raw.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else raw.astype(np.float32)


MODES = _enumeration("INPUT", "OUTPUT")
STRATEGIES = _enumeration("USER_MANAGED")
FORMATS = _enumeration("JSON")


class _Logger:
    def __init__(self):
        pass


class _Profiler:
    def __init__(self):
        self.started = True


def module(engine, name="fake_tensorrt"):
    """A module whose runtime gives this engine for the plan ``b"plan"``, and None for any other."""

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            engine.listener = self.logger
            if plan != b"plan":
                engine.say("the engine was built by another version")
                return None
            return engine

    return SimpleNamespace(
        __name__=name,
        __version__="10.13.3.9",
        ILogger=_Logger,
        IProfiler=_Profiler,
        Runtime=Runtime,
        TensorIOMode=MODES,
        ExecutionContextAllocationStrategy=STRATEGIES,
        LayerInformationFormat=FORMATS,
    )
