"""Records as plain tables of text, before anything decides how a table looks.

A number is written with its unit, with as many digits as it deserves, and with its interval: ``93.1 % [92.0, 94.1]``. A NaN
is written as NaN; an absent number is an empty cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from vitdeploy.record import Calibration, CompileProof, ExportProof, Origin, QuantizeProof, SiteChoice
from vitdeploy.render.contracts import describe_assumption, describe_contract, describe_trial
from vitdeploy.report import Machine, Metric, Report
from vitdeploy.words import GIVES
from vitdeploy.zoo import cost

if TYPE_CHECKING:
    from vitdeploy.artifact import Artifact
    from vitdeploy.onnxfile.model import Port
    from vitdeploy.spec import ModelSpec
    from vitdeploy.verbs.inspector import Inspection
    from vitdeploy.zoo.variants import Variant

_SUFFIX = {"share": " %", "ratio": "x", "count": "", "": ""}
_TINY = 1e-3  # numbers without unit below this are differences and tolerances: written as powers of ten
_MOST_DECIMALS = 4
_NEARLY_ONE, _MOST_NINES = 0.999, 9
_HARDEST = 5
_SHA256 = 64  # hexadecimal digits


class Table(NamedTuple):
    """A table of text, not yet escaped.

    Attributes:
        title: What it shows, or "".
        headings: One a column.
        rows: As many cells as headings, each.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def format_metric(number: Metric) -> str:
    """A number with unit and interval: ``1.23 ms``, ``2.41x [2.38, 2.44]``, ``99.97 %``, ``NaN ms``."""
    scale = 100.0 if number.unit == "share" else 1.0
    values = [None if v is None else v * scale for v in (number.value, number.low, number.high)]
    value, low, high = values
    assert value is not None
    style = _choose_format(value, number.unit)
    suffix = _SUFFIX.get(number.unit, f" {number.unit}")
    interval = "" if low is None or high is None else f" [{_write(low, style)}, {_write(high, style)}]"
    return f"{_write(value, style)}{suffix}{interval}"


def _choose_format(value: float, unit: str) -> str:
    """The format for a value and its interval: all three get the digits that the value deserves."""
    if not math.isfinite(value):
        return ",.3g"
    if unit == "count" and value == round(value):
        return ",.0f"
    if unit == "share":
        return f",.{_count_decimals(value)}f"
    if unit in ("dB", "points"):
        return ",.2f" if unit == "points" else ",.1f"
    if value == 0:
        return ",.0f"
    if unit in ("", "nats") and abs(value) < _TINY:
        return ".2e"
    if unit == "" and _NEARLY_ONE < value < 1:  # a cosine: what counts is how much is missing
        return f".{min(_MOST_NINES, math.ceil(-math.log10(1 - value)) + 1)}f"
    return f",.{max(0, 2 - math.floor(math.log10(abs(value))))}f"


def format_number(value: float) -> str:
    """Three digits that count, or all before the point: ``0.0284``, ``5.72``, ``1,136``."""
    return _write(value, _choose_format(value, "number"))


def _shorten_digest(value: object) -> object:
    """The first digits of a SHA-256; people compare those."""
    return value[:12] if isinstance(value, str) and len(value) == _SHA256 and value.isalnum() else value


def _count_decimals(value: float) -> int:
    """One decimal, or as many as keep 99.97 % from being called 100.0 %."""
    for decimals in range(1, _MOST_DECIMALS):
        if round(value, decimals) not in (0.0, 100.0) or value in (0.0, 100.0):
            return decimals
    return _MOST_DECIMALS


