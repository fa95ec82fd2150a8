"""What each benchmark stores: its figures as they were measured, and where, when and by which command.

Nothing heavy is imported here: the page is made of these on a machine that has no engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from vitdeploy.report import Machine, Report, Row

HERE = Path(__file__).parent
F = TypeVar("F")
Runs = dict[str, list[float]]
"""What was run to the seconds of each time."""


class Result(msgspec.Struct, Generic[F], frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file beside a script.

    Attributes:
        benchmark: The script's name.
        command: What was typed; folders of this machine are named by what they are.
        taken: When it ended, UTC, ISO 8601.
        minutes: How long it took.
        load: Of the machine, over the last minute, before and at the end.
        machine: Processor, system, versions.
        figures: What was measured.
    """

    benchmark: str
    command: str
    taken: str
    minutes: float
    load: tuple[float, float]
    machine: Machine
    figures: F


class Demo(msgspec.Struct, frozen=True):
    """The report that `make demo` leaves."""

    report: Report


class Startup(msgspec.Struct, frozen=True):
    """Commands, each run several times."""

    commands: Runs


class LoadTime(msgspec.Struct, frozen=True):
    """One model, loaded by us and by the peer, in turns."""

    model: str
    ours: list[float]
    theirs: list[float]


class ExportTime(msgspec.Struct, frozen=True):
    """Model to exporter to seconds."""

    models: dict[str, Runs]


class Isolation(msgspec.Struct, frozen=True):
    """Command to ``with`` and ``without`` isolation; pairs that ran one after the other."""

    commands: dict[str, Runs]
    limit_s: float


class Calibrated(msgspec.Struct, frozen=True):
    """Our calibration of so many images: seconds in turns with the plain forward pass, peak memory in MiB."""

    images: int
    batch: int
    plain: list[float]
    ours: list[float]
    mib: float


class Peer(msgspec.Struct, frozen=True):
    """Another calibrator; None where it died of its memory limit."""

    title: str
    images: int
    seconds: float | None
    mib: float | None


class Calibration(msgspec.Struct, frozen=True):
    """What calibration costs; sizes in MiB."""

    model: str
    model_mib: float
    tensors: int
    threads: int
    limit_gib: int
    ours: list[Calibrated]
    peers: list[Peer]


class Value(msgspec.Struct, frozen=True):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Check(msgspec.Struct, frozen=True):
    """Our latency beside that of `benchmark_app`: median time of each round in ms, and the ratio of the medians."""

    title: str
    batch: int
    ours: list[float]
    theirs: list[float]
    ratio: Value


class EngineTable(msgspec.Struct, frozen=True):
    """One model in every engine; rows as `vitdeploy bench` has them."""

    model: str
    weights: str
    rows: list[Row]
    checks: list[Check]
    notes: list[str]


class Engines(msgspec.Struct, frozen=True):
    """A table a model."""

    models: list[EngineTable]


class Made(msgspec.Struct, frozen=True):
    """What quantizing cost, in a process of its own."""

    seconds: float
    peak_mib: float
    before_mib: float
    versions: dict[str, str]


class QuantizedRow(msgspec.Struct, frozen=True):
    """A quantizer's model against FP32 in the same engine; shares, points, nats, and ms by batch and round.

    Attributes:
        ours: Whether it is this project's.
        rounds_ms: Batch size to the median time of each round; empty where latency was not measured.
        slower: Batch size to its time over FP32's.
    """

    method: str
    title: str
    precision: str
    ours: bool
    top1: Value
    drop: Value
    agreement: Value
    kl: Value
    made: Made | None
    rounds_ms: dict[int, list[float]]
    slower: dict[int, Value]


class Goal(msgspec.Struct, frozen=True):
    """What was wanted of a model in an engine, and what came out."""

    model: str
    engine: str
    goal: str
    outcome: str
    reached: bool


class QuantizedTable(msgspec.Struct, frozen=True):
    """One model in one engine; the first row is FP32."""

    model: str
    engine: str
    images: int
    rows: list[QuantizedRow]
    notes: list[str]


class Quantization(msgspec.Struct, frozen=True):
    """A table a model and engine, and the goals that can be judged from them."""

    tables: list[QuantizedTable]
    goals: list[Goal]


class Corrected(msgspec.Struct, frozen=True):
    """One method: mean KL divergence in nats, its change against what ships as a share, agreement as a share."""

    method: str
    kl: float
    change: Value | None
    agreement: float


