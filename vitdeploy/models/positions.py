"""Position tables: where each formula comes from, and how a learned table moves to another grid.

All are plain functions of the grid, computed in float64 and returned as float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitdeploy.spec import ModelSpec


def sinusoidal(length: int, width: int) -> Tensor:
    """PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i + 1) = cos(p / 10000^(2i/D)).

    Returns:
        float32 [1, length, width].

    Source:
        Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), section 3.5.
    """
    place = torch.arange(length, dtype=torch.float64)[:, None]  # [length, 1]
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # [width/2]
    angle = place * rate  # [length, width/2]
    return torch.stack((angle.sin(), angle.cos()), -1).reshape(1, length, width).float()


def sincos2d(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D table: a quarter of the width each for sin x, cos x, sin y, cos y.

    Returns:
        float32 [1, rows x columns, width], row by row.

    Source:
        Chen et al. 2021, MoCo v3 (arXiv:2104.02057), section 4; He et al. 2021, MAE (arXiv:2111.06377), appendix A.1.
    """
    rate = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # [width/4]
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")  # [rows, columns] each
    angles = [axis.reshape(-1, 1) * rate for axis in (x, y)]  # 2 x [patches, width/4]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], 1)[None].float()


def rotary(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each token's queries and keys are turned, in the "half" layout.

    In that layout channel i pairs with channel i + d/2. EVA-02 pairs neighbours (2i, 2i + 1) instead; `pairs_to_halves`
    is the permutation between the two, which leaves every query-key product as it is when both sides take it.
    Class, distillation and register tokens are not turned (cos 1, sin 0).

    Returns:
        Two float32 [tokens, head size].

    Source:
        Su et al. 2021, RoFormer (arXiv:2104.09864), equation 34. Coordinates and rates: Fang et al. 2023, EVA-02
        (arXiv:2303.11331): patch index scaled to the pre-training grid, 10000^(-i/(d/4)); Siméoni et al. 2025, DINOv3
        (arXiv:2508.10104): patch centres on [-1, 1], 2 pi 100^(-i/(d/4)).
    """
    quarter = spec.head_size // 4
    power = torch.arange(quarter, dtype=torch.float64) / quarter  # [d/4]
    if spec.rotary == "eva02":
        rate = 10000.0**-power
        axes = [torch.arange(n, dtype=torch.float64) * ref / n for n, ref in zip(spec.grid, spec.rotary_grid, strict=True)]
    else:
        rate = 2 * math.pi * 100.0**-power
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1 for n in spec.grid]
    y, x = torch.meshgrid(*axes, indexing="ij")  # [rows, columns] each
    angle = torch.cat([axis.reshape(-1, 1) * rate for axis in (y, x)], 1)  # [patches, d/2]
    angle = functional.pad(angle, (0, 0, spec.prefix, 0)).tile(1, 2)  # [tokens, d]
    return angle.cos().float(), angle.sin().float()


def pairs_to_halves(size: int) -> Tensor:
    """The order of channels that turns neighbouring pairs (0 1)(2 3)... into halves (0 2 4 ...)(1 3 5 ...): int64 [size]."""
    return torch.arange(size).reshape(-1, 2).T.reshape(-1)


def resample(table: Tensor, old: tuple[int, int], spec: ModelSpec) -> Tensor:
    """Move a learned position table to the grid of ``spec``, bicubically; rows of class tokens are kept.

    Args:
        table: float32 [1, extra + old rows x old columns, D], the extra rows first.
        old: Rows and columns of the table's grid.
        spec: The target; its `position_resample` says whether with antialias.

    Returns:
        float32 [1, extra + rows x columns, D].

    Source:
        Dosovitskiy et al. 2021, section 3.2 ("2D interpolation"); bicubic as in Touvron et al. 2021, DeiT, section 5.
    """
    if old == spec.grid:
        return table
    extra = table.shape[1] - old[0] * old[1]
    image = table[:, extra:].reshape(1, *old, -1).permute(0, 3, 1, 2)  # [1, D, old rows, old columns]
    offset = spec.position_resample == "bicubic-offset"
    factor = tuple((new + 0.1) / was for new, was in zip(spec.grid, old, strict=True)) if offset else None
    image = functional.interpolate(
        image,
        None if offset else spec.grid,
        factor,
        mode="bicubic",
        antialias=spec.position_resample == "bicubic-antialias",
        align_corners=False,
    )  # [1, D, rows, columns]; with a factor, the kernel's steps follow the factor, not the ratio of the sizes
    return torch.cat((table[:, :extra], image.flatten(2).transpose(1, 2)), 1)  # [1, extra + rows x columns, D]
