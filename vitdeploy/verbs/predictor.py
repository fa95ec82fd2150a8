"""The verb `predict`: images through a deployed model, as classes with probabilities, numbers or vectors. Needs no torch.

Every image runs alone (a file of a fixed batch is filled up), so an answer never depends on its neighbours. Images are decoded
a few ahead of the engine, answers are given out one by one: what a million of them takes is the memory of their names.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import Artifact, ArtifactLike
from vitdeploy.data import gather
from vitdeploy.data import images as pixels_of
from vitdeploy.data.dataset import decode_ahead
from vitdeploy.data.gather import Images
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.measure.probabilities import compute_probabilities
from vitdeploy.progress import Progress, silent
from vitdeploy.spec import ModelSpec
from vitdeploy.tomlfile import require_positive
from vitdeploy.words import GIVES, Task

MANY = 16
"""Images from which progress is told: fewer are done before it could be read."""
MOST_IN_MEMORY = 10_000
"""Predictions that are kept to be shown; more are written to a file as they come."""
_READERS = 2
VECTORS: tuple[Task, ...] = ("embedding", "regression")
"""Tasks whose numbers are told as they are."""


class PredictConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to predict.

    Attributes:
        backend: The engine; None is the one that the artifact was made for, or the first installed one.
        top: How many classes to name for each image; all, when the model has fewer.
        threads: Threads of the engine; None is the number of cores.
        max_bad: How many unreadable images are told as such among the predictions, before one is an error.
    """

    backend: str | None = None
    top: int = 5
    threads: int | None = None
    max_bad: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        require_positive(self, "top", "threads")
        if self.max_bad < 0:
            raise UsageError("VD2003", f"max_bad is {self.max_bad}", fix="use 0 or more")


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class and how likely the model finds it.

    Attributes:
        label: The class name, or the index as text when the model carries no names.
        index: Place in the model's output.
        probability: In [0, 1]: by the softmax over classes of which one is right, or by the sigmoid of a label on its own.
    """

    label: str
    index: int
    probability: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the model sees in one image.

    Attributes:
        image: The file; ``image N`` for one that was given in memory.
        classes: Classes or labels, the most probable first; equal ones in the order of their index. Nothing for other models.
        values: The embedding, or the numbers of a regression, in output order and as they are. Nothing for classes.
        names: Of the numbers of a regression, when the model has names for them.
        error: Why the image could not be read; then there is nothing else.
    """

    image: str
    classes: tuple[ClassScore, ...] = ()
    values: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    error: str = ""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How many predictions were written.

    Attributes:
        images: All of them.
        bad: Those of images that could not be read.
    """

    images: int
    bad: int


class Predictor:
    """A model that stays open: call it with images, as often as one likes and from as many threads.

    Args:
        artifact: What `export`, `quantize`, `compile` or `pack` wrote, or a path of it.
        config: How.

    Attributes:
        artifact: The model; what its output is stands in its spec.
        config: How.
        settings: What the engine runs with.

    Raises:
        UsageError: VD2009, unknown backend; VD2013, it does not open this artifact.
        InputError: The artifact is missing or damaged; see `Artifact.open`.
        MachineError: VD4001, no backend is installed; VD4004, the engine failed; VD4007, VD4008 it crashed or hung.
    """

    def __init__(self, artifact: ArtifactLike, config: PredictConfig | None = None) -> None:
        from vitdeploy.backends.base import OpenConfig
        from vitdeploy.backends.child import open_in_child
        from vitdeploy.bundle.unpacking import open_model

        self.config = config or PredictConfig()
        self._lock = threading.Lock()  # one run at a time: an engine's process answers in the order in which it was asked
        with ExitStack() as stack:
            self.artifact = stack.enter_context(open_model(artifact, self.config.backend))
            name = self.config.backend or self.artifact.engine or choose_engine()
            runner = open_in_child(name, self.artifact, OpenConfig(threads=self.config.threads))
            self._runner = stack.enter_context(closing(runner))
            self._stack = stack.pop_all()
        self.settings = self._runner.settings

    def __call__(self, images: Images) -> list[Prediction]:
        """What the model says of images: one prediction each, in their order; see `stream`."""
        return list(self.stream(images))

    def stream(self, images: Images) -> Iterator[Prediction]:
        """The same one by one, as they are asked for.

        Args:
            images: One image or any number, from a list or from an iterator without end: files, folders, patterns, manifests,
                shards, bytes, images of Pillow, uint8 arrays; each is prepared by the model's input contract.

        Raises:
            InputError: An image is missing or can't be decoded, or VD3104, more of them than `PredictConfig.max_bad`.
            MachineError: VD4004, the engine failed; VD4007, VD4008 it crashed or hung.
        """
        return self._run(gather.open_part(each, number) for number, each in enumerate(gather.split_images(images)))

    def _run(self, parts: Iterable[gather.Part]) -> Iterator[Prediction]:
        from vitdeploy.backends.base import run_main

        bad: list[str] = []
        spec = self.artifact.spec
        jobs = (job for part in parts for job in part.list_jobs())
        with closing(decode_ahead(jobs, spec.input, _READERS)) as results:
            for name, result in results:
                if isinstance(result, InputError):
                    yield self._tell_bad(name, result, bad)
                    continue
                tensor = pixels_of.to_tensor(result.pixels, spec.input)
                with self._lock:
                    output = run_main(self._runner, tensor, spec)[0]
                yield _tell(name, output, spec, self.config.top)

    def _tell_bad(self, name: str, error: InputError, bad: list[str]) -> Prediction:
        bad.append(f"{name}: {error.message}")
        if self.config.max_bad == 0:
            raise error
        if len(bad) > self.config.max_bad:
            message = f"{len(bad)} images can't be read, {self.config.max_bad} allowed: {'; '.join(bad)}"
            raise InputError("VD3104", message, fix="replace or remove them, or allow more with --max-bad") from error
        return Prediction(image=name, error=error.message)

    def close(self) -> None:
        """End the engine. Closing twice is allowed."""
        with self._lock:
            self._stack.close()

    def __enter__(self) -> Predictor:
        """Itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close."""
        self.close()


def load(artifact: ArtifactLike, backend: str | None = None, **more: Any) -> Predictor:  # noqa: ANN401 (settings)
    """Open a model for many calls: ``with vitdeploy.load("vit") as model: model("cat.jpg")``.

    Args:
        artifact: The model, or a path of it.
        backend: The engine; None is the one that the artifact was made for, or the first installed one.
        more: Further settings of `PredictConfig`.

    Raises:
        VitdeployError: As `Predictor`.
    """
    return Predictor(artifact, PredictConfig(backend=backend, **more))


def predict(
    artifact: ArtifactLike, images: Images, config: PredictConfig | None = None, *, progress: Progress = silent
) -> list[Prediction]:
    """Tell what a model says of images: classes or labels with probabilities, numbers, or the embedding.

    Args:
        artifact: The model, or a path of it; what its output is stands in its spec.
        images: As `Predictor.stream` takes them.
        config: How.
        progress: Hears of the images, where they are many.

    Returns:
        One prediction an image, in their order.

    Raises:
        UsageError: VD2010, no image was given, or more than `MOST_IN_MEMORY`; and as `Predictor`.
        InputError: As `Predictor.stream`.
        MachineError: As `Predictor`.
    """
    parts = _open_parts(images)
    if sum(part.size for part in parts) > MOST_IN_MEMORY:
        message = f"more than {MOST_IN_MEMORY:,} images: too many answers to keep in memory"
        raise UsageError("VD2010", message, fix="write them as they come: -o FILE.jsonl, or predict_each")
    return list(_predict_parts(artifact, parts, config, progress))


def predict_each(
    artifact: ArtifactLike, images: Images, config: PredictConfig | None = None, *, progress: Progress = silent
) -> Iterator[Prediction]:
    """Tell what a model says of images, one by one as they are asked for: for more answers than memory holds.

    Args:
        artifact: As `predict`.
        images: As `Predictor.stream` takes them; those of a list are looked for before the first answer.
        config: How.
        progress: As `predict`.

    Raises:
        VitdeployError: As `predict`, of any number of images.
    """
    return _predict_parts(artifact, _open_parts(images), config, progress)


def _open_parts(images: Images) -> list[gather.Part]:
    """All that was given: what does not exist is told before an engine is started."""
    parts = [gather.open_part(each, number) for number, each in enumerate(gather.split_images(images))]
    if not parts:
        raise UsageError("VD2010", "no image was given", fix="name at least one image file")
    return parts


def _predict_parts(
    artifact: ArtifactLike, parts: Sequence[gather.Part], config: PredictConfig | None, progress: Progress
) -> Iterator[Prediction]:
    total = sum(part.size for part in parts)
    hear = progress if total >= MANY else silent
    hear("predict", 0, total)
    with Predictor(artifact, config) as model:
        for done, prediction in enumerate(model._run(parts), 1):
            yield prediction
            if done < total:
                hear("predict", done, total)
    hear("predict", total, total)


def write_lines(predictions: Iterable[Prediction], path: Path) -> Summary:
    """Write predictions as JSON lines, one an image, as they come.

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    images = bad = 0
    with files.new_file(path) as stream:
        for prediction in predictions:
            stream.write(msgspec.json.encode(prediction) + b"\n")
            images += 1
            bad += prediction.error != ""
    return Summary(images=images, bad=bad)


