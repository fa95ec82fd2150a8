"""Numbers with units, and the place where they were taken; what limits make of them is a verdict (`proof.verdict`)."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import msgspec

from vitdeploy import files, machine
from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import list_packages
from vitdeploy.errors import InputError, first_line
from vitdeploy.recipe import RANDOM, QuantizeConfig
from vitdeploy.record import Metric as Metric
from vitdeploy.words import Undecided

SCHEMA = 1
Outcome = Literal["pass", "fail", "inconclusive"]
"""What a limit comes to."""


MERGED = "merged"
"""What the settings of a report call the tokens that a file merges in each block: it is another function than its original."""
RECORDED = " (recorded)"
"""Behind the name of a reference that was not run here: its outputs came along."""


class Row(msgspec.Struct, frozen=True):
    """What was measured on one subject.

    Attributes:
        subject: Artifact and backend, for people: ``vit / onnxruntime``.
        metrics: Metric name to number, in the order of the table's columns.
        settings: Threads, precision, device and whatever else the numbers depend on.
    """

    subject: str
    metrics: dict[str, Metric]
    settings: dict[str, Any] = {}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Images told apart by what is known of them, a class or a column of a manifest.

    Attributes:
        values: Sorted.
        codes: For each image the number of its value: base64 of little-endian 16-bit numbers (`measure.bitmaps.read_codes`).
    """

    values: tuple[str, ...]
    codes: str


class Answer(msgspec.Struct, frozen=True):
    """What a model says of an image.

    Attributes:
        name: Of the class or label, its number where it has no name; of several numbers which one.
        value: Its probability, a share; or the number itself, without a unit.
    """

    name: str
    value: Metric


class WorstImage(msgspec.Struct, frozen=True):
    """An image on which a candidate is far from its reference.

    Attributes:
        name: Within the data.
        apart: How far, as `measure.worst.Worst` has it: nats, a difference, or 1 less a cosine.
        label: The right class; None where it is not known.
        expected: The reference's answer; None for an embedding, and for numbers that are not finite.
        given: The candidate's.
    """

    name: str
    apart: float
    label: str | None = None
    expected: Answer | None = None
    given: Answer | None = None


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """What every image of a validation came to, in the order of their names; bits are base64 (`measure.bitmaps.unpack`).

    Attributes:
        digest: SHA-256, in hex, over names, labels and contents, wherever the images lie.
        count: How many.
        groups: ``class``, and the columns of a manifest.
        right: Subject to one bit an image: its best class is the label.
        same: Candidate to one bit an image: its best class is the reference's.
        calibrated: How many of them the model's ranges were chosen on.
        worst: Candidate to the images on which it is farthest from the reference, the farthest first.
    """

    digest: str
    count: int
    groups: dict[str, Group] = {}
    right: dict[str, str] = {}
    same: dict[str, str] = {}
    calibrated: int = 0
    worst: dict[str, tuple[WorstImage, ...]] = {}


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, and what became of it.

    Attributes:
        about: The artifact, or what the report is about.
        subject: The row of the report.
        name: The threshold.
        limit: As it was written.
        metric: The number that was measured; None where it was not.
        outcome: Whether it holds.
        why: One sentence.
        needed: Images (or rounds) from which the interval would tell, where it does not and any would.
    """

    about: str
    subject: str
    name: str
    limit: str
    metric: Metric | None
    outcome: Outcome
    why: str
    needed: int | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate says.

    Attributes:
        schema_version: Version of this record.
        outcome: ``fail`` if any limit was missed, else ``inconclusive`` if any could not be told, else ``pass``.
        passed: Whether a job may go on: also where inconclusive ones count as passed.
        limits: What was asked: threshold to limit, as it was written.
        inconclusive: What a limit comes to that the interval can't tell.
        gates: One a limit and row.
    """

    schema_version: int = 1
    outcome: Outcome
    passed: bool
    limits: dict[str, str | float]
    inconclusive: Undecided = "fail"
    gates: tuple[Gate, ...]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the numbers were taken."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    versions: dict[str, str]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One table of numbers, or several.

    Attributes:
        schema_version: Version of this record.
        title: What was measured: ``validate``, ``bench``, ``build``.
        reference: The subject that the others are compared with.
        rows: One a subject.
        settings: What holds for all rows: images, seed, rounds.
        notes: Sentences that a reader must not miss (warnings included).
        machine: Where.
        taken: When, UTC, ISO 8601.
        parts: Reports of the stages, for a build.
        verdict: What the limits that hold for such a report make of it; None where there is none.
        images: What every image came to, where they are a data set's.
    """

    schema_version: int = SCHEMA
    title: str
    reference: str = ""
    rows: tuple[Row, ...] = ()
    settings: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    machine: Machine = msgspec.field(default_factory=lambda: this_machine())
    taken: str = msgspec.field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    parts: tuple[Report, ...] = ()
    verdict: Verdict | None = None
    images: Images | None = None

    @property
    def about(self) -> str:
        """The artifact's name, or what the report is called."""
        return str(self.settings.get("artifact", self.title))

    def list_all(self) -> Iterator[Report]:
        """Itself, and every part of it at any depth."""
        yield self
        for part in self.parts:
            yield from part.list_all()

    @property
    def is_recorded(self) -> bool:
        """Whether its reference was not run, but came along."""
        return self.reference.endswith(RECORDED)

    @property
    def passed(self) -> bool:
        """Whether no verdict, here or in a part, says otherwise."""
        return (self.verdict is None or self.verdict.passed) and all(part.passed for part in self.parts)


