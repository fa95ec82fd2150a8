"""Every kind of bad checkpoint: one typed line with code, exit status and the way out; and no code of a file ever runs."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from tests.checkpoints.test_checkpoint import STATE, cache, huggingface, sharded
from vitdeploy.checkpoints import opcodes
from vitdeploy.checkpoints.checkpoint import read
from vitdeploy.errors import InputError, TrustError, UsageError, VitdeployError


def check(path: Path, kind: type[VitdeployError], code: str, says: str, **options: str) -> VitdeployError:
    with pytest.raises(kind) as caught:
        read(path, **options)
    error, line = caught.value, str(caught.value)
    assert error.code == code, line
    assert error.exit_code == int(code[2])
    assert line.isprintable()
    assert str(path) in line
    assert "vitdeploy-" not in line.replace("pip install", "")  # no name of a temporary file
    assert re.search(says, line), line
    return error


class Touch:
    """A payload: unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def saved(value: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def archive(raw: bytes, **entries: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in {"data.pkl": raw, "version": b"3\n", **entries}.items():
            file.writestr(f"archive/{name}", content)
    return stream.getvalue()


def calling(name: str) -> bytes:
    """A pickle that calls ``module name`` with nothing."""
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n)R."


def stacked(module: str, name: str) -> bytes:
    """The same with the opcodes of protocol 4, names by way of the memo."""
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() + b"\x94" for text in (module, name))
    return b"\x80\x04" + texts + b"00h\x00h\x01\x93)R."


PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda marker: saved({"model": STATE, "extra": Touch(marker)}),
    "before torch 1.6": lambda marker: saved({"extra": Touch(marker)}, _use_new_zipfile_serialization=False),
    **{f"raw, protocol {n}": (lambda marker, n=n: pickle.dumps(Touch(marker), n)) for n in range(6)},
    "zip, protocol 4": lambda marker: archive(pickle.dumps(Touch(marker), 4)),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz", "bin"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_does_not_run(name: str, suffix: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / f"a.{suffix}"
    path.write_bytes(PAYLOADS[name](marker))
    if suffix == "safetensors" and "protocol 0" not in name and "protocol 1" not in name:
        check(path, InputError, "VD3005", r"is a (zip archive|Python pickle).*, expected a checkpoint")
    else:
        check(path, TrustError, "VD7002", r"contains code \(posix.system\); get the safetensors file")
    assert not marker.exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["zip", "before torch 1.6"])
