"""CLIP's image tower, as OpenAI and open_clip save it: a plain state dict, alone or beside the text tower.

Shapes say everything but two facts. Heads are 64 wide in every CLIP unless open_clip's configuration says otherwise. Whether
the MLP uses OpenAI's QuickGELU or GELU is in ``open_clip_config.json``, in the architecture's name, or in the three buffers
that OpenAI's own checkpoints carry; without any of them nothing is guessed, since both would load without complaint.

Source: Radford et al. 2021 (arXiv:2103.00020); openai/CLIP, clip/model.py and clip.py; open_clip, transformer.py and model.py.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy import files
from vitdeploy.checkpoints.conversion import Rule, count
from vitdeploy.checkpoints.source import Checkpoint, Source
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract, Mlp, ModelSpec

CONFIG = "open_clip_config.json"
PAPER = "Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OPENAI_BUFFERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's own checkpoints hold as tensors."""

_LARGEST_CONFIG = 1 << 20
_HEAD_WIDTH = 64  # openai/CLIP, model.py: vision_heads = vision_width // 64
_NAME = re.compile(r"vit[-_][a-z0-9]+?[-/_](?:patch)?(?P<patch>\d+)", re.IGNORECASE)
_ASK = "give the architecture's name: ViT-B-32 (GELU), ViT-B-32-quickgelu, or OpenAI's ViT-B/32 (QuickGELU)"
_NO_PART = "not part of the image tower"

_TOWER = (  # theirs without the prefix, ours, change
    ("class_embedding", "cls_token", "token"),
    ("positional_embedding", "pos_embed", "token"),
    ("conv1.{kind}", "patch_embed.proj.{kind}", ""),
    ("ln_pre.{kind}", "norm_pre.{kind}", ""),
    ("transformer.resblocks.{i}.ln_1.{kind}", "blocks.{i}.norm1.{kind}", ""),
    ("transformer.resblocks.{i}.attn.in_proj_{kind}", "blocks.{i}.attn.qkv.{kind}", ""),
    ("transformer.resblocks.{i}.attn.out_proj.{kind}", "blocks.{i}.attn.proj.{kind}", ""),
    ("transformer.resblocks.{i}.ls_1.gamma", "blocks.{i}.ls1.gamma", ""),
    ("transformer.resblocks.{i}.ln_2.{kind}", "blocks.{i}.norm2.{kind}", ""),
    ("transformer.resblocks.{i}.mlp.c_fc.{kind}", "blocks.{i}.mlp.fc1.{kind}", ""),
    ("transformer.resblocks.{i}.mlp.c_proj.{kind}", "blocks.{i}.mlp.fc2.{kind}", ""),
    ("transformer.resblocks.{i}.ls_2.gamma", "blocks.{i}.ls2.gamma", ""),
    ("proj", "head.weight", "transpose"),
)
_TEXT = (
    Rule("transformer.{any}", None, why=f"the text tower: {_NO_PART}"),
    Rule("token_embedding.{kind}", None, why=f"the text tower: {_NO_PART}"),
    Rule("positional_embedding", None, why=f"the text tower: {_NO_PART}"),
    Rule("ln_final.{kind}", None, why=f"the text tower: {_NO_PART}"),
    Rule("text_projection", None, why=f"the text tower: {_NO_PART}"),
    Rule("text_projection.{kind}", None, why=f"the text tower: {_NO_PART}"),
    Rule("attn_mask", None, why=f"the text tower: {_NO_PART}"),
    Rule("text.{any}", None, why=f"the text tower: {_NO_PART}"),
)
_ALWAYS_OUT = (
    Rule("logit_scale", None, why="scales the similarity of image and text; not part of the features"),
    Rule("logit_bias", None, why="shifts the similarity of image and text; not part of the features"),
    *(Rule(name, None, why="a number about the checkpoint, not a weight") for name in OPENAI_BUFFERS),
)
_KNOWN_OPTIONS: dict[str, tuple[Any, ...]] = {  # of open_clip's vision_cfg: the values that this converter stands for
    "pool_type": ("tok", "avg"),
    "attentional_pool": (False, None),
    "timm_model_name": (None,),
    "input_patchnorm": (False, None),
    "output_tokens": (False, None),
    "global_average_pool": (False, None),
    "act_kwargs": (None, {}),
    "block_type": (None,),
    "qk_norm": (False, None),
    "scale_fc": (False, None),
    "scale_attn": (False, None),
    "scale_attn_inner": (False, None),
    "scale_heads": (False, None),
    "scaled_cosine_attn": (False, None),
}


