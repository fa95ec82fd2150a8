"""Relative positions: one learned number for each head and each distance between two patches, added to q k^T (BEiT).

The table has a row for each pair (rows apart, columns apart) and three more: from a prefix token to a patch, from a patch
to a prefix token, and between prefix tokens.

Source: Bao et al. 2022, BEiT (arXiv:2106.08254), appendix; as restated by timm (``beit.py``) and transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vitdeploy.spec import ModelSpec

EXTRA = 3
"""Rows of the table that belong to prefix tokens, after those of the distances."""


def index_distances(grid: tuple[int, int], prefix: int) -> Tensor:
    """The row of the table for each pair of query and key, int64 [T, T], prefix tokens first.

    A patch at (y, x) and one at (v, u) share row (y - v + G_h - 1) (2 G_w - 1) + x - u + G_w - 1.
    """
    height, width = grid
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))  # [N] each
    down, right = (axis[:, None] - axis[None] for axis in (y, x))  # [N, N] each
    rows = (2 * height - 1) * (2 * width - 1) + EXTRA
    table = torch.full((prefix + len(y),) * 2, rows - 1)  # between prefix tokens
    table[:prefix, prefix:] = rows - 3
    table[prefix:, :prefix] = rows - 2
    table[prefix:, prefix:] = (down + height - 1) * (2 * width - 1) + right + width - 1
    return table


def resample(table: Tensor, old: tuple[int, int], spec: ModelSpec) -> Tensor:
    """Move a table to the grid of ``spec``, bilinearly; the rows of prefix tokens are kept.

    Args:
        table: float32 [rows, heads] for the grid ``old``.
        old: Rows and columns of the table's grid.
        spec: The target.

    Returns:
        float32 [rows, heads] for the grid of ``spec``.

    Source:
        Birkl et al. 2023, MiDaS v3.1 (arXiv:2307.14460), section 3.2; transformers does the same.
    """
    if old == spec.grid:
        return table
    shape, wanted = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old, spec.grid))
    image = table[:-EXTRA].reshape(1, *shape, -1).permute(0, 3, 1, 2)  # [1, h, 2 G_h - 1, 2 G_w - 1]
    image = functional.interpolate(image, wanted, mode="bilinear", align_corners=False)
    return torch.cat((image.flatten(2)[0].T, table[-EXTRA:]))  # [rows, h]
