"""DINOv2, without and with registers, and DINOv3's ViTs."""

from __future__ import annotations

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.huggingface.family import (
    ATTENTION,
    CLASSIFIER,
    EMBEDDINGS,
    MASK,
    SEPARATE_BIASES,
    SIZES,
    Family,
    Options,
    Pairs,
    leave_out,
    rename,
)
from vitdeploy.spec import ModelSpec, QkvBias, SpecFields

_BLOCK: Pairs = (
    *ATTENTION,
    ("mlp.fc1.{kind}", "mlp.fc1.{kind}"),
    ("mlp.fc2.{kind}", "mlp.fc2.{kind}"),
    ("mlp.weights_in.{kind}", "mlp.fc1.{kind}"),  # gate, then value
    ("mlp.weights_out.{kind}", "mlp.fc2.{kind}"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("norm1.{kind}", "norm1.{kind}"),
    ("norm2.{kind}", "norm2.{kind}"),
)
_GATED: Pairs = (
    ("mlp.gate_proj.{kind}", "mlp.fc1_g.{kind}"),
    ("mlp.up_proj.{kind}", "mlp.fc1_x.{kind}"),
    ("mlp.down_proj.{kind}", "mlp.fc2.{kind}"),
)
_PLAIN: Pairs = (("mlp.up_proj.{kind}", "mlp.fc1.{kind}"), ("mlp.down_proj.{kind}", "mlp.fc2.{kind}"))
_NO_REGISTERS = leave_out("holds no register", "embeddings.register_tokens")
_DINOV2: dict[str, object] = {
    **SIZES,
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "num_register_tokens": 0,
}


def _dinov2_spec(options: Options) -> SpecFields:
    hidden = int(options.integer("hidden_size") * options.number("mlp_ratio"))
    gated = options.flag("use_swiglu_ffn")
    head = options.head()
    return {
        "mlp": "swiglu" if gated else options.activation(),
        "mlp_width": (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        "layer_scale": options.number("layerscale_value"),
        "registers": options.integer("num_register_tokens"),
        "pool": "cls" if head["head"] == "none" else "cls+mean",
        **head,
    }


def _dinov2_rules(_: Options, spec: ModelSpec) -> tuple[Rule, ...]:
    return (
        *((Rule("embeddings.register_tokens", "reg_token"),) if spec.registers else _NO_REGISTERS),
        *rename(("", ""), pairs=EMBEDDINGS),
        *rename(("encoder.layer.{i}.", "blocks.{i}."), ("layers.{i}.", "blocks.{i}."), pairs=(*_BLOCK, *_GATED)),
        *MASK,
        *CLASSIFIER,
    )


DINOV2 = Family(
    types=("dinov2",),
    architectures=("Dinov2Model", "Dinov2ForImageClassification"),
    source="Oquab et al. 2023, DINOv2, arXiv:2304.07193",
    prefixes=("", "dinov2."),
    processor="Bit",
    defaults=_DINOV2,
    spec=_dinov2_spec,
    rules=_dinov2_rules,
)


def _registers_spec(options: Options) -> SpecFields:
    return {**_dinov2_spec(options), "position_resample": "bicubic-antialias"}


DINOV2_REGISTERS = Family(
    types=("dinov2_with_registers",),
    architectures=("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
    source="Darcet et al. 2024, Vision Transformers Need Registers, arXiv:2309.16588",
    prefixes=("", "dinov2_with_registers."),
    processor="Bit",
    defaults={**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
    spec=_registers_spec,
    rules=_dinov2_rules,
)

_BIASES: dict[tuple[bool, ...], QkvBias] = {(True, True, True): "qkv", (True, False, True): "qv", (False, False, False): "none"}


def _dinov3_spec(options: Options) -> SpecFields:
    options.need("rope_theta", 100)  # the rate of the rotation, see positions.rotary
    options.need("proj_bias", True)
    options.need("mlp_bias", True)
    query, key, value = (options.flag(f"{part}_bias") for part in ("query", "key", "value"))
    if (query, key, value) not in _BIASES:
        raise options.refuse("value_bias" if query else "query_bias", "does not go with the other projections' biases")
    gated = options.flag("use_gated_mlp")
    if gated:
        options.need("hidden_act", "silu", "swish")
    return {
        "mlp": "swiglu" if gated else options.activation(),
        "layer_scale": options.number("layerscale_value"),
        "registers": options.integer("num_register_tokens"),
        "position": "none",
        "rotary": "dinov3",
        "qkv_bias": _BIASES[query, key, value],
        "head": "none",
        "classes": 0,
    }


def _dinov3_rules(_: Options, spec: ModelSpec) -> tuple[Rule, ...]:
    biases = SEPARATE_BIASES if spec.qkv_bias == "qv" else ()
    pairs = (*biases, *_BLOCK, *(_GATED if spec.mlp == "swiglu" else _PLAIN))
    return (
        *((Rule("embeddings.register_tokens", "reg_token"),) if spec.registers else _NO_REGISTERS),
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.patch_embeddings.{kind}", "patch_embed.proj.{kind}"),
        Rule("norm.{kind}", "norm.{kind}"),
        *rename(("layer.{i}.", "blocks.{i}."), ("model.layer.{i}.", "blocks.{i}."), pairs=pairs),
        *leave_out("the rates of the rotation, which are computed", "rope_embeddings.{any}", "model.rope_embeddings.{any}"),
        *MASK,
    )


DINOV3 = Family(
    types=("dinov3_vit",),
    architectures=("DINOv3ViTModel",),
    source="Siméoni et al. 2025, DINOv3, arXiv:2508.10104",
    prefixes=("",),
    processor="DINOv3ViT",
    defaults={
        **SIZES,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 6,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "layerscale_value": 1.0,
        "use_gated_mlp": False,
        "num_register_tokens": 0,
    },
    spec=_dinov3_spec,
    rules=_dinov3_rules,
)

FAMILIES = (DINOV2, DINOV2_REGISTERS, DINOV3)
