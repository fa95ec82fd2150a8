"""What the user says of a model's input reaches the contract as said, and what nobody said is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitdeploy.amendments import Amendments, describe_aspects, list_unsaid, read_contract, read_labels, read_task
from vitdeploy.contract import InputContract
from vitdeploy.errors import InputError, UsageError

HALF = InputContract(height=64, width=96, resize_to=107, mean=(0.5,) * 3, std=(0.5,) * 3, alpha="drop")


def test_nothing_said_changes_nothing() -> None:
    assert Amendments().apply(HALF) == HALF
    assert Amendments().list_said() == frozenset()


def test_a_contracts_file_may_say_the_task(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('height = 64\nwidth = 96\ntask = "multi_label"\n')
    assert read_task(tmp_path / "c.toml") == "multi_label"
    for under in (None, HALF):
        contract = read_contract(tmp_path / "c.toml", under)
        assert type(contract) is InputContract
        assert (contract.height, contract.width, contract.alpha) == (64, 96, "white" if under is None else "drop")
    (tmp_path / "c.toml").write_text("height = 64\nwidth = 96\n")
    assert read_task(tmp_path / "c.toml") is None
    (tmp_path / "c.toml").write_text('task = "embeding"\n')
    with pytest.raises(UsageError, match="task"):
        read_task(tmp_path / "c.toml")


def test_one_number_is_for_every_channel() -> None:
    made = Amendments(mean=(0.25,), std=(0.1, 0.2, 0.3), interpolation="bilinear", exif="apply", alpha="white").apply(HALF)
    assert (made.mean, made.std) == ((0.25,) * 3, (0.1, 0.2, 0.3))
    assert (made.interpolation, made.exif, made.alpha, made.resize_to) == ("bilinear", "apply", "white", 107)
    with pytest.raises(UsageError, match="3 channels, but 2 means"):
        Amendments(mean=(0.1, 0.2)).apply(HALF)


@pytest.mark.parametrize(
    ("said", "resize", "to"),
    [
        ({"resize": 128}, "shortest", 128),
        ({"resize": "shortest"}, "shortest", 107),
        ({"resize": "stretch"}, "stretch", None),
        ({"resize": "none"}, "none", None),
        ({"crop": 1}, "shortest", 96),
        ({"crop": 0.875}, "shortest", 109),
        ({"crop": 0.9, "resize": "stretch"}, "stretch", 106),
        ({"resize": 128, "crop": 96}, "shortest", 128),
    ],
    ids=str,
)
def test_resize_and_crop(said: dict[str, Any], resize: str, to: int | None) -> None:
    made = Amendments(**said).apply(HALF)
    assert (made.resize, made.resize_to) == (resize, to)
    assert Amendments(**said).list_said() == {"resize"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"resize": "longest"}, "use shortest, stretch, none, or pixels"),
        ({"resize": 50}, "raise resize_to"),
        ({"crop": 0}, "a share above 0"),
        ({"crop": 0.9, "resize": 128}, "a share above 0"),
        ({"crop": 0.9, "resize": "none"}, "a share above 0"),
        ({"crop": 224}, "--image-size"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Amendments(**said).apply(HALF)
    assert caught.value.code == "VD2003" and words in caught.value.fix


def test_what_was_not_said_is_told() -> None:
    assert list_unsaid(("mean", "resize_to")) == ("std", "interpolation")
    assert list_unsaid(()) == ("mean", "std", "resize", "interpolation")
    words = {"mean": "0.5", "std": "0.5", "resize": "shortest to 107", "interpolation": "bicubic"}
    assert describe_aspects(HALF, words) == words
    assert describe_aspects(InputContract(resize="stretch"), ("mean", "resize")) == {
        "mean": "0.485, 0.456, 0.406",
        "resize": "stretch",
    }


@pytest.mark.parametrize(
    "value",
    [
        ["cat", "dog", "sea lion"],
        {"2": "sea lion", "0": "cat", "1": "dog"},
        {"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "sea lion"}},
        {"architecture": "vit_tiny", "label_names": ["cat", "dog", "sea lion"]},
        {"architecture": "vit_tiny", "pretrained_cfg": {"label_names": ["cat", "dog", "sea lion"]}},
    ],
    ids=["list", "table", "transformers", "timm", "timm's pretrained_cfg"],
)
def test_labels_in_json(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(value))
    assert read_labels(str(tmp_path / "config.json")) == ("cat", "dog", "sea lion")


def test_labels_in_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\ndog \r\nsea lion\r\n\r\n".encode())
    assert read_labels(str(path)) == read_labels(("cat", "dog", "sea lion")) == ("cat", "dog", "sea lion")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"cat\n\ndog\n"),
        ("a.txt", b""),
        ("a.txt", b"\xff\xfe"),
        ("a.json", b'{"0": "cat", "2": "dog"}'),
        ("a.json", b'["cat", 3]'),
        ("a.json", b"[]"),
        ("a.json", b'{"id2label": 3}'),
        ("a.json", b"{"),
    ],
    ids=str,
)
def test_files_without_labels_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_labels(str(tmp_path / name))
    assert (caught.value.code, caught.value.file) == ("VD3105", str(tmp_path / name))


def test_a_missing_file_of_labels() -> None:
    with pytest.raises(InputError) as caught:
        read_labels("nowhere.txt")
    assert caught.value.code == "VD3001" and "--labels cat,dog" in caught.value.fix
