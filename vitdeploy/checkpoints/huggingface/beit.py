"""BEiT and data2vec: relative positions, LayerScale, no bias on keys, and the mean of the patches normalised at the end."""

from __future__ import annotations

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.huggingface.family import (
    CLASSIFIER,
    EMBEDDINGS,
    MASK,
    SEPARATE_BIASES,
    SIZES,
    VIT_BLOCK,
    VIT_STEMS,
    Family,
    Options,
    Pairs,
    leave_out,
    rename,
)
from vitdeploy.spec import FinalNorm, ModelSpec, SpecFields

_TABLE = "relative_position_bias.relative_position_bias_table"
_OURS = "rel_pos_bias.relative_position_bias_table"
_BLOCK: Pairs = (
    *SEPARATE_BIASES,
    *VIT_BLOCK,
    ("lambda_1", "ls1.gamma"),
    ("lambda_2", "ls2.gamma"),
    (f"attention.attention.{_TABLE}", f"attn.{_OURS}"),
    (_TABLE, f"attn.{_OURS}"),
)
_INDEX = "relative_position_bias.relative_position_index"
_LM_HEAD = leave_out("predicts visual tokens in pre-training; features come from the encoder", "lm_head.{kind}")
_DEFAULTS = {
    **SIZES,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.1,
}


def _spec(options: Options) -> SpecFields:
    blocks, shared = (options.flag(f"use_{kind}relative_position_bias") for kind in ("", "shared_"))
    if blocks and shared:
        raise options.refuse("use_shared_relative_position_bias", "does not go with use_relative_position_bias")
    final: FinalNorm = "pooled" if options.has("pooler.layernorm.weight") else "none"
    scale = options.number("layer_scale_init_value")
    return {
        "mlp": options.activation(),
        "qkv_bias": "qv",
        "layer_scale": scale if scale > 0 else None,
        "position": "learned" if options.flag("use_absolute_position_embeddings") else "none",
        "relative_positions": "blocks" if blocks else "shared" if shared else "none",
        "pool": "mean" if options.flag("use_mean_pooling") else "cls",
        "final_norm": "tokens" if options.has("layernorm.weight") else final,
        **options.head(),
    }


def _rules(_: Options, __: ModelSpec) -> tuple[Rule, ...]:
    return (
        Rule("pooler.layernorm.{kind}", "fc_norm.{kind}"),
        Rule(f"encoder.{_TABLE}", _OURS),
        Rule("shared_position_bias.relative_position_bias_table", _OURS),
        *leave_out(
            "which row of the table belongs to which two patches, which is computed",
            f"encoder.layer.{{i}}.attention.attention.{_INDEX}",
            f"encoder.{_INDEX}",
        ),
        *rename(("", ""), pairs=EMBEDDINGS),
        *rename(*VIT_STEMS, pairs=_BLOCK),
        *MASK,
        *_LM_HEAD,
        *CLASSIFIER,
    )


BEIT = Family(
    types=("beit",),
    architectures=("BeitModel", "BeitForImageClassification", "BeitForMaskedImageModeling"),
    source="Bao et al. 2022, BEiT: BERT Pre-Training of Image Transformers, arXiv:2106.08254",
    prefixes=("", "beit."),
    processor="Beit",
    defaults=_DEFAULTS,
    spec=_spec,
    rules=_rules,
)

DATA2VEC = Family(
    types=("data2vec-vision",),
    architectures=("Data2VecVisionModel", "Data2VecVisionForImageClassification"),
    source="Baevski et al. 2022, data2vec, arXiv:2202.03555",
    prefixes=("", "data2vec_vision."),
    processor="Beit",
    defaults=_DEFAULTS,
    spec=_spec,
    rules=_rules,
)

FAMILIES = (BEIT, DATA2VEC)
