"""The tar of a bundle: one way to write it, and nothing else is read."""

import io
import tarfile

import pytest

from vitdeploy.bundle import archive
from vitdeploy.errors import InputError

CONTENTS = {"manifest.json": b"{}", "models/0-int8/model.onnx": b"x" * 1300, "a": b"", "models/0-fp32/model.onnx": b"y" * 512}


@pytest.fixture
def place(tmp_path):
    for number, content in enumerate(CONTENTS.values()):
        (tmp_path / str(number)).write_bytes(content)
    return tmp_path


def write(place) -> bytes:
    stream = io.BytesIO()
    archive.write_archive(stream, {name: place / str(number) for number, name in enumerate(CONTENTS)})
    return stream.getvalue()


def read(content: bytes, place) -> dict[str, bytes]:
    path = place / "bundle.vdb"
    path.write_bytes(content)
    with path.open("rb") as stream:
        entries = archive.list_entries(stream, path)
        return {name: b"".join(archive.read_parts(stream, entry)) for name, entry in entries.items()}


def test_files_come_back_sorted_and_the_same_bytes_are_written_again(place):
    content = write(place)
    assert read(content, place) == CONTENTS
    assert list(read(content, place)) == sorted(CONTENTS)
    (place / "0").touch()
    assert write(place) == content


def test_tar_reads_it_and_it_tells_nothing_of_its_maker(place):
    with tarfile.open(fileobj=io.BytesIO(write(place))) as tar:
        for member in tar.getmembers():
            assert member.isreg()
            assert (member.mode, member.uid, member.gid, member.mtime, member.uname, member.gname) == (0o644, 0, 0, 0, "", "")
            assert tar.extractfile(member).read() == CONTENTS[member.name]


def build(*members: tuple[str, bytes], form: int = tarfile.USTAR_FORMAT, **facts: object) -> bytes:
    """A tar by Python's library."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            for fact, value in facts.items():
                setattr(info, fact, value)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return stream.getvalue()


FILE = ("a", b"content")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + bytes(600),
        build(FILE, form=tarfile.GNU_FORMAT),
        build(("a" * 120, b""), form=tarfile.PAX_FORMAT),
        build(FILE, mode=0o755),
        build(FILE, mtime=1),
        build(FILE, uid=1000),
        build(FILE, uname="me"),
        build(FILE, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        build(FILE, type=tarfile.LNKTYPE, linkname="b"),
        build(FILE, type=tarfile.DIRTYPE),
        build(FILE, type=tarfile.FIFOTYPE),
        build(FILE, type=tarfile.GNUTYPE_SPARSE),
        build(FILE, FILE),
        build(("b", b""), ("a", b"")),
        build(("../a", b"")),
        build(("/a", b"")),
        build((".a", b"")),
        build(("a//b", b"")),
        build(("a b", b"")),
        build(("\u00e4", b"")),
    ],
)
def test_other_archives_are_refused(content, place):
    with pytest.raises(InputError) as caught:
        read(content, place)
    assert caught.value.code == "VD3030"


def test_no_header_can_be_changed_in_any_byte(place):
    content = write(place)
    read(content, place)
    for position in range(512):
        changed = bytearray(content)
        changed[position] ^= 1
        with pytest.raises(InputError):
            read(bytes(changed), place)


def test_cut_off_longer_or_with_something_between_it_is_refused(place):
    content = write(place)
    for other in (content[:-1], content[:-512], content[:700], content + b"\0", content + bytes(512)):
        with pytest.raises(InputError):
            read(other, place)
    start = content.index(b"x" * 1300) + 1300
    with pytest.raises(InputError, match=r"behind models/0-int8/model\.onnx"):
        read(content[:start] + b"!" + content[start + 1 :], place)


def test_more_files_than_a_bundle_has_are_refused(place, monkeypatch):
    monkeypatch.setattr(archive, "MOST", 3)
    with pytest.raises(InputError, match="more than 3 files"):
        read(write(place), place)
