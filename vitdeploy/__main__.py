"""The program ``vitdeploy``, also as ``python -m vitdeploy``: what must hold before, and after, all else of it.

Ctrl-C counts from the first import on. A closed stdin, stdout or stderr leaves no number free that the next file would get, to be
written into by whoever prints. And the process ends at once: what libraries do at their exit may crash, once an import of theirs
was interrupted, or fail for want of a stdout.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

INTERRUPTED = 130
"""As `vitdeploy.errors.INTERRUPTED`, which may not be there yet."""


def main() -> None:
    """Run the command line, and end the process."""
    try:
        _fill_streams()
        from vitdeploy.cli.commands import main as run

        status = run()
    except KeyboardInterrupt:  # while the program itself was imported
        with suppress(OSError):
            os.write(2, b"interrupted; nothing was begun\n")
        status = INTERRUPTED
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    end_process(status)


def end_process(status: int) -> None:
    """Run the handlers for the exit, flush what was printed, and end."""
    with suppress(KeyboardInterrupt):
        atexit._run_exitfuncs()  # they print what they raise
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError, KeyboardInterrupt):
            stream.flush()
    os._exit(status)


def _fill_streams() -> None:
    """Open what was closed (``>&-``) as /dev/null; what can't be encoded is spelled out."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
