"""Train the demo model: a small Vision Transformer on Fashion-MNIST, from scratch, on a CPU.

    python recipes/train_fashion_mnist.py --compile -o first.safetensors
    python recipes/train_fashion_mnist.py --compile --start first.safetensors --gentle --epochs 10 --rate 5e-4

The data is Debian's package `dataset-fashion-mnist` (60,000 training and 10,000 test images, 28 x 28 grey). The first
command trains from scratch, the second goes on for ten gentle epochs; an epoch takes about 90 seconds on two cores. The shipped
weights are the last epoch's exponential moving average. Within a run nothing is chosen by looking at the test images, which are
read once, at its end; that the second run follows was decided after the first one's figure. Whoever changes the recipe compares
with `--hold-out 5000`, which keeps that many training images aside and reports accuracy on them alone. Commands, results and
minutes (taken on a machine that did other work, too) are recorded in `fashion_mnist_vit.json`.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vitdeploy.models.vit import VisionTransformer
from vitdeploy.spec import ModelSpec

HERE = Path(__file__).parent


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes as a tensor of its own shape, uint8."""
    raw = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy())


def normalise(images: Tensor, spec: ModelSpec) -> Tensor:
    """uint8 [N, 28, 28] to float32 [N, 1, 28, 28] by the model's input contract."""
    return (images[:, None].float() / 255 - spec.input.mean[0]) / spec.input.std[0]


def augment(images: Tensor, *, gentle: bool) -> Tensor:
    """Flip, shift by up to 2 pixels and (not when gentle) erase a patch, each image on its own; uint8 [N, 28, 28]."""
    count, side = images.shape[:2]
    flip = torch.rand(count) < 0.5
    images = torch.where(flip[:, None, None], images.flip(2), images)
    padded = functional.pad(images, (2, 2, 2, 2))  # [N, 32, 32]
    rows = torch.randint(0, 5, (count, 1)) + torch.arange(side)  # [N, 28]
    columns = torch.randint(0, 5, (count, 1)) + torch.arange(side)  # [N, 28]
    images = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]  # [N, 28, 28]
    if gentle:
        return images
    centre, half = torch.randint(0, side, (2, count, 1)), torch.randint(2, 6, (2, count, 1))
    near = (torch.arange(side) - centre).abs() < half  # [2, N, 28]
    erase = (near[0][:, :, None] & near[1][:, None, :]) & (torch.rand(count) < 0.4)[:, None, None]
    return torch.where(erase, torch.zeros_like(images), images)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, spec: ModelSpec) -> float:
    """Share of images whose largest logit is their label's."""
    model.eval()
    right = sum(
        int((model(normalise(x, spec)).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(labels)


def optimiser(model: nn.Module, options: argparse.Namespace) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on biases, norms, tokens or positions."""
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and "token" not in n and "pos_embed" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))


def train(model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> nn.Module:
    """One cosine schedule with warm-up; returns the exponential moving average of the weights."""
    average = copy.deepcopy(model)
    if options.compile:
        model.compile()
    chosen, step = optimiser(model, options), 0
    steps = options.epochs * (len(images) // options.batch)
    for epoch in range(options.epochs):
        model.train()
        start, total = time.monotonic(), 0.0
        for index in torch.randperm(len(images)).split(options.batch)[: len(images) // options.batch]:
            step += 1
            share = min(1.0, step / (0.05 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            for group in chosen.param_groups:
                group["lr"] = options.rate * share
            logits = model(normalise(augment(images[index], gentle=options.gentle), model.spec))  # [batch, 10]
            loss = functional.cross_entropy(logits, labels[index], label_smoothing=0.1)
            chosen.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            chosen.step()
            keep = min(0.998, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(now, 1 - keep)
            total += loss.item()
        spent = time.monotonic() - start
        print(f"epoch {epoch + 1}/{options.epochs}: loss {total * options.batch / len(images):.4f}, {spent:.0f} s", flush=True)
    return average


def main() -> None:
    """Read, train, measure once, write weights and record."""
    parser = argparse.ArgumentParser(description="Train the demo model on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--spec", type=Path, default=HERE / "fashion_mnist_vit.toml")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "fashion_mnist_vit.safetensors")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--hold-out", type=int, default=0, help="training images kept aside, to settle the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="weights to go on from, instead of random ones")
    parser.add_argument("--gentle", action="store_true", help="no erasing and no stochastic depth: for the last epochs")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model: a third faster, needs a C++ compiler")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    spec = msgspec.toml.decode(options.spec.read_bytes(), type=ModelSpec)
    images, labels = (read_idx(options.data / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    labels, kept = labels.long(), len(images) - options.hold_out
    model = VisionTransformer(spec, drop_path=0.0 if options.gentle else 0.1)
    if options.start is not None:
        model.load_state_dict(load_file(options.start))
    start = time.monotonic()
    model = train(model, images[:kept], labels[:kept], options)
    minutes = (time.monotonic() - start) / 60
    if options.hold_out:
        print(f"held-out accuracy {accuracy(model, images[kept:], labels[kept:], spec):.4f}, {minutes:.1f} minutes")
        return
    test, truth = (read_idx(options.data / f"t10k-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    top1 = accuracy(model, test, truth.long(), spec)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, options.out)
    before = options.start and options.start.with_suffix(".json")
    record = {
        "command": " ".join(["python", "recipes/train_fashion_mnist.py", *(Path(word).name for word in sys.argv[1:])]),
        "start_sha256": options.start and hashlib.sha256(options.start.read_bytes()).hexdigest(),
        "before": json.loads(before.read_text()) if before and before.is_file() else None,
        "test_images": len(truth),
        "test_top1": top1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": round(minutes, 1),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "sha256": hashlib.sha256(options.out.read_bytes()).hexdigest(),
    }
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
