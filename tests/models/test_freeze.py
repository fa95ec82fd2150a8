"""`freeze` computes constants and changes no function."""

from __future__ import annotations

import copy

import msgspec
import pytest
import torch

from tests.checkpoints.cases import CASES, pixels, shaken
from vitdeploy.models.freeze import absorb_normalisation, freeze
from vitdeploy.models.vit import Attention


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_freezing_changes_nothing(name: str) -> None:
    original = shaken(CASES[name]).train()  # freeze must put its copy into evaluation mode by itself
    before = copy.deepcopy(original.state_dict())
    frozen = freeze(original)
    assert original.training
    assert before.keys() == original.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    assert all(parameter.requires_grad for parameter in original.parameters())
    images = pixels(CASES[name])
    with torch.no_grad():
        expected, actual = original.eval().outputs(images), frozen.outputs(images)
    for key, value in expected.items():
        assert (actual[key] - value).abs().max() <= 1e-5 * value.std(), key


@pytest.mark.parametrize("name", ["plain", "rotary-eva02-qk-norm", "like-eva02", "like-siglip"])
def test_freezing_twice_is_freezing_once(name: str) -> None:
    once = freeze(shaken(CASES[name]))
    twice, images = freeze(once), pixels(CASES[name])
    with torch.no_grad():
        assert torch.equal(once(images), twice(images))


@pytest.mark.parametrize("name", CASES)
def test_frozen_model_has_nothing_left_to_compute(name: str) -> None:
    frozen = freeze(shaken(CASES[name]))
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert frozen.token_table() is frozen.table
    for module in frozen.modules():
        if isinstance(module, Attention):
            assert module.decomposed
            assert not module.interleaved
            assert not hasattr(module, "q_bias")
            assert module.bias() is module.qkv.bias


def test_frozen_copy_shares_no_memory() -> None:
    original = shaken(CASES["plain"])
    frozen = freeze(original)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    assert frozen(pixels(CASES["plain"])).abs().sum() > 0


ABSORBING = [
    "plain",
    "patch-linear-rectangular",
    "patch-no-bias",
    "channels-1",
    "channels-5",
    "rectangular-patch",
    "pre-norm",
]


@pytest.mark.parametrize("name", ABSORBING)
def test_absorbed_normalisation_takes_raw_pixels(name: str) -> None:
    channels = CASES[name].input.channels
    mean, std = tuple(0.3 + 0.05 * c for c in range(channels)), tuple(0.2 + 0.03 * c for c in range(channels))
    model = msgspec.structs.replace(CASES[name], input=msgspec.structs.replace(CASES[name].input, mean=mean, std=std))
    original = shaken(model)
    shape = (3, channels, model.input.height, model.input.width)
    raw = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).float()
    normalised = (raw / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    raw_taking = freeze(original)
    absorb_normalisation(raw_taking)
    with torch.no_grad():
        expected, actual = original(normalised), raw_taking(raw)
    assert (actual - expected).abs().max() <= 2e-5 * expected.std()
