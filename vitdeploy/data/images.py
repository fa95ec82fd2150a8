"""From an image file to what a model takes: the ONE implementation for calibration, evaluation and the device.

Pixels are ``uint8 [H, W, C]`` (one image) or ``uint8 [N, H, W, C]`` (a batch) from the decoder up to `to_tensor`;
floats exist only behind it. No torch: what runs on the device is what was measured. Tests hold these functions to
torchvision's and transformers' results on the same files.

Pillow's plugin classes are opened directly, not through ``Image.open``: that one warns of large images before their
size can be looked at, and a warning can't be silenced in one thread of many.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vitdeploy.errors import InputError, first_line
from vitdeploy.spec import InputContract

Pixels = NDArray[np.uint8]
"""uint8, [H, W, C] or [N, H, W, C], channels in the order RGB."""

MAX_PIXELS = 50_000_000
"""Largest image that is decoded, or made by a resize, in pixels: 150 MB as RGB."""

_BAD_BYTES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    zlib.error,
    Warning,  # raised, not shown, where the caller made warnings errors
)  # what Pillow's readers raise on damaged bytes; MemoryError is not among them

_NOT_ACCEPTED = (
    (b"GIF8", "a GIF image"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\0\0\x01\0", "an icon file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"version https://git-lfs", "a git-lfs pointer (run: git lfs pull)"),
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag 0x0112, to the turn that makes the image upright


class _Jpeg(JpegImageFile):
    """JPEG without a look at the resolution in EXIF: nobody needs it, and damaged EXIF would warn."""

    def _read_dpi_from_exif(self) -> None:
        pass


def load(source: Path | bytes, contract: InputContract, *, name: str = "") -> Pixels:
    """An image file as the model's pixels: decoded, oriented, coloured, resized, cropped.

    Args:
        source: A file, or a file's contents.
        contract: How to do it.
        name: What to call contents in errors.

    Returns:
        uint8 [height, width, channels], C-contiguous, owned by the caller.

    Raises:
        InputError: VD3001, VD3102, VD3103, VD3107 (see `decode`), or VD3108 (see `resize_and_crop`).
    """
    return read(source, contract, name=name).pixels


class Picture(NamedTuple):
    """An image file that was read.

    Attributes:
        pixels: uint8 [height, width, channels].
        turned: Whether its orientation tag says that it was not stored upright.
    """

    pixels: Pixels
    turned: bool = False


def read(source: Path | bytes, contract: InputContract, *, name: str = "") -> Picture:
    """As `load`, with what the file said of itself.

    Raises:
        InputError: As `load`.
    """
    try:
        picture = _open(source, contract, name)
        return picture._replace(pixels=resize_and_crop(picture.pixels, contract))
    except InputError as exc:
        exc.file = exc.file or name or (None if isinstance(source, bytes) else str(source))
        raise


def decode(source: Path | bytes, contract: InputContract, *, name: str = "") -> Pixels:
    """A JPEG, PNG, WebP or BMP file as pixels, in the file's own size.

    Transparency is dropped or laid on white, as ``contract.alpha`` says; 16-bit grey is scaled to 8 bits
    (v / 257, rounded), 16-bit colour keeps its high bytes (all that Pillow gives); of an animation the first frame is taken. The
    orientation tag counts when ``contract.exif`` says so. Grey is ITU-R 601-2 luma, as Pillow and torchvision compute it.

    Args:
        source: A file, or a file's contents.
        contract: Channels, orientation and transparency are taken from it.
        name: What to call contents in errors.

    Returns:
        uint8 [H, W, channels], C-contiguous, owned by the caller.

    Raises:
        InputError: VD3001, no such file; VD3102, it can't be decoded; VD3103, it has more than `MAX_PIXELS`; VD3107,
            the contract has other than 1 or 3 channels.
    """
    return _open(source, contract, name).pixels


def _open(source: Path | bytes, contract: InputContract, name: str) -> Picture:
    if contract.channels not in (1, 3):
        message = f"images have 1 or 3 channels, the model takes {contract.channels}"
        raise InputError("VD3107", message, file=name or None, fix="give such data as arrays")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), contract, name)
    if not source.is_file():  # a pipe would block for ever
        raise InputError("VD3001", "is not a file, or does not exist", file=source)
    try:
        with source.open("rb") as stream:
            return _decode(stream, contract, name or str(source))
    except OSError as exc:  # not the decoder's, which _decode translates
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=source) from exc


def _decode(stream: IO[bytes], contract: InputContract, name: str) -> Picture:
    reader = _reader(stream, name)
    try:
        with reader(stream) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise _refuse_size(width, height, name)
            image.load()
            turn = _TURNS.get(orientation(image.info.get("exif")))
            upright = image if turn is None or contract.exif == "ignore" else image.transpose(turn)
            pixels = np.array(_colour(upright, contract), dtype=np.uint8)
    except Image.DecompressionBombError as exc:
        raise InputError("VD3103", first_line(exc), file=name or None, fix="shrink or leave out the image") from exc
    except _BAD_BYTES as exc:
        fix = "replace the file, or leave it out"
        raise InputError("VD3102", f"can't be decoded: {first_line(exc)}", file=name or None, fix=fix) from exc
    return Picture(pixels.reshape(*pixels.shape[:2], contract.channels), turn is not None)


def _reader(stream: IO[bytes], name: str) -> type[ImageFile]:
    """The one decoder for these bytes, chosen by what they are, not by the file's name."""
    head = stream.read(64)
    stream.seek(0)
    if head.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith(b"BM"):
        return BmpImageFile
    fix = "replace the file, or leave it out" if not head or b"git-lfs" in head else "convert it to JPEG or PNG"
    raise InputError("VD3102", f"is {_kind(head)}, not a JPEG, PNG, WebP or BMP image", file=name or None, fix=fix)


