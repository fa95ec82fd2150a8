"""What a command answers: the record for ``--json``, how it is printed, and what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.cli.shell import Outcome
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.codes import Code
    from vitdeploy.fleet.box import Connection
    from vitdeploy.fleet.outcomes import Shipped
    from vitdeploy.recipe import CompileConfig
    from vitdeploy.render.tables import Table
    from vitdeploy.report import Report, Verdict
    from vitdeploy.verbs.reporter import Page
    from vitdeploy.words import VerdictFormat

GATE_FAILED = 1
"""Exit status of a model that is not good enough: a result, and no error."""


REPORTS = (".json", ".md", ".html")
"""Endings of the files that reports are written to: the numbers, or a page."""
VERDICTS = (*REPORTS, ".xml")
"""Those of verdicts: JUnit too."""


def answer_artifact(artifact: Artifact, tables: Sequence[Table], following: str) -> Outcome:
    """What a verb wrote.

    Args:
        artifact: The result.
        tables: It, for people.
        following: The command to try next, with ``{}`` for the artifact's folder.
    """
    from vitdeploy.render import console

    record = {"schema_version": 1, "path": str(artifact.folder), "id": artifact.id, "record": artifact.record}
    unproven = f"{artifact.record.unproven}; " if artifact.record.unproven else ""
    hint = f"wrote {artifact.folder}; {unproven}next: vitdeploy {following.replace('{}', quote(artifact.folder))}"
    return Outcome(record, lambda: console.print_tables(tables), hint)


def answer_report(report: Report, out: Path | None, following: str) -> Outcome:
    """Write the report where asked, and leave it for printing."""
    from vitdeploy import files, jsonfile
    from vitdeploy.render import console, markdown, page, tables

    if out is not None:
        formats = {".json": jsonfile.encode, ".md": markdown.format_report, ".html": page.format_report}
        files.write(out, formats[out.suffix](report))
    wrote = "" if out is None else f"wrote {out}; "
    return Outcome(
        report,
        lambda: console.print_report(report),
        f"{wrote}next: {following}",
        exit=0 if report.passed else GATE_FAILED,
        show_more=lambda: console.print_tables(tables.tabulate_surroundings(report)),
    )


def answer_verdict(verdict: Verdict, out: Sequence[Path], output_format: VerdictFormat) -> Outcome:
    """Write the verdict where asked, and leave it for printing; a job's summary on GitHub comes by itself."""
    from vitdeploy import files, jsonfile
    from vitdeploy.render import console, github, junit, markdown, page

    formats = {".json": jsonfile.encode, ".md": markdown.format_verdict, ".xml": junit.format_verdict}
    formats[".html"] = page.format_verdict
    for path in out:
        files.write(path, formats[path.suffix](verdict))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if output_format == "github" and summary:
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(github.format_summary(verdict))
    texts = {"json": jsonfile.encode, "md": markdown.format_verdict, "junit": junit.format_verdict}
    texts["github"] = github.format_annotations

    def show() -> None:
        if output_format == "text":
            console.print_verdict(verdict)
        else:
            console.print_raw(texts[output_format](verdict))

    return Outcome(verdict, show, f"wrote {', '.join(map(str, out))}" if out else "", 0 if verdict.passed else GATE_FAILED)


def check_verdict_files(out: Sequence[Path]) -> None:
    """Refuse files that can't be written, or of which nobody knows what to write, before anything is measured."""
    from vitdeploy import files

    for path in out:
        if path.suffix not in VERDICTS:
            raise UsageError("VD2003", f"{path} is no file of a verdict", fix="use .json, .md, .html, or .xml for JUnit")
        files.check_file(path)


def check_baseline_file(baseline: Path | None) -> None:
    """Refuse a baseline that can't be one, before anything is measured."""
    from vitdeploy import files

    if baseline is not None:
        if baseline.suffix != ".json":
            fix = f"name it {baseline.with_suffix('.json')}"
            raise UsageError("VD2003", f"{baseline} is no file of a baseline", fix=fix)
        files.check_file(baseline)


def answer_page(page: Page) -> Outcome:
    """A page that was written."""
    from vitdeploy.render import console, tables

    rows = {"page": page.path, "size": f"{page.bytes / 2**20:.2f} MiB", "reports": str(page.reports)}
    rows |= {"verdicts": str(page.verdicts), "models": str(page.models), "images": str(page.thumbnails)}
    return Outcome(page, lambda: console.print_tables([tables.tabulate_pairs("", rows)]), f"wrote {page.path}")


def check_page_file(out: Path) -> None:
    """Refuse a page that no browser would show as one, or that can't be written."""
    from vitdeploy import files

    if out.suffix != ".html":
        raise UsageError(
            "VD2008", "can't be written: a page is an .html file", file=out, fix=f"name it {out.with_suffix('.html')}"
        )
    files.check_file(out)


def check_report_file(out: Path | None) -> None:
    """Refuse a report file that can't be written before minutes are spent on its numbers."""
    from vitdeploy import files

    if out is None:
        return
    if out.suffix not in REPORTS:
        fix = f"name it {' or '.join(str(out.with_suffix(suffix)) for suffix in REPORTS)}"
        raise UsageError("VD2008", f"can't be written: reports are {' or '.join(REPORTS)} files", file=out, fix=fix)
    files.check_file(out)


def quote(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def answer_command(artifact: Artifact, config: CompileConfig, out: Path) -> Outcome:
    """The command line that would build an engine in another program."""
    from vitdeploy.backends.targets import write_command
    from vitdeploy.render import console

    command = write_command(artifact, config, out)
    return Outcome({"schema_version": 1, "command": command}, lambda: console.print_text(shlex.join(command), whole=True))


def answer_codes(codes: Mapping[str, Code]) -> Outcome:
    """What error codes mean: one line each, or all of it where there is one code."""
    from vitdeploy.render import console

    lines = [f"{name} (exit {name[2]}): {code.meaning}" for name, code in codes.items()]
    if len(codes) == 1:
        ((name, code),) = codes.items()
        lines += ["", f"example: error[{name}] {code.example}", "", f"what to do: {code.remedy}"]
    record = [{"code": name, "exit": int(name[2]), **code._asdict()} for name, code in codes.items()]
    return Outcome({"schema_version": 1, "codes": record}, lambda: console.print_text("\n".join(lines)))


def hint_at_box(shipped: Shipped, connection: Connection, key: str | None = None) -> str:
    """Where the release lies on the box, and what undoes it; after a plan, what follows it."""
    import msgspec

    box, root = shlex.quote(shipped.state.box), shipped.state.root
    given, usual = (msgspec.to_builtins(each) for each in (connection, type(connection)()))
    way = "".join(f" --{name} {shlex.quote(value)}" for name, value in given.items() if value != usual[name])
    if shipped.outcome == "planned":
        trust = "" if key is None else f" --key {shlex.quote(key)}"
        return f"nothing was sent; next: vitdeploy push BUNDLE {box}{way}{trust}"
    undo = "" if shipped.state.previous is None else f"; to go back: vitdeploy rollback {box}{way}"
    return f"{shipped.state.box} serves {root}/current/bundle{undo}"
