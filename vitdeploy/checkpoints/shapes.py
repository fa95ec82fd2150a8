"""What the shapes of a state dict with our names tell of its network: everything but heads, activation, epsilon, pool.

timm's and Meta's checkpoints differ from ours by few names, so both are renamed first and read here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vitdeploy.checkpoints.conversion import State, count
from vitdeploy.checkpoints.source import ANY_MODULE
from vitdeploy.errors import InputError
from vitdeploy.models.relative import EXTRA
from vitdeploy.spec import FinalNorm, Head, SpecFields

_RELATIVE = "rel_pos_bias.relative_position_bias_table"
BLOCK = "blocks.{i}.norm1.weight"
_CONFIGURE = (
    "give a folder with the weights and a config.json that says the size it was trained for, in pixels: "
    '{"architecture": "NAME", "pretrained_cfg": {"input_size": [3, HEIGHT, WIDTH]}}'
)


class Positions(NamedTuple):
    """Where the rows of a learned position table belong.

    Attributes:
        grid: Rows and columns of patches.
        fields: `position_prefix` and `position_registers` of the spec.
    """

    grid: tuple[int, int]
    fields: SpecFields


def fields(state: State, path: Path) -> SpecFields:
    """Fields of `ModelSpec` that follow from shapes alone; of pools only ``map`` can be told.

    Args:
        state: Tensors by our names (query, key and value may be separate).
        path: For messages.

    Raises:
        InputError: VD3009, a tensor that every ViT has is missing or has another number of axes; VD3015, RMSNorm.
    """
    kernel = tensor(state, "patch_embed.proj.weight", 4, path).shape  # [D, C, P_h, P_w]
    depth = count(tuple(state), BLOCK)
    for index in range(depth or 1):  # stops at the first gap
        tensor(state, BLOCK.format(i=index), 1, path)
    if "blocks.0.norm1.bias" not in state:
        message = "normalises without a bias (RMSNorm); vitdeploy's network has LayerNorm"
        raise InputError("VD3015", message, file=path)
    registers = tensor(state, "reg_token", 3, path).shape[1] if "reg_token" in state else 0
    norms: dict[str, FinalNorm] = {"fc_norm.weight": "pooled", "norm.weight": "tokens"}
    return {
        "patch": (kernel[2], kernel[3]),
        "patch_bias": "patch_embed.proj.bias" in state,
        "width": kernel[0],
        "depth": depth,
        "class_token": "cls_token" in state,
        "distillation_token": "dist_token" in state,
        "registers": registers,
        "position": "learned" if "pos_embed" in state else "none",
        "relative_positions": "blocks" if f"blocks.0.attn.{_RELATIVE}" in state else "shared" if _RELATIVE in state else "none",
        "pre_norm": "norm_pre.weight" in state,
        "final_norm": next((where for name, where in norms.items() if name in state), "none"),
        "pool": "map" if "attn_pool.latent" in state else "cls",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        **_attention(state),
        **_mlp(state, path),
        **_head(state, path),
    }


def tensor(state: State, name: str, axes: int, path: Path) -> Tensor:
    """A tensor that must be there.

    Raises:
        InputError: VD3009, it is missing or has another number of axes.
    """
    if name not in state or state[name].ndim != axes:
        real = f"has {name!r} of shape {list(state[name].shape)}" if name in state else f"has no tensor {name!r}"
        message = f"{real}; every Vision Transformer that vitdeploy reads has one with {axes} axes"
        raise InputError("VD3009", message, file=path, fix="check that it holds a whole Vision Transformer")
    return state[name]


def inner(state: State) -> int | None:
    """Heads x head size, or None when there is no first block's projection."""
    proj = state.get("blocks.0.attn.proj.weight")
    return None if proj is None or proj.ndim != 2 else proj.shape[1]


def head_size(state: State) -> int | None:
    """Numbers in a head, as the norm of the first block's queries tells, or None without one."""
    norm = state.get("blocks.0.attn.q_norm.weight")
    return None if norm is None else norm.numel()


def places(state: State, read: SpecFields, hint: tuple[int, int] | None, path: Path) -> Positions:
    """The grid of a learned position table, and which tokens before the patches have rows in it.

    Two squares never differ by 1 or 2, so a square grid is never mistaken; another shape needs a hint.

    Args:
        state: Tensors by our names.
        read: What `fields` gave.
        hint: Rows and columns of patches from the configuration's image size, or None where none is read.
        path: For messages.

    Raises:
        InputError: VD3009 or VD3015, no grid has as many patches as the table has rows.
    """
    rows = tensor(state, "pos_embed", 3, path).shape[1]
    special = read["class_token"] + read["distillation_token"]
    options: dict[int, SpecFields] = {  # rows that do not belong to patches: fields
        special: {"position_prefix": True},
        0: {"position_prefix": special == 0},
        special + read["registers"]: {"position_prefix": True, "position_registers": read["registers"] > 0},
    }
    for own, given in options.items():
        side = math.isqrt(max(rows - own, 0))
        for grid in (hint, (side, side)):
            if grid and grid[0] * grid[1] == rows - own > 0:
                return Positions(grid, given)
    message = f"has a position table of {rows} rows, which is no square grid of patches"
    fix = ANY_MODULE if hint is None else _CONFIGURE
    raise InputError("VD3015", message, file=path, fix=fix)


def distances(state: State, hint: tuple[int, int] | None) -> tuple[int, int] | None:
    """The grid of a table of relative positions: the hint's where it fits, else a square; None without such a table."""
    table = state.get(f"blocks.0.attn.{_RELATIVE}", state.get(_RELATIVE))
    if table is None:
        return None
    rows = len(table) - EXTRA
    side = (math.isqrt(max(rows, 0)) + 1) // 2
    return hint if hint and (2 * hint[0] - 1) * (2 * hint[1] - 1) == rows else (side, side)


def _attention(state: State) -> SpecFields:
    key, query = "blocks.0.attn.k.bias", "blocks.0.attn.q_bias"
    every = "blocks.0.attn.qkv.bias" in state or key in state
    return {
        "qkv_bias": "qkv" if every else "qv" if query in state else "none",
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "attn_norm": "blocks.0.attn.norm.weight" in state,
    }


def _mlp(state: State, path: Path) -> SpecFields:
    """Gated MLPs are seen by their first layer: separate, or twice as wide as what the second takes."""
    last = tensor(state, "blocks.0.mlp.fc2.weight", 2, path).shape[1]
    gated = "blocks.0.mlp.fc1_g.weight" in state or tensor(state, "blocks.0.mlp.fc1.weight", 2, path).shape[0] == 2 * last
    return {
        "mlp": "swiglu" if gated else "gelu",
        "mlp_width": last,
        "mlp_norm": "blocks.0.mlp.norm.weight" in state,
    }


def _head(state: State, path: Path) -> SpecFields:
    if "head.weight" not in state:
        return {"head": "none", "classes": 0}
    kind: Head = "distilled" if "head_dist.weight" in state else "linear"
    classes = tensor(state, "head.weight", 2, path).shape[0]
    return {"head": kind, "classes": classes, "head_bias": "head.bias" in state}
