"""What a manifest says of its images beside path and label: columns by which results can be told apart (time of day, camera)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

MOST_VALUES = 1000
"""Different values from which a column is a name or a number of each image, and no group of images."""


class Columns:
    """Collects columns line by line; those that tell no groups are let go as soon as that shows."""

    def __init__(self) -> None:
        self._lines = 0
        self._values: dict[str, list[str]] = {}
        self._different: dict[str, set[str]] = {}
        self._dropped: set[str] = set()

    def add(self, line: Mapping[str, object]) -> None:
        """Take in what one line says; lists and tables are no values, and what a line leaves out is ""."""
        given = {name: sys.intern(_write(value)) for name, value in line.items() if not isinstance(value, list | dict)}
        for name in given.keys() - self._values.keys() - self._dropped:
            self._values[name], self._different[name] = [""] * self._lines, set()
        for name, values in list(self._values.items()):
            values.append(given.get(name, ""))
            self._different[name].add(values[-1])
            if len(self._different[name]) > MOST_VALUES:
                del self._values[name]
                self._dropped.add(name)
        self._lines += 1

    def finish(self) -> dict[str, tuple[str, ...]]:
        """Column to one value an image, by name."""
        return {name: tuple(values) for name, values in sorted(self._values.items())}


def _write(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value).strip()
