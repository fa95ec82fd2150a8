"""The tables and the verdicts of the quantization benchmark, as Markdown and as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ptq import timing
from ptq.compare import Distance, Value, ratio
from ptq.peers import PEERS
from ptq.runs import Made

from vitdeploy.artifact import Artifact

OWN = {"onnxruntime": "ours", "openvino": "ours-openvino"}
"""Our INT8 method on each engine."""
KL_SHARE = {"clip": 1 / 6}
"""Largest mean KL wanted, as a share of the best peer's; a third for models that are not named."""
FASTER = {"onnxruntime": ("ort-", 0.97), "openvino": ("nncf", 0.95)}
"""Which peers' fastest is to be beaten in latency, and by what factor."""
FP16_DROP = 0.05
"""Largest drop of FP16 wanted, in points."""


@dataclass
class Row:
    """A line of the table.

    Attributes:
        method: Name in `peers.METHODS`, or ``fp32``.
        title: For people.
        precision: What an engine computes its float parts in.
        artifact: The model.
        distance: From FP32.
        made: What quantizing cost, None for FP32.
        rounds: Latency, where measured.
    """

    method: str
    title: str
    precision: str
    artifact: Artifact
    distance: Distance
    made: Made | None = None
    rounds: timing.Rounds = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique within a table."""
        return f"{self.method}/{self.precision}"


@dataclass
class Table:
    """All rows of one model in one engine; the first is FP32. ``notes`` says which are not there, and why."""

    model: str
    engine: str
    images: int
    rows: list[Row]
    notes: list[str]

    def own(self, precision: str = "f32") -> Row | None:
        """Our INT8, its float parts in ``precision``."""
        return next((row for row in self.rows if (row.method, row.precision) == (OWN[self.engine], precision)), None)

    def peers(self, start: str = "", precision: str = "f32") -> list[Row]:
        """The peers' rows whose names begin with ``start``, their float parts in ``precision``."""
        rivals = [row for row in self.rows if row.method in PEERS and row.precision == precision]
        return [row for row in rivals if row.method.startswith(start)]


@dataclass(frozen=True)
class Verdict:
    """One goal on one model and engine."""

    model: str
    engine: str
    goal: str
    found: str
    reached: bool