def read_report(path: Path) -> Report:
    """Read a report that `validate`, `bench` or `build` wrote as JSON.

    Raises:
        InputError: VD3001, it can't be read; VD3028, it is no report.
    """
    try:
        return msgspec.convert(
            json.loads(files.read_bytes(path, files.LARGEST_TEXT)), Report, strict=False
        )  # NaN and infinity are strings in it
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc
    except (ValueError, RecursionError) as exc:
        fix = "give the file that `vitdeploy validate ARTIFACT -o FILE.json` or `bench` wrote"
        raise InputError("VD3028", f"is no report: {first_line(exc)}", file=path, fix=fix) from exc


def read_verdict(path: Path) -> Verdict:
    """Read a verdict that `gate` wrote as JSON, or that of a report.

    Raises:
        InputError: VD3001, it can't be read; VD3028, it is neither, or a report that nothing has judged.
    """
    try:
        return msgspec.convert(json.loads(files.read_bytes(path, files.LARGEST_TEXT)), Verdict, strict=False)
    except (OSError, ValueError, RecursionError):
        verdict = read_report(path).verdict
    if verdict is None:
        fix = "give the file that `vitdeploy gate ARTIFACT -o FILE.json` wrote"
        raise InputError("VD3028", "is a report without a verdict", file=path, fix=fix)
    return verdict


def identify(artifact: Artifact) -> dict[str, str]:
    """What a report says of an artifact that it is about: a gate tells by it whether that was made again since, and from what."""
    record = artifact.record
    made_of = record.config.calibration if isinstance(record.config, QuantizeConfig) else None
    source = RANDOM if made_of == RANDOM else "" if record.calibration is None else record.calibration.source
    path = artifact.folder if record.files else artifact.model
    merged = ", ".join(map(str, artifact.spec.merged))
    more = {"calibration": source, MERGED: merged}
    return {"id": artifact.id, "path": str(path)} | {name: value for name, value in more.items() if value}


def this_machine() -> Machine:
    """The machine this process runs on; cores are those it may use."""
    return Machine(
        cpu=machine.cpu_name(),
        cores=machine.logical_cores(),
        memory_gib=round(machine.physical_mib() / 1024, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=machine.find_versions("torch", "onnx", *list_packages(), "numpy", "pillow"),
    )
