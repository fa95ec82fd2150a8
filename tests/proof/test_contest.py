"""A contract that is not the training's is found by its accuracy, and a right one is left in peace."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from vitdeploy.contract import InputContract
from vitdeploy.data import Dataset, LoadConfig, images, open_dataset
from vitdeploy.errors import InputError
from vitdeploy.proof.contest import STATISTICS, Predict, try_contract
from vitdeploy.spec import ModelSpec

IMAGENET = InputContract(height=16, width=16, alpha="drop")
HALF = msgspec.structs.replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
CROPPED = msgspec.structs.replace(IMAGENET, resize_to=18)
CLASSES = 16


def classify(channel: int = 0) -> Predict:
    """A network that tells how bright the middle of one channel is, to one of 16 steps of what the training saw."""

    def predict(pixels: np.ndarray) -> np.ndarray:
        bright = pixels[:, channel, 4:12, 4:12].mean((1, 2)) - 0.3 * pixels[:, :, :2].mean((1, 2, 3))
        return -np.abs(bright[:, None] - np.linspace(-2.5, 2.5, CLASSES)[None])

    return predict


def draw(folder: Path, truth: InputContract, predict: Predict, count: int = 60) -> Dataset:
    """Images with the labels that the network gives them under the true contract."""
    rng, rows = np.random.default_rng(0), []
    for index in range(count):
        small = rng.integers(0, 256, (3, 5, 3), np.uint8)
        Image.fromarray(small).resize((40, 24), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        tensor = images.to_tensor(images.load(folder / f"{index}.png", truth), truth)
        rows.append((f"{index}.png", int(predict(tensor).argmax())))
    with (folder / "data.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *rows])
    return open_dataset(folder / "data.csv")


def spec(contract: InputContract) -> ModelSpec:
    return ModelSpec(name="steps", network="module", input=contract, classes=CLASSES)


def test_the_wrong_mean_is_found(tmp_path: Path) -> None:
    data = draw(tmp_path, IMAGENET, classify())
    trial = try_contract(classify(), spec(HALF), data, LoadConfig())
    assert trial.images == 60 and trial.data == "data.csv" and trial.top1 < 0.9
    gain = trial.others["ImageNet's mean and std"]
    assert gain.value == pytest.approx(100 * (1 - trial.top1)) and gain.unit == "points"
    assert gain.low is not None and gain.low > 0
    assert f"{100 * trial.top1:.1f} % top-1 on 60 images of data.csv; ImageNet's mean and std" in trial.warning
    assert trial.warning.endswith("export with --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225")


def test_the_right_contract_is_left_in_peace(tmp_path: Path) -> None:
    data = draw(tmp_path, IMAGENET, classify())
    trial = try_contract(classify(), spec(IMAGENET), data, LoadConfig(limit=40))
    assert (trial.top1, trial.images, trial.warning) == (1.0, 40, "")
    assert set(trial.others) == {
        *STATISTICS.keys() - {"ImageNet's mean and std"},
        "channels reversed (BGR)",
        "a crop of 0.875",
        "stretched",
    }
    assert all(other.value <= 0 for other in trial.others.values())


def test_reversed_channels_are_found(tmp_path: Path) -> None:
    half = msgspec.structs.replace(HALF, resize="stretch")
    data = draw(tmp_path, half, classify(2))
    trial = try_contract(classify(0), spec(half), data, LoadConfig())
    assert "the weights want BGR" in trial.warning and "export with" not in trial.warning


def test_mean_and_resize_are_found_together(tmp_path: Path) -> None:
    data = draw(tmp_path, CROPPED, classify(), count=150)
    trial = try_contract(classify(), spec(HALF), data, LoadConfig())
    wanted = "export with --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --resize shortest --crop 0.875"
    assert trial.warning.endswith(wanted)
    assert trial.others["ImageNet's mean and std, a crop of 0.875"].value == pytest.approx(100 * (1 - trial.top1))


def test_a_small_advantage_may_be_chance(tmp_path: Path) -> None:
    data = draw(tmp_path, IMAGENET, classify(), count=4)
    assert try_contract(classify(), spec(HALF), data, LoadConfig()).warning == ""


def test_grey_has_no_order_of_channels(tmp_path: Path) -> None:
    grey = InputContract(height=16, width=16, channels=1, mean=(0.5,), std=(0.5,))
    data = draw(tmp_path, grey, classify())
    trial = try_contract(classify(), spec(grey), data, LoadConfig())
    assert set(trial.others) == {"mean 0 and std 1", "a crop of 0.875", "stretched"}


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        try_contract(classify(), spec(HALF), open_dataset(tmp_path), LoadConfig())
    assert caught.value.code == "VD3106"


def test_the_same_images_are_paired(tmp_path: Path, monkeypatch: Any) -> None:
    """An image that only some contracts can read counts for none of their differences."""
    data = draw(tmp_path, IMAGENET, classify())
    tall = Image.new("RGB", (1, 3_200_000))  # shortest to 16 is too many pixels, stretched is not
    tall.save(tmp_path / "0.png")
    trial = try_contract(classify(), spec(IMAGENET), open_dataset(tmp_path / "data.csv"), LoadConfig(max_bad=1))
    assert data.labels is not None and trial.images == 59 and trial.top1 == 1
    assert trial.others["stretched"].value <= 0
