"""Outputs that are no numbers, with the image that gives them: nothing can be compared with NaN, and no class is said by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.errors import InputError

_WEIGHTS = "check the weights, and that it takes such images"


def require_finite(artifact: Artifact, output: str, values: NDArray[Any], names: Sequence[str], fix: str = _WEIGHTS) -> None:
    """Refuse NaN and infinity in an output.

    Args:
        artifact: Whose output it is.
        output: Its name.
        values: Float [n, ...].
        names: The images', n or more.
        fix: What to do about it.

    Raises:
        InputError: VD3110 with the first image.
    """
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)  # [n]
    if bad.any():
        message = f"the output {output!r} is nan or infinite on the image {names[int(bad.argmax())]!r}"
        raise InputError("VD3110", message, file=artifact.model, fix=fix)
