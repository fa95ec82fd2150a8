"""Meta's own files of DINO, DINOv2, DINOv3 and MAE, recognised by the few names in which they differ from timm's.

A file without any such name (DINO's and MAE's released encoders, DeiT) is the same in timm, and is read there by the
architecture's name. Shapes tell the network; what they can't (epsilon, rotation, preparation) is the family's.

Source:
    facebookresearch/dino, dinov2 (hub/backbones.py), dinov3 (hub/backbones.py) and mae (models_mae.py).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import torch

from vitdeploy.checkpoints import shapes
from vitdeploy.checkpoints.conversion import Rule, State, convert, has_matches
from vitdeploy.checkpoints.source import Checkpoint, Source
from vitdeploy.checkpoints.timm import KEPT
from vitdeploy.checkpoints.timm_names import SATELLITE
from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract, ModelSpec, Pool, Resample, SpecFields
from vitdeploy.zoo.variants import VARIANTS


class Family(NamedTuple):
    """One of Meta's code bases.

    Attributes:
        name: As its checkpoints are called.
        signs: Patterns of names; each alone is enough.
        input: Amendments of its evaluation, at any size.
        source: The paper.
        facts: Fields of `ModelSpec` that shapes can't tell.
    """

    name: str
    signs: tuple[str, ...]
    input: InputContract
    source: str
    facts: SpecFields


def _family(name: str, signs: tuple[str, ...], like: str, resample: Resample = "bicubic-antialias") -> Family:
    known = VARIANTS[like].spec
    facts: SpecFields = {"norm_eps": known.norm_eps, "rotary": known.rotary, "position_resample": resample}
    return Family(name, signs, known.input, known.source, facts)


FAMILIES: tuple[Family, ...] = (
    _family(
        "dinov3",
        ("storage_tokens", "rope_embed.periods", "blocks.{i}.attn.qkv.bias_mask"),
        "vit_small_patch16_dinov3_qkvb",
    ),
    _family(  # dinov2/hub/backbones.py: with registers interpolate_antialias is on
        "dinov2_reg", ("register_tokens",), "vit_small_patch14_reg4_dinov2", resample="bicubic-antialias"
    ),
    _family(
        "dinov2",
        ("blocks.{j}.{i}.ls1.gamma", "dino_head.{any}", "ibot_head.{any}", "linear_head.weight"),
        "vit_small_patch14_dinov2",
        resample="bicubic-offset",
    ),
    _family("mae", ("decoder_embed.weight", "decoder_pos_embed"), "vit_small_patch8_224", resample="bicubic"),
    _family("dino", ("head.last_layer.{any}",), "vit_small_patch8_224", resample="bicubic-offset"),
)
"""The first family with a sign decides."""

_MAE = "He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377"
_LETTERS = {192: "t", 384: "s", 768: "b", 1024: "l", 1280: "h", 1408: "g", 1536: "g"}

_PRETRAINING = "a head for pre-training only"
_DECODER = "the decoder is for pre-training only"
_RENAMED = (
    *(rule for rule in KEPT if rule.theirs.startswith("blocks.")),
    Rule("blocks.{i}.mlp.w12.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule("blocks.{i}.mlp.w1.{kind}", "blocks.{i}.mlp.fc1_g.{kind}"),
    Rule("blocks.{i}.mlp.w2.{kind}", "blocks.{i}.mlp.fc1_x.{kind}"),
    Rule("blocks.{i}.mlp.w3.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
)
RULES: tuple[Rule, ...] = (
    Rule("head.mlp.{any}", None, why=_PRETRAINING),
    Rule("head.last_layer.{any}", None, why=_PRETRAINING),
    Rule("dino_head.{any}", None, why=_PRETRAINING),
    Rule("ibot_head.{any}", None, why=_PRETRAINING),
    Rule("mask_token", None, why="it stands for patches that are hidden in pre-training"),
    Rule("local_cls_norm.{kind}", None, why="it normalises small crops, in pre-training only"),
    Rule("rope_embed.periods", None, why="the rotary table is computed from the image size"),
    Rule("decoder_{any}", None, why=_DECODER),
    Rule("register_tokens", "reg_token"),
    Rule("storage_tokens", "reg_token"),
    Rule("linear_head.{kind}", "head.{kind}"),
    *_RENAMED,
    *(rule._replace(theirs=rule.theirs.replace("blocks.", "blocks.{j}.", 1)) for rule in _RENAMED),
    *(rule for rule in KEPT if not rule.theirs.startswith("blocks.")),
)
"""Meta's names, our names."""

