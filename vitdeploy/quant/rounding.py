"""Weights to 8 bits: each output channel has its own step, and rounding errors are compensated by the weights not yet rounded.

Source: Frantar et al. 2023 (GPTQ), arXiv:2210.17323, algorithm 1, in the order of decreasing diagonal; steps are max|w| / 127.
With E4M3, whose precision hardly depends on the step, all channels share one: max|w| / 448.
At 8 bits the input's noise is a large part of the error that is left, and it is known: its variance is added to the moments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.qdq import E4M3, LARGEST_E4M3
from vitdeploy.quant.equalize import SMALLEST_HALF

Array = NDArray[Any]
Double = NDArray[np.float64]
DAMPING = 0.01
_BLOCK = 48
_SMALL = 128
"""Rows of a triangle that is inverted in one piece."""


def steps(weight: Array, *, codes: int = 127, half: bool = False) -> NDArray[np.float32]:
    """The step of each output channel: float32 [M] of a weight [K, M]; 1 / codes for a channel of zeros.

    Args:
        weight: float [K, M].
        codes: Greatest code; 448 is that of E4M3.
        half: Take steps that FP16 holds.
    """
    largest = np.abs(weight).max(0).astype(np.float64)
    if codes == LARGEST_E4M3:
        largest[:] = largest.max()
    largest[largest == 0] = 1.0
    scale = (largest / codes).astype(np.float32)
    return np.asarray(np.maximum(scale, np.float32(SMALLEST_HALF)).astype(np.float16).astype(np.float32) if half else scale)


def nearest(weight: Array, scale: Array, *, codes: int = 127) -> Array:
    """Each weight to the nearest code: int8 [K, M], or E4M3 with 448 codes."""
    return _codes(weight.astype(np.float64) / scale, codes).astype(_kind(codes))


def _kind(codes: int) -> np.dtype[Any]:
    return E4M3 if codes == LARGEST_E4M3 else np.dtype(np.int8)


def _codes(values: Array, codes: int) -> Array:
    """The nearest codes as floats."""
    if codes == LARGEST_E4M3:
        return np.asarray(np.clip(values, -codes, codes).astype(np.float32).astype(E4M3).astype(np.float32))
    return np.asarray(np.clip(np.rint(values), -codes, codes))


def factor_inverse(matrix: Array) -> Array:
    """The upper triangle R with R^T R = M^-1, of a symmetric M above 0: float32 or float64 [K, K], as M.

    By halves, so that nearly all of it is products of matrices: M = U U^T with U above the diagonal, and R = U^-1. Of
    M = (A B; B^T C) the last part of U is that of C, above it stands V = B R_C^T, and the first part is that of A - V V^T.

    Raises:
        LinAlgError: M is not above 0.
    """
    half = len(matrix) // 2
    if len(matrix) <= _SMALL:
        return np.triu(np.linalg.inv(np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]))
    inverse = np.zeros_like(matrix)
    inverse[half:, half:] = last = factor_inverse(matrix[half:, half:])
    beside = matrix[:half, half:] @ last.T
    inverse[:half, :half] = first = factor_inverse(matrix[:half, :half] - beside @ beside.T)
    inverse[:half, half:] = -first @ (beside @ last)
    return inverse


def _factor_damped(moments: Double) -> NDArray[np.float32] | None:
    """The factor of the damped inverse, by whose rows later weights make up for an earlier one; None if there is none.

    Only ratios within a row count, so the moments are taken in units of their mean. FP32 is precise enough and takes half the
    time; where it finds them not above 0, FP64 decides.
    """
    mean = float(np.mean(np.diag(moments)))
    if not 0 < mean < np.inf:
        return None
    moments[np.diag_indices(len(moments))] += DAMPING * mean
    for kind in (np.float32, np.float64):
        try:
            upper = factor_inverse((moments / mean).astype(kind, copy=False))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(upper).all():
            return upper.astype(np.float32, copy=False)
    return None


def compensate(weight: Array, scale: Array, moments: Double, *, codes: int = 127) -> Array:
    """Codes that keep x W close to what it was on inputs with the given second moments.

    Args:
        weight: float [K, M].
        scale: Step of each output channel, float [M].
        moments: E[x x^T] of the input as the layer will see it, float64 [K, K].
        codes: Greatest code; 448 is that of E4M3.

    Returns:
        int8 or E4M3 [K, M]. Plain rounding where the moments can't be factored.
    """
    count = len(weight)
    diagonal = np.diag(moments).copy()
    unseen = diagonal <= 0  # always 0: whatever its weight, and nothing may be made up for through it
    moments = moments.copy()
    moments[unseen, unseen] = diagonal[~unseen].mean() if not unseen.all() else 1.0
    order = np.argsort(-diagonal, kind="stable")
    upper = _factor_damped(moments[np.ix_(order, order)])
    if upper is None:
        return nearest(weight, scale, codes=codes)
    left = weight[order].astype(np.float32)
    scale = scale.astype(np.float32)
    rounded = np.empty(left.shape, _kind(codes))
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        block, errors = left[start:stop].copy(), np.empty((stop - start, left.shape[1]), np.float32)
        for row in range(stop - start):
            place = start + row
            codes_now = _codes(block[row] / scale, codes)
            rounded[place] = codes_now
            errors[row] = (block[row] - codes_now * scale) / upper[place, place]
            block[row + 1 :] -= upper[place, place + 1 : stop, None] * errors[row]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    rows_in_order = np.empty_like(rounded)
    rows_in_order[order] = rounded
    return rows_in_order
