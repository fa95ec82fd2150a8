"""The ViTs that vitdeploy knows by name: a table of families, one row a model.

Names are timm's where timm has the model. A name says size, patch and (where it ends in one) image size; the family says
the rest: tokens, positions, MLP, head, and how the authors prepared a pixel. Each row holds the published parameter count,
which the tests compare with the count of the network that is really built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from vitdeploy.errors import UsageError, nearest
from vitdeploy.spec import InputContract, ModelSpec, SpecFields

TIMM = "timm, results/benchmark-infer-amp-nchw-pt291-cu130-5090.csv (github.com/huggingface/pytorch-image-models)"
TORCHVISION = "torchvision 0.25, models/vision_transformer.py, num_params"
OPEN_CLIP = "open_clip, docs/model_profile.csv (github.com/mlfoundations/open_clip), image tower"

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_SIZES = {  # width D, depth L, heads: ViT paper, table 1; Ti and S: DeiT, table 1; g: arXiv:2106.04560, table 2
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1408, 40, 16),
}
_NAME = re.compile(r"(?:vit|deit|eva02)_(?P<size>[a-z]+)_.*?patch(?P<patch>\d+)(?:.*_(?P<image>\d+)$)?")


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One known model.

    Attributes:
        spec: The network and its input contract.
        parameters_millions: Parameters as published, in millions, rounded as there.
        published: Where that figure is published.
    """

    spec: ModelSpec
    parameters_millions: float
    published: str


class _Row(msgspec.Struct, frozen=True):
    millions: float
    changes: SpecFields = {}
    published: str = ""


