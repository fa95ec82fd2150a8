"""A data set is the same images in the same order, whatever holds them and however many threads read them."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy import data
from vitdeploy.data import LoadConfig, classes, idx, open_dataset, sources
from vitdeploy.data.images import Picture
from vitdeploy.data.wordnet import number_synsets
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


def test_class_folders_that_are_the_same_folder_are_both_read(tmp_path: Path) -> None:
    class_folder(tmp_path)
    (tmp_path / "kitten").symlink_to(tmp_path / "cat", target_is_directory=True)
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog", "kitten")
    assert dataset.labels is not None
    assert np.bincount(dataset.labels).tolist() == [3, 3, 3]
    assert values(tmp_path) == [0, 2, 4, 1, 3, 5, 0, 2, 4]


def test_other_suffixes_are_no_images(tmp_path: Path) -> None:
    class_folder(tmp_path)
    for name in ("main.rs", "cat/script.js", "cat/thumbs.db-wal", "Dockerfile", "dog/01.png~", "dog/02.png.part", "x.svg"):
        write(tmp_path / name, "no image")
    assert values(tmp_path) == [0, 2, 4, 1, 3, 5]
    write(tmp_path / "cat" / "moving.gif", b"GIF89a")
    write(tmp_path / "cat" / "by_hash", png(7))
    names = list(open_dataset(tmp_path).listing.names)
    assert [name for name in names if name.startswith("cat")] == [
        "cat/00.png", "cat/02.png", "cat/04.png", "cat/by_hash", "cat/moving.gif",
    ]  # fmt: skip


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


def test_a_manifest_beside_splits_does_not_choose_one(tmp_path: Path) -> None:
    """Neither a manifest, nor a shard, nor a folder of shards has splits: a split that is asked for is refused, not forgotten."""
    class_folder(tmp_path / "val")
    manifest = write(tmp_path / "val" / "a.csv", "path,label\ncat/00.png,0\n")
    shard = tar(tmp_path / "shards" / "a.tar", [("a.png", png(0))])
    flat = write(tmp_path / "flat" / "x.png", png(1)).parent
    for path in (manifest, shard, shard.parent, flat):
        assert len(open_dataset(path)) == 1
        with pytest.raises(UsageError) as caught:
            open_dataset(path, split="val")
        assert (caught.value.code, caught.value.fix) == ("VD2010", "leave the split out")


@pytest.mark.parametrize("others", [[], [".hidden/x.png", ".cache.tar"]])
def test_shards_or_class_folders(tmp_path: Path, others: list[str]) -> None:
    """A tar beside class folders is an archive that somebody left; hidden folders are no classes."""
    tar(tmp_path / "x.tar", [("a.png", png(9))])
    for name in others:
        write(tmp_path / name, png(200))
    assert values(tmp_path) == [9]
    class_folder(tmp_path, 2)
    assert values(tmp_path) == [0, 1]


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


def test_the_largest_class_number(tmp_path: Path) -> None:
    assert [sources.is_short(number) for number in (10**9 - 1, 1 - 10**9, 10**9, -(10**9))] == [True, True, False, False]
    labels, _ = sources.number_labels([10**9 - 1, "999999999", "0"], None, tmp_path)
    assert labels is not None
    assert labels.tolist() == [10**9 - 1, 10**9 - 1, 0]
    with pytest.raises(InputError, match="at most 9 digits"):
        sources.number_labels([10**9], None, tmp_path)
    sources.check_numbers(np.array([1]), ("a", "b"), tmp_path)
    with pytest.raises(InputError, match="label 2 is impossible: there are 2 classes"):
        sources.check_numbers(np.array([1, 2]), ("a", "b"), tmp_path)


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
        data = idx.pack(array)
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
    write(tmp_path / "x-images-idx3-ubyte.gz", idx.pack(np.zeros((2, 4, 4), np.uint8)))
    assert open_dataset(tmp_path).labels is None


@pytest.mark.parametrize("split", ["small-images-v2", "my-images", "images", "idx3-train"])
def test_idx_whose_split_names_images(tmp_path: Path, split: str) -> None:
    path = idx_pair(tmp_path, split, np.zeros((2, 4, 4), np.uint8), [1, 0])
    for given in (tmp_path, path):
        dataset = open_dataset(given)
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [1, 0]
        assert list(dataset.listing.names) == [f"{split}/00000", f"{split}/00001"]
    assert open_dataset(tmp_path).name == f"{tmp_path.name}/{split}"


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


@pytest.mark.parametrize(("limit", "count"), [(None, 6), (4, 4)])
def test_a_huge_batch_costs_no_more_than_the_images(tmp_path: Path, limit: int | None, count: int) -> None:
    class_folder(tmp_path)
    (batch,) = open_dataset(tmp_path).batches(CONTRACT, LoadConfig(batch_size=10**15, limit=limit))
    assert len(batch.pixels) == len(batch.names) == count
    assert batch.pixels.base is None


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


def test_turned_photos_are_counted(tmp_path: Path) -> None:
    turn = Image.Exif()
    turn[0x0112] = 3
    for index in range(5):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.jpg", exif=turn if index < 2 else Image.Exif())
    batches = open_dataset(tmp_path).batches(CONTRACT)
    assert sum(len(batch.pixels) for batch in batches) == 5 and batches.counts.turned == 2


def test_memory_is_bounded_and_threads_end(tmp_path: Path) -> None:
    """The reader is never more than two images a thread ahead, and leaving the loop stops it."""
    for index in range(60):
        write(tmp_path / f"{index:02}.png", png(index))
    dataset = open_dataset(tmp_path)
    lock, read = threading.Lock(), []

    def counting(index: int, contract: InputContract) -> Picture:
        with lock:
            read.append(index)
        return Picture(np.zeros((4, 4, 3), np.uint8))

    listing = sources.Listing(names=dataset.listing.names, labels=None, classes=None, digest="", read=counting, identify=bytes)
    watched = data.Dataset(tmp_path, "watched", listing)
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


@pytest.mark.parametrize("kind", ["manifest", "tar", "idx", "idx without labels"])
def test_digest_follows_the_class_names(tmp_path: Path, kind: str) -> None:
    """classes.txt decides what a name's number is, and which of the model's classes a number is."""
    if kind == "manifest":
        write(tmp_path / "0.png", png(0))
        path = write(tmp_path / "a.csv", "path,label\n0.png,cat\n")
    elif kind == "tar":
        path = tar(tmp_path / "x.tar", [("a.png", png(0)), ("a.cls", b"cat")])
    else:
        path = idx_pair(tmp_path, "x", np.zeros((1, 4, 4), np.uint8), [0])
        if "without" in kind:
            (tmp_path / "x-labels-idx1-ubyte.gz").unlink()
    digests = [open_dataset(path).digest]
    for text in ("cat\ndog\n", "dog\ncat\n", "cat\ndog\nbird\n", "cat\ndog bird\n"):
        write(tmp_path / "classes.txt", text)
        digests.append(open_dataset(path).digest)
        assert digests[-1] == open_dataset(path).digest
    assert len(set(digests)) == len(digests)


def test_digest_follows_an_empty_class_folder(tmp_path: Path) -> None:
    class_folder(tmp_path)
    before = open_dataset(tmp_path)
    (tmp_path / "bird").mkdir()
    after = open_dataset(tmp_path)
    assert before.labels is not None
    assert after.labels is not None
    assert (before.labels[0], after.labels[0]) == (0, 1)
    assert before.digest != after.digest


def test_digest_follows_an_image_of_a_manifest(tmp_path: Path) -> None:
    image = write(tmp_path / "0.png", png(0))
    path = write(tmp_path / "a.csv", "path,label\n0.png,1\n")
    os.utime(image, ns=(10**18, 10**18))
    before = open_dataset(path).digest
    write(image, image.read_bytes()[::-1])
    os.utime(image, ns=(10**18, 10**18 + 10**9))
    assert open_dataset(path).digest != before


def test_digest_keeps_its_parts_apart() -> None:
    none, labels = np.array([], np.int64), np.array([1, 0])
    parts = [
        (["a", "b"], None, None), (["a\nb"], None, None), (['a"\n"b'], None, None), (["a"], None, ["b"]), (["a", "b"], None, []),
        (["a", "b"], none, None), (["a", "b"], labels, None), (["a", "b"], labels[::-1], None), (["\udce9"], None, None),
    ]  # fmt: skip
    assert len({sources.digest_rows(*part) for part in parts}) == len(parts)


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
    assert folder_map(tmp_path, (), 2) == [0, 1], "the model has no names, and as many classes: in order"
    with pytest.raises(InputError, match=r"2 classes \(cat, dog, ...\), the model 3 without names") as caught:
        folder_map(tmp_path, (), 3)
    assert caught.value.code == "VD3106" and "(--labels FILE), or name each folder by its class's number" in caught.value.fix
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
    with pytest.raises(InputError, match="without names"):
        folder_map(tmp_path / "b", (), 3)


def test_some_wordnet_ids_of_a_model_of_imagenet(tmp_path: Path) -> None:
    wanted = {"n15075141": 999, "n01440764": 0, "n02102040": 217, "n03000684": 491}  # of published lists of the classes
    for name in wanted:
        write(tmp_path / name / "1.png", png(1))
    dataset = open_dataset(tmp_path)
    assert dataset.classes == tuple(sorted(wanted))
    mapped = [wanted[name] for name in sorted(wanted)]
    assert dataset.class_map((), 1000).tolist() == mapped
    assert dataset.class_map(tuple(f"name {i}" for i in range(1000)), 1000).tolist() == mapped, "ids are told, names are not"
    own = sorted((f"n{i:08}" for i in range(996)), reverse=True)
    assert dataset.class_map((*own, *wanted), 1000).tolist() == [996 + list(wanted).index(name) for name in sorted(wanted)]
    with pytest.raises(InputError, match="4 classes"):
        dataset.class_map((), 1001)
    write(tmp_path / "n00000001" / "1.png", png(1))
    with pytest.raises(InputError, match="5 classes"):
        folder_map(tmp_path, (), 1000)


def test_the_classes_of_imagenet_are_those_that_timm_numbers() -> None:
    timm = find_spec("timm")  # its import needs torchvision, its list does not
    if timm is None or timm.origin is None:
        pytest.skip("timm is not installed: pip install 'vitdeploy[dev]'")
    listed = (Path(timm.origin).parent / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    assert list(number_synsets()) == listed == sorted(listed)
    assert list(number_synsets().values()) == list(range(1000))


def test_class_map_by_number(tmp_path: Path) -> None:
    class_folder(tmp_path)
    dataset = open_dataset(write(tmp_path / "n.csv", "path,label\ncat/00.png,7\n"))
    assert dataset.class_map(("x",) * 8, 8).tolist() == list(range(8))
    with pytest.raises(InputError, match="8 classes"):
        dataset.class_map((), 7)
    with pytest.raises(InputError, match="no labels"):
        open_dataset(write(tmp_path / "u.csv", "path\ncat/00.png\n")).class_map((), 7)


def test_class_map_of_numbered_folders(tmp_path: Path) -> None:
    """Folders stand in the order of their names: 0, 1, 10, 2. A model without names knows them by their numbers."""
    for number in range(11):
        write(tmp_path / str(number) / "0.png", png(number))
    dataset = open_dataset(tmp_path)
    assert dataset.labels is not None
    mapped = dataset.class_map((), 11)[dataset.labels]
    assert mapped.dtype == np.int64
    assert mapped.tolist() == values(tmp_path) == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
    assert dataset.class_map((), 1000)[dataset.labels].tolist() == values(tmp_path), "some of the model's classes"
    names = tuple(str(number) for number in range(10, -1, -1))
    assert dataset.class_map(names, 11)[dataset.labels].tolist() == [10 - value for value in values(tmp_path)], "by name"


def test_class_map_of_numbered_folders_refuses(tmp_path: Path) -> None:
    for name in ("03", "7"):
        write(tmp_path / name / "0.png", png(1))
    assert folder_map(tmp_path, (), 8) == [3, 7]
    with pytest.raises(InputError, match="'7' is beyond the model's 7 classes") as caught:
        folder_map(tmp_path, (), 7)
    assert (caught.value.code, caught.value.file) == ("VD3106", str(tmp_path))
    write(tmp_path / "3" / "0.png", png(1))
    with pytest.raises(InputError, match="the same number") as caught:
        folder_map(tmp_path, (), 8)
    assert caught.value.code == "VD3106"
    with pytest.raises(InputError, match="is beyond") as caught:
        classes.align(["1" * 5000], (), 10, tmp_path)
    assert caught.value.code == "VD3106"
    (tmp_path / "3" / "0.png").unlink()
    (tmp_path / "3").rename(tmp_path / "other")
    assert folder_map(tmp_path, (), 3) == [0, 1, 2], "not all are numbers: in the order of the names"


def _build_source(kind: str, folder: Path) -> tuple[Path, Path]:
    """A source of six images, and the file of it that holds the last."""
    if kind == "tar":
        shard = tar(folder / "a.tar", [(f"{index}.png", png(index)) for index in range(6)])
        return shard, shard
    if kind == "npy":
        np.save(folder / "a.npy", np.zeros((6, 4, 4, 3), np.uint8))
        return folder / "a.npy", folder / "a.npy"
    files = [write(folder / "images" / f"{index}.png", png(index)) for index in range(6)]
    if kind == "manifest":
        return write(folder / "a.csv", "path,label\n" + "".join(f"images/{file.name},0\n" for file in files)), files[-1]
    return folder / "images", files[-1]


@pytest.mark.parametrize("kind", ["folder", "manifest", "tar", "npy"])
@pytest.mark.parametrize("change", ["content", "time", "gone", "half"])
def test_images_that_change_while_they_are_read_end_the_run(tmp_path: Path, kind: str, change: str) -> None:
    """Whatever number of bad images is allowed: a changed image is of neither the old data nor the new."""
    source, file = _build_source(kind, tmp_path)
    dataset = open_dataset(source)
    batches = dataset.batches(CONTRACT, LoadConfig(batch_size=2, workers=0, max_bad=6))
    next(batches)
    status, content = file.stat(), file.read_bytes()
    if change == "gone":
        file.unlink()
    else:  # another file under the name: of as many bytes, half of them, or the same at another time
        written = {"content": content[:-1] + bytes([content[-1] ^ 1]), "time": content, "half": content[: len(content) // 2]}[
            change
        ]
        file.unlink()
        file.write_bytes(written)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with pytest.raises(InputError, match=f"{file.name}: changed while the images were read") as caught:
        list(batches)
    assert caught.value.code == "VD3111"
    with pytest.raises(InputError) as caught:
        dataset.listing.identify(5)
    assert caught.value.code == "VD3111"


def test_images_that_stay_are_read_again(tmp_path: Path) -> None:
    dataset = open_dataset(class_folder(tmp_path))
    first = tmp_path / "cat" / "00.png"
    os.utime(first, ns=(0, first.stat().st_mtime_ns))  # read, not changed
    assert len(list(dataset.batches(CONTRACT))) == len(list(dataset.batches(CONTRACT))) == 1
