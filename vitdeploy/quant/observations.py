"""What calibration leaves: the sketches of all observed tensors, and the one file that holds them.

The file is a ZIP of .npy members, stored and without pickle, as ``numpy.savez`` writes it, with a JSON header as one of
them. It may come from another machine: everything in it is checked, and no size in it is believed before the bytes are there.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.errors import InputError, VitdeployError, first_line
from vitdeploy.quant.histogram import BINS, Histogram
from vitdeploy.quant.sketch import MOST_ROWS, Sketch

SCHEMA = 1
"""Version of the file's layout."""

_HEADER = "header"
_LARGEST_HEADER = 64 << 20
_FIX = "calibrate again"
_DAMAGE = (zipfile.BadZipFile, msgspec.MsgspecError, ValueError, EOFError, OSError, OverflowError, MemoryError, RuntimeError)
"""What reading a damaged archive raises; RuntimeError is an encrypted one's."""


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers of one sketch that are not arrays."""

    name: str
    limit: int
    channels: bool
    images: int
    seen: int
    values: tuple[float, float] | None
    norms: tuple[float, float] | None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    model: str
    contract: str
    source: str
    early_stopped: bool
    settled: int
    notes: tuple[str, ...]
    tensors: tuple[_Tensor, ...]


class Statistics:
    """The result of a calibration.

    Attributes:
        model: SHA-256 of the ONNX file that was observed, in hex.
        contract: The input contract under which images were prepared, as JSON; "" when the caller gave none.
        source: The digest of the data set, as the caller gave it; "" when none.
        keys: uint64 [images], ascending: `sketch.image_key` of every image used.
        sketches: Tensor name to what is kept of it.
        early_stopped: Whether the ranges had settled before the images ended.
        notes: What a reader should know (a smaller batch for want of memory, ...).
        settled: For resuming: how many checks in a row found the ranges settled.
        snapshot: For resuming: float64 [tensors, k], the ranges at the last check; [0, 0] before the first.
    """

    def __init__(self, model: str, contract: str, sketches: Sequence[Sketch], *, source: str = "") -> None:
        self.model = model
        self.contract = contract
        self.source = source
        self.keys: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.sketches = {sketch.tensor: sketch for sketch in sketches}
        self.early_stopped = False
        self.notes: list[str] = []
        self.settled = 0
        self.snapshot: NDArray[np.float64] = np.zeros((0, 0))

    @property
    def images(self) -> int:
        """Images used."""
        return len(self.keys)

    @property
    def digest(self) -> str:
        """SHA-256 over the names of all images used, in hex, whatever their order."""
        return hashlib.sha256(self.keys.astype("<u8").tobytes()).hexdigest()

    def merge(self, other: Statistics) -> None:
        """Add what another calibration of the same model has seen, on other images.

        Raises:
            InputError: VD3109, another model, contract or choice of tensors, or images that both have seen.
        """
        if (self.model, self.contract) != (other.model, other.contract):
            raise InputError("VD3109", "the statistics are of another model or input contract", fix=_FIX)
        if _choice(self) != _choice(other):
            raise InputError("VD3109", "the statistics are of other tensors of the model", fix="calibrate both parts alike")
        if shared := np.intersect1d(self.keys, other.keys).size:
            message = f"both statistics have seen {shared} of the images, which would count twice"
            raise InputError("VD3109", message, fix="merge parts that share no image")
        for name, sketch in self.sketches.items():
            sketch.merge(other.sketches[name])
        self.keys = np.sort(np.concatenate([self.keys, other.keys]))
        self.source = self.source if self.source == other.source else ""
        self.early_stopped = self.early_stopped or other.early_stopped
        self.notes += [note for note in other.notes if note not in self.notes]
        self.settled, self.snapshot = 0, np.zeros((0, 0))

    def save(self, path: Path) -> None:
        """Write everything into one file, atomically; equal statistics give equal bytes.

        Raises:
            UsageError: VD2008, the path can't be written.
            MachineError: VD4002, the disk is full.
        """
        tensors, arrays = [], {"keys": self.keys, "snapshot": self.snapshot}
        for place, sketch in enumerate(self.sketches.values()):
            tensors.append(
                _Tensor(
                    name=sketch.tensor,
                    limit=sketch.limit,
                    channels=sketch.channels,
                    images=sketch.images,
                    seen=sketch.seen,
                    values=_span(sketch.values),
                    norms=_span(sketch.norms),
                )
            )
            arrays |= {f"{place}.{kind}": array for kind, array in _arrays(sketch).items()}
        header = _Header(
            schema=SCHEMA,
            model=self.model,
            contract=self.contract,
            source=self.source,
            early_stopped=self.early_stopped,
            settled=self.settled,
            notes=tuple(self.notes),
            tensors=tuple(tensors),
        )
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **{_HEADER: np.frombuffer(msgspec.json.encode(header), np.uint8)}, **arrays)
        files.write(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what `save` wrote, and check all of it.

        Raises:
            InputError: VD3001, VD3002, VD3005: missing, empty, or another kind of file; VD3109, damaged, with the reason.
        """
        files.expect(path, "zip", what="calibration statistics")
        try:
            with zipfile.ZipFile(path) as archive:
                return _Reader(archive, path.stat().st_size).statistics()
        except VitdeployError:
            raise
        except _DAMAGE as exc:
            raise InputError("VD3109", f"the statistics are damaged: {first_line(exc)}", file=path, fix=_FIX) from exc


