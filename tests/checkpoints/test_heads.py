"""Heads as people put them on a network become one Linear that computes the same, or are refused for what is not in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vitdeploy.checkpoints.heads import settle_heads
from vitdeploy.checkpoints.source import Checkpoint
from vitdeploy.errors import InputError


def checkpoint(head: nn.Module, name: str = "head") -> Checkpoint:
    state = {f"{name}.{key}": value for key, value in head.state_dict().items()}
    return Checkpoint(Path("a.pth"), {"norm.weight": torch.ones(6), **state}, {}, {}, {}, ())


def probe(affine: bool, eps: float, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, affine=affine, eps=eps)
    net = nn.Sequential(norm, nn.Linear(6, 3, bias=bias))
    for _ in range(20):
        net(torch.randn(64, 6) * torch.tensor([1e-3, 0.1, 1.0, 2.0, 5.0, 9.0]) + 3)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return net.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("affine", "eps"), [(False, 1e-6), (True, 1e-5)])
def test_a_probe_behind_a_batch_norm_is_one_linear_layer(affine: bool, eps: float, bias: bool) -> None:
    net = probe(affine, eps, bias)
    settled = settle_heads(checkpoint(net))
    assert set(settled.state) == {"norm.weight", "head.weight", "head.bias"}
    x = torch.randn(5, 6) + 3
    with torch.no_grad():
        ours = nn.functional.linear(x, settled.state["head.weight"], settled.state["head.bias"])
        assert torch.allclose(ours, net(x), rtol=1e-4, atol=1e-4 * float(net(x).std()))
    assert settled.notes == (
        f"read head.1, the one layer of a Sequential, as head, with the BatchNorm before it folded in (eps {eps:g})",
    )


@pytest.mark.parametrize("name", ["head", "classifier", "heads.head"])
def test_a_sequential_of_one_layer(name: str) -> None:
    settled = settle_heads(checkpoint(nn.Sequential(nn.Dropout(), nn.Linear(6, 3)), name))
    assert set(settled.state) == {"norm.weight", f"{name}.weight", f"{name}.bias"}
    assert settled.notes == (f"read {name}.1, the one layer of a Sequential, as {name}",)


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)),
        nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),  # what lies between is not nothing
        nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(3, 3)),
    ],
)
def test_more_layers_than_one_are_refused(head: nn.Module) -> None:
    with pytest.raises(
        InputError, match=r"has a head of \d layers \(head\.0, .*no weights to tell it; .* --module FILE"
    ) as caught:
        settle_heads(checkpoint(head))
    assert (caught.value.code, caught.value.file) == ("VD3015", "a.pth")


def test_numbered_layers_elsewhere_are_no_heads() -> None:
    given = Checkpoint(Path("a"), {"stem.0.weight": torch.ones(1), "dino_head.mlp.0.weight": torch.ones(1)}, {}, {}, {}, ())
    assert settle_heads(given) == given
