"""The verb `predict`: image files through a deployed model, as classes with probabilities, numbers or vectors. Needs no torch.

Every image runs alone (a file of a fixed batch is filled up): the first unreadable one ends the call and is named, and an
answer never depends on its neighbours.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.data import arrays
from vitdeploy.data import images as pixels_of
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.measure.probabilities import compute_probabilities
from vitdeploy.progress import Progress, silent
from vitdeploy.spec import ModelSpec
from vitdeploy.words import GIVES, Task

VECTORS: tuple[Task, ...] = ("embedding", "regression")
"""Tasks whose numbers are told as they are."""


class PredictConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to predict.

    Attributes:
        backend: The engine; None is the one that the artifact was made for, or the first installed one.
        top: How many classes to name for each image; all, when the model has fewer.
        threads: Threads of the engine; None is the number of cores.
    """

    backend: str | None = None
    top: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        for name in ("top", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError("VD2003", f"{name} is {value}", fix="use 1 or more")


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
        image: The file.
        classes: Classes or labels, the most probable first; equal ones in the order of their index. Nothing for other models.
        values: The embedding, or the numbers of a regression, in output order and as they are. Nothing for classes.
        names: Of the numbers of a regression, when the model has names for them.
    """

    image: str
    classes: tuple[ClassScore, ...] = ()
    values: tuple[float, ...] = ()
    names: tuple[str, ...] = ()


def predict(
    artifact: Artifact, images: Sequence[Path], config: PredictConfig | None = None, *, progress: Progress = silent
) -> list[Prediction]:
    """Tell what a model says of image files: classes or labels with probabilities, numbers, or the embedding.

    Args:
        artifact: The model; what its output is stands in its spec.
        images: Image files; each is prepared by the model's input contract.
        config: How.
        progress: Hears of each image.

    Returns:
        One prediction an image, in their order.

    Raises:
        UsageError: VD2010, no image was given; VD2009, unknown backend; VD2013, it
            does not open this artifact.
        InputError: An image is missing or can't be decoded.
        MachineError: VD4001, no backend is installed; VD4004, the engine failed; VD4007, VD4008 it crashed or hung.
    """
    config = config or PredictConfig()
    if not images:
        raise UsageError("VD2010", "no image was given", fix="name at least one image file")
    from vitdeploy.backends.base import OpenConfig, run_main
    from vitdeploy.backends.child import open_in_child

    name = config.backend or artifact.engine or choose_engine()
    predictions = []
    with closing(open_in_child(name, artifact, OpenConfig(threads=config.threads))) as runner:
        for done, path in enumerate(images):
            progress("predict", done, len(images))
            pixels = arrays.read(path, artifact.spec.input).pixels
            tensor = pixels_of.to_tensor(pixels, artifact.spec.input)
            predictions.append(_tell(path, run_main(runner, tensor, artifact.spec)[0], artifact.spec, config.top))
    progress("predict", len(images), len(images))
    return predictions


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
        raise UsageError("VD2008", "is no .npy file", file=path, fix=f"write to {path.with_suffix('.npy').name}")
    if artifact.spec.task not in VECTORS:
        message = f"the model gives {GIVES[artifact.spec.task]}, and a .npy file holds embeddings or numbers"
        raise UsageError("VD2010", message, file=artifact.model, fix="use --json for classes with their probabilities")


def write_vectors(predictions: Sequence[Prediction], path: Path) -> None:
    """Write embeddings or numbers as a NumPy file: float32 [images, K].

    Raises:
        UsageError: VD2008, the path can't be written.
        MachineError: VD4002, the disk is full.
    """
    stream = io.BytesIO()
    np.save(stream, np.array([each.values for each in predictions], np.float32))
    files.write(path, stream.getvalue())


def _tell(path: Path, output: NDArray[np.float32], spec: ModelSpec, top: int) -> Prediction:
    if spec.task in VECTORS:
        return Prediction(image=str(path), values=tuple(output.tolist()), names=spec.labels)
    shares = compute_probabilities(output, spec)
    order = np.argsort(-shares, kind="stable")[:top]
    labels = spec.labels or tuple(map(str, range(len(shares))))
    scores = (ClassScore(label=labels[place], index=int(place), probability=float(shares[place])) for place in order)
    return Prediction(image=str(path), classes=tuple(scores))
