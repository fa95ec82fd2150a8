"""Images that are arrays: NumPy's .npy and .npz, one image a file or many in one, for any number of channels.

What the numbers are is told by their type. ``uint8`` are pixels, as a decoder gives them: 0 to 255, scaled by 1 / 255 and
normalised. Every other type (float16 to float64, and integers of more than 8 bits, as of satellites) holds values as they are,
on the scale that the contract's mean and std are on: the model sees (x - mean) / std, or x itself where the contract says
``arrays = "normalised"``. Channels come first or last, told by their number. An array of the contract's height and width is taken
as it is, any other is resized and cropped as a photo.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.data import images
from vitdeploy.data.images import Picture
from vitdeploy.data.resize import resize_and_crop
from vitdeploy.errors import InputError, first_line
from vitdeploy.spec import InputContract

SUFFIXES = (".npy", ".npz")
_MAX_BYTES = 256 << 20  # of one image
_MAGIC = b"\x93NUMPY"
_SLACK = 1e-3  # beyond [0, 1]: what a resize rounds


def read(source: Path | bytes, contract: InputContract, *, name: str = "") -> Picture:
    """An image file or an array of one image, told apart by its first bytes, as the model's pixels.

    Args:
        source: A file, or a file's contents.
        contract: How to prepare it.
        name: What to call contents in errors.

    Returns:
        Pixels uint8 [height, width, channels], or float32 of the same shape for values.

    Raises:
        InputError: As `images.read`; VD3105, a damaged array; VD3107, its shape has not the contract's channels; VD3108, its
            values are no numbers or not on the contract's scale.
    """
    shown = name or (None if isinstance(source, bytes) else str(source))
    try:
        data = _read_array_bytes(source)
        if data is None:
            return images.read(source, contract, name=name)
        return prepare(_parse_one(data), contract)
    except InputError as exc:
        exc.file = exc.file or shown
        raise


def _read_array_bytes(source: Path | bytes) -> bytes | None:
    """The contents, where they are an array's; None for anything else."""
    if isinstance(source, bytes):
        return source if _is_array(source[:6]) else None
    if not source.is_file():
        return None
    try:
        with files.open_regular(source) as stream:
            if not _is_array(stream.read(6)):
                return None
            if source.stat().st_size > _MAX_BYTES:
                message = f"is an array of more than {_MAX_BYTES >> 20} MiB"
                raise InputError("VD3105", message, file=source, fix="give one image a file")
            stream.seek(0)
            return stream.read()
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=source) from exc


def _is_array(head: bytes) -> bool:
    return head == _MAGIC or head[:4] == b"PK\x03\x04"


def _parse_one(data: bytes) -> NDArray[Any]:
    """The one array of a .npy, or of a .npz."""
    if data[:6] == _MAGIC:
        return _parse(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            if len(members) != 1 or members[0].file_size > _MAX_BYTES:
                raise InputError("VD3105", f"holds {len(members)} arrays, not one image", fix="give one image a file")
            return _parse(archive.read(members[0]))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as exc:
        raise InputError("VD3105", f"is a damaged .npz: {first_line(exc)}", fix="write it again") from exc


def _parse(data: bytes) -> NDArray[Any]:
    """A .npy file, without running anything of it and without trusting the size that its header announces."""
    stream = io.BytesIO(data)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        flat = np.frombuffer(data, dtype, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, OverflowError, EOFError, SyntaxError, TokenError) as exc:  # the last two of a bad header
        raise InputError("VD3105", f"is a damaged array: {first_line(exc)}", fix="write it again with numpy.save") from exc


def prepare(array: NDArray[Any], contract: InputContract) -> Picture:
    """One image that is an array, resized and cropped as the contract says; one of the contract's size is taken as it is.

    Args:
        array: [H, W, C], [C, H, W], or [H, W] for one channel; uint8, or another type of real numbers.
        contract: Channels, size and scale.

    Raises:
        InputError: VD3107, VD3108: see `read`.
    """
    last = _move_channels(array, contract)
    if last.dtype.kind not in "fiu":
        raise InputError("VD3108", f"is an array of {last.dtype}, no numbers of pixels", fix="save uint8 or float32")
    values: NDArray[Any] = np.ascontiguousarray(last, np.uint8 if last.dtype == np.uint8 else np.float32)
    if values.dtype != np.uint8:
        _check_scale(values, contract)
    whole = values.shape[:2] == (contract.height, contract.width)
    return Picture(values if whole else resize_and_crop(values, contract))


def _move_channels(array: NDArray[Any], contract: InputContract) -> NDArray[Any]:
    """Channels last; where both ends could be them, as the size tells, else the last."""
    channels, size = contract.channels, (contract.height, contract.width)
    if array.ndim == 2 and channels == 1:
        return array[:, :, None]
    first = array.ndim == 3 and array.shape[0] == channels
    last = array.ndim == 3 and array.shape[2] == channels
    if not (first or last) or 0 in array.shape:
        shape = f"[{', '.join(map(str, array.shape))}]"
        message = f"is an array of shape {shape}, the model takes {channels} channels: [H, W, {channels}] or [{channels}, H, W]"
        raise InputError("VD3107", message, fix="save one image of the model's channels a file")
    turn = first and (not last or (array.shape[1:] == size != array.shape[:2]))
    return np.moveaxis(array, 0, 2) if turn else array


def _check_scale(values: NDArray[np.float32], contract: InputContract) -> None:
    """Refuse what is not finite, and values far from [0, 1] where mean and std are of that scale."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise InputError("VD3108", "holds values that are not finite", fix="replace them, or leave the file out")
    plain = set(contract.mean) == {0.0} and set(contract.std) == {1.0}
    of_unit = max(map(abs, (*contract.mean, *contract.std))) <= 1 and not plain
    if contract.arrays == "raw" and of_unit and not (low >= -_SLACK and high <= 1 + _SLACK):
        message = f"holds values from {low:.3g} to {high:.3g}, but mean and std are for values from 0 to 1"
        fix = "scale the values, or save pixels as uint8; normalised ones need arrays = 'normalised' in the input contract"
        raise InputError("VD3108", message, fix=fix)
