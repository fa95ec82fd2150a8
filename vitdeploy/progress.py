"""How long work tells how far it is: verbs call, the terminal (or nothing) listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener; `vitdeploy.render` has one for terminals and one for logs."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Hear that ``done`` of ``total`` steps of ``what`` are finished; ``done == total`` ends it."""


def silent(what: str, done: int, total: int) -> None:
    """The listener of library calls: says nothing."""
