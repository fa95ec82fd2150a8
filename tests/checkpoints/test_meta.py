"""Meta's own files: networks of timm's and transformers' with Meta's names, for what can't be downloaded here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints.test_peers import peer
from tests.checkpoints.test_timm import checkpoint, close, created, loaded
from tests.checkpoints.timm_cases import Case
from vitdeploy.checkpoints import meta, safetensors, timm
from vitdeploy.checkpoints.conversion import convert
from vitdeploy.checkpoints.families import load
from vitdeploy.checkpoints.meta import SOURCE
from vitdeploy.errors import InputError

State = dict[str, Tensor]


def network(name: str, side: int = 0, depth: int = 2, **arguments: Any) -> nn.Module:
    return created(peer("timm"), Case(name, "", side, arguments, depth))


def renamed(state: State, names: dict[str, str]) -> State:
    """Names changed by patterns, one after another."""
    new = {}
    for name, value in state.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        new[name] = value
    return new


def hidden(state: State) -> State:
    """With the token that stands for hidden patches."""
    return {**state, "mask_token": torch.randn(1, state["cls_token"].shape[-1])}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("name", "side"), [("vit_small_patch14_dinov2", 98), ("vit_giant_patch14_dinov2", 42)])
def test_dinov2(name: str, side: int, chunked: bool) -> None:
    theirs = network(name, side, depth=1 if "giant" in name else 2)
    state = hidden(dict(theirs.state_dict()))
    if "giant" in name:
        state = renamed(state, {r"mlp\.fc1": "mlp.w12", r"mlp\.fc2": "mlp.w3"})
    if chunked:
        state = renamed(state, {r"^blocks\.(\d+)": r"blocks.\1.\1"})
    ours = loaded(SOURCE, checkpoint(state))
    assert ours.spec.name == ("dinov2_vitg14" if "giant" in name else "dinov2_vits14")
    assert (ours.spec.input.resize_to, ours.spec.position_resample) == (None, "bicubic-offset"), "small images are whole"
    close(ours, theirs)


def test_dinov2_with_registers() -> None:
    """Meta gives the class token a position of its own; timm has added it to the token."""
    theirs: Any = network("vit_small_patch14_reg4_dinov2", 98)
    state = hidden(renamed(dict(theirs.state_dict()), {"reg_token": "register_tokens"}))
    place = torch.randn(1, 1, 384)
    state["pos_embed"] = torch.cat((place, state["pos_embed"]), 1)
    state["cls_token"] = state["cls_token"] - place
    ours = loaded(SOURCE, checkpoint(state))
    assert (ours.spec.registers, ours.spec.position_prefix) == (4, True)
    close(ours, theirs)
    theirs.set_input_size(img_size=(56, 70))
    model = ours.spec.change_size(56, 70)
    close(safetensors.assemble(model, convert(state, SOURCE.rules(checkpoint(state), model)).state), theirs)


@pytest.mark.parametrize("wide", [False, True])
def test_dinov2_with_a_linear_head(wide: bool) -> None:
    theirs: Any = network("vit_small_patch14_dinov2", 42, depth=1)
    head = nn.Linear(768, 9)
    state = {
        **hidden(dict(theirs.state_dict())),
        "linear_head.weight": head.weight.detach(),
        "linear_head.bias": head.bias.detach(),
    }
    if wide:
        state["linear_head.weight"] = torch.zeros(9, 5 * 384)
        with pytest.raises(InputError, match="several blocks"):
            SOURCE.spec(checkpoint(state), None)
        return

    def run(images: Tensor) -> Tensor:
        tokens = theirs.forward_features(images)
        return head(torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1))

    close(loaded(SOURCE, checkpoint(state)), run)


def dinov3(name: str) -> tuple[Any, State]:
    """timm's network, and its weights as Meta stores them: one bias for all three, and a mask."""
    theirs = network(name, 256, depth=1, global_pool="token")
    state = renamed(
        dict(theirs.state_dict()),
        {"reg_token": "storage_tokens", r"gamma_(\d)": r"ls\1.gamma", "fc1_g": "w1", "fc1_x": "w2", r"(mlp\.)fc2": r"\1fc2"},
    )
    if "plus" in name:
        state = renamed(state, {r"mlp\.fc2": "mlp.w3"})
    query, value = (state.pop(f"blocks.0.attn.{part}_bias") for part in "qv")
    state["blocks.0.attn.qkv.bias"] = torch.cat((query, torch.randn(384), value))  # what the mask hides must not count
    state["blocks.0.attn.qkv.bias_mask"] = torch.cat((torch.ones(384), torch.zeros(384), torch.ones(384)))
    state["rope_embed.periods"] = 100.0 ** (torch.arange(16) / 16)
    state["local_cls_norm.weight"] = torch.ones(384)
    return theirs, hidden(state)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
