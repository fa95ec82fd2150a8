"""Labelled images as a stream of batches: same order, same sample, bounded memory, whatever holds them.

Threads decode ahead while the caller computes (Pillow releases the interpreter lock in its decoders), at most two
images a thread beyond the batch. The order never depends on them. A sample of a larger set is drawn by the hash of each
name: the same on every machine and under every version of NumPy and Python, and hardly changed when the set grows.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import kinds
from vitdeploy.data import arrays, idx, shards, sources, stacks
from vitdeploy.data.classes import align
from vitdeploy.data.images import Picture, Pixels, Values
from vitdeploy.data.sources import Listing
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract

_BAD_IMAGE = frozenset(("VD3001", "VD3102", "VD3103", "VD3108"))  # about one image; other codes are about the job
_NAMED = 5
Key = TypeVar("Key")


class LoadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a data set is read.

    Attributes:
        batch_size: Images a batch; the last one may be smaller.
        limit: Take a sample of this many images; None takes all.
        seed: Which sample.
        max_bad: How many unreadable images are passed over (and counted) before it is an error.
        workers: Threads that decode ahead; 0 decodes in the caller's thread.
    """

    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    max_bad: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError("VD2003", f"batch_size is {self.batch_size}, limit is {self.limit}; both must be positive")
        if self.max_bad < 0 or not 0 <= self.workers <= 64:
            message = f"max_bad is {self.max_bad} (not negative), workers is {self.workers} (0 to 64)"
            raise UsageError("VD2003", message)


class Sample(NamedTuple):
    """One image of a data set.

    Attributes:
        name: Its name within the data set.
        label: Its class number, or None.
        read: Gives its pixels under a contract, uint8 [height, width, channels], or float32 for an array of values.
    """

    name: str
    label: int | None
    read: Callable[[InputContract], Pixels | Values]


class Batch(NamedTuple):
    """Some images, ready for `vitdeploy.data.images.to_tensor`.

    Attributes:
        pixels: uint8 [n, height, width, channels], n >= 1, owned by the caller; float32 for arrays of values.
        labels: int64 [n] class numbers of the data set, or None.
        names: n names.
    """

    pixels: Pixels | Values
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]


class Counts(msgspec.Struct, kw_only=True):
    """What became of a data set's images; true up to the last batch that was taken.

    Attributes:
        listed: Images in the data set.
        used: Images given out in batches.
        bad: Images passed over because they can't be read.
        turned: Images given out whose orientation tag says that they were not stored upright.
        examples: The first five bad ones, each with its reason.
    """

    listed: int
    used: int = 0
    bad: int = 0
    turned: int = 0
    examples: list[str] = msgspec.field(default_factory=list)


def explain_turned(count: int) -> str:
    """What a reader should know of photos whose orientation tag the input contract ignores."""
    return f"{count:,} images are not upright: their EXIF orientation counts only after export with --exif apply."


class Batches(Iterator[Batch]):
    """The batches of one pass, with `counts`. Closing, or dropping, stops the threads."""

    def __init__(self, counts: Counts, stream: Iterator[Batch], close: Callable[[], None]) -> None:
        """Made by `Dataset.batches`."""
        self.counts = counts
        self._stream = stream
        self._close = close

    def __next__(self) -> Batch:
        """The next batch."""
        return next(self._stream)

    def close(self) -> None:
        """Stop reading; images being decoded are finished, waiting ones dropped."""
        self._close()

    def __enter__(self) -> Batches:
        """Itself."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close."""
        self.close()


