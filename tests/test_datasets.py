"""A data set is the same images in the same order, whatever holds them and however many threads read them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy import datasets
from vitdeploy.datasets import LoadConfig, idx, open_dataset, sources
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract

CONTRACT = InputContract(height=4, width=4, resize="stretch")
GREY = InputContract(height=4, width=4, channels=1, resize="stretch", mean=(0.5,), std=(0.5,))


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A grey picture whose every pixel is ``value``: the value tells which picture arrived."""
    stream = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def class_folder(root: Path, count: int = 6) -> Path:
    for index in range(count):
        write(root / ("cat", "dog")[index % 2] / f"{index:02}.png", png(index))
    return root


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def values(path: Path, config: LoadConfig | None = None, contract: InputContract = CONTRACT) -> list[int]:
    dataset = open_dataset(path)
    return [int(p[0, 0, 0]) for batch in dataset.batches(contract, config) for p in batch.pixels]


def test_folder_per_class(tmp_path: Path) -> None:
    class_folder(tmp_path)
    write(tmp_path / "cat" / "deep" / "er" / "99.JPG", png(99))
    for ignored in (
        "README",
        "cat/notes.txt",
        "index.csv",
        ".hidden.png",
        ".git/x.png",
        "dog/.x.jpg",
        "__MACOSX/1.png",
    ):
        write(tmp_path / ignored, png(200))
    (tmp_path / "empty class").mkdir()
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog", "empty class")
    assert list(dataset.listing.names) == [
        "cat/00.png", "cat/02.png", "cat/04.png", "cat/deep/er/99.JPG", "dog/01.png", "dog/03.png", "dog/05.png",
    ]  # fmt: skip
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert dataset.labels.dtype == np.int64
    assert values(tmp_path) == [0, 2, 4, 99, 1, 3, 5]
    sample = dataset[4]
    assert (sample.name, sample.label, int(sample.read(CONTRACT)[0, 0, 0])) == ("dog/01.png", 1, 1)


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "b.png", png(2))
    write(tmp_path / "a", png(1))  # no suffix: taken for an image, as the decoder decides
    dataset = open_dataset(tmp_path)
    assert (dataset.labels, dataset.classes, len(dataset)) == (None, None, 2)
    batch = next(dataset.batches(CONTRACT))
    assert batch.labels is None
    assert batch.names == ("a", "b.png")


def test_link_loops_end(tmp_path: Path) -> None:
    class_folder(tmp_path)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dog" / "self").symlink_to(tmp_path / "dog", target_is_directory=True)
    assert sorted(values(tmp_path)) == [0, 1, 2, 3, 4, 5]


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    class_folder(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "cat", target_is_directory=True)
    assert values(tmp_path / "data") == [0, 2, 4]


def test_splits_are_chosen_not_mistaken_for_classes(tmp_path: Path) -> None:
    class_folder(tmp_path / "train")
    class_folder(tmp_path / "val", 2)
    with pytest.raises(UsageError, match="splits") as caught:
        open_dataset(tmp_path)
    assert caught.value.fix == "choose one of: train, val"
    chosen = open_dataset(tmp_path, split="val")
    assert (len(chosen), chosen.classes, chosen.name) == (2, ("cat", "dog"), f"{tmp_path.name}/val")
    with pytest.raises(UsageError):
        open_dataset(tmp_path, split="test")