def _kind(head: bytes) -> str:
    if not head:
        return "empty (0 bytes)"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page"
    if head[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    for start, kind in _NOT_ACCEPTED:
        if head.startswith(start):
            return kind
    return "text" if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head) else "of an unknown kind"


def _refuse_size(width: int, height: int, name: str, what: str = "is") -> InputError:
    message = f"{what} {width:,} x {height:,} pixels, more than {MAX_PIXELS // 1_000_000} million"
    return InputError("VD3103", message, file=name or None, fix="shrink or leave out the image")


def orientation(exif: object) -> int:
    """The orientation tag in raw EXIF bytes; damaged or absent EXIF is 1, upright.

    Read here because Pillow's own EXIF reader warns about damage, and a photo is no worse for it.

    Source: EXIF 2.32, tag 0x0112 in the first directory; TIFF 6.0, section 2, for the layout.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if (tag, kind, count) == (0x0112, 3, 1):
                return int(value)
    except struct.error:  # the directory points outside
        pass
    return 1


def _colour(image: Image.Image, contract: InputContract) -> Image.Image:
    """Any of Pillow's modes as 8-bit L (1 channel) or RGB (3 channels)."""
    if image.mode.startswith("I"):  # 16-bit grey PNG: I;16, I;16B, and I in older Pillow
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # = round(v / 257): 65535 / 257 = 255
    elif contract.alpha == "white" and (image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info):
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("L" if contract.channels == 1 else "RGB")


def resize_and_crop(image: Pixels, contract: InputContract) -> Pixels:
    """An image brought to the contract's height and width.

    ``shortest`` makes the shorter side ``resize_to`` and the longer int(resize_to * long / short); ``stretch`` makes both
    sides the contract's times ``resize_to`` / max(height, width). Then the centre is cut out: it begins at
    int(round(margin / 2)) with crop ``round`` and at margin // 2 with ``floor``.

    Args:
        image: uint8 [H, W, C] with 1 or 3 channels.
        contract: The rule, the filter and the size.

    Returns:
        uint8 [height, width, C], C-contiguous; may be ``image`` itself when nothing is to be done.

    Raises:
        InputError: VD3103, so narrow an image that the resized one would exceed `MAX_PIXELS`; VD3107, other than 1 or 3
            channels; VD3108, not the contract's size and ``resize = "none"``.

    Source: ``torchvision.transforms.functional`` (_compute_resized_output_size, center_crop) and
    ``transformers.image_transforms`` (get_resize_output_image_size, center_crop).
    """
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise InputError("VD3107", f"images have 1 or 3 channels, this one has {channels}")
    to_height, to_width = _resize(height, width, contract)
    if to_height * to_width > MAX_PIXELS:
        raise _refuse_size(to_width, to_height, "", f"is {width:,} x {height:,} pixels; resized it would be")
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


def _resize_pillow(image: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    flat = image[:, :, 0] if image.shape[2] == 1 else image
    resized = np.asarray(Image.fromarray(flat).resize((size[1], size[0]), kernel))
    return resized.reshape(*size, image.shape[2])


def _resize_plain(image: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Resize without widening the filter, one axis after the other, rounded once at the end."""
    taps = [_taps(old, new, interpolation) for old, new in zip(image.shape[:2], size, strict=True)]
    (rows, row_weights), (columns, column_weights) = taps
    wide = np.zeros((image.shape[0], size[1], image.shape[2]), np.float32)  # [H, w, C]; along the row first, as torch
    for index, weight in zip(columns, column_weights, strict=True):
        wide += image[:, index] * weight[:, None]
    full = np.zeros((*size, image.shape[2]), np.float32)  # [h, w, C]
    for index, weight in zip(rows, row_weights, strict=True):
        full += wide[index] * weight[:, None, None]
    return np.clip(np.rint(full), 0, 255).astype(np.uint8)


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


def to_tensor(pixels: Pixels, contract: InputContract) -> NDArray[np.float32] | Pixels:
    """Pixels as the model file takes them.

    Args:
        pixels: uint8 [N, height, width, channels], or one image [height, width, channels], made a batch of one.
        contract: ``tensor`` names the result; ``mean`` and ``std`` are on the scale [0, 1].

    Returns:
        C-contiguous, by ``contract.tensor``: ``float32-nchw`` is (x / 255 - mean) / std as float32
        [N, channels, height, width]; ``uint8-nchw`` and ``uint8-nhwc`` are the same bytes in that order.

    Raises:
        InputError: VD3108, the pixels do not have the contract's shape or are not uint8.
    """
    batch = pixels[None] if pixels.ndim == 3 else pixels
    expected = (contract.height, contract.width, contract.channels)
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != expected:
        given = f"{pixels.dtype} {list(pixels.shape)}"
        message = f"pixels are {given}, the model takes uint8 [N, {', '.join(map(str, expected))}]"
        raise InputError("VD3108", message, fix="prepare images with vitdeploy.data.images.load")
    if contract.tensor == "uint8-nhwc":
        return np.ascontiguousarray(batch)
    if contract.tensor == "uint8-nchw":
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    # A byte has 256 values: a table per channel gives bit for bit what the arithmetic would, in one pass.
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    scaled = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table: NDArray[np.float32] = (scaled - mean) / std  # [256, channels]
    result = np.empty((len(batch), contract.channels, contract.height, contract.width), np.float32)
    for channel in range(contract.channels):
        np.take(table[:, channel], batch[..., channel], out=result[:, channel], mode="clip")
    return result
