"""The tensors inside a model, from one session of ONNX Runtime, in two sets of buffers that are used in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.onnxruntime.backend import make_options
from vitdeploy.errors import InputError, MachineError, UsageError, library
from vitdeploy.onnxfile.augment import augment

BUFFERS = 160 << 20
"""Bytes that the two sets of buffers take together, at most; but one image always has its place."""

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_SAME = 0.02  # of a tensor's greatest magnitude: how far an image may differ when it runs beside another
_PROVIDER = "CPUExecutionProvider"

Tensors = list[NDArray[Any]]


class OnnxRuntimeObserver:
    """One session, all optimisations on, with the wanted tensors as outputs; see `Observer`.

    Where the graph does not tell the tensors' shapes, `batch` begins with 1, and the first two runs show how large they are and
    that images lie one after another in them.
    """

    def __init__(self, model: Path | bytes, tensors: Sequence[str], *, threads: int, batch: int) -> None:
        self._file = None if isinstance(model, bytes) else model
        self._names = list(tensors)
        self._session: Any = _open_session(model, self._names, threads)
        given = self._session.get_inputs()
        if len(given) != 1:
            raise UsageError("VD2011", f"the model takes {len(given)} inputs, not only images", file=self._file)
        self._input = given[0]
        types = {output.name: output.type for output in self._session.get_outputs()}
        for name in self._names:
            if types[name] not in ("tensor(float)", "tensor(float16)"):
                raise UsageError("VD2011", f"the tensor {name!r} holds {types[name]}, not float", file=self._file)
        self._types = [np.dtype(_TYPES[types[name]]) for name in self._names]
        first = self._input.shape[0] if self._input.shape else None
        self._fixed: int | None = first if isinstance(first, int) else None
        self._wanted_batch = batch
        self._shapes: list[tuple[int, ...]] = []  # of one image's tensors, or the fixed batch's
        self._probed = self._fixed is not None
        self._alone: tuple[NDArray[Any], Tensors] | None = None
        self._buffers: list[Tensors | None] = [None, None]
        self.batch = self._fixed or 1
        self.turn = 0
        self._take_declared_shapes()

    def run(self, pixels: NDArray[Any]) -> Tensors:
        """Run some images; see `Observer.run`."""
        count = len(pixels)
        try:
            tensors = self._observe(self._check(pixels))
        except MachineError as exc:
            if not _is_out_of_memory(exc):
                raise
            raise MachineError("VD4006", exc.message, file=exc.file, fix="use a smaller batch") from exc
        images = self._fixed or count
        return [tensor.reshape(images, -1, tensor.shape[-1])[:count] for tensor in tensors]

    def shrink(self, batch: int) -> None:
        """Take fewer images a run from now on, and give the buffers up."""
        self._buffers = [None, None]
        self._alone, self._probed = None, True
        self.batch = self._wanted_batch = batch

    @property
    def shrinks(self) -> bool:
        """Whether fewer images a run would be possible."""
        return self.batch > 1 and self._fixed is None

    def close(self) -> None:
        """Free the session and the buffers."""
        self._session, self._buffers, self._alone = None, [None, None], None

    def _observe(self, pixels: NDArray[Any]) -> Tensors:
        if not self._shapes:
            return self._measure(pixels)
        if not self._probed and self._alone is not None:
            return self._run_beside(*self._alone, pixels)
        return self._run_bound(pixels)

    def _check(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The images in the engine's order of memory, if they fit; a fixed batch is filled up with copies of the last."""
        takes = list(self._input.shape)
        fits = pixels.ndim == len(takes) and pixels.dtype == _TYPES.get(self._input.type)
        pairs = zip(takes[1:], pixels.shape[1:], strict=False)
        if not fits or any(isinstance(want, int) and want != size for want, size in pairs):
            message = f"the images are {pixels.dtype} {list(pixels.shape)}, the model takes {self._input.type} {takes}"
            raise InputError("VD3107", message, file=self._file, fix="prepare them under the model's input contract")
        missing = (self._fixed or len(pixels)) - len(pixels)
        whole = np.concatenate([pixels, np.repeat(pixels[-1:], missing, 0)]) if missing else pixels
        return np.ascontiguousarray(whole)

    def _take_declared_shapes(self) -> None:
        """Take the tensors' shapes from the graph, where it knows them all and their first axis is the images'."""
        shapes = {output.name: list(output.shape) for output in self._session.get_outputs()}
        first = self._input.shape[0] if self._input.shape else None
        wanted = [shapes[name] for name in self._names]
        if first is None or any(len(shape) < 2 or shape[0] != first for shape in wanted):
            return
        if all(isinstance(size, int) for shape in wanted for size in shape[1:]):
            self._note_sizes([(self._fixed or 1, *shape[1:]) for shape in wanted])
            self._probed = True
            self.batch = self._fixed or self._wanted_batch

    def _note_sizes(self, shapes: list[tuple[int, ...]]) -> None:
        """Note the tensors' shapes, and how many images the buffers can hold."""
        self._shapes = shapes
        size = sum(math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, self._types, strict=True))
        self._wanted_batch = max(1, min(self._wanted_batch, BUFFERS // (2 * max(size, 1))))

    def _measure(self, pixels: NDArray[Any]) -> Tensors:
        """The first run: how large the tensors are, and how many images the buffers can hold."""
        values = self._run_unbound(pixels)
        shapes = [tuple(int(size) for size in value.shape()) for value in values]
        for name, shape in zip(self._names, shapes, strict=True):
            if len(shape) < 2 or (self._fixed and shape[0] % self._fixed):
                message = f"the tensor {name!r} {list(shape)} does not have the images along its first axis"
                raise UsageError("VD2011", message, file=self._file, fix="export with a dynamic batch, or leave it out")
        self._note_sizes(shapes)
        tensors = self._take_buffers(len(pixels) // (self._fixed or 1))
        for place, tensor in enumerate(tensors):
            np.copyto(tensor, values[place].numpy())
            values[place] = None
        if self._wanted_batch > 1 and not self._probed:
            self._alone = (pixels, [tensor.copy() for tensor in tensors])
        return tensors

    def _run_beside(self, other: NDArray[Any], alone: Tensors, pixels: NDArray[Any]) -> Tensors:
        """The second run, beside the first image: its tensors must come out as they did alone, ahead of the second's."""
        self._probed, self._alone = True, None
        if len(pixels) != 1:
            return self._run_bound(pixels)
        try:
            values = [value.numpy() for value in self._run_unbound(np.concatenate([other, pixels]))]
        except MachineError as exc:
            if not _is_out_of_memory(exc):
                raise
            return self._run_bound(pixels)
        halves = []
        for value, first in zip(values, alone, strict=True):
            if value.shape != (2 * first.shape[0], *first.shape[1:]):
                return self._run_bound(pixels)  # images do not lie one after another: one a run
            before, after = value[: len(first)], value[len(first) :]
            with np.errstate(invalid="ignore"):
                apart = np.abs(before - first).max(initial=0) > _SAME * np.abs(first).max(initial=0)
            if apart:
                return self._run_bound(pixels)
            halves.append(after)
        self.batch = self._wanted_batch
        return halves

    def _take_buffers(self, count: int) -> Tensors:
        """This turn's buffers for ``count`` images (or fixed batches), made when needed."""
        places = zip(self._shapes, self._types, strict=True)
        flats = self._buffers[self.turn]
        if flats is None or any(flat.size < count * math.prod(shape) for flat, shape in zip(flats, self._shapes, strict=True)):
            self._buffers[self.turn] = None
            room = max(count, 1 if self._fixed else self.batch)
            with library("numpy", self._file):
                flats = [np.empty(room * math.prod(shape), kind) for shape, kind in places]
            self._buffers[self.turn] = flats
        return [
            flat[: count * math.prod(shape)].reshape(count * shape[0], *shape[1:])
            for flat, shape in zip(flats, self._shapes, strict=True)
        ]

    def _run_bound(self, pixels: NDArray[Any]) -> Tensors:
        """A run that writes into this turn's buffers."""
        tensors = self._take_buffers(len(pixels) // (self._fixed or 1))
        with library("onnxruntime", self._file):
            binding = self._session.io_binding()
            binding.bind_cpu_input(self._input.name, pixels)
            for name, tensor in zip(self._names, tensors, strict=True):
                binding.bind_output(name, "cpu", 0, tensor.dtype.type, tensor.shape, tensor.ctypes.data)
            self._session.run_with_iobinding(binding)
        return tensors

    def _run_unbound(self, pixels: NDArray[Any]) -> list[Any]:
        """A run whose outputs the engine allocates: one of its values for each tensor."""
        with library("onnxruntime", self._file):
            binding = self._session.io_binding()
            binding.bind_cpu_input(self._input.name, pixels)
            for name in self._names:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            return list(binding.get_outputs())


def _is_out_of_memory(error: MachineError) -> bool:
    """Whether an engine's failure was for want of memory; it has no exception of its own for it."""
    text = str(error.__cause__).lower()
    return error.code == "VD4006" or any(words in text for words in ("failed to allocate", "bad_alloc", "bad allocation"))


def _open_session(model: Path | bytes, tensors: Sequence[str], threads: int) -> Any:  # noqa: ANN401 (onnxruntime has no types)
    """The model with its wanted tensors as outputs, opened.

    Memory patterns are off: they would set aside one block for all that a run needs, which the wanted tensors do not.
    Threads do not spin while they wait: the sketching thread needs the core.
    """
    file = None if isinstance(model, bytes) else model
    augmented = augment(model, tensors)
    options = make_options(OpenConfig(threads=threads, spin=False))
    options.enable_mem_pattern = False
    if augmented.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(augmented.folder))
    with library("onnxruntime", file):
        return onnxruntime.InferenceSession(augmented.model, options, providers=[_PROVIDER])
