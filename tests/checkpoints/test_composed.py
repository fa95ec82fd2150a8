"""Weights in several tensors: the layer that torch itself computes with, to the last bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from vitdeploy.checkpoints.composed import compose
from vitdeploy.errors import InputError


def pruned(net: nn.Module) -> None:
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    prune.random_unstructured(net[0], "bias", amount=0.25)
    prune.ln_structured(net[1], "weight", amount=0.5, n=2, dim=0)


def older(wrap: Callable[..., object]) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            for layer in net:
                wrap(layer)

    return change


def newer(wrap: Callable[..., object], **options: object) -> Callable[[nn.Module], None]:
    return lambda net: [wrap(layer, **options) for layer in net] and None


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "pruning": pruned,
    "weight_norm": newer(parametrizations.weight_norm),
    "weight_norm, other axis": newer(parametrizations.weight_norm, dim=1),
    "weight_norm, older": older(nn.utils.weight_norm),
    "weight_norm, of all": older(lambda layer: nn.utils.weight_norm(layer, dim=None)),
    "spectral_norm": newer(parametrizations.spectral_norm),
    "spectral_norm, older": older(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_weight_is_the_layers_own(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Conv2d(3, 5, 2))
    CHANGES[name](net)
    net.eval()
    with torch.no_grad():
        net[0](torch.ones(2, 6)), net[1](torch.ones(1, 3, 4, 4))  # older ones compute the weight when they are called
    before = {key: value.clone() for key, value in net.state_dict().items()}
    made, notes = compose(before)
    assert set(made) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for place in (0, 1):
        assert torch.allclose(made[f"{place}.weight"], net[place].weight.detach(), rtol=1e-5, atol=1e-7)
        assert torch.equal(made[f"{place}.bias"], net[place].bias.detach())
        assert made[f"{place}.weight"].dtype == torch.float32
    assert len(notes) == 1 and notes[0].endswith(f"({name.split(',')[0]})")


def test_a_mask_of_any_type_is_exact() -> None:
    weight = torch.randn(4, 4)
    for kind in (torch.bool, torch.uint8, torch.float32):
        made, notes = compose({"a.weight_orig": weight, "a.weight_mask": (weight > 0).to(kind)})
        assert torch.equal(made["a.weight"], weight.clamp(min=0))
    assert notes == ("computed 1 weights of their parts (pruning)",)


def test_other_tensors_stay() -> None:
    state = {"weight_g": torch.ones(1), "x.weight_orig": torch.ones(2), "blocks.0.weight": torch.ones(3)}
    made, notes = compose(state)
    assert made == state
    assert notes == ()


LORA = {
    "beside a base layer": {"q.base_layer.weight": (4, 4), "q.lora_A.default.weight": (2, 4), "q.lora_B.default.weight": (4, 2)},
    "alone": {"base_model.model.q.lora_A.weight": (2, 4)},
    "loralib": {"q.lora_A": (2, 4), "q.weight": (4, 4)},
    "DoRA": {"q.lora_magnitude_vector.default.weight": (4,)},
}


@pytest.mark.parametrize("name", LORA)
def test_an_adapter_is_refused_by_name(name: str) -> None:
    state: dict[str, Tensor] = {key: torch.ones(shape) for key, shape in LORA[name].items()}
    with pytest.raises(
        InputError, match=r"LoRA adapter that is not merged .*lora_.*; where it was made, run: .*merge_and_unload"
    ):
        compose(state)


def test_a_parametrization_that_only_code_knows() -> None:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    with pytest.raises(InputError, match=r"'parametrizations.weight.original'.*remove_parametrizations") as caught:
        compose(layer.state_dict())
    assert caught.value.code == "VD3015"


def test_parts_of_two_sizes() -> None:
    with pytest.raises(InputError, match=r"parts of 'a.weight' \(pruning\) that do not fit: \[4, 4\], \[3, 4\]") as caught:
        compose({"a.weight_orig": torch.ones(4, 4), "a.weight_mask": torch.ones(3, 4)})
    assert caught.value.code == "VD3009"
