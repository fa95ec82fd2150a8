"""Which of the model's classes is which of the data's: by name where both have names, else by number."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import wordnet
from vitdeploy.errors import InputError


def align(classes: Sequence[str] | int, labels: Sequence[str], outputs: int, path: Path) -> NDArray[np.int64]:
    """For each class number of a data set, the model's.

    Names are compared exactly first, then regardless of case, spaces, hyphens and underscores. WordNet ids (n01440764 ...) are
    those of ImageNet's classes where the model has a thousand, and stand in the model's order where they are as many as its
    classes. When the model has no names and all of the data's are decimal numbers, as of folders 0, 1, 10, 2, each is its own
    number. Other names without any to compare with are in the model's order only if they are as many as its classes: which of
    the model's a few of them are, nothing tells.

    Args:
        classes: The data's class names, or only how many there are.
        labels: The model's class names in output order, or nothing.
        outputs: Number of the model's classes.
        path: The data set, for errors.

    Returns:
        int64 [number of the data's classes], each in [0, outputs).

    Raises:
        InputError: VD3106, a class that the model does not know or knows twice, more classes than the model has, or fewer and
            nothing that tells which.
    """
    if isinstance(classes, int):
        _check_count(classes, outputs, path)
        return np.arange(classes, dtype=np.int64)
    synsets, named = wordnet.number_synsets(), not set(labels).isdisjoint(classes)
    if outputs == wordnet.CLASSES and synsets.keys() >= set(classes) and not named:
        return np.array([synsets[name] for name in classes], np.int64)
    if named or (labels and not _is_wordnet(classes, outputs)):
        return _match_names(classes, labels, path)
    if not labels and all(name.isascii() and name.isdigit() for name in classes):
        return _match_own_numbers(classes, outputs, path)
    _check_count(len(classes), outputs, path)
    if len(classes) < outputs:
        names = ", ".join(classes[:3])
        message = f"has {len(classes)} classes ({names}, ...), the model {outputs} without names: which are which can't be told"
        fix = "export the model with its class names (--labels FILE), or name each folder by its class's number, from 0"
        raise InputError("VD3106", message, file=path, fix=fix)
    return np.arange(len(classes), dtype=np.int64)


def _check_count(count: int, outputs: int, path: Path) -> None:
    if count > outputs:
        message = f"has {count} classes, the model {outputs}"
        raise InputError("VD3106", message, file=path, fix="use data of the model's classes")


def _match_own_numbers(classes: Sequence[str], outputs: int, path: Path) -> NDArray[np.int64]:
    plain = [name.lstrip("0") or "0" for name in classes]
    fix = f"name the classes 0 to {outputs - 1}, or give a model with class names"
    for name, digits in zip(classes, plain, strict=True):
        if len(digits) > len(str(outputs)) or int(digits) >= outputs:
            shown = name if len(name) <= 20 else f"{name[:20]}..."
            message = f"its class {shown!r} is beyond the model's {outputs} classes, numbered from 0"
            raise InputError("VD3106", message, file=path, fix=fix)
    if len(set(plain)) != len(plain):
        raise InputError("VD3106", "two of its classes are the same number", file=path, fix=fix)
    return np.array([int(digits) for digits in plain], np.int64)


def _is_wordnet(classes: Sequence[str], outputs: int) -> bool:
    return len(classes) == outputs and all(re.fullmatch(r"n\d{8}", name) for name in classes)


def _match_names(classes: Sequence[str], labels: Sequence[str], path: Path) -> NDArray[np.int64]:
    exact = _find_places(labels, str)
    loose = _find_places(labels, _simplify)
    numbers, unknown = [], []
    for name in classes:
        places = exact.get(name) or loose.get(_simplify(name), [])
        if len(places) == 1:
            numbers.append(places[0])
        else:
            unknown.append(f"{name!r} ({len(places)} times)" if places else repr(name))
    twice = len(set(numbers)) != len(numbers)
    if unknown or twice:
        some = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        message = f"the model does not know, or not once, {len(unknown)} of {len(classes)} classes: {some}"
        message = message if unknown else "two classes of the data have the same name in the model"
        fix = f"rename them to the model's, such as {labels[0]!r}"
        raise InputError("VD3106", message, file=path, fix=fix)
    return np.array(numbers, np.int64)


def _find_places(labels: Sequence[str], form: Callable[[str], str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        places.setdefault(form(label), []).append(index)
    return places


def _simplify(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
