"""Tables are what the figures say: digits, intervals, verdicts, and which rows the top page shows."""

import argparse
import importlib
import json

import msgspec
import pytest

from tests.benchmarks import figures, results, tables
from tests.benchmarks.figures import Check, FamilyRow, FamilyStep, Goal, QuantizedRow, QuantizedTable, Value
from vitdeploy.report import Metric, Report, Row


def quantized(method: str, title: str, ours: bool, kl: float, b1: float) -> QuantizedRow:
    around = Value(kl, kl / 2, kl * 2)
    half, share = Value(0.5, 0.4, 0.6), Value(0.9, 0.8, 0.95)
    times = {"rounds_ms": {1: [b1, b1, 9 * b1], 8: [8 * b1]}, "slower": {1: half, 8: half}}
    made = None if method == "fp32" else figures.Made(12.4, 300.6, 100.0, {"nncf": "2.9"})
    drop = Value(-0.01, -1.25, 1.0)
    return QuantizedRow(method, title, "f32", ours, top1=share, drop=drop, agreement=share, kl=around, made=made, **times)


ROWS = [
    quantized("fp32", "FP32", False, 0.0, 4.0),
    quantized("ours", "vitdeploy int8", True, 0.001, 1.0),
    quantized("far", "Far", False, 0.5, 2.0),
    quantized("near", "Near", False, 0.002, 3.0),
]
METRICS = {"batch": Metric(1, "count"), "p50": Metric(2.345, "ms"), "throughput": Metric(400.0, "images/s")}
FASTER = METRICS | {"speedup": Metric(1.5, "ratio", 1.25, 2.0)}
MEASURED: dict[str, msgspec.Struct] = {
    "demo": figures.Demo(Report(title="build", parts=(Report(title="bench", rows=(Row("vit", METRICS),)),))),
    "families": figures.Families(
        32,
        16,
        [
            FamilyRow(
                "timm",
                "vit",
                "dynamo",
                20,
                True,
                {"int8": FamilyStep("ok", "", 35.4, 0.995), "fp16": FamilyStep("ok", "", 120.0)},
            ),
            FamilyRow("timm", "cnn", "dynamo", 21, False, {"int8": FamilyStep("refused", "VD3023: no block")}),
            FamilyRow("timm", "new", "torchscript", 14, False, {"int8": FamilyStep("crash", "KeyError in a <b>")}),
        ],
    ),
    "gate_power": figures.GatePower(0.5, 100, [figures.PowerRow(500, 0.02, 0.0, 0.25, 0.05, 0.7)]),
    "startup": figures.Startup({"python": [0.3, 0.1, 0.2]}),
    "load_time": figures.LoadTime("vit", [2.0, 4.0, 6.0], [1.0, 1.0, 1.0]),
    "export_time": figures.ExportTime({"vit": {"ours": [3.0, 1.0, 2.0]}}),
    "isolation": figures.Isolation({"predict": {"with": [1.5, 1.7], "without": [1.0, 1.0]}}, 0.5),
    "calibration": figures.Calibration(
        "vit",
        100.0,
        84,
        2,
        4,
        [figures.Calibrated(8, 1, [2.0, 2.0], [3.0, 2.0], 380.4)],
        [figures.Peer("Entropy", 8, None, None)],
    ),
    "calibration_images": figures.CalibrationImages(
        [
            figures.CalibratedOn(
                "vit", "openvino", "photos", 50, Value(1.0, 0.5, 1.5), Value(0.9, 0.8, 0.95), Value(0.002, 0.001, 0.004)
            )
        ]
    ),
    "quantize_time": figures.QuantizeTime("vit", 32, 2, [0.5, 1.5], {"calibrate": 40.0, "round": 24.4}),
    "aarch64": figures.Aarch64(
        "cortex-a76", "qemu 7.2", "3.11.2", "1.31.1", [figures.ArmForm("int8", "neon-dotprod", 1.0, 0.00153, "at most 0.04")]
    ),
    "merging": figures.Merging(
        [
            figures.MergedTable(
                "vit",
                "openvino",
                50,
                [
                    figures.MergedRow("FP32", 1.0, Value(0, 0, 0), Value(1, 1, 1), Value(0, 0, 0), {1: [4.0], 8: [9.0]}),
                    figures.MergedRow(
                        "INT8, merges 8",
                        0.75,
                        Value(1.0, 0.5, 1.5),
                        Value(0.9, 0.8, 0.95),
                        Value(0.002, 0.001, 0.004),
                        {1: [1.0, 3.0], 8: [8.0]},
                        {1: Value(0.8, 0.75, 0.85), 8: Value(0.9, 0.8, 1.0)},
                    ),
                ],
            )
        ]
    ),
    "corrections": figures.Corrections(
        [
            figures.CorrectedModel(
                "vit",
                500,
                [
                    figures.Corrected("as it ships", 0.001, None, 0.99),
                    figures.Corrected("affine", 0.002, Value(1.0, 0.9, 1.1), 0.98),
                ],
            )
        ]
    ),
    "engines": figures.Engines(
        [
            figures.EngineTable(
                "vit",
                "random weights",
                [Row("PyTorch eager", METRICS), Row("OpenVINO", FASTER)],
                [
                    Check("OpenVINO", 1, [1.06], [1.0], Value(1.06, 1.0, 1.1)),
                    Check("OpenVINO", 8, [1.04], [1.0], Value(1.04, 1.0, 1.1)),
                ],
                ["a note with <b>"],
            )
        ]
    ),
    "quantization": figures.Quantization(
        [
            QuantizedTable("clip", "openvino", 10, ROWS[:2], []),
            QuantizedTable("dinov2", "onnxruntime", 10, ROWS, ["Left out: x"]),
        ],
        [Goal("dinov2", "onnxruntime", "KL", "0.5", True), Goal("dinov2", "onnxruntime", "latency", "1.0", False)],
    ),
}
EXPECTED = {
    "families": "| vit | dynamo | 20, batch 1 | 35 dB, 100 % | same |",
    "demo": "| vit | 1 | 2.35 ms | 400 images/s |",
    "gate_power": "| 500 | 25.0 / 5.0 / 70.0 |",
    "startup": "| `python` | 200 | 100 |",
    "load_time": "| vit | 4.00 | 1.00 | 4.00 |",
    "export_time": "| vit | ours | 2.0 | 3.0, 1.0, 2.0 |",
    "isolation": "| `predict` | 1.00 | 1.60 | +0.60 [+0.55, +0.65] |",
    "calibration": "| 8 | 1 | 2.0 | 2.5 | 1.25 | 380 | 400 |",
    "calibration_images": "| vit, openvino | photos | +1.0 [+0.5, +1.5] | 90.0 [80.0, 95.0] | 2.00 [1.00, 4.00] |",
    "quantize_time": "| all | 64 | 64 |",
    "aarch64": "| int8 neon-dotprod | 1 of 255 | 0.0015 | at most 0.04 |",
    "merging": "| INT8, merges 8 | 75.0 | +1.0 [+0.5, +1.5] | 90.0 [80.0, 95.0] | 2.00 [1.00, 4.00] "
    "| 2.00 | 0.80 [0.75, 0.85] | 8.00 | 0.90 [0.80, 1.00] |",
    "corrections": "| affine | 2.000 | +100.0 [+90.0, +110.0] | 98.0 |",
    "engines": "| OpenVINO | 2.35 | 400.0 | 1.50 [1.25, 2.00] |",
    "quantization": "| Near | 90.0 | +0.0 [-1.2, +1.0] | 90.0 [80.0, 95.0] | 2.00 [1.00, 4.00] | 3.00 | 0.50 [0.40, 0.60] "
    "| 24.00 | 0.50 [0.40, 0.60] | 12 | 301 |",
}


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A folder in which every benchmark has stored something."""
    monkeypatch.setattr("sys.argv", ["x", "--work", str(tmp_path / "mine"), "--rounds=3", f"--json={tmp_path}"])
    for name, measured in MEASURED.items():
        options = argparse.Namespace(json=tmp_path / f"{name}.json", quick=True, work=tmp_path / "mine")
        results.store(name, measured, options)
    capsys.readouterr()
    return tmp_path


def test_every_script_has_figures_a_section_and_a_file():
    assert set(MEASURED) == set(EXPECTED) == set(tables.SECTIONS) == set(figures.KINDS)
    assert {path.stem for path in figures.HERE.glob("*.json")} <= set(figures.KINDS)
    shared = {"architectures", "family_rows", "figures", "results", "tables", "test_families", "test_tables", "torch_compile"}
    assert {path.stem for path in figures.HERE.glob("*.py")} == set(figures.KINDS) | shared


@pytest.mark.parametrize("name", figures.KINDS)
def test_every_script_can_be_imported(name):
    assert callable(importlib.import_module(f"tests.benchmarks.{name}").main)


@pytest.mark.parametrize("name", MEASURED)
def test_a_line_of_each_table(name, folder):
    stored = figures.read(name, folder)
    assert stored.figures == MEASURED[name]
    text = tables.section(name, stored)
    assert EXPECTED[name] in text.splitlines()
    assert stored.command == f"python -m tests.benchmarks.{name} --work FOLDER --rounds=3 --json=FILE"


def test_what_is_stored_names_no_folder_of_this_machine(folder):
    for name in MEASURED:
        assert str(folder) not in (folder / f"{name}.json").read_text()


def test_other_lines(folder):
    text = tables.page(folder)
    assert "| Entropy | 8 | died | over 4096 |" in text
    assert "| OpenVINO | 1 | 1.06 | 1.00 | 1.060 [1.000, 1.100] | **no** |" in text
    assert "| OpenVINO | 8 | 1.04 | 1.00 | 1.040 [1.000, 1.100] | yes |" in text
    assert "| dinov2 | onnxruntime | latency | 1.0 | **no** |" in text
    assert "Quantizers ran with nncf 2.9." in text
    assert "- a note with &lt;b&gt;" in text
    assert "| timm dynamo | 2 | 1 ok, 1 refused | 1 ok |" in text
    assert "| cnn | dynamo | 21 | refused VD3023 |  |" in text
    assert "| new | torchscript | 14 | crash |  |" in text
    assert "- new (torchscript), int8: KeyError in a &lt;b&gt;" in text
    assert [text.index(f"## {tables.SECTIONS[name][0]}\n") for name in figures.KINDS] == sorted(
        text.index(f"## {tables.SECTIONS[name][0]}\n") for name in figures.KINDS
    )


def test_the_top_page_shows_fp32_the_nearest_other_and_ours(folder):
    rows = [line for line in tables.why(folder).splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| FP32", "| Near", "| **vitdeploy int8**"]
    assert rows[1].endswith("|  |  |  | 4.00 |")
    assert "closest to FP32 of 2 settings" in tables.why(folder)


def test_a_script_that_did_not_run_has_no_table(folder):
    (folder / "quantization.json").unlink()
    assert "Quantizers compared" not in tables.page(folder)
    assert tables.why(folder) == ""
    assert tables.insert_why("a\n" + "old\n".join(tables.MARKS) + "b\n", "") == "a\n" + "".join(tables.MARKS) + "b\n"


def test_unknown_figures_are_refused(folder):
    path = folder / "startup.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"typed": "by hand"}))
    with pytest.raises(msgspec.ValidationError):
        figures.read("startup", folder)
