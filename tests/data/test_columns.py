"""Columns of manifests, and what tells images apart."""

import json

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import columns, open_dataset


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        Image.fromarray(np.full((4, 4, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_csv_has_columns(photos) -> None:
    lines = [f"{number}.png,0,{'night' if number % 2 else 'day'} ,A" for number in range(4)]
    (photos / "m.csv").write_text("\n".join(["path,label,time, camera", *lines]))
    listing = open_dataset(photos / "m.csv").listing
    assert listing.columns == {"camera": ("A",) * 4, "time": ("day", "night", "day", "night")}


def test_jsonl_has_columns_and_lines_may_leave_them_out(photos) -> None:
    lines = [{"path": "0.png", "label": 1, "more": True}, {"path": "1.png", "label": 0, "iso": 100, "box": [1, 2]}]
    (photos / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert open_dataset(photos / "m.jsonl").listing.columns == {"iso": ("", "100"), "more": ("true", "")}


def test_a_column_of_names_is_no_group(photos, monkeypatch) -> None:
    monkeypatch.setattr(columns, "MOST_VALUES", 3)
    (photos / "m.csv").write_text("path,id,three\n" + "".join(f"{n}.png,{n},{n % 3}\n" for n in range(4)))
    assert list(open_dataset(photos / "m.csv").listing.columns) == ["three"]


def test_folders_and_text_files_have_none(photos) -> None:
    (photos / "m.txt").write_text("0.png\n")
    assert open_dataset(photos / "m.txt").listing.columns == {}
    assert open_dataset(photos).listing.columns == {}


def test_an_image_is_the_same_wherever_it_lies(photos, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "copy.png").write_bytes((photos / "2.png").read_bytes())
    here, there = open_dataset(photos).listing, open_dataset(other).listing
    assert there.identify(0) == here.identify(2)
    assert len({here.identify(number) for number in range(4)}) == 4
    assert len(here.identify(0)) == 8


def test_every_kind_of_source_tells_its_images_apart(tmp_path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[::-1])
    first, second = (open_dataset(tmp_path / name).listing for name in ("a.npy", "b.npy"))
    assert [first.identify(number) for number in range(3)] == [second.identify(number) for number in (2, 1, 0)]
