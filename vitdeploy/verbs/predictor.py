"""The verb `predict`: image files through a deployed model, as class names with probabilities. Needs no torch.

Every image runs alone (a file of a fixed batch is filled up): the first unreadable one ends the call and is named, and an
answer never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.data import images as pixels_of
from vitdeploy.errors import MachineError, UsageError
from vitdeploy.progress import Progress, silent


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
        probability: Softmax of the logits, in [0, 1].
    """

    label: str
    index: int
    probability: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What the model sees in one image.

    Attributes:
        image: The file.
        classes: The most probable first; equal ones in the order of their index.
    """

    image: str
    classes: tuple[ClassScore, ...]


def predict(
    artifact: Artifact, images: Sequence[Path], config: PredictConfig | None = None, *, progress: Progress = silent
) -> list[Prediction]:
    """Classify image files.

    Args:
        artifact: A model that classifies.
        images: Image files; each is prepared by the model's input contract.
        config: How.
        progress: Hears of each image.

    Returns:
        One prediction an image, in their order.

    Raises:
        UsageError: VD2010, the model gives no classes, or no image was given; VD2009, unknown backend; VD2013, it
            does not open this artifact.
        InputError: An image is missing or can't be decoded.
        MachineError: VD4001, no backend is installed; VD4004, the engine failed; VD4007, VD4008 it crashed or hung.
    """
    config = config or PredictConfig()
    if not artifact.spec.classifies:
        if artifact.spec.head == "projection":
            message = f"the model gives an embedding of {artifact.spec.classes} numbers, not classes"
        else:
            message = "the model has no head: it gives features, not classes"
        raise UsageError("VD2010", message, file=artifact.model, fix="export a model with a classification head")
    if not images:
        raise UsageError("VD2010", "no image was given", fix="name at least one image file")
    from vitdeploy.backends.base import OpenConfig, run_main
    from vitdeploy.backends.child import open_in_child

    name = config.backend or artifact.engine or choose_engine()
    predictions = []
    with closing(open_in_child(name, artifact, OpenConfig(threads=config.threads))) as runner:
        for done, path in enumerate(images):
            progress("predict", done, len(images))
            pixels = pixels_of.load(path, artifact.spec.input)
            tensor = pixels_of.to_tensor(pixels, artifact.spec.input)
            logits = run_main(runner, tensor, artifact.spec)[0]
            predictions.append(Prediction(image=str(path), classes=_best(logits, artifact.spec.labels, config.top)))
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


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits [..., K], in double precision; the largest logit is subtracted, so nothing overflows."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _best(logits: NDArray[np.float32], labels: tuple[str, ...], top: int) -> tuple[ClassScore, ...]:
    shares = softmax(logits)
    order = np.argsort(-shares, kind="stable")[:top]
    return tuple(ClassScore(label=labels[i] if labels else str(i), index=int(i), probability=float(shares[i])) for i in order)