def _choice(statistics: Statistics) -> list[tuple[str, int, bool]]:
    return sorted((name, sketch.limit, sketch.channels) for name, sketch in statistics.sketches.items())


def _span(histogram: Histogram) -> tuple[float, float] | None:
    return (histogram.minimum, histogram.maximum) if histogram.minimum <= histogram.maximum else None


def _arrays(sketch: Sketch) -> dict[str, NDArray[Any]]:
    """A sketch's arrays in their one canonical form: histograms by their filled bins, rows by ascending key."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, histogram in (("values", sketch.values), ("norms", sketch.norms)):
        used = np.flatnonzero(histogram.counts)
        arrays |= {f"{name}.bins": used.astype(np.uint16), f"{name}.counts": histogram.counts[used]}
    return arrays | {
        "extremes": sketch.extremes,
        "sums": sketch.sums,
        "rows": sketch.rows,
        "keys": np.sort(sketch.keys),
    }


class _Reader:
    """Reads one archive; every failed check is a ValueError with the reason."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.members = {info.filename: info for info in archive.infolist()}
        if len(self.members) != len(archive.infolist()):
            raise ValueError("a member is there twice")
        for info in self.members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > size:
                raise ValueError(f"the member {info.filename!r} is not stored as it is")

    def statistics(self) -> Statistics:
        """All of it."""
        raw = self.array(_HEADER, np.uint8, (None,), largest=_LARGEST_HEADER)
        header = msgspec.json.decode(raw.tobytes(), type=_Header)
        _check(header.schema == SCHEMA, f"layout {header.schema}, this version of vitdeploy reads {SCHEMA}")
        sketches = [self.sketch(place, tensor) for place, tensor in enumerate(header.tensors)]
        statistics = Statistics(header.model, header.contract, sketches, source=header.source)
        _check(len(statistics.sketches) == len(sketches), "a tensor is there twice")
        statistics.keys = self.array("keys", np.uint64, (None,))
        _check(bool((statistics.keys[1:] > statistics.keys[:-1]).all()), "the images' keys are not ascending")
        _check(all(sketch.images == statistics.images for sketch in sketches), "tensors have seen different numbers of images")
        statistics.snapshot = self.array("snapshot", np.float64, (None, None))
        _check(len(statistics.snapshot) in (0, len(sketches)) and header.settled >= 0, "the state of early stopping is damaged")
        statistics.early_stopped, statistics.settled, statistics.notes = header.early_stopped, header.settled, list(header.notes)
        return statistics

    def sketch(self, place: int, tensor: _Tensor) -> Sketch:
        """One tensor's."""
        _check(
            0 <= tensor.limit <= MOST_ROWS and tensor.images >= 0 and tensor.seen >= 0, f"{tensor.name!r}: an impossible number"
        )
        sketch = Sketch(tensor.name, limit=tensor.limit, channels=tensor.channels)
        sketch.images, sketch.seen = tensor.images, tensor.seen
        sketch.values = self.histogram(f"{place}.values", tensor.values)
        sketch.norms = self.histogram(f"{place}.norms", tensor.norms)
        kept = self.array(f"{place}.rows", np.float32, (None, None))
        rows, width = kept.shape
        keys = self.array(f"{place}.keys", np.uint64, (rows,))
        followed = width if tensor.channels else 0
        sketch.extremes = self.array(f"{place}.extremes", np.float32, (2, followed))
        sketch.sums = self.array(f"{place}.sums", np.int64, (2, 2, followed))
        _check(rows == min(tensor.limit, tensor.seen), f"{tensor.name!r}: {rows} rows are kept")
        _check(sketch.values.count == tensor.seen * width, f"{tensor.name!r}: the counts do not add up")
        _check(sketch.norms.count == (tensor.seen if tensor.channels else 0), f"{tensor.name!r}: the norms do not add up")
        _check(bool((keys[1:] >= keys[:-1]).all()), f"{tensor.name!r}: the rows' keys are not ascending")
        _check(bool(np.isfinite(kept).all() and np.isfinite(sketch.extremes).all()), f"{tensor.name!r}: NaN or infinity")
        sketch.put(kept, keys)
        if followed:
            low, high = sketch.values.minimum, sketch.values.maximum
            agree = float(sketch.channel_minimum.min()) == low and float(sketch.channel_maximum.max()) == high
            _check(agree, f"{tensor.name!r}: channels' extremes and the tensor's differ")
        return sketch

    def histogram(self, prefix: str, span: tuple[float, float] | None) -> Histogram:
        """One histogram."""
        bins = self.array(f"{prefix}.bins", np.uint16, (None,))
        counts = self.array(f"{prefix}.counts", np.int64, bins.shape)
        _check(bool((bins[1:] > bins[:-1]).all()), f"{prefix}: the bins are not ascending")
        _check(bool((counts > 0).all()) and float(counts.sum(dtype=np.float64)) < 2.0**62, f"{prefix}: an impossible count")
        _check((span is None) == (bins.size == 0), f"{prefix}: counts without a range, or a range without counts")
        histogram = Histogram()
        if span is not None:
            _check(bins[-1] < BINS, f"{prefix}: no such bin")
            histogram.counts[bins] = counts
            _check(bool(np.isfinite(span).all()) and histogram.fits(*span), f"{prefix}: the extremes do not fit the counts")
            histogram.widen(*span)
        return histogram

    def array(
        self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...], *, largest: int | None = None
    ) -> NDArray[Any]:
        """A member, if it is an array of this type and shape (None is any length) and as long as its own header says."""
        info = self.members.get(f"{name}.npy")
        if info is None:
            raise ValueError(f"lacks its member {name!r}")
        if largest is not None and info.file_size > largest:
            raise ValueError(f"the member {name!r} is too large")
        raw = self.archive.read(info)
        stream = io.BytesIO(raw)
        readers: dict[tuple[int, int], Callable[[io.BytesIO], Any]] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"the member {name!r} is of an unknown version")
        sizes, fortran, kind = readers[version](stream)
        fits = len(sizes) == len(shape) and all(want in (None, size) for want, size in zip(shape, sizes, strict=True))
        size = int(np.prod([1, *sizes], dtype=object)) * np.dtype(dtype).itemsize
        if kind != np.dtype(dtype) or not fits or (fortran and len(sizes) > 1) or size != len(raw) - stream.tell():
            raise ValueError(f"the member {name!r} is {kind} {list(sizes)}")
        return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(sizes).copy()


def _check(good: bool, reason: str) -> None:
    if not good:
        raise ValueError(reason)
