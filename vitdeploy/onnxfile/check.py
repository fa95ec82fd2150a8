"""Foreign ONNX files before any library sees them: what would crash, mislead or run code is refused, what can be is repaired.

No onnx package and no engine is needed. A file that passes can still fail in an engine, which is why engines run in child
processes; this is the first of two fences.

Known to matter: ``LayerNormalization(x, scale, "")`` is valid ONNX and ends onnxruntime 1.31.1 with SIGSEGV; shapes that lie
beside the model stop onnxruntime's shape inference; links to data files are refused by one engine and followed by another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitdeploy import files
from vitdeploy.onnxfile import external, reader, repair, rules
from vitdeploy.onnxfile.external import Beside, Range
from vitdeploy.onnxfile.model import Model, Tensor
from vitdeploy.onnxfile.reader import refuse

TINY = 1024
"""Bytes below which a tensor belongs inside the model: engines need the numbers of shapes before they read any data."""
LARGEST = (1 << 31) - 1
"""Bytes of a protobuf message that its libraries read."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A model that engines may be shown, once what is to be repaired is repaired.

    Attributes:
        path: The file.
        stripped: Operator to how many of its nodes end with empty optional inputs.
        based: How many tensors name the folder of their data, though it is the model's.
        tiny: How many tensors of less than `TINY` bytes lie beside the model.
        links: Data files to which symbolic links lead, or that have a second name, as the model names them.
        external: All data files, as the model names them, and where they are.
    """

    path: Path
    stripped: dict[str, int]
    based: int
    tiny: int
    links: tuple[str, ...]
    external: dict[str, Path]
    _model: Model = field(repr=False)
    _places: dict[Tensor, Range] = field(repr=False)
    _beside: dict[str, Beside] = field(repr=False)

    @property
    def repairs(self) -> tuple[str, ...]:
        """What is to be repaired, a line each; empty when engines may read the file itself."""
        return tuple(f"{what}: {why}" for what, why in self._repairs())

    def _repairs(self) -> list[tuple[str, str]]:
        found = []
        for operator, count in self.stripped.items():
            why = "it would crash onnxruntime" if operator == "LayerNormalization" else "engines disagree on it"
            found.append((f"{count} {operator} with {_plural(count, 'an empty last input', 'empty last inputs')}", why))
        if self.based:
            what = f"{self.based} {_plural(self.based, 'tensor', 'tensors')} with a base path of external data"
            found.append((what, "onnxruntime takes it for damage"))
        if self.tiny:
            what = f"{self.tiny} {_plural(self.tiny, 'small tensor', 'small tensors')} beside the model"
            found.append((what, "engines need shapes inside of it"))
        if self.links:
            found.append((f"external data {', '.join(self.links)[:200]} behind links", "engines disagree on them"))
        return found


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def check(path: Path) -> Checked:
    """Check a model, and the files beside it that it names, without running anything.

    Args:
        path: An ONNX file.

    Returns:
        What is to be repaired before an engine may see it; see `sanitized`.

    Raises:
        InputError: VD3001 to VD3005 for a file that is something else; VD3011 for one that is damaged; VD3027 for impossible
            sizes, data that is missing or too short, graphs inside graphs without end, loops, names that are made twice or never.
        TrustError: VD7001, data outside the model's folder; VD7005, operators of an unknown domain.
    """
    model = reader.read(path)
    if model.size > LARGEST:
        raise refuse(path, f"is {model.size:,} bytes, protobuf ends at {LARGEST:,}", "write its weights as external data")
    rules.enforce(model)
    places = external.ranges(model)
    beside = external.find(model, places)
    return Checked(
        path=path,
        stripped=rules.stripped(model),
        based=len(repair.without_base(places)),
        tiny=sum(place.length < TINY for place in places.values()),
        links=tuple(sorted(location for location, found in beside.items() if found.link)),
        external={location: found.file for location, found in beside.items()},
        _model=model,
        _places=places,
        _beside=beside,
    )


def sanitized(path: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The model as engines may see it: the file itself, or a repaired copy.

    The copy computes the same; equal files give equal copies. Weights are never in memory as a whole.

    Args:
        path: An ONNX file.
        folder: Where a copy goes, with copies of all data files; it is made when it is missing, and must not hold files of
            these names.

    Returns:
        The file to open, and what was repaired, a line each; ``(path, ())`` when nothing is to be repaired.

    Raises:
        InputError: As `check`.
        TrustError: As `check`.
        UsageError: VD2008, the folder can't be written.
        MachineError: VD4002, the disk is full; VD4004, the file system failed.
    """
    checked = check(path)
    if not checked.repairs:
        return path, ()
    model, beside = checked._model, checked._beside
    tiny = {tensor: place for tensor, place in checked._places.items() if place.length < TINY}
    large = {tensor: place for tensor, place in checked._places.items() if tensor not in tiny}
    edits = [*repair.without_trailing(model), *repair.without_base(large), *repair.inlined(model, tiny, beside)]
    used = {place.location for place in large.values()}
    copied = {Path(location): found for location, found in beside.items() if location in used}  # once for all spellings
    files.need_space(folder, model.size + sum(found.size for found in copied.values()))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    repair.copy(copied, folder)
    repair.write(model, edits, target)
    return target, tuple(f"{what} repaired: {why}" for what, why in checked._repairs())