class _Family(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    input: InputContract
    rows: dict[str, float | _Row]
    spec: SpecFields = {}
    published: str = TIMM

    def make_variants(self) -> dict[str, Variant]:
        """The rows as finished variants, by name."""
        return {name: self._make_variant(name, _Row(row) if isinstance(row, float) else row) for name, row in self.rows.items()}

    def _make_variant(self, name: str, row: _Row) -> Variant:
        match = _NAME.match(name)
        assert match is not None, name
        width, depth, heads = _SIZES[match["size"]]
        side, patch = int(match["image"] or self.input.height), int(match["patch"])
        contract = msgspec.structs.replace(self.input, height=side, width=side, alpha="drop")  # all convert files to RGB
        fields: SpecFields = {
            "name": name,
            "source": self.source,
            "input": contract,
            "patch": (patch, patch),
            "width": width,
            "depth": depth,
            "heads": heads,
            **self.spec,
            **row.changes,
        }
        spec = ModelSpec(**fields)
        return Variant(spec=spec, parameters_millions=row.millions, published=row.published or self.published)


_FEATURES: SpecFields = {"head": "none", "classes": 0}

_VIT = _Family(
    source="Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929",
    # google-research/vision_transformer as restated by timm: scaled to [-1, 1], resize floor(224 / 0.9) = 248, bicubic
    input=InputContract(resize_to=248, mean=_HALF, std=_HALF),
    rows={
        "vit_tiny_patch16_224": 5.72,
        "vit_small_patch32_224": 22.88,
        "vit_small_patch16_224": 22.05,
        "vit_base_patch32_224": _Row(88.224232, {}, TORCHVISION),
        "vit_base_patch16_224": _Row(86.567656, {}, TORCHVISION),
        "vit_base_patch8_224": 86.58,
        "vit_large_patch32_224": _Row(306.535400, {}, TORCHVISION),
        "vit_large_patch16_224": _Row(304.326632, {}, TORCHVISION),
        "vit_large_patch14_224": 304.20,
        "vit_huge_patch14_224": _Row(632.045800, {}, TORCHVISION),
        "vit_giant_patch14_224": _Row(
            1012.61, {"mlp_width": 6144, "source": "Zhai et al. 2022, Scaling Vision Transformers, arXiv:2106.04560"}
        ),
    },
)

_DINO = _Family(  # the only public weights of S/8; no head
    source="Caron et al. 2021, Emerging Properties in Self-Supervised Vision Transformers (DINO), arXiv:2104.14294",
    input=InputContract(resize_to=256),  # facebookresearch/dino, eval_linear.py: Resize(256, bicubic), CenterCrop(224)
    spec=_FEATURES,
    rows={"vit_small_patch8_224": 21.67},
)

_DEIT = _Family(
    source="Touvron et al. 2021, Training data-efficient image transformers (DeiT), arXiv:2012.12877",
    input=InputContract(resize_to=256),  # facebookresearch/deit, datasets.py: int(256 / 224 x size), bicubic
    rows={"deit_tiny_patch16_224": 5.72, "deit_small_patch16_224": 22.05, "deit_base_patch16_224": 86.57},
)

_DEIT_DISTILLED = _Family(
    source=_DEIT.source,
    input=_DEIT.input,
    spec={"distillation_token": True, "head": "distilled"},
    rows={
        "deit_tiny_distilled_patch16_224": 5.91,
        "deit_small_distilled_patch16_224": 22.44,
        "deit_base_distilled_patch16_224": 87.34,
    },
)

# Position tables are for 518 pixels. Meta evaluates at 224 out of a shorter side of 256 (dinov2/data/transforms.py); the
# same share of 518 is 592, so that `change_size(224, 224)` gives 256 again. timm and transformers take 518 out of 518.
_DINOV2_INPUT = InputContract(height=518, width=518, resize_to=592)
_DINOV2_GIANT: SpecFields = {"width": 1536, "heads": 24, "mlp": "swiglu", "mlp_width": 4096}

_DINOV2 = _Family(
    source="Oquab et al. 2023, DINOv2, arXiv:2304.07193",
    input=_DINOV2_INPUT,
    spec={**_FEATURES, "layer_scale": 1e-5, "position_resample": "bicubic-offset"},  # dinov2/hub: interpolate_offset=0.1
    rows={
        "vit_small_patch14_dinov2": 22.06,
        "vit_base_patch14_dinov2": 86.58,
        "vit_large_patch14_dinov2": 304.37,
        "vit_giant_patch14_dinov2": _Row(1136.48, _DINOV2_GIANT),
    },
)

_DINOV2_REGISTERS = _Family(
    source="Darcet et al. 2024, Vision Transformers Need Registers, arXiv:2309.16588",
    input=_DINOV2_INPUT,
    # timm folds the class token's position into the token itself
    spec={**_FEATURES, "layer_scale": 1e-5, "registers": 4, "position_prefix": False},
    rows={
        "vit_small_patch14_reg4_dinov2": 22.06,
        "vit_base_patch14_reg4_dinov2": 86.58,
        "vit_large_patch14_reg4_dinov2": 304.37,
        "vit_giant_patch14_reg4_dinov2": _Row(1136.48, _DINOV2_GIANT),
    },
)

_DINOV3_SPEC: SpecFields = {
    **_FEATURES,
    "registers": 4,
    "position": "none",
    "rotary": "dinov3",
    "layer_scale": 1e-5,
    "norm_eps": 1e-5,
}
# facebookresearch/dinov3, README "Image transforms": Resize((256, 256), antialias), which is bilinear and not cropped
_DINOV3_INPUT = InputContract(height=256, width=256, resize="stretch", interpolation="bilinear")

_DINOV3 = _Family(  # timm's form: the released query and value biases are all zero, so they are left out
    source="Siméoni et al. 2025, DINOv3, arXiv:2508.10104",
    input=_DINOV3_INPUT,
    spec={**_DINOV3_SPEC, "qkv_bias": "none"},
    rows={"vit_small_patch16_dinov3": 21.59, "vit_base_patch16_dinov3": 85.64, "vit_large_patch16_dinov3": 303.08},
)

_DINOV3_BIAS = _Family(  # Meta's and transformers' form: biases for queries and values
    source=_DINOV3.source,
    input=_DINOV3_INPUT,
    spec={**_DINOV3_SPEC, "qkv_bias": "qv"},
    rows={
        "vit_small_patch16_dinov3_qkvb": 21.60,
        "vit_base_patch16_dinov3_qkvb": 85.66,
        "vit_large_patch16_dinov3_qkvb": 303.13,
    },
)

_CLIP = _Family(  # the image tower; its head projects into the space shared with text
    source="Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020",
    input=InputContract(mean=_CLIP_MEAN, std=_CLIP_STD),  # openai/CLIP, clip.py: Resize(224, bicubic), CenterCrop(224)
    spec={
        "pre_norm": True,
        "patch_bias": False,
        "mlp": "quick_gelu",
        "norm_eps": 1e-5,
        "head": "projection",
        "head_bias": False,
        "classes": 512,
    },
    published=OPEN_CLIP,
    rows={
        "vit_base_patch32_clip_quickgelu_224": 87.85,
        "vit_base_patch16_clip_quickgelu_224": 86.19,
        "vit_large_patch14_clip_quickgelu_224": _Row(303.97, {"classes": 768}),
    },
)

_SIGLIP = _Family(  # google-research/big_vision: GELU in flax is the tanh form; transformers' processor stretches, bicubic
    source="Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343",
    input=InputContract(resize="stretch", mean=_HALF, std=_HALF),
    spec={**_FEATURES, "class_token": False, "pool": "map", "mlp": "gelu_tanh"},
    published=OPEN_CLIP,
    rows={"vit_base_patch16_siglip_224": 92.88},
)

_EVA02_SPEC: SpecFields = {
    "mlp": "swiglu",
    "qkv_bias": "qv",
    "rotary": "eva02",
    "rotary_grid": (16, 16),  # pre-training at 224 pixels
    "pool": "mean",
    "final_norm": "pooled",
}
_EVA02_SIZES: dict[str, SpecFields] = {  # hidden width int(D x 4 x 2/3)
    "tiny": {"mlp_width": 512},
    "small": {"mlp_width": 1024},
    "base": {"mlp_width": 2048, "mlp_norm": True},
}

_EVA02 = _Family(  # fine-tuned on ImageNet-1k
    source="Fang et al. 2023, EVA-02, arXiv:2303.11331",
    input=InputContract(mean=_CLIP_MEAN, std=_CLIP_STD),  # timm: crop share 1.0, bicubic
    spec=_EVA02_SPEC,
    rows={
        "eva02_tiny_patch14_336": _Row(5.76, _EVA02_SIZES["tiny"]),
        "eva02_small_patch14_336": _Row(22.13, _EVA02_SIZES["small"]),
        "eva02_base_patch14_448": _Row(87.12, _EVA02_SIZES["base"]),
    },
)

_EVA02_FEATURES = _Family(  # as pre-trained
    source=_EVA02.source,
    input=InputContract(resize_to=248, mean=_CLIP_MEAN, std=_CLIP_STD),  # timm: floor(224 / 0.9) = 248, bicubic
    spec={**_EVA02_SPEC, **_FEATURES},
    rows={
        "eva02_tiny_patch14_224": _Row(5.50, _EVA02_SIZES["tiny"]),
        "eva02_small_patch14_224": _Row(21.62, _EVA02_SIZES["small"]),
        "eva02_base_patch14_224": _Row(85.76, _EVA02_SIZES["base"]),
    },
)

_FAMILIES = (
    _VIT,
    _DINO,
    _DEIT,
    _DEIT_DISTILLED,
    _DINOV2,
    _DINOV2_REGISTERS,
    _DINOV3,
    _DINOV3_BIAS,
    _CLIP,
    _SIGLIP,
    _EVA02,
    _EVA02_FEATURES,
)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {name: variant for family in _FAMILIES for name, variant in family.make_variants().items()}
)
"""Every known model by its name; read-only."""


def find(name: str) -> ModelSpec:
    """The spec of a known model.

    Args:
        name: A key of `VARIANTS`, such as ``vit_tiny_patch16_224``.

    Raises:
        UsageError: VD2001, no such name; the nearest one is in the fix.
    """
    if name not in VARIANTS:
        fix = nearest(name, VARIANTS) or "run: vitdeploy models"
        raise UsageError("VD2001", f"no model is named {name!r}", fix=fix)
    return VARIANTS[name].spec
