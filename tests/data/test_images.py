"""Preprocessing is what the models were trained with: the same bytes as torchvision and transformers make."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from tests import torchvision_shim
from vitdeploy.data import images
from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract

SIZES = [(224, 224), (301, 333), (97, 61), (64, 500), (517, 80), (33, 35), (700, 467)]
FILTERS = ["bilinear", "bicubic"]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture with some hard edges, uint8 [height, width, channels]."""
    random = np.random.RandomState(seed)
    small = random.randint(0, 256, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    smooth = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    smooth[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 128)
    return smooth[:, :, :channels]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixel_contract(**changes: object) -> InputContract:
    return InputContract(**({"mean": (0.0,) * 3, "std": (1.0,) * 3} | changes))


def require(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    torchvision_shim.declare()


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("rule", ["shortest", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchvision_on_a_jpeg_file(tmp_path: Path, size: tuple[int, int], rule: str, interpolation: str) -> None:
    require("torch", "torchvision")
    from torchvision import transforms

    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(*size)).save(path, quality=92)
    filter_ = transforms.InterpolationMode(interpolation)
    to = 256 if rule == "shortest" else (224, 224)
    steps = [transforms.Resize(to, filter_), transforms.CenterCrop(224), transforms.ToTensor()]
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    contract = InputContract(resize=rule, resize_to=256 if rule == "shortest" else None, interpolation=interpolation)
    with Image.open(path) as opened:
        theirs = transforms.Compose(steps)(opened.convert("RGB"))
    ours = images.load(path, contract)
    np.testing.assert_array_equal(ours, np.rint(theirs.numpy() * 255).astype(np.uint8).transpose(1, 2, 0))
    np.testing.assert_allclose(images.to_tensor(ours, contract)[0], normalize(theirs).numpy(), atol=1e-6)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers_on_a_jpeg_file(tmp_path: Path, size: tuple[int, int], interpolation: str) -> None:
    require("torch", "torchvision", "transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(*size, seed=3)).save(path, quality=92)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    stretch = InputContract(resize="stretch", interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3, crop_rounding="floor")
    shortest = InputContract(resize_to=235, interpolation=interpolation, crop_rounding="floor")
    vit = ViTImageProcessorPil(resample=resample, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    clip = CLIPImageProcessorPil(
        size={"shortest_edge": 235}, resample=resample, image_mean=list(shortest.mean), image_std=list(shortest.std)
    )
    for processor, contract in ((vit, stretch), (clip, shortest)):
        with Image.open(path) as opened:
            theirs = np.asarray(processor(opened.convert("RGB"))["pixel_values"][0])
        ours = images.to_tensor(images.load(path, contract), contract)[0]
        pixel = 1 / 255 / min(contract.std)
        assert np.abs(ours - theirs).max() < pixel / 100, "not the same pixels"


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_without_antialias_equals_torch_interpolate(size: tuple[int, int], interpolation: str) -> None:
    require("torch")
    import torch

    pixels = picture(*size, seed=5)
    contract = pixel_contract(resize="stretch", height=112, width=160, interpolation=interpolation, antialias=False)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
    theirs = torch.nn.functional.interpolate(tensor, (112, 160), mode=interpolation, align_corners=False, antialias=False)
    exact = theirs.clamp(0, 255)[0].numpy().transpose(1, 2, 0)
    difference = np.abs(images.resize_and_crop(pixels, contract) - exact)
    assert difference.max() <= 0.5 + 2e-3, "not the number rounded; a tie may go either way"


@pytest.mark.parametrize("margin", [0, 1, 2, 3, 4, 5, 7])
def test_crop_of_odd_margins(margin: int) -> None:
    """An odd margin is where torchvision (round half to even) and transformers (floor) part."""
    height = 8 + margin
    rows = np.repeat(np.arange(height, dtype=np.uint8)[:, None], height, 1)[:, :, None].repeat(3, 2)
    for rounding, first in (("round", round(margin / 2)), ("floor", margin // 2)):
        contract = pixel_contract(height=8, width=8, resize_to=height, crop_rounding=rounding)
        assert images.resize_and_crop(rows, contract)[0, 0, 0] == first


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["shortest", "stretch"]),
    st.sampled_from(FILTERS),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_image_becomes_the_contract_size(
    height: int, width: int, rule: str, interpolation: str, antialias: bool, channels: int, size: tuple[int, int]
) -> None:
    contract = InputContract(
        height=size[0], width=size[1], channels=channels, resize=rule, resize_to=max(size),
        interpolation=interpolation, antialias=antialias, mean=(0.5,) * channels, std=(0.5,) * channels,
    )  # fmt: skip
    pixels = images.resize_and_crop(np.full((height, width, channels), 77, np.uint8), contract)
    assert pixels.shape == (*size, channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert (pixels == 77).all(), "a constant image stays constant under every filter"


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(4), st.just(5), st.just(3))))
def test_to_tensor_is_the_formula_in_every_layout(pixels: NDArray[np.uint8]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    contract = InputContract(height=4, width=5, resize="stretch", mean=mean, std=std)
    tensor = images.to_tensor(pixels, contract)
    expected = (pixels / 255.0 - mean) / std
    np.testing.assert_allclose(tensor, expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert (tensor.dtype, tensor.flags.c_contiguous) == (np.float32, True)
    planar = images.to_tensor(pixels, InputContract(height=4, width=5, resize="stretch", tensor="uint8-nchw"))
    np.testing.assert_array_equal(planar, pixels.transpose(0, 3, 1, 2))
    assert planar.flags.c_contiguous
    packed = images.to_tensor(pixels, InputContract(height=4, width=5, resize="stretch", tensor="uint8-nhwc"))
    np.testing.assert_array_equal(packed, pixels)


@pytest.mark.parametrize("shape", [(2, 4, 5, 1), (2, 5, 4, 3), (4, 5)])
def test_to_tensor_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    contract = InputContract(height=4, width=5, resize="stretch")
    with pytest.raises(InputError, match="the model takes uint8") as caught:
        images.to_tensor(np.zeros(shape, np.uint8), contract)
    assert caught.value.code == "VD3108"
    with pytest.raises(InputError):
        images.to_tensor(np.zeros((2, 4, 5, 3), np.float64), contract)  # type: ignore[arg-type]


def one_pixel(data: bytes, channels: int = 3, **changes: object) -> list[int]:
    contract = InputContract(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels, **changes)
    return images.decode(data, contract)[0, 0].tolist()


def test_transparency_lies_on_white() -> None:
    clear, half = (10, 20, 30, 0), (0, 0, 0, 128)
    assert one_pixel(encoded(Image.new("RGBA", (2, 2), clear))) == [255, 255, 255]
    assert one_pixel(encoded(Image.new("RGBA", (2, 2), half))) == [127, 127, 127]
    assert one_pixel(encoded(Image.new("LA", (2, 2), (9, 0)))) == [255, 255, 255]
    assert one_pixel(encoded(Image.new("LA", (2, 2), (9, 255))), channels=1) == [9]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([200, 10, 10, 0, 0, 0])
    assert one_pixel(encoded(palette)) == [200, 10, 10]
    assert one_pixel(encoded(palette, transparency=0)) == [255, 255, 255]
    assert one_pixel(encoded(palette, transparency=b"\x00\xff")) == [255, 255, 255]
    assert one_pixel(encoded(Image.new("RGBA", (2, 2), clear), "WEBP", lossless=True)) == [255, 255, 255]


def test_transparency_is_dropped_as_pillow_drops_it() -> None:
    """timm and torchvision show the colours behind it: ``convert("RGB")``."""
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([200, 10, 10, 0, 0, 0])
    for image, options in (
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), {}),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 128)), {}),
        (Image.new("LA", (2, 2), (9, 0)), {}),
        (palette, {"transparency": 0}),
    ):
        data = encoded(image, **options)
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.array(opened.convert("RGB"))[0, 0].tolist()
        assert one_pixel(data, alpha="drop") == expected
        assert one_pixel(data) != expected, "and not on white"


def test_a_picture_says_whether_it_was_turned() -> None:
    contract = InputContract(height=4, width=4)
    for tag, turned in ((None, False), (1, False), (6, True), (9, False)):
        exif = Image.Exif()
        if tag is not None:
            exif[0x0112] = tag
        data = encoded(Image.new("RGB", (4, 4)), "JPEG", exif=exif)
        assert images.read(data, contract).turned is turned
        assert images.read(data, msgspec.structs.replace(contract, exif="apply")).turned is turned


@pytest.mark.parametrize("value", [0, 128, 129, 257, 300, 32768, 65406, 65407, 65535])
def test_sixteen_bits_are_scaled_not_clipped(value: int) -> None:
    wide = encoded(Image.fromarray(np.full((3, 2), value, np.uint16)))
    assert one_pixel(wide) == [round(value / 257)] * 3
    assert one_pixel(wide, channels=1) == [round(value / 257)]


def test_colour_spaces() -> None:
    assert one_pixel(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))[0] > 200
    assert one_pixel(encoded(Image.new("1", (2, 2), 1))) == [255, 255, 255]
    assert one_pixel(encoded(Image.new("L", (2, 2), 7), "BMP")) == [7, 7, 7]
    assert one_pixel(encoded(Image.new("RGB", (2, 2), (255, 0, 0))), channels=1) == [76]  # 0.299 x 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_orientation_as_pillow_turns_it(kind: str, tag: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = tag
    data = encoded(Image.fromarray(picture(24, 40)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        upright = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
        lying = np.array(opened.convert("RGB"))
    np.testing.assert_array_equal(images.decode(data, InputContract(exif="apply")), upright)
    np.testing.assert_array_equal(images.decode(data, InputContract(exif="ignore")), lying)


def test_exif_orientation_in_both_byte_orders_and_damaged() -> None:
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        tiff = mark + struct.pack(f"{order}IHHHIHH", 8, 1, 0x0112, 3, 1, 6, 0)
        assert images.orientation(b"Exif\0\0" + tiff) == 6
        for cut in range(len(tiff) - 2):
            assert images.orientation(tiff[:cut]) == 1
    assert images.orientation(None) == 1


def test_damaged_exif_is_no_warning_and_no_error() -> None:
    damaged = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 900, 0x011A, 5, 1, 0xFFFFFF)
    data = encoded(Image.fromarray(picture(24, 40)), "JPEG", exif=damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.decode(data, InputContract(exif="apply")).shape == (24, 40, 3)


def test_size_must_fit_when_nothing_may_be_resized() -> None:
    contract = pixel_contract(height=8, width=6, resize="none")
    pixels = picture(8, 6)
    np.testing.assert_array_equal(images.resize_and_crop(pixels, contract), pixels)
    with pytest.raises(InputError, match="6 x 9 pixels, the model takes 6 x 8") as caught:
        images.resize_and_crop(picture(9, 6), contract)
    assert caught.value.code == "VD3108"


def test_a_thread_of_pixels_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(InputError, match="resized it would be") as caught:
        images.resize_and_crop(np.zeros((1, 9000, 3), np.uint8), InputContract())
    assert caught.value.code == "VD3103"


def test_channels_that_no_image_has() -> None:
    with pytest.raises(InputError, match="1 or 3 channels") as caught:
        one_pixel(encoded(Image.new("L", (2, 2))), channels=4)
    assert caught.value.code == "VD3107"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.data())
def test_damaged_bytes_are_pixels_or_one_of_our_errors(kind: str, data: st.DataObject) -> None:
    """Whatever a bit flip or a cut does to a file, no exception of Pillow's gets through."""
    original = encoded(Image.fromarray(picture(12, 10)), kind)
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        pixels = images.decode(bytes(damaged[:cut]), InputContract(exif="apply"))
    except InputError as exc:
        assert exc.code in ("VD3102", "VD3103")
    else:
        assert pixels.ndim == 3
