"""Would more statistics make INT8 better? Two ideas that `vitdeploy quantize` leaves out, measured.

    python -m tests.benchmarks.corrections [--models fashion,dinov2] [--work FOLDER] [--images 500] [--threads N]

``affine``: after rounding, each output channel gets the factor and the bias that are best by least squares, from the second
moments that rounding has anyway: a = (w^T C w_q) / (w_q^T (C + N) w_q), C the inputs' covariance, N the noise of their own
quantization. The factor goes into the weight's steps.

``Fisher``: tokens count by how much the model's output depends on them. Weights are E_y |d log p(y) / d z_t|^2, z_t what the
layer gives for token t and y drawn from the model's own prediction (all classes summed, nothing sampled), from the PyTorch
original. They weight the second moments that weights are rounded by (``moments``), the rows that ranges and factors are chosen
by (``ranges``; rows are drawn in proportion to them), or both.

What is stored is the mean KL divergence from the float32 model in ONNX Runtime, on images that no quantizer has seen and
that are no test images of `quantization.py`: the rest of the part that calibration images are drawn from. Beside it the
difference to what ships, with a paired bootstrap interval of 95 %. Models and folders are those of `quantization.py`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks import results
from tests.benchmarks.figures import Corrected, CorrectedModel, Corrections, Value
from tests.benchmarks.ptq import models
from tests.benchmarks.ptq.models import CALIBRATION, SEED, Case, MissingError
from tests.benchmarks.results import say
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.onnxruntime.observer import OnnxRuntimeObserver
from vitdeploy.backends.table import load
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.data import images
from vitdeploy.data.dataset import LoadConfig
from vitdeploy.graph import storage
from vitdeploy.graph.exact.integer_products import fuse_products
from vitdeploy.graph.structure import Site
from vitdeploy.quant.calibrator import CalibrateConfig, calibrate
from vitdeploy.quant.int8 import Quantizer, wants
from vitdeploy.quant.moments import Moments, moments
from vitdeploy.quant.observations import Statistics
from vitdeploy.quant.preparation import Layout, Prepared, prepare
from vitdeploy.quant.sketch import image_key

Array = NDArray[Any]
ROWS, PART, MOMENT_IMAGES, DRAWS = 512, 16, 64, 4000
SITES = 4
"""GEMM inputs observed at once."""
METHODS = ("as it ships", "affine", "Fisher moments", "Fisher ranges", "Fisher moments and ranges")


class Affine(Quantizer):
    """With a factor for each output channel."""

    def _round(self, site: Site, name: str, moments: Moments) -> None:
        super()._round(site, name, moments)
        quantizer, rows, lane = self.steps[name], self.rows[name], name in self.lanes
        shift = np.zeros(rows.shape[1]) if lane else (quantizer(rows) - rows).mean(0, dtype=np.float64)
        covariance = moments.second - np.outer(moments.mean, moments.mean)
        noisy = covariance + np.diag(np.zeros(len(covariance)) if lane else quantizer.noise(rows))
        for linear in site.linears:
            codes, scale = self.rounded[linear.name]
            weight = codes.astype(np.float64) * scale
            signal = np.einsum("km,km->m", linear.weight, covariance @ weight)
            factor = signal / np.maximum(np.einsum("km,km->m", weight, noisy @ weight), 1e-30)
            factor = np.clip(factor, 0.9, 1.1)
            linear.write(self.prepared.editor, bias=linear.bias + (1 - factor) * ((moments.mean + shift) @ weight))
            self.rounded[linear.name] = codes, (scale * factor).astype(np.float32)


@dataclass
class Subject:
    """A model with everything that the methods share.

    Attributes:
        case: It.
        artifact: It, opened.
        pixels: Calibration images, float32 [n, C, H, W].
        weights: Fisher weights of the tokens, by layer: float64 [n, T].
        folder: For files.
        threads: Of the engine.
    """

    case: Case
    artifact: Artifact
    pixels: Array
    weights: dict[str, Array]
    folder: Path
    threads: int

    def prepared(self) -> Prepared:
        """The float graph after the exact rewrites, also as a file."""
        prepared = prepare(storage.read(self.artifact.model), Layout())
        storage.write(prepared.model, self.folder / "prepared.onnx")
        return prepared

    def statistics(self, prepared: Prepared) -> tuple[Statistics, Statistics]:
        """Of every other image each, as `quantize` has them."""
        options = CalibrateConfig(threads=self.threads, minimum=PART)
        wanted, halves = wants(prepared.structure, Layout()), []
        for half in range(2):
            pixels = self.pixels[half::2]
            names = [f"{half + 2 * place}" for place in range(len(pixels))]
            parts = ((pixels[at : at + PART], tuple(names[at : at + PART])) for at in range(0, len(pixels), PART))
            halves.append(calibrate(self.folder / "prepared.onnx", wanted, parts, options))
        return halves[0], halves[1]

    def weight(self, site: Site, tokens: int) -> Array:
        """Fisher weights of a GEMM input's tokens, float64 [n, tokens], 1 in the mean."""
        weights = self.weights[_layer(site.linears[-1].name)][:, :tokens]  # the class token comes first
        return weights / max(float(weights.mean()), 1e-300)


