"""What an earlier model came to, image by image, as a small text file that lives beside the code: the next one is paired with it.

Accuracy is compared on the same images, bit by bit: two separate measurements would need many times the images. Latency is
compared as the ratio to a reference that ran in the same rounds; and only where the machine, its power mode and the versions of
both engines are those of the baseline, for elsewhere the ratio is another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vitdeploy import files, jsonfile
from vitdeploy.errors import InputError, UsageError, first_line
from vitdeploy.measure.bitmaps import compare, pack, unpack
from vitdeploy.report import Gate, Images, Metric, Report, Row

_LINE = 64  # characters of base64: 384 images
_NAME = "the baseline"
_UPDATE = "write it again with --update-baseline"


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast a candidate was.

    Attributes:
        speedup: The reference's latency over the candidate's, in the same rounds.
        low: Lower end of the 95 % interval; None for too few rounds.
        high: Upper end.
        conditions: What the number holds for: machine, power mode, engines with versions, threads.
    """

    speedup: float
    low: float | None = None
    high: float | None = None
    conditions: dict[str, str]


class Candidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model in one engine.

    Attributes:
        about: The model's name.
        subject: Its row of the report.
        artifact: `Artifact.id` of what was measured.
        contract: The input contract, by field; nothing where accuracy was not measured.
        data: `Images.digest`; "" where accuracy was not measured.
        images: How many.
        right: One bit an image, in the order of their names, as `measure.bitmaps.pack` writes them, in lines.
        latency: Batch size to latency.
    """

    about: str
    subject: str
    artifact: str
    contract: dict[str, object] = {}
    data: str = ""
    images: int = 0
    right: tuple[str, ...] = ()
    latency: dict[str, Latency] = {}


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file.

    Attributes:
        schema_version: Version of this record.
        candidates: By model and row.
    """

    schema_version: int = 1
    candidates: tuple[Candidate, ...]

    def find(self, about: str, subject: str) -> Candidate | None:
        """The one of that name."""
        return next((each for each in self.candidates if (each.about, each.subject) == (about, subject)), None)


class Comparison(NamedTuple):
    """Reports whose reference is the baseline, and limits that can't be told by it."""

    reports: tuple[Report, ...]
    untold: tuple[Gate, ...]


def make_baseline(reports: Sequence[Report]) -> Baseline:
    """What these reports say of their candidates.

    Raises:
        UsageError: VD2010, they say nothing that a baseline keeps, or two candidates have one name.
    """
    made: dict[tuple[str, str], Candidate] = {}
    for part in (part for report in reports for part in report.list_all()):
        for candidate in (*_keep_answers(part), *_keep_latencies(part)):
            key = (candidate.about, candidate.subject)
            if key not in made:
                made[key] = candidate
                continue
            old = made[key]
            if old.artifact != candidate.artifact or (old.right and candidate.right):
                message = f"two candidates are called {candidate.about}, {candidate.subject}"
                raise UsageError("VD2010", message, fix="give each its own gate and baseline")
            right = candidate if candidate.right else old
            latency = {**old.latency, **candidate.latency}
            made[key] = msgspec.structs.replace(right, latency=dict(sorted(latency.items(), key=lambda item: int(item[0]))))
    if not made:
        message = "nothing for a baseline: no candidate was measured on labelled images, or beside a reference"
        raise UsageError("VD2010", message, fix="give --data DIR with labelled images")
    return Baseline(candidates=tuple(made[key] for key in sorted(made)))


def read_baseline(path: Path) -> Baseline:
    """Read what `write_baseline` wrote.

    Raises:
        InputError: VD3001, it can't be read; VD3032, it is no baseline.
    """
    try:
        baseline = msgspec.json.decode(files.read_bytes(path, files.LARGEST_TEXT), type=Baseline)
        for each in baseline.candidates:
            if each.right:
                unpack("".join(each.right), each.images)
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path, fix="write one with --update-baseline") from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InputError("VD3032", f"is no baseline: {first_line(exc)}", file=path, fix=_UPDATE) from exc
    return baseline


def format_baseline(baseline: Baseline) -> str:
    """The file's text: the same for the same numbers, one line for some hundred images, ends with a line break."""
    return jsonfile.encode(baseline)


