"""Whether the input contract is that of the training: its accuracy on labelled images, beside that of other usual ones.

No proof of equality sees a wrong contract, since both sides are wrong alike: the wrong mean costs points of accuracy with every
number in order. So the contract is compared with the few others that people use, all on the same images: first mean and standard
deviation, then the order of the channels, then the resize, each with the best of what came before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Dataset, LoadConfig, images
from vitdeploy.measure.accuracy import rank_labels
from vitdeploy.measure.statistics import mcnemar, paired_difference
from vitdeploy.progress import Progress, silent
from vitdeploy.record import ContractTrial, Metric
from vitdeploy.spec import InputContract, ModelSpec

CHANCE = 0.01
"""Another contract is called better when McNemar's test finds its advantage less probable than this by chance."""

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's mean and std": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "mean 0.5 and std 0.5": ((0.5,), (0.5,)),
    "mean 0 and std 1": ((0.0,), (1.0,)),
}
"""Name to mean and standard deviation; one number serves for any channels."""

Predict = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Normalised pixels, float32 [N, C, H, W], to logits, float [N, classes]."""


class _Way(NamedTuple):
    """A contract, and whether the channels are given in reverse; and how it is asked for."""

    name: str
    contract: InputContract
    options: str
    reverse: bool = False


def try_contract(
    predict: Predict, spec: ModelSpec, data: Dataset, load: LoadConfig, *, progress: Progress = silent
) -> ContractTrial:
    """Compare the spec's input contract with other usual ones.

    Args:
        predict: The network.
        spec: Its input takes float32.
        data: Labelled images.
        load: How many of them.
        progress: Hears of each contract.

    Raises:
        InputError: The images can't be read, or VD3106, their labels do not fit.
    """
    numbers = data.class_map(spec.labels, spec.classes)

    def find_right(way: _Way) -> dict[str, bool]:
        """Whether each image, by name, is recognised."""
        right: dict[str, bool] = {}
        with data.batches(way.contract, load) as batches:
            for batch in batches:
                tensor = images.to_tensor(batch.pixels, way.contract).astype(np.float32, copy=False)
                logits = predict(np.ascontiguousarray(tensor[:, ::-1]) if way.reverse else tensor)
                places = rank_labels(logits, numbers[batch.labels])
                right |= dict(zip(batch.names, (places == 0).tolist(), strict=True))
        return right

    best = own = _Way("the contract", spec.input, "")
    progress("export: contract", 0, 1)
    baseline = find_right(own)
    differences: dict[str, Metric] = {}
    for list_ways in (_list_statistics, _list_orders, _list_resizes):
        better = [best]
        for way in list_ways(best):
            progress(f"export: contract, {way.name}", len(differences), len(differences) + 1)
            differences[way.name], surely = _compare(baseline, find_right(way))
            better += [way] if surely else []
        best = max(better, key=lambda way: differences[way.name].value if way is not own else 0.0)
    progress("export: contract", 1, 1)
    share = sum(baseline.values()) / len(baseline)
    trial = ContractTrial(data=data.name, images=len(baseline), top1=share, others=differences)
    return trial if best is own else msgspec.structs.replace(trial, warning=_warn(best, trial))


def _list_statistics(best: _Way) -> Iterator[_Way]:
    contract = best.contract
    for name, (mean, std) in STATISTICS.items():
        if len(mean) not in (1, contract.channels):
            continue
        spread = [values * contract.channels if len(values) == 1 else values for values in (mean, std)]
        if not np.allclose((contract.mean, contract.std), spread, atol=2e-3):
            options = " ".join(f"--{key} {','.join(map(str, values))}" for key, values in (("mean", mean), ("std", std)))
            yield _Way(name, msgspec.structs.replace(contract, mean=tuple(spread[0]), std=tuple(spread[1])), options)


def _list_orders(best: _Way) -> Iterator[_Way]:
    if best.contract.channels == 3:
        yield best._replace(name=_join(best, "channels reversed (BGR)"), reverse=True)


def _list_resizes(best: _Way) -> Iterator[_Way]:
    contract = best.contract
    side = max(contract.height, contract.width)
    ways: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("the whole image, cropped", {"resize": "shortest", "resize_to": None}, "--resize shortest --crop 1"),
        ("a crop of 0.875", {"resize": "shortest", "resize_to": math.floor(side / 0.875)}, "--resize shortest --crop 0.875"),
        ("stretched", {"resize": "stretch", "resize_to": None}, "--resize stretch --crop 1"),
    )
    for name, changes, options in ways:
        other = msgspec.structs.replace(contract, **changes)
        if (other.resize, other.shorter) != (contract.resize, contract.shorter):
            yield _Way(_join(best, name), other, f"{best.options} {options}".strip(), best.reverse)


def _join(best: _Way, name: str) -> str:
    return f"{best.name}, {name}" if best.options or best.reverse else name


def _compare(baseline: dict[str, bool], right: dict[str, bool]) -> tuple[Metric, bool]:
    """The difference in top-1, in percentage points, on the images that both could read; and whether it is surely a gain."""
    pairs = [(baseline[name], answer) for name, answer in right.items() if name in baseline]
    gained, lost = sum(new and not old for old, new in pairs), sum(old and not new for old, new in pairs)
    low, high = paired_difference(gained, lost, len(pairs))
    points = 100 * (gained - lost) / max(1, len(pairs))
    return Metric(points, "points", 100 * low, 100 * high), gained > lost and mcnemar(gained, lost) < CHANCE


def _warn(best: _Way, trial: ContractTrial) -> str:
    gain = trial.others[best.name]
    remedies = [f"export with {best.options}"] if best.options else []
    if best.reverse:
        remedies.append("the weights want BGR: reverse the input channels of the patch embedding")
    seen = f"{100 * trial.top1:.1f} % top-1 on {trial.images:,} images of {trial.data}"
    return f"{seen}; {best.name}: {gain.value:+.1f} points [{gain.low:+.1f}, {gain.high:+.1f}]; {'; '.join(remedies)}"
