"""Answers that depend on what ran before, or on the images beside, are seen; those that do not are 0."""

import math

import numpy as np

from vitdeploy.measure.steadiness import LOOKED_AT, measure_steadiness

IMAGES = np.arange(12, dtype=np.float32).reshape(6, 2)


def measure(run) -> tuple[float, float]:
    told = measure_steadiness(run, IMAGES)
    return told["repeat_difference"].value, told["company_difference"].value


def test_what_depends_on_the_image_alone_is_steady() -> None:
    sizes = []
    assert measure(lambda images: sizes.append(len(images)) or 2 * images) == (0, 0)
    assert sizes == [LOOKED_AT, LOOKED_AT, *[1] * LOOKED_AT]


def test_images_beside_it_are_seen() -> None:
    assert measure(lambda images: images + 0.25 * (len(images) - 1)) == (0, 0.75)


def test_what_ran_before_is_seen() -> None:
    runs = []
    repeat, company = measure(lambda images: runs.append(1) or images + len(runs))
    assert (repeat, company) == (1, 5)


def test_rows_that_change_places_are_seen() -> None:
    assert measure(lambda images: images[::-1].copy()) == (0, 6)


def test_what_is_no_number_shows() -> None:
    assert all(math.isnan(value) for value in measure(lambda images: images * np.float32(math.nan)))