def compare_with(baseline: Baseline, reports: Sequence[Report], file: Path, asked: frozenset[str]) -> Comparison:
    """Put the baseline in the place of the reference.

    Args:
        baseline: The earlier models.
        reports: What was measured now.
        file: The baseline's, for messages.
        asked: Names of thresholds; latency that can't be compared is told where it was asked for.

    Raises:
        InputError: VD3032, accuracy was measured on other images.
    """
    made: list[Report] = []
    untold: list[Gate] = []
    for part in (part for report in reports for part in report.list_all()):
        if part.images is not None:
            made += _pair_answers(baseline, part, part.images, file)
            untold += _list_differences(baseline, part, part.images)
        if "max_slowdown" in asked:
            paired, refused = _pair_latencies(baseline, part)
            made += [paired] if paired.rows else []
            untold += refused
    return Comparison(tuple(made), tuple(untold))


def _name(report: Report, row: Row | None = None) -> str:
    own = None if row is None else row.settings.get("artifact")
    return str(own or report.about)


def _list_right(report: Report, images: Images) -> list[str]:
    return [subject for subject in images.right if subject != report.reference]


def _keep_answers(report: Report) -> Iterator[Candidate]:
    images = report.images
    for subject in [] if images is None else _list_right(report, images):
        assert images is not None
        text = images.right[subject]
        lines = tuple(text[start : start + _LINE] for start in range(0, len(text), _LINE))
        candidate = Candidate(about=_name(report), subject=subject, artifact=str(report.settings.get("id", "")))
        contract = _read_contract(report)
        yield msgspec.structs.replace(candidate, contract=contract, data=images.digest, images=images.count, right=lines)


def _read_contract(report: Report) -> dict[str, object]:
    """How images become pixels; not how an engine takes them."""
    contract = msgspec.json.decode(msgspec.json.encode(report.settings.get("contract", {})))  # lists, as in the file
    return {name: value for name, value in sorted(contract.items()) if name != "tensor"}


def _compare_contracts(old: Candidate, report: Report) -> Iterator[Gate]:
    """The same images, prepared in another way: what the reference does too, so that no comparison with it shows the loss."""
    now = _read_contract(report)
    if other := [name for name in now if old.contract and old.contract.get(name) != now[name]]:
        told = "; ".join(f"{name} was {old.contract.get(name)}, is {now[name]}" for name in other)
        why = f"images are not prepared as for the baseline: {told}; if that is meant, {_UPDATE}"
        yield msgspec.structs.replace(_tell(_name(report), old.subject, "contract", why), outcome="fail")


def _list_timed(report: Report) -> Iterator[tuple[Row, str]]:
    for row in report.rows:
        if "speedup" in row.metrics and row.settings.get("reference") not in (None, row.subject):
            yield row, f"{row.metrics['batch'].value:.0f}"


def _keep_latencies(report: Report) -> Iterator[Candidate]:
    for row, batch in _list_timed(report):
        speedup = row.metrics["speedup"]
        numbers = [None if number is None else float(f"{number:.4g}") for number in (speedup.value, speedup.low, speedup.high)]
        assert numbers[0] is not None
        latency = Latency(speedup=numbers[0], low=numbers[1], high=numbers[2], conditions=_list_conditions(report, row))
        about, made_from = _name(report, row), str(row.settings.get("id", ""))
        yield Candidate(about=about, subject=row.subject, artifact=made_from, latency={batch: latency})


def _list_conditions(report: Report, row: Row) -> dict[str, str]:
    """What a ratio of latencies depends on beside the two models."""
    reference = next((each.settings for each in report.rows if each.subject == row.settings.get("reference")), {})
    conditions = {
        "machine": report.machine.cpu,
        "cores": report.machine.cores,
        "power": report.settings.get("power", ""),
        "engine": f"{row.settings.get('backend')} {row.settings.get('version')}",
        "reference": f"{reference.get('backend')} {reference.get('version')}",
        "threads": row.settings.get("threads"),
        "device": row.settings.get("device"),
    }
    return {name: str(value) for name, value in conditions.items() if value not in (None, "")}


