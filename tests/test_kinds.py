"""What a file or folder really is: told by its content, and named for what it is when it is no model here."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

import pytest

from vitdeploy import kinds
from vitdeploy.artifact import Artifact
from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.errors import InputError
from vitdeploy.verbs.inspector import inspect


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs"),
        (b"\n <!DOCTYPE html><html></html>", "html"),
        (b"\xef\xbb\xbf<html>", "html"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x80\x02ctorch", "pickle"),
        (b"7z\xbc\xaf'\x1crest", "7z"),
        (b"\x1f\x8b\x08rest", "gzip"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}              ", "safetensors"),
        ((640).to_bytes(8, "little") + b'{"a":', "safetensors"),  # 0x280: begins like a pickle of protocol 2
        (b"\x08\x0a\x12\x07pytorch", "onnx"),
        (b"hello\n", "text"),
        (b"a" * 512 + b"\0", "text"),  # as far as it is looked at
        (b"a" * 511 + b"\0", "unknown"),
        (b"\xff\xfe\x00\x01", "unknown"),
        (b'<?xml version="1.0"?>\n<net name="main_graph" version="11">', "ir"),
        (b'<net name="x" version="10">', "ir"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "html"),  # what a bucket answers
        (b"\x1c\x00\x00\x00TFL3\x14\x00", "tflite"),
        (b"ftrt\x00\x00", "plan"),
        (b"GGUF\x03\x00", "gguf"),
    ],
)
def test_sniffing(tmp_path, content, kind) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert kinds.sniff(path) == kind


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b"", "VD3002", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "VD3003", "git lfs pull"),
        (b"<html>", "VD3004", "HTML page"),
        (b"PK\x03\x04rest", "VD3005", "zip archive"),
    ],
)
def test_a_wrong_kind_is_named(tmp_path, content, code, words) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        kinds.expect(path, "onnx", what="an ONNX model")
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


@pytest.mark.parametrize("path", ["missing", "."])
def test_nothing_to_read(tmp_path, path) -> None:
    with pytest.raises(InputError) as caught:
        kinds.sniff(tmp_path / path)
    assert caught.value.code == "VD3001"


def archive(path: Path, *entries: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for entry in entries:
            file.writestr(entry, b"x" * 40)
    return path


FILES = {
    "openvino_model.xml": (b'<?xml version="1.0"?>\n<net name="g" version="11">', "an OpenVINO IR; give the ONNX file"),
    "a.tflite": (b"\x1c\0\0\0TFL3" + bytes(40), "a TensorFlow Lite file; give the ONNX file"),
    "a.plan": (b"ftrt" + bytes(40), "a TensorRT engine that was built elsewhere; give the ONNX file"),
    "a.mlmodel": (b"\x08\x07\x12\x07" + bytes(40), "a Core ML model; give the ONNX file"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file, as Keras writes its weights; give a checkpoint"),
    "a.gguf": (b"GGUF" + bytes(40), "a GGUF file; give the ONNX file"),
}
ARCHIVES = {
    "a.pt2": (("a/archive_format", "a/models/model.json"), "a program of torch.export; give the ONNX file"),
    "old.pt2": (("serialized_exported_program.json", "version"), "a program of torch.export; give the ONNX file"),
    "a.keras": (("metadata.json", "config.json", "model.weights.h5"), "a Keras model; give a checkpoint"),
}


@pytest.mark.parametrize("name", [*FILES, *ARCHIVES])
def test_a_model_of_another_program_is_named(name: str, tmp_path: Path) -> None:
    """As a checkpoint, as an ONNX file and to inspect: one sentence, with what to give instead."""
    path = tmp_path / name
    if name in FILES:
        content, says = FILES[name]
        path.write_bytes(content)
    else:
        entries, says = ARCHIVES[name]
        archive(path, *entries)
    what, fix = says.split("; ")
    for use in (read, inspect, Artifact.open):
        with pytest.raises(InputError) as caught:
            use(path)
        assert caught.value.code == "VD3005", use
        assert caught.value.message.startswith(f"is {what}")
        assert caught.value.fix.startswith(fix)


def test_a_scripted_module_given_as_onnx(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a TorchScript archive, expected an ONNX model; give the ONNX file"):
        kinds.expect(archive(tmp_path / "a.pt", "a/data.pkl", "a/constants.pkl"), "onnx", what="an ONNX model")


FOLDERS = {
    "shards": ((".metadata", "__0_0.distcp"), "a checkpoint in shards, as torch.distributed.checkpoint writes it"),
    "deepspeed": (("zero_to_fp32.py", "latest"), "a checkpoint of DeepSpeed"),
    "saved": (("saved_model.pb", "fingerprint.pb"), "a SavedModel of TensorFlow"),
    "a.mlpackage": (("Manifest.json", "Data"), "a Core ML package"),
    "optimum": (("openvino_model.xml", "openvino_model.bin", "config.json"), "an OpenVINO IR"),
    "orbax": (("_CHECKPOINT_METADATA", "manifest.ocdbt"), "a checkpoint of Orbax"),
    "adapter": (("adapter_config.json", "adapter_model.safetensors"), "an adapter (LoRA), not a model"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_another_program_is_named(name: str, tmp_path: Path) -> None:
    entries, says = FOLDERS[name]
    folder = tmp_path / name
    folder.mkdir()
    for entry in entries:
        (folder / entry).write_bytes(b"{}")
    for use in (read, Artifact.open):
        with pytest.raises(InputError) as caught:
            use(folder)
        assert (caught.value.code, caught.value.file) == ("VD3005", str(folder))
        assert caught.value.message.startswith(f"is {says}")
        assert caught.value.fix


def test_the_converter_of_shards_is_advised_with_names_that_a_shell_reads(tmp_path: Path) -> None:
    folder = tmp_path / "step 9"
    folder.mkdir()
    for entry in (".metadata", "__0_0.distcp"):
        (folder / entry).touch()
    with pytest.raises(InputError) as caught:
        kinds.refuse_folder(folder)
    command = shlex.split(caught.value.fix.removeprefix("run: "))
    assert command[-2:] == [str(folder), f"{folder}.pth"]


def test_other_folders_pass(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    kinds.refuse_folder(tmp_path)
