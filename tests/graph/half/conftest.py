"""The tiny ViT as bytes."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def tiny(tiny_artifact) -> bytes:
    return tiny_artifact.model.read_bytes()
