"""What only the name of a timm architecture tells: heads, activation, epsilon, pool, rotation, and how pixels were prepared.

Two tables: the first family and the first size whose pattern is the whole name decide. Names are checked against the
families, so that an architecture that vitdeploy can't run is refused and never taken for another; weights are checked
against the size, so that heads are never those of a network of another width.

Source:
    timm 1.0.31, models/vision_transformer.py, deit.py, eva.py and beit.py; tests/checkpoints/test_timm.py holds every line to it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vitdeploy.checkpoints.source import ANY_MODULE
from vitdeploy.errors import InputError, UsageError, nearest
from vitdeploy.spec import SpecFields
from vitdeploy.zoo.variants import VARIANTS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SATELLITE = ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


class Family(NamedTuple):
    """Architectures that differ by shapes only.

    Attributes:
        pattern: Of the whole name; ``{size}`` and ``{n}`` stand for a size word and a number.
        statistics: Mean and standard deviation that pixels were normalised with.
        crop: Share of the resized image that is cropped.
        facts: Fields of `ModelSpec` that differ from its defaults.
        squash: Whether the image is stretched instead of cropped.
        side: Image side in pixels of the published weights, where it is not in the name.
        interpolation: Resampling filter.
        refused: Why vitdeploy can't run them, or nothing.
    """

    pattern: str
    statistics: Statistics = HALF
    crop: float = 0.9
    facts: SpecFields = SpecFields()
    squash: bool = False
    side: int = 224
    interpolation: str = "bicubic"
    refused: str = ""


class Size(NamedTuple):
    """What the size word of a name stands for."""

    width: int
    depth: int
    heads: int


class Architecture(NamedTuple):
    """A name that is understood.

    Attributes:
        name: Without the tag of its weights.
        family: The line of the table.
        size: Width, depth and heads.
        patch: Side of a patch in pixels, where the name says it.
        gated: Whether its MLP is SwiGLU.
        table: Whether it has a learned position table.
    """

    name: str
    family: Family
    size: Size
    patch: int | None
    gated: bool
    table: bool


_EVA02: SpecFields = {"rotary": "eva02", "rotary_grid": (16, 16)}
_DINOV3: SpecFields = {"rotary": "dinov3", "norm_eps": 1e-5}
_CLIP: SpecFields = {"norm_eps": 1e-5}
_TANH: SpecFields = {"mlp": "gelu_tanh"}
_ROTARY = "its rotary coordinates are neither EVA-02's nor DINOv3's"
_PARALLEL = "its blocks are parallel, differential or normalised after"

FAMILIES: tuple[Family, ...] = (
    # refused
    Family(r"vit_{size}_patch{n}_(rpn|xp|18x2)_{n}", refused=_PARALLEL),
    Family(r"vit_(pwee|dpwee|dwee|dlittle)_patch{n}_reg{n}_gap_{n}", refused=_PARALLEL),
    Family(r"eva02_enormous_patch{n}_clip_{n}", refused=_PARALLEL),
    Family(r"aimv2_\w+|test_vit4", refused="it normalises by RMSNorm"),
    Family(r"vit_pe_\w+|vit_{size}_patch{n}_rope(_mixed)?(_ape)?_{n}", refused=_ROTARY),
    Family(r"vit_{size}_patch{n}_sapiens2", refused="queries share keys in groups"),
    Family(r"vit_{size}_patch{n}_reg{n}_map_{n}|test_vit3", refused="it pools registers by attention"),
    # DeiT
    Family(r"deit(3_{size}|_{size}|_{size}_distilled)_patch{n}_384", IMAGENET, 1.0),
    Family(r"deit(3_{size}|_{size}|_{size}_distilled)_patch{n}_{n}", IMAGENET),
    # BEiT
    Family(r"beit_{size}_patch{n}_224"),
    Family(r"beit_{size}_patch{n}_{n}", crop=1.0),
    Family(r"beitv2_base_patch{n}_{n}", IMAGENET),
    Family(r"beitv2_{size}_patch{n}_{n}", IMAGENET, 0.95),
    # EVA, EVA-02, BEiT-3
    Family(r"eva02_{size}_patch{n}_clip_336", CLIP, 1.0, _EVA02),
    Family(r"eva02_{size}_patch{n}_clip_{n}", CLIP, 0.9, _EVA02),
    Family(r"eva02_{size}_patch{n}_224", CLIP, 0.9, _EVA02),
    Family(r"eva02_{size}_patch{n}_448", CLIP, 1.0, _EVA02, squash=True),
    Family(r"eva02_{size}_patch{n}_{n}", CLIP, 1.0, _EVA02),
    Family(r"eva_large_patch{n}_196", CLIP, 1.0),
    Family(r"eva_giant_patch{n}(_clip)?_224", CLIP, 0.9),
    Family(r"eva_giant_patch{n}_560", IMAGENET, 1.0, squash=True),
    Family(r"eva_{size}_patch{n}_{n}", CLIP, 1.0, squash=True),
    Family(r"beit3_{size}_patch{n}_{n}", IMAGENET, 1.0, {"norm_eps": 1e-5}),
    # self-supervised
    Family(r"vit_{size}(_plus)?_patch16_dinov3(_qkvb)?", IMAGENET, 1.0, {**_DINOV3, "pool": "mean"}, side=256),
    Family(r"vit_{size}_patch16_lingbot", IMAGENET, 1.0, _DINOV3, squash=True, side=512, interpolation="bilinear"),
    Family(r"vit_{size}_patch{n}(_reg{n})?_dinov2", IMAGENET, 1.0),
    Family(r"vit_{size}_patch{n}_reg{n}_tipsv2", UNIT, 1.0),
    Family(r"vit_{size}_patch{n}_radio_v{n}", CLIP, 1.0),
    Family(r"vit_huge_patch{n}_gap_448|vit_intern300m_patch14_448", IMAGENET, 1.0),
    Family(r"vit_(huge_patch14|giant_patch16)_gap_224", IMAGENET),
    # image and text
    Family(r"vit_(huge_patch14_clip_336|gigantic_patch14_clip_378)", CLIP, 1.0, _CLIP, squash=True),
    Family(r"vit_{size}_patch{n}_clip_quickgelu_{n}", CLIP, 1.0, {**_CLIP, "mlp": "quick_gelu"}),
    Family(r"vit_base_patch16_clip_384", CLIP, 1.0, _CLIP, squash=True),
    Family(r"vit_{size}_patch{n}(_plus)?_clip_{n}", CLIP, 1.0, _CLIP),
    Family(r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip(_gap)?_{n}", facts=_TANH),
    Family(r"vit_large_patch16_siglip(_gap)?_512", facts=_TANH),
    Family(r"vit_so400m_patch14_siglip_gap_(384|448|896)", crop=1.0),
    Family(r"vit_{size}_patch{n}_siglip(_gap)?_{n}"),
    # supervised, and DINO's S/8, which has no other weights
    Family(r"vit_small_patch8_224", IMAGENET),
    Family(r"flexivit_{size}", HALF, 0.95),
    Family(r"test_vit2?", HALF, 0.95, side=160),
    Family(r"vit_betwixt_patch{n}_rope_reg{n}_gap_{n}", CLIP, 0.95, _EVA02, side=256),
    Family(r"vit_{size}_patch{n}_rope_reg{n}_gap_{n}", HALF, 0.95, _EVA02, side=256),
    Family(r"vit_{size}_patch{n}_224_miil", UNIT, 0.875, interpolation="bilinear"),
    Family(r"vit_medium_patch{n}_gap_384", HALF, 0.95, squash=True),
    Family(r"vit_so150m2?_patch{n}_reg{n}_gap_384|vit_so150m2_patch{n}_reg{n}_gap_256", HALF, 1.0),
    Family(r"vit_so150m2_patch{n}_reg{n}_gap_448", HALF, 1.0, squash=True),
    Family(r"vit_{size}_patch{n}_reg{n}_gap_384|vit_{size}_patch{n}_384", HALF, 1.0),
    Family(r"vit_base_patch16_(gap_224|reg4_gap_256)"),
    Family(r"vit_{size}_patch{n}(_reg{n})?_gap_{n}|vit_{size}_patch{n}_plus_{n}", HALF, 0.95),
    Family(r"vit_{size}_patch{n}(_36x1)?_{n}"),
)
"""Every architecture that is understood, and those that are refused by name; the first match decides."""

SIZES: tuple[tuple[str, Size], ...] = (
    (r"test_vit", Size(64, 6, 2)),
    (r"test_vit2", Size(64, 8, 2)),
    (r"vit_intern300m_.*", Size(1024, 24, 16)),
    (r"vit_small_patch16_36x1_.*", Size(384, 36, 6)),
    (r"vit_base_patch16_gap_.*", Size(768, 12, 16)),
    (r"vit_base_patch\d+_plus_.*", Size(896, 12, 14)),
    (r"vit_huge_plus_.*", Size(1280, 32, 20)),
    (r"vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)|vit_giant_patch16_(radio_v\d|lingbot)", Size(1536, 40, 24)),
    *(
        (rf"[a-z0-9]+_{word}(_.*)?", size)
        for word, size in {
            "tiny": Size(192, 12, 3),
            "xsmall": Size(256, 10, 4),
            "wee": Size(256, 14, 4),
            "little": Size(320, 14, 5),
            "small": Size(384, 12, 6),
            "medium": Size(512, 12, 8),
            "mediumd": Size(512, 20, 8),
            "betwixt": Size(640, 12, 10),
            "base": Size(768, 12, 12),
            "so150m": Size(896, 18, 14),
            "so150m2": Size(832, 21, 13),
            "so400m": Size(1152, 27, 16),
            "large": Size(1024, 24, 16),
            "huge": Size(1280, 32, 16),
            "giant": Size(1408, 40, 16),
            "giantopt": Size(1536, 40, 16),
            "gigantic": Size(1664, 48, 16),
            "7b": Size(4096, 40, 32),
        }.items()
    ),
)
"""Pattern of the whole name to its size; the first match decides."""

_GATED = (
    r"eva02_.*|vit_[a-z]+_plus_patch\d+_dinov3.*|vit_7b_.*"
    r"|vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)|vit_giant_patch16_lingbot"
)
_NO_TABLE = r"vit_\w+_(dinov3|dinov3_qkvb|lingbot)|vit_\w+_rope_\w+|beit(v2)?_\w+"

_TAGS = (  # pattern of the name with its tag, mean and standard deviation: weights unlike the others of their architecture
    (r"vit_\w+\.(dino|mae)", IMAGENET),
    (r"vit_\w+\.sat493m", SATELLITE),
    (r"vit_base_patch16_224\.bamboo", CLIP),
    (r"vit_large_patch14_clip_\d+\.laion2b\w*", HALF),
)

_SIZE = "(?:tiny|wee|little|xsmall|small|mediumd?|betwixt|base|so150m2?|so400m|large|huge|giant|giantopt|gigantic|5b|7b)"


def understand(name: str, path: Path) -> Architecture:
    """The facts of an architecture's name.

    Args:
        name: As timm writes it, such as ``vit_small_patch16_224``; ``timm/`` before it is ignored, and so is the tag of
            its weights behind it (``.augreg_in1k``), unless pixels were prepared otherwise for them.
        path: For messages.

    Raises:
        UsageError: VD2001, timm has no such ViT.
        InputError: VD3015, timm has it, but vitdeploy's network can't be it.
    """
    full = name.rsplit("/", 1)[-1]
    bare = full.partition(".")[0]
    for family in FAMILIES:
        if not _compile(family.pattern).fullmatch(bare):
            continue
        if family.refused:
            message = f"is {bare!r}, which vitdeploy's network can't be: {family.refused}"
            raise InputError("VD3015", message, file=path, fix=ANY_MODULE)
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, bare)), None)
        if size is None:
            break
        statistics = next((values for pattern, values in _TAGS if re.fullmatch(pattern, full)), family.statistics)
        patch = re.search(r"_patch(\d+)", bare)
        return Architecture(
            name=bare,
            family=family._replace(statistics=statistics),
            size=size,
            patch=int(patch[1]) if patch else None,
            gated=re.fullmatch(_GATED, bare) is not None,
            table=re.fullmatch(_NO_TABLE, bare) is None,
        )
    fix = nearest(bare, [*VARIANTS, *EXAMPLES]) or "name a ViT of timm's; to see many of them, run: vitdeploy models"
    raise UsageError("VD2001", f"no ViT architecture is named {bare!r}", fix=fix)


EXAMPLES = (
    "vit_base_patch16_384",
    "vit_large_patch16_384",
    "vit_medium_patch16_gap_256",
    "vit_betwixt_patch16_reg4_gap_256",
    "vit_base_patch16_clip_224",
    "vit_large_patch14_clip_224",
    "vit_huge_patch14_clip_224",
    "vit_so400m_patch14_siglip_224",
    "vit_large_patch16_siglip_256",
    "vit_huge_plus_patch16_dinov3",
    "deit3_small_patch16_224",
    "deit3_base_patch16_224",
    "deit3_large_patch16_224",
    "eva02_large_patch14_448",
    "eva02_large_patch14_clip_336",
    "flexivit_small",
    "flexivit_base",
    "flexivit_large",
)
"""Names that `VARIANTS` has not, so that a typing mistake finds its neighbour."""


@lru_cache
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("{size}", _SIZE).replace("{n}", r"\d+"))
