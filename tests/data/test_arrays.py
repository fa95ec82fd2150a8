"""Arrays are images: what their numbers are is told by their type, and any number of channels goes through."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.contract import InputContract
from vitdeploy.data import arrays, images
from vitdeploy.errors import InputError

PHOTO = InputContract(height=8, width=12)
BANDS = InputContract(height=8, width=12, channels=7, mean=(0.25,) * 7, std=(0.5,) * 7)


def packed(array: NDArray[Any], **more: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    if more:
        np.savez(stream, image=array, **more)
    else:
        np.save(stream, array)
    return stream.getvalue()


def draw(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, channels), np.uint8)
    return small.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("rule", ["shortest", "stretch"])
@pytest.mark.parametrize("antialias", [True, False])
def test_bytes_are_pixels_as_of_a_photo(rule: Any, antialias: bool, tmp_path: Path) -> None:
    contract = msgspec.structs.replace(PHOTO, resize=rule, antialias=antialias)
    photo = draw(30, 40, 3)
    Image.fromarray(photo).save(tmp_path / "a.png")
    expected = images.load(tmp_path / "a.png", contract)
    for array in (photo, photo.transpose(2, 0, 1), np.asfortranarray(photo)):
        np.testing.assert_array_equal(arrays.read(packed(array), contract).pixels, expected)
    np.save(tmp_path / "a.npy", photo)
    assert arrays.read(tmp_path / "a.npy", contract).pixels.dtype == np.uint8
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.png", contract).pixels, expected)


@pytest.mark.parametrize("antialias", [True, False])
def test_each_of_many_channels_is_resized_as_one(antialias: bool) -> None:
    contract = msgspec.structs.replace(BANDS, antialias=antialias)
    photo = draw(30, 40, 7)
    whole = arrays.read(packed(photo), contract).pixels
    grey = msgspec.structs.replace(contract, channels=1, mean=(0.5,), std=(0.5,))
    for channel in range(7):
        one = arrays.read(packed(photo[:, :, channel]), grey).pixels
        np.testing.assert_array_equal(whole[:, :, channel], one[:, :, 0])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_values_on_the_scale_of_the_mean(kind: Any) -> None:
    photo = draw(8, 12, 7)
    pixels = arrays.read(packed(photo), BANDS).pixels
    values = arrays.read(packed((photo / 255).astype(kind)), BANDS).pixels
    assert values.dtype == np.float32
    given, expected = images.to_tensor(values, BANDS), images.to_tensor(pixels, BANDS)
    assert given.shape == expected.shape == (1, 7, 8, 12) and given.flags.c_contiguous
    np.testing.assert_allclose(given, expected, atol=2e-3 if kind is np.float16 else 1e-6)


def test_floats_are_resized_without_rounding() -> None:
    values = np.random.default_rng(0).random((16, 24, 7), np.float32)
    for antialias in (True, False):
        made = arrays.read(packed(values), msgspec.structs.replace(BANDS, antialias=antialias)).pixels
        assert made.shape == (8, 12, 7) and made.dtype == np.float32
        assert len(np.unique(made)) == made.size, "no steps of 1 / 255"
        assert abs(made.mean() - values.mean()) < 0.02


def test_numbers_of_satellites_are_values_too() -> None:
    contract = msgspec.structs.replace(BANDS, mean=(1300.0,) * 7, std=(400.0,) * 7)
    given = np.full((8, 12, 7), 2100, np.uint16)
    assert (images.to_tensor(arrays.read(packed(given), contract).pixels, contract) == 2).all()
    plain = msgspec.structs.replace(BANDS, mean=(0.0,) * 7, std=(1.0,) * 7)
    assert (images.to_tensor(arrays.read(packed(given.astype(np.int32)), plain).pixels, plain) == 2100).all()


def test_normalised_values_stay_where_the_contract_says_so() -> None:
    contract = msgspec.structs.replace(BANDS, arrays="normalised")
    given = np.random.default_rng(0).normal(size=(7, 8, 12)).astype(np.float32)
    np.testing.assert_array_equal(images.to_tensor(arrays.read(packed(given), contract).pixels, contract)[0], given)
    with pytest.raises(InputError, match="mean and std are for values from 0 to 1") as caught:
        arrays.read(packed(given), BANDS, name="a.npy")
    assert (caught.value.code, caught.value.file) == ("VD3108", "a.npy") and "arrays = 'normalised'" in caught.value.fix


def test_an_array_of_the_size_is_taken_as_it_is() -> None:
    """Whatever prepared it has cropped it; a photo of that size is resized all the same."""
    photo = draw(8, 12, 3)
    contract = msgspec.structs.replace(PHOTO, resize_to=20)
    np.testing.assert_array_equal(arrays.read(packed(photo), contract).pixels, photo)
    assert arrays.read(packed(draw(10, 12, 3)), contract).pixels.shape == (8, 12, 3)


def test_channels_first_or_last() -> None:
    square = msgspec.structs.replace(PHOTO, height=3, width=3)
    given = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(arrays.read(packed(given), square).pixels, given)  # both could be: the last
    thin = msgspec.structs.replace(PHOTO, height=5, width=3, resize="none")
    first = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    np.testing.assert_array_equal(arrays.read(packed(first), thin).pixels, first.transpose(1, 2, 0))  # the size tells


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (packed(np.zeros((8, 12, 5), np.uint8)), "VD3107", "shape [8, 12, 5], the model takes 7 channels"),
        (packed(np.zeros((2, 8, 12, 7), np.uint8)), "VD3107", "shape [2, 8, 12, 7]"),
        (packed(np.zeros((8, 12), np.uint8)), "VD3107", "shape [8, 12]"),
        (packed(np.zeros((0, 12, 7), np.uint8)), "VD3107", "shape [0, 12, 7]"),
        (packed(np.zeros((8, 12, 7), bool)), "VD3108", "array of bool"),
        (packed(np.zeros((8, 12, 7), complex)), "VD3108", "complex"),
        (packed(np.full((8, 12, 7), np.nan)), "VD3108", "not finite"),
        (packed(np.full((8, 12, 7), 200.0)), "VD3108", "from 200 to 200"),
        (packed(np.zeros((8, 12, 7), np.uint8))[:200], "VD3105", "damaged array"),
        (packed(np.array([[None] * 3], object)), "VD3105", "damaged array"),
        (packed(np.zeros((8, 12, 7), np.uint8)).replace(b"(8, 12, 7)", b"(8, 12, 9999)"[:10]), "VD3105", "damaged array"),
        (packed(np.zeros((8, 12, 7), np.uint8), label=np.zeros(1)), "VD3105", "holds 2 arrays"),
        (b"PK\x03\x04 no zip", "VD3105", "damaged .npz"),
        (b"\x93NUMPY", "VD3105", "damaged array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(data: bytes, code: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        arrays.read(data, BANDS, name="a.npy")
    assert caught.value.code == code and words in caught.value.message and caught.value.file == "a.npy"


def test_floats_do_not_enter_a_model_of_bytes() -> None:
    contract = msgspec.structs.replace(BANDS, tensor="uint8-nhwc")
    values = arrays.read(packed(np.zeros((8, 12, 7), np.float32)), contract).pixels
    with pytest.raises(InputError) as caught:
        images.to_tensor(values, contract)
    assert caught.value.code == "VD3108"
