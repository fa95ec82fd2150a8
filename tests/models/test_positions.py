"""Position tables against their formulas, written as literal loops, and resampling against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.checkpoints.cases import contract, spec
from vitdeploy.models import positions
from vitdeploy.spec import InputContract, ModelSpec


@pytest.mark.parametrize(("length", "width"), [(1, 2), (17, 8), (5, 32)])
def test_sinusoidal_is_the_formula(length: int, width: int) -> None:
    expected = np.zeros((length, width))
    for place in range(length):
        for i in range(width // 2):
            expected[place, 2 * i] = math.sin(place / 10000 ** (2 * i / width))
            expected[place, 2 * i + 1] = math.cos(place / 10000 ** (2 * i / width))
    actual = positions.sinusoidal(length, width)
    assert actual.shape == (1, length, width)
    assert actual.dtype == torch.float32
    assert np.abs(actual[0].numpy() - expected).max() <= 1e-7


@pytest.mark.parametrize(("grid", "width"), [((2, 3), 8), ((4, 4), 16), ((1, 5), 4)])
def test_sincos2d_is_the_formula(grid: tuple[int, int], width: int) -> None:
    """MAE's util/pos_embed.py: the first half of the channels encodes the column, the second the row."""
    quarter = width // 4
    expected = np.zeros((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                rate = 1 / 10000 ** (i / quarter)
                here = expected[row * grid[1] + column]
                here[i], here[quarter + i] = math.sin(column * rate), math.cos(column * rate)
                here[2 * quarter + i], here[3 * quarter + i] = math.sin(row * rate), math.cos(row * rate)
    actual = positions.sincos2d(grid, width)
    assert actual.shape == (1, grid[0] * grid[1], width)
    assert np.abs(actual[0].numpy() - expected).max() <= 1e-7


@pytest.mark.parametrize("kind", ["eva02", "dinov3"])
def test_rotary_is_the_formula(kind: str) -> None:
    model = spec(rotary=kind, rotary_grid=(4, 4), registers=2, input=contract(24, 40))
    size, (rows, columns) = model.head_size, model.grid
    quarter = size // 4
    cos, sin = positions.rotary(model)
    assert cos.shape == sin.shape == (model.tokens, size)
    assert torch.equal(cos[: model.prefix], torch.ones(3, size))  # prefix tokens are not turned
    assert not sin[: model.prefix].any()
    for row in range(rows):
        for column in range(columns):
            here = model.prefix + row * columns + column
            for axis, (index, count) in enumerate(((row, rows), (column, columns))):
                for i in range(quarter):
                    if kind == "eva02":
                        angle = index * 4 / count / 10000 ** (i / quarter)
                    else:
                        angle = 2 * math.pi * ((index + 0.5) / count * 2 - 1) / 100 ** (i / quarter)
                    for channel in (axis * quarter + i, size // 2 + axis * quarter + i):
                        assert float(cos[here, channel]) == pytest.approx(math.cos(angle), abs=1e-6)
                        assert float(sin[here, channel]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_pairs_to_halves() -> None:
    assert positions.pairs_to_halves(8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def random_table(rows: int, width: int = 6) -> torch.Tensor:
    return torch.randn(1, rows, width, generator=torch.Generator().manual_seed(rows))


def test_resample_to_the_same_grid_is_identity() -> None:
    table = random_table(17)
    assert positions.resample(table, (4, 4), spec()) is table


@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias"])
@pytest.mark.parametrize(("old", "pixels"), [((7, 7), (32, 32)), ((3, 2), (24, 40)), ((4, 4), (64, 16)), ((2, 8), (32, 32))])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_resample_is_torch_interpolate(extra: int, old: tuple[int, int], pixels: tuple[int, int], method: str) -> None:
    model = spec(input=contract(*pixels), position_resample=method)
    table = random_table(extra + old[0] * old[1])
    actual = positions.resample(table, old, model)
    image = table[0, extra:].T.reshape(1, 6, *old)
    expected = functional.interpolate(image, model.grid, mode="bicubic", antialias=method.endswith("antialias"))
    assert actual.shape == (1, extra + model.patches, 6)
    assert torch.equal(actual[:, :extra], table[:, :extra])  # rows of class tokens are untouched
    assert torch.allclose(actual[0, extra:], expected[0].flatten(1).T, atol=1e-6)


def test_resampled_constant_stays_constant() -> None:
    table = torch.full((1, 17, 6), 0.75)
    actual = positions.resample(table, (4, 4), spec(input=contract(56, 24)))
    assert torch.allclose(actual, torch.full((1, 22, 6), 0.75), atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (12, 9)])
def test_resampling_with_metas_offset(grid: tuple[int, int]) -> None:
    """Meta's DINO and DINOv2 add 0.1 to the new grid before they divide, and hand torch the factor instead of the size."""
    contract = InputContract(height=8 * grid[0], width=8 * grid[1], resize="none")
    model = ModelSpec(name="x", input=contract, patch=(8, 8), width=6, heads=2, position_resample="bicubic-offset")
    table = torch.randn(1, 1 + 36, 6, generator=torch.Generator().manual_seed(0))
    image = table[:, 1:].reshape(1, 6, 6, 6).permute(0, 3, 1, 2)
    factors = tuple((side + 0.1) / 6 for side in grid)
    expected = torch.nn.functional.interpolate(image, scale_factor=factors, mode="bicubic")
    assert expected.shape[2:] == grid
    actual = positions.resample(table, (6, 6), model)
    assert torch.equal(actual[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    plain = torch.nn.functional.interpolate(image, grid, mode="bicubic")
    assert not torch.allclose(expected, plain)
