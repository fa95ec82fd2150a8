"""A report as Markdown (GitHub's dialect), for a file beside the numbers or for a CI summary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitdeploy.errors import printable
from vitdeploy.render import examples, tables, verdicts
from vitdeploy.render.tables import Table
from vitdeploy.report import Report

if TYPE_CHECKING:
    from vitdeploy.report import Verdict

_COLUMNS = 8  # a page has no room for more
_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{c: "\\" + c for c in "\\|`*[]~"}}

_NUMBERS = re.compile(r"\\\[([-\d., ]+)\\\]")  # intervals stay readable: brackets around numbers are no link


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no new table cell, no control character."""
    return _NUMBERS.sub(r"[\1]", "".join(_SPECIAL.get(c, c) for c in printable(text)))


def format_report(report: Report) -> str:
    """A whole report with its parts: tables, settings, notes and the machine; ends with a line break."""
    lines = [f"# {escape(report.title)}", "", f"Taken {escape(report.taken)}."]
    for part in tables.walk(report):
        if part is not report:
            lines += ["", f"## {escape(part.title)}"]
        lines += _format_part(part)
    lines += ["", "## machine", *_format_table(tables.tabulate_machine(report.machine))]
    return "\n".join(lines) + "\n"


def format_verdict(verdict: Verdict) -> str:
    """A gate's verdict: the word, the limits, and the reasons of those that do not hold; ends with a line break."""
    lines = [f"# Gate: {verdict.outcome}", *_format_table(verdicts.tabulate_verdict(verdict))]
    reasons = [f"- {escape(verdicts.format_gate(gate))}" for gate in verdict.gates if gate.outcome != "pass"]
    return "\n".join([*lines, *([""] if reasons else []), *reasons]) + "\n"


def _format_part(report: Report) -> Iterator[str]:
    if report.rows:
        table = tables.tabulate_report(report)
        yield from _format_table(tables.turn(table) if len(table.headings) > max(_COLUMNS, len(table.rows) + 1) else table)
    if report.reference:
        yield from ("", f"Compared with: {escape(report.reference)}.")
    for content in examples.tabulate_examples(report):
        yield from ("", f"**{escape(content.title)}**", *_format_table(content))
    if report.settings:
        yield from _format_table(tables.tabulate_settings(report))
    if report.notes:
        yield ""
        yield from (f"- {escape(note)}" for note in report.notes)
    if report.verdict:
        yield ""
        yield from (f"- {escape(line)}" for line in verdicts.summarise(report.verdict))


def _format_table(table: Table) -> Iterator[str]:
    """The table's lines; names are left, numbers right, as on a terminal."""
    numbers = "---:" if any(table.headings) else "---"
    yield ""
    yield _format_row(table.headings)
    yield _format_row(("---", *(numbers for _ in table.headings[1:])), raw=True)
    yield from (_format_row(row) for row in table.rows)


def _format_row(cells: tuple[str, ...], *, raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escape(cell) for cell in cells) + " |"
