"""Plain ViTs: ViT, DeiT, the encoders of ViT-MAE and ViT-MSN, and I-JEPA."""

from __future__ import annotations

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.huggingface.family import (
    CLASSIFIER,
    DECODER,
    EMBEDDINGS,
    MASK,
    SIZES,
    VIT_BLOCK,
    VIT_STEMS,
    Family,
    Options,
    leave_out,
    rename,
)
from vitdeploy.spec import ModelSpec, SpecFields

_POOLER = leave_out("a tanh layer trained for another task; the pooled output is the class token", "pooler.dense.{kind}")
_TOWER = (*rename(("", ""), pairs=EMBEDDINGS), *rename(*VIT_STEMS, pairs=VIT_BLOCK), *MASK, *_POOLER, *CLASSIFIER)


def _spec(options: Options) -> SpecFields:
    return {"mlp": options.activation(), **options.head()}


def _rules(_: Options, __: ModelSpec) -> tuple[Rule, ...]:
    return (*_TOWER, *DECODER)


VIT = Family(
    types=("vit",),
    architectures=("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
    source="Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929",
    prefixes=("", "vit."),
    processor="ViT",
    defaults=SIZES,
    spec=_spec,
    rules=_rules,
)


def _deit_spec(options: Options) -> SpecFields:
    facts: SpecFields = {"mlp": options.activation(), "distillation_token": True}
    classes = options.classes("cls_classifier.weight")
    if classes:  # with a teacher: the mean of two heads
        return {**facts, "head": "distilled", "classes": classes, "labels": options.labels(classes)}
    return {**facts, **options.head()}


def _deit_rules(_: Options, __: ModelSpec) -> tuple[Rule, ...]:
    return (
        Rule("embeddings.distillation_token", "dist_token"),
        Rule("cls_classifier.{kind}", "head.{kind}"),
        Rule("distillation_classifier.{kind}", "head_dist.{kind}"),
        *_TOWER,
        *DECODER,
    )


DEIT = Family(
    types=("deit",),
    architectures=(
        "DeiTModel",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForMaskedImageModeling",
    ),
    source="Touvron et al. 2021, Training data-efficient image transformers (DeiT), arXiv:2012.12877",
    prefixes=("", "deit."),
    processor="DeiT",
    defaults=SIZES,
    spec=_deit_spec,
    rules=_deit_rules,
)

MAE = Family(
    types=("vit_mae",),
    architectures=("ViTMAEModel", "ViTMAEForPreTraining"),
    source="He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377",
    prefixes=("", "vit."),
    processor="ViT",
    defaults=SIZES,
    spec=_spec,  # its fixed sine-cosine table is in the checkpoint, and is resampled as a learned one
    rules=_rules,
)

MSN = Family(
    types=("vit_msn",),
    architectures=("ViTMSNModel", "ViTMSNForImageClassification"),
    source="Assran et al. 2022, Masked Siamese Networks, arXiv:2204.07141",
    prefixes=("", "vit."),
    processor="ViT",
    defaults={**SIZES, "layer_norm_eps": 1e-6},
    spec=_spec,
    rules=_rules,
)


def _ijepa_spec(options: Options) -> SpecFields:
    return {**_spec(options), "class_token": False, "pool": "mean"}


IJEPA = Family(
    types=("ijepa",),
    architectures=("IJepaModel", "IJepaForImageClassification"),
    source="Assran et al. 2023, Self-Supervised Learning with a Joint-Embedding Predictive Architecture, arXiv:2301.08243",
    prefixes=("", "ijepa."),
    processor="ViT",
    defaults=SIZES,
    spec=_ijepa_spec,
    rules=_rules,
)

FAMILIES = (VIT, DEIT, MAE, MSN, IJEPA)
