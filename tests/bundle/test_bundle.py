"""A bundle holds what its manifest lists, as a folder and as a file: anything else is refused before it is used."""

import os
import tarfile

import pytest

from vitdeploy.bundle import archive, signature
from vitdeploy.bundle.bundle import Bundle, is_bundle, open_bundle
from vitdeploy.bundle.manifest import read_manifest
from vitdeploy.errors import InputError, TrustError, VitdeployError
from vitdeploy.files import sha256

MODEL = "models/0-fp32/model.onnx"


@pytest.fixture
def unpacked(shipment, tmp_path):
    with tarfile.open(shipment.bundle) as tar:
        tar.extractall(tmp_path / "tiny", filter="data")
    return tmp_path / "tiny"


@pytest.fixture
def key(shipment):
    return signature.read_key(shipment.public)


def pack_again(folder, path):
    """A folder as a file, whatever it holds."""
    with path.open("wb") as stream:
        contents = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
        archive.write_archive(stream, contents)
    return path


def check(path, key=None):
    with open_bundle(path) as bundle:
        bundle.check(key)


def test_both_forms_hold(shipment, unpacked, key):
    check(shipment.bundle, key)
    check(unpacked, key)
    assert is_bundle(shipment.bundle)
    assert is_bundle(unpacked)
    assert not is_bundle(unpacked / "models")


def change_byte(folder):
    path = folder / MODEL
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_file(folder):
    (folder / "models" / "0-fp32" / "more.bin").write_bytes(b"")


def remove_file(folder):
    (folder / MODEL).unlink()


def rename_file(folder):
    (folder / "samples" / "0-plain.png").rename(folder / "samples" / "0-other.png")


def shorten_file(folder):
    os.truncate(folder / MODEL, 100)


def swap_files(folder):
    names = [folder / "samples" / name for name in ("0-plain.png", "1-wide.png")]
    contents = [name.read_bytes() for name in names]
    names[0].write_bytes(contents[1])
    names[1].write_bytes(contents[0])


@pytest.mark.parametrize("change", [change_byte, add_file, remove_file, rename_file, shorten_file, swap_files])
def test_changed_files_are_refused_in_both_forms(change, unpacked, tmp_path):
    change(unpacked)
    for path in (unpacked, pack_again(unpacked, tmp_path / "again.vdb")):
        with pytest.raises(TrustError) as caught:
            check(path)
        assert caught.value.code == "VD7007"


@pytest.mark.parametrize(
    "put",
    [
        lambda folder: (folder / "link").symlink_to("/etc/passwd"),
        lambda folder: (folder / "models" / "link").symlink_to("0-fp32"),
        lambda folder: os.mkfifo(folder / "fifo"),
        lambda folder: (folder / ".hidden").write_text(""),
        lambda folder: (folder / "a b").write_text(""),
    ],
)
def test_a_folder_with_what_no_bundle_has(put, unpacked):
    put(unpacked)
    with pytest.raises(TrustError, match="which no bundle has"):
        check(unpacked)


def test_a_file_that_became_a_link_is_refused(unpacked, tmp_path):
    copy = tmp_path / "copy"
    (unpacked / MODEL).rename(copy)
    (unpacked / MODEL).symlink_to(copy)
    with pytest.raises(TrustError):
        check(unpacked)


def test_new_digests_do_not_help_without_the_key(unpacked, key):
    """Whoever changes a file can change the manifest; the signature tells."""
    change_byte(unpacked)
    place = unpacked / "manifest.json"
    manifest = place.read_bytes()
    before = read_manifest(manifest).files[MODEL].sha256
    place.write_bytes(manifest.replace(before.encode(), sha256(unpacked / MODEL).encode()))
    check(unpacked)
    with pytest.raises(TrustError, match=r"manifest\.json is not what was signed"):
        check(unpacked, key)
    (unpacked / signature.FILE).unlink()
    check(unpacked)
    with pytest.raises(TrustError, match="is not signed"):
        check(unpacked, key)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: b"",
        lambda content: content + b"\n",
        lambda content: content.replace(b'"release":4', b'"release":4.0'),
        lambda content: content.replace(b'"release":4', b'"release":0'),
        lambda content: content.replace(b'"release":4', b'"release":4,"more":1'),
        lambda content: content.replace(b'"schema_version":1', b'"schema_version":2'),
        lambda content: content.replace(b'"release":4', b'"release":4,"release":4'),
        lambda content: content.replace(b"models/0-fp32", b"models/9-fp32", 1) + b"",
        lambda content: b"[" * 100_000,
        lambda content: b"\xff",
    ],
)
def test_a_manifest_is_read_in_one_form_only(edit, unpacked):
    place = unpacked / "manifest.json"
    place.write_bytes(edit(place.read_bytes()))
    with pytest.raises(VitdeployError) as caught:
        check(unpacked)
    assert caught.value.code in ("VD3030", "VD7007")


def test_the_manifest_says_the_same_with_the_same_bytes(shipment):
    manifest = shipment.packed.manifest
    assert read_manifest(manifest.encode()) == manifest
    assert b" " not in manifest.encode()
    assert (manifest.name, manifest.release, manifest.version, manifest.licence) == ("tiny", 4, "2.1", "Apache-2.0")


def test_what_is_no_bundle(tmp_path):
    (tmp_path / "a.vdb").write_text("hello")
    (tmp_path / "folder.vdb").mkdir()
    os.mkfifo(tmp_path / "fifo.vdb")
    for name, says in {"a": "has a header", "folder": "is no bundle", "fifo": "a named pipe", "none": "can't be read"}.items():
        with pytest.raises(InputError, match=says):
            check(tmp_path / f"{name}.vdb")


def test_a_model_is_copied_out_and_every_byte_compared(shipment, unpacked, tmp_path):
    with open_bundle(shipment.bundle) as bundle:
        artifact = bundle.take_model(bundle.manifest.models[0], tmp_path / "out")
        assert artifact.id == bundle.manifest.models[0].id
        assert artifact.weights is None
        assert artifact.locate_original(tmp_path) is None
    change_byte(unpacked)
    with open_bundle(unpacked) as bundle, pytest.raises(TrustError, match=f"{MODEL} changed"):
        bundle.take_model(bundle.manifest.models[0], tmp_path / "other")


def test_a_file_is_compared_when_it_is_read(unpacked):
    (unpacked / "bom.cdx.json").write_bytes(b"x" * (unpacked / "bom.cdx.json").stat().st_size)
    with open_bundle(unpacked) as bundle:
        with pytest.raises(TrustError, match=r"bom\.cdx\.json changed"):
            bundle.read("bom.cdx.json", 1 << 20)
        with pytest.raises(InputError, match="are the most"):
            bundle.read("bom.cdx.json", 10)
        with pytest.raises(InputError, match=r"lacks nothing\.json"):
            bundle.read("nothing.json", 10)


def test_what_was_checked_is_what_is_read_though_the_name_is_replaced(shipment, tmp_path):
    path = tmp_path / "tiny.vdb"
    path.write_bytes(shipment.bundle.read_bytes())
    with open_bundle(path) as bundle:
        (tmp_path / "other").write_bytes(b"other")
        (tmp_path / "other").replace(path)
        bundle.check()
        assert isinstance(bundle, Bundle)
