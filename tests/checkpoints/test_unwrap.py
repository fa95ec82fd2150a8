"""Which dictionary of a training checkpoint counts, and which prefixes go: on the names that real libraries make."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.torchvision_shim import declare
from vitdeploy.checkpoints.unwrap import Name, choose, strip
from vitdeploy.errors import InputError, UsageError, VitdeployError

declare()

HUGGING_FACE = {
    "ViTForImageClassification": "ViTConfig",
    "ViTModel": "ViTConfig",
    "ViTMAEForPreTraining": "ViTMAEConfig",
    "DeiTForImageClassificationWithTeacher": "DeiTConfig",
    "BeitForImageClassification": "BeitConfig",
    "Dinov2Model": "Dinov2Config",
    "Dinov2ForImageClassification": "Dinov2Config",
    "Dinov2WithRegistersModel": "Dinov2WithRegistersConfig",
    "DINOv3ViTModel": "DINOv3ViTConfig",
    "CLIPModel": "CLIPConfig",
    "CLIPVisionModel": "CLIPVisionConfig",
    "CLIPVisionModelWithProjection": "CLIPVisionConfig",
    "SiglipForImageClassification": "SiglipConfig",
    "IJepaModel": "IJepaConfig",
}
TIMM = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_clip_224",
    "eva02_tiny_patch14_224",
    "beitv2_base_patch16_224",
    "vit_small_patch16_dinov3",
    "flexivit_small",
    "naflexvit_base_patch16_gap",
)
OLDER = (  # transformers before version 5 named ViT's layers like this, and so do most files on the hub
    *("vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"),
    *("vit.encoder.layer.0.attention.attention.query.weight", "vit.layernorm.weight", "classifier.weight"),
)
OPENAI = ("visual.class_embedding", "visual.conv1.weight", "visual.proj", "visual.transformer.resblocks.0.ln_1.weight")
OPEN_CLIP = (*OPENAI, "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight")
MMPRETRAIN = ("cls_token", "patch_embed.projection.weight", "layers.0.ln1.weight", "ln1.weight")
JAX = ("Transformer/encoderblock_0/LayerNorm_0/scale", "embedding/kernel", "head/kernel", "cls")


@cache
def names(library: str, name: str) -> tuple[str, ...]:
    """Names of all tensors, from a real model without its numbers."""
    with torch.device("meta"):
        if library == "timm":
            import timm

            model = timm.create_model(name)
        elif library == "torchvision":
            import torchvision

            model = getattr(torchvision.models, name)()
        else:
            import transformers

            model = getattr(transformers, name)(getattr(transformers, HUGGING_FACE[name])())
    return tuple(model.state_dict())


REAL = [
    *(("timm", name) for name in TIMM),
    *(("torchvision", name) for name in ("vit_b_16", "vit_h_14")),
    *(("transformers", name) for name in HUGGING_FACE),
]
WRITTEN = {"older": OLDER, "openai": OPENAI, "open_clip": OPEN_CLIP, "mmpretrain": MMPRETRAIN, "jax": JAX}


def keys(library: str, name: str) -> tuple[str, ...]:
    return WRITTEN[name] if library == "written" else names(library, name)


ALL = [*REAL, *(("written", name) for name in WRITTEN)]


@pytest.mark.parametrize(("library", "name"), ALL)
def test_real_networks_stay_as_they_are(library: str, name: str) -> None:
    original = keys(library, name)
    assert strip(original) == (dict(zip(original, original, strict=True)), (), "")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize(("library", "name"), ALL[::3])
def test_wrappers_of_torch_go_from_any_network(library: str, name: str, wrapper: str) -> None:
    original = keys(library, name)
    stripped = strip([wrapper + key for key in original])
    assert tuple(stripped.names.values()) == original
    assert all(note.startswith("stripped '") for note in stripped.notes)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("wrapper", ["model.", "net.", "1.", "encoder.", "base_model.model.", "module.timm_model.backbone."])
@pytest.mark.parametrize(("library", "name"), [pair for pair in ALL if pair[1] != "jax"])
def test_members_go_from_networks_that_are_known(library: str, name: str, wrapper: str) -> None:
    original = keys(library, name)
    stripped = strip([wrapper + key for key in original])
    assert tuple(stripped.names.values()) == original
    assert stripped.notes[-1] == (
        f"stripped {wrapper.removeprefix('module.')!r}, under which the network stands, "
        f"from {len(original)} of {len(original)} names"
    )
    assert len(stripped.notes) == 1 + wrapper.startswith("module.")


def test_heads_may_stand_beside_a_backbone() -> None:
    backbone = [f"backbone.{name}" for name in names("timm", "vit_tiny_patch16_224") if not name.startswith("head.")]
    heads = ["head.mlp.0.weight", "head.last_layer.weight_g", "dino_head.mlp.0.weight", "ibot_head.x", "prototypes.weight"]
    stripped = strip(backbone + heads)
    assert stripped.names["backbone.patch_embed.proj.weight"] == "patch_embed.proj.weight"
    assert all(stripped.names[name] == name for name in heads)
    assert stripped.notes == (
        "stripped 'backbone.', under which the network stands, from 150 of 155 names; "
        "dino_head, head, ibot_head, prototypes stood beside it",
    )


@pytest.mark.parametrize(
    "original",
    [
        ("encoder.layer.0.norm.weight", "encoder.layer.1.norm.weight"),  # afterwards nothing is a patch embedding
        ("model.layer.0.norm1.weight", "embeddings.patch_embeddings.weight"),  # not every name has it
        ("net.patch_embed.proj.weight", "net.stages.0.weight"),  # a patch embedding, and no block
        ("net.blocks.0.norm1.weight",),  # a block, and no patch embedding
        ("module.head.weight", "head.weight"),
        ("modules.a", "modules.b"),
        ("visual.patch_embed.proj.weight",),
        ("model.encoder", "model.decoder"),
        (),
    ],
)
def test_what_is_not_stripped(original: tuple[str, ...]) -> None:
    assert strip(original) == ({name: name for name in original}, (), "")


def test_compiled_blocks_inside_and_the_count_of_an_average() -> None:
    stripped = strip(["n_averaged", "module.patch_embed.proj.weight", "module.blocks.0._orig_mod.norm1.weight"])
    assert list(stripped.names.values()) == ["patch_embed.proj.weight", "blocks.0.norm1.weight"]
    assert stripped.notes == (
        "left out 'n_averaged', the count of an averaged model",
        "stripped '_orig_mod.' (torch.compile) from 1 of 2 names",
        "stripped 'module.' (DataParallel or an averaged model) from 2 of 2 names",
    )


def under(*prefixes: str, tensors: tuple[str, ...] = ("a.weight", "b.weight")) -> list[Name]:
    return [(*prefix.split("/"), tensor) for prefix in prefixes for tensor in tensors]


@pytest.mark.parametrize(
    ("found", "prefix"),
    [
        ([("a.weight",), ("b.weight",)], ()),
        ([("model",), ("teacher",)], ()),  # tensors by these names, not dictionaries
        (under("model"), ("model",)),
        (under("state_dict"), ("state_dict",)),
        (under("model_state_dict") + under("optimizer/state/0"), ("model_state_dict",)),
        (under("module", "epoch/x"), ("module",)),
        (under("net", "scheduler"), ("net",)),
        (under("model/state_dict"), ("model", "state_dict")),
        (under("state_dict/model/net"), ("state_dict", "model", "net")),
        ([*under("model"), ("epoch",), ("scaler", "x")], ("model",)),
        (under("whatever", "optimizer"), ("whatever",)),
        ([*under("student", "teacher"), ("dino_loss", "center")], ("teacher",)),
        (under("student") + under("teacher", tensors=("x", "y")), ("teacher",)),
        (under("model", "model_ema"), ("model_ema",)),
        (under("state_dict", "state_dict_ema"), ("state_dict_ema",)),
        (under("model") + under("ema", tensors=("module.a.weight", "module.b.weight")), ("ema",)),
        (under("model") + under("ema/module"), ("ema", "module")),
        (under("model") + under("ema", tensors=("a.weight",)), ("model",)),
        (under("ema", "optimizer"), ("ema",)),
    ],
)
def test_choice(found: list[Name], prefix: Name) -> None:
    assert choose(found).prefix == prefix


def test_choice_is_told_and_can_be_turned() -> None:
    both = under("model", "model_ema")
    assert choose(both).notes == ("took the averaged weights 'model_ema', not 'model'; prefer='plain' takes those",)
    assert choose(both, "plain") == (("model",), ("took 'model'; prefer='ema' takes the averaged weights 'model_ema'",))
    assert choose(under("student", "teacher"), "plain").prefix == ("student",)
    other = under("model") + under("ema", tensors=("a.weight",))
    assert choose(other).notes == (
        "took 'model', whose names differ from those of 'ema'; prefer='ema' takes the averaged weights 'ema'",
    )
    assert choose(other, "ema").prefix == ("ema",)
    assert choose(under("whatever")).notes == ("took the tensors under 'whatever', the only ones",)
    assert choose(under("model"), "plain").prefix == ("model",)


@pytest.mark.parametrize(
    ("found", "prefer", "kind", "code", "says"),
    [
        ([], None, InputError, "VD3021", "holds no weights; save them with torch.save"),
        (under("optimizer/state"), None, InputError, "VD3021", "holds no weights"),
        (
            under("generator", "discriminator"),
            None,
            InputError,
            "VD3021",
            "holds 2 dictionaries of tensors ('discriminator', 'generator'), none with a name that is known; save the one that "
            "counts: torch.save(checkpoint['discriminator'], \"weights.pth\")",
        ),
        (under("model"), "ema", UsageError, "VD2010", "holds no averaged weights beside the others"),
        (under("ema"), "plain", UsageError, "VD2010", "holds no plain weights beside the others"),
        (under("model"), "best", UsageError, "VD2003", "prefer is 'best'; use 'ema' or 'plain'"),
    ],
)
def test_refusals(found: list[Name], prefer: str | None, kind: type[VitdeployError], code: str, says: str) -> None:
    with pytest.raises(kind) as caught:
        choose(found, prefer)
    assert caught.value.code == code
    assert says in str(caught.value)
