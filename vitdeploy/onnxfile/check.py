"""Foreign ONNX files before any library sees them: what would crash, mislead or run code is refused, what can be is repaired.

No onnx package and no engine is needed. A file that passes can still fail in an engine, which is why engines run in child
processes; this is the first of two fences.

Known to matter: ``LayerNormalization(x, scale, "")`` is valid ONNX and ends onnxruntime 1.31.1 with SIGSEGV; shapes that lie
beside the model stop onnxruntime's shape inference; links to data files are refused by one engine and followed by another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from vitdeploy import files
from vitdeploy.errors import InputError
from vitdeploy.onnxfile import external, reader, repair, rules, versions
from vitdeploy.onnxfile.external import Beside, Range
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.reader import refuse

TINY = 1024
"""Bytes below which a tensor belongs inside the model: engines need the numbers of shapes before they read any data."""
READ_BY_ALL = 10
"""The IR version that every engine of today reads; a file that says a higher one without need is repaired."""
LARGEST = (1 << 31) - 1
"""Bytes of a protobuf message that its libraries read."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A model that engines may be shown, once what is to be repaired is repaired.

    Attributes:
        model: What was read.
        places: Where the data of every tensor lies that is beside the model.
        beside: All data files, as the model names them.
    """

    model: Model
    places: dict[Tensor, Range] = field(repr=False)
    beside: dict[str, Beside] = field(repr=False)

    @property
    def repairs(self) -> tuple[str, ...]:
        """What is to be repaired, a line each; empty when engines may read the file itself."""
        return tuple(f"{what}: {why}" for what, why in self._repairs())

    def _repairs(self) -> list[tuple[str, str]]:
        repairs = []
        lowest = versions.find_lowest(self.model)
        if self.model.version > max(lowest, READ_BY_ALL):
            why = f"nothing in the file needs more than {lowest}, and older engines refuse it"
            repairs.append((f"version {self.model.version} of the IR", why))
        stripped = Counter(node.operator for node in self.model.nodes if rules.count_trailing(node))
        for operator, count in sorted(stripped.items()):
            why = "it would crash ONNX Runtime" if operator == "LayerNormalization" else "engines disagree on it"
            repairs.append((f"{count} {operator} with {_plural(count, 'an empty last input', 'empty last inputs')}", why))
        if based := len(repair.cut_base(self.places)):
            what = f"{based} {_plural(based, 'tensor', 'tensors')} with a base path of external data"
            repairs.append((what, "ONNX Runtime takes it for damage"))
        if tiny := sum(place.length < TINY for place in self.places.values()):
            what = f"{tiny} {_plural(tiny, 'small tensor', 'small tensors')} beside the model"
            repairs.append((what, "engines need shapes inside of it"))
        if links := sorted(location for location, file in self.beside.items() if file.link):
            repairs.append((f"external data {', '.join(links)[:200]} behind links", "engines disagree on them"))
        return repairs


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def check_file(path: Path) -> Checked:
    """Check a model, and the files beside it that it names, without running anything.

    The rules are gone through once as long as the file does not change; the files beside it are looked at each time.

    Args:
        path: An ONNX file.

    Returns:
        What is to be repaired before an engine may see it; see `sanitize`.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else; VD3011 for one that is damaged; VD3027 for impossible
            sizes, data that is missing or too short, graphs inside graphs without end, loops, names that are made twice or never.
        TrustError: VD7001, data outside the model's folder; VD7005, operators of an unknown domain.
    """
    model = reader.read(path)
    if model.size > LARGEST:
        raise refuse(path, f"is {model.size:,} bytes, protobuf ends at {LARGEST:,}", "write its weights as external data")
    _enforce(model)
    places = external.locate(model)
    return Checked(model, places, external.find(model, places))


@lru_cache(maxsize=reader.MOST_KEPT)
def _enforce(model: Model) -> None:
    rules.enforce(model)


def sanitize(path: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The model as engines may see it: the file itself, or a repaired copy.

    The copy computes the same; equal files give equal copies. Weights are never in memory as a whole.

    Args:
        path: An ONNX file.
        folder: Where a copy goes, with copies of all data files; it is made when it is missing, and must not hold files of
            these names.

    Returns:
        The file to open, and what was repaired, a line each; ``(path, ())`` when nothing is to be repaired.

    Raises:
        InputError: As `check_file`.
        TrustError: As `check_file`.
        UsageError: VD2008, the folder can't be written.
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    checked = check_file(path)
    repairs = checked._repairs()
    if not repairs:
        return path, ()
    _copy(checked, folder / path.name)
    return folder / path.name, tuple(f"{what} repaired: {why}" for what, why in repairs)


def copy(path: Path, target: Path, *, taken: Collection[str] = ()) -> None:
    """Copy a model with the files beside it that hold its data, repaired as `sanitize` repairs.

    Args:
        path: An ONNX file.
        target: Where the copy goes; its folder is made when it is missing.
        taken: Names in that folder which data must not have.

    Raises:
        InputError: As `check_file`; VD3026, a file beside the model has a name that is taken.
        TrustError: As `check_file`.
        UsageError: VD2008, the folder can't be written.
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    checked = check_file(path)
    for location in checked.beside:
        if Path(location).as_posix() in (target.name, *taken):
            message = f"keeps data in a file named {location!r}"
            raise InputError("VD3026", message, file=path, fix="save it with another name")
    _copy(checked, target)


def _copy(checked: Checked, target: Path) -> None:
    model, beside = checked.model, checked.beside
    tiny = {tensor: place for tensor, place in checked.places.items() if place.length < TINY}
    large = {tensor: place for tensor, place in checked.places.items() if tensor not in tiny}
    changes = [*versions.lower(model), *repair.cut_trailing(model), *repair.cut_base(large), *repair.inline(model, tiny, beside)]
    used = {place.location for place in large.values()}
    copied = {Path(location): file for location, file in beside.items() if location in used}  # once for all spellings
    files.need_space(target.parent, model.size + sum(file.size for file in copied.values()))
    target.parent.mkdir(parents=True, exist_ok=True)
    repair.copy(copied, target.parent)
    repair.write(model, changes, target)
