"""Thumbnails: what the model sees, small, and nothing of what is no picture."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import open_dataset
from vitdeploy.data.thumbnails import SIDE, draw_thumbnails
from vitdeploy.spec import InputContract


@pytest.mark.parametrize(("side", "kind"), [(32, "png"), (224, "jpeg")])
def test_is_cut_and_resized_as_the_contract_says(tmp_path, side, kind):
    pixels = np.zeros((2 * side, side, 3), np.uint8)
    pixels[side // 2 : -side // 2] = 200  # the middle, which is all that the model sees
    Image.fromarray(pixels).save(tmp_path / "a.png")
    contract = InputContract(height=side, width=side)
    (picture,) = draw_thumbnails(open_dataset(tmp_path), ["a.png", "b.png"], contract).values()
    image = Image.open(BytesIO(picture.content))
    assert (image.size, picture.kind, picture.side) == ((min(side, SIDE),) * 2, kind, min(side, SIDE))
    assert abs(np.asarray(image, int).mean() - 200) < 5
    assert picture.is_small == (side == 32)


def test_numbers_are_no_picture(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3), np.float32))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"broken")
    contract = InputContract(height=8, width=8)
    assert set(draw_thumbnails(open_dataset(tmp_path), ["a.npy", "b.png", "c.png"], contract)) == {"b.png"}