def table(of: Table) -> str:
    """Markdown of one model in one engine."""
    lines = [
        f"### {of.model}, {of.engine}, {of.images} test images",
        "",
        "| | top-1 % | drop, points | agreement % | KL x 1e-3 | b1, ms | x FP32 | b8, ms | x FP32 | quantize, s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row, of.rows[0]) for row in of.rows]
    lines += ["", *(f"- {note}" for note in of.notes), ""]
    return "\n".join(lines)


def _line(row: Row, reference: Row) -> str:
    found, same = row.distance, row is reference
    cells = [row.title + ("" if row.precision == "f32" else f", {row.precision}"), f"{100 * found.top1.value:.1f}"]
    cells.append("" if same else _span(found.drop, 1, "+.1f"))
    cells.append("" if same else _span(found.agreement, 100, ".1f"))
    cells.append("" if same else _span(found.kl, 1000, ".2f"))
    for batch in timing.BATCHES:
        if not row.rounds:
            cells += ["", ""]
            continue
        cells.append(f"{timing.median(row.rounds, batch):.2f}")
        cells.append("" if same else _span(timing.compared(row.rounds, reference.rounds, batch), 1, ".2f"))
    cells += ["", ""] if row.made is None else [f"{row.made.seconds:.0f}", f"{row.made.peak_mib:.0f}"]
    return f"| {' | '.join(cells)} |"


def _span(value: Value, factor: float, form: str) -> str:
    middle, low, high = (format(factor * part + 0.0, form) for part in (value.value, value.low, value.high))
    return f"{middle} [{low}, {high}]"


def goals(tables: Sequence[Table]) -> str:
    """Markdown of every goal that can be judged from these tables; a line that says so if none can."""
    found = [verdict for of in tables for verdict in _goals(of)] + list(_outliers(tables))
    if not found:
        return "No goal can be judged: none of our own models is among the rows.\n"
    lines = ["### Goals", "", "| model | engine | goal | found | |", "|---|---|---|---|---|"]
    for one in found:
        lines.append(f"| {one.model} | {one.engine} | {one.goal} | {one.found} | {'reached' if one.reached else '**missed**'} |")
    return "\n".join([*lines, ""])


def _goals(of: Table) -> Iterator[Verdict]:
    own, rivals = of.own(), of.peers()
    if own and rivals:
        best = min(rivals, key=lambda row: row.distance.kl.value)
        share, limit = ratio(own.distance.each, best.distance.each), KL_SHARE.get(of.model, 1 / 3)
        text = f"{_span(share, 1, '.3f')} of {best.title}'s {1000 * best.distance.kl.value:.2f}e-3"
        yield Verdict(of.model, of.engine, f"KL <= {limit:.3f} of the best peer's", text, share.value <= limit)
        closest = max(rivals, key=lambda row: row.distance.agreement.value)
        ours, theirs = own.distance.agreement.value, closest.distance.agreement.value
        text = f"{100 * ours:.1f} %, {closest.title} {100 * theirs:.1f} %"
        yield Verdict(of.model, of.engine, "agreement >= the best peer's", text, ours >= theirs)
    for precision in dict.fromkeys(row.precision for row in of.rows):
        yield from _faster(of, precision)
    for row in of.rows:
        if row.method.endswith("fp16") and row.precision == "f32":
            drop = row.distance.drop
            goal = f"FP16 drop <= {FP16_DROP} points"
            yield Verdict(of.model, of.engine, goal, _span(drop, 1, "+.2f"), drop.value <= FP16_DROP)


def _faster(of: Table, precision: str) -> Iterator[Verdict]:
    start, factor = FASTER[of.engine]
    own, rivals = of.own(precision), of.peers(start, precision)
    if own is None or not own.rounds or not rivals:
        return
    for batch in timing.BATCHES:
        fastest = min(rivals, key=lambda row: timing.median(row.rounds, batch))
        time = timing.compared(own.rounds, fastest.rounds, batch)
        goal = f"latency b{batch}, {precision}, <= {factor} of the fastest of {start.strip('-').upper()}"
        yield Verdict(of.model, of.engine, goal, f"{_span(time, 1, '.3f')} of {fastest.title}'s", time.value <= factor)


def _outliers(tables: Sequence[Table]) -> Iterator[Verdict]:
    """The model with outlier channels may not lose more than the plain one."""
    found = {(of.model, of.engine): of.own() for of in tables}
    for engine in OWN:
        plain, outlier = found.get(("dinov2", engine)), found.get(("outlier", engine))
        if plain and outlier:
            drops = [row.distance.drop.value for row in (plain, outlier)]
            kls = [1000 * row.distance.kl.value for row in (plain, outlier)]
            text = f"drop {drops[1]:+.1f} against {drops[0]:+.1f} points, KL {kls[1]:.2f}e-3 against {kls[0]:.2f}e-3"
            yield Verdict("outlier", engine, "loses no more than the plain model", text, drops[1] <= drops[0])


def numbers(of: Table) -> dict[str, Any]:
    """One table for a program: shares, points, nats, ms, seconds, MiB."""
    rows = []
    for row in of.rows:
        found = {name: asdict(getattr(row.distance, name)) for name in ("top1", "drop", "agreement", "kl")}
        made = row.made and {"seconds": row.made.seconds, "peak_mib": row.made.peak_mib, "before_mib": row.made.before_mib}
        about = {"method": row.method, "title": row.title, "precision": row.precision}
        rows.append(about | found | {"made": made, "rounds_ms": row.rounds})
    verdicts = [asdict(verdict) for verdict in _goals(of)]
    return {"model": of.model, "engine": of.engine, "images": of.images, "rows": rows, "notes": of.notes, "goals": verdicts}
