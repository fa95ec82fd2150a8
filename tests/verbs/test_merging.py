"""`--merge-tokens` through the line: a file that is proven as its own network, and told against the one that merges nothing."""

from __future__ import annotations

from contextlib import closing

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from tests.conftest import TINY, write_artifact
from tests.quant.in_process import quantize
from vitdeploy.artifact import METADATA_SPEC
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.errors import UsageError
from vitdeploy.measure.parity import Parity
from vitdeploy.proof.verdict import judge
from vitdeploy.recipe import ExportConfig, QuantizeConfig, ValidateConfig
from vitdeploy.verbs import bencher
from vitdeploy.verbs.validator import validate

ENGINES = ("onnxruntime", "openvino")
DEEP = msgspec.structs.replace(TINY, name="deep", depth=4, registers=1)
SCHEDULE, MERGED = "0:2,2:1", (2, 0, 1, 0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Four blocks of eight tokens."""
    return write_artifact(tmp_path_factory.mktemp("plain") / "deep", DEEP)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The same weights, exported with their tokens merged."""
    config = ExportConfig(merge_tokens=SCHEDULE, prove_batches=(1, 3))
    return write_artifact(tmp_path_factory.mktemp("merged") / "deep", DEEP, config)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A quantization from 40 images, nothing measured."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(synthetic.pixels(40, DEEP.input, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")

    def make(**settings):
        return QuantizeConfig(**{"calibration": str(folder), "threads": 1, "verify": False} | settings)

    return make


def logits(artifact, engine="onnxruntime", batch=48):
    tensor = images.to_tensor(synthetic.pixels(48, artifact.spec.input, seed=9), artifact.spec.input)
    with closing(load(engine).open(artifact, OpenConfig(threads=1))) as runner:
        parts = [run_any(runner, tensor[at : at + batch])["logits"] for at in range(0, 48, batch)]
    return np.concatenate(parts)


def ratio(expected, got):
    """Signal to noise in dB."""
    parity = Parity("regression")
    parity.add(expected, got)
    return parity.metrics()["sqnr"].value


def test_an_export_is_proven_as_the_merged_network(plain, merged):
    assert merged.spec == msgspec.structs.replace(plain.spec, merged=MERGED)
    assert merged.record.proof.relative <= 1e-4
    metadata = {each.key: each.value for each in onnx.load(merged.model).metadata_props}
    assert msgspec.json.decode(metadata[METADATA_SPEC])["merged"] == list(MERGED)
    expected = logits(merged)
    for engine in ENGINES:
        for batch in (1, 3):
            assert ratio(expected, logits(merged, engine, batch)) > 90
    assert ratio(logits(plain), expected) < 60


def test_what_it_lost_is_told_against_the_original_and_no_fault(plain, merged):
    """A file in FP32 must be its original's function, unless it says that it merges tokens."""
    report = validate(merged, ValidateConfig())
    assert report.reference == "pytorch"
    assert report.settings["merged"] == "2, 0, 1, 0"
    ratios = {row.subject: row.metrics["sqnr"].value for row in report.rows if "sqnr" in row.metrics}
    assert set(ratios) == set(ENGINES) and max(ratios.values()) < 60
    assert "parity" not in [gate.name for gate in judge([report]).gates]
    lying = msgspec.structs.replace(report, settings={name: value for name, value in report.settings.items() if name != "merged"})
    assert [gate.outcome for gate in judge([lying]).gates if gate.name == "parity"] == ["fail", "fail"]
    assert bencher._identify_original(plain) == bencher._identify_original(merged)
    with pytest.raises(UsageError, match="merges tokens") as caught:
        validate(merged, ValidateConfig(layers=True))
    assert caught.value.code == "VD2010"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["plain", "merged"])
@pytest.mark.parametrize("target", ENGINES)
def test_int8_is_near_the_merged_network(plain, merged, config, source, target, tmp_path):
    """Merged in quantizing, or before; every product that was planned runs in integers, the last block for the class token."""
    given = {"merge_tokens": SCHEDULE} if source == "plain" else {}
    artifact = quantize({"plain": plain, "merged": merged}[source], config(target=target, **given), tmp_path / "out")
    proof = artifact.record.proof
    assert artifact.spec.merged == MERGED
    assert proof.rewrites["class-token"] > 0
    assert ("merge-tokens" in proof.rewrites) is (source == "plain")
    counted = proof.census[target]
    assert counted.planned == counted.executed
    assert counted.planned["gemms"] >= 17
    for batch in (1, 3):
        assert ratio(logits(merged), logits(artifact, target, batch)) > 20


@pytest.mark.slow
def test_fp16_is_near_the_merged_network(plain, merged, config, tmp_path):
    artifact = quantize(plain, config(precision="fp16", merge_tokens=SCHEDULE), tmp_path / "out")
    assert artifact.spec.merged == MERGED
    assert ratio(logits(merged), logits(artifact)) > 40


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"merge_tokens": "many"}, "VD2003", "no schedule"),
        ({"merge_tokens": "3:1"}, "VD2003", "blocks that can merge are 0 to 2"),
        ({"merge_tokens": "0:3"}, "VD2003", "at most 2 can be merged"),
        ({"merge_tokens": "1", "precision": "bf16", "target": "openvino"}, "VD2011", "bf16 leaves the file as it is"),
    ],
)
def test_a_quantization_that_can_merge_nothing_is_refused(plain, config, settings, code, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        quantize(plain, config(**settings), tmp_path / "out")
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_merged_tokens_are_not_merged_again(merged, config, tmp_path):
    with pytest.raises(UsageError, match="merges tokens already"):
        quantize(merged, config(merge_tokens="0:1"), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "config", "said"),
    [
        ({}, {"outputs": ("tokens",)}, "has a row for each"),
        ({"pool": "mean"}, {}, "takes more of them"),
        ({"rotary": "eva02"}, {}, "in its own way"),
    ],
)
def test_an_export_that_can_merge_nothing_is_refused(changes, config, said, tmp_path):
    spec = msgspec.structs.replace(TINY, **changes)
    with pytest.raises(UsageError, match=said) as caught:
        write_artifact(tmp_path / "out", spec, ExportConfig(merge_tokens="0:2", **config))
    assert caught.value.code == "VD2011"
    assert not (tmp_path / "out").exists()