class CorrectedModel(msgspec.Struct, frozen=True):
    """One model under every method; the first is what ships."""

    name: str
    images: int
    rows: list[Corrected]


class Corrections(msgspec.Struct, frozen=True):
    """A table a model."""

    models: list[CorrectedModel]


class CalibratedOn(msgspec.Struct, frozen=True):
    """INT8 calibrated on one kind of images against FP32 in the same engine: points, a share, nats."""

    model: str
    engine: str
    calibration: str
    images: int
    drop: Value
    agreement: Value
    kl: Value


class CalibrationImages(msgspec.Struct, frozen=True):
    """A row a model, engine and kind of images."""

    rows: list[CalibratedOn]


class MergedRow(msgspec.Struct, frozen=True):
    """A form of a model against FP32 in the same engine: points, a share, nats; and its share of FP32's multiplications.

    Attributes:
        rounds_ms: Batch size to the median time of each round.
        slower: Batch size to its time over that of INT8 that merges nothing.
    """

    title: str
    macs: float
    drop: Value
    agreement: Value
    kl: Value
    rounds_ms: dict[int, list[float]] = {}
    slower: dict[int, Value] = {}


class MergedTable(msgspec.Struct, frozen=True):
    """One model in one engine; the first row is FP32."""

    model: str
    engine: str
    images: int
    rows: list[MergedRow]


class Merging(msgspec.Struct, frozen=True):
    """A table a model and engine."""

    tables: list[MergedTable]


class QuantizeTime(msgspec.Struct, frozen=True):
    """One model, quantized once: CPU seconds of a forward pass of one image (before, after), and of each step."""

    model: str
    images: int
    threads: int
    plain: list[float]
    steps: dict[str, float]


class PowerRow(msgspec.Struct, frozen=True):
    """Shares of the verdicts on models that truly lose so many points of top-1."""

    images: int
    discordant: float
    loss: float
    passed: float
    failed: float
    inconclusive: float


class GatePower(msgspec.Struct, frozen=True):
    """Verdicts at a margin in points, of so many draws a row."""

    margin: float
    draws: int
    rows: list[PowerRow]


class FamilyStep(msgspec.Struct, frozen=True):
    """What one step came to.

    Attributes:
        result: ``ok``; ``refused``: with a code for what was given; ``failed``: with a code for what came out; ``crash``;
            ``not exported``: torch's exporter can't.
        said: The error.
        sqnr: Signal to noise against what it was made from, in dB; the signal is what tells images apart.
        share: Of the multiplications in 8 bits.
    """

    result: str
    said: str = ""
    sqnr: float | None = None
    share: float | None = None


class FamilyRow(msgspec.Struct, frozen=True):
    """One architecture from one of torch's exporters; ``fixed``: at a batch of one, because its code stands no other."""

    library: str
    name: str
    exporter: str
    opset: int
    fixed: bool = False
    steps: dict[str, FamilyStep] = {}


class Families(msgspec.Struct, frozen=True):
    """Rows of all architectures, and how many images set ranges and judge."""

    calibration: int
    images: int
    rows: list[FamilyRow]


class ArmForm(msgspec.Struct, frozen=True):
    """A form of the demo on the emulated box.

    Attributes:
        precision: Of the model.
        isa: What it was quantized for; "" for any.
        pixels: Largest difference of prepared pixels from this machine's, of 255.
        distance: Of the outputs from this machine's, as `proof.engine.distance` has it.
        limit: What the bundle allows.
    """

    precision: str
    isa: str
    pixels: float
    distance: float
    limit: str


class Aarch64(msgspec.Struct, frozen=True):
    """The emulated box, and what ran there."""

    cpu: str
    emulator: str
    python: str
    onnxruntime: str
    forms: list[ArmForm]


KINDS: dict[str, type] = {
    "demo": Demo,
    "quantization": Quantization,
    "engines": Engines,
    "gate_power": GatePower,
    "calibration": Calibration,
    "calibration_images": CalibrationImages,
    "quantize_time": QuantizeTime,
    "merging": Merging,
    "corrections": Corrections,
    "export_time": ExportTime,
    "load_time": LoadTime,
    "startup": Startup,
    "isolation": Isolation,
    "families": Families,
    "aarch64": Aarch64,
}
"""Scripts that store something, in the order of the page."""


def read(name: str, folder: Path = HERE) -> Result | None:
    """What a script stored; None where it did not run."""
    path = folder / f"{name}.json"
    return msgspec.json.decode(path.read_bytes(), type=Result[KINDS[name]]) if path.is_file() else None
