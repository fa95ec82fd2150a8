"""What a checkpoint is, from names and shapes: the tensors of `Checkpoint` without any data behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from vitdeploy.checkpoints.families import recognise
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.checkpoints.unwrap import strip
from vitdeploy.errors import InputError, UsageError
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
    bare = strip(tuple(shapes))
    state = {new: torch.empty(shapes[old], device="meta") for old, new in bare.names.items()}
    checkpoint = Checkpoint(path, state, config, preprocessor, {}, bare.notes)
    return identify(checkpoint)


def identify(checkpoint: Checkpoint) -> Described:
    """The library and the model of a checkpoint that was read."""
    name = ""
    try:
        source = recognise(checkpoint)
        name = source.name
        return Described(name, source.spec(checkpoint, None), checkpoint.notes)
    except (InputError, UsageError) as exc:
        reason = f"{exc.message}; {exc.fix}" if exc.fix else exc.message
    except (RuntimeError, NotImplementedError):  # a source that must look at the numbers
        reason = "the numbers themselves are needed to tell the model"
    return Described(name, None, (*checkpoint.notes, reason))