def _pair_answers(baseline: Baseline, report: Report, images: Images, file: Path) -> Iterator[Report]:
    for subject in _list_right(report, images):
        old = baseline.find(_name(report), subject)
        if old is None or not old.right:
            continue
        if (old.data, old.images) != (images.digest, images.count):
            message = (
                f"is of other images: {old.images:,} with digest {old.data[:12]}, "
                f"here are {images.count:,} with {images.digest[:12]}"
            )
            raise InputError("VD3032", message, file=file, fix=f"give the same images, or {_UPDATE}")
        before, after = (unpack(text, images.count) for text in ("".join(old.right), images.right[subject]))
        name, difference = f"{subject} against {_NAME}", compare(before, after)
        if old.artifact == report.settings.get("id"):  # the same file on the same images: nothing is left to chance
            difference = Metric(difference.value, difference.unit)
        row = Row(name, {"top1_difference": difference, "images": Metric(images.count, "count")})
        paired = msgspec.structs.replace(images, right={_NAME: pack(before), name: images.right[subject]}, same={}, worst={})
        settings = {"artifact": _name(report), "images": images.count}
        yield Report(title="baseline", reference=_NAME, rows=(row,), settings=settings, images=paired, machine=report.machine)


def _list_differences(baseline: Baseline, report: Report, images: Images) -> Iterator[Gate]:
    """Images prepared in another way, and what one side has and the other has not: neither may pass in silence."""
    about, subjects = _name(report), _list_right(report, images)
    for subject in subjects:
        old = baseline.find(about, subject)
        yield from () if old is None else _compare_contracts(old, report)
        if old is None or not old.right:
            yield _tell(about, subject, "baseline", f"the baseline has no answers of it; {_UPDATE}")
    for old in baseline.candidates:
        if old.about == about and old.right and subjects and old.subject not in subjects:
            gate = _tell(about, old.subject, "baseline", f"is in the baseline, and was not measured; measure it, or {_UPDATE}")
            yield msgspec.structs.replace(gate, outcome="fail")


def _pair_latencies(baseline: Baseline, report: Report) -> tuple[Report, list[Gate]]:
    rows, refused = [], []
    for row, batch in _list_timed(report):
        about = _name(report, row)
        candidate = baseline.find(about, row.subject)
        old = None if candidate is None else candidate.latency.get(batch)
        if old is None:
            refused.append(_tell(about, row.subject, "max_slowdown", f"the baseline has no latency at batch {batch}; {_UPDATE}"))
            continue
        now = _list_conditions(report, row)
        if other := [name for name in {**old.conditions, **now} if old.conditions.get(name) != now.get(name)]:
            told = "; ".join(f"{name}: {old.conditions.get(name, 'unknown')}, here {now.get(name, 'unknown')}" for name in other)
            why = f"the baseline's latency is of another place and says nothing here ({told}); {_UPDATE} here"
            refused.append(_tell(about, row.subject, "max_slowdown", why))
            continue
        metrics = {"batch": row.metrics["batch"], "slowdown": _divide(old, row.metrics["speedup"])}
        rows.append(Row(f"{row.subject} against {_NAME}", metrics, {"artifact": about}))
    settings = {"artifact": _name(report), "rounds": report.settings.get("rounds", 0)}
    return Report(title="baseline", reference=_NAME, rows=tuple(rows), settings=settings, machine=report.machine), refused


def _divide(old: Latency, new: Metric) -> Metric:
    """The candidate's latency over the baseline's: a quotient of two ratios, whose errors are independent and add as squares.

    Source: the delta method on logarithms, as for a ratio of rates (Altman and Bland (2003), BMJ 326:219).
    """
    value = old.speedup / new.value
    if None in (old.low, old.high, new.low, new.high):
        return Metric(value, "ratio")
    assert old.low is not None
    assert old.high is not None
    assert new.low is not None
    assert new.high is not None
    down = math.hypot(math.log(old.speedup / old.low), math.log(new.high / new.value))
    up = math.hypot(math.log(old.high / old.speedup), math.log(new.value / new.low))
    return Metric(value, "ratio", value * math.exp(-down), value * math.exp(up))


def _tell(about: str, subject: str, name: str, why: str) -> Gate:
    return Gate(about=about, subject=subject, name=name, limit="", metric=None, outcome="inconclusive", why=why)
