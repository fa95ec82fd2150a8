"""Calibration: run a model over images once and keep, of the tensors inside it, what quantization will want to know.

The wanted tensors become outputs of one session with all optimisations on. It writes them into two sets of buffers in turn:
while the session fills one, a second thread adds the other to the sketches. Neither images nor activations are ever kept, so
memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.backends.base import Observer
from vitdeploy.backends.table import open_observer
from vitdeploy.errors import InputError, MachineError, UsageError, library
from vitdeploy.machine import logical_cores
from vitdeploy.progress import Progress, silent
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.sketch import MOST_ROWS, Sketch, image_key
from vitdeploy.recipe import CALIBRATION_IMAGES

Images = tuple[NDArray[Any], tuple[str, ...]]
"""Some images: the model's input tensor [n, ...] as its contract says, and n names, each unique in the data set."""

STEP = 16
"""Images between two looks at whether the ranges have settled."""

_SETTLED = 2  # looks in a row
_RANGES, _CHANNELS = 0.01, 0.02  # how far the ranges, and the channels' mean extent, may move between two looks
_SAVE_S = 10.0
_SAVE_SHARE = 0.05
"""Share of the time that saving may take."""


class Want(msgspec.Struct, frozen=True):
    """What to keep of one tensor of the graph.

    Attributes:
        tensor: Its name: the output of a node, float32 or float16 [..., C], its images along the first axis.
        rows: Token rows to keep whole at most; 0 keeps none.
    """

    tensor: str
    rows: int = 256

    def __post_init__(self) -> None:
        """Refuse a number of rows that makes no sense."""
        if not 0 <= self.rows <= MOST_ROWS:
            raise UsageError("VD2003", f"rows is {self.rows}, it must be 0 to {MOST_ROWS}")


class CalibrateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a calibration runs. The result does not depend on ``batch``, ``threads`` or ``state``.

    Attributes:
        limit: Images used at most.
        minimum: Images before the first look at the ranges; ``limit`` or more never stops early.
        batch: Images a run at most; fewer where the wanted tensors are large.
        threads: Threads inside one run; None is the number of cores that this process may use.
        contract: The input contract as JSON, for the record.
        source: The data set's digest, for the record; a saved state of another is not resumed.
        state: Where to save what was done so far, every ten seconds or more and when interrupted; a later call with the same
            model, wants and source goes on from there. The caller removes it. None saves nothing.
    """

    limit: int = CALIBRATION_IMAGES
    minimum: int = 32
    batch: int = 8
    threads: int | None = None
    contract: str = ""
    source: str = ""
    state: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        given = {"limit": self.limit, "minimum": self.minimum, "batch": self.batch, "threads": self.threads}
        for name, value in given.items():
            if value is not None and value < 1:
                raise UsageError("VD2003", f"{name} is {value}, it must be positive")


def calibrate(
    model: Path | bytes,
    wants: Sequence[Want],
    batches: Iterable[Images],
    config: CalibrateConfig,
    *,
    progress: Progress = silent,
) -> Statistics:
    """Observe tensors of a model on images, in one pass and constant memory.

    Stops early when the ranges have settled: every `STEP` images past the minimum each tensor's extremes and its channels'
    mean extent are compared with the last look, and twice in a row none has moved by 1 % (the channels' by 2 %). The looks
    come at fixed numbers of images.

    Args:
        model: An ONNX file, its external data beside it if it has any; or the bytes of one without external data.
        wants: The tensors, each once, and what to keep of them.
        batches: Images in any portions, each image once; read as far as needed.
        config: Limits, threads, state.
        progress: Hears of every run, in the calling thread.

    Returns:
        What was kept, in the order of ``wants``, with notes for the report.

    Raises:
        UsageError: VD2003, no such tensor, a tensor wanted twice, or two images of one name; VD2011, a tensor is not float, or
            its images can't be told apart.
        InputError: VD3001 to VD3005, VD3011, the model can't be read; VD3101, no image; VD3107, images do not fit the model;
            VD3109, the state was saved from other images; VD3110, NaN or infinity (names the tensor and the image).
        MachineError: VD4001, VD4004, VD4006: the engine is missing, failed, or ran out of memory with a single image.
    """
    doubled = {want.tensor for want in wants if sum(other.tensor == want.tensor for other in wants) > 1}
    if doubled or not wants:
        raise UsageError("VD2003", f"tensors wanted twice: {', '.join(sorted(doubled))}" if doubled else "no tensor is wanted")
    digest = hashlib.sha256(model).hexdigest() if isinstance(model, bytes) else files.sha256(model)
    statistics = _resume(digest, wants, config)
    if statistics.images:
        progress(f"calibrate: goes on after {statistics.images} images", statistics.images, config.limit)
    threads = config.threads or logical_cores()
    observer = open_observer(model, [want.tensor for want in wants], threads=threads, batch=config.batch)
    calibration = _Calibration(observer, statistics, config)
    try:
        calibration.run(batches, progress)
    finally:
        calibration.close()
    return statistics


def _resume(digest: str, wants: Sequence[Want], config: CalibrateConfig) -> Statistics:
    """The saved state when it is of this very calibration, or a new beginning."""
    sketches = [Sketch(want.tensor, limit=want.rows) for want in wants]
    fresh = Statistics(digest, config.contract, sketches, source=config.source)
    if config.state is None or not config.state.exists():
        return fresh
    try:
        saved = Statistics.load(config.state)
    except InputError as exc:
        fresh.notes.append(f"the saved state was not used: {exc.message}")
        return fresh
    kept = [(sketch.tensor, sketch.limit) for sketch in saved.sketches.values()]
    same = (saved.model, saved.contract, saved.source) == (digest, config.contract, config.source)
    return saved if same and kept == [(want.tensor, want.rows) for want in wants] else fresh


class _Calibration:
    """One pass: the calling thread runs the model, one other thread sketches."""

    def __init__(self, observer: Observer, statistics: Statistics, config: CalibrateConfig) -> None:
        self._observer = observer
        self._statistics = statistics
        self._config = config
        self._before = frozenset(statistics.keys.tolist())  # seen before an interruption, to be passed over
        self._names: set[str] = set()
        self._skipped = 0
        self._sent = statistics.images
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sketch")
        self._pending: list[Future[None] | None] = [None, None]
        self._saved, self._cost = time.monotonic(), 0.0
        self._state = config.state
        self._whole = True  # every sketch has seen the same images

    def run(self, batches: Iterable[Images], progress: Progress) -> None:
        """Everything, up to the limit, the end of the images, or settled ranges."""
        used, limit = self._statistics, self._config.limit
        try:
            for pixels, names in self._fresh(batches):
                self._observe(pixels, names)
                if used.early_stopped:
                    break
                progress("calibrate", min(used.images, limit - 1), limit)
            self._wait()
            if not used.images:
                raise InputError("VD3101", "no calibration image was given", fix="give at least 32 images")
            if self._skipped < len(self._before) and not used.early_stopped and self._sent < limit:
                raise self._foreign()
        finally:
            self._executor.shutdown(wait=True)  # an interruption lets the sketches end what was run
            self._save()
        if used.images < self._config.minimum and used.images < limit:
            used.notes.append(f"only {used.images} calibration images were given; {self._config.minimum} or more are advised")
        progress("calibrate", used.images, used.images)

    def close(self) -> None:
        """Free the engine's memory."""
        self._observer.close()

    def _fresh(self, batches: Iterable[Images]) -> Iterator[Images]:
        """Images not seen yet, in portions that one run takes and that end where the ranges are looked at."""
        if self._statistics.early_stopped or self._sent >= self._config.limit:
            return
        for pixels, names in batches:
            if len(pixels) != len(names):
                raise InputError("VD3107", f"{len(pixels)} images came with {len(names)} names")
            new = [place for place, name in enumerate(names) if self._new(name)]
            while new:
                size = min(self._observer.batch, self._config.limit - self._sent, STEP - self._sent % STEP)
                part, new = new[:size], new[size:]
                chosen = pixels[part[0] : part[-1] + 1] if part[-1] - part[0] == len(part) - 1 else pixels[part]
                self._sent += len(part)
                yield chosen, tuple(names[place] for place in part)
                if self._sent >= self._config.limit:
                    return

    def _new(self, name: str) -> bool:
        """Whether an image was not seen before an interruption."""
        if name in self._names:
            raise UsageError("VD2003", f"two calibration images are called {name!r}", fix="give every image a name of its own")
        self._names.add(name)
        if not self._before:
            return True
        if image_key(name) in self._before:
            self._skipped += 1
            return False
        if self._skipped < len(self._before):
            raise self._foreign()
        return True

    def _foreign(self) -> InputError:
        message = "the saved state is of other calibration images"
        return InputError("VD3109", message, file=self._config.state, fix="remove it")

    def _observe(self, pixels: NDArray[Any], names: tuple[str, ...]) -> None:
        """Run some images and hand their tensors on; with fewer at a time when memory does not suffice."""
        start = 0
        while start < len(names):
            size = min(self._observer.batch, len(names) - start)
            self._wait(self._observer.turn)
            try:
                tensors = self._observer.run(pixels[start : start + size])
            except MachineError as exc:
                if exc.code != "VD4006" or not self._observer.shrinks or size == 1:
                    raise
                self._wait()  # nothing may use the buffers that are given up
                self._observer.shrink(size // 2)
                note = f"memory did not suffice for {size} images a run: went on with {self._observer.batch}"
                self._statistics.notes.append(note)
                continue
            future = self._executor.submit(self._sketch, tensors, names[start : start + size])
            self._pending[self._observer.turn] = future
            self._observer.turn = 1 - self._observer.turn
            start += size

    def _wait(self, turn: int | None = None) -> None:
        """Wait until a set of buffers (or both) is free; raises what its sketching raised."""
        for place in (self._observer.turn, 1 - self._observer.turn) if turn is None else (turn,):  # the older one first
            pending, self._pending[place] = self._pending[place], None
            if pending is not None:
                pending.result()

    def _sketch(self, tensors: Sequence[NDArray[Any]], names: tuple[str, ...]) -> None:
        """Add one run's tensors to the sketches, in the other thread."""
        used = self._statistics
        if used.early_stopped or not self._whole:
            return  # was under way when the ranges had settled, or when sketching failed
        self._whole = False
        with library("numpy"):
            for sketch, tensor in zip(used.sketches.values(), tensors, strict=True):
                sketch.observe(tensor, names)
            keys = np.array([image_key(name) for name in names], np.uint64)
            used.keys = np.sort(np.concatenate([used.keys, keys]))
        self._whole = True
        if used.images % STEP == 0:
            self._look()
        if time.monotonic() - self._saved > max(_SAVE_S, self._cost / _SAVE_SHARE):
            self._save()

    def _look(self) -> None:
        """Compare the ranges with the last look's."""
        used = self._statistics
        if used.images < self._config.minimum or self._config.minimum >= self._config.limit:
            return
        now = np.array([_ranges(sketch) for sketch in used.sketches.values()])
        if len(used.snapshot):
            scale = np.maximum(np.abs(now), np.abs(used.snapshot))
            scale[:, :2] = scale[:, :2].max(1, keepdims=True)
            bound = np.array([_RANGES, _RANGES, _CHANNELS])
            settled = bool((np.abs(now - used.snapshot) <= bound * scale).all())
            used.settled = used.settled + 1 if settled else 0
        used.snapshot = now
        used.early_stopped = used.settled >= _SETTLED

    def _save(self) -> None:
        if self._state is None or not self._whole or not self._statistics.images:
            return
        start = time.monotonic()
        try:
            self._statistics.save(self._state)
        except (UsageError, MachineError) as error:  # a full disk, or one that is only read: a second run starts anew
            self._statistics.notes.append(f"what was observed is not kept for a second run: {error.message}")
            self._state = None
        self._saved = time.monotonic()
        self._cost = self._saved - start


def _ranges(sketch: Sketch) -> tuple[float, float, float]:
    """What must settle: extremes, and the mean over channels of their extent."""
    low, high = sketch.channel_minimum, sketch.channel_maximum
    return float(low.min()), float(high.max()), float(np.mean(high - low))
