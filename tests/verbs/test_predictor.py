"""`predict`: names and probabilities, from every engine, without torch."""

import json
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.table import TABLE
from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.verbs.predictor import PredictConfig, choose_engine, predict, softmax


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return paths


def labelled(artifact, labels):
    spec = msgspec.structs.replace(artifact.spec, labels=labels)
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, spec=spec))


def test_the_most_probable_come_first_and_their_order_is_the_images(tiny_artifact, photos):
    predictions = predict(tiny_artifact, photos, PredictConfig(top=12))
    assert [item.image for item in predictions] == [str(path) for path in photos]
    for item in predictions:
        shares = [score.probability for score in item.classes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert sorted(score.index for score in item.classes) == list(range(12))
        assert all(score.label == str(score.index) for score in item.classes)


def test_every_engine_agrees(tiny_artifact, photos):
    answers = {name: predict(tiny_artifact, photos, PredictConfig(backend=name, top=12)) for name in table.list_openers()}
    for item, *others in zip(*answers.values(), strict=True):
        for other in others:
            assert [s.index for s in item.classes] == [s.index for s in other.classes]
            np.testing.assert_allclose(*([s.probability for s in i.classes] for i in (item, other)), rtol=1e-4)


def test_an_answer_does_not_depend_on_its_neighbours(tiny_artifact, tiny_static, photos):
    together = predict(tiny_artifact, photos)
    assert together == [predict(tiny_artifact, [path])[0] for path in photos]
    assert [[s.index for s in item.classes] for item in predict(tiny_static, photos)] == [
        [s.index for s in item.classes] for item in together
    ]


def test_labels_and_top(tiny_artifact, photos):
    labels = tuple(f"class {letter}" for letter in "abcdefghijkl")
    (item,) = predict(labelled(tiny_artifact, labels), photos[:1], PredictConfig(top=2))
    assert len(item.classes) == 2
    assert all(score.label == labels[score.index] for score in item.classes)
    assert len(predict(tiny_artifact, photos[:1], PredictConfig(top=99))[0].classes) == 12


def test_progress_ends(tiny_artifact, photos):
    heard = []
    predict(tiny_artifact, photos, progress=lambda *news: heard.append(news))
    assert heard[0] == ("predict", 0, 3)
    assert heard[-1] == ("predict", 3, 3)


def test_a_model_without_head_is_refused(tiny_artifact, photos):
    spec = msgspec.structs.replace(tiny_artifact.spec, head="none", classes=0)
    with pytest.raises(UsageError) as caught:
        predict(Artifact(tiny_artifact.folder, Record(spec=spec, made_by="export")), photos)
    assert caught.value.code == "VD2010"


def test_an_embedding_is_not_called_classes(tiny_embedding, photos):
    with pytest.raises(UsageError, match="embedding of 12 numbers, not classes") as caught:
        predict(tiny_embedding, photos)
    assert caught.value.code == "VD2010"


def test_what_can_not_be_read_is_named(tiny_artifact, photos, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "none.png", tmp_path / "text.png", tmp_path):
        with pytest.raises(InputError) as caught:
            predict(tiny_artifact, [*photos, path])
        assert caught.value.file == str(path)
    with pytest.raises(UsageError):
        predict(tiny_artifact, [])


@pytest.mark.parametrize("values", [{"top": 0}, {"threads": 0}, {"top": -3}])
def test_sizes_below_one_are_refused(values):
    with pytest.raises(UsageError):
        PredictConfig(**values)


@pytest.mark.parametrize(
    ("packages", "chosen"),
    [(("torch", "openvino", "onnxruntime"), "onnxruntime"), (("torch", "openvino"), "openvino"), (("torch",), "pytorch")],
)
def test_the_backend_is_the_first_installed_one(packages, chosen, monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: name if name in packages else None)
    assert choose_engine() == chosen


def test_no_backend_at_all(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(MachineError) as caught:
        choose_engine()
    assert "pip install" in caught.value.fix


def test_softmax_neither_overflows_nor_hides_a_nan():
    shares = softmax(np.array([3e38, 3e38, -3e38], np.float32))
    np.testing.assert_array_equal(shares, [0.5, 0.5, 0])
    assert np.isnan(softmax(np.array([np.nan, 0], np.float32))).all()


def test_needs_no_torch(tiny_artifact, photos):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'safetensors', 'openvino']))\n"
        "from vitdeploy.cli.commands import main\n"
        f"sys.exit(main(['predict', {str(tiny_artifact.folder)!r}, {str(photos[0])!r}, '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (item,) = json.loads(done.stdout)["predictions"]
    assert item["classes"][0]["index"] == vitdeploy.predict(tiny_artifact, photos[:1])[0].classes[0].index


def test_an_engine_that_crashes_is_one_line_of_the_command(tiny_artifact, photos, monkeypatch, capfd):
    monkeypatch.setitem(TABLE, "onnxruntime", TABLE["onnxruntime"]._replace(backend=f"{__name__}:Crashing"))
    assert main(["predict", str(tiny_artifact.folder), str(photos[0])]) == 4
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "VD4007" in line]
    assert "was ended by SIGABRT" in line
    assert "use another engine (--backend)" in line


class Crashing:
    """An engine that can't stand a model."""

    def open(self, artifact, options):
        os.abort()


def test_a_compiled_artifact_runs_in_its_own_engine(tiny_artifact, photos):
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind="openvino"))
    with pytest.raises(UsageError) as caught:
        predict(other, photos, PredictConfig(backend="onnxruntime"))
    assert caught.value.code == "VD2013"
