"""Samples show a box that prepares images otherwise."""

import msgspec
import numpy as np
import pytest

from vitdeploy.bundle.samples import Expected, prepare_samples, read_expected, write_samples
from vitdeploy.contract import InputContract

CONTRACTS = {
    "usual": InputContract(height=32, width=32),
    "wide": InputContract(height=16, width=24, resize="stretch"),
    "grey": InputContract(height=28, width=28, channels=1, mean=(0.5,), std=(0.5,)),
    "as it is": InputContract(height=16, width=24, resize="none"),
    "bands": InputContract(height=16, width=16, channels=5, mean=(0.5,) * 5, std=(0.5,) * 5),
}


def draw(contract, folder):
    folder.mkdir()
    names = write_samples(contract, folder)
    return names, prepare_samples([folder / name for name in names], contract)


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_contract_has_samples_that_differ(kind, tmp_path):
    contract = CONTRACTS[kind]
    names, pixels = draw(contract, tmp_path / "a")
    assert pixels.shape == (len(names), contract.height, contract.width, contract.channels)
    assert len(names) >= 4
    assert len({each.tobytes() for each in pixels}) == len(names)
    again, _ = draw(contract, tmp_path / "b")
    assert again == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    "other",
    [
        {"interpolation": "bilinear"},
        {"exif": "apply"},
        {"alpha": "drop"},
        {"antialias": False},
        {"resize_to": 40},
        {"resize": "stretch"},
    ],
)
def test_whoever_prepares_otherwise_is_seen(other, tmp_path):
    contract = CONTRACTS["usual"]
    names, pixels = draw(contract, tmp_path / "a")
    changed = prepare_samples([tmp_path / "a" / name for name in names], msgspec.structs.replace(contract, **other))
    assert np.abs(changed.astype(float) - pixels).max() > 10


def test_expected_outputs_come_back_and_damaged_ones_do_not(tmp_path):
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    expected = Expected(pixels, {"models/0-int8": np.ones((2, 5), np.float32)}, np.zeros((2, 5), np.float32))
    expected.write(tmp_path / "expected.npz")
    content = (tmp_path / "expected.npz").read_bytes()
    back = read_expected(content)
    assert list(back.outputs) == ["models/0-int8"]
    assert np.array_equal(back.outputs["models/0-int8"], expected.outputs["models/0-int8"])
    assert np.array_equal(back.original, expected.original)
    expected.write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == content
    np.savez(tmp_path / "objects.npz", pixels=np.array([object()], dtype=object))
    for damaged in (b"", content[:100], b"PK" + content[2:50], (tmp_path / "objects.npz").read_bytes()):
        with pytest.raises(ValueError, match=r"\S"):
            read_expected(damaged)