def test_images_beside_class_folders_are_ambiguous(tmp_path: Path) -> None:
    class_folder(tmp_path)
    write(tmp_path / "stray.png", png(1))
    with pytest.raises(InputError, match=r"stray\.png"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifest(tmp_path: Path, kind: str) -> None:
    class_folder(tmp_path)
    rows = [("dog/03.png", "dog"), ("cat/02.png", "cat"), ("dog/01.png", "dog")]
    csv_text = "\ufeffpath,label,comment\r\n" + "".join(f'"{p}",{name},"a, b"\r\n' for p, name in rows)
    lines = "\n".join(json.dumps({"path": p, "label": name, "comment": [1]}) for p, name in rows) + "\n\n"
    path = write(tmp_path / f"set.{kind}", csv_text if kind == "csv" else lines)
    dataset = open_dataset(path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0, 1]
    assert values(path) == [3, 2, 1], "the manifest's order"
    write(tmp_path / "classes.txt", "bird\ndog\ncat\n")
    with_classes = open_dataset(path)
    assert with_classes.classes == ("bird", "dog", "cat")
    assert with_classes.labels is not None
    assert with_classes.labels.tolist() == [1, 2, 1]


def test_manifest_numbers_and_no_labels(tmp_path: Path) -> None:
    class_folder(tmp_path)
    numbers = open_dataset(write(tmp_path / "n.csv", "label,path\n7,cat/00.png\n0,dog/01.png\n"))
    assert numbers.labels is not None
    assert (numbers.labels.tolist(), numbers.classes) == ([7, 0], None)
    assert open_dataset(write(tmp_path / "p.csv", "path\ncat/00.png\n")).labels is None
    assert open_dataset(write(tmp_path / "p.jsonl", '{"path": "cat/00.png"}')).labels is None


def test_tar_shards(tmp_path: Path) -> None:
    tar(tmp_path / "b-1.tar", [("./k2.PNG", png(2)), ("./k2.cls", b"1\n"), ("readme.txt", b"hello")])
    tar(
        tmp_path / "b-0.tar",
        [("d/k0.json", b'{"label": 5, "w": 3}'), ("d/k0.png", png(0)), ("d/k1.x.png", b""), ("d/k1.png", png(1)),
         ("d/k1.cls", b"3"), ("d/.x.png", png(9))],
    )  # fmt: skip
    dataset = open_dataset(tmp_path)
    assert list(dataset.listing.names) == ["b-0.tar/d/k0.png", "b-0.tar/d/k1.png", "b-1.tar/k2.PNG"]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [5, 3, 1]
    assert values(tmp_path) == [0, 1, 2]
    assert values(tmp_path / "b-1.tar") == [2]


def test_tar_class_names(tmp_path: Path) -> None:
    members = [("a.png", png(0)), ("a.cls", b"dog"), ("b.png", png(1)), ("b.cls", b"cat")]
    dataset = open_dataset(tar(tmp_path / "x.tar", members))
    assert dataset.labels is not None
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog"), [1, 0])


def idx_pair(root: Path, split: str, pixels: np.ndarray, labels: list[int], *, plain: bool = False) -> Path:
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.array(labels, np.uint8))):
        data = idx.packed(array)
        write(root / f"{split}-{name}-ubyte{'' if plain else '.gz'}", gzip.decompress(data) if plain else data)
    return root / f"{split}-images-idx3-ubyte{'' if plain else '.gz'}"


@pytest.mark.parametrize("plain", [False, True])
def test_idx(tmp_path: Path, plain: bool) -> None:
    pixels = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    path = idx_pair(tmp_path, "train", pixels, [2, 0, 1], plain=plain)
    dataset = open_dataset(tmp_path)
    assert dataset.name == f"{tmp_path.name}/train"
    batch = next(dataset.batches(CONTRACT))
    np.testing.assert_array_equal(batch.pixels, pixels[..., None].repeat(3, 3))
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0, 1]
    assert batch.names == ("train/00000", "train/00001", "train/00002")
    assert next(open_dataset(path).batches(GREY)).pixels.shape == (3, 4, 4, 1)
    bigger = InputContract(height=9, width=7, resize="stretch")
    assert next(dataset.batches(bigger)).pixels.shape == (3, 9, 7, 3)
    idx_pair(tmp_path, "t10k", pixels[:1], [0], plain=plain)
    with pytest.raises(UsageError, match="2 splits") as caught:
        open_dataset(tmp_path)
    assert "t10k, train" in caught.value.fix
    assert len(open_dataset(tmp_path, split="t10k")) == 1
    write(tmp_path / "classes.txt", "a\nb\nc\n")
    assert open_dataset(tmp_path, split="train").classes == ("a", "b", "c")


def test_idx_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "x-images-idx3-ubyte.gz", idx.packed(np.zeros((2, 4, 4), np.uint8)))
    assert open_dataset(tmp_path).labels is None


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_order_does_not_depend_on_threads(tmp_path: Path, workers: int) -> None:
    for index in range(23):
        write(tmp_path / f"{index:02}.png", png(index, (200, 200) if index % 3 == 0 else (2, 2)))
    config = LoadConfig(batch_size=5, workers=workers)
    assert values(tmp_path, config) == list(range(23))
    sizes = [len(batch.pixels) for batch in open_dataset(tmp_path).batches(CONTRACT, config)]
    assert sizes == [5, 5, 5, 5, 3]


def test_batches_own_their_pixels(tmp_path: Path) -> None:
    class_folder(tmp_path)
    first, second = open_dataset(tmp_path).batches(CONTRACT, LoadConfig(batch_size=3))
    assert not np.shares_memory(first.pixels, second.pixels)
    assert first.pixels[:, 0, 0, 0].tolist() == [0, 2, 4]


def test_limit_is_a_seeded_sample(tmp_path: Path) -> None:
    for index in range(40):
        write(tmp_path / f"{index:02}.png", png(index))
    drawn = values(tmp_path, LoadConfig(limit=10, seed=1))
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 10
    assert drawn == values(tmp_path, LoadConfig(limit=10, seed=1, workers=0))
    assert drawn != values(tmp_path, LoadConfig(limit=10, seed=2))
    assert drawn == [1, 3, 12, 13, 21, 24, 27, 29, 36, 38], "the same on every machine and version"
    assert len(values(tmp_path, LoadConfig(limit=999))) == 40


