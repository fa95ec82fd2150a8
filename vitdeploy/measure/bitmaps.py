"""What every single image came to, a bit an image and subject: so that a later run, or a group of images, can be told apart.

A share alone can't be compared with another of the same images but as if they were other images, which takes nine times as many
(where nine of ten are right, and 2 % change sides). Bits lie in the order of the images' names, so that neither the batch nor the
order of a manifest changes them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.measure.accuracy import rank_labels
from vitdeploy.measure.statistics import paired_difference, wilson
from vitdeploy.record import Calibration
from vitdeploy.report import Group, Images, Metric

CLASS = "class"
"""The group of images that every labelled data set has."""
_IDENTITY = 8  # bytes
_CODES = np.dtype("<u2")

Bits = NDArray[np.bool_]


class Seen(NamedTuple):
    """Some images as a data set knows them.

    Attributes:
        names: One an image.
        identities: 8 bytes an image, of what is stored.
        labels: Class names, or None.
        groups: Column of a manifest to its value for each image.
    """

    names: Sequence[str]
    identities: Sequence[bytes]
    labels: Sequence[str] | None = None
    groups: Mapping[str, Sequence[str]] = {}


class Answers:
    """Gathers bits batch by batch; they cost a byte an image and subject until they are packed.

    Args:
        reference: The subject that others are compared with, or None.
        seen_before: Identities of the images that the model's ranges were chosen on.
    """

    def __init__(self, reference: str | None, seen_before: frozenset[bytes] = frozenset()) -> None:
        self.reference = reference
        self._before = seen_before
        self._names: list[str] = []
        self._rows: list[str] = []
        self._groups: dict[str, list[str]] = {}
        self._right: dict[str, list[Bits]] = {}
        self._same: dict[str, list[Bits]] = {}
        self._overlap = 0

    def add(self, seen: Seen, logits: Mapping[str, NDArray[Any]], labels: NDArray[np.int64] | None) -> None:
        """Take in one batch.

        Args:
            seen: The images.
            logits: Of each subject, float [n, classes].
            labels: int64 [n], the model's class numbers, or None.
        """
        self._names += seen.names
        self._overlap += sum(identity in self._before for identity in seen.identities)
        named: Sequence[str | None] = seen.labels or [None] * len(seen.names)
        rows = zip(seen.names, named, (identity.hex() for identity in seen.identities), strict=True)
        self._rows += [json.dumps(row) for row in rows]
        groups = {**seen.groups, **({CLASS: seen.labels} if seen.labels else {})}
        for name, values in groups.items():
            self._groups.setdefault(name, []).extend(values)
        for name, numbers in logits.items():
            if labels is not None:
                self._right.setdefault(name, []).append(rank_labels(numbers, labels) == 0)
            if self.reference is not None and name != self.reference:
                best = numbers.argmax(1) == logits[self.reference].argmax(1)
                finite = np.isfinite(numbers).all(1) & np.isfinite(logits[self.reference]).all(1)
                self._same.setdefault(name, []).append(best & finite)

    def finish(self) -> Images | None:
        """All of it, packed; None before the first batch."""
        if not self._names:
            return None
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        digest = hashlib.sha256("\n".join(self._rows[place] for place in order).encode())
        return Images(
            digest=digest.hexdigest(),
            count=len(order),
            groups={name: _code([values[place] for place in order]) for name, values in self._groups.items()},
            right={name: pack(np.concatenate(parts)[order]) for name, parts in self._right.items()},
            same={name: pack(np.concatenate(parts)[order]) for name, parts in self._same.items()},
            calibrated=self._overlap,
        )


def read_seen(calibration: Calibration | None) -> frozenset[bytes]:
    """The images that `Calibration.seen` lists; none where nothing is known."""
    listed = base64.b64decode(calibration.seen) if calibration is not None else b""
    return frozenset(listed[start : start + _IDENTITY] for start in range(0, len(listed), _IDENTITY))


def pack(bits: Bits) -> str:
    """Bits, bool [n], as text: base64, first image in the highest bit."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack(text: str, count: int) -> Bits:
    """What `pack` packed.

    Raises:
        ValueError: It is not so many bits.
    """
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if count < 0 or len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count).astype(np.bool_)


def read_codes(group: Group, count: int) -> NDArray[np.int64]:
    """For each image the number of its value in ``group.values``, int64 [n].

    Raises:
        ValueError: They are not so many, or beyond the values.
    """
    codes = np.frombuffer(base64.b64decode(group.codes, validate=True), _CODES).astype(np.int64)
    if len(codes) != count or (count and codes.max() >= len(group.values)):
        raise ValueError(f"{len(codes)} codes of {len(group.values)} values for {count} images")
    return codes


def compare(before: Bits, after: Bits) -> Metric:
    """How many percentage points more images are right, with the paired interval.

    Args:
        before: bool [n].
        after: Of the same images.
    """
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = paired_difference(gained, lost, len(after))
    return Metric(100 * (gained - lost) / max(1, len(after)), "points", 100 * low, 100 * high)


class Part(NamedTuple):
    """The images of one class, or of one value of a column.

    Attributes:
        value: Of the class or column.
        images: How many.
        before: Share that the reference got right.
        after: Share that the candidate got right.
        difference: The second less the first, in points, with the paired interval.
        gained: Images that only the candidate got right.
        lost: Images that only the reference got right.
    """

    value: str
    images: int
    before: Metric
    after: Metric
    difference: Metric
    gained: int
    lost: int


def compare_parts(images: Images, reference: str, subject: str, column: str = CLASS) -> list[Part]:
    """A candidate beside its reference on every class, or every value of a column that has images; sorted by value.

    Returns:
        Nothing where the data have no such column, or no labels.

    Raises:
        ValueError: The images' bits are damaged.
    """
    if column not in images.groups or not {reference, subject} <= images.right.keys():
        return []
    codes = read_codes(images.groups[column], images.count)
    before, after = (unpack(images.right[name], images.count) for name in (reference, subject))
    parts = []
    for number, value in enumerate(images.groups[column].values):
        if (inside := codes == number).any():
            a, b = before[inside], after[inside]
            changes = int((b & ~a).sum()), int((a & ~b).sum())
            parts.append(Part(value, len(a), share(a), share(b), compare(a, b), *changes))
    return parts


def share(bits: Bits) -> Metric:
    """How many of them are set."""
    return Metric(float(bits.mean()), "share", *wilson(int(bits.sum()), len(bits)))


def _code(values: Sequence[str]) -> Group:
    names = sorted(set(values))
    number = {name: index for index, name in enumerate(names)}
    codes = np.array([number[value] for value in values], _CODES)
    return Group(values=tuple(names), codes=base64.b64encode(codes.tobytes()).decode())
