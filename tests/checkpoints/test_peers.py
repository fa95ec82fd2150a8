"""The same function as timm and transformers, on random weights: every convention that a checkpoint relies on.

Rotation of EVA-02 and DINOv3, order of gate and value in SwiGLU, attention pooling, where norms and tokens stand: each
would load without complaint if it were wrong, and give other numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.cases import contract, pixels, spec
from tests.torchvision_shim import declare
from vitdeploy.models import positions
from vitdeploy.models.freeze import freeze
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.spec import ModelSpec
from vitdeploy.zoo.variants import find

State = dict[str, Tensor]


def peer(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own deprecations
        return importlib.import_module(name)


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def same(model: ModelSpec, state: State, run: Any, share: float = 1e-5) -> None:
    """Ours with ``state``, as it is and frozen, computes what ``run`` does, within ``share`` of its standard deviation."""
    ours = VisionTransformer(model).eval()
    ours.load_state_dict(state)
    images = pixels(model, 2)
    with torch.no_grad():
        expected = run(images)
        for built in (ours, freeze(ours)):
            outputs = built(images)
            assert outputs.shape == expected.shape
            assert (outputs - expected).abs().max() <= share * expected.std()


def packed(state: State, parts: list[str], whole: str) -> None:
    """Join the tensors ``parts`` of every block as ``whole``, in place; each name ends in its kind."""
    for block in sorted({match[0] for name in state if (match := re.match(r"blocks\.\d+\.", name))}):
        for kind in ("weight", "bias"):
            names = [f"{block}{part}.{kind}" for part in parts]
            if all(name in state for name in names):
                state[f"{block}{whole}.{kind}"] = torch.cat([state.pop(name) for name in names])


def shortened(name: str, side: int, depth: int = 2) -> ModelSpec:
    return msgspec.structs.replace(find(name).change_size(side, side), depth=depth)


TIMM: list[tuple[str, int, dict[str, Any]]] = [
    # name, image side, arguments of timm's that its weights' configuration would set
    ("vit_tiny_patch16_224", 224, {}),
    ("vit_giant_patch14_224", 28, {}),
    ("deit_tiny_distilled_patch16_224", 224, {}),
    ("vit_small_patch14_dinov2", 98, {}),
    ("vit_small_patch14_reg4_dinov2", 98, {}),
    ("vit_giant_patch14_dinov2", 42, {}),
    ("vit_base_patch32_clip_quickgelu_224", 224, {}),
    ("vit_base_patch16_siglip_224", 64, {"act_layer": "gelu_tanh"}),
    ("eva02_tiny_patch14_336", 336, {}),
    ("eva02_tiny_patch14_224", 112, {}),
    ("eva02_base_patch14_448", 112, {}),
    ("vit_small_patch16_dinov3", 256, {"global_pool": "token"}),
    ("vit_small_patch16_dinov3_qkvb", 96, {"global_pool": "token"}),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "side", "arguments"), TIMM, ids=[f"{name}-{side}" for name, side, _ in TIMM])
def test_equals_timm(name: str, side: int, arguments: dict[str, Any]) -> None:
    timm = peer("timm")
    model = shortened(name, side, depth=1 if find(name).width > 768 else 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = timm.create_model(name, img_size=side, depth=model.depth, num_classes=model.classes, **arguments).eval()
    shake(theirs)
    if not model.head_bias:  # timm has one and leaves it at zero
        nn.init.zeros_(theirs.head.bias)
    state = dict(theirs.state_dict())
    if not model.head_bias:
        del state["head.bias"]
    for old in [key for key in state if key.endswith(("attn.q_proj.bias", "attn.v_proj.bias", "gamma_1", "gamma_2"))]:
        new = re.sub(r"\.([qv])_proj\.bias$", r".\1_bias", re.sub(r"gamma_([12])$", r"ls\1.gamma", old))
        state[new] = state.pop(old)
    packed(state, ["attn.q_proj", "attn.k_proj", "attn.v_proj"], "attn.qkv")
    packed(state, ["mlp.fc1_g", "mlp.fc1_x"], "mlp.fc1")
    same(model, state, theirs)


@pytest.mark.parametrize("side", [224, 96])
def test_dinov3_equals_transformers(side: int) -> None:
    transformers = peer("transformers")
    config = transformers.DINOv3ViTConfig(num_hidden_layers=2, num_register_tokens=4, image_size=224)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = transformers.DINOv3ViTModel(config).eval()
    shake(theirs)
    renames = {
        r"^embeddings\.cls_token": "cls_token",
        r"^embeddings\.register_tokens": "reg_token",
        r"^embeddings\.patch_embeddings": "patch_embed.proj",
        r"^model\.layer": "blocks",
        r"attention\.([qv])_proj\.bias": r"attn.\1_bias",
        r"attention\.([qkv])_proj": r"attn.\1",
        r"attention\.o_proj": "attn.proj",
        r"layer_scale([12])\.lambda1": r"ls\1.gamma",
        r"mlp\.up_proj": "mlp.fc1",
        r"mlp\.down_proj": "mlp.fc2",
    }
    state = {}
    for name, value in theirs.state_dict().items():
        for pattern, new in renames.items():
            name = re.sub(pattern, new, name)
        state[name] = value
    del state["embeddings.mask_token"]
    packed(state, ["attn.q", "attn.k", "attn.v"], "attn.qkv")
    same(shortened("vit_small_patch16_dinov3_qkvb", side), state, lambda images: theirs(images).pooler_output)


@pytest.mark.parametrize("pixels_wanted", [(24, 40), (56, 56), (16, 16)])
def test_positions_are_resampled_as_timm_does(pixels_wanted: tuple[int, int]) -> None:
    layers = (peer("timm"), importlib.import_module("timm.layers"))[1]
    table = torch.randn(1, 17, 6, generator=torch.Generator().manual_seed(0))
    model = spec(input=contract(*pixels_wanted))
    expected = layers.resample_abs_pos_embed(table, model.grid, (4, 4), num_prefix_tokens=1)
    assert torch.allclose(positions.resample(table, (4, 4), model), expected, atol=1e-6)
