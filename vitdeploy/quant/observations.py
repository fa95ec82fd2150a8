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

from vitdeploy import files, kinds
from vitdeploy.errors import InputError, VitdeployError, first_line
from vitdeploy.quant.sketch import MOST_ROWS, Sketch

SCHEMA = 2
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
    images: int
    seen: int


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

    def save(self, path: Path) -> None:
        """Write everything into one file, atomically; equal statistics give equal bytes.

        Raises:
            UsageError: VD2008, the path can't be written.
            MachineError: VD4002, the disk is full.
        """
        tensors, arrays = [], {"keys": self.keys, "snapshot": self.snapshot}
        for place, sketch in enumerate(self.sketches.values()):
            tensors.append(_Tensor(name=sketch.tensor, limit=sketch.limit, images=sketch.images, seen=sketch.seen))
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
        kinds.expect(path, "zip", what="calibration statistics")
        try:
            with zipfile.ZipFile(path) as archive:
                return _Reader(archive, path.stat().st_size).statistics()
        except VitdeployError:
            raise
        except _DAMAGE as exc:
            raise InputError("VD3109", f"the statistics are damaged: {first_line(exc)}", file=path, fix=_FIX) from exc


def _arrays(sketch: Sketch) -> dict[str, NDArray[Any]]:
    """A sketch's arrays in their one canonical form: rows by ascending key."""
    return {"extremes": sketch.extremes, "sums": sketch.sums, "rows": sketch.rows, "keys": np.sort(sketch.keys)}


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
        possible = 0 <= tensor.limit <= MOST_ROWS and 0 <= tensor.images <= tensor.seen
        _check(possible, f"{tensor.name!r}: an impossible number")
        sketch = Sketch(tensor.name, limit=tensor.limit)
        sketch.images, sketch.seen = tensor.images, tensor.seen
        kept = self.array(f"{place}.rows", np.float32, (None, None))
        rows, width = kept.shape
        keys = self.array(f"{place}.keys", np.uint64, (rows,))
        sketch.extremes = self.array(f"{place}.extremes", np.float32, (2, width))
        sketch.sums = self.array(f"{place}.sums", np.int64, (2, width))
        _check(rows == min(tensor.limit, tensor.seen), f"{tensor.name!r}: {rows} rows are kept")
        _check(bool((keys[1:] >= keys[:-1]).all()), f"{tensor.name!r}: the rows' keys are not ascending")
        _check(bool(np.isfinite(kept).all() and np.isfinite(sketch.extremes).all()), f"{tensor.name!r}: NaN or infinity")
        within = (sketch.extremes[0] <= kept).all() and (kept <= sketch.extremes[1]).all()
        _check(bool(within and (sketch.extremes[0] <= sketch.extremes[1]).all()), f"{tensor.name!r}: extremes that are none")
        sketch.put(kept, keys)
        low, high = sketch.extremes.astype(np.float64)
        slack = 1e-4 * np.abs(sketch.extremes).max(initial=0.0)  # sums of one image are float32
        mean = sketch.channel_mean
        fits = bool(((low - slack <= mean) & (mean <= high + slack)).all()) or not sketch.seen
        _check(fits and sketch.seen % max(sketch.images, 1) == 0, f"{tensor.name!r}: sums that its values can't have")
        return sketch

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