_MASKED = (
    Rule(
        "blocks.{i}.attn.qkv.bias",
        ("blocks.{i}.attn.q_bias", None, "blocks.{i}.attn.v_bias"),
        why="keys have no bias: the mask beside it is zero there",
        shares=(1, 1, 1),
    ),
    Rule("blocks.{i}.attn.qkv.bias_mask", None, why="it is zero for keys and one elsewhere"),
)


def recognise(checkpoint: Checkpoint) -> bool:
    """By names that neither timm nor transformers have."""
    return "model_type" not in checkpoint.config and _find(checkpoint) is not None


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """The encoder that these weights belong to, with a linear head where one is beside it.

    Args:
        checkpoint: The weights.
        architecture: A name for the model, optional.

    Raises:
        InputError: VD3009 or VD3015, it is no network of the family's that vitdeploy can be.
    """
    family = _find(checkpoint)
    assert family is not None  # recognised
    state = convert(checkpoint.state, _rules(checkpoint)).state
    read = shapes.fields(state, checkpoint.path)
    heads = _heads(checkpoint, read["width"])
    if family.facts["rotary"] == "none":
        grid, placed = shapes.places(state, read, None, checkpoint.path)
        height, width = (count * patch for count, patch in zip(grid, read["patch"], strict=True))
    else:
        height, width, placed = family.input.height, family.input.width, {}
    letter = _LETTERS.get(read["width"], f"_width{read['width']}_")
    name = architecture or f"{family.name}_vit{letter}{read['patch'][0]}"
    fields: SpecFields = {
        "name": name,
        "source": _MAE if family.name == "mae" else family.source,
        "input": _contract(checkpoint, family, name).change_size(height, width),
        "heads": heads,
        **read,
        **placed,
        **family.facts,
        "pool": _pool(state, read, checkpoint),
    }
    return ModelSpec(**fields)


def rules(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table."""
    return _rules(checkpoint)


def _find(checkpoint: Checkpoint) -> Family | None:
    names = checkpoint.names
    if not has_matches(names, "patch_embed.proj.weight"):
        return None
    for family in FAMILIES:
        if any(has_matches(names, sign) for sign in family.signs):
            return family
    # BEiT and EVA hide patches too, but without LayerScale as DINOv2 names it
    hidden = has_matches(names, "mask_token", "blocks.{i}.ls1.gamma", "blocks.{i}.attn.qkv.bias")
    return next(family for family in FAMILIES if family.name == "dinov2") if hidden else None


def _rules(checkpoint: Checkpoint) -> tuple[Rule, ...]:
    masked = has_matches(checkpoint.names, "blocks.{i}.attn.qkv.bias_mask")
    return (*_MASKED, *RULES) if masked else RULES


def _heads(checkpoint: Checkpoint, width: int) -> int:
    """Heads of 64, unless DINOv3's periods, four values of a head each, say otherwise."""
    periods = checkpoint.state.get("rope_embed.periods")
    if periods is None:
        return max(1, width // 64)
    quarter = max(1, periods.numel())
    expected = 100.0 ** (torch.arange(quarter) / quarter)
    told = periods.shape == expected.shape and (periods.is_meta or torch.allclose(periods, expected, rtol=0.02))  # bfloat16
    if not told:
        message = "has rotary periods other than 100^(i / (d / 4)), those of DINOv3"
        raise InputError("VD3015", message, file=checkpoint.path)
    return width // (4 * quarter)


def _pool(state: State, read: SpecFields, checkpoint: Checkpoint) -> Pool:
    """DINOv2's linear head takes the class token and the patches' mean; its head on four blocks is another network."""
    if read["head"] == "none":
        return "cls"
    taken = state["head.weight"].shape[1]
    pools: dict[int, Pool] = {read["width"]: "cls", 2 * read["width"]: "cls+mean"}
    if taken not in pools:
        message = f"has a head on {taken} numbers: {taken / read['width']:g} times the width, of several blocks"
        fix = "use the linear head on the last block (layers=1)"
        raise InputError("VD3015", message, file=checkpoint.path, fix=fix)
    return pools[taken]


def _contract(checkpoint: Checkpoint, family: Family, name: str) -> InputContract:
    contract = family.input
    if "sat493m" in f"{checkpoint.path.name} {name}":  # satellite images; the file's name alone says it
        contract = msgspec.structs.replace(contract, mean=SATELLITE[0], std=SATELLITE[1])
    channels = checkpoint.state["patch_embed.proj.weight"].shape[1]
    if channels != 3:
        mean, std = (sum(values) / 3 for values in (contract.mean, contract.std))
        contract = msgspec.structs.replace(contract, channels=channels, mean=(mean,) * channels, std=(std,) * channels)
    return contract


SOURCE = Source("meta", recognise, spec, rules)
