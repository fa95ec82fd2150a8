"""The page of benchmarks and the three rows of the top README, made of what the scripts stored.

    python -m tests.benchmarks.tables          write both

A script that stored nothing has no table. `tests/contract/test_pages.py` fails when a page says something else than its JSON.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import family_rows, figures
from tests.benchmarks.figures import HERE, KINDS, Result, Value
from vitdeploy.render import markdown

ROOT = HERE.parents[1]
PAGE, TOP = HERE / "README.md", ROOT / "README.md"
MARKS = "<!-- why: python -m tests.benchmarks.tables -->\n", "<!-- why ends -->\n"
CLOSE = 0.05
"""How far our latency may be from that of `benchmark_app`, as a share of it."""
PROMISED_MIB = 300
"""What calibration may take beside the model."""
BATCHES = (1, 8)

HEADER = """# Benchmarks

Written by `python -m tests.benchmarks.tables` from the JSON file that each script stores beside itself; do not edit. Every table
says which command gives it, where and when it was run, and how busy the machine was. Brackets hold 95 % intervals. A script that
has stored nothing has no table here.
"""


def page(folder: Path = HERE) -> str:
    """The whole page."""
    stored = [(name, result) for name in KINDS if (result := figures.read(name, folder)) is not None]
    return "\n".join([HEADER, *(section(name, result) for name, result in stored)])


def section(name: str, result: Result) -> str:
    """One script's tables with where they come from."""
    title, about, render = SECTIONS[name]
    machine = result.machine
    versions = ", ".join(f"{library} {version}" for library, version in machine.versions.items())
    place = f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}, Python {machine.python}"
    load = f"load {result.load[0]:g} before, {result.load[1]:g} at the end"
    lines = [f"## {title}", "", about, "", *render(result.figures), ""]
    lines += [f"`{result.command}`, {result.minutes:g} minutes, {result.taken}; {load}.", f"{place}; {versions}.", ""]
    return "\n".join(lines)


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table: names are left, numbers right."""
    yield f"| {' | '.join(headings)} |"
    yield f"|---|{'---:|' * (len(headings) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def span(value: Value | None, factor: float = 1.0, form: str = ".2f") -> str:
    """A number with its interval."""
    if value is None:
        return ""
    middle, low, high = (format(factor * part + 0.0, form) for part in (value.value, value.low, value.high))
    return re.sub(r"-(0\.0+)\b", r"+\1" if "+" in form else r"\1", f"{middle} [{low}, {high}]")


def demo(measured: figures.Demo) -> Iterator[str]:
    """The tables of the report, one level down."""
    text = markdown.format_report(measured.report)
    yield re.sub(r"^(#+) ", r"##\1 ", text.partition("\n")[2].strip(), flags=re.M)


def startup(measured: figures.Startup) -> Iterator[str]:
    """Medians and the fastest."""
    times = {name: (statistics.median(runs), min(runs)) for name, runs in measured.commands.items()}
    rows = [(f"`{name}`", *(f"{1000 * seconds:.0f}" for seconds in pair)) for name, pair in times.items()]
    yield from grid(("command", "median, ms", "fastest, ms"), rows)


def load_time(measured: figures.LoadTime) -> Iterator[str]:
    """Both, and the ratio."""
    ratio = statistics.median(ours / theirs for ours, theirs in zip(measured.ours, measured.theirs, strict=True))
    medians = (f"{statistics.median(runs):.2f}" for runs in (measured.ours, measured.theirs))
    headings = ("model", "read, check and build, s", "load_file and an empty module, s", "ratio")
    yield from grid(headings, [(measured.model, *medians, f"{ratio:.2f}")])


def aarch64(measured: figures.Aarch64) -> Iterator[str]:
    """A row a form."""
    yield f"{measured.cpu} in {measured.emulator}; Python {measured.python}, onnxruntime {measured.onnxruntime}.\n"
    rows = [
        (f"{form.precision} {form.isa}".strip(), f"{form.pixels:.0f} of 255", f"{form.distance:.2g}", form.limit)
        for form in measured.forms
    ]
    yield from grid(("form", "pixels", "outputs", "allowed"), rows)


def export_time(measured: figures.ExportTime) -> Iterator[str]:
    """Medians of all, with the runs."""
    rows = [
        (model, name, f"{statistics.median(runs):.1f}", ", ".join(f"{run:.1f}" for run in runs))
        for model, exporters in measured.models.items()
        for name, runs in exporters.items()
    ]
    yield from grid(("model", "exporter", "median, s", "runs, s"), rows)


def isolation(measured: figures.Isolation) -> Iterator[str]:
    """Medians, and the quartiles of the differences of pairs."""
    rows, middles = [], []
    for command, forms in measured.commands.items():
        apart = [one - other for one, other in zip(forms["with"], forms["without"], strict=True)]
        low, middle, high = statistics.quantiles(apart, n=4, method="inclusive") if len(apart) > 1 else apart * 3
        middles.append(middle)
        medians = (f"{statistics.median(forms[form]):.2f}" for form in ("without", "with"))
        rows.append((f"`{command}`", *medians, f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]"))
    yield from grid(("command", "without, s", "with, s", "isolation costs, s (quartiles)"), rows)
    yield f"\nLimit: {measured.limit_s:g} s a command; the largest median is {max(middles):.2f} s."


def gate_power(measured: figures.GatePower) -> Iterator[str]:
    """A line for each number of images, a column for each loss and share of discordant images."""
    cases = dict.fromkeys((row.loss, row.discordant) for row in measured.rows)
    cells = {(row.images, row.loss, row.discordant): row for row in measured.rows}
    yield f"Limit: {measured.margin:g} points; {measured.draws:,} draws a cell: passed / failed / undecided, %.\n"
    headings = ("images", *(f"loses {loss:g}, {100 * discordant:g} % discordant" for loss, discordant in cases))
    counts = sorted({row.images for row in measured.rows})
    rows = [(f"{images:,}", *(_power_cell(cells[(images, *case)]) for case in cases)) for images in counts]
    yield from grid(headings, rows)


def _power_cell(row: figures.PowerRow) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in (row.passed, row.failed, row.inconclusive))


def calibration(measured: figures.Calibration) -> Iterator[str]:
    """Ours beside the forward pass, then the peers."""
    promised = f"{measured.model_mib + PROMISED_MIB:.0f}"
    yield f"{measured.model}, {measured.tensors} tensors observed, {measured.threads} threads.\n"
    rows = []
    for run in measured.ours:
        ratio = statistics.median(ours / plain for ours, plain in zip(run.ours, run.plain, strict=True))
        seconds = (f"{statistics.median(each):.1f}" for each in (run.plain, run.ours))
        rows.append((str(run.images), str(run.batch), *seconds, f"{ratio:.2f}", f"{run.mib:.0f}", promised))
    yield from grid(("images", "batch", "plain, s", "ours, s", "ratio", "peak MiB", "promised"), rows)
    if measured.peers:
        yield ""
        over = f"over {1024 * measured.limit_gib}"
        cells = [
            (peer.title, str(peer.images), *(("died", over) if peer.mib is None else (f"{peer.seconds:.1f}", f"{peer.mib:.0f}")))
            for peer in measured.peers
        ]
        yield from grid(("calibrator", "images", "seconds", "peak MiB"), cells)


def calibration_images(measured: figures.CalibrationImages) -> Iterator[str]:
    """A row a model, engine and kind of images."""
    rows = [
        (
            f"{row.model}, {row.engine}",
            row.calibration,
            span(row.drop, 1, "+.1f"),
            span(row.agreement, 100, ".1f"),
            span(row.kl, 1000),
        )
        for row in measured.rows
    ]
    yield from grid(("model, engine", "calibrated on", "drop, points", "agreement %", "KL x 1e-3"), rows)
    yield f"\n{', '.join(sorted({f'{row.images} test images' for row in measured.rows}))}."


def merging(measured: figures.Merging) -> Iterator[str]:
    """A table a model and engine: what goes away, what it costs, what it gives."""
    for table in measured.tables:
        timed = any(row.rounds_ms for row in table.rows)
        latency = ("b1, ms", "x INT8", "b8, ms", "x INT8") if timed else ()
        yield f"### {table.model}, {table.engine}, {table.images} test images\n"
        headings = ("", "multiplications %", "drop, points", "agreement %", "KL x 1e-3", *latency)
        yield from grid(headings, (_merged_row(row, row is table.rows[0], timed) for row in table.rows))
        yield ""


def _merged_row(row: figures.MergedRow, first: bool, timed: bool) -> tuple[str, ...]:
    apart = ("", "", "") if first else (span(row.drop, 1, "+.1f"), span(row.agreement, 100, ".1f"), span(row.kl, 1000))
    cells = [row.title, f"{100 * row.macs:.1f}", *apart]
    for batch in BATCHES if timed else ():
        cells.append(f"{statistics.median(row.rounds_ms[batch]):.2f}" if batch in row.rounds_ms else "")
        cells.append(span(row.slower.get(batch)))
    return tuple(cells)


def quantize_time(measured: figures.QuantizeTime) -> Iterator[str]:
    """A row a step."""
    image = statistics.mean(measured.plain)
    steps = {**measured.steps, "all": sum(measured.steps.values())}
    rows = [(step, f"{seconds:.0f}", f"{seconds / image:.0f}") for step, seconds in steps.items()]
    yield from grid((f"{measured.model}, {measured.images} images", "CPU seconds", "forward passes of one image"), rows)
    passes = steps["all"] / image / measured.images
    yield f"\nOne image takes {image:.2f} CPU seconds: in all {passes:.1f} forward passes over the images."


def corrections(measured: figures.Corrections) -> Iterator[str]:
    """A table a model."""
    for model in measured.models:
        yield f"### {model.name}, {model.images} images, ONNX Runtime\n"
        cells = ((row.method, f"{1000 * row.kl:.3f}", span(row.change, 100, "+.1f"), row.agreement) for row in model.rows)
        rows = [(*others, f"{100 * agreement:.1f}") for *others, agreement in cells]
        yield from grid(("", "mean KL x 1e-3", "against what ships, %", "agreement %"), rows)
        yield ""


def engines(measured: figures.Engines) -> Iterator[str]:
    """Latency of every form, then ours beside `benchmark_app`."""
    for model in measured.models:
        batches = sorted({int(row.metrics["batch"].value) for row in model.rows})
        yield f"### {model.model}, {model.weights}\n"
        headings = [heading for batch in batches for heading in (f"b{batch}, ms", f"b{batch}, images/s", "x eager")]
        yield from grid(("", *headings), list(_engine_rows(model, batches)))
        if model.checks:
            yield ""
            headings = ["beside benchmark_app", "batch", "ours, ms", "theirs, ms", "ours / theirs", "within 5 %"]
            yield from grid(headings, map(_check_row, model.checks))
        yield ""
        yield from (f"- {markdown.escape(note)}" for note in model.notes)


def _engine_rows(model: figures.EngineTable, batches: Sequence[int]) -> Iterator[tuple[str, ...]]:
    rows = {(row.subject, int(row.metrics["batch"].value)): row.metrics for row in model.rows}
    for title in dict.fromkeys(row.subject for row in model.rows):
        cells = []
        for metrics in (rows[title, batch] for batch in batches):
            faster = metrics.get("speedup")
            cells += [f"{metrics['p50'].value:.2f}", f"{metrics['throughput'].value:.1f}"]
            cells.append("1" if faster is None or faster.low is None else span(Value(faster.value, faster.low, faster.high)))
        yield (title, *cells)


def _check_row(check: figures.Check) -> tuple[str, ...]:
    medians = (f"{statistics.median(part):.2f}" for part in (check.ours, check.theirs))
    close = "yes" if abs(check.ratio.value - 1) <= CLOSE else "**no**"
    return check.title, str(check.batch), *medians, span(check.ratio, 1, ".3f"), close


def quantization(measured: figures.Quantization) -> Iterator[str]:
    """A table a model and engine, then the goals."""
    for table in measured.tables:
        timed = any(row.rounds_ms for row in table.rows)
        latency = ("b1, ms", "x FP32", "b8, ms", "x FP32") if timed else ()
        yield f"### {table.model}, {table.engine}, {table.images} test images\n"
        headings = ("", "top-1 %", "drop, points", "agreement %", "KL x 1e-3", *latency, "quantize, s", "peak MiB")
        yield from grid(headings, (_quantized_row(row, table.rows[0], timed) for row in table.rows))
        yield ""
        yield from (f"- {markdown.escape(note)}" for note in table.notes)
        yield ""
    libraries = sorted(
        {pair for table in measured.tables for row in table.rows if row.made for pair in row.made.versions.items()}
    )
    yield f"Quantizers ran with {', '.join(f'{name} {version}' for name, version in libraries)}.\n"
    if measured.goals:
        yield "### Goals\n"
        judged = {True: "yes", False: "**no**"}
        rows = [(goal.model, goal.engine, goal.goal, goal.outcome, judged[goal.reached]) for goal in measured.goals]
        yield from grid(("model", "engine", "goal", "measured", "reached"), rows)


def _quantized_row(row: figures.QuantizedRow, reference: figures.QuantizedRow, timed: bool) -> tuple[str, ...]:
    cells = [_title(row), f"{100 * row.top1.value:.1f}", *_distance(row, reference)]
    if timed:
        for batch in BATCHES:
            cells.append(f"{statistics.median(row.rounds_ms[batch]):.2f}" if batch in row.rounds_ms else "")
            cells.append("" if row is reference else span(row.slower.get(batch)))
    cells += ["", ""] if row.made is None else [f"{row.made.seconds:.0f}", f"{row.made.peak_mib:.0f}"]
    return tuple(cells)


def _title(row: figures.QuantizedRow) -> str:
    name = f"**{row.title}**" if row.ours else row.title
    return name if row.precision == "f32" else f"{name}, {row.precision}"


def _distance(row: figures.QuantizedRow, reference: figures.QuantizedRow) -> list[str]:
    if row is reference:
        return ["", "", ""]
    return [span(row.drop, 1, "+.1f"), span(row.agreement, 100, ".1f"), span(row.kl, 1000)]


def families(measured: figures.Families) -> Iterator[str]:
    """How often each step went well, the rows, and what was said where one did not."""
    steps = family_rows.list_steps(measured)
    yield f"{measured.calibration} generated images set ranges, {measured.images} others judge.\n"
    yield from grid(("", "architectures", *steps), family_rows.list_counts(measured))
    yield ""
    yield from grid(("architecture", "exporter", "opset", *steps), family_rows.list_rows(measured))
    yield ""
    yield from (f"- {markdown.escape(line)}" for line in family_rows.list_failures(measured))


def why(folder: Path = HERE) -> str:
    """The three rows of the top README: FP32, the closest of the other quantizers, and ours, on one model; "" without figures."""
    result = figures.read("quantization", folder)
    tables = [] if result is None else [table for table in result.figures.tables if table.engine == "onnxruntime"]
    if result is None or not tables:
        return ""
    table = min(tables, key=lambda table: MODELS.index(table.model) if table.model in MODELS else len(MODELS))
    ours = next(row for row in table.rows if row.ours and row.title.endswith("int8"))
    peers = [row for row in table.rows[1:] if not row.ours]
    if not peers:
        return ""
    rows = (table.rows[0], min(peers, key=lambda row: row.kl.value), ours)
    headings = ("", "top-1 %", "drop, points", "same class as FP32, %", "KL x 1e-3", "ms an image")
    lines = ["## Why", "", *grid(headings, (_short_row(row, table.rows[0]) for row in rows)), ""]
    about = MODELS_SAID.get(table.model, table.model)
    lines += [
        f"{about}, {table.images} test images, ONNX Runtime, {result.machine.cpu}, {result.machine.cores} cores.",
        f"The second row is the closest to FP32 of {len(peers)} settings of other quantizers; all of them, and what else was",
        "measured: [the benchmarks](tests/benchmarks/README.md).",
        "",
    ]
    return "\n".join(["", *lines]) + "\n"


def _short_row(row: figures.QuantizedRow, reference: figures.QuantizedRow) -> tuple[str, ...]:
    latency = f"{statistics.median(row.rounds_ms[1]):.2f}" if row.rounds_ms else ""
    return _title(row), f"{100 * row.top1.value:.1f}", *_distance(row, reference), latency


MODELS = ("dinov2", "clip", "fashion")
"""Which model the three rows are of: the first that was measured."""
MODELS_SAID = {
    "dinov2": "DINOv2 ViT-S/14 at 112 pixels with a linear head fitted on CIFAR-10",
    "clip": "CLIP ViT-B/16 with a linear head fitted on CIFAR-10",
    "fashion": "The demo's model on Fashion-MNIST",
}
Renderer = Callable[[Any], Iterator[str]]
SECTIONS: dict[str, tuple[str, str, Renderer]] = {
    "demo": (
        "The demo",
        "What `make demo` reports: a ViT trained on Fashion-MNIST, in PyTorch, ONNX Runtime and OpenVINO, FP32 and INT8.",
        demo,
    ),
    "quantization": (
        "Quantizers compared",
        "Ours and its peers on the same models, 128 calibration images, test images and engines. Drop, agreement and KL\n"
        "divergence are from FP32 in the same engine on the same images; latencies are medians of interleaved rounds. On\n"
        "OpenVINO every model runs twice: its float parts held to f32, and in bf16. `outlier` is `dinov2` with six LayerNorm\n"
        "channels a block made 30 times larger and compensated behind.",
        quantization,
    ),
    "engines": (
        "Engines side by side",
        "Each row in a process of its own, in interleaved rounds. `x eager` is PyTorch eager's time over the row's. The\n"
        "second table compares our figure with that of OpenVINO's own `benchmark_app` for the same file and settings, in turns.",
        engines,
    ),
    "gate_power": (
        "How often the gate is right",
        "A simulation of `vitdeploy gate --max-drop`: models that truly lose nothing, exactly the limit, or twice the limit,\n"
        "with 1 to 5 % of the images answered otherwise than by the reference. At the limit at most 5 % shall pass, or fail.",
        gate_power,
    ),
    "calibration": (
        "What calibration costs",
        "Plain is the forward pass alone; peak memory is over an empty interpreter. Ours does not grow with the images; the\n"
        "promise is the model's size and 300 MiB. ONNX Runtime's own calibrators ran under a memory limit.",
        calibration,
    ),
    "calibration_images": (
        "Calibrated on other images",
        "INT8 as it ships, its ranges set on 128 images of the task, of `calibration/photos`, or of random pixels; against FP32\n"
        "in the same engine on CIFAR-10's test images.",
        calibration_images,
    ),
    "quantize_time": (
        "How long INT8 takes",
        "CPU seconds of each step of `quantize --no-verify`, and how many forward passes of one image that is. Calibration\n"
        "grows with the images; moments (with the rounding against them) do not, above 32. The goal is three forward passes.",
        quantize_time,
    ),
    "merging": (
        "Tokens merged",
        "INT8 as it ships, with tokens merged by different schedules, and NNCF's. Drop, agreement and KL divergence are from\n"
        "FP32 without merging in the same engine on the same images; latencies are medians of interleaved rounds, and `x INT8`\n"
        "is a row's time over that of INT8 that merges nothing. Finding what is alike is no multiplication of this count.",
        merging,
    ),
    "corrections": (
        "Two refinements that are left out",
        "A best factor and bias for each output channel (affine), and tokens weighted by Fisher information. Change of the\n"
        "mean KL divergence against what ships; below 0 is better.",
        corrections,
    ),
    "export_time": (
        "How long an export takes",
        "A whole export with its proof in a fresh process, beside torch.onnx.export alone, which compares nothing. The promise\n"
        "is at most 30 s for ViT-B/16 on two cores.",
        export_time,
    ),
    "load_time": (
        "How long weights take to load",
        "The peer reads the same file and constructs the same module; it checks nothing and does not put the one into the\n"
        "other. The promise is a ratio of at most 2.",
        load_time,
    ),
    "startup": ("How long the command line takes to start", "The promise is below 200 ms.", startup),
    "isolation": (
        "What it costs that engines run in processes of their own",
        "Whole commands on a tiny model, in pairs: what is left is starting and ending.",
        isolation,
    ),
    "families": (
        "What becomes of other architectures",
        "Small networks with random weights, from each of torch's exporters: how far what was made of a file is from the file\n"
        "(signal to noise of the outputs less their mean over images; `same` is above 100 dB), and what share of the\n"
        "multiplications of linear layers is in 8 bits. `checkpoint`: saved by its library and loaded here. `batch 1`: its code\n"
        "or torch's exporter stands no other. Refused is an answer with a code, for what is no Vision Transformer of a known\n"
        "form; failed is ours or an engine's; what torch can't export is no fault of either. Rows that the work folder held\n"
        "already were kept, and are not in the minutes.",
        families,
    ),
    "aarch64": (
        "On a 64-bit Arm box",
        "The demo's forms packed on x86-64 and verified on an emulated Arm core (`make test-aarch64`), from the image file to\n"
        "the outputs: how far they are from where they were packed, and what the bundle allows. A bundle with one byte turned\n"
        "was refused. Emulation says nothing of speed.",
        aarch64,
    ),
}
"""Script to title, what is shown, and how."""


def insert_why(text: str, rows: str) -> str:
    """The top README with the three rows between its markers."""
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    return text[:start] + rows + text[end:]


def main() -> None:
    """Write both pages."""
    PAGE.write_text(page())
    TOP.write_text(insert_why(TOP.read_text(), why()))


if __name__ == "__main__":
    main()
