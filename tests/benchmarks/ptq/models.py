"""The classifiers that the quantization benchmark compares on, each an artifact of `vitdeploy export`, and their images.

* ``fashion``: the demo model of this repository and its own small draw of Fashion-MNIST;
* ``dinov2``: DINOv2 ViT-S/14 at 112 pixels (``dinov2_224`` at 224), ``clip``: CLIP ViT-B/16 at 224, each with a linear head
  fitted here on CIFAR-10;
* ``outlier``: the ViT-S with `OUTLIERS` channels of every LayerNorm made `FACTOR` times larger and the weights that read them
  as much smaller: the same function, and what trained ViTs with massive activations look like to a quantizer.

Real weights and CIFAR-10 are not part of this repository: VITDEPLOY_REAL_WEIGHTS and VITDEPLOY_CIFAR10 name their folders. All
of it is deterministic, and kept in the work folder; what is there is not made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

import vitdeploy as vd
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.table import load
from vitdeploy.data import images
from vitdeploy.data.dataset import Dataset, LoadConfig, open_dataset

ROOT = Path(__file__).resolve().parents[3]
CALIBRATION = 128
"""Images that every quantizer gets."""
OUTLIERS, FACTOR = 6, 30.0
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 penalties tried for a head; the best on a fifth of the training images is taken."""
SEED = 0
State = dict[str, torch.Tensor]


class MissingError(Exception):
    """Data or weights that this machine does not have; the message says which."""


@dataclass(frozen=True)
class Case:
    """One model of the benchmark, on disk.

    Attributes:
        name: For tables.
        artifact: FP32, with its PyTorch original.
        files: Folder of the calibration images, as files.
        calibration: The same images prepared, float32 [`CALIBRATION`, C, H, W] in a .npy file.
        test: The test images prepared, float32 [n, C, H, W] in a .npy file.
        labels: Theirs, int64 [n] in a .npy file.
    """

    name: str
    artifact: Path
    files: Path
    calibration: Path
    test: Path
    labels: Path


def make(name: str, work: Path, count: int, say: Callable[[str], None]) -> Case:
    """A case, made where it is absent.

    Args:
        name: One of `NAMES`.
        work: Folder to make it in and to find it again.
        count: Test images.
        say: Hears of each step.

    Raises:
        MissingError: The machine has not what the model is made of.
    """
    work.mkdir(parents=True, exist_ok=True)
    data = "dinov2" if name == "outlier" else name
    artifact = work / name
    if not (artifact / "artifact.json").is_file():
        say(f"{name}: make the classifier")
        _MAKERS[name](work, artifact, say)
    case = Case(
        name,
        artifact,
        work / f"{data}_images",
        work / f"{data}_calib.npy",
        work / f"{data}_test.npy",
        work / f"{data}_test_labels.npy",
    )
    _prepare(case, data, count, say)
    return case


def _data(name: str, part: str) -> Dataset:
    """The training (``train``) or test images of a case."""
    if name == "fashion":
        split = {"train": "calibration", "test": "evaluation"}[part]
        return open_dataset(ROOT / "calibration" / "fashion-mnist", split=split)
    return open_dataset(_folder("VITDEPLOY_CIFAR10") / part)


def _folder(variable: str) -> Path:
    path = os.environ.get(variable)
    if not path or not Path(path).is_dir():
        raise MissingError(f"{variable} names no folder (it is {path!r})")
    return Path(path)


