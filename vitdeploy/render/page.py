"""Reports as one HTML page that stands alone: no script, no request, readable on a phone, in the dark and in print.

The page's own policy allows its one style sheet, by digest, and images inside the file; nothing else can be loaded or run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree.ElementTree import Element

from vitdeploy import files
from vitdeploy.data.thumbnails import Thumbnail
from vitdeploy.measure.bitmaps import compare_parts
from vitdeploy.record import CompileProof, QuantizeProof
from vitdeploy.render import tables, verdicts
from vitdeploy.render.charts import Bar, Dot, draw_bars, draw_front, draw_profile
from vitdeploy.render.examples import format_answer
from vitdeploy.render.glance import SHOWN, choose_worth, list_variants
from vitdeploy.render.markup import add, make, write
from vitdeploy.render.tables import Table, format_metric
from vitdeploy.report import Metric, Report, Row, Verdict, WorstImage

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact

_WORDS = {"pass": "Passed", "fail": "Failed", "inconclusive": "Not decided"}
_COLUMNS = 6


class Content(NamedTuple):
    """What a page is made of.

    Attributes:
        reports: What was measured.
        verdicts: Of gates, beside those that reports bring along.
        artifacts: Models whose making is told.
        thumbnails: Of the worst images, by name.
    """

    reports: Sequence[Report]
    verdicts: Sequence[Verdict] = ()
    artifacts: Sequence[Artifact] = ()
    thumbnails: Mapping[str, Thumbnail] = {}


def format_report(report: Report) -> str:
    """A page of one report and its parts."""
    return format_page(Content([report]))


def format_verdict(verdict: Verdict) -> str:
    """A page of a gate's verdict."""
    return format_page(Content([], [verdict]))


def format_page(content: Content) -> str:
    """The whole page; ends with a line break."""
    parts = [part for report in content.reports for part in report.list_all()]
    about = dict.fromkeys([*_list_models(parts), *(artifact.name for artifact in content.artifacts)])
    title = f"vitdeploy: {', '.join(about) or 'gate'}"
    style = make("style")
    style.text = files.read_bytes(Path(__file__).with_name("page.css"), files.LARGEST_TEXT).decode()
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = make(
        "head",
        make("meta", charset="utf-8"),
        make("meta", http_equiv="Content-Security-Policy", content=policy),
        make("meta", name="viewport", content="width=device-width, initial-scale=1"),
        make("meta", name="color-scheme", content="light dark"),
        make("title", title),
        style,
    )
    times = sorted(part.taken[:16].replace("T", " ") for part in parts if part.rows)  # ISO 8601, to the minute
    taken = " to ".join(dict.fromkeys(times[:1] + times[-1:]))
    main = make("main", make("h1", title), make("p", f"Measured {taken} UTC." if taken else None, class_="dim"))
    add(main, _show_verdicts(parts, content.verdicts))
    add(main, _show_variants(content.reports))
    for part in parts:
        add(main, _show_part(part, content.thumbnails))
    for artifact in content.artifacts:
        add(main, _show_artifact(artifact))
    add(main, _show_surroundings(parts))
    return write(make("html", head, make("body", main), lang="en"))


def _list_models(parts: Sequence[Report]) -> Iterator[str]:
    """Names of the models that were measured."""
    for part in parts:
        if "model" in part.settings:
            yield str(part.settings["model"])
        yield from (
            str({**part.settings, **row.settings}["artifact"])
            for row in part.rows
            if "artifact" in row.settings or "id" in part.settings
        )


def _head(part: Report) -> str:
    """What a table is, and of which model: by its folder, where that is known."""
    name = (
        Path(str(part.settings["path"])).name
        if "path" in part.settings
        else part.settings.get("model", part.settings.get("artifact", ""))
    )
    return f"{part.title}: {name}" if name else part.title


