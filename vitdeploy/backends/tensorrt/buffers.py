"""Memory for an engine's inputs and outputs: twice each, pinned on the host and on the device, and the types between them.

Executed so far: against a fake device only, never on a GPU.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import Tensor
from vitdeploy.backends.tensorrt.device import Cuda
from vitdeploy.errors import MachineError, library

Shape = tuple[int, ...]
_FLOATS = ("FLOAT", "HALF", "BF16")
_MEMORY: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),  # NumPy has no bfloat16: its bits
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}
"""Names of the engine's DataType to what lies in memory."""
_TAKEN = {"float32": _FLOATS, "uint8": ("UINT8",)}
"""Element type of the input contract to what an engine may take for it."""


class Port(NamedTuple):
    """An input or output of an engine.

    Attributes:
        name: The tensor's, which is the model's.
        kind: The engine's DataType by name.
        shape: Sizes; -1 for a dynamic batch.
    """

    name: str
    kind: str
    shape: Shape

    def size(self, shape: Shape) -> int:
        """Bytes of a tensor of these sizes."""
        return math.prod(shape) * _MEMORY[self.kind].itemsize


def ports(engine: Any, module: Any, artifact: Artifact) -> tuple[Port, tuple[Port, ...]]:  # noqa: ANN401 (a library without types)
    """The one input and the outputs of an engine.

    Args:
        engine: An ``ICudaEngine``.
        module: Where it is from.
        artifact: The model that it should be.

    Raises:
        MachineError: VD4011, it is an engine of something else.
    """
    inputs: list[Port] = []
    outputs: list[Port] = []
    with library("tensorrt", artifact.model):
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            kind = engine.get_tensor_dtype(name).name
            port = Port(name, kind, tuple(engine.get_tensor_shape(name)))
            (inputs if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else outputs).append(port)
    if len(inputs) != 1:
        raise _foreign(artifact, f"{len(inputs)} inputs", "1")
    contract, port = artifact.spec.input, inputs[0]
    image = (contract.height, contract.width)
    expected = (*image, contract.channels) if contract.tensor == "uint8-nhwc" else (contract.channels, *image)
    if port.shape[1:] != expected or not port.shape or port.shape[0] == 0:
        raise _foreign(artifact, f"the input {list(port.shape)}", f"[N, {', '.join(map(str, expected))}]")
    if port.kind not in _TAKEN[contract.tensor.partition("-")[0]]:
        raise _foreign(artifact, f"an input of type {port.kind}", contract.tensor)
    for output in outputs:
        if output.kind not in _MEMORY:
            raise _foreign(artifact, f"the output {output.name!r} of type {output.kind}", "a type that can be read")
    if artifact.spec.output not in (output.name for output in outputs):
        raise _foreign(artifact, f"the outputs {[output.name for output in outputs]}", artifact.spec.output)
    return port, tuple(outputs)


def _foreign(artifact: Artifact, held: str, expected: str) -> MachineError:
    message = f"the engine has {held}, the model has {expected}"
    return MachineError("VD4011", message, file=artifact.model, fix="compile it again")


class Buffers:
    """Pinned and device memory of every port.

    Args:
        cuda: The device that is current in the calling thread.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._owned = ExitStack()
        self._sizes: dict[str, int] = {}
        self._host: dict[str, int] = {}
        self._device: dict[str, int] = {}

    def holds(self, needed: dict[Port, Shape]) -> bool:
        """Whether there is room for tensors of these sizes."""
        return all(port.size(shape) <= self._sizes.get(port.name, 0) for port, shape in needed.items())

    def grow(self, needed: dict[Port, Shape]) -> None:
        """Replace all memory by as much as these tensors need. The old contents and addresses are gone, even when this fails.

        Raises:
            MachineError: VD4006, there is not that much.
        """
        self.close()
        with ExitStack() as owned:
            for port, shape in needed.items():
                size = port.size(shape)
                self._device[port.name] = self._cuda.allocate(size)
                owned.callback(self._cuda.free, self._device[port.name])
                self._host[port.name] = self._cuda.allocate_pinned(size)
                owned.callback(self._cuda.free_pinned, self._host[port.name])
            self._owned = owned.pop_all()
        self._sizes = {port.name: port.size(shape) for port, shape in needed.items()}

    def address(self, port: Port) -> int:
        """Where a port's tensor lies on the device."""
        return self._device[port.name]

    def upload(self, port: Port, tensor: Tensor, stream: int) -> None:
        """Convert an input into pinned memory, and queue its copy to the device.

        Args:
            port: The input.
            tensor: float32 or uint8, C-contiguous, as the contract says. Not needed after this call.
            stream: Where to queue.
        """
        memory = self._view(port, tensor.shape)
        memory[...] = _to_bfloat16(tensor) if port.kind == "BF16" else tensor
        self._cuda.upload(self._device[port.name], self._host[port.name], port.size(tensor.shape), stream)

    def download(self, port: Port, shape: Shape, stream: int) -> None:
        """Queue the copy of an output to pinned memory."""
        self._cuda.download(self._host[port.name], self._device[port.name], port.size(shape), stream)

    def take(self, port: Port, shape: Shape) -> NDArray[Any]:
        """A new array of an output that has arrived: float32 of any float type, integers as they are."""
        memory = self._view(port, shape)
        if port.kind == "BF16":
            return (memory.astype(np.uint32) << 16).view(np.float32)
        return memory.astype(np.float32 if port.kind in _FLOATS else memory.dtype)

    def close(self) -> None:
        """Give everything back. Closing twice is allowed."""
        self._sizes = {}
        self._owned.close()

    def _view(self, port: Port, shape: Shape) -> NDArray[Any]:
        """The pinned memory as an array; valid until the memory grows."""
        raw = (ctypes.c_uint8 * port.size(shape)).from_address(self._host[port.name])
        return np.ctypeslib.as_array(raw).view(_MEMORY[port.kind]).reshape(shape)


def _to_bfloat16(tensor: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN.

    Args:
        tensor: float32, any shape.
    """
    bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(tensor), np.uint32(0x7FC0), rounded).astype(np.uint16)
