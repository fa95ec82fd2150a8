"""Images as people name them: every source gives its images in order, with names that can be found again."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import gather
from vitdeploy.errors import InputError, TrustError
from vitdeploy.spec import InputContract

CONTRACT = InputContract(height=4, width=4, resize="stretch")


@pytest.fixture
def photos(tmp_path):
    """Four photos in folders, one of them beside a folder; and a file that is none."""
    for number, name in enumerate(("b.png", "cat/a.png", "cat/deep/c.png", "dog/a.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    (tmp_path / "photos" / "notes.md").write_text("no image")
    return tmp_path / "photos"


def read_all(given):
    parts = [gather.open_part(each, number) for number, each in enumerate(gather.split_images(given))]
    return {name: int(read(CONTRACT).pixels[0, 0, 0]) for part in parts for name, read in part.list_jobs()}


def test_a_folder_gives_all_that_lies_below_it_whatever_its_folders_mean(photos):
    names = ["b.png", "cat/a.png", "cat/deep/c.png", "dog/a.png"]
    assert read_all(photos) == {str(photos / name): number for number, name in enumerate(names)}
    assert read_all(str(photos)) == read_all(photos)


def test_a_pattern_is_expanded_unless_a_file_has_that_name(photos):
    assert list(read_all(f"{photos}/*/a.png")) == [str(photos / "cat/a.png"), str(photos / "dog/a.png")]
    assert len(read_all(f"{photos}/**/*.png")) == 4
    odd = photos / "[cat].png"
    Image.new("RGB", (4, 4), (9, 0, 0)).save(odd)
    assert read_all(str(odd)) == {str(odd): 9}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "cat/a.png\n\ndog/a.png\n"),
        ("list.csv", "path\ncat/a.png\ndog/a.png\n"),
        ("l.jsonl", '{"path": "cat/a.png"}\n{"path": "dog/a.png"}'),
    ],
)
def test_a_manifest_gives_what_it_lists(photos, name, text):
    (photos / name).write_text(text)
    assert read_all(photos / name) == {str(photos / "cat/a.png"): 1, str(photos / "dog/a.png"): 3}


def test_a_manifest_reaches_nothing_outside_its_folder(photos):
    (photos / "cat" / "list.txt").write_text("../b.png\n")
    with pytest.raises(TrustError):
        read_all(photos / "cat" / "list.txt")


def test_shards_alone_or_in_a_folder(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        tar.add(photos / "b.png", "x.png")
    assert read_all(tmp_path / "shards" / "a.tar") == {str(tmp_path / "shards" / "a.tar" / "x.png"): 0}
    assert list(read_all(tmp_path / "shards").values()) == [0]


def test_what_is_in_memory_is_numbered_among_all(photos):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (7, 0, 0)).save(buffer, "png")
    given = [photos / "b.png", buffer.getvalue(), Image.new("RGB", (4, 4), (8, 0, 0)), np.full((4, 4, 3), 9, np.uint8)]
    assert read_all(given) == {str(photos / "b.png"): 0, "image 1": 7, "image 2": 8, "image 3": 9}
    assert read_all(np.full((2, 4, 4, 3), 5, np.uint8)) == {"image 0": 5, "image 1": 5}


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.full((4, 4, 3), 9.0, np.float32)]
)
def test_an_array_that_is_no_image_is_named(pixels):
    with pytest.raises(InputError) as caught:
        read_all([pixels])
    assert caught.value.file == "image 0"


def test_nothing_there(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for given, code in ((tmp_path / "empty", "VD3101"), (f"{photos}/*.jpg", "VD3001")):
        with pytest.raises(InputError) as caught:
            read_all(given)
        assert caught.value.code == code
        assert caught.value.file == str(given)
