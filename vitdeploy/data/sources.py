"""Where labelled images lie: folders and manifests here, tar in `shards`, IDX in `idx`; each becomes a `Listing`.

A listing names every image and reads one when asked, so that a million images cost their names and labels, not their
pixels. Nothing is ever unpacked to disk. Records that contradict themselves are refused whole: a wrong label is worse
than none.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.data import arrays
from vitdeploy.data.columns import Columns
from vitdeploy.data.identity import Stamp, identify_file, take_stamp
from vitdeploy.data.images import Picture
from vitdeploy.errors import InputError, UsageError, first_line
from vitdeploy.spec import InputContract

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif",
    ".avif", ".jp2", *arrays.SUFFIXES,
))
"""Names that claim to be an image, or an array of one. Those that can't be decoded count as bad images; they are not passed over.

A file without a suffix is taken for an image too; every other suffix is passed over.
"""

_OTHER_NAMES = frozenset((
    "README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS", "MANIFEST", "SHA256SUMS", "MD5SUMS",
    "CHANGELOG", "CITATION", "CODEOWNERS", "CONTRIBUTORS", "PATENTS", "VERSION", "Makefile", "Dockerfile",
    "Containerfile", "Jenkinsfile", "Vagrantfile", "Procfile", "Pipfile", "Gemfile", "justfile",
))
_SPLITS = frozenset((
    "train", "val", "valid", "validation", "test",
))
# fmt: on
_MAX_MANIFEST = 1 << 30  # bytes
_MAX_VISITS = 1000  # of one folder, through links

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt")
"""Endings of files that list images."""

MAX_DIGITS = 9
"""Most digits of a class number."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The images of a data source, by number.

    Attributes:
        names: One name per image, unique, relative to the source, ``/`` between folders.
        labels: int64 [N], class numbers, or None when the source has no labels.
        classes: Class names by number, or None when the source has only numbers.
        digest: SHA-256, in hex, that changes when the source does.
        read: Gives image number i as `arrays.read` does.
        identify: Gives 8 bytes that tell image number i from any other, by what is stored of it.
        columns: What a manifest says beside path and label: name to one value an image.
    """

    names: Sequence[str]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    digest: str
    read: Callable[[int, InputContract], Picture]
    identify: Callable[[int], bytes]
    columns: Mapping[str, tuple[str, ...]] = {}


def list_folder(root: Path) -> Listing:
    """A folder per class, nested as deep as one likes, or a flat folder of images without labels.

    Classes are the subfolders in the order of their names, an empty one included, as in torchvision's ImageFolder.

    Raises:
        InputError: VD3001, unreadable; VD3105, images beside the class folders, or links that lead to the same folder
            without end.
    """
    stamps = sorted(_walk(root), key=lambda stamp: stamp.row)
    names = [stamp.name for stamp in stamps]
    tops = sorted({entry.name for entry in root.iterdir() if entry.is_dir() and is_visible(entry.name)})
    beside = [name for name in names if "/" not in name]
    if len(beside) == len(names):
        labels, classes = None, None
    elif beside:
        message = f"holds images beside its class folders ({beside[0]!r} and {len(beside) - 1} more)"
        raise InputError("VD3105", message, file=root, fix="move them into a class folder, or away")
    else:
        number = {name: index for index, name in enumerate(tops)}
        labels = np.array([number[name.split("/", 1)[0]] for name in names], np.int64)
        classes = tuple(tops)
    digest = digest_rows((stamp.row for stamp in stamps), labels, classes)
    return Listing(
        names=names,
        labels=labels,
        classes=classes,
        digest=digest,
        read=partial(_read_file, stamps),
        identify=partial(identify_file, stamps),
    )


def list_images(root: Path) -> list[str]:
    """Every image below a folder, at any depth, sorted: names relative to it, whatever the folders mean.

    Raises:
        InputError: As `list_folder`.
    """
    return sorted(stamp.name for stamp in _walk(root))


def find_split(root: Path, split: str | None) -> Path:
    """The folder to read when ``root`` holds splits (train, val, test) instead of classes.

    Raises:
        UsageError: VD2010, there are splits and none was chosen, or one was chosen that does not exist.
    """
    tops = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and is_visible(entry.name))
    if split is None and not (tops and _SPLITS.issuperset(tops)):
        return root
    if split not in tops:
        message = f"has no split {split!r}" if split else "holds splits, not classes"
        fix = f"choose one of: {', '.join(tops)}" if tops else "leave the split out"
        raise UsageError("VD2010", message, file=root, fix=fix)
    return root / split


def is_visible(name: str) -> bool:
    """Whether a file or folder is meant to be seen: not hidden, and not what macOS leaves in archives."""
    return not name.startswith(".") and name != "__MACOSX"


def _walk(root: Path) -> Iterable[Stamp]:
    """Every file below ``root`` that may be an image.

    Links are followed, but for those that lead back to a folder on the way to them. A folder that links reach by several
    ways is read by each: two class folders may be the same.
    """
    above: dict[Path, frozenset[tuple[int, int]]] = {}  # each folder's own identity and those on the way to it
    visits: Counter[tuple[int, int]] = Counter()

    def refuse(exc: OSError) -> None:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=exc.filename) from exc

    for place, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(place)
        status = here.stat()
        identity = (status.st_dev, status.st_ino)
        way = above.get(here.parent, frozenset())
        if identity in way:  # a link back up
            folders.clear()
            continue
        above[here] = way | {identity}
        visits[identity] += 1
        if visits[identity] > _MAX_VISITS:  # links to folders of links: their number grows exponentially
            message = f"is reached by more than {_MAX_VISITS:,} ways through links"
            raise InputError("VD3105", message, file=place, fix="remove links between the folders")
        folders[:] = sorted(name for name in folders if is_visible(name))
        for name in names:
            if is_visible(name) and may_be_image(name):
                path = here / name
                yield take_stamp(path.relative_to(root).as_posix(), path)


def may_be_image(name: str) -> bool:
    """Whether a name has an image's suffix; or none, and isn't known for something else."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES or (not suffix and name not in _OTHER_NAMES)


