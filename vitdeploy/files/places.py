"""Where files of this user lie that no command names."""

from __future__ import annotations

import os
from pathlib import Path

from vitdeploy.errors import MachineError

PathName = str | os.PathLike[str]
"""A path as callers have it."""


def cache_folder() -> Path:
    """Where that is kept which can be made again: ``$VITDEPLOY_CACHE``, ``$XDG_CACHE_HOME/vitdeploy``, ``~/.cache/vitdeploy``.

    Raises:
        MachineError: VD4012, this user has no home.
    """
    if own := os.environ.get("VITDEPLOY_CACHE", ""):
        return Path(own).absolute()
    return find_base("XDG_CACHE_HOME", ".cache") / "vitdeploy"


def find_base(variable: str, usual: str) -> Path:
    """A folder of the XDG base directories.

    Args:
        variable: Its name in the environment; a relative one is to be ignored.
        usual: What it is below the user's home where the environment says nothing.

    Raises:
        MachineError: VD4012, this user has no home.
    """
    named = Path(os.environ.get(variable, ""))
    if named.is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError as exc:
        raise MachineError("VD4012", f"this user has no home, and {variable} is not set", fix=f"set HOME or {variable}") from exc
    return home / usual