def test_behind_the_scan_stands_weights_only(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    path.write_bytes(PAYLOADS[name](marker))
    monkeypatch.setattr(opcodes, "_judge", lambda *_: None)  # a scan that was walked around
    check(path, InputError, "VD3006", r"holds what torch does not load safely \(.*posix.*\); where it was made")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("posix system", "os system", "nt system", "__builtin__ eval", "builtins getattr", "subprocess Popen"),
        *(
            "runpy run_path",
            "torch.hub load",
            "torch load",
            "torch.utils.collect_env run",
            "numpy.testing._private.utils runstring",
        ),
        *(
            "pip main",
            "webbrowser open",
            "importlib import_module",
            "operator attrgetter",
            "ctypes CDLL",
            "my_package.evil Thing",
        ),
    ],
)
def test_code(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    shown = {"__builtin__ eval": "builtins eval"}.get(name, name).replace(" ", ".")
    path.write_bytes(archive(calling(name)))
    check(path, TrustError, "VD7002", rf"contains code \({re.escape(shown)}\)")
    path.write_bytes(archive(stacked(*name.split(" "))))
    check(path, TrustError, "VD7002", rf"contains code \({re.escape(shown)}\)")


@pytest.mark.parametrize("raw", [b"\x80\x04\x93.", b"\x80\x02\x82\x01.", b"\x80\x04\x8c\x02os\x94]\x93."])
def test_names_that_are_hidden_are_code(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(archive(raw))
    check(path, TrustError, "VD7002", r"contains code \(a name that is put together while loading\)")


OBJECTS = [
    *(
        "argparse Namespace",
        "omegaconf.dictconfig DictConfig",
        "yacs.config CfgNode",
        "transformers.training_args TrainingArguments",
    ),
    *("pathlib PosixPath", "collections defaultdict", "numpy._core.multiarray _reconstruct", "mmengine.config.config ConfigDict"),
]


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_trainers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(archive(calling(name)))
    says = rf"holds Python objects \({re.escape(name.replace(' ', '.'))}\) .*; where it was made, save the weights alone: "
    check(path, InputError, "VD3018", says + re.escape('torch.save(model.state_dict(), "weights.pth")'))


@pytest.mark.slow
def test_arguments_of_a_training_script(tmp_path: Path) -> None:
    path = tmp_path / "model best.pth.tar"
    args = argparse.Namespace(lr=0.1, model="vit", state_dict="no")  # its own words are no keys of the checkpoint
    torch.save({"args": args, "net": {"module": STATE}, "optimizer": {"state": {"a": torch.ones(3)}}}, path)
    error = check(path, InputError, "VD3018", r"holds Python objects \(argparse.Namespace\)")
    before = path.read_bytes()
    command = shlex.split(error.fix.removeprefix("where it was made, run: "))
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert path.read_bytes() == before
    assert read(tmp_path / "model best-weights.pth").state.keys() == STATE.keys()


def test_whole_module(tmp_path: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(2, 2), nn.GELU())}, tmp_path / "a.pth")
    says = r"is a pickled module \(torch.nn.modules.*\), not a state dict; where it was made, run: torch.save\(model.state_dict"
    check(tmp_path / "a.pth", InputError, "VD3016", says)
    raw = b"\x80\x02cmy.models\nNet\n0ctorch.nn.modules.linear\nLinear\n."
    (tmp_path / "a.pth").write_bytes(archive(raw))
    check(tmp_path / "a.pth", InputError, "VD3016", r"is a pickled module \(my.models.Net\)")
    (tmp_path / "a.pth").write_bytes(archive(raw[:-1] + b"0cos\nsystem\n."))
    check(tmp_path / "a.pth", TrustError, "VD7002", r"contains code \(os.system\)")