def _write(value: float, style: str) -> str:
    if math.isnan(value):
        return "NaN"
    return format(value, style) if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def tabulate_report(report: Report) -> Table:
    """A report's own rows: one line a subject, one column a metric, in the order in which metrics first appear."""
    names = tuple(dict.fromkeys(name for row in report.rows for name in row.metrics))
    rows = tuple(
        (row.subject, *(format_metric(row.metrics[name]) if name in row.metrics else "" for name in names)) for row in report.rows
    )
    about = report.settings.get("artifact", "")
    title = f"{report.title}: {about}" if about else report.title
    return Table(title, ("subject", *(name.replace("_", " ") for name in names)), rows)


def turn(table: Table) -> Table:
    """The same table with a line a column: for many numbers on few subjects."""
    columns = zip(*table.rows, strict=True)
    first = next(columns, ())
    lines = tuple((heading, *column) for heading, column in zip(table.headings[1:], columns, strict=True))
    return Table(table.title, (table.headings[0], *first), lines)


def walk(report: Report) -> Iterator[Report]:
    """A report and its parts, outermost first."""
    yield report
    for part in report.parts:
        yield from walk(part)


def tabulate_settings(report: Report) -> Table:
    """What held for all rows."""
    return tabulate_pairs("settings", {key: format_setting(_shorten_digest(value)) for key, value in report.settings.items()})


def tabulate_machine(machine: Machine) -> Table:
    """Where the numbers were taken."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rows = {
        "CPU": machine.cpu,
        "cores": str(machine.cores),
        "memory": f"{machine.memory_gib:.1f} GiB",
        "system": machine.system,
        "Python": machine.python,
        "packages": versions or "none",
    }
    return tabulate_pairs("machine", rows)


def tabulate_surroundings(report: Report) -> list[Table]:
    """What the numbers of a report and of its parts depend on: the settings of each, of each subject, and the machine."""
    content = []
    for part in walk(report):
        content += [tabulate_settings(part)._replace(title=f"{part.title}: settings")] if part.settings else []
        rows = {row.subject: format_setting(row.settings) for row in part.rows}
        content += [tabulate_pairs(f"{part.title}: engines", rows)] if rows else []
    return [*content, tabulate_machine(report.machine)]


def tabulate_pairs(title: str, rows: dict[str, str]) -> Table:
    """Names and values as a table of two columns without headings."""
    return Table(title, ("", ""), tuple(rows.items()))


def format_setting(value: object) -> str:
    """A setting for people: ``1, 8`` for a list, ``a = 1, b = 2`` for a table, ``none`` for nothing."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {format_setting(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(format_setting(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def tabulate_export(artifact: Artifact) -> Table:
    """What an export wrote, and what was proven of it."""
    record, spec = artifact.record, artifact.spec
    size = sum(path.stat().st_size for path in artifact.folder.glob(f"{record.entry}*")) / 2**20
    rows = {
        "artifact": str(artifact.folder),
        "model": spec.name,
        "cost": _describe_cost(spec),
        "file": f"{record.entry}, {size:,.1f} MiB, {record.precision}",
        "input": describe_contract(spec.input),
        "assumed": describe_assumption(record.origin),
        "output": _describe_output(spec),
        "weights": _describe_weights(record.origin),
        "proof": _describe_proof(record.proof),
        "contract": describe_trial(record.proof),
        "not proven": record.unproven,
    }
    rows |= {f"note {number}": note for number, note in enumerate(record.origin.notes, 1)}
    if left_out := record.origin.left_out:
        rows["left out"] = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3]) + "; ..." * (len(left_out) > 3)
    return tabulate_pairs("", {name: text for name, text in rows.items() if text})