class Dataset:
    """A set of images, with or without labels.

    Attributes:
        path: Where it lies.
        name: Short name for reports.
        listing: Names, labels and the reader.
    """

    def __init__(self, path: Path, name: str, listing: Listing) -> None:
        """Made by `open_dataset`, or from a `Listing` of one's own."""
        self.path = path
        self.name = name
        self.listing = listing

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names by number, or None."""
        return self.listing.classes

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class numbers, int64 [len(self)], or None."""
        return self.listing.labels

    @property
    def digest(self) -> str:
        """SHA-256, in hex, that changes when the data do.

        Manifests and IDX files are hashed by content; image files and shards by name, size and time of change. Labels
        and the order of the class names count, wherever they come from.
        """
        return self.listing.digest

    def __len__(self) -> int:
        """Number of images found."""
        return len(self.listing.names)

    def __getitem__(self, index: int) -> Sample:
        """Image number ``index``."""
        label = None if self.labels is None else int(self.labels[index])
        return Sample(self.listing.names[index], label, lambda contract: self.listing.read(index, contract).pixels)

    def chosen(self, config: LoadConfig) -> Sequence[int]:
        """Numbers of the images that a pass reads, ascending."""
        if config.limit is None or config.limit >= len(self):
            return range(len(self))

        def draw(index: int) -> bytes:
            name = f"{config.seed}/{self.listing.names[index]}"
            return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()

        return sorted(heapq.nsmallest(config.limit, range(len(self)), key=draw))

    def batches(self, contract: InputContract, config: LoadConfig | None = None) -> Batches:
        """One pass over the images.

        Args:
            contract: How images become pixels.
            config: How many, in what batches, by how many threads.

        Returns:
            An iterator of `Batch`; its ``counts`` tell what was listed, used and bad.

        Raises:
            InputError: while iterating: VD3101, no image is usable; VD3104, more than `max_bad` can't be read; VD3107,
                the contract's channels fit no image; VD3111, an image changed since it was listed.
        """
        config = config or LoadConfig()
        counts = Counts(listed=len(self))
        stream = _stream(self, contract, config, counts)
        return Batches(counts, stream, stream.close)

    def class_map(self, labels: Sequence[str], outputs: int) -> NDArray[np.int64]:
        """For each class number of this data set, the model's: ``dataset.class_map(...)[batch.labels]``.

        By name when both have names, else by number (a folder's own, if all have one); see `vitdeploy.data.classes.align`.

        Args:
            labels: The model's class names in output order, or nothing.
            outputs: Number of the model's classes.

        Returns:
            int64 [number of classes in the data set].

        Raises:
            InputError: VD3106, the data have no labels, or a class that the model does not know, or knows twice.
        """
        if self.labels is None:
            fix = "give a folder per class, a manifest with labels, or labels beside the images"
            raise InputError("VD3106", "the images have no labels", file=self.path, fix=fix)
        used = int(self.labels.max()) + 1 if len(self) else 0
        return align(self.classes or used, labels, outputs, self.path)


def _stream(dataset: Dataset, contract: InputContract, config: LoadConfig, counts: Counts) -> Generator[Batch, None, None]:
    """The pass itself: results in order, bad images counted, full batches given out."""
    chosen = dataset.chosen(config)
    size = min(config.batch_size, len(chosen))
    pixels: Pixels | Values
    taken: list[int] = []
    jobs = ((index, partial(dataset.listing.read, index)) for index in chosen)
    results = decode_ahead(jobs, contract, config.workers)
    try:
        for index, result in results:
            if isinstance(result, InputError):
                if result.code == "VD3111":  # what is measured would be of neither the old images nor the new
                    raise result
                _count_bad(dataset, index, result, config, counts)
                continue
            if not taken:
                pixels = np.empty((size, contract.height, contract.width, contract.channels), result.pixels.dtype)
            if result.pixels.dtype != pixels.dtype:
                message = f"holds images of {pixels.dtype} and of {result.pixels.dtype}"
                raise InputError("VD3105", message, file=dataset.path, fix="save all arrays with one type")
            pixels[len(taken)] = result.pixels
            counts.turned += result.turned
            taken.append(index)
            if len(taken) == size:
                counts.used += len(taken)
                yield _batch(dataset, pixels, taken)
                taken = []
        if taken:
            counts.used += len(taken)
            yield _batch(dataset, pixels[: len(taken)], taken)
    finally:
        results.close()
    if not counts.used:
        message = f"none of {counts.bad} images can be read, the first is {counts.examples[0]}"
        raise InputError("VD3101", message, file=dataset.path, fix="give images in JPEG, PNG, WebP or BMP, or arrays")


def _batch(dataset: Dataset, pixels: Pixels | Values, taken: list[int]) -> Batch:
    labels = None if dataset.labels is None else dataset.labels[taken]
    return Batch(pixels, labels, tuple(dataset.listing.names[index] for index in taken))


def _count_bad(dataset: Dataset, index: int, error: InputError, config: LoadConfig, counts: Counts) -> None:
    counts.bad += 1
    if len(counts.examples) < _NAMED:
        counts.examples.append(f"{dataset.listing.names[index]}: {error.message}")
    if counts.bad > config.max_bad:
        plural = "image" if counts.bad == 1 else "images"
        message = f"{counts.bad} {plural} can't be read, {config.max_bad} allowed; the first is {counts.examples[0]}"
        fix = f"replace or remove it, or pass --max-bad {counts.bad}"
        raise InputError("VD3104", message, file=dataset.path, fix=fix) from error