def test_trust_is_for_one_file_and_is_recorded(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    module = nn.Sequential(nn.Linear(2, 3))
    torch.save({"model": module, "args": argparse.Namespace(lr=0.1), "extra": Touch(marker)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    error = check(path, TrustError, "VD7003", f"has the SHA-256 {digest}, trusted is {'0' * 64}", trust="0" * 64)
    assert error.fix
    assert not marker.exists()
    contents = read(path, trust=digest.upper())
    assert marker.exists()  # that is what trust means
    assert torch.equal(contents.state["0.weight"], module[0].weight)
    assert contents.notes[0] == f"trusted by its SHA-256 {digest}, so its code was allowed to run"


def test_trust_that_is_no_digest(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"VD2003.*'yes', not 64 hexadecimal digits; run: sha256sum FILE"):
        read(tmp_path / "a.pth", trust="yes")


@pytest.mark.slow
def test_trusted_code_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(archive(calling("no_such_package.models Net")))
    with pytest.raises(VitdeployError) as caught:
        read(path, trust=hashlib.sha256(path.read_bytes()).hexdigest())
    assert (caught.value.code, caught.value.file) == ("VD4004", str(path))
    assert "No module named 'no_such_package'" in str(caught.value)


def scripted() -> bytes:
    return archive(b"\x80\x02].", **{"constants.pkl": b"\x80\x02).", "code/__torch__.py": b""})


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else STATE


ZIP = saved(STATE)
OLD = saved(STATE, _use_new_zipfile_serialization=False)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
COMPRESSED = io.BytesIO()
with zipfile.ZipFile(COMPRESSED, "w", zipfile.ZIP_DEFLATED) as _file:
    _file.writestr("archive/data.pkl", b"\x80\x02}." + bytes(1 << 22))
OTHER = io.BytesIO()
with zipfile.ZipFile(OTHER, "w") as _file:
    _file.writestr("word/document.xml", b"")

FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "VD3002", "is empty; download or write it again"),
    "git-lfs": (LFS, "VD3003", "is a git-lfs pointer, not the file itself; run: git lfs pull"),
    "html": (b"<!doctype html><html></html>", "VD3004", "is an HTML page; download the file itself"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(90), "VD3005", "is a 7z file, expected a checkpoint"),
    "gzip": (b"\x1f\x8b" + bytes(90), "VD3005", "is a gzip file, expected a checkpoint"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "VD3005", "is an HDF5 file, as Keras writes its weights, expected a checkpoint"),
    "text": (b"epoch 1\n", "VD3005", "is a text file, expected a checkpoint"),
    "noise": (bytes(range(255, 0, -1)), "VD3005", "is of an unknown kind, expected a checkpoint"),
    "zip cut off": (
        ZIP[: len(ZIP) // 2],
        "VD3006",
        r"is [\d.]+ KiB of a zip archive without its end: looks cut off; download it",
    ),
    "zip, only its first bytes": (ZIP[:10], "VD3006", "looks cut off"),
    "old, cut in the pickle": (OLD[:200], "VD3006", "is a damaged or cut-off pickle; download it again"),
    "old, cut in the numbers": (OLD[:-40], "VD3006", "can't be read as a checkpoint: .*; download it again"),
    "TorchScript": (scripted(), "VD3017", r"is a TorchScript archive, which is a program and is not accepted; save the weights"),
    "another zip": (OTHER.getvalue(), "VD3005", "is a zip archive that torch.save did not write; it holds word/document.xml"),
    "compressed zip": (COMPRESSED.getvalue(), "VD3013", "unpacks to 4.0 MiB from .* KiB, .*; write it with torch.save"),
    "plain pickle": (pickle.dumps({"a": 1}, 2), "VD3005", "is a plain Python pickle, which torch.save did not write; write it"),
    "protocol 4": (saved(STATE, pickle_protocol=4), "VD3006", "holds what torch does not load safely .Unsupported operand 149.;"),
    "no tensors": (saved({"epoch": 3}), "VD3021", r"holds no weights; save them with torch.save"),
    "one tensor": (saved(torch.ones(3)), "VD3021", "holds no weights"),
    "two networks": (saved({"g": STATE, "d": STATE}), "VD3021", r"holds 2 dictionaries of tensors \('d', 'g'\)"),
    "NaN": (saved({"a": torch.tensor([1.0, float("nan")])}), "VD3008", "tensor 'a' has 1 values of 2 that are NaN"),
    "claims too much": (saved({"a": torch.zeros(1).expand(10**12)}), "VD3006", "tensor 'a' claims 4,000,000,000,000 bytes"),
    "one name twice": (saved({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}), "VD3009", "has two tensors that are both 'a.b'"),
    "one key twice": (saved({1: torch.ones(1), "1": torch.ones(1)}), "VD3009", "has two tensors that are both '1'"),
    "surrogates": (saved({"\ud800": torch.ones(1)}), "VD3009", "has a tensor whose name is no text"),
    "deep": (saved(nested(40)), "VD3013", "nests its entries deeper than 32"),
    "safetensors cut off": (save(STATE)[:-9], "VD3006", "is damaged"),
    "safetensors without tensors": (save({}), "VD3021", "holds no weights"),
}


IN_THE_CHILD = (
    *("no tensors", "old, cut in the numbers", "one key twice", "one name twice", "one tensor", "protocol 4", "surrogates"),
    *("claims too much", "two networks", "NaN"),
)
"""Files that torch is started for: a second each."""
assert set(IN_THE_CHILD) <= set(FILES)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in IN_THE_CHILD)) for name in FILES])
def test_bad_file(name: str, tmp_path: Path) -> None:
    content, code, says = FILES[name]
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    check(path, InputError, code, says)