def recognise(checkpoint: Checkpoint) -> bool:
    """Whether the names are CLIP's; also for its towers that are no plain ViT, so that `spec` can say what they are."""
    names = checkpoint.names
    if any(name.startswith(("visual.trunk.", "visual.attnpool.", "visual.attn_pool.")) for name in names):
        return True
    prefix = _prefix(checkpoint)
    return f"{prefix}class_embedding" in names and bool(count(names, f"{prefix}transformer.resblocks.{{i}}.attn.in_proj_weight"))


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """The image tower, from shapes, open_clip's configuration and the architecture's name.

    Args:
        checkpoint: What `recognise` accepted.
        architecture: Such as ``ViT-B-32``, ``ViT-B-32-quickgelu`` or ``ViT-B/16``; needed for files that do not say it.

    Raises:
        InputError: VD3015, the activation can't be told, or the tower is of a kind that is not supported; VD3009,
            tensors of impossible shape.
    """
    config, path = _config(checkpoint), checkpoint.path
    vision: dict[str, Any] = config.get("vision_cfg") or {}
    _refuse_unsupported(checkpoint, vision)
    state, prefix = checkpoint.state, _prefix(checkpoint)
    kernel, table = state.get(f"{prefix}conv1.weight"), state.get(f"{prefix}positional_embedding")
    first = state.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")
    if kernel is None or table is None or first is None or kernel.ndim != 4 or table.ndim != 2 or first.ndim != 2:
        message = "lacks conv1, positional_embedding or the first block's MLP, or they have no such shape"
        raise InputError("VD3009", message, file=path, fix="use a whole checkpoint")
    width, channels, *patch = kernel.shape
    height, across = _image(vision, len(table) - 1, (patch[0], patch[1]), path)
    projection, names = state.get(f"{prefix}proj"), checkpoint.names
    _check_name(architecture, patch[0], path)
    try:
        contract = _contract(checkpoint, config, (height, across), channels)
        return ModelSpec(
            name=architecture or path.stem or "clip",
            source=PAPER,
            input=contract,
            patch=(patch[0], patch[1]),
            patch_bias=f"{prefix}conv1.bias" in names,
            width=width,
            depth=count(names, f"{prefix}transformer.resblocks.{{i}}.attn.in_proj_weight"),
            heads=width // int(vision.get("head_width", _HEAD_WIDTH)),
            mlp=_activation(checkpoint, config, architecture),
            mlp_width=first.shape[0],
            norm_eps=float((vision.get("norm_kwargs") or {}).get("eps", 1e-5)),
            pre_norm=f"{prefix}ln_pre.weight" in names,
            final_norm="pooled" if vision.get("final_ln_after_pool") else "tokens",
            layer_scale=1e-5 if f"{prefix}transformer.resblocks.0.ls_1.gamma" in names else None,
            pool="mean" if vision.get("pool_type") == "avg" else "cls",
            head="none" if projection is None else "projection",
            head_bias=False,
            classes=0 if projection is None else projection.shape[-1],
        )
    except (UsageError, ArithmeticError, AttributeError, TypeError, ValueError) as exc:
        message = exc.message if isinstance(exc, UsageError) else f"its configuration does not fit together: {exc}"
        raise InputError("VD3015", message, file=path) from exc


