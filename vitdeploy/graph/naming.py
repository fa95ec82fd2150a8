"""Names that nothing else in a graph has."""

from __future__ import annotations


def free(name: str, taken: set[str]) -> str:
    """The name, or the same with the first number behind it that makes it new; it is taken from now on."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