def digest_rows(rows: Iterable[str], labels: NDArray[np.int64] | None, classes: Sequence[str] | None) -> str:
    """SHA-256, in hex, over what an accuracy depends on.

    Args:
        rows: What tells the images, such as those of stamps.
        labels: Class numbers, or None.
        classes: Class names by number, or None; their order counts.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")  # JSON: no name, whatever it holds, passes for two rows
    digest.update(json.dumps(None if classes is None else list(classes)).encode() + b"\n")
    digest.update(b"no labels" if labels is None else b"labels:" + labels.astype("<i8").tobytes())
    return digest.hexdigest()


def _read_file(stamps: Sequence[Stamp], index: int, contract: InputContract) -> Picture:
    with stamps[index].unchanged():
        return arrays.read(stamps[index].path, contract)


class _Labelled(msgspec.Struct):
    """What a line of JSONL must say, and may."""

    path: str
    label: int | str | None = None


class _Line(NamedTuple):
    """One image of a manifest, and what else its line says."""

    path: str
    label: int | str | None
    more: dict[str, Any]


def read_manifest(path: Path) -> Listing:
    """A CSV with a header ``path,label``, JSONL with ``{"path": ..., "label": ...}`` a line; or a text file of paths.

    Paths are relative to the manifest and stay inside its folder. Labels are numbers, or names: those of
    ``classes.txt`` beside the manifest, else the names found, sorted. All lines have a label, or none has.

    Raises:
        InputError: VD3105, a line is malformed, names a missing file or contradicts the others; VD3106, an unknown
            class.
        TrustError: VD7001, a path leads out of the folder.
    """
    if path.stat().st_size > _MAX_MANIFEST:
        raise InputError("VD3105", "is larger than 1 GiB", file=path, fix="split it")
    read = {".csv": _csv_lines, ".tsv": _csv_lines, ".txt": _text_lines}.get(path.suffix.lower(), _json_lines)
    names, stamps, given, columns = [], [], [], Columns()
    seen: dict[str, int] = {}
    for number, line in read(path):
        if line.path in seen:
            raise _bad_line(path, number, f"names {line.path!r} again (first in line {seen[line.path]})")
        seen[line.path] = number
        file = files.inside(path.parent, line.path)
        if not file.is_file():
            raise _bad_line(path, number, f"names {line.path!r}, which does not exist")
        names.append(line.path)
        stamps.append(take_stamp(line.path, file))
        given.append(line.label)
        columns.add(line.more)
    labels, classes = number_labels(given, read_class_names(path.parent), path)
    rows = [files.sha256(path), *(stamp.row for stamp in stamps)]
    return Listing(
        names=names,
        labels=labels,
        classes=classes,
        digest=digest_rows(rows, labels, classes),
        read=partial(_read_file, stamps),
        identify=partial(identify_file, stamps),
        columns=columns.finish(),
    )


def _csv_lines(path: Path) -> Iterable[tuple[int, _Line]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) != len(header):
                raise _bad_line(path, 1, f"has a column twice: {', '.join(header)}")
            if "path" not in header:
                raise _bad_line(path, 1, "is no header with a column 'path'")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise _bad_line(path, reader.line_num, f"has {len(row)} columns, the header {len(header)}")
                record = dict(zip(header, row, strict=True))
                label = record.pop("label", "").strip() or None
                yield reader.line_num, _Line(record.pop("path"), label, dict(record))
    except csv.Error as exc:
        raise _bad_line(path, reader.line_num, first_line(exc)) from exc
    except UnicodeDecodeError as exc:
        raise InputError("VD3105", "is not UTF-8 text", file=path, fix="save it as UTF-8") from exc


def _text_lines(path: Path) -> Iterable[tuple[int, _Line]]:
    """Paths alone, as ``find`` and ``ls`` write them."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from ((number, _Line(line.strip(), None, {})) for number, line in enumerate(stream, 1) if line.strip())
    except UnicodeDecodeError as exc:
        raise InputError("VD3105", "is not UTF-8 text", file=path, fix="save it as UTF-8") from exc


