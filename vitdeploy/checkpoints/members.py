"""Where a network stands among the names of a larger module, told by its parts, not by what its owner calls it.

A trainer, a Sequential, an average or a wrapper puts its member's name before every tensor: ``net.``, ``1.``, ``ema_model.``,
``base_model.model.``. Whatever it is, the network is where a patch embedding and its blocks stand side by side. What else the
owner had ends in one of four places: heads keep their names, losses and counters are left out, a second whole network is told
apart as an average, and any other layer means that the network is not all there is to compute: then names stay as they are,
with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

HEADS = frozenset(
    {
        *("head", "heads", "head_dist", "head_drop", "fc", "fc_norm", "classifier", "cls_classifier"),
        *("distillation_classifier", "linear", "linear_head", "cls_head", "mlp_head", "last_layer", "dino_head"),
        *("ibot_head", "projection_head", "projection", "projector", "predictor", "prototypes", "logit_scale"),
    }
)
"""Members that may stand beside a backbone and belong to it."""

SKIPPED = frozenset(
    {
        *("optimizer", "optimizers", "optimizer_state_dict", "optimizer_state", "optimizer_states", "optim"),
        *("optim_state_dict", "opt", "amp", "scaler", "amp_scaler", "loss_scaler", "grad_scaler", "scheduler"),
        *("schedulers", "scheduler_state_dict", "lr_scheduler", "lr_schedulers", "callbacks", "loops"),
        *("hyper_parameters", "args", "config", "cfg", "opts", "epoch", "iteration", "iter", "step", "global_step"),
        *("rng_state", "rng_states", "random_state", "cuda_rng_state", "meta", "message_hub", "criterion", "loss"),
        *("dino_loss", "ibot_loss", "ibot_patch_loss", "koleo_loss", "best_score", "best_acc", "metrics", "metric"),
        *("history", "ema_optimizer", "swav_queue", "queue"),
    }
)
"""Keys and members beside the weights that are never weights."""

_TRAINING = re.compile(r"(\w*_)?(criterion|criteria|loss|losses|loss_fn|loss_func|metric|metrics|optimizer)(_\w+)?")
_AVERAGE = re.compile(r"(.*[._])?(ema|teacher|averaged?|momentum|swa|target)([._].*)?")
_LAYER = re.compile(r"(.*\.)?(\w+_)?(weight|bias|kernel|weight_orig|weight_[gv])")
_NORMALISATION = re.compile(r".*(mean|std)")

_TOWER = r"((vit|deit|beit|data2vec_vision|dinov2|dinov2_with_registers|dinov3_vit|ijepa|vision_model)\.)?"
_NETWORKS = tuple(  # patch embedding, block: as libraries name them, with what they themselves put before both
    (re.compile(rf"(?P<root>([^.]+\.)*?){patches}\.weight"), re.compile(blocks))
    for patches, blocks in (
        (r"(visual\.trunk\.)?patch_embed\.proj(ection)?", r"(visual\.trunk\.)?(blocks|layers)\.\d+\."),  # timm, Meta
        (r"embeds\.proj", r"blocks\.\d+\."),  # timm's NaFlexViT
        (r"conv_proj", r"encoder\.layers\.encoder_layer_\d+\."),  # torchvision
        (r"(visual\.)?conv1", r"(visual\.)?transformer\.resblocks\.\d+\."),  # CLIP
        (
            rf"{_TOWER}embeddings\.patch_embeddings?(\.projection)?",
            rf"{_TOWER}((encoder|model)\.)?layers?\.\d+\.",
        ),  # transformers
        (r"to_patch_embedding\.\d+", r"transformer\.layers\.\d+\."),  # vit-pytorch
    )
)


class Placed(NamedTuple):
    """Names seen from the network that counts.

    Attributes:
        names: Old name to new name, in the old order, without what was left out.
        notes: What was done, in at most one sentence.
        doubt: Why a network's names were left as they are, or nothing.
        averaged: Whether an average and a plain copy were told apart.
    """

    names: dict[str, str]
    notes: tuple[str, ...] = ()
    doubt: str = ""
    averaged: bool = False


def find_roots(names: Sequence[str]) -> tuple[str, ...]:
    """What stands before the names of each whole network: a patch embedding with its blocks. "" is the top.

    Args:
        names: Flat names of all tensors.
    """
    roots: dict[str, None] = {}
    for patches, blocks in _NETWORKS:
        for match in filter(None, map(patches.fullmatch, names)):
            root = match["root"]
            if any(name.startswith(root) and blocks.match(name, len(root)) for name in names):
                roots[root] = None
    return tuple(roots)


def place(names: Sequence[str], prefer: str | None = None) -> Placed:
    """Name every tensor as the network itself does, whatever it was a member of.

    Args:
        names: Flat names of all tensors, each once.
        prefer: ``ema`` or ``plain`` where the network is there twice; None takes the average.
    """
    unchanged = {name: name for name in names}
    roots = find_roots(names)
    if len(roots) > 2:
        return Placed(unchanged, doubt=f"holds {len(roots)} whole networks, under {_join([*map(repr, roots)])}")
    if not roots:
        return Placed(unchanged)
    root, other = _choose(roots, prefer)
    if root is None:
        return Placed(unchanged, doubt=f"holds two whole networks, under {' and '.join(map(repr, roots))}")
    members = _sort(names, root, other)
    if members.strange:
        where = f"under {root!r}" if root else "at the top"
        message = f"holds a network {where}, beside layers that are not its own: {_join(members.strange)}"
        return Placed(unchanged, doubt=message)
    if len(set(members.names.values())) < len(members.names):
        return Placed(unchanged, doubt=f"holds a network under {root!r}, and a head inside and beside it")
    return Placed(members.names, _describe(names, root, other, members), averaged=other is not None)


class _Members(NamedTuple):
    names: dict[str, str]
    heads: list[str]
    left_out: list[str]
    strange: list[str]


def _choose(roots: tuple[str, ...], prefer: str | None) -> tuple[str | None, str | None]:
    """The network that counts and the other one; no network when none of two is an average, or both are."""
    if len(roots) == 1:
        return roots[0], None
    averages = [root for root in roots if is_average(root)]
    if len(averages) != 1:
        return None, None
    plain = next(root for root in roots if root not in averages)
    return (plain, averages[0]) if prefer == "plain" else (averages[0], plain)


def is_average(name: str) -> bool:
    """Whether a key or a prefix is what averages of weights are called."""
    return _AVERAGE.fullmatch(name) is not None


def _sort(names: Sequence[str], root: str, other: str | None) -> _Members:
    """Every tensor as the network's, a head's, or a neighbour's."""
    members = _Members({}, [], [], [])
    groups: dict[str, list[str]] = {}
    for name in names:
        neighbour = _find_neighbour(name, root, other)
        if neighbour is None:
            members.names[name] = name[len(root) :]
        else:
            groups.setdefault(neighbour, []).append(name)
    for group, tensors in groups.items():
        part = group.rsplit(".", 1)[-1]
        if group != other and part in HEADS:
            members.names.update({name: name[len(group) - len(part) :] for name in tensors})
            members.heads.append(part)
        elif group == other or _is_training(part) or not any(map(_LAYER.fullmatch, tensors)):
            members.left_out.append(group)
        else:
            members.strange.append(tensors[0])
    return members._replace(names={name: members.names[name] for name in names if name in members.names})


