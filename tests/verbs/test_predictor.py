"""`predict`: names and probabilities, from every engine, without torch."""

import itertools
import json
import os
import re
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
import numpy as np
import pytest
from PIL import Image

import vitdeploy
from vitdeploy.artifact import Artifact
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.table import TABLE
from vitdeploy.cli.commands import main
from vitdeploy.data import images
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.verbs import predictor
from vitdeploy.verbs.predictor import PredictConfig, choose_engine, load, predict, predict_each, write_lines, write_vectors


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


def test_progress_is_told_of_many_images_and_ends(tiny_artifact, photos):
    heard = []
    predict(tiny_artifact, photos, progress=lambda *news: heard.append(news))
    assert heard == []
    predict(tiny_artifact, photos * 6, progress=lambda *news: heard.append(news))
    assert heard == [("predict", done, 18) for done in range(19)]


@pytest.mark.parametrize("kind", ["tiny_embedding", "tiny_headless"])
def test_an_embedding_is_told_whole_and_never_as_classes(kind, photos, request):
    artifact = request.getfixturevalue(kind)
    items = predict(artifact, photos)
    size = artifact.spec.output_size
    assert [(item.classes, len(item.values), item.names) for item in items] == [((), size, ())] * 3
    with closing(table.load("onnxruntime").open(artifact, OpenConfig())) as runner:
        pixels = np.stack([images.load(path, artifact.spec.input) for path in photos])
        expected = run_main(runner, images.to_tensor(pixels, artifact.spec.input), artifact.spec)
    np.testing.assert_allclose([item.values for item in items], expected, atol=1e-5)


def as_task(artifact: Artifact, task: str, **more) -> Artifact:
    """The same file, said to give something else."""
    spec = msgspec.structs.replace(artifact.spec.change_task(task), **more)
    return Artifact(artifact.folder, msgspec.structs.replace(artifact.record, spec=spec))


def test_labels_each_on_its_own_have_the_sigmoid(tiny_artifact, tiny_embedding, photos):
    (vector,) = predict(as_task(tiny_artifact, "regression"), photos[:1])
    (item,) = predict(as_task(tiny_artifact, "multi_label"), photos[:1], PredictConfig(top=12))
    shares = {score.index: score.probability for score in item.classes}
    np.testing.assert_allclose([shares[place] for place in range(12)], 1 / (1 + np.exp(-np.array(vector.values))), rtol=1e-6)
    assert [score.probability for score in item.classes] == sorted(shares.values(), reverse=True)
    assert not np.isclose(sum(shares.values()), 1)


def test_a_regression_is_the_numbers_with_their_names(tiny_artifact, photos):
    names = tuple(f"number {place}" for place in range(12))
    (item,) = predict(as_task(tiny_artifact, "regression", labels=names), photos[:1])
    assert (item.classes, item.names, len(item.values)) == ((), names, 12)


def test_probabilities_of_the_file_are_told_as_they_are(tiny_artifact, photos):
    (item,) = predict(as_task(tiny_artifact, "single_label", probabilities=True), photos[:1], PredictConfig(top=12))
    (vector,) = predict(as_task(tiny_artifact, "regression"), photos[:1])
    assert {score.index: score.probability for score in item.classes} == dict(enumerate(vector.values))


