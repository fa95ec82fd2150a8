"""Numbers with units, and the place where they were taken. A report has no opinion: that is the gate's."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy.artifact import versions

SCHEMA = 1


class Metric(msgspec.Struct, frozen=True):
    """One number.

    Attributes:
        value: The number, in `unit`. NaN is allowed and never hidden.
        unit: ``ms``, ``images/s``, ``dB``, ``share`` (in [0, 1]), ``count``, ``ratio``, ``points``
            (percentage points), ``MiB``, or "" for none.
        low: Lower end of the 95 % interval, if there is one.
        high: Upper end.
    """

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None


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


def this_machine() -> Machine:
    """The machine this process runs on; cores are those it may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        cpu=_cpu(),
        cores=cores,
        memory_gib=round(memory, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions("torch", "onnx", "onnxruntime", "openvino", "numpy", "pillow"),
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
