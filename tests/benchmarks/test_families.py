"""A few of the architectures go through the whole line: what the stored table says of them is so today."""

from __future__ import annotations

import msgspec
import pytest

from tests.benchmarks import families, figures
from tests.checkpoints.test_peers import peer

FAITHFUL_DB = {"int8 onnxruntime": 20, "int8 openvino": 20, "fp16 onnxruntime": 40, "compile openvino": 80, "checkpoint": 60}
"""What a step must keep, in dB: INT8 of random weights, FP16, and float32 summed in another order."""
FEW = (("timm", "swin_tiny_patch4_window7_224", "torchscript"), ("transformers", "SiglipVisionModel", "torchscript"))
"""Windows with a table of positions; a size that is read of the patch embedding, and a pool of attention."""
MORE = (
    *(("timm", name) for name in ("beit_base_patch16_224", "cait_xxs24_224", "convit_tiny", "eva02_tiny_patch14_224")),
    *(("timm", name) for name in ("pvt_v2_b0", "swinv2_tiny_window8_256", "vit_small_patch16_dinov3", "xcit_nano_12_p16_224")),
    *(("transformers", name) for name in ("Aimv2VisionModel", "CvtForImageClassification", "SegformerForImageClassification")),
)


def judge(rows: list[figures.FamilyRow]) -> None:
    """Every step went well, and what it made is what it was made from."""
    assert rows
    for row in rows:
        assert {"int8 onnxruntime", "int8 openvino", "fp16 onnxruntime", "compile openvino"} <= set(row.steps), row
        for name, step in row.steps.items():
            if name == "checkpoint" and step.result == "refused":
                assert step.said.startswith(("VD2001", "VD3")), row  # of no name or kind that is known
                continue
            assert step.result == "ok" and step.sqnr is not None and step.sqnr > FAITHFUL_DB[name], (row.exporter, name, step)


@pytest.mark.parametrize(("library", "name", "exporter"), FEW, ids=lambda each: each)
def test_a_few_families_come_through(library, name, exporter):
    peer(library)
    judge(families.measure(library, name, (exporter,)))


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), MORE, ids=lambda each: each)
def test_more_families_come_through_from_both_exporters(library, name):
    peer(library)
    judge(families.measure(library, name))


@pytest.mark.slow
def test_what_ends_its_process_is_a_row_and_what_is_there_is_not_measured_again(tmp_path):
    there = [figures.FamilyRow("timm", "there", "dynamo", 20)]
    (tmp_path / "timm-there.json").write_bytes(msgspec.json.encode(there))
    families._measure_missing(["timm/there", "timm/no such network"], tmp_path)
    (row,) = msgspec.json.decode((tmp_path / "timm-no such network.json").read_bytes(), type=list[figures.FamilyRow])
    assert (row.name, row.steps["measure"].result) == ("no such network", "crash")
    assert "status 1" in row.steps["measure"].said
    assert msgspec.json.decode((tmp_path / "timm-there.json").read_bytes(), type=list[figures.FamilyRow]) == there