def test_vectors_are_written_and_shown(tiny_embedding, tiny_artifact, photos, tmp_path, capsys):
    path = tmp_path / "vectors.npy"
    names = [str(each) for each in photos]
    assert main(["predict", str(tiny_embedding.folder), *names, "-o", str(path)]) == 0
    shown = capsys.readouterr()
    assert re.search(r"images +3", shown.out) and f"wrote {path}" in shown.err
    vectors = np.load(path)
    assert (vectors.shape, vectors.dtype) == ((3, 12), np.float32)
    assert main(["predict", str(tiny_embedding.folder), *names, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["predictions"]
    np.testing.assert_allclose([each["values"] for each in said], vectors)
    assert "classes" not in said[0]
    for folder, file, code in ((tiny_artifact.folder, "a.npy", "VD2010"), (tiny_embedding.folder, "a.npz", "VD2008")):
        assert main(["predict", str(folder), *names, "-o", str(tmp_path / file)]) == 2
        assert f"error[{code}]" in capsys.readouterr().err
        assert not (tmp_path / file).exists()


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_vectors_are_written_as_they_come(tmp_path, count):
    """Nothing is kept of an image whose row was written, and a number of rows that nobody knew before is in the file's head."""
    alive = weakref.WeakSet()

    class Answer:
        """As `Prediction`, as far as it is read."""

        def __init__(self, number: int) -> None:
            self.error = "no image" if number % 1000 == 7 else ""
            self.values = () if self.error else (float(number), -1.0)

    def come():
        for number in range(count):
            answer = Answer(number)
            alive.add(answer)
            yield answer
            assert len(alive) <= 2

    summary = write_vectors(come(), tmp_path / "vectors.npy", 2)
    vectors = np.load(tmp_path / "vectors.npy")
    assert (vectors.shape, vectors.dtype, summary.images) == ((count, 2), np.float32, count)
    unread = np.isnan(vectors[:, 0])
    assert np.flatnonzero(unread).tolist() == list(range(7, count, 1000)) and summary.bad == unread.sum()
    np.testing.assert_array_equal(vectors[~unread, 0], np.arange(count)[~unread])


def test_what_can_not_be_read_is_named(tiny_artifact, photos, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "none.png", tmp_path / "text.png"):
        with pytest.raises(InputError) as caught:
            predict(tiny_artifact, [*photos, path])
        assert caught.value.file == str(path)
    with pytest.raises(UsageError):
        predict(tiny_artifact, [])


def test_unreadable_images_are_answers_up_to_a_number_and_named_once(tiny_artifact, photos, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no image")
    given = [tmp_path / "a.png", photos[0], tmp_path / "b.png", photos[1]]
    answers = predict(tiny_artifact, given, PredictConfig(max_bad=2))
    assert [item.image for item in answers] == [str(path) for path in given]
    assert [item.error != "" for item in answers] == [True, False, True, False]
    assert [item for item in answers if not item.error] == predict(tiny_artifact, photos[:2])
    with pytest.raises(InputError) as caught:
        predict(tiny_artifact, given, PredictConfig(max_bad=1))
    assert caught.value.code == "VD3104"
    assert [caught.value.message.count(name) for name in ("a.png", "b.png")] == [1, 1]


def test_one_engine_serves_many_calls_and_threads(tiny_artifact, photos):
    expected = [item.classes for item in predict(tiny_artifact, photos)]
    with load(tiny_artifact.folder, "onnxruntime", top=5) as model:
        child = model._runner._child
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(model, [photos] * 8))
        assert model._runner._child is child
    assert all([item.classes for item in answer] == expected for answer in answers)
    with pytest.raises(MachineError):
        model(photos[0])
    model.close()


def test_an_image_may_be_anything_that_holds_one(tiny_artifact, photos):
    pixels = np.array(Image.open(photos[0]))
    kinds = [photos[0], str(photos[0]), photos[0].read_bytes(), Image.open(photos[0]), pixels]
    answers = predict(str(tiny_artifact.folder), kinds)
    assert len({item.classes for item in answers}) == 1
    assert [item.image for item in answers] == [str(photos[0]), str(photos[0]), "image 2", "image 3", "image 4"]
    with load(tiny_artifact) as model:
        for kind in kinds:
            assert model(kind)[0].classes == answers[0].classes
        assert [item.classes for item in model(np.stack([pixels, pixels]))] == [answers[0].classes] * 2


def test_answers_come_while_images_are_still_taken(tiny_artifact, photos):
    """From an iterator without end, and no further ahead than the readers are."""
    taken = []
    with load(tiny_artifact) as model:
        stream = model.stream(taken.append(number) or photos[0] for number in itertools.count())
        assert [next(stream).image for _ in range(5)] == [str(photos[0])] * 5
        stream.close()
    assert len(taken) < 12


def test_lines_are_written_as_they_come(tiny_artifact, photos, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    summary = write_lines(predict_each(tiny_artifact, [*photos, tmp_path / "bad.png"], PredictConfig(max_bad=1)), tmp_path / "a")
    assert (summary.images, summary.bad) == (4, 1)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert [line["image"] for line in lines] == [*map(str, photos), str(tmp_path / "bad.png")]
    assert "error" in lines[3]
    with pytest.raises(InputError):
        write_lines(predict_each(tiny_artifact, [photos[0], tmp_path / "bad.png"]), tmp_path / "b")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "bad.png"]


def test_too_many_to_keep_are_refused_before_an_engine_is_started(tiny_artifact, photos, monkeypatch):
    monkeypatch.setattr(predictor, "MOST_IN_MEMORY", 2)
    monkeypatch.setattr("vitdeploy.backends.child.open_in_child", None)
    with pytest.raises(UsageError, match="more than 2 images") as caught:
        predict(tiny_artifact, photos)
    assert "-o FILE.jsonl" in caught.value.fix


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
