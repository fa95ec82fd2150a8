"""Small networks of many architectures: those of timm and transformers, with few blocks, narrow, and random weights.

A weight that a constructor leaves zero (the last layer of a branch, LayerScale) or nearly so would hide what a wrong graph
does, so all are drawn anew: matrices by their fan-in, factors around 1, the rest near 0.
"""

from __future__ import annotations

import math
import re
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests import torchvision_shim

torchvision_shim.declare()
CLASSES = 10
_VIT = {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2}
_PYRAMID = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64), "num_heads": (1, 1, 2, 2)}

TIMM: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": _VIT,
    "beitv2_base_patch16_224": _VIT,
    "caformer_s18": {"kept": 1},
    "cait_xxs24_224": {**_VIT, "depth_token_only": 1},
    "coat_tiny": {"img_size": 64, "serial_depths": (1, 1, 1, 1), "parallel_depth": 1},
    "coatnet_nano_rw_224": {"img_size": 128},
    "convit_tiny": {"img_size": 64, "depth": 3, "local_up_to_layer": 2},
    "crossvit_tiny_240": {"depth": ((1, 1, 0), (1, 1, 0))},
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    "deit_tiny_distilled_patch16_224": _VIT,
    "deit3_small_patch16_224": _VIT,
    "efficientformer_l1": {"img_size": 224, "depths": (1, 1, 1, 2)},
    "efficientformerv2_s0": {"img_size": 128},
    "efficientvit_b0": {},
    "efficientvit_m0": {"img_size": 128},
    "eva_giant_patch14_224": {**_VIT, "img_size": 56},
    "eva02_tiny_patch14_224": {**_VIT, "img_size": 56},
    "fastvit_t8": {},
    "gcvit_xxtiny": {"img_size": 224, "kept": 1},
    "hiera_tiny_224": {"img_size": 64, "embed_dim": 32, "stages": (1, 1, 2, 1)},
    "levit_128s": {"img_size": 128},
    "maxvit_rmlp_pico_rw_256": {"img_size": 128},
    "maxvit_tiny_tf_224": {"img_size": 128, "embed_dim": (32, 32, 64, 64), "depths": (1, 1, 1, 1), "stem_width": 16},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "mvitv2_tiny": {"img_size": 64, "kept": 1},
    "naflexvit_base_patch16_gap": {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2},
    "nest_tiny": {"class": "nest.Nest", "img_size": 64, "embed_dims": (32, 64, 96), "num_heads": (1, 2, 3), "depths": (1, 1, 2)},
    "pit_ti_224": {"img_size": 64, "depth": (1, 1, 1), "base_dims": (32, 32, 32), "heads": (1, 2, 4)},
    "poolformer_s12": {},
    "pvt_v2_b0": _PYRAMID,
    "samvit_base_patch16_224": {**_VIT, "window_size": 2, "global_attn_indexes": (1,), "num_classes": CLASSES},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "window_size": 7, "embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2)},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2)},
    "tiny_vit_5m_224": {"depths": (1, 1, 1, 1)},
    "tnt_s_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 64, "inner_dim": 16, "num_heads_outer": 2},
    "twins_pcpvt_small": {"img_size": 64, **_PYRAMID},
    "twins_svt_small": {"img_size": 64, **_PYRAMID, "wss": (2, 2, 2, 2)},
    "visformer_tiny": {"img_size": 64, "depth": (1, 2, 2)},
    "vit_base_patch16_clip_224": _VIT,
    "vit_base_patch16_rope_mixed_224": _VIT,
    "vit_base_patch16_siglip_224": _VIT,
    "vit_pe_core_tiny_patch16_384": _VIT,
    "vit_relpos_small_patch16_224": _VIT,
    "vit_small_patch14_reg4_dinov2": {**_VIT, "img_size": 56},
    "vit_small_patch16_dinov3": _VIT,
    "vit_tiny_patch16_224": _VIT,
    "vit_tiny_r_s16_p8_224": _VIT,
    "volo_d1_224": {
        "class": "volo.VOLO",
        "img_size": 64,
        "layers": (1, 1, 1, 1),
        "embed_dims": (32, 64, 64, 64),
        "num_heads": (1, 2, 2, 2),
    },
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2},
}
"""Names of timm's registry to the arguments that make them small."""

_TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 64}
_P16 = {**_TOWER, "patch_size": 16}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]}
_SWIN = {"image_size": 64, "window_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [1, 2]}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Aimv2VisionModel": {**_P16, "use_head": True},
    "BeitForImageClassification": {**_P16, "use_relative_position_bias": True},
    "BlipVisionModel": _P16,
    "CLIPVisionModelWithProjection": {**_P16, "projection_dim": CLASSES},
    "CvtForImageClassification": {"embed_dim": [16, 32, 64], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "Data2VecVisionForImageClassification": {**_P16, "use_shared_relative_position_bias": True},
    "DeiTForImageClassificationWithTeacher": _P16,
    "Dinov2ForImageClassification": {**_P16, "patch_size": 8},
    "Dinov2WithRegistersForImageClassification": {**_P16, "patch_size": 8},
    "DINOv3ViTModel": {**_P16, "num_register_tokens": 4},
    "DPTModel": _P16,
    "GLPNModel": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 1, 2, 2]},
    "GroupViTVisionModel": {
        **_TOWER,
        "patch_size": 16,
        "depths": [1, 1],
        "num_group_tokens": [4, 0],
        "num_output_groups": [4, 1],
        "num_hidden_layers": 2,
    },
    "HieraForImageClassification": {"image_size": [64, 64], "embed_dim": 32, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    "IJepaForImageClassification": _P16,
    "InternVLVisionModel": {**_P16, "image_size": [64, 64], "patch_size": [16, 16]},
    "LevitForImageClassification": {
        "image_size": 64,
        "hidden_sizes": [32, 64, 96],
        "num_attention_heads": [2, 2, 4],
        "depths": [1, 1, 1],
        "key_dim": [16, 16, 16],
    },
    "MobileViTForImageClassification": {
        "image_size": 64,
        "hidden_sizes": [32, 48, 64],
        "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 64],
    },
    "MobileViTV2ForImageClassification": {"image_size": 64},
    "PvtForImageClassification": {"image_size": 64, **_STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "PvtV2ForImageClassification": {"image_size": 64, **_STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "SamVisionModel": {
        **_P16,
        "output_channels": 16,
        "global_attn_indexes": [1],
        "window_size": 2,
        "num_pos_feats": 16,
        "mlp_dim": 128,
    },
    "SegformerForImageClassification": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 32, 48, 64],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "SiglipVisionModel": _P16,
    "SwinForImageClassification": _SWIN,
    "Swinv2ForImageClassification": _SWIN,
    "ViTForImageClassification": _P16,
    "ViTMAEModel": {**_P16, "mask_ratio": 0.0},
    "ViTMSNForImageClassification": _P16,
    "VitDetModel": {**_P16, "window_block_indices": [0], "window_size": 2, "use_relative_position_embeddings": True},
    "YolosForObjectDetection": {**_P16, "image_size": [64, 64], "num_detection_tokens": 4},
}
"""Classes of transformers to the configurations that make them small."""


class Architecture(NamedTuple):
    """One row's network.

    Attributes:
        library: ``timm`` or ``transformers``.
        name: Of timm's registry, or of the class.
    """

    library: str
    name: str


ALL = (*(Architecture("timm", name) for name in TIMM), *(Architecture("transformers", name) for name in TRANSFORMERS))


class Vector(nn.Module):
    """A network whose one output is logits or, without a classifier, a vector of the image.

    Args:
        net: Takes pixels, float32 [N, 3, H, W]; gives a tensor, or an output of transformers.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, K]."""
        given: Any = self.net(pixels)
        for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
            if not isinstance(given, Tensor) and getattr(given, name, None) is not None:
                given = getattr(given, name)
        if isinstance(given, (tuple, list)):
            given = given[0]
        if given.ndim == 4:  # [N, C, H, W]
            return given.mean((2, 3))
        return given.mean(1) if given.ndim == 3 else given  # [N, T, D]


def build(architecture: Architecture, *, fused: bool = True) -> tuple[nn.Module, int]:
    """The network without its wrapper, and the height and width of the images it takes.

    Args:
        architecture: Which.
        fused: Whether attention is one function of torch's, or written out.
    """
    torch.manual_seed(0)
    if architecture.library == "timm":
        import timm

        arguments = {"num_classes": CLASSES, **TIMM[architecture.name]}
        kept, kind = arguments.pop("kept", None), arguments.pop("class", None)
        make = partial(timm.create_model, architecture.name) if kind is None else attrgetter(kind)(timm.models)
        timm.layers.set_fused_attn(fused)
        net = make(**arguments)
        for part in net.modules() if kept else ():
            if isinstance(blocks := getattr(part, "blocks", None), (nn.Sequential, nn.ModuleList)):
                part.blocks = blocks[:kept]
        side = arguments.get("img_size", 240 if architecture.name.endswith("_240") else 128)
    else:
        import transformers

        kind = getattr(transformers, architecture.name)
        labels = (
            {"num_labels": CLASSES}
            if architecture.name.split("For")[-1] in ("ImageClassification", "ImageClassificationWithTeacher")
            else {}
        )
        config = kind.config_class(**TRANSFORMERS[architecture.name], **labels)
        config._attn_implementation = None if fused else "eager"
        net = kind(config)
        size = getattr(getattr(config, "vision_config", config), "image_size", 64)
        side = size if isinstance(size, int) else size[0]
    randomise(net, torch.randn(8, 3, side, side))
    return net.eval(), side


def randomise(net: nn.Module, pixels: Tensor) -> None:
    """Draw every weight anew; BatchNorm takes the statistics of ``pixels``, float32 [N, 3, H, W]."""
    with torch.no_grad():
        for name, value in net.named_parameters():
            if re.search(r"freq|rope|logit_scale|temperature", name) is None:
                _draw(name, value)
        normalisations = [part for part in net.eval().modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        for part in normalisations:
            part.train().momentum = 1.0
        if normalisations:
            net(pixels)


def _draw(name: str, value: Tensor) -> None:
    factor = re.search(r"(weight|gamma|lambda1?|lambda_.|scale)$", name) is not None
    if value.ndim > 1 and name.endswith("weight"):
        value.normal_(0, 1 / math.sqrt(max(1, value[0].numel())))
    elif value.ndim == 1 and factor:
        value.normal_(1, 0.1)
    else:
        value.normal_(0, 0.2 if value.ndim > 1 else 0.05)
