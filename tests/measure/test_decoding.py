"""Decoding by itself: every image in turn, as the contract says, and none of it hidden."""

import numpy as np
import pytest
from PIL import Image

from vitdeploy.data import open_dataset
from vitdeploy.errors import InputError
from vitdeploy.measure import decoding
from vitdeploy.measure.decoding import measure_decoding
from vitdeploy.recipe import BenchConfig
from vitdeploy.spec import InputContract

CONTRACT = InputContract(height=8, width=8)


def test_every_image_is_read_and_counted(tmp_path, monkeypatch):
    for name in "abc":
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    data, seen, read = open_dataset(tmp_path), [], decoding._read
    monkeypatch.setattr(decoding, "_read", lambda *given: seen.append(given[1]) or read(*given))
    row = measure_decoding(data, CONTRACT, BenchConfig(rounds=3, seconds=0.02))
    assert seen[:6] == [0, 1, 2] * 2  # once to warm up, then in turn
    assert row.metrics["runs"].value == len(seen) - 3
    assert 0 < row.metrics["p50"].value <= row.metrics["p90"].value <= row.metrics["p99"].value
    assert row.metrics["throughput"].value == pytest.approx(1000 / row.metrics["mean"].value)
    assert (row.subject, row.settings["images"], "speedup" in row.metrics) == ("decode", 3, False)


def test_an_image_that_is_none_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(InputError):
        measure_decoding(open_dataset(tmp_path), CONTRACT, BenchConfig(rounds=1, seconds=0.01))
