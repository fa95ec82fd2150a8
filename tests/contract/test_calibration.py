"""The data that travel with the source are what their README says, and can be drawn again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vitdeploy import data, files
from vitdeploy.data import idx, images
from vitdeploy.spec import InputContract

ROOT = Path(__file__).parents[2]
DATA = ROOT / "calibration" / "fashion-mnist"
SETS = {"calibration": 512, "evaluation": 2000}
PHOTOS = ROOT / "calibration" / "photos"


def recipe(name: str = "draw_fashion_mnist") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded() -> dict[str, str]:
    """File name to digest of the unpacked array, as the README records it."""
    rows = re.findall(r"^ {4}([0-9a-f]{64})  (\S+)$", (DATA / "README.md").read_text(), re.MULTILINE)
    return {name: digest for digest, name in rows}


def test_every_set_has_a_page_and_a_licence() -> None:
    assert {path.name for path in (ROOT / "calibration").iterdir()} == {DATA.name, PHOTOS.name}


@pytest.mark.parametrize("folder", [DATA, PHOTOS], ids=lambda folder: folder.name)
def test_every_file_is_listed_and_has_its_digest(folder: Path) -> None:
    listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    present = {path.name for path in folder.iterdir()} - {"README.md", "SHA256SUMS"}
    assert set(listed) == present > {"LICENSE"}
    assert {name: files.sha256(folder / name) for name in listed} == listed
    assert sum((folder / name).stat().st_size for name in listed) < 3_000_000


def test_arrays_have_the_recorded_digests() -> None:
    found = {}
    for name in SETS:
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            file = f"{name}-{kind}-ubyte.gz"
            found[file] = hashlib.sha256(idx.read(DATA / file, dimensions).tobytes()).hexdigest()
    assert found == recorded()


@pytest.mark.parametrize("name", SETS)
def test_counts_and_classes(name: str) -> None:
    dataset = data.open_dataset(DATA, split=name)
    assert len(dataset) == SETS[name]
    assert dataset.classes is not None
    assert dataset.classes[9] == "Ankle boot"
    assert dataset.labels is not None
    per_class = np.bincount(dataset.labels, minlength=10)
    assert per_class.max() - per_class.min() <= 1
    assert dataset.digest == data.open_dataset(DATA / f"{name}-images-idx3-ubyte.gz").digest


def test_no_image_is_in_both_sets_or_twice() -> None:
    images = [image.tobytes() for name in SETS for image in idx.read(DATA / f"{name}-images-idx3-ubyte.gz", 3)]
    assert len(set(images)) == len(images) == sum(SETS.values())


def test_it_feeds_a_model() -> None:
    contract = InputContract(height=32, width=32, channels=1, mean=(0.5,), std=(0.5,), resize_to=32)
    dataset = data.open_dataset(DATA, split="evaluation")
    batch = next(dataset.batches(contract, data.LoadConfig(batch_size=8, limit=8)))
    assert batch.pixels.shape == (8, 32, 32, 1)
    assert batch.pixels.std() > 20, "pictures, not a constant"
    labels = ("ankle_boot", *(dataset.classes or ())[:9])
    assert dataset.class_map(labels, 10).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_drawing_again_gives_the_same(tmp_path: Path) -> None:
    source = Path(os.environ.get("VITDEPLOY_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    if not (source / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no Fashion-MNIST in {source} (Debian package dataset-fashion-mnist, or VITDEPLOY_FASHION_MNIST)")
    assert recipe().make(source, tmp_path) == recorded()
    assert (tmp_path / "classes.txt").read_bytes() == (DATA / "classes.txt").read_bytes()


def test_a_draw_is_balanced_and_depends_on_the_seed() -> None:
    draw = recipe().draw
    labels = np.repeat(np.arange(10, dtype=np.uint8), 30)
    taken = draw(labels, "train", 25, 1)
    assert len(set(taken.tolist())) == 25
    assert sorted(np.bincount(labels[taken], minlength=10).tolist()) == [2] * 5 + [3] * 5
    np.testing.assert_array_equal(taken, draw(labels, "train", 25, 1))
    assert set(taken.tolist()) != set(draw(labels, "train", 25, 2).tolist())


class TestPhotos:
    """The colour images that come along."""

    def test_pieces_are_what_the_page_says(self) -> None:
        drawn, dataset = recipe("draw_photos"), data.open_dataset(PHOTOS)
        names = [photo.name for photo in drawn.PHOTOS]
        rows = re.findall(
            r"^\| (\w+) \| [^|]+ \| [^|]+ \| ([^|]+) \| [\w-]+ \|$", (PHOTOS / "README.md").read_text(), re.MULTILINE
        )
        assert [name for name, _ in rows[1:]] == names
        licences = set(re.findall(r"^([A-Z][\w .]+):", (PHOTOS / "LICENSE").read_text(), re.MULTILINE))
        assert {licence.lower() for _, licence in rows[1:]} == {licence.lower() for licence in licences}
        assert len(dataset) == len(names) * drawn.PIECES == 240
        assert dataset.labels is None
        with drawn.tarfile.open(PHOTOS / drawn.SHARD) as shard:
            assert shard.getnames() == [f"{name}-{number:02}.jpg" for name in names for number in range(drawn.PIECES)]

    def test_they_calibrate_a_colour_model(self) -> None:
        contract = InputContract(height=64, width=64, resize_to=64)
        with data.open_dataset(PHOTOS).batches(contract, data.LoadConfig(batch_size=240)) as batches:
            pixels = np.concatenate([batch.pixels for batch in batches])
        assert pixels.shape == (240, 64, 64, 3)
        assert len({piece.tobytes() for piece in pixels}) == 240
        assert pixels.mean((1, 2)).std(0).min() > 20, "bright and dark, in each colour"
        assert np.abs(np.diff(pixels.mean((1, 2)), axis=1)).mean() > 10, "not grey"

    def test_boxes_lie_inside_and_are_of_all_sizes(self) -> None:
        choose = recipe("draw_photos").choose_box
        assert choose("a", 0, (400, 200)) == (100, 0, 300, 200)
        boxes = [choose("a", number, (1000, 2000)) for number in range(1, 100)]
        sides = np.array([right - left for left, _, right, _ in boxes])
        assert all(left >= 0 <= top and right <= 1000 and bottom <= 2000 for left, top, right, bottom in boxes)
        assert all(bottom - top == right - left for left, top, right, bottom in boxes)
        assert 250 <= sides.min() < 300 and 900 < sides.max() <= 1000
        assert 400 < np.median(sides) < 600
        assert choose("a", 7, (130, 200))[2] - choose("a", 7, (130, 200))[0] >= 128

    def test_cutting_again_gives_the_same_pixels(self, tmp_path: Path) -> None:
        source, drawn = os.environ.get("VITDEPLOY_PHOTOS"), recipe("draw_photos")
        if source is None:
            pytest.skip("VITDEPLOY_PHOTOS names no folder with the packages (recipes/draw_photos.py)")
        drawn.make(Path(source), tmp_path)
        for old, new in zip(data.open_dataset(PHOTOS), data.open_dataset(tmp_path), strict=True):
            pixels = [sample.read(InputContract(height=128, width=128)).astype(int) for sample in (old, new)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 1


@pytest.mark.slow
def test_the_demo_models_weights_are_those_of_the_recorded_run() -> None:
    """The digest that the training script wrote beside them; small enough to ship; at least 90 % on the images kept here."""
    recipes = ROOT / "recipes"
    record = json.loads((recipes / "fashion_mnist_vit.json").read_text())
    weights = recipes / "fashion_mnist_vit.safetensors"
    assert files.sha256(weights) == record["sha256"]
    assert weights.stat().st_size <= 4_000_000
    assert record["test_images"] == 10_000
    assert record["test_top1"] >= 0.90
    torch = pytest.importorskip("torch")
    from vitdeploy.checkpoints.safetensors import rebuild
    from vitdeploy.spec import read_spec

    spec = read_spec(recipes / "fashion_mnist_vit.toml")
    model, right, seen = rebuild(spec, weights), 0, 0
    for batch in data.open_dataset(DATA, split="evaluation").batches(spec.input):
        with torch.inference_mode():
            classes = model(torch.from_numpy(images.to_tensor(batch.pixels, spec.input))).argmax(1).numpy()
        right, seen = right + int((classes == batch.labels).sum()), seen + len(classes)
    assert seen == 2_000
    assert abs(right / seen - record["test_top1"]) < 0.02  # a sample of the 10,000