def choose_engine() -> str:
    """The first engine that is installed; the original's network where there is none.

    Raises:
        MachineError: VD4001, nothing is installed.
    """
    from vitdeploy.backends import table

    names = (*table.list_engines(), *(name for name in table.list_openers() if name == table.REFERENCE))
    if not names:
        raise MachineError("VD4001", "no backend is installed", fix=table.TABLE[table.PROVER].fix)
    return names[0]


def require_vectors(artifact: Artifact, path: Path) -> None:
    """Refuse a file for `write_vectors` before the model has run.

    Raises:
        UsageError: VD2010, the model has classes or labels; VD2008, the file is no ``.npy``.
    """
    if path.suffix != ".npy":
        raise UsageError("VD2008", "is no .npy file", file=path, fix=f"write to {path.with_suffix('.npy').name}, or to .jsonl")
    if artifact.spec.task not in VECTORS:
        message = f"the model gives {GIVES[artifact.spec.task]}, and a .npy file holds embeddings or numbers"
        raise UsageError("VD2010", message, file=artifact.model, fix="use --json for classes with their probabilities")


def write_vectors(predictions: Iterable[Prediction], path: Path, size: int) -> Summary:
    """Write embeddings or numbers as a NumPy file, as they come: float32 [images, K]; NaN for an image that could not be read.

    Args:
        predictions: Of embeddings or numbers.
        path: Where.
        size: K, how many numbers the model gives.

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    images = bad = 0
    with files.new_file(path) as stream:
        stream.write(_head_vectors(0, size))  # NumPy leaves room in it for any number of images
        for prediction in predictions:
            stream.write(np.array(prediction.values or (math.nan,) * size, "<f4").tobytes())
            images += 1
            bad += prediction.error != ""
        stream.seek(0)
        stream.write(_head_vectors(images, size))
    return Summary(images=images, bad=bad)


def _head_vectors(images: int, size: int) -> bytes:
    """What stands before the numbers of a NumPy file, in the same number of bytes for any number of images."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (images, size)})
    return stream.getvalue()


def _tell(name: str, output: NDArray[np.float32], spec: ModelSpec, top: int) -> Prediction:
    if spec.task in VECTORS:
        return Prediction(image=name, values=tuple(output.tolist()), names=spec.labels)
    shares = compute_probabilities(output, spec)
    order = np.argsort(-shares, kind="stable")[:top]
    labels = spec.labels or tuple(map(str, range(len(shares))))
    scores = (ClassScore(label=labels[place], index=int(place), probability=float(shares[place])) for place in order)
    return Prediction(image=name, classes=tuple(scores))
