"""What a checkpoint is, from names and shapes: the tensors of `Checkpoint` without any data behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from vitdeploy.checkpoints.checkpoint import unwrap
from vitdeploy.checkpoints.families import recognise
from vitdeploy.checkpoints.heads import settle_heads
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.errors import InputError, UsageError, VitdeployError
from vitdeploy.spec import ModelSpec


class Described(NamedTuple):
    """What could be told.

    Attributes:
        source: The library, or "" for one that is not known.
        spec: The model, when names and shapes say all of it.
        notes: What was stripped, and why there is no spec.
    """

    source: str
    spec: ModelSpec | None
    notes: tuple[str, ...]


def describe(
    path: Path, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object], preprocessor: Mapping[str, object]
) -> Described:
    """The library and the model of a checkpoint of which only the headers were read.

    Args:
        path: What the user named.
        shapes: Tensor's name to its shape.
        config: ``config.json`` beside the weights, or nothing.
        preprocessor: ``preprocessor_config.json``, or nothing.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        checkpoint = unwrap(Checkpoint(path, state, config, preprocessor, {}, ()))
    except InputError as exc:
        return Described("", None, (_explain(exc),))
    return identify(checkpoint)


def identify(checkpoint: Checkpoint) -> Described:
    """The library and the model of a checkpoint that was read."""
    name = ""
    try:
        source = recognise(checkpoint)
        name = source.name
        checkpoint = settle_heads(checkpoint)
        return Described(name, source.spec(checkpoint, None), checkpoint.notes)
    except (InputError, UsageError) as exc:
        reason = _explain(exc)
    except (RuntimeError, NotImplementedError):  # a source that must look at the numbers
        reason = "the numbers themselves are needed to tell the model"
    return Described(name, None, (*checkpoint.notes, reason))


def _explain(error: VitdeployError) -> str:
    return f"{error.message}; {error.fix}" if error.fix else error.message