def test_a_memory_bomb_ends_the_child_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."))  # bytearray(2**40)
    with pytest.raises(VitdeployError) as caught:
        read(path)
    assert (caught.value.code, caught.value.file, caught.value.exit_code) == ("VD4006", str(path), 4)


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def entry(header: bytes, body: bytes = b"", name: str = "a.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)
    return stream.getvalue()


BOMB = io.BytesIO()
np.savez_compressed(BOMB, a=np.zeros(1 << 22, "f4"))
NPZ: dict[str, tuple[bytes, str, str]] = {
    "objects": (npz(a=np.array([{}], object)), "VD3005", "entry 'a' holds Python objects, not numbers; save the weights alone"),
    "text": (npz(a=np.array(["x"])), "VD3005", "entry 'a' holds <U1, not numbers"),
    "NaN": (npz(a=np.array([np.nan], "f4")), "VD3008", "tensor 'a' has 1 values of 1"),
    "bomb": (BOMB.getvalue(), "VD3013", "unpacks to 16,777,.* bytes from .*, at most 20 times"),
    "claims too much": (
        entry(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n", bytes(8)),
        "VD3006",
        "entry 'a' claims 4,000,000,000,000 bytes and holds 8",
    ),
    "negative": (entry(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }\n", bytes(8)), "VD3006", "entry 'a'"),
    "no header": (entry(b"__import__('os').system('x')\n"), "VD3006", "entry 'a' is damaged"),
    "cut off": (npz(a=np.ones(9))[:-30], "VD3006", "looks cut off"),
}


@pytest.mark.parametrize("name", NPZ)
def test_bad_npz(name: str, tmp_path: Path) -> None:
    content, code, says = NPZ[name]
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    check(path, InputError, code, says)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (b"", "VD3002", "is empty"),
        (LFS, "VD3003", "git lfs pull"),
        (b"<html>", "VD3004", "is an HTML page"),
        (b"[1]", "VD3019", "is a JSON list, expected an object"),
        (b"{", "VD3019", "is no valid JSON: .*; download it again"),
        (b'{"a": 1, "a": 2}', "VD3019", "the key 'a' stands twice"),
        (b'{"a": NaN}', "VD3019", "NaN is no JSON number"),
        (b'{"a": "\xff"}', "VD3019", "is no valid JSON"),
        (b"[" * 200_000, "VD3019", "is no valid JSON"),
        (b'{"a": "' + b"x" * 10_000_000 + b'"}', "VD3019", "has 10,000,009 bytes, at most 10,000,000 are read"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_bad_json(name: str, text: bytes, code: str, says: str, tmp_path: Path) -> None:
    huggingface(tmp_path)
    (tmp_path / name).write_bytes(text)
    assert str(check(tmp_path, InputError, code, says).file).endswith(name)


def test_folders_without_weights_or_with_too_many(tmp_path: Path) -> None:
    check(tmp_path, InputError, "VD3021", "holds no weights; name a folder with model.safetensors or pytorch_model.bin in it")
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    check(tmp_path, InputError, "VD3021", r"holds 2 files of weights \(a.pth, b.pth\); name one of them")
    check(tmp_path / "none.pth", InputError, "VD3001", "can't be read: No such file")


def index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = sharded(folder) / "model.safetensors.index.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))
    return folder


SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: {"metadata": {}}, "has no weight_map"),
        (lambda value: {"weight_map": {"a": 3}}, "has no weight_map"),
        (lambda value: {"weight_map": []}, "has no weight_map"),
        (lambda value: value["weight_map"].update(more=SHARD), r"lacks 1 tensors that the index names \(more\)"),
        (lambda value: value["weight_map"].pop("head.weight") and None, r"holds 1 that the index does not name \(head.weight\)"),
        (lambda value: value["weight_map"].update(a="x.safetensors"), r"1 of 3 files are missing \(x.safetensors\); download"),
        (lambda value: value["weight_map"].update({f"t{n}": f"{n}.x" for n in range(1001)}), "names 1,003 files, at most 1000"),
    ],
)
def test_index_and_shards_that_disagree(change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path) -> None:
    check(index(tmp_path, change), InputError, "VD3020", says)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "x/../../a", "..", "a\\b"])
