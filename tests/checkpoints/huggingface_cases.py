"""Every transformers class that is understood, as small random models; the table of what loads is made of this list."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Case(NamedTuple):
    """One model: `options` go to the configuration class of `architecture`, over `SMALL`.

    Attributes:
        family: As people call it.
        architecture: Class of transformers.
        options: Of its configuration; ``vision`` says that they stand in ``vision_config`` beside a text tower.
        sizes: Image heights and widths that are compared, the one of the configuration first.
        vision: See `options`.
    """

    family: str
    architecture: str
    options: Mapping[str, Any] = MappingProxyType({})
    sizes: tuple[tuple[int, int], ...] = ((32, 32), (48, 40), (24, 24))
    vision: bool = False

    @property
    def id(self) -> str:
        """For pytest."""
        return "-".join([self.architecture, *(f"{key}={value}" for key, value in self.options.items())])


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_RELATIVE, _SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
_ABSOLUTE = {"use_absolute_position_embeddings": True}

HUGGINGFACE: tuple[Case, ...] = (
    Case("ViT", "ViTModel"),
    Case("ViT", "ViTModel", {"qkv_bias": False, "hidden_act": "gelu_new"}),
    Case("ViT", "ViTForImageClassification"),
    Case("ViT", "ViTForImageClassification", {"hidden_act": "relu", "num_channels": 1, "layer_norm_eps": 1e-3}),
    Case("ViT", "ViTForMaskedImageModeling", {"encoder_stride": 8}),
    Case("DeiT", "DeiTModel"),
    Case("DeiT", "DeiTForImageClassification"),
    Case("DeiT", "DeiTForImageClassificationWithTeacher"),
    Case("DeiT", "DeiTForMaskedImageModeling", {"encoder_stride": 8}),
    Case("DINOv2", "Dinov2Model"),
    Case("DINOv2", "Dinov2Model", {"use_swiglu_ffn": True}),
    Case("DINOv2", "Dinov2Model", {"use_mask_token": False, "mlp_ratio": 2}),
    Case("DINOv2", "Dinov2ForImageClassification"),
    Case("DINOv2 with registers", "Dinov2WithRegistersModel"),
    Case("DINOv2 with registers", "Dinov2WithRegistersModel", {"use_swiglu_ffn": True, "num_register_tokens": 2}),
    Case("DINOv2 with registers", "Dinov2WithRegistersForImageClassification"),
    Case("DINOv3", "DINOv3ViTModel", {"num_register_tokens": 4}),
    Case("DINOv3", "DINOv3ViTModel", {"key_bias": True}),
    Case("DINOv3", "DINOv3ViTModel", {"query_bias": False, "value_bias": False, "num_register_tokens": 4}),
    Case("DINOv3", "DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}),
    Case("CLIP", "CLIPVisionModel"),
    Case("CLIP", "CLIPVisionModelWithProjection", {"projection_dim": 24}),
    Case("CLIP", "CLIPModel", {"hidden_act": "gelu"}, vision=True),
    Case("CLIP", "CLIPForImageClassification", vision=True),
    Case("SigLIP", "SiglipVisionModel"),
    Case("SigLIP", "SiglipVisionModel", {"vision_use_head": False}),
    Case("SigLIP", "SiglipModel", vision=True),
    Case("SigLIP", "SiglipForImageClassification", vision=True),
    Case("ViT-MAE", "ViTMAEModel", {"mask_ratio": 0.0}),
    Case("ViT-MAE", "ViTMAEForPreTraining", {"mask_ratio": 0.0, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32}),
    Case("ViT-MSN", "ViTMSNModel"),
    Case("ViT-MSN", "ViTMSNForImageClassification"),
    Case("I-JEPA", "IJepaModel"),
    Case("I-JEPA", "IJepaForImageClassification"),
    Case("BEiT", "BeitModel", _RELATIVE),
    Case("BEiT", "BeitModel", {**_SHARED, "use_mean_pooling": False}),
    Case("BEiT", "BeitModel", {**_ABSOLUTE, **_RELATIVE, "use_mask_token": True}),
    Case("BEiT", "BeitForImageClassification", _RELATIVE),
    Case("BEiT", "BeitForImageClassification", {**_ABSOLUTE, "layer_scale_init_value": 0.0}),
    Case("BEiT", "BeitForMaskedImageModeling", {**_SHARED, "use_mask_token": True}),
    Case("data2vec", "Data2VecVisionModel", _SHARED),
    Case("data2vec", "Data2VecVisionForImageClassification", _RELATIVE),
)
"""All cases; all build in milliseconds."""
