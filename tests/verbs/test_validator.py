"""`validate`: parity and accuracy of engines against the original, in one pass over the images."""

import csv
import math
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
from PIL import Image

from vitdeploy.artifact import Artifact
from vitdeploy.backends import child, table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.data import synthetic
from vitdeploy.data.images import load, to_tensor
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import ValidateConfig
from vitdeploy.record import Origin
from vitdeploy.verbs import validator
from vitdeploy.verbs.validator import validate


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
        assert engine.metrics["repeat_difference"].value == 0
        assert engine.metrics["company_difference"].value < 1e-4
        low, high = engine.metrics["top1_difference"].low, engine.metrics["top1_difference"].high
        assert -3 < low < 0 < high < 3  # 100 z^2 / (130 + z^2) = 2.87
        assert engine.metrics["mcnemar_p"].value == 1
    assert report.settings["images"] == report.settings["found"] == 130
    assert report.notes == ()
    assert heard[0] == ("validate", 0, 130)
    assert heard[-1] == ("validate", 130, 130)
    assert [done for _, done, total in heard].count(130) == 1


def test_what_single_images_and_classes_tell(tiny_artifact, answers, monkeypatch):
    """An engine whose answers to every image of one class are another's."""
    true_run = validator.run_main

    def run_wrong(runner, tensor, spec):
        logits = true_run(runner, tensor, spec)
        return np.where(logits.argmax(1)[:, None] == most, -logits, logits) if runner.settings["backend"] != "pytorch" else logits

    labels = list(answers[1].values())
    most = max(set(labels), key=labels.count)
    monkeypatch.setattr(validator, "run_main", run_wrong)
    report = validate(tiny_artifact, config(manifest(answers, "one"), backends=("onnxruntime",), max_drop="0.5 pt"))
    worst = report.images.worst["onnxruntime"]
    assert worst[0].apart >= worst[-1].apart > 0.01
    lost = {name for name, label in answers[1].items() if label == most}
    assert {image.name for image in worst} <= lost
    assert {(image.label, image.expected.name) for image in worst} == {(str(most), str(most))}
    assert str(most) not in {image.given.name for image in worst}
    (warning,) = [note for note in report.notes if note.startswith("WARNING")]
    assert warning == f"WARNING: onnxruntime: 1 class is worse by more than chance: {most} -100.0 points"
    (gate,) = [gate for gate in report.verdict.gates if gate.name == "max_drop"]
    assert f"farthest from pytorch: {worst[0].name}, " in gate.why
    for row in report.rows:
        assert 0 <= row.metrics["calibration_error"].value <= 1
    assert report.rows[0].metrics["calibration_error"] != report.rows[1].metrics["calibration_error"]


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
    assert report.rows[1].metrics["images"].value == validator.GENERATED
    assert "top1" not in report.rows[0].metrics
    assert any("generated" in note and "accuracy was not measured" in note for note in report.notes)
    assert report.settings["data"] == "generated"


def test_without_labels_parity_only(tiny_artifact, answers):
    report = validate(tiny_artifact, config(str(answers[0].parent / answers[0].name), limit=8, backends=("onnxruntime",)))
    assert "top1" not in report.rows[0].metrics
    assert "Accuracy was not measured: the data have no labels." in report.notes


def test_wrong_labels_are_told_loudly(tiny_artifact, answers):
    data = manifest(answers, "wrong", lambda index, label: (label + 1 + index % 11) % 12)
    report = validate(tiny_artifact, config(data, backends=("onnxruntime",)))
    (warning,) = [note for note in report.notes if "WARNING" in note]
    assert "hardly better than guessing" in warning and "label order or the preprocessing" in warning


def test_labels_that_are_off_by_one_are_an_error_unless_allowed(tiny_artifact, answers):
    settings = config(manifest(answers, "shifted", lambda index, label: (label + 1) % 12), backends=("onnxruntime",))
    with pytest.raises(InputError, match=r"with every label -1 it would be .* %: the labels are shifted by one") as caught:
        validate(tiny_artifact, settings)
    assert (caught.value.code, caught.value.file) == ("VD3106", settings.data)
    report = validate(tiny_artifact, msgspec.structs.replace(settings, allow_shifted_labels=True))
    assert any("WARNING" in note and "shifted by one" in note for note in report.notes)


