"""The network itself, in PyTorch, and its weights. Only this package and the exporter know torch."""

from __future__ import annotations

from pathlib import Path

from vitdeploy.models.vit import VisionTransformer
from vitdeploy.models.weights import native
from vitdeploy.spec import ModelSpec


def original(spec: ModelSpec, weights: Path) -> VisionTransformer:
    """The PyTorch model of an artifact, rebuilt from its spec and its state dict, in evaluation mode.

    Raises:
        InputError: See `native.read` and `native.assemble`.
    """
    return native.assemble(spec, native.read(weights), file=weights)
