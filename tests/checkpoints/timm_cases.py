"""timm architectures that are held to timm itself; the table of what loads is made from this list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One architecture.

    Attributes:
        name: timm's name of the architecture.
        family: As people call it.
        side: Image side that it is built for, in pixels; small, so that the test is quick.
        arguments: More arguments of ``timm.create_model``.
        depth: Number of blocks.
        sized: Whether the image size stands in config.json; networks without a position table have it nowhere else.
    """

    name: str
    family: str
    side: int = 0
    arguments: Mapping[str, Any] = {}
    depth: int = 2
    sized: bool = False


CASES: tuple[Case, ...] = (
    Case("vit_tiny_patch16_224", "ViT"),
    Case("vit_small_patch16_224", "ViT"),
    Case("vit_small_patch32_384", "ViT"),
    Case("vit_base_patch16_224", "ViT", 64),
    Case("vit_base_patch8_224", "ViT", 32),
    Case("vit_base_patch16_224_miil", "ViT", 64),
    Case("vit_large_patch16_384", "ViT", 96, depth=1),
    Case("vit_huge_patch14_224", "ViT", 56, depth=1),
    Case("vit_giant_patch14_224", "ViT", 28, depth=1),
    Case("vit_gigantic_patch14_224", "ViT", 28, depth=1),
    Case("vit_base_patch16_gap_224", "ViT, average pool", 64),
    Case("vit_huge_patch14_gap_224", "I-JEPA", 56, depth=1),
    Case("vit_medium_patch16_gap_256", "ViT, average pool", 64),
    Case("vit_betwixt_patch16_reg4_gap_256", "ViT, registers", 64),
    Case("vit_wee_patch16_reg1_gap_256", "ViT, registers"),
    Case("vit_so150m_patch16_reg4_gap_256", "ViT, registers", 64, depth=1),
    Case("vit_so150m2_patch16_reg1_gap_256", "ViT, registers", 64, depth=1),
    Case("vit_medium_patch16_rope_reg1_gap_256", "ViT, rotary", 96, sized=True),
    Case("test_vit2", "ViT, test size"),
    Case("deit_tiny_patch16_224", "DeiT"),
    Case("deit_tiny_distilled_patch16_224", "DeiT, distilled"),
    Case("deit_base_distilled_patch16_384", "DeiT, distilled", 64),
    Case("deit3_small_patch16_224", "DeiT III"),
    Case("deit3_huge_patch14_224", "DeiT III", 56, depth=1),
    Case("vit_small_patch14_dinov2", "DINOv2", 98),
    Case("vit_small_patch14_reg4_dinov2", "DINOv2, registers", 98),
    Case("vit_giant_patch14_reg4_dinov2", "DINOv2, registers", 42, depth=1),
    Case("vit_base_patch14_reg1_tipsv2", "TIPSv2", 56),
    Case("vit_small_patch16_dinov3", "DINOv3", 256),
    Case("vit_small_patch16_dinov3_qkvb", "DINOv3", 96, sized=True),
    Case("vit_small_plus_patch16_dinov3_qkvb", "DINOv3", 96, sized=True),
    Case("vit_huge_plus_patch16_dinov3", "DINOv3", 96, {"num_classes": 7}, 1, sized=True),
    Case("vit_small_patch16_lingbot", "LingBot", 96, sized=True),
    Case("vit_base_patch16_radio_v3", "RADIO", 64),
    Case("eva02_tiny_patch14_224", "EVA-02", 224),
    Case("eva02_tiny_patch14_336", "EVA-02", 336),
    Case("eva02_base_patch14_448", "EVA-02", 112),
    Case("eva02_large_patch14_448", "EVA-02", 112, depth=1),
    Case("eva02_base_patch16_clip_224", "EVA-02 CLIP", 64),
    Case("eva02_large_patch14_clip_336", "EVA-02 CLIP", 56, depth=1),
    Case("eva_giant_patch14_224", "EVA", 56, depth=1),
    Case("eva_large_patch14_196", "EVA", 56, depth=1),
    Case("beit_base_patch16_224", "BEiT", 64),
    Case("beit_base_patch16_384", "BEiT", 96),
    Case("beitv2_base_patch16_224", "BEiT v2", 64),
    Case("beitv2_large_patch16_224", "BEiT v2", 64, depth=1),
    Case("beit_base_patch16_224", "BEiT", 64, {"use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
    Case("beit_base_patch16_224", "BEiT", 64, {"global_pool": "token", "num_classes": 0}),
    Case("beit3_base_patch16_224", "BEiT-3", 64),
    Case("vit_base_patch32_clip_224", "CLIP"),
    Case("vit_base_patch16_clip_quickgelu_224", "CLIP", 64),
    Case("vit_large_patch14_clip_336", "CLIP", 56, depth=1),
    Case("vit_huge_patch14_clip_quickgelu_224", "CLIP", 56, depth=1),
    Case("vit_base_patch16_siglip_224", "SigLIP", 64),
    Case("vit_base_patch32_siglip_256", "SigLIP 2"),
    Case("vit_base_patch16_siglip_gap_224", "SigLIP", 64),
    Case("vit_so400m_patch14_siglip_224", "SigLIP", 56, depth=1),
    Case("vit_so400m_patch16_siglip_256", "SigLIP 2", 64, depth=1),
    Case("flexivit_small", "FlexiViT"),
    Case("vit_tiny_patch16_224", "ViT", 64, {"num_classes": 0}),
    Case("vit_tiny_patch16_224", "ViT", 64, {"num_classes": 11, "in_chans": 1}),
    Case("vit_tiny_patch16_224", "ViT", 64, {"global_pool": "avg"}),
    Case("vit_tiny_patch16_224", "ViT", 64, {"qk_norm": True, "init_values": 0.1, "patch_size": 8}),
)
"""Each is compared with timm, every number random."""

REFUSED: tuple[str, ...] = (
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dwee_patch16_reg1_gap_256",
    "aimv2_large_patch14_224",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_base_patch16_sapiens2",
    "vit_so150m_patch16_reg4_map_256",
    "eva02_enormous_patch14_clip_224",
)
"""Architectures of timm that are refused by name."""