def test_dinov3(name: str) -> None:
    theirs, state = dinov3(name)
    ours = loaded(SOURCE, checkpoint(state))
    assert (ours.spec.name, ours.spec.qkv_bias, ours.spec.input.resize) == ("dinov3_vits16", "qv", "stretch")
    close(ours, theirs)


def test_dinov3_of_satellite_images_is_told_by_its_file() -> None:
    _, state = dinov3("vit_small_patch16_dinov3_qkvb")
    given = checkpoint(state)._replace(path=Path("dinov3_vits16_pretrain_sat493m.pth"))
    assert SOURCE.spec(given, None).input.mean == (0.43, 0.411, 0.296)
    assert SOURCE.spec(given, "mine").name == "mine"


@pytest.mark.parametrize("change", ["periods", "untied"])
def test_other_dinov3_networks_are_refused(change: str) -> None:
    _, state = dinov3("vit_small_patch16_dinov3_qkvb")
    if change == "periods":
        state["rope_embed.periods"] = 10.0 ** (torch.arange(16) / 16)
        with pytest.raises(InputError, match="periods"):
            SOURCE.spec(checkpoint(state), None)
        return
    given = checkpoint({**state, "cls_norm.weight": torch.ones(384), "cls_norm.bias": torch.ones(384)})
    model = SOURCE.spec(given, None)
    with pytest.raises(InputError, match="cls_norm"):
        safetensors.assemble(model, convert(given.state, SOURCE.rules(given, model)).state)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("wrapper", ["", "teacher", "model"])
def test_files_load(tmp_path: Path, wrapper: str) -> None:
    theirs, state = dinov3("vit_small_patch16_dinov3_qkvb")
    names = {f"backbone.{name}" if wrapper == "teacher" else name: value for name, value in state.items()}
    torch.save({wrapper: names} if wrapper else names, tmp_path / "weights.pth")
    found = load(tmp_path / "weights.pth")
    assert found.origin["source"] == "meta"
    assert "blocks.0.attn.qkv.bias (in part)" in found.origin["left_out"]
    close(safetensors.assemble(found.spec, found.state, found.grid), theirs)


def test_biases_that_are_no_three_parts_are_refused() -> None:
    _, state = dinov3("vit_small_patch16_dinov3_qkvb")
    with pytest.raises(InputError, match="3 parts"):
        SOURCE.spec(checkpoint({**state, "blocks.0.attn.qkv.bias": torch.zeros(1000)}), None)


def test_mae_with_its_decoder() -> None:
    theirs = network("vit_base_patch16_224", 64, depth=1, num_classes=0)
    decoder = {
        "decoder_embed.weight": torch.zeros(512, 768),
        "decoder_pos_embed": torch.zeros(1, 17, 512),
        "decoder_blocks.0.norm1.weight": torch.zeros(512),
        "decoder_pred.bias": torch.zeros(768),
        "mask_token": torch.zeros(1, 1, 512),
    }
    given = checkpoint({**theirs.state_dict(), **decoder})
    ours = loaded(SOURCE, given)
    assert ours.spec.name == "mae_vitb16" and "Masked Autoencoders" in ours.spec.source
    assert set(convert(given.state, SOURCE.rules(given, ours.spec)).left_out) == set(decoder)
    close(ours, theirs)


def test_mae_fine_tuned_is_read_as_timms() -> None:
    """Meta's fine-tuning pools the patches and normalises after: timm's ``global_pool='avg'``, name for name."""
    theirs = network("vit_base_patch16_224", 64, depth=1, global_pool="avg")
    given = checkpoint(theirs.state_dict())
    assert not SOURCE.recognise(given)
    close(loaded(timm.SOURCE, given, "vit_base_patch16_224.mae"), theirs)


def test_dino_with_its_head() -> None:
    theirs = network("vit_small_patch8_224", 32, depth=1, num_classes=0)
    head = {"head.mlp.0.weight": torch.zeros(4, 384), "head.last_layer.weight_g": torch.zeros(9, 1)}
    ours = loaded(SOURCE, checkpoint({**theirs.state_dict(), **head}))
    assert ours.spec.name == "dino_vits8" and ours.spec.input.mean == (0.485, 0.456, 0.406)
    close(ours, theirs)


def test_a_file_like_timms_is_left_to_timm() -> None:
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        assert not SOURCE.recognise(checkpoint(network(name, 32, depth=1).state_dict()))
    assert not SOURCE.recognise(checkpoint(hidden(dict(network("vit_tiny_patch16_224", 32, depth=1).state_dict()))))


def test_every_rule_that_leaves_something_out_says_why() -> None:
    for rule in (*meta.RULES, *timm.RULES):
        assert rule.why or rule.ours is not None, rule
