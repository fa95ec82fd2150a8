"""Token merging in PyTorch, against what can be said of it without it."""

import msgspec
import pytest
import torch

from tests.checkpoints import cases
from vitdeploy.models.merging import merge, merge_tokens
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.zoo.cost import count_macs


def test_the_most_alike_become_their_mean_and_stay_apart_from_the_protected():
    """Keys on a circle: of the first set (rows 1, 3, 5) row 3 is nearest to row 4 of the second (rows 2, 4)."""
    angles = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.01, 4.0])
    keys = torch.stack((angles.cos(), angles.sin()), -1)[None]
    x, sizes = torch.arange(6.0)[None, :, None], torch.tensor([[1.0, 1, 2, 3, 1, 1]])
    merged, behind = merge(x, sizes, keys, 1, 1)
    assert merged[0, 0] == 0  # protected
    assert sorted(merged[0, 1:3, 0].tolist()) == [1, 5]
    assert merged[0, 3:, 0].tolist() == pytest.approx([2, (3 * 3 + 4) / 4])
    assert behind[0].tolist()[3:] == [2, 4]
    assert behind.sum() == sizes.sum()


def test_several_can_become_part_of_one():
    keys = torch.tensor([[[1.0, 0], [1, 0], [1, 0.01], [0, 1], [-1, 1], [0, -1]]])
    x = torch.tensor([1.0, 2, 3, 100, 50, 60])[None, :, None]
    merged, behind = merge(x, None, keys, 2, 0)
    assert merged[0, :, 0].tolist() == pytest.approx([50, 2, 100, 60])
    assert behind[0].tolist() == [1, 3, 1, 1]


def test_equal_tokens_are_merged_without_a_loss():
    """Patches that come in equal pairs, without positions: each pair is one token of size 2, and attention knows."""
    spec = cases.spec("pairs", position="none", depth=4)
    net = cases.shaken(spec)
    pixels = torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(1))
    pixels = pixels.unflatten(3, (2, 8)).repeat_interleave(2, 3).flatten(3)  # every patch twice, side by side
    with torch.inference_mode():
        expected, merged = net(pixels), merge_tokens(net, (7, 0, 0, 0))(pixels)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "tokens-all", "qkv-bias-qv", "qk-norm", "like-dinov2"])
def test_a_network_merges_in_every_run_anew(name):
    net = cases.shaken(cases.CASES[name])
    pixels = torch.randn(3, net.spec.input.channels, net.spec.input.height, net.spec.input.width)
    merged = merge_tokens(net, (3, 0))
    assert isinstance(merged, VisionTransformer)
    with torch.inference_mode():
        first, again = merged.outputs(pixels), merged.outputs(pixels[:2])
        torch.testing.assert_close(first[net.spec.output][:2], again[net.spec.output])
        assert first["tokens"].shape[1] == net.spec.tokens - 3
        assert (net(pixels) - first[net.spec.output]).abs().max() > 1e-5
        torch.testing.assert_close(merge_tokens(net, (0, 0))(pixels), net(pixels))


def test_merged_tokens_are_not_counted():
    spec = cases.spec()
    width, hidden, tokens = spec.width, spec.mlp_size, spec.tokens
    merged = msgspec.structs.replace(spec, merged=(3, 0))
    less = 3 * 2 * width * hidden * 2 + 4 * 3 * width * width + 2 * (tokens**2 - (tokens - 3) ** 2) * width
    assert count_macs(spec) - count_macs(merged) == less
