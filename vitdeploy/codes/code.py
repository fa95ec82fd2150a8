"""What is said of an error code."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One code.

    Attributes:
        meaning: What it says, and why vitdeploy stops.
        example: An error as it is printed, without its code.
        remedy: What to do, in the imperative.
    """

    meaning: str
    example: str
    remedy: str
