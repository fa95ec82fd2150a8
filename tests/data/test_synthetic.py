"""Generated pixels are what the documentation says, pixel by pixel, and the same wherever they are made."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitdeploy.data import synthetic
from vitdeploy.spec import InputContract


@pytest.mark.parametrize(("channels", "seed", "number"), [(3, 0, 0), (1, 7, 2)])
def test_waves_brightness_and_grain(channels: int, seed: int, number: int) -> None:
    contract = InputContract(height=4, width=6, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    generator = np.random.default_rng((seed, number))
    waves = []
    for frequency in (1, 2, 4, 8):
        slopes = generator.normal(size=(2, channels))
        waves.append((frequency, slopes, generator.uniform(0, 2 * math.pi, channels)))
    brightness, grain = generator.normal(), generator.normal(scale=6, size=(4, 6, channels))
    expected = np.empty((4, 6, channels))
    for row, column, channel in np.ndindex(expected.shape):
        height = 0.0
        for frequency, slopes, phase in waves:
            way = row / 3 * slopes[0, channel] + column / 5 * slopes[1, channel]
            height += math.cos(math.pi * frequency * way + phase[channel]) / frequency
        expected[row, column, channel] = 128 + 64 * brightness + 50 * height + grain[row, column, channel]
    pixels = synthetic.pixels(number + 1, contract, seed=seed)
    assert pixels.shape == (number + 1, 4, 6, channels)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels[number], [[[min(max(round(v), 0), 255) for v in w] for w in r] for r in expected])


def test_the_first_are_the_same_however_many_there_are() -> None:
    contract = InputContract(height=4, width=6)
    four = synthetic.pixels(4, contract)
    np.testing.assert_array_equal(synthetic.pixels(2, contract, seed=0), four[:2])
    assert len({image.tobytes() for image in (*four, *synthetic.pixels(4, contract, seed=1))}) == 8
