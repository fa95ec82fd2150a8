"""Generated pixels, for proofs that must run without data: smooth colour fields with some grain.

They have the spectrum of photos, roughly, so that a network's activations are in the range it was made for; white noise has
not. Accuracy says nothing on them, parity does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitdeploy.spec import InputContract


def pixels(count: int, contract: InputContract, *, seed: int = 0) -> NDArray[np.uint8]:
    """Images of the contract's size; the first n are the same whatever ``count`` is.

    Returns:
        uint8 [count, height, width, channels].
    """
    shape = (contract.height, contract.width, contract.channels)
    return np.stack([_image(shape, np.random.default_rng((seed, index))) for index in range(count)])


def _image(shape: tuple[int, int, int], generator: np.random.Generator) -> NDArray[np.uint8]:
    """A sum of plane waves of falling amplitude (1/f), a random brightness, and grain."""
    height, width, channels = shape
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    image = np.zeros(shape)
    for frequency in (1, 2, 4, 8):
        direction = generator.normal(size=(2, channels)) * frequency * np.pi
        phase = generator.uniform(0, 2 * np.pi, channels)
        image += np.cos(rows * direction[0] + columns * direction[1] + phase) / frequency
    image = 128 + 64 * generator.normal() + 50 * image + generator.normal(scale=6, size=shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
