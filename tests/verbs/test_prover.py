import csv
import math
import os
import signal
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import child, table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import TABLE
from vitdeploy.data import synthetic
from vitdeploy.data.images import load, to_tensor
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.recipe import BenchConfig, ValidateConfig
from vitdeploy.verbs import prover
from vitdeploy.verbs.prover import bench, validate

QUICK = BenchConfig(rounds=1, seconds=0.01, warmup=0, threads=1)


@pytest.fixture(scope="module")
def answers(tiny_artifact, tmp_path_factory):
    """130 images and the class that the PyTorch original gives each."""
    folder = tmp_path_factory.mktemp("images")
    contract = tiny_artifact.spec.input
    for index, pixels in enumerate(synthetic.pixels(130, contract, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    names = sorted(path.name for path in folder.iterdir())
    pixels = np.stack([load(folder / name, contract) for name in names])
    logits = table.load("pytorch").open(tiny_artifact, OpenConfig(threads=1)).run(to_tensor(pixels, contract))["logits"]
    return folder, dict(zip(names, logits.argmax(1).tolist(), strict=True))


def manifest(answers, name, change=lambda index, label: label):
    folder, labels = answers
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        writer.writerows([image, change(index, label)] for index, (image, label) in enumerate(labels.items()))
    return str(path)


def config(data=None, **settings):
    return ValidateConfig(data=data, threads=1, batch=16, **settings)


def test_accuracy_and_parity_in_one_pass(tiny_artifact, answers):
    heard = []
    data = manifest(answers, "right", lambda index, label: label if index % 4 else (label + 5) % 12)
    report = validate(tiny_artifact, config(data), progress=lambda *news: heard.append(news))
    assert [row.subject for row in report.rows] == ["pytorch", "onnxruntime", "openvino"]
    assert report.reference == "pytorch"
    reference, *engines = report.rows
    assert reference.metrics["top1"].value == pytest.approx(97 / 130)
    assert "max_abs_difference" not in reference.metrics
    for engine in engines:
        assert engine.metrics["top1"].value == pytest.approx(97 / 130)
        assert engine.metrics["top1_agreement"].value == 1
        assert engine.metrics["max_abs_difference"].value < 1e-4
        assert engine.metrics["sqnr"].value > 90
        assert engine.metrics["images"].value == 130
        low, high = engine.metrics["top1_difference"].low, engine.metrics["top1_difference"].high
        assert -3 < low < 0 < high < 3  # 100 z^2 / (130 + z^2) = 2.87
        assert engine.metrics["mcnemar_p"].value == 1
    assert report.settings["images"] == report.settings["found"] == 130
    assert report.notes == ()
    assert heard[0] == ("validate", 0, 130)
    assert heard[-1] == ("validate", 130, 130)
    assert [done for _, done, total in heard].count(130) == 1


def test_sample_is_said(tiny_artifact, answers):
    report = validate(tiny_artifact, config(manifest(answers, "all"), limit=20, backends=("onnxruntime",)))
    assert report.notes == ("20 of 130 images were used.",)
    assert report.settings["images"] == 20
    assert len(report.rows) == 2


def test_bad_images_are_named(tiny_artifact, answers, tmp_path):
    folder, labels = answers
    for name in list(labels)[:8]:
        (tmp_path / str(labels[name])).mkdir(exist_ok=True)
        (tmp_path / str(labels[name]) / name).write_bytes((folder / name).read_bytes())
    broken = next(tmp_path.iterdir()) / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot one")
    settings = config(str(tmp_path), backends=("onnxruntime",))
    with pytest.raises(InputError) as caught:
        validate(tiny_artifact, settings)
    assert caught.value.code == "VD3104"
    report = validate(tiny_artifact, msgspec.structs.replace(settings, max_bad=1))
    assert report.settings["bad"] == 1
    assert any("1 images could not be read" in note and "broken.png" in note for note in report.notes)


def test_without_data_parity_only(tiny_artifact):
    report = validate(tiny_artifact, config())
    assert report.rows[1].metrics["images"].value == prover.GENERATED
    assert "top1" not in report.rows[0].metrics
    assert any("generated" in note and "accuracy was not measured" in note for note in report.notes)
    assert report.settings["data"] == "generated"


def test_without_labels_parity_only(tiny_artifact, answers):
    report = validate(tiny_artifact, config(str(answers[0].parent / answers[0].name), limit=8, backends=("onnxruntime",)))
    assert "top1" not in report.rows[0].metrics
    assert "Accuracy was not measured: the data have no labels." in report.notes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index, label: (label + 1) % 12, "shifted by one"),
        (lambda index, label: (label + 1 + index % 11) % 12, "label order or the preprocessing"),
    ],
    ids=["off by one", "shuffled"],
)
def test_wrong_labels_are_told_loudly(tiny_artifact, answers, change, words):
    report = validate(tiny_artifact, config(manifest(answers, "wrong", change), backends=("onnxruntime",)))
    (warning,) = [note for note in report.notes if "WARNING" in note]
    assert "hardly better than guessing" in warning
    assert words in warning


