"""Promises of keys and seals: only what this user has built on this machine is trusted, and only while nothing has changed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy import machine
from vitdeploy.backends.tensorrt.key import SECRET_BYTES, EngineKey, require_same, seal, secret_file, verify
from vitdeploy.errors import TrustError

PLAN = bytes(range(256)) * 3
FILE, FIX = Path("model.plan"), "run: vitdeploy compile"
KEY = EngineKey(
    backend="tensorrt",
    device="Orin",
    capability="8.7",
    driver="540.4.0 (CUDA 12.6)",
    cuda="12.6",
    tensorrt="10.3.0",
    options={"effort": 3, "architectures": []},
    onnx="ab" * 32,
    spec="12" * 32,
)
CHANGES = {
    "backend": "tensorrt-rtx",
    "device": "Thor",
    "capability": "11.0",
    "driver": "CUDA 13.0",
    "cuda": "13.0",
    "tensorrt": "10.7.0",
    "typing": "weak",
    "options": {"effort": 4},
    "onnx": "cd" * 32,
    "spec": "34" * 32,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def refused(plan=PLAN, key=KEY, signed=None) -> TrustError:
    with pytest.raises(TrustError) as error:
        verify(plan, key, signed or seal(PLAN, KEY), FILE, FIX)
    assert error.value.code == "VD7004"
    assert error.value.exit_code == 7
    return error.value


def test_what_was_sealed_here_is_trusted():
    verify(PLAN, KEY, seal(PLAN, KEY), FILE, FIX)
    verify(b"", KEY, seal(b"", KEY), FILE, FIX)


@pytest.mark.parametrize("at", [0, 100, len(PLAN) - 1])
def test_one_changed_bit(at):
    raw = bytearray(PLAN)
    raw[at] ^= 1
    error = refused(plan=bytes(raw))
    assert "changed after it was built here" in error.message
    assert error.fix == FIX


@pytest.mark.parametrize("plan", [b"", PLAN[:-1], PLAN + b"\0"])
def test_another_length(plan):
    refused(plan=plan)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_the_key_is_sealed(name):
    changed = msgspec.structs.replace(KEY, **{name: CHANGES[name]})
    assert changed.digest != KEY.digest
    refused(key=changed)


def test_all_fields_are_tried_above():
    assert set(CHANGES) == set(EngineKey.__struct_fields__)


@pytest.mark.parametrize("tag", ["", "0" * 64, "ä"])
def test_a_made_up_tag(tag):
    signed = seal(PLAN, KEY)
    refused(signed=msgspec.structs.replace(signed, tag=tag))
    refused(signed=msgspec.structs.replace(signed, tag=tag, machine=tag))


def test_a_seal_of_elsewhere(tmp_path, monkeypatch):
    signed = seal(PLAN, KEY)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    assert "not built by this user on this machine" in refused(signed=signed).message
    assert seal(PLAN, KEY) != signed


def test_the_key_survives_json():
    again = msgspec.json.decode(msgspec.json.encode(KEY), type=EngineKey)
    assert again.digest == KEY.digest
    verify(PLAN, again, seal(PLAN, KEY), FILE, FIX)
    tuples = msgspec.structs.replace(KEY, options={"effort": 3, "architectures": ()})
    assert tuples.digest == KEY.digest, "a tuple is a list once it was in a file"


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_two_engines_have_one_tag(one, other):
    assert (seal(one, KEY).tag == seal(other, KEY).tag) == (one == other)


# What changed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("device", "device Orin, here is Thor"),
        ("capability", "compute capability 8.7, here is 11.0"),
        ("driver", "driver 540.4.0 (CUDA 12.6), here is CUDA 13.0"),
        ("cuda", "CUDA 12.6, here is 13.0"),
        ("tensorrt", "TensorRT 10.3.0, here is 10.7.0"),
        ("onnx", "another ONNX file (abababababab) than the one beside it (cdcdcdcdcdcd)"),
        ("spec", "another input or other classes than the record beside it says"),
    ],
)
def test_what_changed_is_named_with_both_values(name, said):
    now = msgspec.structs.replace(KEY, **{name: CHANGES[name]})
    with pytest.raises(TrustError) as error:
        require_same(KEY, now, FILE, FIX)
    assert said in error.value.message
    assert (error.value.code, error.value.fix) == ("VD7004", FIX)


def test_another_machine_with_the_same_home_has_another_key(monkeypatch):
    """Homes are shared over a network, and the file of the key lies in images: the machine's own number is mixed in."""
    signed = seal(PLAN, KEY)
    monkeypatch.setattr(machine, "read_identity", lambda: "another")
    assert "was not built by this user on this machine" in refused(signed=signed).message


def test_an_engine_without_a_device_fits_any():
    portable = msgspec.structs.replace(KEY, device="", capability="", driver="", cuda="")
    require_same(portable, KEY, FILE, FIX)
    with pytest.raises(TrustError, match="here is none"):
        require_same(KEY, portable, FILE, FIX)


@pytest.mark.parametrize(("now", "fine"), [("10.13.3", True), ("11.4.0", True), ("10.3.0", True), ("10.2.9", False)])
def test_a_compatible_engine_fits_later_versions(now, fine):
    key = msgspec.structs.replace(KEY, options={"compatible": True})
    newer = msgspec.structs.replace(key, tensorrt=now)
    if fine:
        require_same(key, newer, FILE, FIX)
    else:
        with pytest.raises(TrustError, match=f"here is {now}"):
            require_same(key, newer, FILE, FIX)


def test_settings_are_the_engines_own():
    require_same(KEY, msgspec.structs.replace(KEY, options={}, typing="weak"), FILE, FIX)


# The secret


def test_the_secret_is_the_users_alone(tmp_path):
    seal(PLAN, KEY)
    file = secret_file()
    assert file == tmp_path / "data" / "vitdeploy" / "device.key"
    assert len(file.read_bytes()) == SECRET_BYTES
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["device.key"], "nothing temporary is left"


def test_the_place_without_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert secret_file() == tmp_path / ".local" / "share" / "vitdeploy" / "device.key"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_that_others_can_read_or_write_is_none(mode):
    seal(PLAN, KEY)
    secret_file().chmod(mode)
    with pytest.raises(TrustError, match=f"{mode:04o}") as error:
        seal(PLAN, KEY)
    assert error.value.code == "VD7004"
    assert str(secret_file()) in error.value.fix


@pytest.mark.parametrize("raw", [b"", b"short", b"x" * 33])
def test_a_damaged_secret(raw):
    seal(PLAN, KEY)
    secret_file().write_bytes(raw)
    with pytest.raises(TrustError, match="damaged"):
        seal(PLAN, KEY)


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_is_not_followed(dangling, tmp_path):
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"k" * SECRET_BYTES)
        target.chmod(0o600)
    secret_file().parent.mkdir(parents=True)
    secret_file().symlink_to(target)
    with pytest.raises(TrustError, match="can't be read"):
        seal(PLAN, KEY)
    assert target.exists() != dangling


def test_a_folder_in_its_place():
    secret_file().mkdir(parents=True, mode=0o700)
    with pytest.raises(TrustError):
        seal(PLAN, KEY)


def test_processes_that_start_together_share_one_secret():
    code = (
        "from vitdeploy.backends.tensorrt.key import EngineKey, seal\n"
        "print(seal(b'plan', EngineKey(backend='tensorrt', tensorrt='10.3', onnx='')).tag)"
    )
    command = [sys.executable, "-c", code]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(6)]
    said = {child.communicate(timeout=60)[0] for child in children}
    assert len(said) == 1
    assert len(said.pop().strip()) == 64
