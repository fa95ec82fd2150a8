"""What a command answers: the record for ``--json``, how it is printed, and what to do next."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.cli.shell import Outcome
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.report import Report


def exported(artifact: Artifact) -> Outcome:
    """What `export` wrote."""
    from vitdeploy.render import console, tables

    record = {"schema_version": 1, "path": str(artifact.folder), "id": artifact.id, "record": artifact.record}
    folder = quoted(artifact.folder)
    hint = f"wrote {artifact.folder}; next: vitdeploy validate {folder}"
    return Outcome(record, lambda: console.show([tables.of_artifact(artifact)]), hint)


def quantized(artifact: Artifact) -> Outcome:
    """What `quantize` wrote."""
    from vitdeploy.render import console, tables

    record = {"schema_version": 1, "path": str(artifact.folder), "id": artifact.id, "record": artifact.record}
    folder = quoted(artifact.folder)
    following = f"compile {folder} --backend tensorrt" if artifact.engine == "tensorrt" else f"validate {folder} --data DIR"
    hint = f"wrote {artifact.folder}; next: vitdeploy {following}"
    return Outcome(record, lambda: console.show(tables.of_quantized(artifact)), hint)


def compiled(artifact: Artifact) -> Outcome:
    """What `compile` wrote."""
    from vitdeploy.render import console, tables

    record = {"schema_version": 1, "path": str(artifact.folder), "id": artifact.id, "record": artifact.record}
    following = "validate" if "audit" in artifact.record.proof else "inspect"
    hint = f"wrote {artifact.folder}; next: vitdeploy {following} {quoted(artifact.folder)}"
    return Outcome(record, lambda: console.show(tables.of_compiled(artifact)), hint)


def reported(report: Report, out: Path | None, following: str) -> Outcome:
    """Write the report where asked, and leave it for printing."""
    from vitdeploy import files
    from vitdeploy.render import console, json, markdown

    if out is not None:
        files.write(out, markdown.document(report) if out.suffix == ".md" else json.text(report))
    wrote = "" if out is None else f"wrote {out}; "
    return Outcome(report, lambda: console.report(report), f"{wrote}next: {following}")


def check_file(out: Path | None) -> None:
    """Refuse a report file that can't be written before minutes are spent on its numbers."""
    if out is None:
        return
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError("VD2008", "can't be written: a file in a writable folder is needed", file=out, fix="choose another")


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
