"""The rows of the quantization benchmark while it runs, and the verdicts on them; `figures` is what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.benchmarks import figures
from tests.benchmarks.figures import Goal
from tests.benchmarks.ptq import timing
from tests.benchmarks.ptq.compare import Distance, ratio
from tests.benchmarks.ptq.peers import OWN as METHODS
from tests.benchmarks.ptq.peers import PEERS
from tests.benchmarks.ptq.runs import Made
from tests.benchmarks.tables import span
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


def goals(tables: Sequence[Table]) -> list[Goal]:
    """Every goal that can be judged from these tables."""
    return [goal for of in tables for goal in _goals(of)] + list(_outliers(tables))


def _goals(of: Table) -> Iterator[Goal]:
    own, rivals = of.own(), of.peers()
    if own and rivals:
        best = min(rivals, key=lambda row: row.distance.kl.value)
        share, limit = ratio(own.distance.each, best.distance.each), KL_SHARE.get(of.model, 1 / 3)
        text = f"{span(share, 1, '.3f')} of {best.title}'s {1000 * best.distance.kl.value:.2f}e-3"
        yield Goal(of.model, of.engine, f"KL <= {limit:.3f} of the best peer's", text, share.value <= limit)
        closest = max(rivals, key=lambda row: row.distance.agreement.value)
        ours, theirs = own.distance.agreement.value, closest.distance.agreement.value
        text = f"{100 * ours:.1f} %, {closest.title} {100 * theirs:.1f} %"
        yield Goal(of.model, of.engine, "agreement >= the best peer's", text, ours >= theirs)
    for precision in dict.fromkeys(row.precision for row in of.rows):
        yield from _faster(of, precision)
    for row in of.rows:
        if row.method.endswith("fp16") and row.precision == "f32":
            drop = row.distance.drop
            goal = f"FP16 drop <= {FP16_DROP} points"
            yield Goal(of.model, of.engine, goal, span(drop, 1, "+.2f"), drop.value <= FP16_DROP)


def _faster(of: Table, precision: str) -> Iterator[Goal]:
    start, factor = FASTER[of.engine]
    own, rivals = of.own(precision), of.peers(start, precision)
    if own is None or not own.rounds or not rivals:
        return
    for batch in timing.BATCHES:
        fastest = min(rivals, key=lambda row: timing.median(row.rounds, batch))
        time = timing.compared(own.rounds, fastest.rounds, batch)
        goal = f"latency b{batch}, {precision}, <= {factor} of the fastest of {start.strip('-').upper()}"
        yield Goal(of.model, of.engine, goal, f"{span(time, 1, '.3f')} of {fastest.title}'s", time.value <= factor)


def _outliers(tables: Sequence[Table]) -> Iterator[Goal]:
    """The model with outlier channels may not lose more than the plain one."""
    own = {(of.model, of.engine): of.own() for of in tables}
    for engine in OWN:
        plain, outlier = own.get(("dinov2", engine)), own.get(("outlier", engine))
        if plain and outlier:
            drops = [row.distance.drop.value for row in (plain, outlier)]
            kls = [1000 * row.distance.kl.value for row in (plain, outlier)]
            text = f"drop {drops[1]:+.1f} against {drops[0]:+.1f} points, KL {kls[1]:.2f}e-3 against {kls[0]:.2f}e-3"
            yield Goal("outlier", engine, "loses no more than the plain model", text, drops[1] <= drops[0])


def numbers(of: Table) -> figures.QuantizedTable:
    """One table as it is stored: shares, points, nats, ms, seconds, MiB."""
    return figures.QuantizedTable(of.model, of.engine, of.images, [_row(row, of.rows[0]) for row in of.rows], of.notes)


def _row(row: Row, reference: Row) -> figures.QuantizedRow:
    distance, made = row.distance, row.made
    slower = {batch: timing.compared(row.rounds, reference.rounds, batch) for batch in row.rounds}
    cost = made and figures.Made(made.seconds, made.peak_mib, made.before_mib, made.versions)
    return figures.QuantizedRow(
        method=row.method,
        title=row.title,
        precision=row.precision,
        ours=row.method in METHODS,
        top1=distance.top1,
        drop=distance.drop,
        agreement=distance.agreement,
        kl=distance.kl,
        made=cost,
        rounds_ms=row.rounds,
        slower=slower,
    )
