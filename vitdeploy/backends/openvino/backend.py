"""OpenVINO: the file on its device, its float parts held to float32 unless something else is asked for.

OpenVINO computes in bfloat16 where the CPU has AMX unless told otherwise; the precision hint is set and then asked back, so
that what the report says is what ran.

Compiling writes OpenVINO's own form of the model, which is read faster than ONNX, and beside it the engine as the device
gives it away, which is ready faster still. That is used only with the version, device and settings that it was made with.

Executed here: the CPU, and AUTO on a machine that has nothing else. GPU and NPU were never executed.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

# Importing openvino sends an event to Google Analytics and writes to ~/intel, without being asked, when the package
# openvino_telemetry can be imported; when it can't, openvino has a silent stand-in. So for this import it can't.
_hidden = "openvino_telemetry" not in sys.modules
if _hidden:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
try:
    import openvino
finally:
    if _hidden:
        del sys.modules["openvino_telemetry"]

import msgspec  # noqa: E402
import numpy as np  # noqa: E402

from vitdeploy import machine  # noqa: E402
from vitdeploy.artifact import Artifact, is_same_spec  # noqa: E402
from vitdeploy.backends import cache, settings  # noqa: E402
from vitdeploy.backends.base import (  # noqa: E402
    Compiled,
    Kernel,
    OpenConfig,
    Outputs,
    Profile,
    Tensor,
    check_tensor,
    count_threads,
)
from vitdeploy.backends.openvino.kernels import PRECISIONS, read_kernels, read_profile, same_layers  # noqa: E402
from vitdeploy.backends.openvino.settings import (  # noqa: E402
    AUTO,
    PRECISION,
    STREAMS,
    THREADS,
    check_counts,
    check_precision,
    choose_properties,
    find_device,
    read_properties,
)
from vitdeploy.errors import InputError, MachineError, UsageError, library  # noqa: E402
from vitdeploy.files import sha256  # noqa: E402
from vitdeploy.recipe import CompileConfig  # noqa: E402
from vitdeploy.words import FloatPrecision  # noqa: E402

_TAKES = ("threads", "device", "precision", "hint", "streams")
_COMPILES = (*_TAKES, "backend", "batch", "optimise", "rebuilds", "seconds")
_MODEL, _BLOB = "model.xml", "model.blob"
_SPEC = ("vitdeploy", "spec")
"""Where the model keeps its contract."""
_LONGEST = 120


class OpenVino:
    """Opens artifacts in OpenVINO, and compiles them beforehand."""

    name = "openvino"

    def open(self, artifact: Artifact, config: OpenConfig) -> OpenVinoRunner:
        """Read and compile the file for its device, or take the engine that was compiled before.

        Raises:
            UsageError: VD2011, a setting or device that this engine does not have, or a precision that the device does not
                compute in; VD2013, the artifact is another engine's.
            InputError: VD3010, the record is damaged, or of another model than the file.
            MachineError: VD4010, no such device here; VD4004, the engine refused the model; VD4006, out of memory.
        """
        return OpenVinoRunner(artifact, settings.merge_settings(self.name, artifact, config, _TAKES))

    def compile(self, artifact: Artifact, config: CompileConfig, folder: Path, *, again: bool = False) -> Compiled:
        """Write OpenVINO's own form of the model, and the compiled engine where the device can give it away.

        Weights stay as they are in the file; only for arithmetic in ``f16`` float ones become f16, which costs nothing then.

        Raises:
            UsageError: VD2011, settings that this engine or device does not have, or a batch that the file can't take.
            MachineError: VD4010 device not usable; VD4004, VD4006.
        """
        settings.require_only(self.name, config, _COMPILES)
        run = OpenConfig(
            threads=config.threads,
            device=config.device or "cpu",
            precision=config.precision or _find_usual_precision(artifact),
            hint=config.hint,
            streams=config.streams,
        )
        with library("openvino", artifact.model), _own_signal_stack():
            core = openvino.Core()
            place = find_device(core, run.device or "cpu")
            asked = choose_properties(core, place, run)
            model = core.read_model(artifact.model)
            _freeze(model, config.batch, artifact.model)
            model.set_rt_info(msgspec.json.encode(artifact.spec).decode(), list(_SPEC))
            openvino.save_model(model, folder / _MODEL, compress_to_fp16=config.precision == "f16")
            compiled = core.compile_model(core.read_model(folder / _MODEL), place, asked)
            actual = read_properties(compiled)
            check_precision(asked, actual, place)
            check_counts(run, actual)
            facts = {"openvino": openvino.__version__, "device": core.get_property(place, "FULL_DEVICE_NAME"), "settings": actual}
            if place == AUTO or "EXPORT_IMPORT" not in core.get_property(place, "OPTIMIZATION_CAPABILITIES"):
                note = f"openvino can't keep what it compiles for {place}: it is compiled whenever the model is opened"
                return Compiled(entry=_MODEL, run=run, facts=facts, notes=(note,))
            (folder / _BLOB).write_bytes(compiled.export_model().getbuffer())
            made = _stamp(core, place, asked, Artifact(folder, msgspec.structs.replace(artifact.record, entry=_MODEL, files={})))
        cache.write(folder, made)
        facts |= {"blob_bytes": (folder / _BLOB).stat().st_size, "made": made}
        return Compiled(entry=_MODEL, run=run, facts=facts)

    def candidates(self, config: CompileConfig) -> tuple[OpenConfig, ...]:
        """Precisions that the device really computes in, and threads, as far as they are left open.

        Raises:
            UsageError: VD2011, an unknown device or precision.
            MachineError: VD4010, no such device here.
        """
        with library("openvino"), _own_signal_stack():
            core = openvino.Core()
            place = find_device(core, config.device or "cpu")
            precisions = [config.precision] if config.precision else _list_precisions(core, place)
        counts = [config.threads]
        if place == "CPU" and config.threads is None and machine.physical_cores() != machine.logical_cores():
            counts.append(machine.physical_cores())
        return tuple(
            OpenConfig(
                threads=count, device=config.device or "cpu", precision=precision, hint=config.hint, streams=config.streams
            )
            for count in counts
            for precision in precisions
        )


class OpenVinoRunner:
    """A compiled model, with as many requests as it runs at a time; `run` may be called from as many threads."""

    def __init__(self, artifact: Artifact, config: OpenConfig) -> None:
        precision = config.precision or _find_usual_precision(artifact)
        if precision not in PRECISIONS:
            raise UsageError("VD2011", f"there is no precision {precision!r}", fix=f"choose from: {', '.join(PRECISIONS)}")
        config = msgspec.structs.replace(config, precision=precision)
        self._artifact = artifact
        self._blob = ""
        with library("openvino", artifact.model), _own_signal_stack():
            self._core = openvino.Core()
            self._device = find_device(self._core, config.device or "cpu")
            self._wanted = choose_properties(self._core, self._device, config)
            self._compiled: Any = self._ready()
            actual = read_properties(self._compiled)
            check_precision(self._wanted, actual, self._device)
            self._requests: SimpleQueue[Any] = SimpleQueue()
            for _ in range(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
                self._requests.put(self._compiled.create_infer_request())
            shape = self._compiled.inputs[0].get_partial_shape()
            fixed = shape.rank.is_static and shape.rank.get_length() > 0 and shape[0].is_static
            first = shape[0].get_length() if fixed else None
        self._names = [_name_output(output, artifact) for output in self._compiled.outputs]
        self.batch: int | None = first
        """The one batch size that the model takes, or None when it is dynamic."""
        self.settings: dict[str, object] = {
            "backend": OpenVino.name,
            "version": openvino.__version__.partition("-")[0],
            "threads": int(actual.get(THREADS, count_threads(config))),
            "device": (config.device or "cpu") + (f" ({str(actual['devices']).lower()})" if self._device == AUTO else ""),
            "precision": _name_arithmetic(artifact.record.precision, PRECISIONS[precision]),
        }
        streams = actual.get(STREAMS) if config.streams is not None or config.hint == "throughput" else None
        hint = config.hint if config.hint != "latency" else None
        more = {"hint": hint, "streams": streams, "blob": self._blob or None}
        self.settings |= {name: value for name, value in more.items() if value is not None}

    def _ready(self) -> Any:  # noqa: ANN401 (openvino.CompiledModel)
        """The compiled model: the one that was kept, if it fits here, else compiled now."""
        folder, record = self._artifact.folder, self._artifact.record
        if record.kind == OpenVino.name and (folder / _BLOB).is_file():
            for name in (_BLOB, cache.NAME):
                self._artifact.locate(name)
            why = cache.explain_misfit(folder, _stamp(self._core, self._device, self._wanted, self._artifact))
            if not why:
                try:
                    with library("openvino", folder / _BLOB):
                        # mapped, not read; private pages, because OpenVINO asks for memory that it may write
                        self._memory = openvino.Tensor(np.memmap(folder / _BLOB, np.uint8, "c"), shared_memory=True)
                        compiled = self._core.import_model(self._memory, self._device, self._wanted)
                    self._blob = "yes"
                    return compiled
                except MachineError as error:
                    if error.code != "VD4004":
                        raise
                    why = error.message[:_LONGEST]
            self._blob = f"no: {why}"
        return self._core.compile_model(self._read(), self._device, self._wanted)

    def _read(self) -> Any:  # noqa: ANN401 (openvino.Model)
        if (weights := self._artifact.model.with_suffix(".bin")).is_file():  # which the engine opens by itself
            self._artifact.locate(weights.name)
        model = self._core.read_model(self._artifact.model)
        if self._artifact.record.kind == OpenVino.name:
            _require_same_spec(model, self._artifact)
        return model

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        with library("openvino", self._artifact.model):
            request = self._requests.get()
            try:
                # share_inputs: the tensor is only read, and only during this call; outputs are copied out of the request
                results = request.infer([pixels], share_inputs=True, share_outputs=False)
                return {name: results[index] for index, name in enumerate(self._names)}
            finally:
                self._requests.put(request)

    def kernels(self) -> tuple[Kernel, ...]:
        """What runs; see `Runner.kernels`. A fused attention is two kernels, the scores and the product with the values.

        A kept engine has lost the names of what was fused: the model is compiled anew, and if that runs the same kernels they
        are told by its names.

        Whether a layer with int8 weights and float input is quantized at run time depends on the CPU, the depth of the
        product and the engine's version, and no property tells: a small product of the same depth is run and shows it.
        """
        with library("openvino", self._artifact.model), _own_signal_stack():
            model, runtime = self._read(), self._compiled.get_runtime_model()
            if self._blob == "yes":
                compiled = self._core.compile_model(model, self._device, self._wanted)
                runtime = compiled.get_runtime_model() if same_layers(compiled.get_runtime_model(), runtime) else runtime
            pairs = read_kernels(runtime, model)
            depths = {depth for _, depth in pairs if depth}
            dynamic = {depth: _quantizes(self._core, depth, (self._device, self._wanted)) for depth in depths}
        return tuple(
            kernel._replace(precision="int8-dynamic", fallback=False) if dynamic.get(depth) else kernel for kernel, depth in pairs
        )

    def profile(self, tensor: Tensor, runs: int) -> Profile:
        """Where the time goes; see `Runner.profile`. The model is compiled once more, with the counters on."""
        pixels = check_tensor(tensor, self._artifact.spec.input, self.batch)
        with library("openvino", self._artifact.model), _own_signal_stack():
            counting = {**self._wanted, "PERF_COUNT": True}
            request = self._core.compile_model(self._read(), self._device, counting).create_infer_request()
            request.infer([pixels], share_inputs=True)
            counted, run_ms = [], 0.0
            for _ in range(runs):
                begun = time.perf_counter_ns()
                request.infer([pixels], share_inputs=True)
                run_ms += (time.perf_counter_ns() - begun) / 1e6 / runs
                counted += request.profiling_info
            return read_profile(run_ms, counted, runs)

    def close(self) -> None:
        """Drop the compiled model."""
        self._requests, self._compiled, self._memory = SimpleQueue(), None, None


def _name_output(output: Any, artifact: Artifact) -> str:  # noqa: ANN401 (openvino.Output)
    """The file's own name of an output: the engine gives one value several names when operations that change nothing go.

    The node that ends the graph there keeps it, with a port behind it.
    """
    names, node = output.get_names(), output.get_node().get_friendly_name()
    wanted = (node.removesuffix("/sink_port_0"), artifact.spec.output)
    return str(next((name for name in wanted if name in names), output.get_any_name()))


def _find_usual_precision(artifact: Artifact) -> FloatPrecision:
    return "bf16" if artifact.record.precision == "bf16" else "f32"


def _name_arithmetic(made: str, floats: str) -> str:
    """Precision of a runner's settings: floats of a float model, else what it was quantized to and the floats beside it."""
    if not made.startswith("int"):
        return floats
    return made if floats == "fp32" else f"{made}+{floats}"