def test_index_that_leads_out(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    index(folder, lambda value: value["weight_map"].update(a=name))
    check(folder, TrustError, "VD7001", "names the file .*, which lies outside")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_links_that_lead_out(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(save(STATE))
    repository = cache(tmp_path / "hub")
    link = repository / "snapshots" / ("c0ffee" * 6) / name
    link.unlink()
    link.symlink_to(outside)
    check(repository, TrustError, "VD7001", "which lies outside")
    folder = huggingface(tmp_path / "folder")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    check(folder, TrustError, "VD7001", f"names the file '{name}', which lies outside")
    (folder / name).unlink()
    (folder / name).symlink_to("gone")
    check(folder, InputError, "VD3001", "is a link to a file that is not there; download")


def test_cache_that_is_not_whole(tmp_path: Path) -> None:
    repository = cache(tmp_path)
    main = repository / "refs" / "main"
    main.write_text("beef")
    check(repository, InputError, "VD3021", "has no snapshot beef, which refs/main names; download the repository again")
    main.write_text("../../..")
    check(repository, InputError, "VD3021", "refs/main holds '../../..', which is no revision")
    main.unlink()
    (repository / "snapshots" / "other").mkdir()
    check(repository, InputError, "VD3021", "has 2 snapshots and no refs/main; name one of the folders in snapshots/")


def mutated(data: st.DataObject, original: bytes, reach: int) -> bytes:
    """Some bytes changed, and perhaps the end cut off."""
    raw = bytearray(original)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, min(reach, len(raw)) - 1), st.integers(0, 255)), max_size=6)):
        raw[place] = byte
    return bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])


SMALL = {"a": torch.ones(2, 3), "b": torch.arange(3)}
ORIGINALS = {
    "safetensors": save(SMALL),
    "zip": saved(SMALL),
    "before torch 1.6": saved(SMALL, _use_new_zipfile_serialization=False),
    "npz": npz(a=np.ones((2, 3), "f4"), b=np.arange(3)),
    "pickle": archive(pickle.dumps(OBJECTS, 4)),
    "text pickle": pickle.dumps(argparse.Namespace(a=[1, "x"]), 0),
}


@pytest.mark.parametrize("name", ORIGINALS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_no_bytes_escape_untyped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.setattr("vitdeploy.isolate.run", lambda *_, **__: stop())
    path = tmp_path / "a.bin"
    path.write_bytes(mutated(data, ORIGINALS[name], 4096))
    try:
        read(path)
    except VitdeployError as exc:
        assert str(exc).isprintable()


def stop() -> None:
    """In place of the child, which has a test of its own: half a second each is too much for this many examples."""
    raise InputError("VD3006", "is not looked at here")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x80\x02c\xff\n\xff\n.")
@example(b"I" + b"9" * 5000 + b"\n.")
@example(b"L" + b"9" * 5000 + b"L\n.")
@example(b"\x8b\xff\xff\xff\x7f")
@example(b"\x96\xff\xff\xff\xff\xff\xff\xff\xff")
def test_scan_of_any_bytes(raw: bytes) -> None:
    """Whatever the bytes are, the scan ends in names without line breaks or in VD3006; nothing else escapes."""
    try:
        imports = opcodes.list_imports(io.BytesIO(raw), 1)
    except InputError as exc:
        assert exc.code == "VD3006"
    else:
        assert raw or not imports
        assert all("\n" not in str(name) for name in imports)


def test_child_of_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    whole = saved(SMALL)
    start = whole.index(b"\x80\x02")
    for place in (start + 40, start + 90, start + 150):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(VitdeployError) as caught:
            read(path)
        assert caught.value.exit_code in (3, 7), str(caught.value)
