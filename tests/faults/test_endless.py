"""Pipes, devices and numbers without end: whatever is named, a command ends at once, with one line."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdeploy.cli.commands import main
from vitdeploy.contract import InputContract
from vitdeploy.data import images
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import BenchConfig, CompileConfig, QuantizeConfig, ValidateConfig
from vitdeploy.verbs.predictor import PredictConfig


@pytest.fixture(autouse=True)
def deadline():
    """A command that waits for a pipe would wait for ever."""
    signal.alarm(60)
    yield
    signal.alarm(0)


SUFFIXES = (".onnx", ".toml", ".json", ".safetensors", ".pt", ".npz", ".png", ".csv", ".tar", ".txt")


@pytest.fixture
def pipe(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for suffix in SUFFIXES:
        (tmp_path / f"pipe{suffix}").symlink_to("pipe")
    return "pipe"


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "/dev/tty", "pipe", *(pytest.param(f"pipe{suffix}", marks=pytest.mark.slow) for suffix in SUFFIXES)],
)
def test_nothing_waits_for_a_pipe_or_reads_a_device(name, pipe, tmp_path, tiny_artifact, capsys) -> None:
    vit = str(tiny_artifact.folder)
    for arguments in (
        ["inspect", name],
        ["validate", name, "--limit", "1"],
        ["validate", vit, "--data", name],
        ["predict", vit, name],
        ["export", name, "-o", "out"],
        ["export", "vit_tiny_patch16_224", "--weights", name, "-o", "out"],
        ["export", "vit_tiny_patch16_224", "--contract", name, "-o", "out"],
        ["export", "vit_tiny_patch16_224", "--labels", name, "-o", "out"],
        ["build", name, "-o", "out"],
        ["gate", name],
        ["verify", name],
    ):
        status = main(arguments)
        err = capsys.readouterr().err
        assert status in (2, 3), (arguments, err)
        assert err.strip().splitlines()[-1].startswith("error[VD"), (arguments, err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["artifact.json", "model.onnx", "golden.npz", "weights.safetensors"])
def test_a_pipe_in_an_artifact_is_not_waited_for(name, tmp_path, tiny_artifact, capsys) -> None:
    import shutil

    folder = shutil.copytree(tiny_artifact.folder, tmp_path / "vit")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for verb in ("inspect", "validate", "bench"):
        assert main([verb, str(folder)]) == 3
        assert "error[VD3" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ValidateConfig, BenchConfig, PredictConfig, QuantizeConfig, CompileConfig])
def test_more_threads_than_machines_have_are_refused(kind) -> None:
    """ONNX Runtime and OpenMP end the process at tens of thousands."""
    more = {"backend": "onnxruntime"} if kind is CompileConfig else {"calibration": "random"} if kind is QuantizeConfig else {}
    kind(threads=4096, **more)
    with pytest.raises(UsageError, match="threads is 100000; use 4096 or fewer"):
        kind(threads=100_000, **more)


def write_jpeg(scans: int) -> bytes:
    """A progressive JPEG of 1,000 x 1,000 pixels whose last scan is written again and again, as empty as it can be."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((1000, 1000), np.uint8)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused_before_it_is_decoded() -> None:
    contract = InputContract(height=8, width=8)
    assert images.load(write_jpeg(20), contract).shape == (8, 8, 3)
    with pytest.raises(InputError, match=r"scans over 1,000,000 pixels, more than any encoder writes") as caught:
        images.load(write_jpeg(3000), contract)
    assert caught.value.code == "VD3103"


def test_a_recipe_larger_than_any_is_not_read(tmp_path, capsys) -> None:
    with Path(tmp_path / "big.toml").open("wb") as stream:
        stream.truncate(1 << 40)
    assert main(["build", str(tmp_path / "big.toml"), "-o", str(tmp_path / "out")]) == 3
    assert "has more than 64 MiB" in capsys.readouterr().err
