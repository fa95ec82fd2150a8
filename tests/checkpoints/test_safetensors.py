"""Weights in our own names: what goes in comes out, packed, resampled or reshaped where that keeps the function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.cases import CASES, contract, pixels, shaken, spec
from vitdeploy.checkpoints import safetensors
from vitdeploy.checkpoints.safetensors import rebuild
from vitdeploy.models import positions
from vitdeploy.models.vit import VisionTransformer, build


def saved(model: VisionTransformer, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    model = shaken(CASES[name])
    again = rebuild(model.spec, saved(model, tmp_path))
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(pixels(model.spec)), model(pixels(model.spec)))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read_as_float32(kind: torch.dtype, tmp_path: Path) -> None:
    state = {name: value.to(kind) for name, value in shaken(spec()).state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    contents = safetensors.read(tmp_path / "weights.safetensors")
    assert all(value.dtype == torch.float32 for value in contents.values())
    assert all(torch.equal(value, state[name].float()) for name, value in contents.items())


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with separate projections for queries, keys and values."""
    separate = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                separate[name.replace(".qkv.", f".{part}.")] = tensor.clone()
        else:
            separate[name] = value
    return separate


@pytest.mark.parametrize("name", ["plain", "heads-inner-wider", "qkv-bias-none", "qkv-bias-qv"])
def test_separate_projections_are_packed(name: str) -> None:
    model, other = shaken(CASES[name]), build(CASES[name])
    state = apart(model.state_dict())
    before = dict(state)
    safetensors.fill(other, state)
    assert state.keys() == before.keys()  # not changed
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["bicubic", "bicubic-antialias"])
@pytest.mark.parametrize("changes", [{}, {"distillation_token": True}, {"registers": 2, "position_prefix": False}], ids=str)
def test_another_image_size_resamples_the_positions(changes: dict[str, object], method: str) -> None:
    model = shaken(spec(**changes, position_resample=method))
    larger = build(model.spec.change_size(64, 48))
    safetensors.fill(larger, model.state_dict())
    expected = positions.resample(model.pos_embed.detach(), (4, 4), larger.spec)
    assert torch.equal(larger.pos_embed, expected)
    assert torch.equal(larger.head.weight, model.head.weight)
    assert larger(pixels(larger.spec)).isfinite().all()


def test_table_of_a_rectangular_grid_needs_to_be_told() -> None:
    model = shaken(spec(input=contract(16, 64)))  # grid 2 x 8: as many patches as 4 x 4
    square = build(spec())
    safetensors.fill(square, model.state_dict(), grid=(2, 8))
    assert torch.equal(square.pos_embed, positions.resample(model.pos_embed.detach(), (2, 8), square.spec))


@pytest.mark.parametrize("kinds", [("conv", "linear"), ("linear", "conv")])
def test_patch_embeddings_exchange_weights(kinds: tuple[str, str]) -> None:
    changes = {"input": contract(24, 40), "patch": (6, 10)}
    model, other = shaken(spec(**changes, embed=kinds[0])), build(spec(**changes, embed=kinds[1]))
    safetensors.fill(other, model.state_dict())
    with torch.no_grad():
        expected, found = model(pixels(model.spec)), other(pixels(model.spec))
    assert (found - expected).abs().max() <= 1e-5 * expected.std()


def test_filling_copies() -> None:
    state = shaken(spec()).state_dict()
    model = build(spec())
    safetensors.fill(model, state)
    state["head.weight"].zero_()
    assert model.head.weight.any()
