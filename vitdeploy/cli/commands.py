"""The command line: one command a verb, in four groups.

Nothing heavier than typer is imported before a command runs: ``--help`` and shell completion must feel instant.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitdeploy.cli import build_group, look_group, prove_group, shell, ship_group
from vitdeploy.cli.app import app

__all__ = ["app", "build_group", "look_group", "main", "prove_group", "ship_group"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program ``vitdeploy``.

    Args:
        arguments: What was typed behind the name; the process's own when None.

    Returns:
        The exit status: see `vitdeploy.cli.shell`.
    """
    return shell.run(app, arguments)
