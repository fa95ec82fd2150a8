"""What a validation tells of single images and of classes, as tables: the worst of each, a table a candidate."""

from __future__ import annotations

from collections.abc import Iterator

from vitdeploy.render.tables import Table, format_metric
from vitdeploy.report import Answer, Metric, Report

SHOWN = 5
"""Images, and classes, of a table."""


def tabulate_examples(report: Report, most: int = SHOWN) -> Iterator[Table]:
    """The images that are farthest from the reference, and the classes that lost most.

    Args:
        report: Of `validate`; of others there is nothing to tell.
        most: Rows of a table.
    """
    from vitdeploy.measure.bitmaps import compare_parts  # numpy, which `inspect` does without

    images = report.images
    if images is None:
        return
    for subject, worst in images.worst.items():
        headings = ("image", "apart", "label", report.reference, subject)
        rows = (
            (
                image.name,
                format_metric(Metric(image.apart)),
                image.label or "",
                format_answer(image.expected),
                format_answer(image.given),
            )
            for image in worst[:most]
        )
        yield _drop_empty(Table(f"worst images: {subject}", headings, tuple(rows)))
    for subject in images.same:
        parts = [part for part in compare_parts(images, report.reference, subject) if part.lost > part.gained]
        parts = sorted(parts, key=lambda part: part.difference.value)[:most]
        if parts:
            headings = ("class", "images", report.reference, subject, "difference")
            lines = (
                (part.value, f"{part.images:,}", *map(format_metric, (part.before, part.after, part.difference)))
                for part in parts
            )
            yield Table(f"classes that lost most: {subject}", headings, tuple(lines))


def format_answer(answer: Answer | None) -> str:
    """``cat 93.1 %`` for a class or label, ``0: 5.72`` for one of several numbers; nothing for nothing."""
    if answer is None:
        return ""
    return f"{answer.name}{' ' if answer.value.unit else ': '}{format_metric(answer.value)}"


def _drop_empty(table: Table) -> Table:
    """The table without columns in which nothing stands."""
    kept = [number for number in range(len(table.headings)) if any(row[number] for row in table.rows)]
    headings, *rows = (tuple(row[number] for number in kept) for row in (table.headings, *table.rows))
    return Table(table.title, headings, tuple(rows))
