"""Folders, files and shards of arrays are data sets like those of photos; so is what a program gives."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdeploy.contract import InputContract
from vitdeploy.data import LoadConfig, open_dataset
from vitdeploy.data.stacks import save
from vitdeploy.errors import InputError

BANDS = InputContract(height=4, width=6, channels=5, mean=(0.5,) * 5, std=(0.5,) * 5)
ROWS = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 5), np.uint8)  # the value tells which arrived


def read(path: Path, config: LoadConfig | None = None) -> tuple[list[float], list[int] | None]:
    values, labels = [], []
    for batch in open_dataset(path).batches(BANDS, config):
        assert batch.pixels.shape[1:] == (4, 6, 5)
        values += batch.pixels[:, 0, 0, 0].tolist()
        labels += [] if batch.labels is None else batch.labels.tolist()
    return values, labels or None


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    for index, row in enumerate(ROWS):
        np.save(tmp_path / f"{index}.npy", row if index % 2 else row.transpose(2, 0, 1))
    assert read(tmp_path, LoadConfig(batch_size=4)) == ([0, 1, 2, 3, 4, 5], None)


def test_class_folders_of_arrays(tmp_path: Path) -> None:
    for index, row in enumerate(ROWS):
        (tmp_path / f"c{index % 2}").mkdir(exist_ok=True)
        np.save(tmp_path / f"c{index % 2}" / f"{index}.npy", row)
    np.savez(tmp_path / "c1" / "7.npz", row[:, :, ::-1])
    assert read(tmp_path) == ([0, 2, 4, 1, 3, 5, 5], [0, 0, 0, 1, 1, 1, 1])
    assert open_dataset(tmp_path).classes == ("c0", "c1")


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["NHWC", "NCHW"])
def test_one_file_of_many(layout: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.transpose(layout))
    assert read(tmp_path / "a.npy") == ([0, 1, 2, 3, 4, 5], None)
    np.savez(tmp_path / "a.npz", x=ROWS.transpose(layout), y=np.array([3, 1, 2, 0, 3, 1]))
    assert read(tmp_path / "a.npz") == ([0, 1, 2, 3, 4, 5], [3, 1, 2, 0, 3, 1])
    assert read(tmp_path / "a.npz", LoadConfig(limit=2))[0] == read(tmp_path / "a.npz", LoadConfig(limit=2, workers=0))[0]
    np.savez(tmp_path / "named.npz", x=ROWS.transpose(layout), y=np.array(["b", "a", "b", "b", "a", "a"]))
    named = open_dataset(tmp_path / "named.npz")
    assert named.classes == ("a", "b") and named.labels is not None and named.labels.tolist() == [1, 0, 1, 1, 0, 0]


def test_shards_of_arrays(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for index, row in enumerate(ROWS):
            stream = io.BytesIO()
            np.save(stream, row)
            for suffix, data in (("npy", stream.getvalue()), ("cls", str(5 - index).encode())):
                member = tarfile.TarInfo(f"{index}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert read(tmp_path / "a.tar") == ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0])


def test_bytes_and_floats_do_not_mix(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", ROWS[0])
    np.save(tmp_path / "1.npy", ROWS[0].astype(np.float32))
    with pytest.raises(InputError, match="images of uint8 and of float32") as caught:
        read(tmp_path)
    assert caught.value.code == "VD3105"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"x": ROWS, "z": ROWS}, "2 arrays of images"),
        ({"y": np.zeros(6, int)}, "0 arrays of images"),
        ({"x": ROWS, "y": np.zeros(6, int), "z": np.zeros(6, int)}, "2 of labels"),
        ({"x": ROWS, "y": np.zeros(5, int)}, "5 labels for 6 images"),
        ({"x": np.array([[[None]]], object)}, "no file of arrays"),
    ],
    ids=["two of images", "none", "two of labels", "too few labels", "objects"],
)
def test_files_that_contradict_themselves_are_refused(made: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **made)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path / "a.npz")
    assert caught.value.code == "VD3105" and words in caught.value.message


def test_what_a_program_gives(tmp_path: Path) -> None:
    def give() -> Iterator[object]:
        for index, row in enumerate(ROWS):
            yield row, np.int64(index % 3)

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = save(give(), tmp_path / "a"), save(give(), tmp_path / "b")
    assert read(first) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2])
    assert open_dataset(first).digest == open_dataset(second).digest
    (tmp_path / "c").mkdir()
    assert read(save([row / np.float32(255) for row in ROWS], tmp_path / "c"))[1] is None
    assert open_dataset(tmp_path / "c" / "given.jsonl").digest != open_dataset(first).digest


@pytest.mark.parametrize(
    ("given", "code"),
    [([], "VD3101"), (["cat.jpg"], "VD3105"), ([ROWS], "VD3105")],
    ids=["none", "text", "four dimensions"],
)
def test_what_is_no_image_is_not_taken(given: list[object], code: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        save(given, tmp_path)
    assert caught.value.code == code