def _freeze(model: Any, batch: int | None, file: Path) -> None:  # noqa: ANN401 (openvino.Model)
    if batch is None:
        return
    shape = model.inputs[0].get_partial_shape()
    if shape[0].is_static and shape[0].get_length() != batch:
        message = f"takes batches of {shape[0].get_length()} only"
        raise UsageError("VD2011", message, file=file, fix="leave the batch out, or export again with it")
    shape[0] = batch
    model.reshape({model.inputs[0]: shape})
    if any(output.get_partial_shape()[0] != batch for output in model.outputs):
        raise MachineError("VD4011", f"openvino did not freeze the batch to {batch}: {model.outputs}", file=file)


def _require_same_spec(model: Any, artifact: Artifact) -> None:  # noqa: ANN401 (openvino.Model)
    """Refuse a record whose contract is not the one inside the model: an edited mean would be wrong in silence."""
    inside = model.get_rt_info(list(_SPEC)).astype(str) if model.has_rt_info(list(_SPEC)) else None
    if inside is None or not is_same_spec(inside, artifact.spec):
        raise InputError("VD3010", "has another spec than the model beside it", file=artifact.folder, fix="compile it again")


def _stamp(core: Any, place: str, asked: dict[str, object], artifact: Artifact) -> dict[str, str]:  # noqa: ANN401 (openvino.Core)
    """What a kept engine depends on."""
    paths = (artifact.model, artifact.model.with_suffix(".bin"))
    parts = [artifact.record.files.get(path.name) or sha256(path) for path in paths if path.is_file()]
    spec = hashlib.sha256(msgspec.json.encode(artifact.spec)).hexdigest()
    return {
        "made by": f"openvino {openvino.__version__}",
        "made for": f"{core.get_property(place, 'FULL_DEVICE_NAME')}, {machine.instruction_sets()}",
        "made with": ", ".join(f"{name} {value}" for name, value in asked.items()),
        "made of": " ".join([*parts, spec]),
    }