def _layer(name: str) -> str:
    """The original's layer that a node belongs to; queries of their own belong to qkv."""
    block, part, layer = re.match(r"blocks\.(\d+)\.(attn|mlp)\.?(\w*)", name).groups()  # type: ignore[union-attr]
    return f"blocks.{block}.{part}.{layer if layer in ('proj', 'fc1', 'fc2') else 'qkv'}"


def fisher(artifact: Artifact, pixels: Array) -> dict[str, Array]:
    """Weights of the tokens of each linear layer in the blocks: layer to float64 [n, T]."""
    assert artifact.weights is not None
    network: Any = rebuild(artifact.spec, artifact.weights)
    caught: dict[str, torch.Tensor] = {}
    layers = {
        name: part for name, part in network.named_modules() if re.fullmatch(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])", name)
    }

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
            output.requires_grad_()
            caught[name] = output

        return hook

    for name, part in layers.items():
        part.register_forward_hook(keep(name))
    sums: dict[str, list[Array]] = {name: [] for name in layers}
    for at in range(0, len(pixels), PART):
        with torch.enable_grad():
            logits = network(torch.from_numpy(np.array(pixels[at : at + PART])))
            logarithms = logits.log_softmax(-1)
            chances = logarithms.detach().exp()
            batch = {name: torch.zeros(caught[name].shape[:2], dtype=torch.float64) for name in layers}
            for label in range(logits.shape[1]):
                slopes = torch.autograd.grad(logarithms[:, label].sum(), [caught[name] for name in layers], retain_graph=True)
                for name, slope in zip(layers, slopes, strict=True):
                    batch[name] += chances[:, label, None].double() * slope.double().square().sum(-1)
        for name, part in batch.items():
            sums[name].append(part.numpy())
    return {name: np.concatenate(parts) for name, parts in sums.items()}


def observe(subject: Subject, path: Path, sites: Sequence[Site], count: int) -> Iterator[tuple[Site, Array]]:
    """What the GEMM inputs are on the first calibration images: float32 [n, T, K] each; a few of them in memory at a time."""
    for start in range(0, len(sites), SITES):
        group = sites[start : start + SITES]
        observer = OnnxRuntimeObserver(path, [site.name for site in group], threads=subject.threads, batch=8)
        parts = [[np.array(each) for each in observer.run(subject.pixels[at : at + 8])] for at in range(0, count, 8)]
        observer.close()
        for place, site in enumerate(group):
            values = np.concatenate([part[place] for part in parts])  # [n, T, K], or [n, K]
            yield site, values.reshape(len(values), -1, values.shape[-1])


def weighted(subject: Subject, quantizer: Quantizer) -> Iterator[tuple[str, Moments]]:
    """Second moments with the tokens' weights; the mean stays that of all tokens."""
    path = subject.folder / "equalized.onnx"
    storage.write(quantizer.prepared.model, path)
    for site, values in observe(subject, path, quantizer.sites, MOMENT_IMAGES):
        scale = subject.weight(site, values.shape[1])[: len(values)].reshape(-1, 1)
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        yield site.name, Moments(rows.mean(0), (rows * scale).T @ rows / scale.sum())


def draw(subject: Subject, prepared: Prepared, halves: tuple[Statistics, Statistics]) -> None:
    """Replace the rows that were kept by ones drawn in proportion to the tokens' weights, in place."""
    for site, values in observe(subject, subject.folder / "prepared.onnx", prepared.structure.sites, len(subject.pixels)):
        scale = subject.weight(site, values.shape[1])
        for number, half in enumerate(halves):
            chance = scale[number::2].reshape(-1)
            rows = values[number::2].reshape(-1, values.shape[-1])
            chosen = np.random.default_rng(SEED).choice(len(rows), min(ROWS, len(rows)), p=chance / chance.sum())
            sketch = half.sketches[site.name]
            keys = np.array([image_key(f"{place}") for place in range(len(chosen))], np.uint64)
            sketch.keys, sketch._room = np.zeros(0, np.uint64), np.zeros((0, 0), np.float32)
            sketch.put(rows[chosen].astype(np.float32), keys)


