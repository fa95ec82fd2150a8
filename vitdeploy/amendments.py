"""What the user says of how images become a model's input, where the checkpoint says nothing, or something else.

The four things that a checkpoint most often leaves out are `ASPECTS`. A wrong one costs points of accuracy and no proof of
equality sees it, so whatever was taken from a library's custom is said, recorded and shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from vitdeploy import files
from vitdeploy.contract import InputContract
from vitdeploy.errors import InputError, UsageError
from vitdeploy.tomlfile import read_table, read_toml
from vitdeploy.words import Alpha, Exif, Filter, Task

ASPECTS: Mapping[str, tuple[str, ...]] = {
    "mean": ("mean",),
    "std": ("std",),
    "resize": ("resize", "resize_to"),
    "interpolation": ("interpolation",),
}
"""What is told of a contract one by one, each with the fields of `InputContract` that say it."""

_WORDS = ("shortest", "stretch", "none")
_MAX_LABELS = 64 << 20  # bytes


class Amendments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes to a model's input contract, and its class names; what is None stays.

    Attributes:
        mean: One number a channel, or one for all, on the scale [0, 1].
        std: The same.
        resize: ``shortest``, ``stretch`` or ``none`` as in `InputContract`, or the shorter side in pixels before the crop.
        crop: Share of the resized image's side that the crop keeps, above 0 and at most 1 (timm's ``crop_pct``); or the crop's
            side in pixels, which must be the model's.
        interpolation: Resampling filter.
        exif: Whether the orientation tag of a photo is applied.
        alpha: What becomes of transparency.
        labels: Class names in output order; or a file with them (see `read_labels`).
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: str | int | None = None
    crop: float | None = None
    interpolation: Filter | None = None
    exif: Exif | None = None
    alpha: Alpha | None = None
    labels: str | tuple[str, ...] | None = None

    def list_said(self) -> frozenset[str]:
        """Names of `ASPECTS` that are said here."""
        said = {name for name in ASPECTS if getattr(self, name) is not None}
        return frozenset(said | ({"resize"} if self.crop is not None else set()))

    def apply(self, contract: InputContract) -> InputContract:
        """The contract with these changes.

        Raises:
            UsageError: VD2003, they mean nothing, contradict each other, or no image can meet the result.
        """
        changes: dict[str, Any] = {name: getattr(self, name) for name in ("interpolation", "exif", "alpha")}
        changes = {name: value for name, value in changes.items() if value is not None}
        for name in ("mean", "std"):
            if (values := getattr(self, name)) is not None:
                changes[name] = values * contract.channels if len(values) == 1 else values
        return msgspec.structs.replace(contract, **changes, **self._choose_resize(contract))

    def _choose_resize(self, contract: InputContract) -> dict[str, Any]:
        """Fields ``resize`` and ``resize_to``, as far as anything is said of them."""
        side, resize, to = max(contract.height, contract.width), contract.resize, contract.resize_to
        if isinstance(self.resize, int):
            resize, to = "shortest", self.resize
        elif self.resize is not None:
            resize, to = _choose_word(self.resize), to if self.resize == contract.resize else None
        if self.crop is not None and self.crop <= 1:
            if self.crop <= 0 or isinstance(self.resize, int) or resize == "none":
                message = f"crop is {self.crop:g} with resize {self.resize or resize}"
                raise UsageError("VD2003", message, fix="give a share above 0, with resize shortest or stretch")
            to = math.floor(side / self.crop)  # as timm's transforms_imagenet_eval
        elif self.crop is not None and self.crop not in (contract.height, contract.width):
            message = f"crop is {self.crop:g} pixels, the model takes {contract.height} x {contract.width}"
            raise UsageError("VD2003", message, fix="give the size with --image-size, or crop as a share such as 0.875")
        return {"resize": resize, "resize_to": None if resize == "none" else to}


def _choose_word(word: str) -> Literal["shortest", "stretch", "none"]:
    for known in _WORDS:
        if word == known:
            return known  # type: ignore[return-value]
    raise UsageError("VD2003", f"resize is {word!r}", fix=f"use {', '.join(_WORDS)}, or pixels such as 256")


def describe_aspects(contract: InputContract, names: Collection[str]) -> dict[str, str]:
    """Those of `ASPECTS` that are named, in words."""
    to = f" to {contract.shorter}" if contract.resize == "shortest" or contract.resize_to is not None else ""
    words = {
        "mean": _format(contract.mean),
        "std": _format(contract.std),
        "resize": f"{contract.resize}{to}",
        "interpolation": contract.interpolation,
    }
    return {name: text for name, text in words.items() if name in names}


def list_unsaid(fields: Iterable[str]) -> tuple[str, ...]:
    """Names of `ASPECTS` of which none of these fields of a contract says anything."""
    said = set(fields)
    return tuple(name for name, wanted in ASPECTS.items() if said.isdisjoint(wanted))


def _format(values: tuple[float, ...]) -> str:
    shown = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:.4g}" for value in shown)


class ContractFile(InputContract, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a contract's file may say: the fields of `InputContract`, and one thing of the output.

    Attributes:
        task: What the model's main output is; None leaves it to the model, or to be guessed.
    """

    task: Task | None = None