def _list_precisions(core: Any, place: str) -> list[FloatPrecision]:  # noqa: ANN401 (openvino.Core)
    """Precisions that a device computes in: each is asked for with a small product, and asked back."""
    ops = openvino.opset13
    pixels = ops.parameter([1, 16], np.float32)
    product = ops.matmul(pixels, ops.constant(np.ones((16, 16), np.float32)), False, True)
    model = openvino.Model([product], [pixels], "probe")
    every: tuple[FloatPrecision, ...] = ("f32", "bf16", "f16")
    return [name for name in every if read_properties(core.compile_model(model, place, {PRECISION: name})).get(PRECISION) == name]


def _quantizes(core: Any, depth: int, asked: tuple[str, dict[str, object]]) -> bool:  # noqa: ANN401 (openvino.Core)
    """Whether a float input is quantized for int8 weights: beside large numbers, small ones then count for nothing."""
    small, large, rows = 1e-3, 1.0, 16
    ops = openvino.opset13
    pixels = ops.parameter([1, 2, depth], np.float32)
    weight = ops.multiply(ops.convert(ops.constant(np.ones((rows, depth), np.int8)), np.float32), np.ones((rows, 1), np.float32))
    model = openvino.Model([ops.matmul(pixels, weight, False, True)], [pixels], "probe")
    values = np.full((1, 2, depth), small, np.float32)
    values[..., ::rows] = large
    exact, without = float(values[0, 0].sum()), float((values[0, 0] == large).sum())
    product = float(core.compile_model(model, *asked)([values])[0].flat[0])
    return product < (exact + without) / 2


class _SignalStack(ctypes.Structure):
    """stack_t of <signal.h>, as Linux has it."""

    _fields_ = (("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Give the thread its signal stack back.

    Compiling a model leaves a small alternate stack in place that is freed with the model. Python's handlers run on it, so
    the first Ctrl-C after the model is closed would be a segmentation fault instead of a KeyboardInterrupt.
    """
    call = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    before = _SignalStack()
    if call is None or call(None, ctypes.byref(before)) != 0:
        yield
        return
    try:
        yield
    finally:
        call(ctypes.byref(before), None)
