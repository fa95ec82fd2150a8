"""Wrong images and wrong indexes: the right class, code and exit status, the file named, a way out."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import Batches, LoadConfig, idx, images, open_dataset
from vitdeploy.errors import InputError, TrustError, VitdeployError
from vitdeploy.spec import InputContract

CONTRACT = InputContract(height=4, width=4, resize="stretch")


def encoded(kind: str = "PNG", size: tuple[int, int] = (40, 40)) -> bytes:
    stream = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def check(error: VitdeployError, code: str, file: Path | str, *words: str, kind: type = InputError) -> None:
    """The class, its code and exit status; the file, the words and a fix in the line that people read."""
    assert type(error) is kind
    assert (error.code, error.exit_code) == (code, 7 if kind is TrustError else 3)
    line = str(error)
    assert "\n" not in line
    for word in (str(file), *words):
        assert word in line
    assert kind is TrustError or error.fix, "no way out is named"


BAD_IMAGES = {
    "empty": (b"", "VD3102", "empty (0 bytes)"),
    "gif": (b"GIF89a" + bytes(50), "VD3102", "a GIF image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "VD3102", "a PostScript file"),
    "tiff": (b"II*\0" + bytes(50), "VD3102", "a TIFF image"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(50), "VD3102", "HEIC"),
    "text": (b"this is no picture\n", "VD3102", "is text"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "VD3102", "HTML"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "VD3102", "git lfs pull"),
    "noise": (bytes(range(7, 200)), "VD3102", "of an unknown kind"),
    "half a JPEG": (encoded("JPEG")[:700], "VD3102", "can't be decoded"),
    "JPEG without a picture": (encoded("JPEG")[:30], "VD3102", "can't be decoded"),
    "half a PNG": (encoded("PNG")[:900], "VD3102", "can't be decoded"),
    "half a WebP": (encoded("WEBP")[:300], "VD3102", "can't be decoded"),
    "half a BMP": (encoded("BMP")[:300], "VD3102", "can't be decoded"),
    "65000 x 65000": (png_header(65000, 65000), "VD3103", "65,000 x 65,000"),
    "60 megapixels": (png_header(10000, 6000), "VD3103", "more than 50 million"),
    "no size": (png_header(0, 5), "VD3102", "can't be decoded"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image(tmp_path: Path, name: str) -> None:
    data, code, word = BAD_IMAGES[name]
    path = write(tmp_path / "photo.jpg", data)
    with pytest.raises(VitdeployError) as caught:
        images.load(path, CONTRACT)
    check(caught.value, code, path, word)
    with pytest.raises(VitdeployError) as caught:
        images.load(data, CONTRACT, name="from memory")
    check(caught.value, code, "from memory", word)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_counted_then_refused(tmp_path: Path, name: str) -> None:
    data, code, word = BAD_IMAGES[name]
    write(tmp_path / "bad.jpg", data)
    write(tmp_path / "good.jpg", encoded("JPEG"))
    with pytest.raises(VitdeployError) as caught:
        list(open_dataset(tmp_path).batches(CONTRACT))
    check(caught.value, "VD3104", tmp_path, "bad.jpg", word, "--max-bad 1")
    assert isinstance(caught.value.__cause__, InputError)
    assert caught.value.__cause__.code == code
    batches = open_dataset(tmp_path).batches(CONTRACT, LoadConfig(max_bad=1))
    assert [batch.names for batch in batches] == [("good.jpg",)]
    assert (batches.counts.listed, batches.counts.used, batches.counts.bad) == (2, 1, 1)
    assert batches.counts.examples[0].startswith("bad.jpg: ")


def test_a_missing_image_and_a_folder_named_as_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(InputError, match="is not a file, or does not exist") as caught:
            images.load(path, CONTRACT)
        assert (caught.value.code, caught.value.file) == ("VD3001", str(path))


def test_a_dangling_link_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    write(tmp_path / "good.png", encoded())
    batches = open_dataset(tmp_path).batches(CONTRACT, LoadConfig(max_bad=1))
    assert sum(len(batch.pixels) for batch in batches) == 1
    assert batches.counts.bad == 1


def spoiled(root: Path, good: int, bad: int) -> Path:
    for index in range(good):
        write(root / f"good{index:02}.png", encoded(size=(4, 4)))
    for index in range(bad):
        write(root / f"bad{index:02}.png", b"x")
    return root


@pytest.mark.parametrize("workers", [0, 3])
def test_max_bad_counts(tmp_path: Path, workers: int) -> None:
    spoiled(tmp_path, good=5, bad=8)
    batches = open_dataset(tmp_path).batches(CONTRACT, LoadConfig(max_bad=8, workers=workers, batch_size=2))
    assert sum(len(batch.pixels) for batch in batches) == 5
    assert (batches.counts.listed, batches.counts.used, batches.counts.bad) == (13, 5, 8)
    assert [line.split(":")[0] for line in batches.counts.examples] == [f"bad{i:02}.png" for i in range(5)]
    with pytest.raises(InputError) as caught:
        list(open_dataset(tmp_path).batches(CONTRACT, LoadConfig(max_bad=7, workers=workers)))
    check(caught.value, "VD3104", tmp_path, "8 images can't be read, 7 allowed", "bad00.png", "--max-bad 8")


def test_nothing_usable_is_an_error_even_when_bad_images_are_allowed(tmp_path: Path) -> None:
    spoiled(tmp_path, good=0, bad=3)
    with pytest.raises(InputError) as caught:
        list(open_dataset(tmp_path).batches(CONTRACT, LoadConfig(max_bad=100)))
    check(caught.value, "VD3101", tmp_path, "none of 3 images", "bad00.png")


def test_wrong_size_where_nothing_may_be_resized_counts_as_bad(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded(size=(4, 4)))
    write(tmp_path / "b.png", encoded(size=(5, 4)))
    contract = InputContract(height=4, width=4, resize="none")
    batches = open_dataset(tmp_path).batches(contract, LoadConfig(max_bad=1))
    assert len(list(batches)) == 1
    assert "4 x 5 pixels" in batches.counts.examples[0]


WITHOUT_IMAGES = {
    "empty": [],
    "texts": ["README.md", "notes.txt"],
    "hidden": [".hidden.png"],
    "source": ["src/main.rs", "src/lib/util.go", "web/app.ts", "Makefile", "go.sum", "logo.svg", "Dockerfile"],
}


@pytest.mark.parametrize("content", WITHOUT_IMAGES.values(), ids=WITHOUT_IMAGES)
def test_folder_without_images(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        write(tmp_path / name, encoded())
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    check(caught.value, "VD3101", tmp_path, "holds no images")


def test_links_that_multiply_are_refused(tmp_path: Path) -> None:
    """2 ^ 25 ways lead to the last folder."""
    for level in range(25):
        for name in "ab":
            (tmp_path / f"f{level}").mkdir(exist_ok=True)
            (tmp_path / f"f{level}" / name).symlink_to(tmp_path / f"f{level + 1}", target_is_directory=True)
    write(tmp_path / "f25" / "a.png", encoded())
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    check(caught.value, "VD3105", tmp_path, "ways through links")


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path / "none")
    check(caught.value, "VD3001", tmp_path / "none")
    with pytest.raises(InputError) as caught:
        open_dataset(write(tmp_path / "one.png", encoded()))
    assert caught.value.code == "VD3005"
    with pytest.raises(InputError) as caught:
        open_dataset(write(tmp_path / "none.csv", ""))
    check(caught.value, "VD3002", "none.csv")


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    write(tmp_path / "a\x1b[2J\n::error::.png", b"x")
    with pytest.raises(InputError) as caught:
        list(open_dataset(tmp_path).batches(CONTRACT))
    line = str(caught.value)
    assert "\x1b" not in line
    assert "\n" not in line
    assert "\\x1b[2J\\n::error::.png" in line


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    write(path, encoded())
    dataset = open_dataset(tmp_path)
    assert len(list(dataset.batches(CONTRACT, LoadConfig(limit=1)))) == 1
    assert len(dataset.digest) == 64


MANIFESTS = {
    "missing file": ("a.csv", "path,label\na.png,1\nno.png,2\n", "VD3105", "line 3 names 'no.png'"),
    "named twice": ("a.csv", "path,label\na.png,1\na.png,2\n", "VD3105", "line 3 names 'a.png' again"),
    "column twice": ("a.csv", "path,label,label\na.png,1,2\n", "VD3105", "has a column twice"),
    "no header": ("a.csv", "a.png,1\n", "VD3105", "no header"),
    "too many columns": ("a.csv", "path,label\na.png,1,2\n", "VD3105", "line 2 has 3 columns"),
    "open quote": ("a.csv", 'path,label\n"a.png,1\n', "VD3105", "line 2"),
    "not UTF-8": ("a.csv", b"path,label\n\xff\xfe,1\n", "VD3105", "not UTF-8"),
    "huge field": ("a.csv", "path,label\n" + "x" * 200_000 + ",1\n", "VD3105", "line 2"),
    "half labelled": ("a.csv", "path,label\na.png,1\nb.png,\n", "VD3105", "1 of 2 images have no label"),
    "negative label": ("a.csv", "path,label\na.png,-1\n", "VD3106", "label -1 is impossible"),
    "bad JSON": ("a.jsonl", '{"path": "a.png"}\n\n{"path": \n', "VD3105", "line 3"),
    "no path": ("a.jsonl", '{"label": 1}\n', "VD3105", "line 1"),
    "label is a list": ("a.jsonl", '{"path": "a.png", "label": [1]}\n', "VD3105", "line 1"),
    "names and numbers": (
        "a.jsonl", '{"path": "a.png", "label": 1}\n{"path": "b.png", "label": "x"}\n', "VD3105", "mixes",
    ),
    "ten digits": ("a.jsonl", '{"path": "a.png", "label": 1234567890}\n', "VD3106", "label 1234567890 is impossible"),
    "minus ten digits": ("a.jsonl", '{"path": "a.png", "label": -1234567890}\n', "VD3106", "at most 9 digits"),
    "4,000 digits": ("a.jsonl", f'{{"path": "a.png", "label": {"9" * 4000}}}\n', "VD3106", "of more than 64 bits"),
    "5,000 digits": ("a.jsonl", f'{{"path": "a.png", "label": {"9" * 5000}}}\n', "VD3105", "line 1"),
    "JSON is no UTF-8": ("a.jsonl", b'{"path": "\xff.png"}\n', "VD3105", "line 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_bad_manifest(tmp_path: Path, name: str) -> None:
    file, text, code, word = MANIFESTS[name]
    for image in ("a.png", "b.png"):
        write(tmp_path / image, encoded())
    path = write(tmp_path / file, text)
    with pytest.raises(VitdeployError) as caught:
        open_dataset(path)
    check(caught.value, code, path, word)


def test_manifest_and_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    path = write(tmp_path / "a.csv", "path\nloop.png\n")
    with pytest.raises(TrustError) as caught:
        open_dataset(path)
    check(caught.value, "VD7001", tmp_path, "loop.png", kind=TrustError)


def test_classes_file_is_checked(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded())
    path = write(tmp_path / "a.csv", "path,label\na.png,0\n")
    for text in ("cat\ncat\n", "cat\n\ndog\n", b"\xff\xfe"):
        write(tmp_path / "classes.txt", text)
        with pytest.raises(InputError) as caught:
            open_dataset(path)
        check(caught.value, "VD3105", tmp_path / "classes.txt")


def test_manifest_of_an_unknown_class(tmp_path: Path) -> None:
    write(tmp_path / "a.png", encoded())
    write(tmp_path / "classes.txt", "cat\ndog\n")
    for label, word in (("bird", "bird"), ("2", "there are 2 classes")):
        path = write(tmp_path / "a.csv", f"path,label\na.png,{label}\n")
        with pytest.raises(InputError) as caught:
            open_dataset(path)
        check(caught.value, "VD3106", path, word)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link/secret.png", "", ".."])
def test_manifest_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / "secret.png", encoded())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path, target_is_directory=True)
    path = write(tmp_path / "data" / "a.jsonl", f'{{"path": "{name}"}}')
    with pytest.raises(VitdeployError) as caught:
        open_dataset(path)
    check(caught.value, "VD7001", tmp_path / "data", "outside", kind=TrustError)


def tar_bytes(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_with_a_link_or_device(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(TrustError) as caught:
        open_dataset(path)
    check(caught.value, "VD7001", path, "a.png", kind=TrustError)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "x/../../a.png"])
def test_tar_member_outside(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.tar", tar_bytes((name, encoded())))
    with pytest.raises(TrustError) as caught:
        open_dataset(path)
    check(caught.value, "VD7001", path, "outside", kind=TrustError)


def test_tar_cut_anywhere(tmp_path: Path) -> None:
    """Headers, data and padding: wherever a shard ends early, it is not taken for a shorter one."""
    whole = tar_bytes(("a.png", encoded()), ("a.cls", b"1"), ("b.png", encoded()), ("b.cls", b"0"))
    content = len(whole.rstrip(b"\0"))
    for cut in (1, 300, 512, 600, 5000, 5632, 6144, 6656, content - 700, content - 20, content):
        path = write(tmp_path / "x.tar", whole[:cut])
        with pytest.raises(InputError) as caught:
            open_dataset(path)
        check(caught.value, "VD3105", path)


def test_tar_with_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    first, second = tar_bytes(("a.png", b"x" * 512))[:1024], tar_bytes(("b.png", b"x"))
    path = write(tmp_path / "x.tar", first + b"garbage!" + second[8:])
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    check(caught.value, "VD3105", path, "end is not marked")


BAD_TARS = {
    "compressed": (gzip.compress(tar_bytes(("a.png", b""))), "uncompressed"),
    "no tar": (b"hello" * 300, "is not a whole"),
    "two images": (tar_bytes(("a.png", b""), ("a.jpg", b"")), "two images"),
    "two labels": (tar_bytes(("a.png", b""), ("a.cls", b"1"), ("a.json", b'{"label": 2}')), "two labels"),
    "bad json": (tar_bytes(("a.png", b""), ("a.json", b"{")), "a.json"),
    "half labelled": (tar_bytes(("a.png", b""), ("b.png", b""), ("b.cls", b"1")), "1 of 2 images have no label"),
    "5,000 digits": (tar_bytes(("a.png", b""), ("a.cls", b"1" * 5000)), "its label 'a.cls' is a number of more than 9"),
    "ten digits": (tar_bytes(("a.png", b""), ("a.cls", b"1234567890")), "its label 'a.cls' is a number of more than 9"),
    "ten digits, json": (tar_bytes(("a.png", b""), ("a.json", b'{"label": 1234567890}')), "its label 'a.json' is a number"),
    "huge label": (tar_bytes(("a.png", b""), ("a.cls", b"1" * (2 << 20))), "larger than 1 MiB"),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_bad_tar(tmp_path: Path, name: str) -> None:
    data, word = BAD_TARS[name]
    path = write(tmp_path / "x.tar", data)
    with pytest.raises(VitdeployError) as caught:
        open_dataset(path)
    check(caught.value, "VD3105", path, word)


def test_bad_image_in_a_tar_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", tar_bytes(("d/a.png", b"no picture"), ("d/b.png", encoded())))
    with pytest.raises(InputError) as caught:
        list(open_dataset(path).batches(CONTRACT))
    check(caught.value, "VD3104", path, "x.tar/d/a.png", "is text")


def header(*sizes: int) -> bytes:
    return bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)


BAD_IDX = {
    "cut off": (gzip.compress(header(3, 4, 4) + bytes(47)), "announces 48 bytes, it holds 47"),
    "too long": (gzip.compress(header(3, 4, 4) + bytes(49)), "it holds more"),
    "plain, cut off": (header(3, 4, 4) + bytes(47), "announces 48 bytes, it holds 47"),
    "plain, too long": (header(3, 4, 4) + bytes(49), "it holds 49"),
    "header cut off": (header(3, 4, 4)[:9], "within its header"),
    "wrong magic": (gzip.compress(b"\0\0\x0d\x03" + header(3, 4, 4)[4:] + bytes(48)), "begins with 00000d03"),
    "labels given as images": (gzip.compress(header(3) + bytes(99)), "begins with 00000801"),
    "gzip cut off": (idx.pack(np.arange(48, dtype=np.uint8).reshape(3, 4, 4))[:-12], "damaged or cut off"),
    "gzip bomb": (gzip.compress(header(3, 4, 4) + bytes(50_000_000)), "it holds more"),
    "larger than memory": (gzip.compress(header(2**32 - 1, 2**16, 2**16)), "the limit is 2 GiB"),
    "images of no size": (gzip.compress(header(3, 0, 4)), "4 x 0 pixels"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx(tmp_path: Path, name: str) -> None:
    data, word = BAD_IDX[name]
    path = write(tmp_path / "train-images-idx3-ubyte.gz", data)
    for given in (tmp_path, path):
        with pytest.raises(VitdeployError) as caught:
            open_dataset(given)
        check(caught.value, "VD3105", path, word)


def test_idx_checksum(tmp_path: Path) -> None:
    data = bytearray(idx.pack(np.zeros((3, 4, 4), np.uint8)))
    data[-6] ^= 1  # the stored checksum
    path = write(tmp_path / "x-images-idx3-ubyte.gz", bytes(data))
    with pytest.raises(InputError) as caught:
        open_dataset(path)
    check(caught.value, "VD3105", path)


def test_idx_labels(tmp_path: Path) -> None:
    write(tmp_path / "x-images-idx3-ubyte.gz", idx.pack(np.zeros((3, 4, 4), np.uint8)))
    labels = write(tmp_path / "x-labels-idx1-ubyte.gz", idx.pack(np.zeros(4, np.uint8)))
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    check(caught.value, "VD3105", labels, "4 labels for 3 images")
    write(labels, idx.pack(np.array([0, 1, 2], np.uint8)))
    write(tmp_path / "classes.txt", "a\nb\n")
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    check(caught.value, "VD3106", labels, "label 2 is impossible: there are 2 classes")


def test_batches_can_be_dropped_unread(tmp_path: Path) -> None:
    spoiled(tmp_path, good=0, bad=1)
    batches = open_dataset(tmp_path).batches(CONTRACT)
    assert isinstance(batches, Batches)
    batches.close()
    assert list(batches) == [], "closed before the first image: nothing read, nothing to complain of"
