"""Weights that a checkpoint keeps as several tensors: what torch computes of them in every run is computed once.

    weight_orig * weight_mask                          torch.nn.utils.prune, before prune.remove
    weight_orig / (u W v)                              spectral_norm, old and new; u and v as training left them
    weight_g * weight_v / |weight_v|                   weight_norm; parametrizations.weight.original0 and original1 in the new

All three are what the layer itself uses in evaluation, so nothing is lost. LoRA's pairs are refused instead: how much of them is
added (``lora_alpha``) is not in the weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vitdeploy.checkpoints.conversion import State
from vitdeploy.errors import InputError
from vitdeploy.kinds import MERGE

_LORA = re.compile(r"(.*\.)?(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|(hada|lokr|oft|vera|ia3)_\w+)(\..*)?")
_REMOVE = "where it was made, run: torch.nn.utils.parametrize.remove_parametrizations(module, name) for each, and save again"


class _Kind(NamedTuple):
    """One way to keep a weight.

    Attributes:
        name: As torch calls it.
        parts: What follows the weight's name in each tensor's.
        compose: Makes the weight of them.
    """

    name: str
    parts: tuple[str, ...]
    compose: Callable[..., Tensor]


def _mask(original: Tensor, mask: Tensor) -> Tensor:
    return original * mask.to(original.dtype)


def _normalise(gain: Tensor, direction: Tensor) -> Tensor:
    """``gain`` has one number for each of what is normalised together, on the axes that it keeps."""
    axes = [axis for axis in range(direction.ndim) if gain.ndim != direction.ndim or gain.shape[axis] == 1]
    exact = direction.double()
    lengths: Tensor = torch.linalg.vector_norm(exact, dim=axes, keepdim=True)
    return (exact * (gain.double() / lengths)).to(direction.dtype)


def _divide(original: Tensor, left: Tensor, right: Tensor) -> Tensor:
    matrix = original.double().flatten(1)  # [out, all else]: torch's order for everything but transposed convolutions
    return (original.double() / (left.double() @ matrix @ right.double())).to(original.dtype)


_KINDS = (
    _Kind("pruning", ("{name}_orig", "{name}_mask"), _mask),
    _Kind("weight_norm", ("{name}_g", "{name}_v"), _normalise),
    _Kind("weight_norm", ("parametrizations.{name}.original0", "parametrizations.{name}.original1"), _normalise),
    _Kind("spectral_norm", ("{name}_orig", "{name}_u", "{name}_v"), _divide),
    _Kind(
        "spectral_norm",
        ("parametrizations.{name}.original", "parametrizations.{name}.0._u", "parametrizations.{name}.0._v"),
        _divide,
    ),
)


def compose(state: State) -> tuple[State, tuple[str, ...]]:
    """Whole weights for those that stand as several tensors, and what was made of what.

    Args:
        state: Tensors by their names; not changed.

    Raises:
        InputError: VD3015, LoRA's pairs that were not merged, or a parametrization of another kind; VD3009, parts that do not
            fit each other.
    """
    pairs = [name for name in state if _LORA.fullmatch(name)]
    if pairs:
        message = f"holds a LoRA adapter that is not merged into its model: {len(pairs)} tensors such as {pairs[0]!r}"
        raise InputError("VD3015", message, fix=MERGE)
    made: State = {}
    used: set[str] = set()
    counts: Counter[str] = Counter()
    for name, tensor in state.items():
        match = next(filter(None, (_match(name, kind, state) for kind in _KINDS)), None)
        if match is None:
            if name not in used:
                made[name] = tensor
            continue
        whole, kind, parts = match
        used.update(parts)
        made[whole] = _apply(kind, whole, [state[part] for part in parts])
        counts[kind.name] += 1
    made = {name: tensor for name, tensor in made.items() if name not in used}
    strange = [name for name in made if ".parametrizations." in f".{name}"]
    if strange:
        message = f"has a parametrization that is not known, {strange[0]!r}; what the weight is, only its code says"
        raise InputError("VD3015", message, fix=_REMOVE)
    return made, tuple(f"computed {count} weights of their parts ({name})" for name, count in counts.items())


def _match(name: str, kind: _Kind, state: State) -> tuple[str, _Kind, list[str]] | None:
    """The weight that ``name`` is the first part of, and the names of all its parts."""
    start, _, end = kind.parts[0].partition("{name}")
    match = re.fullmatch(rf"((?:.*\.)?){re.escape(start)}(\w+){re.escape(end)}", name)
    if match is None:
        return None
    parts = [match[1] + part.format(name=match[2]) for part in kind.parts]
    return (match[1] + match[2], kind, parts) if all(part in state for part in parts) else None


def _apply(kind: _Kind, whole: str, tensors: list[Tensor]) -> Tensor:
    try:
        return kind.compose(*tensors)
    except (RuntimeError, IndexError) as exc:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise InputError("VD3009", f"has parts of {whole!r} ({kind.name}) that do not fit: {shapes}") from exc
