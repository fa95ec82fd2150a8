"""What becomes of each of `systems` through the whole line: the table in README.md.

    python -m tests.models.table                run all, store, and write the page

A row is exported as a module, quantized to INT8 for both engines and to FP16, validated and measured. What is stored are facts
that hardly depend on the machine: whether it went through, and how near the outputs are to FP32 in the same engine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

import vitdeploy as vd
from tests.models import mappings
from tests.models.systems import SYSTEMS, size_images
from tests.quant.in_process import quantize
from vitdeploy import files, jsonfile
from vitdeploy.errors import VitdeployError

HERE = Path(__file__).parent
STORED, PAGE = HERE / "systems.json", HERE / "README.md"
IMAGES = 64
FORMS = {
    "INT8, ONNX Runtime": ("onnxruntime", "int8"),
    "INT8, OpenVINO": ("openvino", "int8"),
    "FP16": ("onnxruntime", "fp16"),
}
"""Heading to target and precision."""
COLUMNS = ("map", "module", *FORMS, "validate", "bench")
HEAD = """# Networks of one's own making

Written by `python -m tests.models.table` from `systems.json`; do not edit. Each network of `systems.py` differs in one thing from
the papers' and is exported with `--module`, quantized, validated and measured; weights are random. `map` is its export from a
mapping file and weights alone, found to be the same function by `--against`; it is empty where no field of the spec says what is
particular. Numbers are the ratio of signal to noise of the outputs beside FP32 in the same engine, in dB, on 64 generated
images; a code is that of an error. `validate` compares the export in both engines with what PyTorch gave, and `bench` measures it
in both.

"""


class Row(msgspec.Struct, frozen=True):
    """A system's way: column to ``ok``, dB, or the code of an error."""

    name: str
    about: str
    cells: dict[str, str]


def run(name: str, work: Path) -> Row:
    """Everything with one system."""
    side, channels = size_images(name)
    half = (0.5,) * channels
    cells: dict[str, str] = {}

    def note(column: str, do: Callable[[], str]) -> None:
        try:
            cells[column] = do()
        except VitdeployError as error:
            cells[column] = error.code

    def translate() -> str:
        mapping, weights = mappings.write(name, work)
        model = vd.ModelConfig(source=str(mapping), weights=str(weights))
        vd.export(model, vd.ExportConfig(), work / "mapped", against=f"tests.models.systems:{name}")
        return "ok"

    def export() -> str:
        contract = vd.InputContract(height=side, width=side, channels=channels, resize="stretch", mean=half, std=half)
        files.write(work / "input.json", jsonfile.encode(contract))
        model = vd.ModelConfig(source=f"tests.models.systems:{name}", module=True, contract=str(work / "input.json"))
        vd.export(model, vd.ExportConfig(golden=16), work / "fp32")
        return "ok"

    def convert(target: str, precision: str) -> str:
        config = vd.QuantizeConfig(calibration="random", target=target, precision=precision, verify=False, threads=1)
        out = work / f"{precision}-{target}"
        quantize(vd.Artifact.open(work / "fp32"), config, out)
        compared = vd.ValidateConfig(backends=(target,), limit=IMAGES, threads=1)
        report = vd.validate(out, compared, against=work / "fp32")
        return f"{report.rows[-1].metrics['sqnr'].value:.0f}"

    def validate() -> str:
        report = vd.validate(work / "fp32", vd.ValidateConfig(limit=IMAGES, threads=1))
        return "ok" if report.passed else "fail"

    def bench() -> str:
        quick = vd.BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1)
        return "ok" if all("p50" in row.metrics for row in vd.bench([work / "fp32"], quick).rows) else "fail"

    if name in mappings.MAPPINGS:
        note("map", translate)
    note("module", export)
    if cells["module"] == "ok":
        for column, (target, precision) in FORMS.items():
            note(column, lambda target=target, precision=precision: convert(target, precision))
        note("validate", validate)
        note("bench", bench)
    return Row(name, SYSTEMS[name][0], cells)


def write(rows: list[Row]) -> str:
    """The page."""
    lines = [f"| system | particular | {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * len(COLUMNS)}"]
    for row in rows:
        lines.append(f"| {row.name} | {row.about} | {' | '.join(row.cells.get(column, '') for column in COLUMNS)} |")
    return HEAD + "\n".join(lines) + "\n"


def read() -> list[Row]:
    """What was stored."""
    return msgspec.json.decode(STORED.read_bytes(), type=list[Row])


def main() -> None:
    """Run, store, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for name in SYSTEMS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(name, Path(folder)))
        print(rows[-1], file=sys.stderr, flush=True)
    files.write(STORED, jsonfile.encode(rows))
    files.write(PAGE, write(rows))


if __name__ == "__main__":
    main()
