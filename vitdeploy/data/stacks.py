"""Many images in one file of arrays, and arrays that a program gives: as data sets."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.data.arrays import prepare
from vitdeploy.data.identity import Stamp, identify, take_stamp
from vitdeploy.data.images import Picture
from vitdeploy.data.sources import Listing, digest_rows, number_labels
from vitdeploy.errors import InputError, first_line
from vitdeploy.spec import InputContract

MANIFEST = "given.jsonl"
"""What `save` writes beside the arrays."""

_MAX_FILE = 16 << 30  # bytes


def list_arrays(path: Path) -> Listing:
    """Many images in one file: a .npy of [N, H, W, C], [N, C, H, W] or [N, H, W]; or a .npz of that and labels.

    In a .npz the images are the array of three or four dimensions; labels, if there are any, that of one dimension: class numbers
    or names.

    Raises:
        InputError: VD3105, it is damaged or holds no such arrays; VD3106, impossible labels.
    """
    if path.stat().st_size > _MAX_FILE:
        raise InputError("VD3105", f"is larger than {_MAX_FILE >> 30} GiB", file=path, fix="split it")
    stamp = take_stamp(path.name, path)
    try:
        arrays = _load(path)
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile) as exc:
        raise InputError("VD3105", f"is no file of arrays: {first_line(exc)}", file=path, fix="write it with numpy.save") from exc
    pictures = [array for array in arrays.values() if array.ndim in (3, 4)]
    labels = [array for array in arrays.values() if array.ndim == 1]
    if len(pictures) != 1 or len(labels) > 1:
        message = f"holds {len(pictures)} arrays of images and {len(labels)} of labels"
        fix = "give one array [N, H, W, C] or [N, C, H, W], and at most one of labels [N]"
        raise InputError("VD3105", message, file=path, fix=fix)
    if labels and len(labels[0]) != len(pictures[0]):
        message = f"holds {len(labels[0]):,} labels for {len(pictures[0]):,} images"
        raise InputError("VD3105", message, file=path, fix="write it again")
    given: list[int | str | None] = labels[0].tolist() if labels else [None] * len(pictures[0])
    numbers, classes = number_labels(given, None, path)
    names = [f"{path.stem}/{index:05d}" for index in range(len(pictures[0]))]
    digest = digest_rows([files.sha256(path)], numbers, classes)
    return Listing(
        names=names,
        labels=numbers,
        classes=classes,
        digest=digest,
        read=partial(_read_row, stamp, pictures[0]),
        identify=partial(_identify_row, stamp, pictures[0]),
    )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name; those of a .npy lie on disk until they are read."""
    if not zipfile.is_zipfile(path):
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_row(stamp: Stamp, pictures: NDArray[Any], index: int, contract: InputContract) -> Picture:
    with stamp.unchanged():  # a .npy is read from the disk image by image
        return prepare(np.asarray(pictures[index]), contract)


def _identify_row(stamp: Stamp, pictures: NDArray[Any], index: int) -> bytes:
    with stamp.unchanged():
        return identify(np.asarray(pictures[index]).tobytes())


def save(given: Iterable[Any], folder: Path) -> Path:
    """Arrays from a program, written so that any process can read them.

    Args:
        given: Arrays of one image each, or pairs of one and its label (a class number or name, or None).
        folder: An empty folder.

    Returns:
        The manifest: what `open_dataset` takes. Equal arrays give equal digests.

    Raises:
        InputError: VD3101, there are none; VD3105, something is no array.
    """
    lines = []
    for number, item in enumerate(given):
        image, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        array = np.asarray(image)
        if array.ndim not in (2, 3) or array.dtype.kind not in "fiu":
            message = f"item {number} is {type(image).__name__} of shape {list(array.shape)} and type {array.dtype}, no image"
            raise InputError("VD3105", message, fix="give arrays [H, W, C] or [C, H, W] of numbers, or pairs (array, label)")
        path = folder / f"{number:06d}.npy"
        np.save(path, array, allow_pickle=False)
        os.utime(path, (0, 0))  # the digest is of the contents, not of when they were written
        label = label.item() if isinstance(label, np.generic) else label
        lines.append(json.dumps({"path": path.name, "label": label, "sha256": files.sha256(path)}))
    if not lines:
        raise InputError("VD3101", "no arrays were given", fix="give at least one image")
    manifest = folder / MANIFEST
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
