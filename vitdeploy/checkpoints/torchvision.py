"""torchvision's five Vision Transformers: ``vit_b_16``, ``vit_b_32``, ``vit_l_16``, ``vit_l_32``, ``vit_h_14``.

Shapes tell all of the network but the heads, which follow from the width. How pixels were prepared follows from the image
size, which torchvision used for one set of weights each; only the SWAG weights at 224 pixels look like others and are told
apart by their name (``vit_b_16.swag``).

Source:
    torchvision 0.28, models/vision_transformer.py: network and the ``transforms`` of every weights enum.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import Tensor

from vitdeploy.checkpoints import shapes
from vitdeploy.checkpoints.conversion import Rule, convert, has_matches
from vitdeploy.checkpoints.source import ANY_MODULE, Checkpoint, Source
from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.spec import InputContract, ModelSpec, SpecFields

SOURCE_NAME = "torchvision, models/vision_transformer.py; Dosovitskiy et al. 2021, arXiv:2010.11929"

_BLOCK, _OURS = "encoder.layers.encoder_layer_{i}", "blocks.{i}"
RULES: tuple[Rule, ...] = (
    Rule("conv_proj.{kind}", "patch_embed.proj.{kind}"),
    Rule("class_token", "cls_token"),
    Rule("encoder.pos_embedding", "pos_embed"),
    Rule("encoder.ln.{kind}", "norm.{kind}"),
    Rule(f"{_BLOCK}.ln_1.{{kind}}", f"{_OURS}.norm1.{{kind}}"),
    Rule(f"{_BLOCK}.ln_2.{{kind}}", f"{_OURS}.norm2.{{kind}}"),
    Rule(f"{_BLOCK}.self_attention.in_proj_weight", f"{_OURS}.attn.qkv.weight"),
    Rule(f"{_BLOCK}.self_attention.in_proj_bias", f"{_OURS}.attn.qkv.bias"),
    Rule(f"{_BLOCK}.self_attention.out_proj.{{kind}}", f"{_OURS}.attn.proj.{{kind}}"),
    Rule(f"{_BLOCK}.mlp.linear_1.{{kind}}", f"{_OURS}.mlp.fc1.{{kind}}"),  # as torchvision 0.12 and the published files
    Rule(f"{_BLOCK}.mlp.linear_2.{{kind}}", f"{_OURS}.mlp.fc2.{{kind}}"),
    Rule(f"{_BLOCK}.mlp.0.{{kind}}", f"{_OURS}.mlp.fc1.{{kind}}"),
    Rule(f"{_BLOCK}.mlp.3.{{kind}}", f"{_OURS}.mlp.fc2.{{kind}}"),
)
"""torchvision's names, our names; the head follows in `rules`."""

_PLAIN = tuple(  # as torchvision names it, and as people replace it: one Linear, alone or in a Sequential
    Rule(name, "head.{kind}") for name in ("heads.head.{kind}", "heads.head.{i}.{kind}", "heads.{i}.{kind}", "heads.{kind}")
)
_HIDDEN = (Rule("heads.pre_logits.{kind}", "head.fc1.{kind}"), Rule("heads.head.{kind}", "head.fc2.{kind}"))

_MODELS = {  # width, patch: name, heads
    (768, 16): ("vit_b_16", 12),
    (768, 32): ("vit_b_32", 12),
    (1024, 16): ("vit_l_16", 16),
    (1024, 32): ("vit_l_32", 16),
    (1280, 14): ("vit_h_14", 16),
}
_SHORTER = {"vit_l_16": 242}  # pixels; all others 256


def recognise(checkpoint: Checkpoint) -> bool:
    """By names that only torchvision has."""
    return has_matches(checkpoint.names, "encoder.pos_embedding", "encoder.layers.encoder_layer_{i}.ln_1.weight")


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """What torchvision's constructor of that name builds.

    Args:
        checkpoint: The weights.
        architecture: One of the five names, optional; with ``.swag`` behind, the preparation of the SWAG weights.

    Raises:
        InputError: VD3009 or VD3015, no ViT of torchvision's has these shapes.
        UsageError: VD2001, no such architecture; VD2010, the weights are another's.
    """
    state = convert(checkpoint.state, (*RULES, *_head_rules(checkpoint))).state
    read = shapes.fields(state, checkpoint.path)
    if (known := _MODELS.get((read["width"], read["patch"][0]))) is None:
        names = ", ".join(name for name, _ in _MODELS.values())
        message = f"has width {read['width']} and patches of {read['patch'][0]}, as none of {names}; heads can't be told"
        raise InputError("VD3015", message, file=checkpoint.path, fix=ANY_MODULE)
    name, heads = known
    bare, _, tag = (architecture or name).lower().partition(".")
    if bare != name:
        _other(bare, name)
    grid, placed = shapes.places(state, read, None, checkpoint.path)
    side, channels = grid[0] * read["patch"][0], state["patch_embed.proj.weight"].shape[1]
    head: SpecFields = {"head": "mlp", **_hidden(state)} if "head.fc2.weight" in state else {}
    fields: SpecFields = {
        "name": name,
        "source": SOURCE_NAME,
        "input": _contract(name, side, channels, swag="swag" in tag),
        "heads": heads,
        "position_resample": "bicubic",
        **read,
        **placed,
        **head,
    }
    return ModelSpec(**fields)


def rules(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table, with the head that the checkpoint has."""
    return (*RULES, *_head_rules(checkpoint))


def _head_rules(checkpoint: Checkpoint) -> tuple[Rule, ...]:
    return _HIDDEN if "heads.pre_logits.weight" in checkpoint.state else _PLAIN


def _hidden(state: Mapping[str, Tensor]) -> SpecFields:
    classes, hidden = state["head.fc2.weight"].shape
    return {"classes": classes, "head_mlp_width": hidden}


def _other(given: str, name: str) -> None:
    names = [model for model, _ in _MODELS.values()]
    if given not in names:
        fix = nearest(given, names) or f"use one of {', '.join(names)}"
        raise UsageError("VD2001", f"no ViT of torchvision's is named {given!r}", fix=fix)
    raise UsageError("VD2010", f"the weights are those of {name!r}, not of {given!r}", fix=f"use {name}")


def _contract(name: str, side: int, channels: int, *, swag: bool) -> InputContract:
    """Transparency is dropped as by torchvision's ``pil_loader``.

    SWAG's end-to-end weights (384, 512, 518 pixels; all of H/14) resize bicubically and cut nothing more; the others crop.
    """
    contract = InputContract(height=side, width=side, resize_to=side, interpolation="bicubic", alpha="drop")
    if side == 224 and name != "vit_h_14" and not swag:
        contract = msgspec.structs.replace(contract, resize_to=_SHORTER.get(name, 256), interpolation="bilinear")
    if channels != 3:
        mean, std = (sum(values) / 3 for values in (contract.mean, contract.std))
        contract = msgspec.structs.replace(contract, channels=channels, mean=(mean,) * channels, std=(std,) * channels)
    return contract


SOURCE = Source("torchvision", recognise, spec, rules)
