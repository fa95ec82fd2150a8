"""Folders as Hugging Face's tests of ours need them: read, or made up."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints.huggingface_cases import SMALL
from tests.torchvision_shim import declare
from vitdeploy.checkpoints.source import Checkpoint

State = dict[str, Tensor]


def transformers() -> ModuleType:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    declare()
    return importlib.import_module("transformers")


def checkpoint(state: State, config: dict[str, Any], side: tuple[int, int] | None = None, **preprocessor: Any) -> Checkpoint:
    if side:
        preprocessor |= {"size": {"height": side[0], "width": side[1]}, "do_center_crop": False}
    return Checkpoint(Path("folder"), state, config, preprocessor, {}, ())


def plain(kind: str = "vit", **options: Any) -> tuple[State, dict[str, Any]]:
    """What a specification is read from, without transformers: as many tensors as blocks, and a configuration."""
    return {str(index): torch.zeros(1) for index in range(9)}, {"model_type": kind, **SMALL, **options}
