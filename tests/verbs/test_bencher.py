"""`bench`: artifacts side by side with the originals that they carry."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Artifact, Record
from vitdeploy.data import open_dataset
from vitdeploy.errors import UsageError
from vitdeploy.proof.rules import Thresholds
from vitdeploy.proof.verdict import judge
from vitdeploy.recipe import BenchConfig
from vitdeploy.verbs import bencher
from vitdeploy.verbs.bencher import bench

QUICK = BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1)


@pytest.mark.slow
def test_bench_shares_the_original(tiny_artifact, bare_artifact, tmp_path):
    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in tiny_artifact.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    quick = msgspec.structs.replace(QUICK, backends=("onnxruntime",))
    report = bench([tiny_artifact, Artifact.open(copy), bare_artifact], quick)
    first, second = str(tiny_artifact.folder), str(copy)
    assert [row.subject for row in report.rows] == [
        "pytorch",
        f"{first} / onnxruntime",
        f"{second} / onnxruntime",
        f"{bare_artifact.model} / onnxruntime",
    ]
    assert report.reference == "pytorch"
    assert ["speedup" in row.metrics for row in report.rows] == [True, True, True, False]
    assert any(note.startswith(f"{bare_artifact.model}: no speed-up") for note in report.notes)
    assert report.settings["rounds"] == 1


def test_bench_gives_each_original_its_own(tiny_artifact, tiny_static):
    """Same weights and spec share one; another input size is another original."""
    spec = msgspec.structs.replace(tiny_artifact.spec, name="other")
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    raw_input = msgspec.structs.replace(tiny_artifact.spec.input, tensor="uint8-nhwc")
    raw_spec = msgspec.structs.replace(tiny_artifact.spec, input=raw_input)
    raw = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=raw_spec))
    assert bencher._identify_original(tiny_artifact) == bencher._identify_original(tiny_static) == bencher._identify_original(raw)
    assert bencher._identify_original(other) != bencher._identify_original(tiny_artifact)


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["a/vit", "b/vit-int8"], ["vit", "vit-int8"]),
        (["a/vit", "b/vit"], ["a/vit", "b/vit"]),
        (["a/vit", "a/vit"], ["a/vit #1", "a/vit #2"]),
        (["a/vit"], ["tiny"]),
    ],
)
def test_artifacts_of_one_model_are_named_by_their_folders(tiny_artifact, folders, labels):
    given = [Artifact(Path(folder), tiny_artifact.record) for folder in folders]
    assert bencher._make_labels(given) == labels
    other = msgspec.structs.replace(tiny_artifact.spec, name="other")
    record = msgspec.structs.replace(tiny_artifact.record, spec=other)
    assert bencher._make_labels([tiny_artifact, Artifact(Path("b"), record)]) == ["tiny", "other"]


def test_bench_of_one_artifact(tiny_artifact):
    report = bench(str(tiny_artifact.folder), msgspec.structs.replace(QUICK, batches=(2,)))
    assert [row.subject for row in report.rows] == ["pytorch", "onnxruntime", "openvino"]
    assert all(row.settings["batch"] == 2 and row.settings["threads"] == 1 for row in report.rows)


def test_record_is_not_needed_on_disk(tiny_artifact):
    """A contract given by hand is used in the measuring processes too."""
    handmade = Artifact(tiny_artifact.folder, Record(entry="model.onnx", spec=tiny_artifact.spec, made_by="import"))
    assert bench([handmade], QUICK).rows


@pytest.mark.slow
def test_a_profile_is_told_for_each_subject_and_batch(tiny_artifact):
    """By the engines' own words, as parts of the report: shares of all rows make one run, and a gate still reads its rows."""
    config = msgspec.structs.replace(QUICK, batches=(1, 3), backends=("onnxruntime", "openvino"), profile=True)
    report = bench(tiny_artifact, config)
    assert [part.title for part in report.parts] == [
        f"profile of {subject}, batch {batch}, by {by}"
        for subject in ("pytorch", "onnxruntime", "openvino")
        for batch in (1, 3)
        for by in ("operation", "block")
    ]
    for part in report.parts:
        assert sum(row.metrics["share"].value for row in part.rows) == pytest.approx(1.0)
        if part.title.endswith("by block"):
            assert [row.subject for row in part.rows if row.subject.startswith("block ")] == ["block 0", "block 1"]
    verdict = judge([report], Thresholds(min_speedup="0.001"))
    assert {gate.subject.partition(" at ")[0] for gate in verdict.gates} == {"onnxruntime", "openvino"}


@pytest.mark.slow
def test_each_count_of_threads_has_rows_and_a_reference_of_its_own(tiny_artifact, tmp_path):
    Image.fromarray(np.zeros((16, 24, 3), np.uint8)).save(tmp_path / "a.png")
    config = msgspec.structs.replace(QUICK, threads=(1, 2), backends=("onnxruntime",), rounds=5)
    report = bench(tiny_artifact, config, data=open_dataset(tmp_path))
    names = [f"{engine}, {told}" for told in ("1 thread", "2 threads") for engine in ("pytorch", "onnxruntime")]
    assert [row.subject for row in report.rows] == [*names, "decode"]
    assert [row.settings["threads"] for row in report.rows] == [1, 1, 2, 2, 1]
    assert [row.settings.get("reference") for row in report.rows[:4]] == [names[0], names[0], names[2], names[2]]
    assert report.rows[2].metrics["speedup"].value == 1
    assert "load" in report.settings["before"] and "load" in report.settings["after"]
    verdict = judge([report], Thresholds(min_speedup=1e-6, inconclusive="estimate"))
    assert [gate.subject for gate in verdict.gates] == [
        f"{names[1]} at batch 1",
        f"{names[3]} at batch 1",
    ]  # no reference is judged


@pytest.mark.parametrize("threads", [(), (0,), (1, -2), 0])
def test_counts_of_threads_that_make_no_sense(threads):
    with pytest.raises(UsageError) as raised:
        BenchConfig(threads=threads)
    assert raised.value.code == "VD2003"