def _prepare(case: Case, data: str, count: int, say: Callable[[str], None]) -> None:
    """Write the arrays and the folder of calibration images, drawn by the hash of each name."""
    contract = vd.Artifact.open(case.artifact, verify=False).spec.input
    have = case.test.is_file() and len(np.load(case.test, mmap_mode="r")) == count
    if have and case.calibration.is_file() and case.files.is_dir():
        return
    say(f"{data}: draw {CALIBRATION} calibration and {count} test images")
    train, test = _data(data, "train"), _data(data, "test")
    pixels, labels = _read(train, contract, CALIBRATION)
    np.save(case.calibration, images.to_tensor(pixels, contract))
    np.save(case.calibration.with_name(f"{data}_calib_labels.npy"), labels)
    fresh = case.files.with_name(case.files.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(case.files, ignore_errors=True)
    for index in train.chosen(LoadConfig(limit=CALIBRATION, seed=SEED)):
        sample = train[index]
        folder = fresh / f"{sample.label:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        if (train.path / sample.name).is_file():
            shutil.copyfile(train.path / sample.name, folder / Path(sample.name).name)
        else:
            Image.fromarray(sample.read(contract).squeeze()).save(folder / f"{index:05d}.png")
    fresh.rename(case.files)
    pixels, labels = _read(test, contract, count)
    np.save(case.test, images.to_tensor(pixels, contract))
    np.save(case.labels, labels)


def _read(data: Dataset, contract: vd.InputContract, count: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with data.batches(contract, LoadConfig(limit=count, seed=SEED, batch_size=64)) as batches:
        parts = [(batch.pixels, batch.labels) for batch in batches]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _fashion(work: Path, out: Path, say: Callable[[str], None]) -> None:
    recipes = ROOT / "recipes"
    model = vd.ModelConfig(source=str(recipes / "fashion_mnist_vit.toml"), weights=str(recipes / "fashion_mnist_vit.safetensors"))
    vd.export(model, vd.ExportConfig(), out)


def _dinov2(work: Path, out: Path, say: Callable[[str], None]) -> None:
    _fitted("dinov2", _folder("VITDEPLOY_REAL_WEIGHTS") / "dinov2_vits14", (112, 112), out, say)


def _dinov2_224(work: Path, out: Path, say: Callable[[str], None]) -> None:
    _fitted("dinov2_224", _folder("VITDEPLOY_REAL_WEIGHTS") / "dinov2_vits14", (224, 224), out, say)


def _clip(work: Path, out: Path, say: Callable[[str], None]) -> None:
    _fitted("clip", _folder("VITDEPLOY_REAL_WEIGHTS") / "clip_vitb16", None, out, say)


def _fitted(name: str, source: Path, size: tuple[int, int] | None, out: Path, say: Callable[[str], None]) -> None:
    """Export a backbone, fit a linear head on its pooled vectors, export both together."""
    backbone = out.with_name(f"{name}_backbone")
    config = vd.ExportConfig(image_size=size, outputs=("pooled",), prove_batches=(1, 2))
    artifact = vd.export(vd.ModelConfig(source=str(source)), config, backbone)
    kept = out.with_name(f"{name}_features.npz")
    data = _data(name, "train")
    if not kept.is_file():
        say(f"{name}: features of {len(data)} training images")
        features, labels = _features(artifact, data)
        np.savez(kept, features=features, labels=labels)
    with np.load(kept) as arrays:
        weight, bias, strength = fit(arrays["features"], arrays["labels"])
    say(f"{name}: linear head with L2 penalty {strength:g}")
    state = load_file(artifact.weights)
    state |= {"head.weight": weight, "head.bias": bias}
    spec = msgspec.structs.replace(
        artifact.spec, name=f"{name}_cifar10", head="linear", head_bias=True, classes=len(bias), labels=data.classes or ()
    )
    _export(spec, state, out)
    shutil.rmtree(backbone)


def _features(artifact: vd.Artifact, data: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    contract = artifact.spec.input
    features, labels = [], []
    with closing(load("onnxruntime").open(artifact, OpenConfig())) as runner:
        for batch in data.batches(contract, LoadConfig(batch_size=25)):
            features.append(runner.run(images.to_tensor(batch.pixels, contract))["pooled"])
            labels.append(batch.labels)
    return np.concatenate(features), np.concatenate(labels)


def fit(features: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Multinomial logistic regression with an L2 penalty on standardised features, the standardisation folded in.

    Args:
        features: [n, D].
        labels: [n].

    Returns:
        Weight float32 [classes, D], bias float32 [classes], and the penalty chosen on every fifth image.
    """
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    mean, std = x.mean(0), x.std(0) + 1e-8
    z = (x - mean) / std
    held = torch.arange(len(z)) % 5 == 0

    def error(strength: float) -> float:
        weight, bias = _regress(z[~held], y[~held], strength)
        return float(torch.nn.functional.cross_entropy(z[held] @ weight.T + bias, y[held]))

    strength = min(STRENGTHS, key=error)
    weight, bias = _regress(z, y, strength)
    weight = weight / std
    return weight.float(), (bias - weight @ mean).float(), strength


def _regress(z: torch.Tensor, y: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    classes = int(y.max()) + 1
    weight = torch.zeros(classes, z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = torch.nn.functional.cross_entropy(z @ weight.T + bias, y) + strength / 2 * weight.square().sum()
        value.backward()
        return value

    descent.step(loss)
    return weight.detach(), bias.detach()


def _outlier(work: Path, out: Path, say: Callable[[str], None]) -> None:
    if not (work / "dinov2" / "artifact.json").is_file():
        _dinov2(work, work / "dinov2", say)
    artifact = vd.Artifact.open(work / "dinov2")
    state = enlarge(load_file(artifact.weights), artifact.spec.depth)
    _export(msgspec.structs.replace(artifact.spec, name="dinov2_outliers_cifar10"), state, out)


def enlarge(state: State, depth: int) -> State:
    """The same function with outlier channels: gamma and beta times `FACTOR`, the columns that read them divided by it.

    Args:
        state: By our names; read only.
        depth: Blocks.
    """
    changed = dict(state)
    draw = np.random.default_rng(SEED)
    for index in range(depth):
        for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            gamma, beta, weight = (
                f"blocks.{index}.{norm}.weight",
                f"blocks.{index}.{norm}.bias",
                f"blocks.{index}.{reader}.weight",
            )
            factor = torch.ones(len(state[gamma]))
            factor[draw.choice(len(factor), OUTLIERS, replace=False)] = FACTOR
            changed |= {gamma: state[gamma] * factor, beta: state[beta] * factor, weight: state[weight] / factor}
    return changed


def _export(spec: vd.ModelSpec, state: State, out: Path) -> None:
    described, weights = out.with_name(f"{out.name}_spec.json"), out.with_name(f"{out.name}_weights.safetensors")
    described.write_bytes(msgspec.json.encode(spec))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    vd.export(vd.ModelConfig(source=str(described), weights=str(weights)), vd.ExportConfig(prove_batches=(1, 2, 3)), out)
    described.unlink()
    weights.unlink()


_MAKERS = {"fashion": _fashion, "dinov2": _dinov2, "outlier": _outlier, "clip": _clip, "dinov2_224": _dinov2_224}
NAMES = ("fashion", "dinov2", "outlier", "clip")
