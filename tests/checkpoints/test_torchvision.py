"""torchvision's checkpoints, held to torchvision itself on random weights, and to the preparation of its weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.checkpoints.test_peers import peer, shake
from tests.checkpoints.test_timm import checkpoint, close, loaded
from vitdeploy.checkpoints import safetensors
from vitdeploy.checkpoints.families import load
from vitdeploy.checkpoints.torchvision import SOURCE
from vitdeploy.data import images
from vitdeploy.errors import InputError, UsageError
from vitdeploy.zoo.cost import count_parameters

SIZES = {  # image side, patch, heads, width, MLP width
    "vit_b_16": (64, 16, 12, 768, 3072),
    "vit_b_32": (96, 32, 12, 768, 3072),
    "vit_l_16": (48, 16, 16, 1024, 4096),
    "vit_l_32": (64, 32, 16, 1024, 4096),
    "vit_h_14": (42, 14, 16, 1280, 5120),
}


def created(name: str, depth: int = 2, **changes: Any) -> nn.Module:
    models = peer("torchvision").models.vision_transformer
    side, patch, heads, width, hidden = SIZES[name]
    arguments = {"image_size": side, "patch_size": patch, "num_heads": heads, "hidden_dim": width, "mlp_dim": hidden}
    model: nn.Module = models.VisionTransformer(**{**arguments, "num_layers": depth, "num_classes": 10, **changes}).eval()
    shake(model)
    return model


@pytest.mark.parametrize("name", SIZES)
def test_equals_torchvision(name: str) -> None:
    theirs = created(name, depth=2 if name.startswith("vit_b") else 1)
    ours = loaded(SOURCE, checkpoint(theirs.state_dict()))
    assert (ours.spec.name, ours.spec.input.height) == (name, SIZES[name][0])
    close(ours, theirs)
    assert count_parameters(ours.spec) == sum(parameter.numel() for parameter in theirs.parameters())


def test_hidden_layer_in_the_head() -> None:
    theirs = created("vit_b_32", depth=1, representation_size=40)
    ours = loaded(SOURCE, checkpoint(theirs.state_dict()), "vit_b_32")
    assert (ours.spec.head, ours.spec.head_mlp_width) == ("mlp", 40)
    close(ours, theirs)


@pytest.mark.parametrize("kind", ["Linear", "Sequential", "inner Sequential", "none"])
def test_replaced_heads(kind: str) -> None:
    theirs: Any = created("vit_b_32", depth=1)
    linear = nn.Linear(768, 7)
    if kind == "inner Sequential":
        theirs.heads.head = nn.Sequential(nn.Dropout(), linear).eval()
    else:
        choices = {"Linear": linear, "Sequential": nn.Sequential(linear), "none": nn.Identity()}
        theirs.heads = choices[kind]
    close(loaded(SOURCE, checkpoint(theirs.state_dict())), theirs)


def test_old_names_of_the_mlp() -> None:
    theirs = created("vit_b_32", depth=1)
    old = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    state: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        state[name] = value
    close(loaded(SOURCE, checkpoint(state)), theirs)


PREPARED = [
    ("vit_b_16", "IMAGENET1K_V1", ""),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", ""),
    ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", "vit_b_16.swag"),
    ("vit_b_32", "IMAGENET1K_V1", ""),
    ("vit_l_16", "IMAGENET1K_V1", ""),
    ("vit_l_16", "IMAGENET1K_SWAG_E2E_V1", ""),
    ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1", ""),
    ("vit_h_14", "IMAGENET1K_SWAG_LINEAR_V1", ""),
]


@pytest.mark.parametrize(("name", "weights", "architecture"), PREPARED, ids=[f"{name}-{w}" for name, w, _ in PREPARED])
def test_pixels_are_prepared_as_torchvision_does(name: str, weights: str, architecture: str) -> None:
    chosen = peer("torchvision").models.get_model_weights(name)[weights]
    model = created(name, depth=1, image_size=chosen.meta["min_size"][0])
    contract = SOURCE.spec(checkpoint(model.state_dict()), architecture or None).input
    noise = np.random.default_rng(3).integers(0, 256, (417, 301, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((640, 433)).save(buffer, "PNG")
    expected = chosen.transforms()(Image.open(buffer).convert("RGB"))
    tensor = images.to_tensor(images.load(buffer.getvalue(), contract)[None], contract)[0]
    assert (torch.from_numpy(tensor) - expected).abs().max() <= 1 / 255 / min(contract.std)


@pytest.mark.slow
def test_a_file_loads(tmp_path: Path) -> None:
    theirs = created("vit_b_32", depth=1)
    torch.save(theirs.state_dict(), tmp_path / "vit_b_32.pth")
    found = load(tmp_path / "vit_b_32.pth")
    assert found.origin["source"] == "torchvision"
    close(safetensors.assemble(found.spec, found.state, found.grid), theirs)


def test_another_width_is_refused() -> None:
    model = created("vit_b_16", depth=1, hidden_dim=192, num_heads=3, mlp_dim=768)
    with pytest.raises(InputError) as caught:
        SOURCE.spec(checkpoint(model.state_dict()), None)
    assert caught.value.code == "VD3015" and "192" in caught.value.message


@pytest.mark.parametrize(("name", "code"), [("vit_b_61", "VD2001"), ("vit_l_16", "VD2010")])
def test_another_name_is_refused(name: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.spec(checkpoint(created("vit_b_16", depth=1).state_dict()), name)
    assert caught.value.code == code and "vit_b_16" in caught.value.fix
