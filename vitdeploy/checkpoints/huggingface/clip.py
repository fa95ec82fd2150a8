"""The image towers of CLIP and SigLIP, alone or beside their text towers."""

from __future__ import annotations

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.huggingface.family import CLASSIFIER, SIZES, Family, Options, Pairs, leave_out, rename
from vitdeploy.spec import ModelSpec, Pool, SpecFields

_BLOCK: Pairs = (
    ("self_attn.q_proj.{kind}", "attn.q.{kind}"),
    ("self_attn.k_proj.{kind}", "attn.k.{kind}"),
    ("self_attn.v_proj.{kind}", "attn.v.{kind}"),
    ("self_attn.out_proj.{kind}", "attn.proj.{kind}"),
    ("mlp.fc1.{kind}", "mlp.fc1.{kind}"),
    ("mlp.fc2.{kind}", "mlp.fc2.{kind}"),
    ("layer_norm1.{kind}", "norm1.{kind}"),
    ("layer_norm2.{kind}", "norm2.{kind}"),
)
_TOWER = (
    Rule("embeddings.class_embedding", "cls_token", "token"),
    Rule("embeddings.position_embedding.weight", "pos_embed", "token"),
    Rule("embeddings.patch_embedding.{kind}", "patch_embed.proj.{kind}"),
    *leave_out("counts the positions from 0", "embeddings.position_ids"),
    *rename(("encoder.layers.{i}.", "blocks.{i}."), pairs=_BLOCK),
)
_OTHER_TOWER = leave_out("the text tower: not part of the image tower", "text_model.{any}", "text_projection.{kind}")
_SIMILARITY = leave_out("scales the similarity of image and text; not part of the features", "logit_scale", "logit_bias")
_UNUSED_NORM = leave_out("this classifier takes the mean of tokens that are not normalised", "post_layernorm.{kind}")
_UNUSED_POOL = leave_out("pools for image-text matching; this classifier takes the mean of the tokens", "head.{any}")
_VISION = {**SIZES, "layer_norm_eps": 1e-5, "patch_size": 32, "hidden_act": "quick_gelu"}


def _clip_spec(options: Options) -> SpecFields:
    facts: SpecFields = {"mlp": options.activation(), "pre_norm": True, "patch_bias": False}
    if options.has("classifier.weight"):
        return {**facts, **options.head(), "pool": "mean", "final_norm": "none"}
    width = options.classes("visual_projection.weight")
    return {**facts, "head": "projection" if width else "none", "head_bias": False, "classes": width}


def _clip_rules(_: Options, spec: ModelSpec) -> tuple[Rule, ...]:
    return (
        Rule("pre_layrnorm.{kind}", "norm_pre.{kind}"),  # their spelling
        *(_UNUSED_NORM if spec.final_norm == "none" else (Rule("post_layernorm.{kind}", "norm.{kind}"),)),
        Rule("visual_projection.{kind}", "head.{kind}"),
        *_TOWER,
        *_OTHER_TOWER,
        *_SIMILARITY,
        *CLASSIFIER,
    )


CLIP = Family(
    types=("clip", "clip_vision_model"),
    architectures=("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel", "CLIPForImageClassification"),
    source="Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020",
    prefixes=("", "vision_model."),
    processor="CLIP",
    defaults=_VISION,
    spec=_clip_spec,
    rules=_clip_rules,
    nested="vision_config",
)


def _siglip_spec(options: Options) -> SpecFields:
    attends = options.has("head.probe") and not options.has("classifier.weight")
    pool: Pool = "map" if attends else "mean"
    return {"mlp": options.activation(), "class_token": False, "pool": pool, **options.head()}


def _siglip_rules(_: Options, spec: ModelSpec) -> tuple[Rule, ...]:
    pool = (
        Rule("head.probe", "attn_pool.latent"),
        Rule("head.attention.in_proj_{kind}", ("attn_pool.q.{kind}", "attn_pool.kv.{kind}"), shares=(1, 2)),
        Rule("head.attention.out_proj.{kind}", "attn_pool.proj.{kind}"),
        Rule("head.layernorm.{kind}", "attn_pool.norm.{kind}"),
        Rule("head.mlp.fc1.{kind}", "attn_pool.mlp.fc1.{kind}"),
        Rule("head.mlp.fc2.{kind}", "attn_pool.mlp.fc2.{kind}"),
    )
    return (
        *(pool if spec.pool == "map" else _UNUSED_POOL),
        Rule("post_layernorm.{kind}", "norm.{kind}"),
        *_TOWER,
        *_OTHER_TOWER,
        *_SIMILARITY,
        *CLASSIFIER,
    )


SIGLIP = Family(  # also SigLIP 2 at a fixed size, which is of the same type
    types=("siglip", "siglip_vision_model"),
    architectures=("SiglipVisionModel", "SiglipModel", "SiglipForImageClassification"),
    source="Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343",
    prefixes=("", "vision_model."),
    processor="Siglip",
    defaults={**_VISION, "layer_norm_eps": 1e-6, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh"},
    spec=_siglip_spec,
    rules=_siglip_rules,
    nested="vision_config",
)

FAMILIES = (CLIP, SIGLIP)
