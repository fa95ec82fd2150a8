"""The network: every option builds and runs, equations 1 to 4 hold, and randomness is where it belongs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.checkpoints.cases import CASES, contract, pixels, shaken, spec
from vitdeploy.models.freeze import freeze
from vitdeploy.models.vit import Attention, VisionTransformer, build
from vitdeploy.spec import ModelSpec

Array = NDArray[np.float64]


@pytest.mark.parametrize("name", CASES)
def test_every_option_builds_and_runs(name: str) -> None:
    model, batch = CASES[name], 3
    built = shaken(model)
    with torch.no_grad():
        outputs, main = built.outputs(pixels(model, batch)), built(pixels(model, batch))
    assert outputs["tokens"].shape == (batch, model.tokens, model.width)
    assert outputs["pooled"].shape == (batch, model.pooled_size)
    assert set(outputs) == {"tokens", "pooled", model.output}
    if model.head != "none":
        assert outputs[model.output].shape == (batch, model.classes)
    assert all(output.dtype == torch.float32 and output.isfinite().all() for output in outputs.values())
    assert torch.equal(main, outputs[model.output])
    assert not torch.allclose(outputs[model.output][0], outputs[model.output][1], atol=1e-5)  # images differ, so do outputs


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_matters(name: str) -> None:
    built = shaken(CASES[name])
    built(pixels(CASES[name])).square().sum().backward()
    dead = [key for key, parameter in built.named_parameters() if parameter.grad is None]
    assert not dead


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_images_of_a_batch_do_not_touch(name: str) -> None:
    built, images = shaken(CASES[name]), pixels(CASES[name])
    with torch.no_grad():
        together, alone = built(images), torch.cat([built(image[None]) for image in images])
    assert (together - alone).abs().max() <= 1e-5 * max(1.0, float(together.std()))


# Equations 1 to 4, written down once more in numpy and float64


def linear(x: Array, state: dict[str, Array], name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(x: Array, state: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attention(x: Array, state: dict[str, Array], name: str, heads: int) -> Array:
    tokens, width = x.shape
    size = width // heads
    query, key, value = np.split(linear(x, state, f"{name}.qkv"), 3, -1)
    mixed = np.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for token in range(tokens):
            scores = np.array([query[token, own] @ key[other, own] / math.sqrt(size) for other in range(tokens)])
            weights = np.exp(scores - scores.max())
            mixed[token, own] = (weights / weights.sum()) @ value[:, own]
    return linear(mixed, state, f"{name}.proj")


def by_hand(image: Array, model: ModelSpec, state: dict[str, Array]) -> Array:
    rows, columns = model.grid
    kernel = state["patch_embed.proj.weight"].reshape(model.width, -1)
    patches = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * model.patch[0], column * model.patch[1]
            patch = image[:, top : top + model.patch[0], left : left + model.patch[1]]
            patches.append(kernel @ patch.reshape(-1) + state["patch_embed.proj.bias"])
    z = np.concatenate([state["cls_token"][0], np.stack(patches)]) + state["pos_embed"][0]  # (1)
    for block in range(model.depth):
        name = f"blocks.{block}"
        z = attention(layer_norm(z, state, f"{name}.norm1"), state, f"{name}.attn", model.heads) + z  # (2)
        hidden = gelu(linear(layer_norm(z, state, f"{name}.norm2"), state, f"{name}.mlp.fc1"))
        z = linear(hidden, state, f"{name}.mlp.fc2") + z  # (3)
    return linear(layer_norm(z, state, "norm")[0], state, "head")  # (4) and the head


@pytest.mark.parametrize("name", ["plain", "rectangular-image", "rectangular-patch", "channels-1"])
def test_equations_1_to_4(name: str) -> None:
    built, images = shaken(CASES[name]), pixels(CASES[name], 2)
    state = {key: value.double().numpy() for key, value in built.state_dict().items()}
    expected = np.stack([by_hand(image, CASES[name], state) for image in images.double().numpy()])
    with torch.no_grad():
        actual = built(images).numpy()
    assert np.abs(actual - expected).max() <= 1e-5 * expected.std()


def test_convolution_and_linear_embed_alike() -> None:
    changes = {"input": contract(24, 40), "patch": (6, 10)}
    conv, flat = shaken(spec(**changes)), build(spec(**changes, embed="linear"))
    state = conv.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    flat.load_state_dict(state)
    images = pixels(conv.spec)
    with torch.no_grad():
        expected, actual = conv.patch_embed(images), flat.patch_embed(images)
    assert actual.shape == (3, 16, 32)
    assert (actual - expected).abs().max() <= 1e-5 * expected.std()


@dataclass
class Width:
    heads: int
    head_width: int | None
    inner: int


@pytest.mark.parametrize("want", [Width(4, None, 32), Width(4, 12, 48), Width(3, 8, 24), Width(2, 32, 64)], ids=str)
def test_inner_width_is_heads_times_head_size(want: Width) -> None:
    attention = build(spec(heads=want.heads, head_width=want.head_width)).blocks[0].attn
    assert isinstance(attention, Attention)
    assert attention.qkv.weight.shape == (3 * want.inner, 32)
    assert attention.proj.weight.shape == (32, want.inner)
    assert attention.scale == attention.size**-0.5


def test_full_width_heads_see_the_whole_token() -> None:
    """head_width = width: each head has its own D x D projections; concatenated and projected back."""
    built = shaken(spec(heads=2, head_width=32, depth=1))
    attention, x = built.blocks[0].attn, torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        query, key, value = (part.split(32, -1) for part in attention.qkv(x).chunk(3, -1))
        heads = [(q @ k.mT / 32**0.5).softmax(-1) @ v for q, k, v in zip(query, key, value, strict=True)]
        expected = attention.proj(torch.cat(heads, -1))
        assert torch.allclose(attention(x, None), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scores_are_scaled_as_the_spec_says(scale: float) -> None:
    """With queries that are 1/sqrt(d) larger by that much, the usual scale gives the same."""
    spec = msgspec.structs.replace(CASES["plain"], scale=scale)
    ours, usual = build(spec), build(msgspec.structs.replace(spec, scale=None))
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.qkv.weight.mul_(8)  # scores that the softmax tells apart
        usual.load_state_dict(ours.state_dict())
        plain = usual(image := torch.randn(2, spec.input.channels, spec.input.height, spec.input.width))
        for block in usual.blocks:
            block.attn.qkv.weight[: spec.inner].mul_(scale * spec.head_size**0.5)
            block.attn.qkv.bias[: spec.inner].mul_(scale * spec.head_size**0.5)
        expected = usual(image)
        torch.testing.assert_close(ours(image), expected)
        torch.testing.assert_close(freeze(ours)(image), expected)
        assert (plain - expected).abs().max() > 0.01 * expected.std()


def test_dropping_works_in_training_only() -> None:
    plain = build(spec())
    model = VisionTransformer(spec(), drop_path=0.5)
    model.load_state_dict(plain.state_dict())
    images = pixels(spec())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(model.eval()(images), plain(images))
        first, second = model.train()(images), model(images)
    assert not torch.allclose(first, second)
    assert [block.drop_path for block in model.blocks] == [0.0, 0.5]


def test_drop_path_keeps_the_mean() -> None:
    block = VisionTransformer(spec(), drop_path=0.4).train().blocks[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = block.keep(torch.ones(4000, 1, 1))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.6])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)


def test_build_is_seeded_and_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(11)
    before = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    first, again, other = build(spec(), seed=3), build(spec(), seed=3), build(spec(), seed=4)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.training


def test_initialisation() -> None:
    built = build(spec(width=256, heads=8, layer_scale=0.25))
    assert all(not m.bias.any() for m in built.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    assert float(built.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(built.patch_embed.proj.weight.detach().std()) == pytest.approx((3 * 8 * 8) ** -0.5, rel=0.05)
    assert torch.equal(built.blocks[1].ls2.gamma, torch.full((256,), 0.25))


def test_distilled_head_averages() -> None:
    built = shaken(CASES["tokens-distilled"])
    with torch.no_grad():
        tokens = built.outputs(pixels(built.spec))["tokens"]
        expected = (built.head(tokens[:, 0]) + built.head_dist(tokens[:, 1])) / 2
        assert torch.allclose(built(pixels(built.spec)), expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pools_see_patches_only(pool: str) -> None:
    built = shaken(spec(pool=pool, registers=3, distillation_token=True))
    tokens = torch.randn(2, built.spec.tokens, 32, generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, : built.spec.prefix] += 100
    with torch.no_grad():
        assert torch.equal(built.pool(tokens), built.pool(changed))


def test_registers_have_no_position_and_stand_after_the_class_token() -> None:
    built = shaken(spec(registers=2))
    table = built.token_table()[0]
    assert torch.allclose(table[0], (built.cls_token + built.pos_embed[:, :1])[0, 0])
    assert torch.equal(table[1:3], built.reg_token[0])
    assert torch.equal(table[3:], built.pos_embed[0, 1:])


@pytest.mark.parametrize("name", CASES)
def test_builds_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = VisionTransformer(CASES[name])
    assert all(parameter.is_meta for parameter in model.parameters())
