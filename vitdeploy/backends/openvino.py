"""OpenVINO: the exported file on the CPU, held to float32.

OpenVINO computes in bfloat16 where the CPU has AMX unless told otherwise; the precision hint is set and then asked back, so
that what the report says is what ran.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

from vitdeploy.artifact import Artifact  # noqa: E402
from vitdeploy.backends.base import OpenConfig, Outputs, Tensor, checked, only_cpu, threads  # noqa: E402
from vitdeploy.errors import library  # noqa: E402

_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


class OpenVino:
    """Opens artifacts in OpenVINO."""

    name = "openvino"

    def open(self, artifact: Artifact, config: OpenConfig) -> OpenVinoRunner:
        """Read and compile the file for the CPU.

        Raises:
            UsageError: VD2011, another device than ``cpu``.
            EnvironmentError_: VD4004, the engine refused the model; VD4006, out of memory.
        """
        only_cpu(self.name, config)
        return OpenVinoRunner(artifact, threads(config))


class OpenVinoRunner:
    """A compiled model and one request: latency of one batch at a time, not throughput of many at once."""

    def __init__(self, artifact: Artifact, count: int) -> None:
        wanted = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": count,
            "NUM_STREAMS": 1,
        }
        with library("openvino", artifact.model), _own_signal_stack():
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(artifact.model), "CPU", wanted)
            precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            used = compiled.get_property("INFERENCE_NUM_THREADS")
            self._request: Any = compiled.create_infer_request()
        self._artifact = artifact
        self._names = [output.get_any_name() for output in compiled.outputs]
        first = compiled.inputs[0].get_partial_shape()[0]
        self.batch: int | None = first.get_length() if first.is_static else None
        """The batch written into the file, or None when it is dynamic."""
        self.settings: dict[str, Any] = {
            "backend": OpenVino.name,
            "version": openvino.__version__.partition("-")[0],
            "threads": int(used),
            "device": "cpu",
            "precision": _PRECISIONS.get(precision, precision),
        }

    def run(self, tensor: Tensor) -> Outputs:
        """Run one batch; see `Runner.run`. All outputs of the file, by name."""
        pixels = checked(tensor, self._artifact.spec.input, self.batch)
        with library("openvino", self._artifact.model):
            # share_inputs: the tensor is only read, and only during this call; outputs are copied out of the request
            found = self._request.infer([pixels], share_inputs=True, share_outputs=False)
            return {name: found[index] for index, name in enumerate(self._names)}

    def close(self) -> None:
        """Drop the compiled model."""
        self._request = None


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
