"""Resize and crop, as torchvision, timm and transformers do on 8-bit pixels; any number of channels, and floats too."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract

Pixels = NDArray[np.uint8]
"""uint8, [H, W, C] or [N, H, W, C], channels in the order RGB."""

Values = NDArray[np.float32]
"""float32, [H, W, C] or [N, H, W, C]: values on the scale of the contract's mean and std."""

Plane = NDArray[Any]

MAX_PIXELS = 50_000_000
"""Largest image that is decoded, or made by a resize, in pixels: 150 MB as RGB."""


def refuse_size(width: int, height: int, name: str, what: str = "is") -> InputError:
    """The error of an image that is too large."""
    message = f"{what} {width:,} x {height:,} pixels, more than {MAX_PIXELS // 1_000_000} million"
    return InputError("VD3103", message, file=name or None, fix="shrink or leave out the image")


def resize_and_crop(image: Plane, contract: InputContract) -> Plane:
    """An image brought to the contract's height and width.

    ``shortest`` makes the shorter side ``resize_to`` and the longer int(resize_to * long / short); ``stretch`` makes both
    sides the contract's times ``resize_to`` / max(height, width). Then the centre is cut out: it begins at
    int(round(margin / 2)) with crop ``round`` and at margin // 2 with ``floor``.

    Args:
        image: uint8 or float32 [H, W, C], any number of channels.
        contract: The rule, the filter and the size.

    Returns:
        The same type [height, width, C], C-contiguous; may be ``image`` itself when nothing is to be done.

    Raises:
        InputError: VD3103, so narrow an image that the resized one would exceed `MAX_PIXELS`; VD3108, not the
            contract's size and ``resize = "none"``.

    Source: ``torchvision.transforms.functional`` (_compute_resized_output_size, center_crop) and
    ``transformers.image_transforms`` (get_resize_output_image_size, center_crop).
    """
    height, width, _ = image.shape
    to_height, to_width = _resize(height, width, contract)
    if to_height * to_width > MAX_PIXELS:
        raise refuse_size(to_width, to_height, "", f"is {width:,} x {height:,} pixels; resized it would be")
    if (to_height, to_width) != (height, width):
        method = _resize_pillow if contract.antialias else _resize_plain
        image = method(image, (to_height, to_width), contract.interpolation)
    top, left = (_begin(a - b, contract) for a, b in ((to_height, contract.height), (to_width, contract.width)))
    return np.ascontiguousarray(image[top : top + contract.height, left : left + contract.width])


def _resize(height: int, width: int, contract: InputContract) -> tuple[int, int]:
    """Height and width after the resize, before the crop."""
    if contract.resize == "stretch":
        share = contract.shorter / max(contract.height, contract.width)
        return round(contract.height * share), round(contract.width * share)
    if contract.resize == "none":
        if (height, width) != (contract.height, contract.width):
            takes = f"{contract.width} x {contract.height}"
            message = f"is {width} x {height} pixels, the model takes {takes} and resize is 'none'"
            raise InputError("VD3108", message, fix="resize the image, or set resize = 'shortest'")
        return height, width
    short_side, long_side = sorted((height, width))
    long = int(contract.shorter * long_side / short_side)
    return (contract.shorter, long) if height <= width else (long, contract.shorter)


def _begin(margin: int, contract: InputContract) -> int:
    return int(round(margin / 2.0)) if contract.crop_rounding == "round" else margin // 2  # noqa: RUF046


def _resize_pillow(image: Plane, size: tuple[int, int], interpolation: str) -> Plane:
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]

    def resize(plane: Plane) -> Plane:
        return np.asarray(Image.fromarray(plane).resize((size[1], size[0]), kernel))

    if image.shape[2] == 3 and image.dtype == np.uint8:
        return resize(image)
    planes = [resize(np.ascontiguousarray(image[:, :, channel])) for channel in range(image.shape[2])]
    return np.stack(planes, axis=2)


def _resize_plain(image: Plane, size: tuple[int, int], interpolation: str) -> Plane:
    """Resize without widening the filter, one axis after the other, rounded once at the end."""
    taps = [_taps(old, new, interpolation) for old, new in zip(image.shape[:2], size, strict=True)]
    (rows, row_weights), (columns, column_weights) = taps
    wide = np.zeros((image.shape[0], size[1], image.shape[2]), np.float32)  # [H, w, C]; along the row first, as torch
    for index, weight in zip(columns, column_weights, strict=True):
        wide += image[:, index] * weight[:, None]
    full = np.zeros((*size, image.shape[2]), np.float32)  # [h, w, C]
    for index, weight in zip(rows, row_weights, strict=True):
        full += wide[index] * weight[:, None, None]
    return full if image.dtype == np.float32 else np.clip(np.rint(full), 0, 255).astype(np.uint8)


def _taps(old: int, new: int, interpolation: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Source pixels and their weights along one axis, [2 or 4, new] each; pixels beyond the edge repeat the edge.

    Source: ``torch.nn.functional.interpolate(align_corners=False)``; cubic convolution (Keys 1981) with a = -0.75.
    """
    place = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new)) - np.float32(0.5)
    first = np.floor(place)
    t = place - first
    if interpolation == "bilinear":
        offsets, weights = np.array([0, 1]), np.stack([1 - t, t])
    else:
        offsets = np.array([-1, 0, 1, 2])
        near = [((-0.75 + 2) * x - (-0.75 + 3)) * x * x + 1 for x in (t, 1 - t)]  # |x| <= 1
        far = [((-0.75 * x + 3.75) * x - 6) * x + 3 for x in (t + 1, 2 - t)]  # 1 < |x| < 2
        weights = np.stack([far[0], near[0], near[1], far[1]])
    index = np.clip(first.astype(np.intp) + offsets[:, None], 0, old - 1)
    return index, weights.astype(np.float32)
