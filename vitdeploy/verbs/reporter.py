"""The command `report`: what was measured, in one page for people who were not there.

Nothing is measured again. A run is a report or a verdict, a model, or a folder that `build` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from vitdeploy import files
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.bundle.unpacking import open_model
from vitdeploy.data import open_dataset
from vitdeploy.data.thumbnails import Thumbnail, draw_thumbnails
from vitdeploy.errors import InputError, UsageError
from vitdeploy.render.page import Content, format_page
from vitdeploy.report import Report, Verdict, read_report, read_verdict
from vitdeploy.spec import InputContract

_BUILD = "report.json"
"""What `build` writes beside its stages."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        schema_version: Version of this record.
        path: The page.
        bytes: Its size.
        reports: How many reports it shows.
        verdicts: How many verdicts of a gate.
        models: Of how many models it tells how they were made.
        thumbnails: Images that it shows.
    """

    schema_version: int = 1
    path: str
    bytes: int
    reports: int
    verdicts: int
    models: int
    thumbnails: int


def write_page(runs: Sequence[Path], out: Path, *, data: Path | None = None, split: str | None = None) -> Page:
    """Write a page that stands alone.

    Args:
        runs: Reports (.json) of `validate`, `bench` or `build`, verdicts (.json) of `gate`, models, bundles, and
            folders of `build`.
        out: The file.
        data: Where the images lie that the reports name: those that are farthest from the reference are shown.
        split: Which part of them.

    Raises:
        UsageError: VD2010, no run.
        InputError: VD3001, VD3028, a report can't be read; as `open_model` and `open_dataset`.
    """
    if not runs:
        raise UsageError("VD2010", "nothing to report", fix="give a report (.json), a model, or a folder that `build` wrote")
    with ExitStack() as stack:
        content = _collect(runs, stack)
        pictures = _draw(content.reports, data, split) if data is not None else {}
        text = format_page(content._replace(thumbnails=pictures))
    files.write(out, text)
    counts = {name: len(getattr(content, name)) for name in ("reports", "verdicts")}
    return Page(path=str(out), bytes=len(text.encode()), **counts, models=len(content.artifacts), thumbnails=len(pictures))


def _collect(runs: Sequence[Path], stack: ExitStack) -> Content:
    """What the runs hold; models of bundles lie there until the stack ends."""
    reports: list[Report] = []
    verdicts: list[Verdict] = []
    models: list[Artifact] = []
    for run in runs:
        if run.suffix == ".json":
            _read(run, reports, verdicts)
        elif run.is_dir() and (run / _BUILD).is_file():
            reports.append(read_report(run / _BUILD))
            models += [Artifact.open(place.parent) for place in sorted(run.glob(f"*/{RECORD}"))]
        else:
            models.append(stack.enter_context(open_model(run)))
    return Content(reports, verdicts, models)


def _read(path: Path, reports: list[Report], verdicts: list[Verdict]) -> None:
    """A report, or a verdict of a gate."""
    try:
        reports.append(read_report(path))
    except InputError as error:
        if error.code != "VD3028":
            raise
        try:
            verdicts.append(read_verdict(path))
        except InputError:
            raise error from None


def _draw(reports: Sequence[Report], data: Path, split: str | None) -> dict[str, Thumbnail]:
    """The worst images of all candidates, each as the model that was measured on it sees it."""
    source = open_dataset(data, split=split)
    pictures: dict[str, Thumbnail] = {}
    for part in (part for report in reports for part in report.list_all()):
        worst = () if part.images is None else part.images.worst.values()
        names = {image.name for kept in worst for image in kept} - pictures.keys()
        if names:
            contract = msgspec.convert(part.settings.get("contract", {}), InputContract)
            pictures |= draw_thumbnails(source, sorted(names), contract)
    return pictures