def rules(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table; the last norm goes where the pooling wants it."""
    prefix = _prefix(checkpoint)
    norm = "fc_norm" if spec.final_norm == "pooled" else "norm"
    tower = [Rule(prefix + theirs, ours, change) for theirs, ours, change in _TOWER]
    tower.append(Rule(f"{prefix}ln_post.{{kind}}", f"{norm}.{{kind}}"))
    return (*tower, *_ALWAYS_OUT, *(_TEXT if prefix else ()))


def grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Rows and columns of the position table, when the configuration says them; None for a square."""
    vision = _config(checkpoint).get("vision_cfg") or {}
    size, patch = (vision.get(key) for key in ("image_size", "patch_size"))
    if not (isinstance(size, list) and len(size) == 2 and isinstance(patch, int) and patch):
        return None
    return size[0] // patch, size[1] // patch


def _prefix(checkpoint: Checkpoint) -> str:
    return "visual." if any(name.startswith("visual.") for name in checkpoint.names) else ""


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """``model_cfg`` of open_clip_config.json with ``preprocess_cfg`` beside it, or nothing."""
    whole: Any = checkpoint.config
    file = checkpoint.path / CONFIG if checkpoint.path.is_dir() else checkpoint.path.with_name(CONFIG)
    if "model_cfg" not in whole and file.is_file():
        whole = _json(file)
    if not isinstance(whole, dict) or not isinstance(whole.get("model_cfg"), dict):
        return {}
    model, preparation = whole["model_cfg"], whole.get("preprocess_cfg") or {}
    if not isinstance(model.get("vision_cfg", {}), dict) or not isinstance(preparation, dict):
        raise InputError("VD3015", "is not what open_clip writes", file=file, fix="download it again")
    return {**model, "preprocess_cfg": preparation}


def _json(file: Path) -> object:
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise InputError("VD3015", "is larger than any configuration", file=file, fix="download it again")
        return msgspec.json.decode(files.read_bytes(file, files.LARGEST_TEXT))
    except (OSError, msgspec.DecodeError, RecursionError) as exc:
        raise InputError("VD3015", f"can't be read: {exc}", file=file, fix="download it again") from exc


def _refuse_unsupported(checkpoint: Checkpoint, vision: dict[str, Any]) -> None:
    others = {
        "visual.trunk.": "its image tower is timm's (visual.trunk), not CLIP's own",
        "visual.attnpool.": "its image tower is a ResNet, not a Vision Transformer",
        "visual.attn_pool.": "its image tower pools by attention (CoCa), which is not supported",
        "visual.head.": "its image tower has a head of its own, which is not supported",
    }
    for start, message in others.items():
        if any(name.startswith(start) for name in checkpoint.names):
            raise InputError("VD3015", message, file=checkpoint.path, fix="export the tower with --module")
    for option, allowed in _KNOWN_OPTIONS.items():
        if option in vision and vision[option] not in allowed:
            message = f"{CONFIG} sets {option} = {vision[option]!r}, which is not supported"
            raise InputError("VD3015", message, file=checkpoint.path, fix="export the tower with --module")


def _image(vision: dict[str, Any], patches: int, patch: tuple[int, int], path: Path) -> tuple[int, int]:
    """Height and width in pixels that the position table is for."""
    size = vision.get("image_size")
    side = math.isqrt(max(patches, 0))
    rows, columns = (side, side)
    if isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
        rows, columns = size[0] // patch[0], size[1] // patch[1]
    if rows * columns != patches or patches < 1:
        message = f"has positions for {patches} patches, which are no square and not those of an image of {size or 'known size'}"
        raise InputError("VD3015", message, file=path, fix=f"put {CONFIG} beside it")
    return rows * patch[0], columns * patch[1]


def _contract(checkpoint: Checkpoint, config: dict[str, Any], size: tuple[int, int], channels: int) -> InputContract:
    """openai/CLIP, clip.py: Resize(n, bicubic), CenterCrop(n), convert("RGB"); open_clip's preprocess_cfg where there is one."""
    given = config.get("preprocess_cfg") or {}
    mode, filter_name = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    ways: dict[str, Any] = {"shortest": "shortest", "squash": "stretch"}
    if mode not in ways or filter_name not in ("bicubic", "bilinear"):
        message = f"{CONFIG} prepares images with resize_mode {mode!r} and interpolation {filter_name!r}, which is not supported"
        raise InputError("VD3015", message, file=checkpoint.path, fix="give the input contract yourself")
    mean, std = (tuple(map(float, given.get(key, usual))) for key, usual in (("mean", MEAN), ("std", STD)))
    return InputContract(
        height=size[0],
        width=size[1],
        channels=channels,
        resize=ways[mode],
        interpolation=filter_name,
        mean=mean,
        std=std,
        alpha="drop",
    )


def _activation(checkpoint: Checkpoint, config: dict[str, Any], architecture: str | None) -> Mlp:
    if config:
        return "quick_gelu" if config.get("quick_gelu") else "gelu"
    said = (*checkpoint.names, *checkpoint.notes)
    if any(buffer in text for buffer in OPENAI_BUFFERS for text in said):
        return "quick_gelu"
    if architecture is None:
        raise InputError("VD3015", "does not say whether its MLP is GELU or QuickGELU", file=checkpoint.path, fix=_ASK)
    return "quick_gelu" if "quickgelu" in architecture.lower() or "/" in architecture else "gelu"


def _check_name(architecture: str | None, patch: int, path: Path) -> None:
    """Refuse a name that is no CLIP's, or that says another patch than the file has."""
    if architecture is None:
        return
    match = _NAME.match(architecture)
    if match is None:
        raise InputError("VD3015", f"{architecture!r} is no name of a CLIP image tower", file=path, fix=_ASK)
    if int(match["patch"]) != patch:
        message = f"has patches of {patch} pixels, {architecture!r} has {match['patch']}"
        raise InputError("VD3009", message, file=path, fix="check that name and file belong together")


def read_fields(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What open_clip's preprocess_cfg says."""
    given = _config(checkpoint).get("preprocess_cfg") or {}
    names = {"mean": "mean", "std": "std", "resize_mode": "resize", "interpolation": "interpolation"}
    return tuple(field for key, field in names.items() if key in given)


SOURCE = Source("CLIP", recognise, spec, rules, grid, read_fields=read_fields)