def decode_ahead(
    jobs: Iterable[tuple[Key, Callable[[InputContract], Picture]]], contract: InputContract, workers: int
) -> Generator[tuple[Key, Picture | InputError], None, None]:
    """Every image's pixels in order, decoded by threads while the caller computes; an unreadable image is its error.

    Args:
        jobs: What tells an image, and what reads it. Taken as they are needed, two a thread ahead.
        contract: How images become pixels.
        workers: Threads; 0 decodes in the caller's.
    """
    if workers == 0:
        for key, read in jobs:
            yield key, _read_or_error(read, contract)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vitdeploy-images")
    ahead: deque[tuple[Key, Future[Picture | InputError]]] = deque()
    waiting = iter(jobs)
    try:
        for key, read in islice(waiting, 2 * workers):
            ahead.append((key, pool.submit(_read_or_error, read, contract)))
        while ahead:
            key, future = ahead.popleft()
            result = future.result()
            for following, read in islice(waiting, 1):
                ahead.append((following, pool.submit(_read_or_error, read, contract)))
            yield key, result
    finally:
        pool.shutdown(cancel_futures=True)


def _read_or_error(read: Callable[[InputContract], Picture], contract: InputContract) -> Picture | InputError:
    try:
        return read(contract)
    except InputError as exc:
        if exc.code not in _BAD_IMAGE:
            raise
        return exc


def open_dataset(path: Path, *, split: str | None = None) -> Dataset:
    """A data set, of the kind that ``path`` turns out to be.

    - a folder with a subfolder per class, or a flat folder of images without labels;
    - a ``.csv`` or ``.jsonl`` manifest with ``path`` and, if there are labels, ``label``; or a ``.txt`` file of paths;
    - a ``.tar`` shard in WebDataset's layout, or a folder of them;
    - a ``.npy`` or ``.npz`` file of many images;
    - an IDX image file (``*-images-idx3-ubyte``, plain or ``.gz``), or a folder of them.

    Args:
        path: The file or folder.
        split: Which one, where a folder holds several (``train``, ``val``; ``t10k``).

    Raises:
        InputError: VD3001, it does not exist; VD3002, it is empty; VD3005, it is none of these; VD3101, it holds no
            images; VD3105, its own index is damaged; VD3106, its labels are impossible.
        TrustError: VD7001, it names something outside of itself.
        UsageError: VD2010, a split is to be chosen, or there is none to choose.
    """
    if not path.exists():
        raise InputError("VD3001", "does not exist", file=path, fix="check the path")
    try:
        listing, name = _folder(path, split) if path.is_dir() else (_file(path, split), path.name)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    if not len(listing.names):
        fix = "give a folder of images, a manifest, tar shards or IDX files"
        raise InputError("VD3101", "holds no images", file=path, fix=fix)
    return Dataset(path, name, listing)


def _folder(path: Path, split: str | None) -> tuple[Listing, str]:
    name = path.resolve().name
    if idx.list_splits(path):
        images = idx.choose(path, split)
        return idx.listing(images), f"{name}/{idx.split_name(images)}"
    if tars := shards.find_shards(path):
        _refuse_split(path, split)
        return shards.list_samples(tars), name
    place = sources.find_split(path, split)
    return sources.list_folder(place), name if place == path else f"{name}/{place.name}"


def _file(path: Path, split: str | None) -> Listing:
    _refuse_split(path, split)
    suffix = path.suffix.lower()
    if not path.is_file() or path.stat().st_size == 0:
        raise InputError("VD3002", "is empty, or not a regular file", file=path, fix="give another one")
    if suffix in sources.MANIFESTS:
        return sources.read_manifest(path)
    if suffix in arrays.SUFFIXES:
        return stacks.list_arrays(path)
    if suffix == ".tar":
        return shards.list_samples([path])
    if _is_idx(path):
        return idx.listing(path)
    what = "a folder of images, a .csv or .jsonl manifest, a .tar shard, a .npy or .npz of many images, "
    what += "or an IDX image file (*-images-idx3-ubyte)"
    raise InputError("VD3005", f"is no data set: expected {what}", file=path)


def is_source(path: Path) -> bool:
    """Whether a file holds or lists several images, by its name and first bytes."""
    return path.is_file() and (path.suffix.lower() in (*sources.MANIFESTS, ".tar") or _is_idx(path))


def _is_idx(path: Path) -> bool:
    return "-images" in path.name and path.stat().st_size > 0 and kinds.sniff(path) in ("gzip", "unknown")


def _refuse_split(path: Path, split: str | None) -> None:
    if split is not None:
        raise UsageError("VD2010", f"has no splits, so no {split!r}", file=path, fix="leave the split out")
