"""Heads as people put them on a network: in a Sequential, behind a BatchNorm, with a hidden layer.

The network here has one Linear. What is one in the end becomes one, exactly: a Sequential of a single layer with weights, and a
BatchNorm1d before a Linear, as linear probes have it (in evaluation it only scales and shifts). Two layers are refused: what
lies between them has no weights, so no checkpoint can say it.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vitdeploy.checkpoints.conversion import State
from vitdeploy.checkpoints.members import HEADS
from vitdeploy.checkpoints.source import ANY_MODULE, Checkpoint
from vitdeploy.errors import InputError

_LAYER = re.compile(r"(?P<head>(\w+\.)?(?P<last>\w+))\.(?P<place>\d+)\.(?P<tensor>\w+)")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
PROBE_EPS, USUAL_EPS = 1e-6, 1e-5
"""What is added to a BatchNorm's variance: MAE's linear probe, which learns no scale, and torch's default.

Source: facebookresearch/mae, main_linprobe.py; torch.nn.BatchNorm1d.
"""


def settle_heads(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose Sequential heads are single layers.

    Args:
        checkpoint: Tensors by the names of the network; not changed.

    Raises:
        InputError: VD3015, a head of more layers than one.
    """
    heads: dict[str, dict[int, State]] = {}
    for name, tensor in checkpoint.state.items():
        match = _LAYER.fullmatch(name)
        if match and match["last"] in HEADS:
            heads.setdefault(match["head"], {}).setdefault(int(match["place"]), {})[match["tensor"]] = tensor
    state, notes = dict(checkpoint.state), list(checkpoint.notes)
    for head, layers in heads.items():
        places = sorted(layers)
        single, said = _settle(layers)
        if single is None:
            parts = ", ".join(f"{head}.{place}" for place in places)
            message = f"has a head of {len(places)} layers ({parts}); what lies between them has no weights to tell it"
            raise InputError("VD3015", message, file=checkpoint.path, fix=ANY_MODULE)
        for place in places:
            for part in layers[place]:
                del state[f"{head}.{place}.{part}"]
        state |= {f"{head}.{part}": tensor for part, tensor in single.items()}
        notes.append(f"read {head}.{places[-1]}, the one layer of a Sequential, as {head}{said}")
    return checkpoint._replace(state=state, notes=tuple(notes))


def _settle(layers: dict[int, State]) -> tuple[State | None, str]:
    """The one layer that computes what all do, or None, and what was folded."""
    places = sorted(layers)
    last = layers[places[-1]]
    if len(places) == 1:
        return last, ""
    first = layers[places[0]]
    if len(places) > 2 or places[1] != places[0] + 1 or "running_var" not in first or last["weight"].ndim != 2:
        return None, ""
    if first["running_var"].numel() != last["weight"].shape[1]:
        return None, ""
    eps = USUAL_EPS if "weight" in first else PROBE_EPS
    return _fold(first, last, eps), f", with the BatchNorm before it folded in (eps {eps:g})"


def _fold(norm: State, linear: State, eps: float) -> State:
    """W (s (x - m) + b) + c as one Linear, in double precision: s = gain / sqrt(variance + eps)."""
    exact: dict[str, Tensor] = {name: tensor.double() for name, tensor in norm.items()}
    weight = linear["weight"].double()  # [K, D]
    scale = torch.rsqrt(exact["running_var"] + eps) * exact.get("weight", torch.ones(()))  # [D]
    shift = exact.get("bias", torch.zeros(())) - exact["running_mean"] * scale  # [D]
    bias = weight @ shift + linear.get("bias", torch.zeros(())).double()  # [K]
    return {"weight": (weight * scale).float(), "bias": bias.float()}
