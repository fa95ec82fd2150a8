"""Which images set ranges and which judge: every image has one part, the same in every pass."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import images
from vitdeploy.quant.pictures import BATCH, open_pictures
from vitdeploy.recipe import QuantizeConfig

PARTS = ("first", "second", "held")


@pytest.fixture
def folder(tmp_path):
    """Of as many images as asked, each of one colour."""

    def make(count):
        (tmp_path / "images").mkdir()
        for number in range(count):
            Image.new("RGB", (24, 16), (5 * number, 0, 255)).save(tmp_path / "images" / f"{number:02}.png")
        return str(tmp_path / "images")

    return make


@pytest.mark.parametrize(
    ("there", "settings", "used", "held"),
    [
        (15, {}, 15, 0),  # too few to hold any back
        (16, {}, 16, 4),
        (40, {}, 40, 10),
        (40, {"verify_images": 7}, 40, 7),
        (40, {"limit": 8}, 40, 32),  # as many as the ranges do not need
        (40, {"limit": 8, "verify_images": 20}, 28, 20),
        (40, {"limit": 12, "verify": False}, 40, 28),
    ],
)
def test_every_image_has_one_part(tiny_artifact, folder, there, settings, used, held):
    pictures = open_pictures(tiny_artifact, QuantizeConfig(calibration=folder(there), **settings))
    assert (pictures.used, pictures.held, pictures.name) == (used, held, "images")
    names = {part: [name for _, batch in pictures.part(part) for name in batch] for part in (*PARTS, "ranges")}
    assert [len(names[part]) for part in PARTS] == [(used - held + 1) // 2, (used - held) // 2, held]
    assert sorted(names["first"] + names["second"]) == sorted(names["ranges"])
    assert len({name for part in PARTS for name in names[part]}) == used
    for part in names:
        sizes = [len(batch) for _, batch in pictures.part(part)]
        assert sizes == [min(BATCH, len(names[part]) - start) for start in range(0, len(names[part]), BATCH)]
    again = {part: [name for _, batch in pictures.part(part) for name in batch] for part in names}
    assert again == names


def test_held_back_images_lie_evenly_among_the_others(tiny_artifact, folder):
    """So that images in an order of classes are judged by all classes; halves take turns."""
    pictures = open_pictures(tiny_artifact, QuantizeConfig(calibration=folder(16)))
    parts = ["".join(part[0] for part in PARTS if pictures._belongs(number, part)) for number in range(16)]
    assert "".join(parts) == "fsfhsfshfsfhsfsh"
    assert [pictures._belongs(number, "ranges") for number in range(16)] == [part != "h" for part in parts]


def test_images_come_with_their_own_names(tiny_artifact, folder):
    pictures = open_pictures(tiny_artifact, QuantizeConfig(calibration=folder(20)))
    contract = tiny_artifact.spec.input
    for part in PARTS:
        for batch, names in pictures.part(part):
            colours = np.array([(5 * int(name.split(".")[0].split("/")[-1]), 0, 255) for name in names], np.uint8)
            pixels = np.broadcast_to(colours[:, None, None], (len(names), 16, 24, 3))
            np.testing.assert_allclose(batch, images.to_tensor(pixels, contract), atol=0.03)
        np.testing.assert_array_equal(
            np.concatenate(list(pictures.tensors(part))), np.concatenate([batch for batch, _ in pictures.part(part)])
        )


@pytest.mark.parametrize(("limit", "used"), [(256, 64), (10, 10)])
def test_generated_images_differ_and_none_is_held_back(tiny_artifact, limit, used):
    pictures = open_pictures(tiny_artifact, QuantizeConfig(calibration="random", limit=limit))
    assert (pictures.used, pictures.held, pictures.name, pictures.digest) == (used, 0, "random", "")
    tensors, names = zip(*pictures.part("ranges"), strict=True)
    whole = np.concatenate(tensors)
    assert [name for batch in names for name in batch] == [f"random {number}" for number in range(used)]
    assert len(np.unique(whole.reshape(used, -1), axis=0)) == used
    other = open_pictures(tiny_artifact, QuantizeConfig(calibration="random", limit=limit, seed=1000))
    assert not np.array_equal(next(other.part("ranges"))[0], tensors[0])


def test_statistics_need_no_images(tiny_artifact):
    assert open_pictures(tiny_artifact, QuantizeConfig(statistics="saved")) is None
