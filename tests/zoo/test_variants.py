"""The table of known models: counts, names, contracts, and what an unknown name gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from vitdeploy.errors import UsageError
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.zoo.cost import count_parameters
from vitdeploy.zoo.variants import VARIANTS, find


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_as_built_as_counted_as_published(name: str) -> None:
    variant = VARIANTS[name]
    with torch.device("meta"):
        model = VisionTransformer(variant.spec)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == count_parameters(variant.spec)
    decimals = len(repr(variant.parameters_millions).partition(".")[2])
    assert abs(built / 1e6 - variant.parameters_millions) <= (0.5 * 10**-decimals if decimals > 2 else 0.005) + 1e-9
    assert variant.published


@pytest.mark.parametrize("name", VARIANTS)
def test_specs_say_where_they_come_from(name: str) -> None:
    spec = VARIANTS[name].spec
    assert spec.name == name
    assert "arXiv:" in spec.source
    assert f"patch{spec.patch[0]}" in name
    assert spec.patch[0] == spec.patch[1]
    assert spec.input.channels == 3
    if name.rpartition("_")[2].isdigit():
        assert name.endswith(f"_{spec.input.height}")
    assert find(name) is spec


def test_the_families_are_complete() -> None:
    wanted = {
        *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        *("vit_small_patch32_224", "vit_small_patch8_224", "vit_base_patch32_224", "vit_base_patch8_224"),
        *("vit_large_patch32_224", "vit_large_patch14_224", "vit_huge_patch14_224", "vit_giant_patch14_224"),
        *(f"deit_{size}{kind}_patch16_224" for size in ("tiny", "small", "base") for kind in ("", "_distilled")),
        *(f"vit_{size}_patch14{kind}_dinov2" for size in ("small", "base", "large", "giant") for kind in ("", "_reg4")),
        *(f"vit_{size}_patch16_dinov3{kind}" for size in ("small", "base", "large") for kind in ("", "_qkvb")),
        *(f"vit_{size}_clip_quickgelu_224" for size in ("base_patch32", "base_patch16", "large_patch14")),
        "vit_base_patch16_siglip_224",
        *("eva02_tiny_patch14_336", "eva02_small_patch14_336", "eva02_base_patch14_448"),
        *(f"eva02_{size}_patch14_224" for size in ("tiny", "small", "base")),
    }
    assert set(VARIANTS) == wanted


def test_clip_gives_an_embedding() -> None:
    assert {name for name, variant in VARIANTS.items() if variant.spec.output == "embedding"} == {
        name for name in VARIANTS if "_clip_" in name
    }


HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "size", "resize", "shorter", "interpolation", "numbers"),
    [
        ("vit_tiny_patch16_224", 224, "shortest", 248, "bicubic", HALF),
        ("vit_small_patch8_224", 224, "shortest", 256, "bicubic", IMAGENET),
        ("deit_tiny_patch16_224", 224, "shortest", 256, "bicubic", IMAGENET),
        ("deit_tiny_distilled_patch16_224", 224, "shortest", 256, "bicubic", IMAGENET),
        ("vit_small_patch14_dinov2", 518, "shortest", 592, "bicubic", IMAGENET),
        ("vit_small_patch16_dinov3", 256, "stretch", 256, "bilinear", IMAGENET),
        ("vit_base_patch32_clip_quickgelu_224", 224, "shortest", 224, "bicubic", CLIP),
        ("vit_base_patch16_siglip_224", 224, "stretch", 224, "bicubic", HALF),
        ("eva02_tiny_patch14_336", 336, "shortest", 336, "bicubic", CLIP),
        ("eva02_base_patch14_448", 448, "shortest", 448, "bicubic", CLIP),
        ("eva02_tiny_patch14_224", 224, "shortest", 248, "bicubic", CLIP),
    ],
)
def test_input_contracts(
    name: str, size: int, resize: str, shorter: int, interpolation: str, numbers: tuple[tuple[float, ...], ...]
) -> None:
    contract = find(name).input
    assert (contract.height, contract.width) == (size, size)
    assert (contract.resize, contract.shorter, contract.interpolation) == (resize, shorter, interpolation)
    assert (contract.mean, contract.std) == numbers
    assert (contract.crop_rounding, contract.antialias, contract.exif) == ("round", True, "ignore")


def test_dinov2_at_224_is_metas_own_evaluation() -> None:
    assert find("vit_small_patch14_dinov2").change_size(224, 224).input.shorter == 256


def test_every_variant_can_change_its_size() -> None:
    for variant in VARIANTS.values():
        sides = (2 * variant.spec.patch[0], 4 * variant.spec.patch[1])
        assert variant.spec.change_size(*sides).patches == 8


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("vit_tiny_patch16_242", "vit_tiny_patch16_224"),
        ("deit_tiny", "deit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "vit_tiny_patch16_224"),
    ],
)
def test_unknown_name_gets_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        find(typed)
    assert caught.value.code == "VD2001"
    assert caught.value.exit_code == 2
    assert f"did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize("typed", ["resnet50", ""])
def test_hopeless_name_gets_the_list(typed: str) -> None:
    with pytest.raises(UsageError, match="vitdeploy models") as caught:
        find(typed)
    assert caught.value.code == "VD2001"


def test_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        VARIANTS["mine"] = VARIANTS["vit_tiny_patch16_224"]  # type: ignore[index]


@pytest.mark.parametrize("module", ["zoo.variants", "zoo.cost", "spec"])
def test_needs_neither_torch_nor_numpy(module: str) -> None:
    code = f"import sys, vitdeploy.{module}; sys.exit(bool({{'torch', 'numpy', 'onnx'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