def _show_verdicts(parts: Sequence[Report], more: Sequence[Verdict]) -> Iterator[Element]:
    judged = [verdict for verdict in (*(part.verdict for part in parts), *more) if verdict is not None]
    if not judged:
        said = "Nothing was judged: no limits were asked for. The command vitdeploy gate holds these numbers to limits."
        yield make("div", make("strong", "Not judged"), make("p", said), class_="verdict", role="status")
        return
    outcomes = {verdict.outcome for verdict in judged}
    worst = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    gates = [gate for verdict in judged for gate in verdict.gates]
    kept = sum(gate.outcome == "pass" for gate in gates)
    box = make("div", make("strong", _WORDS[worst], class_=f"word-{worst}"), class_=f"verdict {worst}", role="status")
    add(box, [make("p", f"{kept} of {len(gates)} limits are kept, by what was measured and how certain that is.")])
    reasons = [make("li", verdicts.format_gate(gate)) for gate in gates if gate.outcome != "pass"]
    add(box, [make("ul", *reasons)] if reasons else [])
    yield box
    for verdict in judged:
        table = verdicts.tabulate_verdict(verdict)
        yield make("details", make("summary", f"All {len(table.rows)} limits: {verdict.outcome}"), _tabulate(table))


def _show_variants(reports: Sequence[Report]) -> Iterator[Element]:
    """Everything side by side, where there is more than one thing."""
    variants = list_variants(reports)
    if len(variants) < 2:
        return
    yield make("h2", "At a glance")
    worth = choose_worth(variants)
    timed = [variant for variant in variants if {worth, "p50"} <= variant.metrics.keys()] if worth else []
    dots = [Dot(each.name, each.metrics["p50"].value, 100 * each.metrics[worth].value) for each in timed]
    dots = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    numbers = {dot.name: f"{number}. " for number, dot in enumerate(dots, 1)} if len(dots) > 1 else {}
    if numbers:
        yield draw_front(dots, "ms a batch, median: less is better", f"{worth.replace('_', ' ')}, %: more is better")
        yield make("p", "The line joins those than which none is both faster and better.", class_="dim")
    names = tuple(name for name in SHOWN if any(name in variant.metrics for variant in variants))
    rows = tuple(
        (
            numbers.get(variant.name, "") + variant.name,
            *(format_metric(variant.metrics[name]) if name in variant.metrics else "" for name in names),
        )
        for variant in variants
    )
    table = Table("", ("", *(name.replace("_", " ") for name in names)), rows)
    yield _tabulate(tables.turn(table) if len(rows) < len(names) else table)


def _show_part(part: Report, thumbnails: Mapping[str, Thumbnail]) -> Iterator[Element]:
    """One table of numbers with what belongs to it."""
    table = tables.tabulate_report(part)
    yield make("h2", _head(part))
    yield from _list_notes(part.notes)
    layers = [(row.subject, row.metrics["layer_sqnr"].value) for row in part.rows if "layer_sqnr" in row.metrics]
    if layers:
        yield draw_profile(layers, "signal to noise, dB")
        yield make("details", make("summary", f"All {len(layers)} layers"), _tabulate(table))
    else:
        bars = [_make_bar(row) for row in part.rows if {"p50", "p90", "p99", "batch"} <= row.metrics.keys()]
        if bars:
            yield make("h3", "Latency: median, and up to 99 of 100 runs")
            yield draw_bars(bars)
        if part.rows:
            many = len(table.headings) > max(_COLUMNS, len(table.rows) + 1)
            yield _tabulate(tables.turn(table) if many else table)
    if part.reference:
        yield make("p", f"Compared with {part.reference}.", class_="dim")
    yield from _show_images(part, thumbnails)


def _make_bar(row: Row) -> Bar:
    p50, p90, p99 = (row.metrics[name].value for name in ("p50", "p90", "p99"))
    return Bar(f"{row.subject}, batch {row.metrics['batch'].value:.0f}", p50, p90, p99, format_metric(row.metrics["p50"]))


def _show_images(part: Report, thumbnails: Mapping[str, Thumbnail]) -> Iterator[Element]:
    images = part.images
    if images is None:
        return
    for subject, worst in images.worst.items():
        yield make("h3", f"Worst images: {subject}")
        said = f"Farthest from {part.reference} first."
        yield make("p", said, class_="dim")
        yield make("ul", *(_show_worst(image, part.reference, subject, thumbnails) for image in worst), class_="gallery")
    for subject in images.same:
        for column in images.groups:
            values = sorted(compare_parts(images, part.reference, subject, column), key=lambda each: each.difference.value)
            if len(values) > 1:
                rows = tuple(
                    (each.value, f"{each.images:,}", *map(format_metric, (each.before, each.after, each.difference)))
                    for each in values
                )
                table = Table("", (column, "images", part.reference, subject, "difference"), rows)
                summary = f"{subject}: all {len(rows)} values of {column}, the greatest loss first"
                yield make("details", make("summary", summary), _tabulate(table))