def test_memory_is_bounded_and_threads_end(tmp_path: Path) -> None:
    """The reader is never more than two images a thread ahead, and leaving the loop stops it."""
    for index in range(60):
        write(tmp_path / f"{index:02}.png", png(index))
    dataset = open_dataset(tmp_path)
    lock, read = threading.Lock(), []

    def counting(index: int, contract: InputContract) -> np.ndarray:
        with lock:
            read.append(index)
        return np.zeros((4, 4, 3), np.uint8)

    listing = sources.Listing(names=dataset.listing.names, labels=None, classes=None, digest="", read=counting)
    watched = datasets.Dataset(tmp_path, "watched", listing)
    for _ in watched.batches(CONTRACT, LoadConfig(batch_size=10, workers=3)):
        break  # what a Ctrl-C does too: the iterator is dropped
    assert len(read) <= 10 + 2 * 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy-images")]
    with watched.batches(CONTRACT, LoadConfig(batch_size=1, workers=2)) as batches:
        next(batches)
        assert batches.counts.used == 1
    assert list(batches) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy-images")]


def test_an_error_of_the_reader_stops_the_threads(tmp_path: Path) -> None:
    class_folder(tmp_path)
    wrong = InputContract(channels=2, mean=(0.5,) * 2, std=(0.5,) * 2)
    with pytest.raises(InputError) as caught:
        list(open_dataset(tmp_path).batches(wrong, LoadConfig(max_bad=100)))
    assert caught.value.code == "VD3107", "the job is wrong, not one image: max_bad does not help"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vitdeploy-images")]


@pytest.mark.parametrize("change", ["content", "name", "new"])
def test_digest_follows_the_data(tmp_path: Path, change: str) -> None:
    class_folder(tmp_path)
    before = open_dataset(tmp_path).digest
    assert before == open_dataset(tmp_path).digest
    if change == "content":
        write(tmp_path / "cat" / "00.png", png(0, (50, 50)))
    elif change == "name":
        (tmp_path / "cat" / "00.png").rename(tmp_path / "cat" / "zz.png")
    else:
        write(tmp_path / "cat" / "new.png", png(0))
    assert open_dataset(tmp_path).digest != before


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"limit": 0}, {"max_bad": -1}, {"workers": -1}, {"workers": 65}], ids=str)
def test_config_refuses(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        LoadConfig(**bad)


def folder_map(root: Path, labels: tuple[str, ...], outputs: int) -> list[int]:
    return open_dataset(root).class_map(labels, outputs).tolist()


def test_class_map(tmp_path: Path) -> None:
    class_folder(tmp_path)
    assert folder_map(tmp_path, ("dog", "bird", "cat"), 3) == [2, 0]
    assert folder_map(tmp_path, ("Dog", "bird", "CAT"), 3) == [2, 0]
    assert folder_map(tmp_path, (), 3) == [0, 1], "the model has no names: by number"
    assert folder_map(tmp_path, ("cat", "CAT", "dog"), 3) == [0, 2], "the exact name wins"
    with pytest.raises(InputError, match="'dog'") as caught:
        folder_map(tmp_path, ("cat", "bird"), 2)
    assert caught.value.code == "VD3106"
    with pytest.raises(InputError, match="2 times"):
        folder_map(tmp_path, ("cat", "Dog", "DOG"), 3)
    with pytest.raises(InputError, match="2 classes, the model 1"):
        folder_map(tmp_path, (), 1)


def test_class_map_of_underscores_and_wordnet(tmp_path: Path) -> None:
    write(tmp_path / "a" / "ice_cream" / "1.png", png(1))
    assert folder_map(tmp_path / "a", ("Cup", "Ice cream"), 2) == [1]
    for name in ("n01440764", "n01443537"):
        write(tmp_path / "b" / name / "1.png", png(1))
    assert folder_map(tmp_path / "b", ("tench", "goldfish"), 2) == [0, 1]
    with pytest.raises(InputError):
        folder_map(tmp_path / "b", ("tench", "goldfish", "shark"), 3)


def test_class_map_by_number(tmp_path: Path) -> None:
    class_folder(tmp_path)
    dataset = open_dataset(write(tmp_path / "n.csv", "path,label\ncat/00.png,7\n"))
    assert dataset.class_map(("x",) * 8, 8).tolist() == list(range(8))
    with pytest.raises(InputError, match="8 classes"):
        dataset.class_map((), 7)
    with pytest.raises(InputError, match="no labels"):
        open_dataset(write(tmp_path / "u.csv", "path\ncat/00.png\n")).class_map((), 7)
