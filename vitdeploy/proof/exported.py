"""The proof that an exported file computes what PyTorch computes, at every batch size it claims to take."""

from __future__ import annotations

from contextlib import closing
from typing import cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Outputs, Runner, Tensor
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import PROVER, REFERENCE
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.proof.golden import IMAGES, Golden, require_room, run_pixels
from vitdeploy.proof.thresholds import ALMOST_CONSTANT, TOP_K
from vitdeploy.recipe import ExportConfig
from vitdeploy.record import ExportProof
from vitdeploy.spec import ModelSpec

Rows = dict[str, NDArray[np.float32]]


def prove(source: nn.Module, artifact: Artifact, config: ExportConfig) -> tuple[ExportProof, Golden]:
    """Run the file at each batch size and compare every row with PyTorch's and with the same row in other company.

    For a dynamic batch the other company is none: the row alone. For a static batch it is the batch turned by one place.

    Args:
        source: The PyTorch original.
        artifact: The file.
        config: Batch sizes and tolerance.

    Returns:
        The proof, and the golden batch: the first of these images, and more where more are wanted.

    Raises:
        MachineError: VD4003, a difference is above the tolerance, or NaN; VD4007, VD4008 the engine crashed or hung.
    """
    batches = (config.batch,) if config.batch else tuple(sorted(set(config.prove_batches)))
    require_room(config.golden, artifact)
    count = max(batches)
    pixels = synthetic.pixels(max(count, config.golden), artifact.spec.input)  # [at least count, H, W, C]
    truth = _reference(source, artifact.spec, pixels, config)
    tensor = images.to_tensor(pixels[:count], artifact.spec.input)
    worst = {"difference": 0.0, "relative": 0.0, "company": 0.0}
    with closing(open_in_child(PROVER, artifact, OpenConfig())) as runner:
        alone = _alone(runner, tensor, config.batch)
        for batch in batches:
            rows = runner.run(tensor[:batch]) if batch > 1 or config.batch else {name: alone[name][:1] for name in alone}
            for name, expected in truth.items():
                spread = float(expected.std())
                limit = config.tolerance * spread + ALMOST_CONSTANT
                apart, company = _largest(rows[name], expected[:batch]), _largest(rows[name], alone[name][:batch])
                seen = {"difference": apart, "relative": apart / (spread or 1.0), "company": company}
                worst = {key: float(np.maximum(worst[key], seen[key])) for key in worst}  # keeps NaN; max() drops it
                _check(artifact, f"output {name!r} at batch {batch} differs from PyTorch", apart, limit)
                _check(artifact, f"output {name!r} at batch {batch} differs from the same image in other company", company, limit)
            if config.top_k is not None:
                _check_top_k(artifact, rows, config.top_k)
        more = [run_pixels(runner, artifact, pixels[count:])] if len(pixels) > count else []
    whole, output = truth[artifact.spec.output], np.concatenate([alone[artifact.spec.output], *more])
    limit = config.tolerance * float(whole.std()) + ALMOST_CONSTANT
    _check(artifact, "an output of the golden batch differs from PyTorch", _largest(output, whole), limit)
    golden = Golden(pixels, output, PROVER, whole, REFERENCE).take(config.golden)
    difference, relative, company = worst["difference"], worst["relative"], worst["company"]
    proof = ExportProof(batches=batches, images=len(pixels), difference=difference, relative=relative, company=company)
    return proof, golden


def compare(theirs: nn.Module, source: nn.Module, spec: ModelSpec, tolerance: float) -> float:
    """How far a network is from the code that it was described after, on the images of `prove`.

    Args:
        theirs: The user's network: float32 [N, C, H, W] to [N, K].
        source: Ours.
        spec: Of ours.
        tolerance: As `ExportConfig.tolerance`.

    Returns:
        Largest |difference|, as a share of the standard deviation of what ``theirs`` gives.

    Raises:
        InputError: VD3029, they are apart by more than the tolerance.
    """
    pixels = synthetic.pixels(IMAGES, spec.input)
    expected, ours = (_reference(net, spec, pixels, ExportConfig())[spec.output] for net in (theirs, source))
    if expected.shape != ours.shape:
        message = f"{spec.name!r} gives {list(ours.shape[1:])} for an image, its code gives {list(expected.shape[1:])}"
        raise InputError("VD3029", message, fix="correct the spec")
    apart, spread = _largest(ours, expected), float(expected.std())
    share = apart / (spread or 1.0)
    if not apart <= tolerance * spread + ALMOST_CONSTANT:
        same = (ours.argmax(1) == expected.argmax(1)).mean()
        seen = f"outputs differ by {apart:.3g}, {share:.2g} of their standard deviation"
        most = f"{100 * same:.0f} % of {len(ours)} images have the same largest output"
        fix = "compare the spec with the code: scale, norm_eps, mlp, where norms and class token stand"
        raise InputError("VD3029", f"{spec.name!r} is another function than its code: {seen}; {most}", fix=fix)
    return share


def _reference(source: nn.Module, spec: ModelSpec, pixels: NDArray[np.uint8], config: ExportConfig) -> Rows:
    """PyTorch's outputs, a few rows at a time: float32 [count, ...] each."""
    contract = msgspec.structs.replace(spec.input, tensor="float32-nchw")
    names = (spec.output, *config.outputs)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 8):
            batch = torch.from_numpy(images.to_tensor(pixels[start : start + 8], contract))
            outputs = cast(VisionTransformer, source).outputs(batch) if config.outputs else {names[0]: source(batch)}
            parts.append({name: outputs[name].numpy() for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _alone(runner: Runner, tensor: Tensor, static: int | None) -> Outputs:
    """Every row in other company: alone, or (static batch) with the whole batch turned by one place."""
    if static is not None:
        return {name: np.roll(rows, 1, 0) for name, rows in runner.run(np.roll(tensor, -1, 0)).items()}
    parts = [runner.run(tensor[index : index + 1]) for index in range(len(tensor))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _largest(rows: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest |difference|; infinite when the shapes differ, NaN when there is one."""
    if rows.shape != expected.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return float(np.abs(rows.astype(np.float64) - expected).max())


def _check_top_k(artifact: Artifact, rows: Outputs, k: int) -> None:
    """The K outputs must be the softmax of the file's own logits, sorted."""
    logits = rows[artifact.spec.output].astype(np.float64)  # [n, classes]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    chosen = np.take_along_axis(shares, rows["top_k_indices"].astype(np.int64), 1)  # [n, k]
    largest = np.sort(shares, 1)[:, ::-1][:, :k]  # [n, k]
    apart = max(_largest(rows["top_k_probabilities"], other) for other in (largest, chosen))
    _check(artifact, "top_k_probabilities differ from the softmax of the logits", apart, TOP_K)


def _check(artifact: Artifact, what: str, apart: float, limit: float) -> None:
    if not apart <= limit:  # NaN must not pass
        message = f"{what} by {apart:.3g}, allowed are {limit:.3g}"
        fix = "nothing was written; report this with the model's spec"
        raise MachineError("VD4003", message, file=artifact.model.name, fix=fix)
