"""Images as people name them, one after the other: files, folders, patterns, manifests, shards, or what is in memory already."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.data import arrays, idx, images, shards, sources
from vitdeploy.data.dataset import is_source, open_dataset
from vitdeploy.data.images import Picture, Readable
from vitdeploy.data.sources import Listing
from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract

ImageLike = Readable | NDArray[Any]
"""An image as people have it: a file, a file's contents, one of Pillow, or an array as `arrays.prepare` takes it."""
Images = ImageLike | Iterable[ImageLike]
"""One image, or a source of several (a folder, a pattern, a manifest, shards, an array [N, ...]), or any number of these."""
Job = tuple[str, Callable[[InputContract], Picture]]
"""An image's name, and what reads it."""


class Part(NamedTuple):
    """The images that one name stands for.

    Attributes:
        size: How many.
        name: Gives the name of image number i.
        read: Gives its pixels, as `Listing.read` does.
    """

    size: int
    name: Callable[[int], str]
    read: Callable[[int, InputContract], Picture]

    def list_jobs(self) -> Iterator[Job]:
        """Every image, made as it is asked for."""
        for index in range(self.size):
            yield self.name(index), partial(self.read, index)


def split_images(given: Images) -> Iterable[ImageLike]:
    """The images, or their sources, one by one. A single one is not taken for a row of letters, bytes or pixels."""
    if isinstance(given, np.ndarray):
        return list(given) if given.ndim == 4 else [given]
    return [given] if isinstance(given, str | PathLike | bytes | Image.Image) else given


def open_part(given: ImageLike, number: int) -> Part:
    """What one image, or one source of images, stands for.

    Args:
        given: An image, or a path: of an image, of anything `open_dataset` opens (its labels are not looked at, and a folder may
            mix images and folders), or a pattern with ``*``, ``?`` or ``[``.
        number: Its place among those that were given, for the name of an image in memory.

    Raises:
        InputError: VD3001, VD3101, nothing is there; and what `open_dataset` raises.
        TrustError: VD7001, a manifest or shard leads out of its folder.
    """
    name = f"image {number}"
    if isinstance(given, np.ndarray):
        return Part(1, lambda _: name, partial(_prepare, given, name))
    if isinstance(given, Image.Image):
        return Part(1, lambda _: name, lambda _, contract: images.read(given, contract, name=name))
    if isinstance(given, bytes):
        return Part(1, lambda _: name, lambda _, contract: arrays.read(given, contract, name=name))
    path = Path(given)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists() and glob.has_magic(str(given)):
        return _expand(str(given))
    if is_source(path):
        return _name_below(path.parent, open_dataset(path).listing)
    return Part(1, lambda _: str(given), lambda _, contract: arrays.read(path, contract))


def _prepare(array: NDArray[Any], name: str, _: int, contract: InputContract) -> Picture:
    try:
        return arrays.prepare(array, contract)
    except InputError as exc:
        exc.file = name
        raise


def _open_folder(path: Path) -> Part:
    """Every image below a folder, at any depth; or what its shards or IDX files hold."""
    if idx.list_splits(path) or shards.find_shards(path):
        return _name_below(path, open_dataset(path).listing)
    names = sources.list_images(path)
    if not names:
        raise InputError("VD3101", "holds no images", file=path, fix="give a folder of JPEG, PNG, WebP or BMP files")
    return _name_files(names, path)


def _expand(pattern: str) -> Part:
    matches = glob.iglob(pattern, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    names = sorted(name for name in matches if Path(name).is_file())
    if not names:
        raise InputError("VD3001", "matches no file", file=pattern, fix="check the pattern, and quote it for the shell")
    return _name_files(names, Path())


def _name_files(names: Sequence[str], folder: Path) -> Part:
    return Part(
        len(names),
        lambda index: str(folder / names[index]),
        lambda index, contract: arrays.read(folder / names[index], contract),
    )


def _name_below(path: Path, listing: Listing) -> Part:
    return Part(len(listing.names), lambda index: str(path / listing.names[index]), listing.read)
