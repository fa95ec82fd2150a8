"""Results on stdout: tables as wide as the terminal allows, and whole when there is no terminal.

A table that does not fit is turned (a line a number); one that does not fit even so is written as several, or as one block a
line, whichever is shorter, since a folded number is read wrongly. Words are wrapped. Into a pipe or a file nothing is cut off or
folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from vitdeploy.errors import printable
from vitdeploy.render import examples, tables, verdicts
from vitdeploy.render.tables import Table
from vitdeploy.report import Report

if TYPE_CHECKING:
    from vitdeploy.report import Verdict

_READABLE = 130  # columns; off a terminal a wider table is turned, if that makes it narrower
_UNBOUNDED = 100_000  # columns; a pipe has no edge
_LEAST_WORDS = 24  # columns that a cell of words needs, to be wrapped and still be read
_HEADING = 3  # lines of a table above its rows


def open_console(stream: IO[str] | None = None) -> Console:
    """A console on ``stream`` (stdout): the terminal's width, or no edge at all. NO_COLOR is honoured."""
    screen = Console(file=stream, highlight=False, emoji=False, markup=False)
    if not screen.is_terminal:
        screen.width = _UNBOUNDED
    return screen


def print_report(result: Report, stream: IO[str] | None = None) -> None:
    """Print a report with its parts: the tables, what must not be missed, and where it was taken."""
    screen = open_console(stream)
    for part in tables.walk(result):
        if part.rows:
            _print_table(screen, tables.tabulate_report(part))
        for table in examples.tabulate_examples(part):
            _print_table(screen, table)
        if part.reference:
            screen.print(_escape(f"compared with {part.reference}"))
        for note in part.notes:
            screen.print(_escape(f"note: {note}"))
        for line in verdicts.summarise(part.verdict) if part.verdict else ():
            screen.print(_escape(line))
    machine = result.machine
    screen.print(_escape(f"on {machine.cpu}, {machine.cores} cores, {machine.system}, {result.taken}"))


def print_verdict(verdict: Verdict, stream: IO[str] | None = None) -> None:
    """Print a gate's limits, and the reasons of those that do not hold."""
    screen = open_console(stream)
    _print_table(screen, verdicts.tabulate_verdict(verdict))
    for gate in verdict.gates:
        if gate.outcome != "pass":
            screen.print(_escape(verdicts.format_gate(gate)), soft_wrap=True)


def print_tables(content: Sequence[Table], stream: IO[str] | None = None) -> None:
    """Print tables."""
    screen = open_console(stream)
    for table in content:
        _print_table(screen, table)


def print_text(content: str, stream: IO[str] | None = None, *, whole: bool = False) -> None:
    """Print lines of text; control characters except the line breaks are spelled out.

    Args:
        content: The lines.
        stream: Where to; stdout.
        whole: Never break a line: it is to be copied.
    """
    screen = open_console(stream)
    for line in content.split("\n"):
        screen.print(_escape(line), soft_wrap=whole)


def print_raw(content: str, stream: IO[str] | None = None) -> None:
    """Print a document as it is; its writer has escaped what needs it."""
    screen = open_console(stream)
    screen.file.write(content)


def _print_table(screen: Console, table: Table) -> None:
    if table.title:
        screen.print(_escape(table.title, "bold"))
    edge = screen.width if screen.is_terminal else _READABLE
    turned = tables.turn(table)
    if _fits(screen, table, edge):
        _print_grid(screen, _build_grid(table))
    elif not screen.is_terminal or _measure_width(screen, turned) <= edge:
        _print_grid(screen, _build_grid(min(table, turned, key=lambda one: _measure_width(screen, one))))
    else:
        _print_parts(screen, table, edge)


def _print_parts(screen: Console, table: Table, edge: int) -> None:
    groups = min((_split_columns(screen, one, edge) for one in (table, tables.turn(table))), key=_count_lines)
    if _count_lines(groups) <= len(table.rows) * len(table.headings):
        for group in groups:
            _print_grid(screen, _build_grid(group))
        return
    for row in table.rows:
        screen.print(_escape(row[0], "bold"))
        cells = zip(table.headings[1:], row[1:], strict=True)
        _print_grid(screen, _build_grid(Table("", ("", ""), tuple((f"  {name}", cell) for name, cell in cells if cell))))


def _fits(screen: Console, table: Table, edge: int) -> bool:
    """Whether no number would be folded: the table is narrow enough, or has words at its end that may be wrapped."""
    if _measure_width(screen, table) <= edge or len(table.headings) < 3:
        return True
    words = not all(_is_number(row[-1]) for row in table.rows)
    return words and _measure_width(screen, _take_columns(table, range(len(table.headings) - 1))) <= edge - _LEAST_WORDS


def _split_columns(screen: Console, table: Table, edge: int) -> list[Table]:
    """Tables that are narrow enough, side by side the same: each has the first column, and as many others as fit."""
    groups: list[list[int]] = []
    for number in range(1, len(table.headings)):
        wider = [*groups[-1], number] if groups else [0, number]
        if groups and _measure_width(screen, _take_columns(table, wider)) <= edge:
            groups[-1] = wider
        else:
            groups.append([0, number])
    return [_take_columns(table, group) for group in groups]


def _count_lines(groups: Sequence[Table]) -> int:
    return sum(len(group.rows) + _HEADING for group in groups)


def _take_columns(table: Table, numbers: Sequence[int]) -> Table:
    headings, *rows = (tuple(row[number] for number in numbers) for row in (table.headings, *table.rows))
    return Table("", headings, tuple(rows))


def _measure_width(screen: Console, table: Table) -> int:
    return Measurement.get(screen, screen.options.update(max_width=_UNBOUNDED), _build_grid(table)).maximum


def _print_grid(screen: Console, grid: Grid) -> None:
    """Print a grid; off a terminal without the blanks that fill its lines."""
    if screen.is_terminal:
        screen.print(grid)
        return
    with screen.capture() as captured:
        screen.print(grid)
    lines = (line.rstrip() for line in captured.get().splitlines())
    screen.file.write("".join(f"{line}\n" for line in lines if line))


def _build_grid(table: Table) -> Grid:
    headed = any(table.headings)
    grid = Grid(box=box.SIMPLE_HEAD if headed else None, show_header=headed, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(table.headings):
        right = headed and all(_is_number(row[number]) for row in table.rows)
        grid.add_column(_escape(heading), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in table.rows:
        grid.add_row(*(_escape(cell) for cell in row))
    return grid


def _is_number(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell.startswith(("-", "NaN", "inf"))


def _escape(content: str, style: str = "") -> Text:
    """Text without any markup in it, and without what could move the cursor."""
    return Text(printable(content), style)
