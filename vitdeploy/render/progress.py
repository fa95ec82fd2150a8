r"""How far the work is, on stderr: a bar on a terminal, plain lines elsewhere, nothing when asked to be quiet.

A verb reports ``what`` as ``stage`` or ``stage: step``; the stage owns the bar. Off a terminal a stage writes a line when it
begins, at every tenth of its way or after 30 seconds, and when it ends: a log stays readable and never holds a ``\r``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from vitdeploy.errors import printable
from vitdeploy.progress import Progress, silent

_EVERY_SHARE = 0.1
_EVERY_SECONDS = 30.0


@contextmanager
def open_listener(
    name: str = "", *, quiet: bool = False, verbose: bool = False, stream: IO[str] | None = None
) -> Iterator[Progress]:
    """A listener for one command, closed (the cursor given back) however the command ends.

    Args:
        name: What a terminal shows until the first stage begins: imports and files take a while.
        quiet: Say nothing.
        verbose: A line for every step, that stays.
        stream: Where to; stderr.
    """
    out = stream or sys.stderr
    if quiet:
        yield silent
    elif _can_redraw(out) and not verbose:
        with _open_bars(out, name) as listener:
            yield listener
    else:
        yield Lines(out, every=verbose)


class Lines:
    """A listener for logs: few lines, each whole.

    Args:
        stream: Where to.
        clock: Seconds from any origin.
        every: A line for every step, with the seconds since its stage began.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic, *, every: bool = False) -> None:
        self._stream, self._clock, self._every = stream, clock, every
        self._begun: dict[str, float] = {}
        self._said: dict[str, tuple[int, float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        """Write a line when there is news."""
        stage, now = what.partition(":")[0], self._clock()
        if done >= total:
            begun = self._begun.pop(stage, None)
            self._said.pop(stage, None)
            self._write(what if begun is None else f"{what}: done in {now - begun:.1f} s")
            return
        if stage not in self._begun:
            self._begun[stage] = now
        elif not self._every and not self._has_news(stage, done, total, now):
            return
        self._said[stage] = (done, now)
        since = f", {now - self._begun[stage]:.1f} s" if self._every else ""
        self._write(f"{what}: {done:,} of {total:,} ({done / total * 100:.0f} %){since}")

    def _has_news(self, stage: str, done: int, total: int, now: float) -> bool:
        said, when = self._said[stage]
        return done - said >= _EVERY_SHARE * total or now - when >= _EVERY_SECONDS

    def _write(self, line: str) -> None:
        self._stream.write(printable(line) + "\n")
        self._stream.flush()


def _can_redraw(stream: IO[str]) -> bool:
    """Whether a line may be redrawn: a terminal that is not a dumb one."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextmanager
def _open_bars(stream: IO[str], name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    screen = Console(file=stream, highlight=False, emoji=False, markup=False)
    shown = TextColumn("{task.description}", markup=False)
    bars = Bars(shown, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=screen, transient=True)
    tasks: dict[str, tuple[TaskID, float]] = {}
    waiting = [bars.add_task(name, total=None)] if name else []

    def listen(what: str, done: int, total: int) -> None:
        stage, label = what.partition(":")[0], printable(what)
        while waiting:
            bars.remove_task(waiting.pop())
        if done >= total:
            task, begun = tasks.pop(stage, (None, 0.0))
            if task is not None:
                bars.remove_task(task)
                label = f"{label}: done in {time.monotonic() - begun:.1f} s"
            bars.console.print(label)
            return
        if stage not in tasks:
            tasks[stage] = bars.add_task(label, total=total), time.monotonic()
        bars.update(tasks[stage][0], description=label, completed=done, total=total)

    with bars:
        yield listen