def test_names_of_classes_are_mapped(tiny_artifact, answers):
    names = tuple(f"class {letter}" for letter in "lkjihgfedcba")
    spec = msgspec.structs.replace(tiny_artifact.spec, labels=names)
    named = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    data = manifest(answers, "named", lambda index, label: names[label].replace(" ", "_").title())
    report = validate(named, config(data, backends=("onnxruntime",)))
    assert report.rows[0].metrics["top1"].value == 1


def test_too_many_classes_are_refused(tiny_artifact, answers):
    with pytest.raises(InputError) as caught:
        validate(tiny_artifact, config(manifest(answers, "many", lambda index, label: 12 + index)))
    assert caught.value.code == "VD3106"


def test_bare_file_is_compared_with_the_first_engine(bare_artifact, answers):
    report = validate(bare_artifact, config(manifest(answers, "bare")))
    assert report.reference == "onnxruntime"
    assert [row.subject for row in report.rows] == ["onnxruntime", "openvino"]
    assert report.rows[0].metrics["top1"].value == 1
    assert any("not the PyTorch original" in note and "weights" in note for note in report.notes)


def test_device_without_torch(tiny_artifact, monkeypatch):
    monkeypatch.setattr(prover, "installed", lambda: ("onnxruntime",))
    report = validate(tiny_artifact, config())
    assert [row.subject for row in report.rows] == ["onnxruntime"]
    assert any("PyTorch is not installed" in note for note in report.notes)
    rows = bench([tiny_artifact], QUICK)
    assert [row.subject for row in rows.rows] == ["onnxruntime"]
    assert any("no speed-up" in note for note in rows.notes)


def test_fixed_batch_is_filled_up(tiny_static):
    report = validate(tiny_static, config(limit=7))
    for row in report.rows[1:]:
        assert row.metrics["images"].value == 7
        assert row.metrics["max_abs_difference"].value < 1e-4


def test_normalisation_inside_the_file(tiny_bytes, answers):
    report = validate(tiny_bytes, config(manifest(answers, "bytes")))
    assert [row.metrics["top1"].value for row in report.rows] == [1, 1, 1]
    assert report.rows[1].metrics["max_abs_difference"].value < 1e-4


def test_nan_shows(tiny_artifact, monkeypatch):
    class Broken:
        settings = MappingProxyType({})
        batch = None

        def run(self, tensor):
            return {"logits": np.full((len(tensor), 12), math.nan, np.float32)}

        def close(self):
            pass

    def open_in_child(name, *given):
        return child.open_in_child(name, *given) if name == "pytorch" else Broken()

    monkeypatch.setattr(prover, "open_in_child", open_in_child)
    report = validate(tiny_artifact, config(backends=("onnxruntime",)))
    metrics = report.rows[1].metrics
    bad = ("max_abs_difference", "mean_abs_difference", "cosine_min", "sqnr")
    assert all(math.isnan(metrics[name].value) for name in bad)
    assert metrics["top1_agreement"].value == 0
    assert any("64 of 64 images have NaN or infinite outputs" in note for note in report.notes)


def test_unknown_and_missing_backends(tiny_artifact, monkeypatch):
    for verb in (lambda: validate(tiny_artifact, config(backends=("onxruntime",))), lambda: bench([], QUICK)):
        with pytest.raises(UsageError):
            verb()
    monkeypatch.setattr(prover, "installed", lambda: ("pytorch",))
    with pytest.raises(MachineError, match="no inference engine") as caught:
        validate(tiny_artifact, config())
    assert caught.value.code == "VD4001"