def tabulate_quantized(artifact: Artifact) -> list[Table]:
    """What `quantize` wrote: the verdict, what runs in which precision, and the inputs that were hardest to quantize."""
    record, proof = artifact.record, artifact.record.proof
    assert isinstance(proof, QuantizeProof)
    size = sum(path.stat().st_size for path in artifact.folder.glob(f"{record.entry}*")) / 2**20
    rows = {
        "artifact": str(artifact.folder),
        "model": artifact.spec.name,
        "file": f"{record.entry}, {size:,.1f} MiB, {record.precision} for {artifact.engine or 'portable'}",
        "output": _describe_output(artifact.spec),
        "rewrites": ", ".join(f"{name} {count}" for name, count in proof.rewrites.items()),
        "calibration": _describe_calibration(proof.calibration),
    }
    for engine, census in proof.census.items():
        rows[f"runs in {engine}"] = ", ".join(f"{count} {kind}" for kind, count in census.counts.items())
    rows |= {f"note {number}": note for number, note in enumerate(proof.notes, 1)}
    if proof.fp16 is not None and proof.fp16.overflow:
        first, *others = proof.fp16.overflow
        more = f" and {len(others)} more" if others else ""
        rows["kept FP32"] = f"{first.tensor} reaches {first.max_abs:.3g}{more}: beyond half of what FP16 holds"
    rows["verdict"] = proof.verdict or "not measured"
    return [tabulate_pairs("", {name: text for name, text in rows.items() if text}), *_tabulate_hardest(proof.sites)]


def tabulate_compiled(artifact: Artifact) -> list[Table]:
    """What `compile` wrote: settings, what runs in which precision, distances, and what was measured."""
    record, proof = artifact.record, artifact.record.proof
    assert isinstance(proof, CompileProof)
    size = sum((artifact.folder / name).stat().st_size for name in record.files if name != record.weights) / 2**20
    asked = {name: value for name, value in msgspec.structs.asdict(proof.run).items() if value not in (None, False)}
    given = asked if proof.audit is None else proof.audit.settings
    rows = {
        "artifact": str(artifact.folder),
        "model": artifact.spec.name,
        "engine": f"{record.kind}, {record.precision}, {record.entry}, {size:,.1f} MiB with what comes along",
        "output": _describe_output(artifact.spec),
        "settings": ", ".join(f"{name} {value}" for name, value in given.items()),
        "built": f"in {proof.build_s:g} s" + (f", build {proof.builds}" if proof.builds > 1 else ""),
    }
    if proof.audit is not None and proof.audit.census is not None:
        rows["runs"] = ", ".join(f"{count} {kind}" for kind, count in proof.audit.census.counts.items())
    if proof.audit is not None and proof.audit.distances:
        apart = max(proof.audit.distances.values())
        rows["outputs"] = f"{apart:.2g} from those of {proof.audit.golden} (limit {proof.audit.limit:g})"
    rows |= {f"note {number}": note for number, note in enumerate(proof.notes, 1)}
    rows["verdict"] = proof.verdict
    tables = [tabulate_pairs("", {name: text for name, text in rows.items() if text})]
    if proof.optimise is not None and (times := proof.optimise.measured):
        best = min(times.values())
        cells = tuple(
            (name, f"{value:.2f}", f"{best / value:.2f}x") for name, value in sorted(times.items(), key=lambda it: it[1])
        )
        tables.append(Table("measured settings", ("settings", "ms", "against the fastest"), cells))
    return tables


def _describe_calibration(data: Calibration | None) -> str:
    if data is None:
        return ""
    if data.source == "random":
        return f"{data.images} RANDOM images: good for latency, not for accuracy"
    return f"statistics in {data.folder}" if data.images is None else f"{data.images} images of {data.source}"


def _tabulate_hardest(sites: Sequence[SiteChoice]) -> Iterator[Table]:
    """The inputs whose rounding adds most to the output of their layers."""
    worst = sorted(sites, key=lambda site: -site.error_db)[:_HARDEST]
    if worst:
        cells = tuple(
            (
                site.layers[0].removesuffix("/MatMul"),
                f"{site.error_db:.1f} dB",
                f"{site.untouched_db:.1f} dB",
                "at run time" if site.lane else site.chosen,
            )
            for site in worst
        )
        yield Table("hardest inputs", ("layer", "error", "without equalisation", "chosen"), cells)