def _show_worst(image: WorstImage, reference: str, subject: str, thumbnails: Mapping[str, Thumbnail]) -> Element:
    item = make("li")
    if image.name in thumbnails:
        picture = thumbnails[image.name]
        source = f"data:image/{picture.kind};base64,{base64.b64encode(picture.content).decode()}"
        small = {"class_": "small"} if picture.is_small else {}
        add(item, [make("img", src=source, alt=f"{image.name}, as the model sees it", **small)])
    add(item, [make("div", image.name), make("div", f"apart {format_metric(Metric(image.apart))}", class_="dim")])
    lines = {"label": image.label, reference: format_answer(image.expected), subject: format_answer(image.given)}
    return add(item, [make("div", make("span", f"{name}: ", class_="dim"), said) for name, said in lines.items() if said])


def _show_artifact(artifact: Artifact) -> Iterator[Element]:
    """How a model was made: rewritten, quantized, and what runs in which precision."""
    proof = artifact.record.proof
    yield make("h2", f"Made: {artifact.folder.name}")
    if isinstance(proof, QuantizeProof):
        made = tables.tabulate_quantized(artifact)
    elif isinstance(proof, CompileProof):
        made = tables.tabulate_compiled(artifact)
    else:
        made = [tables.tabulate_export(artifact)]
    for table in made:
        yield from ([make("h3", table.title)] if table.title else [])
        yield _tabulate(table)


def _show_surroundings(parts: Sequence[Report]) -> Iterator[Element]:
    if not parts:
        return
    yield make("h2", "What the numbers depend on")
    machines = list(dict.fromkeys(tables.tabulate_machine(part.machine) for part in parts if part.rows))
    for machine in machines:
        yield make("h3", "Machine")
        yield _tabulate(machine)
    for part in parts:
        rows = {row.subject: tables.format_setting(row.settings) for row in part.rows if row.settings}
        both = [tables.tabulate_settings(part)] if part.settings else []
        both += [tables.tabulate_pairs("", rows)] if rows else []
        if both:
            yield make("details", make("summary", f"Settings of {_head(part)}"), *map(_tabulate, both))


def _list_notes(notes: Sequence[str]) -> Iterator[Element]:
    if notes:
        items = [make("li", note, **({"class_": "warning"} if note.startswith("WARNING") else {})) for note in notes]
        yield make("ul", *items)


def _split(cell: str, mark: Mapping[str, str]) -> list[Element | str]:
    """A number and its interval, between which alone a line may end."""
    value, bracket, interval = cell.partition(" [")
    if not mark:
        return [cell]
    parts: list[Element | str] = [make("span", value)]
    return [*parts, " ", make("span", f"[{interval}")] if bracket else parts


def _tabulate(table: Table) -> Element:
    """A table that scrolls by itself where it is wider than the screen; also by keyboard."""
    headed = any(table.headings)
    numbers = [
        headed and all(not row[place] or row[place][0] in "-0123456789" or row[place][:3] in ("NaN", "inf") for row in table.rows)
        for place in range(len(table.headings))
    ]
    marks = [{"class_": "number"} if number else {} for number in numbers]
    rows = [
        make(
            "tr",
            make("th", row[0], scope="row"),
            *(make("td", *_split(cell, mark), **mark) for cell, mark in zip(row[1:], marks[1:], strict=True)),
        )
        for row in table.rows
    ]
    heading = make("tr", *(make("th", name, scope="col", **mark) for name, mark in zip(table.headings, marks, strict=True)))
    whole = make("table", make("thead", heading) if headed else None, make("tbody", *rows), class_="" if headed else "words")
    return make("div", whole, class_="wide", tabindex="0", role="region", aria_label=table.title or "table")
