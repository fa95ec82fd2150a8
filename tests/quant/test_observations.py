"""The file of calibration statistics: what was saved comes back, and nothing damaged or forged is believed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from tests.quant.networks import network, pictures, run, saved, stream
from vitdeploy.errors import InputError
from vitdeploy.quant.observations import Statistics


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


def test_saved_and_loaded_is_the_same(model, tmp_path):
    statistics = run(model, stream(pictures(70)), limit=70, minimum=32, contract='{"height": 3}', source="abc")
    statistics.notes.append("a remark with ünïcode")
    statistics.save(tmp_path / "one.zip")
    loaded = Statistics.load(tmp_path / "one.zip")
    loaded.save(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert loaded.notes[-1] == "a remark with ünïcode"
    assert (loaded.contract, loaded.source, loaded.digest) == ('{"height": 3}', "abc", statistics.digest)
    sketch, other = statistics.sketches["hidden"], loaded.sketches["hidden"]
    np.testing.assert_array_equal(sketch.channel_mean, other.channel_mean)
    np.testing.assert_array_equal(sketch.extremes, other.extremes)
    np.testing.assert_array_equal(sketch.rows, other.rows)


@pytest.fixture
def recorded(model, tmp_path) -> Path:
    run(model, stream(pictures(9))).save(tmp_path / "statistics")
    return tmp_path / "statistics"


def test_every_cut_and_every_flipped_byte_is_refused_or_harmless(recorded):
    """A cut is always refused. A flipped byte may only be accepted where it leaves the contents as they were."""
    raw, expected = recorded.read_bytes(), None
    expected = saved(Statistics.load(recorded), recorded.parent)
    generator = np.random.default_rng(0)
    for end in (*generator.integers(1, len(raw), 60), len(raw) - 1):
        recorded.write_bytes(raw[:end])
        with pytest.raises(InputError, match=r"VD3109|VD3005"):
            Statistics.load(recorded)
    for place in generator.integers(0, len(raw), 400):
        recorded.write_bytes(raw[:place] + bytes([raw[place] ^ (1 << int(generator.integers(8)))]) + raw[place + 1 :])
        try:
            statistics = Statistics.load(recorded)
        except InputError as exc:
            assert exc.code in ("VD3109", "VD3005")
        else:
            assert saved(statistics, recorded.parent) == expected


@pytest.mark.parametrize("raw", [b"", b"not an archive", b"PK\x03\x04", b"PK\x05\x06" + 18 * b"\0"])
def test_another_kind_of_file(tmp_path, raw):
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(InputError, match=r"VD3002|VD3005|VD3109"):
        Statistics.load(tmp_path / "file")
    with pytest.raises(InputError, match="VD3001"):
        Statistics.load(tmp_path / "absent")


def member(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def rewrite(path: Path, changes: dict[str, bytes | None], *, compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with members replaced (or dropped), checksums right: what a forger would write."""
    with zipfile.ZipFile(path) as archive:
        contents: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in {**contents, **changes}.items():
            if raw is not None:
                archive.writestr(name, raw)


def header(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return msgspec.json.decode(np.load(io.BytesIO(archive.read("header.npy"))).tobytes())


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


HUGE = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<u8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("keys.npy", None, "lacks its member"),
        ("keys.npy", HUGE, r"\[1099511627776\]"),
        ("keys.npy", pickled(), "object"),
        ("keys.npy", b"garbage", "magic"),
        ("keys.npy", member(np.arange(9)), "int64"),
        ("keys.npy", member(np.arange(9, dtype=np.uint64)[::-1]), "ascending"),
        ("keys.npy", member(np.array([0, 1, 2, 4, 3, 5, 6, 7, 8], np.uint64)), "ascending"),
        ("keys.npy", member(np.array([0, 1, 2, 3, 3, 5, 6, 7, 8], np.uint64)), "ascending"),
        ("keys.npy", member(np.arange(8, dtype=np.uint64)), "different numbers"),
        ("0.sums.npy", member(np.zeros((2, 5), np.int64)), "2, 5"),
        ("0.sums.npy", member(np.full((2, 6), 1 << 40, np.int64)), "sums"),
        ("0.rows.npy", member(np.full((16, 6), np.nan, np.float32)), "NaN"),
        ("0.rows.npy", member(np.zeros((16, 7), np.float32)), "hidden|sums|extremes"),
        ("0.extremes.npy", member(np.zeros((2, 6), np.float32)), "extremes"),
        ("header.npy", member(np.frombuffer(b"{}", np.uint8)), "schema"),
        ("header.npy", member(np.frombuffer(b"\xff", np.uint8)), ""),
        ("snapshot.npy", member(np.zeros((2, 3))), "early stopping"),
    ],
)
def test_forged_statistics(recorded, name, raw, reason):
    rewrite(recorded, {name: raw})
    with pytest.raises(InputError, match=f"VD3109.*{reason}") as caught:
        Statistics.load(recorded)
    assert caught.value.file == str(recorded)


@pytest.mark.parametrize("change", [{"schema": 1}, {"extra": 1}, {"settled": -1}, {"tensors": []}, {"model": 5}])
def test_forged_headers(recorded, change):
    forged = header(recorded) | change
    rewrite(recorded, {"header.npy": member(np.frombuffer(msgspec.json.encode(forged), np.uint8))})
    if change == {"tensors": []}:  # no tensors is no contradiction, and gives none
        assert Statistics.load(recorded).sketches == {}
        return
    with pytest.raises(InputError, match="VD3109"):
        Statistics.load(recorded)


@pytest.mark.parametrize(
    "change", [{"limit": 10**12}, {"limit": -1}, {"seen": 10**15}, {"seen": -1}, {"seen": 28}, {"values": None}]
)
def test_forged_tensors(recorded, change):
    forged = header(recorded)
    forged["tensors"][0] |= change
    rewrite(recorded, {"header.npy": member(np.frombuffer(msgspec.json.encode(forged), np.uint8))})
    with pytest.raises(InputError, match="VD3109"):
        Statistics.load(recorded)


def test_a_compressed_archive_is_not_unpacked(recorded):
    rewrite(recorded, {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"VD3109.*not stored"):
        Statistics.load(recorded)
