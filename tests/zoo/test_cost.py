"""Analytic counts against what PyTorch counts, and against published figures."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.checkpoints.cases import CASES
from vitdeploy.models.freeze import freeze
from vitdeploy.models.vit import VisionTransformer, build
from vitdeploy.spec import ModelSpec
from vitdeploy.zoo.cost import count_macs, count_parameters
from vitdeploy.zoo.variants import VARIANTS, find

SMALLER = {
    name: msgspec.structs.replace(find(name).change_size(112, 112), depth=2)
    for name in ("deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_336")
}


def counted(model: VisionTransformer) -> int:
    shape = (1, model.spec.input.channels, model.spec.input.height, model.spec.input.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(shape))
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    return flops // 2


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_the_modules(name: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(CASES[name])
    assert count_parameters(CASES[name]) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*CASES, *SMALLER])
def test_macs_are_torchs(name: str) -> None:
    spec: ModelSpec = {**CASES, **SMALLER}[name]
    assert count_macs(spec) == counted(freeze(build(spec)))


@pytest.mark.parametrize(
    ("name", "published"),  # torchvision 0.25, models/vision_transformer.py, _ops: multiply-accumulates in 10^9
    [
        ("vit_base_patch16_224", 17.564),
        ("vit_base_patch32_224", 4.409),
        ("vit_large_patch16_224", 61.555),
        ("vit_large_patch32_224", 15.378),
        ("vit_huge_patch14_224", 167.295),
    ],
)
def test_macs_as_published(name: str, published: float) -> None:
    assert round(count_macs(find(name)) / 1e9, 3) == published


def test_macs_grow_with_the_image_and_parameters_only_with_the_position_table() -> None:
    for variant in VARIANTS.values():
        small, large = (variant.spec.change_size(n * variant.spec.patch[0], n * variant.spec.patch[1]) for n in (4, 8))
        assert count_macs(large) > 2 * count_macs(small)
        rows = large.positions - small.positions if variant.spec.position == "learned" else 0
        assert count_parameters(large) - count_parameters(small) == rows * variant.spec.width
