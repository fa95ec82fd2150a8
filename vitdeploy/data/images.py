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
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vitdeploy import files
from vitdeploy.data.resize import MAX_PIXELS as MAX_PIXELS
from vitdeploy.data.resize import Pixels as Pixels
from vitdeploy.data.resize import Values as Values
from vitdeploy.data.resize import refuse_size
from vitdeploy.data.resize import resize_and_crop as resize_and_crop
from vitdeploy.errors import InputError, first_line
from vitdeploy.spec import InputContract

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

_MAX_SCANNED = 16 * MAX_PIXELS
"""Pixels that a JPEG's scans may go over in all: encoders write 10 scans, and an image of `MAX_PIXELS` may have 16."""
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


def load(source: Readable, contract: InputContract, *, name: str = "") -> Pixels:
    """An image as the model's pixels: decoded, oriented, coloured, resized, cropped.

    Args:
        source: A file, a file's contents, or an image of Pillow.
        contract: How to do it.
        name: What to call contents in errors.

    Returns:
        uint8 [height, width, channels], C-contiguous, owned by the caller.

    Raises:
        InputError: VD3001, VD3102, VD3103, VD3107 (see `decode`), or VD3108 (see `resize_and_crop`).
    """
    return np.asarray(read(source, contract, name=name).pixels, np.uint8)


Readable = str | PathLike[str] | bytes | Image.Image
"""An image to be read: a file, a file's contents, or one of Pillow."""


class Picture(NamedTuple):
    """An image file that was read.

    Attributes:
        pixels: uint8 [height, width, channels]; float32 where it is an array of values.
        turned: Whether its orientation tag says that it was not stored upright.
    """

    pixels: Pixels | Values
    turned: bool = False


def read(source: Readable, contract: InputContract, *, name: str = "") -> Picture:
    """As `load`, with what the file said of itself.

    Raises:
        InputError: As `load`.
    """
    try:
        picture = _open(source, contract, name)
        return picture._replace(pixels=resize_and_crop(picture.pixels, contract))
    except InputError as exc:
        exc.file = exc.file or name or (str(source) if isinstance(source, str | PathLike) else None)
        raise


def decode(source: Readable, contract: InputContract, *, name: str = "") -> Pixels:
    """A JPEG, PNG, WebP or BMP file as pixels, in the file's own size.

    Transparency is dropped or laid on white, as ``contract.alpha`` says; 16-bit grey is scaled to 8 bits
    (v / 257, rounded), 16-bit colour keeps its high bytes (all that Pillow gives); of an animation the first frame is taken. The
    orientation tag counts when ``contract.exif`` says so. Grey is ITU-R 601-2 luma, as Pillow and torchvision compute it.

    Args:
        source: As `load` takes it.
        contract: Channels, orientation and transparency are taken from it.
        name: What to call contents in errors.

    Returns:
        uint8 [H, W, channels], C-contiguous, owned by the caller.

    Raises:
        InputError: VD3001, no such file; VD3102, it can't be decoded; VD3103, it has more than `MAX_PIXELS`; VD3107,
            the contract has other than 1 or 3 channels.
    """
    return np.asarray(_open(source, contract, name).pixels, np.uint8)


def _open(source: Readable, contract: InputContract, name: str) -> Picture:
    if contract.channels not in (1, 3):
        message = f"images have 1 or 3 channels, the model takes {contract.channels}"
        raise InputError("VD3107", message, file=name or None, fix="give such data as arrays: .npy or .npz files")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), contract, name)
    if isinstance(source, Image.Image):
        with _translate(name):
            return _take_pixels(source, contract, name)
    source = Path(source)
    if not source.is_file():  # a pipe would block for ever
        raise InputError("VD3001", "is not a file, or does not exist", file=source)
    try:
        with files.open_regular(source) as stream:
            return _decode(stream, contract, name or str(source))
    except OSError as exc:  # not the decoder's, which _decode translates
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=source) from exc