def _json_lines(path: Path) -> Iterable[tuple[int, _Line]]:
    with files.open_regular(path) as stream:
        for number, raw in enumerate(stream, 1):
            if raw.strip():
                try:
                    path_and_label = msgspec.json.decode(raw, type=_Labelled)
                    table = msgspec.json.decode(raw, type=dict[str, Any])
                    more = {key: value for key, value in table.items() if key not in ("path", "label")}
                    yield number, _Line(path_and_label.path, path_and_label.label, more)
                except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                    raise _bad_line(path, number, first_line(exc)) from exc


def _bad_line(path: Path, number: int, message: str) -> InputError:
    return InputError("VD3105", f"line {number} {message}", file=path, fix="correct the manifest")


def read_class_names(place: Path) -> tuple[str, ...] | None:
    """The names in ``classes.txt``, one a line, or None without such a file.

    Raises:
        InputError: VD3105, not text, or a name stands there twice.
    """
    path = place / "classes.txt"
    if not path.is_file():
        return None
    try:
        names = tuple(files.read_text(path, strict=True).split("\n"))
    except UnicodeDecodeError as exc:
        raise InputError("VD3105", "is not UTF-8 text", file=path, fix="save it as UTF-8") from exc
    names = tuple(name.strip() for name in names)
    while names and not names[-1]:
        names = names[:-1]
    if len(set(names)) != len(names) or "" in names:
        raise InputError("VD3105", "has an empty line or a name twice", file=path, fix="give one name a line")
    return names


def number_labels(
    given: Sequence[int | str | None], known: tuple[str, ...] | None, file: Path
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels as written (numbers, names, nothing) as class numbers, with the classes' names where there are any.

    Raises:
        InputError: VD3105, some have no label, or numbers and names are mixed; VD3106, an unknown class or an impossible
            number.
    """
    if all(label is None for label in given):
        return None, known
    if None in given:
        missing = sum(label is None for label in given)
        message = f"{missing} of {len(given)} images have no label"
        raise InputError("VD3105", message, file=file, fix="label all or none")
    large = next((label for label in given if isinstance(label, int) and not is_short(label)), None)
    if large is not None:
        shown = str(large) if abs(large) < 1 << 64 else "of more than 64 bits"
        message = f"label {shown} is impossible: class numbers have at most {MAX_DIGITS} digits"
        raise InputError("VD3106", message, file=file, fix="correct the labels, or write names as text")
    texts = [str(label).strip() for label in given]
    if all(re.fullmatch(rf"-?\d{{1,{MAX_DIGITS}}}", text, re.ASCII) for text in texts):
        labels = np.array([int(text) for text in texts], np.int64)
        check_numbers(labels, known, file)
        return labels, known
    if any(isinstance(label, int) for label in given):
        raise InputError("VD3105", "mixes class numbers and class names", file=file, fix="use one of the two")
    classes = known or tuple(sorted(set(texts)))
    number = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(texts) - set(number))
    if unknown:
        message = f"{len(unknown)} class names are not in classes.txt: {', '.join(unknown[:5])}"
        raise InputError("VD3106", message, file=file, fix="correct the labels or classes.txt")
    return np.array([number[text] for text in texts], np.int64), classes


def is_short(number: int) -> bool:
    """Whether a number has no more than `MAX_DIGITS` digits."""
    limit: int = 10**MAX_DIGITS
    return abs(number) < limit


def check_numbers(labels: NDArray[np.int64], classes: Sequence[str] | None, file: Path) -> None:
    """Refuse class numbers below 0, or beyond the class names.

    Raises:
        InputError: VD3106.
    """
    limit = len(classes) if classes is not None else 1 << 31
    wrong = labels[(labels < 0) | (labels >= limit)]
    if wrong.size:
        allowed = f"there are {limit} classes" if classes is not None else "class numbers begin at 0"
        raise InputError("VD3106", f"label {wrong[0]} is impossible: {allowed}", file=file, fix="correct the labels")