def test_bench_shares_the_original(tiny_artifact, bare_artifact, tmp_path):
    copy = tmp_path / "tiny"
    copy.mkdir()
    for path in tiny_artifact.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    quick = msgspec.structs.replace(QUICK, backends=("onnxruntime",))
    report = bench([tiny_artifact, Artifact.open(copy), bare_artifact], quick)
    first, second = str(tiny_artifact.folder), str(copy)
    assert [row.subject for row in report.rows] == [
        f"{first} / pytorch",
        f"{first} / onnxruntime",
        f"{second} / onnxruntime",
        f"{bare_artifact.model} / onnxruntime",
    ]
    assert report.reference == f"{first} / pytorch"
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
    assert prover._origin(tiny_artifact) == prover._origin(tiny_static) == prover._origin(raw)
    assert prover._origin(other) != prover._origin(tiny_artifact)


def test_bench_of_one_artifact(tiny_artifact):
    report = bench([tiny_artifact], msgspec.structs.replace(QUICK, batches=(2,)))
    assert [row.subject for row in report.rows] == ["pytorch", "onnxruntime", "openvino"]
    assert all(row.settings["batch"] == 2 and row.settings["threads"] == 1 for row in report.rows)


def test_model_without_head(tiny_headless):
    report = validate(tiny_headless, config())
    assert "top1_agreement" not in report.rows[1].metrics
    assert report.rows[1].metrics["cosine_min"].value > 0.9999


def test_an_embedding_has_neither_agreement_nor_accuracy(tiny_embedding, answers):
    report = validate(tiny_embedding, config(manifest(answers, "embedding"), limit=16, backends=("onnxruntime",)))
    assert report.rows[1].metrics["cosine_min"].value > 0.9999
    assert not [name for row in report.rows for name in row.metrics if name.startswith("top1")]
    assert "Accuracy was not measured: the model gives an embedding, not classes." in report.notes


def test_record_is_not_needed_on_disk(tiny_artifact):
    """A contract given by hand is used in the measuring processes too."""
    handmade = Artifact(tiny_artifact.folder, Record(entry="model.onnx", spec=tiny_artifact.spec, made_by="import"))
    assert bench([handmade], QUICK).rows


def compiled(artifact, kind):
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, kind=kind))


def test_a_compiled_artifact_is_for_its_own_engine(tiny_artifact, monkeypatch):
    """The default is that engine beside the original; another one is refused, and one that is not installed is named."""
    assert prover._compared(compiled(tiny_artifact, "openvino"), ()) == (("pytorch", "openvino"), [])
    for verb in (
        lambda: validate(compiled(tiny_artifact, "openvino"), config(backends=("onnxruntime",))),
        lambda: bench([compiled(tiny_artifact, "openvino")], msgspec.structs.replace(QUICK, backends=("onnxruntime",))),
    ):
        with pytest.raises(UsageError, match="was compiled for openvino") as caught:
            verb()
        assert caught.value.code == "VD2013"
    monkeypatch.setattr(prover, "compilers", lambda: ("onnxruntime",))
    with pytest.raises(MachineError, match="made for openvino, which is not installed") as missing:
        validate(compiled(tiny_artifact, "openvino"), config())
    assert (missing.value.code, missing.value.fix) == ("VD4001", "run: pip install 'vitdeploy[openvino]'")
    monkeypatch.setattr(table, "find_spec", lambda name: name)
    quantized = msgspec.structs.replace(tiny_artifact.record, made_by="quantize", config={"target": "tensorrt"})
    with pytest.raises(UsageError, match="has to be compiled before tensorrt"):
        validate(Artifact(tiny_artifact.folder, quantized), config())


def test_an_engine_that_crashes_is_one_line(tiny_artifact, monkeypatch):
    """Nothing is left running, and this process lives."""
    monkeypatch.setitem(TABLE, "onnxruntime", TABLE["onnxruntime"]._replace(backend=f"{__name__}:Crashing"))
    with pytest.raises(MachineError, match=r"^error\[VD4007\] .*model.onnx: onnxruntime [\d.]+ was ended by SIGSEGV"):
        validate(tiny_artifact, config(backends=("onnxruntime",)))
    with pytest.raises(MachineError, match=r"process of 'onnxruntime' \(onnxruntime [\d.]+\) was ended by SIGSEGV"):
        bench([tiny_artifact], msgspec.structs.replace(QUICK, backends=("onnxruntime",)))


class Crashing:
    """An engine that can't stand a model."""

    def open(self, artifact, options):
        os.kill(os.getpid(), signal.SIGSEGV)
