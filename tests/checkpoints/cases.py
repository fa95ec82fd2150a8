"""Small models that together use every option of `ModelSpec`; the tests of network, export and backends share them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.spec import InputContract, ModelSpec

SMALL: dict[str, Any] = {"patch": (8, 8), "width": 32, "depth": 2, "heads": 4, "mlp_width": 48, "classes": 5}
FEATURES = {"head": "none", "classes": 0}


def contract(height: int = 32, width: int = 32, channels: int = 3) -> InputContract:
    """An input of the given size, scaled to [-1, 1]."""
    half = (0.5,) * channels
    return InputContract(height=height, width=width, channels=channels, mean=half, std=half)


def spec(name: str = "case", **changes: Any) -> ModelSpec:
    """A small model: 32 x 32 pixels, 16 patches of 8 x 8, width 32, 2 blocks."""
    return ModelSpec(**{"name": name, "input": contract(), **SMALL, **changes})


_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patch-linear": {"embed": "linear"},
    "patch-linear-rectangular": {"embed": "linear", "input": contract(24, 40), "patch": (6, 10)},
    "patch-no-bias": {"patch_bias": False},
    "channels-1": {"input": contract(channels=1)},
    "channels-5": {"input": contract(channels=5)},
    "rectangular-image": {"input": contract(24, 40)},
    "rectangular-patch": {"patch": (4, 16)},
    "one-patch": {"patch": (32, 32)},
    "tokens-none": {"class_token": False, "pool": "mean"},
    "tokens-distilled": {"distillation_token": True, "head": "distilled"},
    "tokens-registers": {"registers": 3},
    "tokens-registers-only": {"registers": 3, "class_token": False, "pool": "mean"},
    "tokens-all": {"distillation_token": True, "registers": 2},
    "position-patches-only": {"position_prefix": False},
    "position-patches-only-registers": {"position_prefix": False, "registers": 4},
    "position-registers": {"position_registers": True, "registers": 2},
    "position-sinusoidal": {"position": "sinusoidal"},
    "position-sinusoidal-patches-only": {"position": "sinusoidal", "position_prefix": False, "registers": 1},
    "position-sincos2d": {"position": "sincos2d", "input": contract(24, 40)},
    "position-sincos2d-mean": {"position": "sincos2d", "class_token": False, "pool": "mean"},
    "position-conditional": {"position": "conditional", "input": contract(24, 40), "registers": 1},
    "position-none": {"position": "none"},
    "relative-blocks": {"relative_positions": "blocks", "input": contract(24, 40)},
    "relative-shared": {"relative_positions": "shared", "registers": 2},
    "rotary-eva02": {"rotary": "eva02", "rotary_grid": (4, 4), "input": contract(24, 40)},
    "rotary-dinov3": {"rotary": "dinov3", "position": "none", "registers": 4, "input": contract(24, 40)},
    "rotary-eva02-qk-norm": {"rotary": "eva02", "rotary_grid": (2, 2), "qk_norm": True, "qkv_bias": "qv"},
    "rotary-dinov3-qk-norm": {"rotary": "dinov3", "qk_norm": True, "qkv_bias": "none"},
    "qkv-bias-qv": {"qkv_bias": "qv"},
    "qkv-bias-none": {"qkv_bias": "none"},
    "qk-norm": {"qk_norm": True},
    "attn-norm": {"attn_norm": True, "head_width": 12},
    "heads-inner-wider": {"head_width": 12},
    "heads-inner-narrower": {"heads": 3, "head_width": 8},
    "heads-full-width": {"heads": 2, "head_width": 32},
    "heads-one": {"heads": 1},
    "scale": {"scale": 1.0},
    "mlp-gelu-tanh": {"mlp": "gelu_tanh"},
    "mlp-quick-gelu": {"mlp": "quick_gelu"},
    "mlp-relu": {"mlp": "relu", "mlp_width": None},
    "mlp-swiglu": {"mlp": "swiglu"},
    "mlp-swiglu-norm": {"mlp": "swiglu", "mlp_norm": True},
    "mlp-linear": {"mlp": "linear", "mlp_width": None},
    "mlp-norm": {"mlp_norm": True},
    "layer-scale": {"layer_scale": 0.3},
    "pre-norm": {"pre_norm": True, "norm_eps": 1e-5},
    "norm-pooled": {"final_norm": "pooled"},
    "norm-none": {"final_norm": "none"},
    "norm-pooled-distilled": {"final_norm": "pooled", "distillation_token": True, "head": "distilled"},
    "pool-mean": {"pool": "mean"},
    "pool-max": {"pool": "max"},
    "pool-cls-mean": {"pool": "cls+mean", "final_norm": "pooled"},
    "pool-map": {"pool": "map"},
    "pool-map-swiglu": {"pool": "map", "mlp": "swiglu", "class_token": False},
    "head-none": FEATURES,
    "head-none-cls-mean": {**FEATURES, "pool": "cls+mean"},
    "head-mlp": {"head": "mlp"},
    "head-mlp-narrow": {"head": "mlp", "head_mlp_width": 7, "pool": "cls+mean"},
    "head-no-bias": {"head_bias": False},
    "head-projection": {"head": "projection"},
    "head-one-class": {"classes": 1},
    "depth-1": {"depth": 1},
    "like-deit-distilled": {"distillation_token": True, "head": "distilled", "width": 48, "heads": 3},
    "like-dinov2": {**FEATURES, "layer_scale": 0.1, "registers": 4, "position_prefix": False, "mlp": "swiglu"},
    "like-dinov3": {
        **FEATURES,
        "layer_scale": 0.1,
        "registers": 4,
        "position": "none",
        "rotary": "dinov3",
        "qkv_bias": "qv",
    },
    "like-clip": {
        "pre_norm": True,
        "patch_bias": False,
        "mlp": "quick_gelu",
        "head": "projection",
        "head_bias": False,
        "norm_eps": 1e-5,
    },
    "like-siglip": {**FEATURES, "class_token": False, "pool": "map", "mlp": "gelu_tanh"},
    "like-beit": {
        "relative_positions": "blocks",
        "position": "none",
        "qkv_bias": "qv",
        "layer_scale": 0.1,
        "pool": "mean",
        "final_norm": "pooled",
    },
    "like-eva02": {
        "rotary": "eva02",
        "rotary_grid": (2, 2),
        "mlp": "swiglu",
        "mlp_norm": True,
        "qkv_bias": "qv",
        "pool": "mean",
        "final_norm": "pooled",
    },
}

CASES: dict[str, ModelSpec] = {name: spec(name, **options) for name, options in _OPTIONS.items()}
"""Every case by its name; all build in milliseconds."""


def pixels(model: ModelSpec, batch: int = 3, seed: int = 1) -> Tensor:
    """Seeded normal noise in the shape of the model's input, float32 [batch, C, H, W]."""
    shape = (batch, model.input.channels, model.input.height, model.input.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(model: ModelSpec, seed: int = 0) -> VisionTransformer:
    """A model whose every parameter is random, biases, norms and scales included, so that no part can hide."""
    built, generator = build(model, seed=seed), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return built