def _describe_cost(spec: ModelSpec) -> str:
    if spec.network == "module":
        return "unknown: a module's"
    millions, billions = cost.count_parameters(spec) / 1e6, cost.count_macs(spec) / 1e9
    return f"{format_number(millions)} M parameters, {format_number(billions)} GMAC an image"


def _describe_output(spec: ModelSpec) -> str:
    what = "features" if spec.head == "none" else GIVES[spec.task].replace("an embedding", "numbers of an embedding")
    if spec.task == "regression" and spec.output_size == 1:
        what = "number as it is"
    return f"{spec.output}, {spec.output_size} {what}"


def _describe_weights(origin: Origin) -> str:
    if origin.random_seed is not None:
        return f"RANDOM (seed {origin.random_seed}): good for latency and parity, not for accuracy; give --weights"
    if origin.module:
        return f"of the module {origin.module}"
    if origin.files:
        files = (f"{name} (sha256 {_shorten_digest(digest)})" for name, digest in origin.files.items())
        return f"{origin.source}: {', '.join(files)}"
    return f"{origin.file or 'unknown'}, sha256 {_shorten_digest(origin.sha256 or 'unknown')}"


def _describe_proof(proof: object) -> str:
    if not isinstance(proof, ExportProof):
        return "none"
    apart = f"{proof.difference:.1e}, {proof.relative:.1e} of its standard deviation"
    code = "".join(f"; from {name} {share:.1e} of its standard deviation" for name, share in proof.against.items())
    return f"at batch {format_setting(proof.batches)}: largest difference from PyTorch {apart}{code}"


def tabulate_inspection(inspection: Inspection) -> list[Table]:
    """What `inspect` saw, as names and values; a table of facts is indented below its name."""
    rows = {"path": inspection.path, "kind": inspection.kind, "size": f"{inspection.bytes:,} bytes"}
    if inspection.sha256 is not None:
        rows["sha256"] = inspection.sha256
    if inspection.graph is not None:
        ports = (("in", inspection.graph.inputs), ("out", inspection.graph.outputs))
        rows |= {f"{way} {port.name}": _describe_port(port) for way, those in ports for port in those}
    for name, fact in inspection.facts.items():
        if isinstance(fact, dict):
            rows[name.replace("_", " ")] = "" if fact else "none"
            rows |= {f"  {key or 'ai.onnx'}": format_setting(_shorten_digest(value)) for key, value in fact.items()}
        else:
            rows.setdefault(name.replace("_", " "), format_setting(fact))
    if inspection.contract is not None:
        rows["input"] = describe_contract(inspection.contract)
    rows |= {f"note {number}": note for number, note in enumerate(inspection.notes, 1)}
    return [tabulate_pairs("", rows)]


def _describe_port(port: Port) -> str:
    shape = "unknown shape" if port.shape is None else f"[{', '.join(str(side) or '?' for side in port.shape)}]"
    return f"{port.dtype or 'unknown type'} {shape}"


def measure_variants(known: Mapping[str, Variant]) -> list[dict[str, object]]:
    """Known models with what they cost: parameters, multiply-accumulates an image, and where they come from."""
    return [
        {
            "name": name,
            "parameters": cost.count_parameters(variant.spec),
            "macs": cost.count_macs(variant.spec),
            "image_size": [variant.spec.input.height, variant.spec.input.width],
            "patch": list(variant.spec.patch),
            "source": variant.spec.source,
        }
        for name, variant in known.items()
    ]


def tabulate_variants(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The known models for people."""
    headings = ("model", "M parameters", "GMAC", "image", "patch")
    return Table(
        "",
        headings,
        tuple(
            (
                row["name"],
                format_number(row["parameters"] / 1e6),
                format_number(row["macs"] / 1e9),
                _format_sides(row["image_size"]),
                _format_sides(row["patch"]),
            )
            for row in rows
        ),
    )


def _format_sides(pair: Sequence[int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} x {pair[1]}"
