"""A point gathered batch by batch: its numbers are those of all images at once, in the form that fits."""

import numpy as np
import pytest

from vitdeploy.measure.layers import Point
from vitdeploy.measure.parity import sqnr

GENERATOR = np.random.default_rng(0)
A, B = GENERATOR.normal(size=(2, 12, 5, 6))


def gather(*, cuts: int = 1, forms=lambda part: [[part]], candidate=B) -> Point:
    point = Point("x")
    for expected, got in zip(np.split(A, cuts), np.split(candidate, cuts), strict=True):
        point.add(forms(expected), got)
    return point


@pytest.mark.parametrize("cuts", [1, 3, 12])
def test_numbers_do_not_depend_on_batches(cuts) -> None:
    point = gather(cuts=cuts)
    assert point.sqnr_db == pytest.approx(sqnr((A**2).sum(), ((A - B) ** 2).sum()))
    assert point.cosine == pytest.approx((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B))
    assert point.difference == np.abs(A - B).max()
    offsets = (B - A).mean((0, 1))
    assert point.offset_share == pytest.approx(60 * (offsets**2).sum() / ((A - B) ** 2).sum())
    tokens = ((A - B) ** 2).sum((0, 2))
    assert point.worst_token == (tokens.argmax(), pytest.approx(tokens.max() / tokens.sum()))
    centred = [each - each.mean((0, 1)) for each in (A, B)]
    assert point.fit_factor()[0] == pytest.approx((centred[0] * centred[1]).sum() / (centred[0] ** 2).sum())


def test_the_form_that_fits_is_kept_part_by_part() -> None:
    def forms(part: np.ndarray) -> list[list[np.ndarray]]:
        return [[part[..., :2], 3 * part[..., :2]], [part[..., 2:], -part[..., 2:]]]

    candidate = np.concatenate([3 * A[..., :2], A[..., 2:]], -1)
    assert gather(cuts=3, forms=forms, candidate=candidate).difference == 0
    changed = candidate.copy()
    changed[8:] *= -1  # another form in a later batch is an error
    assert gather(cuts=3, forms=forms, candidate=changed).difference > 1


def test_tokens_and_channels_that_the_candidate_or_the_reference_lacks_are_left_out() -> None:
    assert gather(candidate=A[:, 0]).difference == 0
    assert gather(candidate=np.concatenate([A, B], -1)).difference == 0