def test_names_of_classes_are_mapped(tiny_artifact, answers):
    names = tuple(f"class {letter}" for letter in "lkjihgfedcba")
    spec = msgspec.structs.replace(tiny_artifact.spec, labels=names)
    named = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    data = manifest(answers, "named", lambda index, label: names[label].replace(" ", "_").title())
    report = validate(named, config(data, backends=("onnxruntime",)))
    assert report.rows[0].metrics["top1"].value == 1
    held = len(set(answers[1].values()))
    assert report.notes == (f"The data have {held} of the model's 12 classes; it chooses among all of them.",)


def test_photos_that_are_not_turned_are_told(tiny_artifact, tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 6
    for index in range(4):
        Image.new("RGB", (24, 16)).save(tmp_path / f"{index}.jpg", exif=turn if index else Image.Exif())
    settings = config(str(tmp_path), backends=("onnxruntime",))
    note = "3 images are not upright: their EXIF orientation counts only after export with --exif apply."
    assert note in validate(tiny_artifact, settings).notes
    spec = msgspec.structs.replace(tiny_artifact.spec, input=msgspec.structs.replace(tiny_artifact.spec.input, exif="apply"))
    upright = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    assert note not in validate(upright, settings).notes


def test_what_was_assumed_is_told(tiny_artifact):
    origin = Origin(assumed={"mean": "0.5", "resize": "stretch"}, assumed_from="what timm does for vit_tiny_patch16_224")
    known = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, origin=origin))
    (note,) = [note for note in validate(known, config(limit=2)).notes if note.startswith("Assumed")]
    assert note == (
        "Assumed, not read from the checkpoint: mean 0.5, resize stretch, from what timm does for vit_tiny_patch16_224."
    )


def test_arrays_of_a_program(tiny_artifact):
    contract = tiny_artifact.spec.input
    rng = np.random.default_rng(0)
    given = [(rng.integers(0, 256, (contract.height, contract.width, 3), np.uint8), index % 12) for index in range(9)]
    report = validate(tiny_artifact, config(limit=6, backends=("onnxruntime",)), data=iter(given))
    assert report.settings["images"] == 6 and report.settings["data"] == "given.jsonl"
    assert "top1" in report.rows[0].metrics
    floats = validate(tiny_artifact, config(backends=("onnxruntime",)), data=[image / np.float32(255) for image, _ in given])
    assert floats.settings["images"] == 9
    with pytest.raises(UsageError, match="and the config names photos too"):
        validate(tiny_artifact, config("photos"), data=given)


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

    monkeypatch.setattr(validator, "open_in_child", open_in_child)
    report = validate(tiny_artifact, config(backends=("onnxruntime",)))
    metrics = report.rows[1].metrics
    bad = ("max_abs_difference", "mean_abs_difference", "cosine_min", "sqnr")
    assert all(math.isnan(metrics[name].value) for name in bad)
    assert metrics["top1_agreement"].value == 0
    assert any("64 of 64 images have NaN or infinite outputs" in note for note in report.notes)


def test_model_without_head(tiny_headless):
    report = validate(tiny_headless, config())
    assert "top1_agreement" not in report.rows[1].metrics
    assert report.rows[1].metrics["cosine_min"].value > 0.9999


@pytest.mark.parametrize(
    ("task", "names", "gives"),
    [
        ("multi_label", {"label_agreement", "probability_difference"}, "labels each on its own"),
        ("regression", {"correlation"}, "numbers as they are"),
    ],
)
def test_other_tasks_are_never_judged_as_classes(tiny_artifact, answers, task, names, gives):
    record = msgspec.structs.replace(tiny_artifact.record, spec=tiny_artifact.spec.change_task(task))
    report = validate(
        Artifact(tiny_artifact.folder, record), config(manifest(answers, "labels"), limit=16, backends=("onnxruntime",))
    )
    metrics = report.rows[1].metrics
    assert names <= set(metrics)
    assert not {"top1_agreement", "top1", "neighbour_agreement"} & set(metrics)
    assert f"Accuracy was not measured: the model gives {gives}, not classes." in report.notes


def test_an_embedding_has_neighbours_and_no_accuracy(tiny_embedding, answers):
    report = validate(tiny_embedding, config(manifest(answers, "embedding"), limit=16, backends=("onnxruntime",)))
    assert report.rows[1].metrics["cosine_min"].value > 0.9999
    assert report.rows[1].metrics["neighbour_agreement"].value == 1
    assert not [name for row in report.rows for name in row.metrics if name.startswith("top1")]
    assert "Accuracy was not measured: the model gives an embedding, not classes." in report.notes
