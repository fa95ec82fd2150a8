"""The program itself: its help, and what holds for every command."""

from __future__ import annotations

from typing import Annotated

import typer

from vitdeploy import __version__
from vitdeploy.cli import shell
from vitdeploy.cli.shell import Debug, Quiet, Verbose

_HELP = """Take Vision Transformers from a PyTorch checkpoint to a proven deployment.

\b
Examples:
  vitdeploy build dinov2-small/ --data photos/   export, validate, bench, report
  vitdeploy export dinov2-small/ -o vit          one step alone
  vitdeploy predict vit cat.jpg                  use the result
"""


app = typer.Typer(
    cls=shell.Groups,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: quick to draw, and the snapshot tests read it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitdeploy {__version__}")
        raise typer.Exit


@app.callback(help=_HELP)
def _set_up(
    context: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What holds for every command."""
    context.obj = {"quiet": quiet, "verbose": verbose}