def quantized(subject: Subject, method: str) -> Artifact:
    """The model by one method."""
    prepared = subject.prepared()
    halves = subject.statistics(prepared)
    if "ranges" in method:
        draw(subject, prepared, halves)
    quantizer = (Affine if method == "affine" else Quantizer)(prepared, Layout(), halves)
    quantizer.equalize()
    if "moments" in method:
        quantizer.round_weights(weighted(subject, quantizer))
    else:
        path = subject.folder / "equalized.onnx"
        storage.write(prepared.model, path)
        batches = [subject.pixels[at : at + PART] for at in range(0, MOMENT_IMAGES, PART)]
        quantizer.round_weights(moments(path, quantizer.widths(), lambda: batches, threads=subject.threads))
    quantizer.emit()
    fuse_products(prepared.editor)
    storage.write(prepared.model, subject.folder / "model.onnx")
    return Artifact(subject.folder, Record(spec=subject.artifact.spec, made_by="benchmark", precision="int8"))


def logarithms(artifact: Artifact, pixels: Array, threads: int) -> Array:
    """Logarithms of the probabilities, float64 [n, classes]."""
    with closing(load("onnxruntime").open(artifact, OpenConfig(threads=threads))) as runner:
        parts = [runner.run(np.array(pixels[at : at + 25]))[artifact.spec.output] for at in range(0, len(pixels), 25)]
    logits = np.concatenate(parts).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def unseen(case: Case, count: int) -> Array:
    """Images of the calibration part that are not among the calibration images, float32 [n, C, H, W]."""
    contract = Artifact.open(case.artifact, verify=False).spec.input
    data = models._data("dinov2" if case.name == "outlier" else case.name, "train")
    taken = set(data.chosen(LoadConfig(limit=CALIBRATION, seed=SEED)))
    order = data.chosen(LoadConfig(limit=min(CALIBRATION + count, len(data)), seed=SEED))
    pixels = np.stack([data[index].read(contract) for index in order if index not in taken])
    return images.to_tensor(pixels, contract)


def compare(case: Case, options: argparse.Namespace) -> CorrectedModel:
    """One model under every method."""
    artifact, held = Artifact.open(case.artifact, verify=False), unseen(case, options.images)
    pixels = np.load(case.calibration)
    say(f"{case.name}: Fisher weights of {len(pixels)} images")
    weights = fisher(artifact, pixels)
    reference = logarithms(artifact, held, options.threads)
    losses: dict[str, tuple[Array, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(case, artifact, pixels, weights, Path(folder), options.threads)
        for method in METHODS:
            other = logarithms(quantized(subject, method), held, options.threads)
            same = float((reference.argmax(1) == other.argmax(1)).mean())
            losses[method] = (np.exp(reference) * (reference - other)).sum(1), same
            say(f"{case.name}: {method}: {1000 * losses[method][0].mean():.3f}e-3")
    base = losses[METHODS[0]][0]
    rows = [
        Corrected(method, float(loss.mean()), None if loss is base else change(loss, base), same)
        for method, (loss, same) in losses.items()
    ]
    return CorrectedModel(case.name, len(held), rows)


def change(loss: Array, base: Array) -> Value:
    """Mean of one over the mean of the other less 1, with the interval over images, which both share."""
    places = np.random.default_rng(SEED).integers(0, len(base), (DRAWS, len(base)))
    low, high = np.quantile(loss[places].mean(1) / base[places].mean(1) - 1, (0.025, 0.975))
    return Value(float(loss.mean() / base.mean() - 1), float(low), float(high))


def main() -> None:
    """Measure and store."""
    parser = results.parser(__doc__)
    parser.add_argument("--models", default="fashion,dinov2", help=f"from: {','.join(models.NAMES)} (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder of quantization's --work (default: a temporary one)")
    parser.add_argument("--images", type=int, default=500, help="to compare on (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.models, options.images = "fashion", 20
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        options.work = (options.work or Path(scratch)).absolute()
        for name in options.models.split(","):
            try:
                measured.append(compare(models.make(name, options.work, 1000, say), options))
            except MissingError as error:
                say(f"{name}: left out: {error}")
        results.store("corrections", Corrections(measured), options)


if __name__ == "__main__":
    main()