def read_task(path: Path) -> Task | None:
    """What a contract's file says of the model's main output; see `ContractFile`.

    Raises:
        VitdeployError: As `read_contract`.
    """
    return read_toml(path, ContractFile).task


def read_contract(path: Path, under: InputContract | None = None) -> InputContract:
    """Read an `InputContract` from a TOML or JSON file, which may say more; see `ContractFile`.

    Args:
        path: The file.
        under: What holds where the file says nothing; None is the defaults of `InputContract`.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2002, VD2003, VD2007 as for a recipe, and what `InputContract` itself refuses.
    """
    if under is None:
        return _drop_task(read_toml(path, ContractFile))
    said = read_table(path)
    sides = {name: size for name in ("height", "width") if isinstance(size := said.get(name), int)}
    sized = under.change_size(sides.get("height", under.height), sides.get("width", under.width))
    return _drop_task(read_toml(path, ContractFile, msgspec.to_builtins(sized)))


def _drop_task(said: ContractFile) -> InputContract:
    return InputContract(**{name: getattr(said, name) for name in InputContract.__struct_fields__})


def read_labels(labels: str | tuple[str, ...]) -> tuple[str, ...]:
    """Class names in output order.

    Args:
        labels: The names themselves; or a file: text with one name a line, or JSON: a list of names, a table of numbers to names,
            a ``config.json`` of transformers (``id2label``) or of timm (``label_names``).

    Raises:
        InputError: VD3001, no such file; VD3105, it holds no class names, or a number is missing.
    """
    if not isinstance(labels, str):
        return labels
    path = Path(labels)
    if not path.is_file():
        fix = "give a file, or names with commas: --labels cat,dog"
        raise InputError("VD3001", "is no file with class names", file=path, fix=fix)
    if path.stat().st_size > _MAX_LABELS:
        raise InputError("VD3105", "is too large for class names", file=path, fix="give one name a line")
    try:
        text = files.read_text(path, strict=True)
        if path.suffix == ".json":
            return _list_names(msgspec.json.decode(text))
    except (UnicodeDecodeError, msgspec.DecodeError, ValueError, RecursionError) as exc:
        fix = "give a text file with one name a line, or config.json of transformers or timm"
        raise InputError("VD3105", f"holds no class names: {exc}", file=path, fix=fix) from exc
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if "" in names or not names:
        raise InputError("VD3105", "has an empty line among the class names", file=path, fix="give one name a line")
    return names


def _list_names(value: object) -> tuple[str, ...]:
    """Names out of any of the forms that JSON files give them in."""
    if isinstance(value, dict):
        inner = value.get("pretrained_cfg")
        beside = inner if isinstance(inner, dict) else {}
        value = value.get("id2label") or value.get("label_names") or beside.get("label_names") or value
    if isinstance(value, dict):
        numbers = {str(key): name for key, name in value.items()}
        missing = next((str(n) for n in range(len(numbers)) if str(n) not in numbers), None)
        if missing is not None:
            raise ValueError(f"there is no class {missing} among {len(numbers)}")
        value = [numbers[str(n)] for n in range(len(numbers))]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError("neither a list nor a table of names")
    return tuple(value)