def _find_neighbour(name: str, root: str, other: str | None) -> str | None:
    """The outermost member that holds a tensor but not the network: ``other`` for all of that one's; None for its own."""
    inner = other is not None and other.startswith(root) and name.startswith(other)
    if name.startswith(root) and not inner:
        top = name[len(root) :].split(".")[0]
        return root + top if _is_training(top) else None
    outermost = _branch(name, root)
    if other is not None and (inner or name.startswith(other) or outermost == _branch(other, root)):
        return other
    return outermost


def _branch(name: str, root: str) -> str:
    """A name as far as it differs from a root, in whole parts."""
    parts = name.split(".")
    same = next((index for index, pair in enumerate(zip(parts, root.split("."), strict=False)) if pair[0] != pair[1]), 0)
    return ".".join(parts[: same + 1])


def _is_training(part: str) -> bool:
    return part in SKIPPED or _TRAINING.fullmatch(part) is not None


def _describe(names: Sequence[str], root: str, other: str | None, members: _Members) -> tuple[str, ...]:
    said = []
    if root:
        count = sum(name.startswith(root) for name in members.names)
        said.append(f"stripped {root!r}, under which the network stands, from {count} of {len(names)} names")
    if other is not None:
        taken, turned = ("averaged", "plain") if is_average(root) else ("plain", "ema")
        said.append(f"took these {taken} weights, not those under {other!r}; prefer={turned!r} takes those")
    if members.heads:
        said.append(f"{_join(sorted(members.heads))} stood beside it")
    neighbours = [group for group in members.left_out if group != other]
    if neighbours:
        said.append(f"left out {_join(neighbours)}, which is no layer of the network")
    pixels = [name for name in names if _branch(name, root) in neighbours and _NORMALISATION.fullmatch(name)]
    if pixels:
        said.append(f"if {_join(pixels)} normalise pixels, the input contract must say the same")
    return ("; ".join(said),) if said else ()


def _join(words: Sequence[str]) -> str:
    return ", ".join(words[:5]) + ", ..." * (len(words) > 5)