def _decode(stream: IO[bytes], contract: InputContract, name: str) -> Picture:
    reader = _reader(stream, name)
    with _translate(name), reader(stream) as image:
        if reader is _Jpeg:
            _refuse_scans(stream, image.size[0] * image.size[1], name)
        return _take_pixels(image, contract, name)


@contextmanager
def _translate(name: str) -> Iterator[None]:
    """What Pillow raises of bad images, in our words."""
    try:
        yield
    except Image.DecompressionBombError as exc:
        raise InputError("VD3103", first_line(exc), file=name or None, fix="shrink or leave out the image") from exc
    except _BAD_BYTES as exc:
        fix = "replace the file, or leave it out"
        raise InputError("VD3102", f"can't be decoded: {first_line(exc)}", file=name or None, fix=fix) from exc


def _take_pixels(image: Image.Image, contract: InputContract, name: str) -> Picture:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise refuse_size(width, height, name)
    image.load()
    turn = _TURNS.get(orientation(image.info.get("exif")))
    upright = image if turn is None or contract.exif == "ignore" else image.transpose(turn)
    pixels = np.array(_colour(upright, contract), dtype=np.uint8)
    return Picture(pixels.reshape(*pixels.shape[:2], contract.channels), turn is not None)


def _refuse_scans(stream: IO[bytes], pixels: int, name: str) -> None:
    """Refuse a JPEG that goes over its pixels again and again: half a megabyte of empty scans is minutes in the decoder."""
    place = stream.tell()
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")
    stream.seek(place)
    if scans * pixels > _MAX_SCANNED:
        message = f"has {scans:,} scans over {pixels:,} pixels, more than any encoder writes"
        raise InputError("VD3103", message, file=name or None, fix="save it again, or leave it out")


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


def to_tensor(pixels: Pixels | Values, contract: InputContract) -> NDArray[np.float32] | Pixels:
    """Pixels as the model file takes them.

    Args:
        pixels: uint8 [N, height, width, channels], or one image [height, width, channels], made a batch of one; float32
            for values on the scale of mean and std (or normalised, as ``contract.arrays`` says): see `arrays`.
        contract: ``tensor`` names the result; ``mean`` and ``std`` are on the scale [0, 1].

    Returns:
        C-contiguous, by ``contract.tensor``: ``float32-nchw`` is (x / 255 - mean) / std as float32
        [N, channels, height, width]; ``uint8-nchw`` and ``uint8-nhwc`` are the same bytes in that order.

    Raises:
        InputError: VD3108, the pixels do not have the contract's shape or type.
    """
    batch: NDArray[Any] = pixels[None] if pixels.ndim == 3 else pixels
    expected = (contract.height, contract.width, contract.channels)
    taken = (np.uint8, np.float32) if contract.tensor == "float32-nchw" else (np.uint8,)
    if batch.dtype not in taken or batch.ndim != 4 or batch.shape[1:] != expected:
        given = f"{pixels.dtype} {list(pixels.shape)}"
        message = f"pixels are {given}, the model takes uint8 [N, {', '.join(map(str, expected))}]"
        raise InputError("VD3108", message, fix="prepare images with vitdeploy.data.images.load")
    if contract.tensor == "uint8-nhwc":
        return np.ascontiguousarray(batch)
    if contract.tensor == "uint8-nchw":
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    if batch.dtype == np.float32:
        values = batch.transpose(0, 3, 1, 2)  # [N, C, H, W]
        if contract.arrays == "raw":
            mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (contract.mean, contract.std))
            values = (values - mean) / std
        return np.ascontiguousarray(values, np.float32)
    # A byte has 256 values: a table per channel gives bit for bit what the arithmetic would, in one pass.
    mean, std = np.asarray(contract.mean, np.float32), np.asarray(contract.std, np.float32)
    scaled = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table: NDArray[np.float32] = (scaled - mean) / std  # [256, channels]
    result = np.empty((len(batch), contract.channels, contract.height, contract.width), np.float32)
    for channel in range(contract.channels):
        np.take(table[:, channel], batch[..., channel], out=result[:, channel], mode="clip")
    return result
