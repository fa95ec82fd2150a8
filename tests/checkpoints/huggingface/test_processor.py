"""``preprocessor_config.json`` gives the pixels of transformers' processors, or is refused by the option that can't."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.huggingface_folders import checkpoint, plain, transformers
from vitdeploy.checkpoints.huggingface import FAMILIES, SOURCE
from vitdeploy.data import images
from vitdeploy.errors import InputError, UsageError, VitdeployError


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of theirs
        yield


def picture(height: int, width: int) -> Image.Image:
    small = np.random.RandomState(height).randint(0, 256, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


PROCESSORS: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "ViT", {}),
    ("vit", "ViT", {"size": 96, "resample": 3}),
    ("vit", "ViT", {"size": {"height": 64, "width": 96}}),
    ("vit", "ViT", {"do_normalize": False}),
    ("vit", "ViT", {"do_rescale": False}),
    ("vit", "ViT", {"do_rescale": False, "do_normalize": False}),
    ("vit", "ViT", {"rescale_factor": 1 / 127.5}),
    ("vit_mae", "ViT", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}),
    ("deit", "DeiT", {}),
    ("deit", "DeiT", {"size": 224}),
    ("deit", "DeiT", {"size": {"height": 128, "width": 96}, "crop_size": {"height": 64, "width": 48}}),
    ("dinov2", "Bit", {}),
    ("dinov2", "Bit", {"size": {"shortest_edge": 256}}),
    ("clip", "CLIP", {}),
    ("clip", "CLIP", {"size": 119, "crop_size": 96}),
    ("clip", "CLIP", {"size": {"shortest_edge": 119}, "crop_size": {"height": 96, "width": 64}}),
    ("siglip", "Siglip", {}),
    ("beit", "Beit", {}),
    ("beit", "Beit", {"resample": 2, "size": 96}),
]


@pytest.mark.parametrize(("kind", "processor", "options"), PROCESSORS, ids=[f"{p}-{o}" for _, p, o in PROCESSORS])
def test_images_are_prepared_as_by_transformers(kind: str, processor: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers()
    module = importlib.import_module(f"transformers.models.{processor.lower()}.image_processing_pil_{processor.lower()}")
    theirs = getattr(module, f"{processor}ImageProcessorPil")(**options)
    written = json.loads(theirs.to_json_string())
    for file in (written, {**options, "feature_extractor_type": f"{processor}FeatureExtractor"}):
        contract = SOURCE.spec(checkpoint(*plain(kind), **file), None).input
        for number, size in enumerate([(301, 333), (97, 61), (517, 80), (33, 35)]):
            path = tmp_path / f"{number}.png"
            picture(*size).save(path)
            with Image.open(path) as opened:
                expected = np.asarray(theirs(opened.convert("RGB"))["pixel_values"][0])
            tensor = images.to_tensor(images.load(path, contract), contract)[0]
            assert tensor.shape == expected.shape
            step = 1 / 255 / min(contract.std)
            assert np.abs(tensor - expected).max() < step / 100, "not the same pixels"


def test_dinov3_resizes_within_one_step(tmp_path: Path) -> None:
    """Its processor has no Pillow form: it resizes in floating point and rounds nothing."""
    transformers()
    module = importlib.import_module("transformers.models.dinov3_vit.image_processing_dinov3_vit")
    theirs = module.DINOv3ViTImageProcessor(size={"height": 96, "width": 96})
    contract = SOURCE.spec(checkpoint(*plain("dinov3_vit"), **json.loads(theirs.to_json_string())), None).input
    path = tmp_path / "a.png"
    picture(201, 333).save(path)
    with Image.open(path) as opened:
        expected = np.asarray(theirs(opened.convert("RGB"), return_tensors="np")["pixel_values"][0])
    tensor = images.to_tensor(images.load(path, contract), contract)[0]
    assert np.abs(tensor - expected).max() < 1.01 / 255 / min(contract.std)


@pytest.mark.parametrize("kind", FAMILIES)
def test_without_a_preprocessor_the_class_has_defaults(kind: str) -> None:
    """As transformers' class, for the size of the network; the spec's source says so."""
    side = 448
    spec = SOURCE.spec(checkpoint(*plain(kind, image_size=side)), None)
    assert "no preprocessor_config.json" in spec.source
    assert (spec.input.height, spec.input.width) == (side, side)
    transformers()
    name = FAMILIES[kind].processor
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    mapping = dict(auto.IMAGE_PROCESSOR_MAPPING_NAMES)
    if kind in mapping:
        assert f"{name}ImageProcessor" in str(mapping[kind])
    module = name.lower() if name != "DINOv3ViT" else "dinov3_vit"
    theirs = getattr(importlib.import_module(f"transformers.models.{module}.image_processing_{module}"), f"{name}ImageProcessor")
    assert spec.input.mean == tuple(theirs.image_mean)
    assert spec.input.std == tuple(theirs.image_std)
    assert spec.input.interpolation == {2: "bilinear", 3: "bicubic"}[int(theirs.resample)]


BAD_FILES: list[tuple[dict[str, Any], str]] = [
    ({"resample": 1}, "resample = 1 (lanczos)"),
    ({"resample": 0}, "(nearest)"),
    ({"resample": "bicubic"}, "(unknown)"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
    ({"size": {"shortest_edge": 32}}, "without a crop"),
    ({"size": {"longest_edge": 32}}, "size"),
    ({"size": "32"}, "size"),
    ({"size": {"shortest_edge": -1}}, "size"),
    ({"do_center_crop": True, "crop_size": "all"}, "crop_size"),
    ({"do_center_crop": True, "crop_size": {"height": 224, "width": 112}}, "another shape than the 224 x 224"),
    ({"do_center_crop": True, "do_resize": False}, "do_resize"),
    ({"rescale_factor": 0}, "rescale_factor"),
    ({"rescale_factor": None, "image_mean": ["a"]}, "image_mean"),
    ({"do_pad": True}, "do_pad"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order"),
    ({"crop_pct": 0.875}, "crop_pct"),
]


@pytest.mark.parametrize(("file", "named"), BAD_FILES, ids=[str(file)[:40] for file, _ in BAD_FILES])
def test_a_preprocessor_that_no_contract_describes_is_refused(file: dict[str, Any], named: str) -> None:
    with pytest.raises((InputError, UsageError)) as caught:
        SOURCE.spec(checkpoint(*plain(), **file), None)
    assert caught.value.code == ("VD2011" if "resample" in file else "VD3015")
    assert named in str(caught.value)


def test_images_of_the_right_size_need_no_resize() -> None:
    spec = SOURCE.spec(checkpoint(*plain(), do_resize=False), None)
    assert (spec.input.resize, spec.input.height, spec.input.width) == ("none", 32, 32)


def test_one_number_may_stand_for_every_channel() -> None:
    spec = SOURCE.spec(checkpoint(*plain(num_channels=1), image_mean=0.3, image_std=[0.2]), None)
    assert (spec.input.mean, spec.input.std) == ((0.3,), (0.2,))


JUNK: list[Any] = [
    *(None, True, -1, 0, 3, 2**70, 1e308, float("nan"), "a", [], [1], ["a"], {}, {"shortest_edge": None}, [[1]]),
    *({"height": 0, "width": 3}, {"height": 8, "width": 8}, {"shortest_edge": 9, "longest_edge": 9}),
]
OPTIONS = (
    *("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "do_normalize", "rescale_factor"),
    *("image_mean", "image_std", "image_processor_type", "feature_extractor_type", "do_pad"),
)


@pytest.mark.parametrize("key", OPTIONS)
@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_files_from_outside_end_in_a_contract_or_an_error_of_ours(kind: str, key: str) -> None:
    for value in JUNK:
        for more in ({}, {"do_center_crop": True}):
            with suppress(VitdeployError):
                SOURCE.spec(checkpoint(*plain(kind), **{**more, key: value}), None)
