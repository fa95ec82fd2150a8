"""IDX, the format of MNIST and its successors: a header of big-endian sizes, then bytes; plain or gzip.

Source: Y. LeCun, "The MNIST database", section FILE FORMATS: magic 0x00000803 (unsigned bytes, three dimensions:
images, rows, columns) and 0x00000801 (one dimension: labels).
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.data import images
from vitdeploy.data.identity import identify
from vitdeploy.data.images import Picture
from vitdeploy.data.sources import Listing, check_numbers, digest_rows, read_class_names
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract

MAX_BYTES = 1 << 31
"""Most bytes that one file may hold when unpacked: 2 GiB."""

_IMAGES = re.compile(r"(?P<split>.+)-images[-.]idx3-ubyte(\.gz)?")
_KINDS = {3: "images-idx3-ubyte", 1: "labels-idx1-ubyte"}


def read(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file.

    A plain file is mapped, not read; a gzip file is unpacked in memory, never beyond what its header announces.

    Args:
        path: The file; whether it is gzip is seen from its bytes.
        dimensions: 3 for images, 1 for labels.

    Returns:
        uint8 [N, H, W] or [N], read-only.

    Raises:
        InputError: VD3001, unreadable; VD3002, empty; VD3105, not IDX, of another type, cut off, longer than its
            header says, or larger than `MAX_BYTES`.
    """
    try:
        with files.open_regular(path) as raw:
            pack = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if pack else raw)
            shape = _read_shape(stream, dimensions, path)
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise _refuse(path, f"its header announces {size / 2**30:,.1f} GiB, the limit is 2 GiB")
            if not pack:
                return _map(path, shape, 4 + 4 * dimensions)
            data = stream.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise _refuse(path, f"the gzip stream is damaged or cut off ({exc})") from exc
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    if len(data) != size:
        held = "more" if len(data) > size else f"{len(data):,}"
        raise _refuse(path, f"its header announces {size:,} bytes, it holds {held}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read_shape(stream: IO[bytes], dimensions: int, path: Path) -> tuple[int, ...]:
    header = stream.read(4 + 4 * dimensions)
    if not header:
        raise InputError("VD3002", "is empty", file=path, fix="download or write it again")
    magic = bytes((0, 0, 8, dimensions))
    if header[:4] != magic:
        raise _refuse(path, f"is not {_KINDS[dimensions]}: it begins with {header[:4].hex()}, not {magic.hex()}")
    if len(header) < 4 + 4 * dimensions:
        raise _refuse(path, "is cut off within its header")
    return struct.unpack(f">{dimensions}I", header[4:])


def _map(path: Path, shape: tuple[int, ...], offset: int) -> NDArray[np.uint8]:
    size, held = math.prod(shape), path.stat().st_size - offset
    if held != size:
        raise _refuse(path, f"its header announces {size:,} bytes, it holds {held:,}")
    if size == 0:  # an empty map is not allowed
        return np.zeros(shape, np.uint8)
    return np.memmap(path, np.uint8, "r", offset, shape)


def _refuse(path: Path, message: str) -> InputError:
    return InputError("VD3105", message, file=path, fix="download it again")


def pack(array: NDArray[np.uint8]) -> bytes:
    """An array as the bytes of a gzip IDX file; the same array gives the same bytes under the same zlib.

    Args:
        array: uint8, [N, H, W] or [N].
    """
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=9, mtime=0) as stream:
        stream.write(header + np.ascontiguousarray(array).tobytes())
    return out.getvalue()


def list_splits(root: Path) -> dict[str, Path]:
    """The image files in a folder, by split: ``train-images-idx3-ubyte.gz`` is the split ``train``."""
    splits: dict[str, Path] = {}
    for path in sorted(root.iterdir(), reverse=True):  # the plain file, if there are both, comes last and counts
        match = _IMAGES.fullmatch(path.name)
        if match and path.is_file():
            splits[match["split"]] = path
    return dict(sorted(splits.items()))


def choose(root: Path, split: str | None) -> Path:
    """The image file of one split; with a single split there is no need to name it.

    Raises:
        UsageError: VD2010, there are several and none was named, or there is none of that name.
    """
    splits = list_splits(root)
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        message = f"has no split {split!r}" if split else f"holds {len(splits)} splits"
        raise UsageError("VD2010", message, file=root, fix=f"choose one of: {', '.join(splits)}")
    return splits[split]


def listing(path: Path) -> Listing:
    """An IDX image file, with the labels and ``classes.txt`` beside it.

    Grey images serve a contract of three channels as well: grey is repeated.

    Raises:
        InputError: see `read`; VD3105, another number of labels than of images; VD3106, a label beyond the classes.
    """
    pixels = read(path, 3)
    if pixels.shape[1] * pixels.shape[2] > images.MAX_PIXELS or (len(pixels) and 0 in pixels.shape):
        raise _refuse(path, f"its images are {pixels.shape[2]:,} x {pixels.shape[1]:,} pixels")
    classes = read_class_names(path.parent)
    label_file, labels = _labels_beside(path), None
    digests = [files.sha256(path)]
    if label_file is not None:
        labels = read(label_file, 1).astype(np.int64)
        digests.append(files.sha256(label_file))
        if len(labels) != len(pixels):
            raise _refuse(label_file, f"holds {len(labels):,} labels for {len(pixels):,} images")
        check_numbers(labels, classes, label_file)
    names = [f"{split_name(path)}/{number:05d}" for number in range(len(pixels))]
    return Listing(
        names=names,
        labels=labels,
        classes=classes,
        digest=digest_rows(digests, labels, classes),
        read=partial(_read_image, pixels),
        identify=lambda index: identify(pixels[index].tobytes()),
    )


def split_name(path: Path) -> str:
    """The split of an image file: what stands before the last ``-images`` of its name."""
    return path.name.rpartition("-images")[0]


def _labels_beside(path: Path) -> Path | None:
    kind = path.name.rpartition("-images")[2].replace("idx3", "idx1").removesuffix(".gz")
    name = f"{split_name(path)}-labels{kind}"
    both = (path.with_name(name), path.with_name(f"{name}.gz"))
    return next((file for file in both if file.is_file()), None)


def _read_image(pixels: NDArray[np.uint8], index: int, contract: InputContract) -> Picture:
    if contract.channels not in (1, 3):
        raise InputError("VD3107", f"images have 1 or 3 channels, the model takes {contract.channels}")
    grey = np.ascontiguousarray(pixels[index])[:, :, None]  # [H, W, 1]
    return Picture(images.resize_and_crop(np.repeat(grey, contract.channels, axis=2), contract))
