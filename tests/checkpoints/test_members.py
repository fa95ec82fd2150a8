"""Where a network stands in a larger module: found by its parts, whatever the member is called; neighbours never in silence."""

from __future__ import annotations

import pytest

from vitdeploy.checkpoints.members import find_roots, place

NETWORK = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "norm.weight")
HEADED = (*NETWORK, "head.weight")


def under(root: str, names: tuple[str, ...] = HEADED) -> list[str]:
    return [root + name for name in names]


@pytest.mark.parametrize("root", ["", "net.", "1.", "timm_model.", "base_model.model.", "a.b.c.d."])
def test_a_network_is_found_under_any_name(root: str) -> None:
    assert find_roots([*under(root), "other.weight"]) == (root,)
    placed = place(under(root))
    assert tuple(placed.names.values()) == HEADED
    assert bool(placed.notes) == bool(root)
    assert not placed.doubt


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("criterion.weight", "criterion"),  # a loss has weights of its own
        ("loss_fn.class_weight", "loss_fn"),
        ("train_loss.center.weight", "train_loss"),
        ("val_acc.tp", "val_acc"),  # a counter has none
        ("confusion", "confusion"),
        ("optimizer.param.weight", "optimizer"),
    ],
)
def test_what_is_no_layer_is_left_out_and_said(beside: str, said: str) -> None:
    placed = place([*under("net."), beside])
    assert tuple(placed.names.values()) == HEADED
    assert placed.notes == (
        f"stripped 'net.', under which the network stands, from 4 of 5 names; left out {said}, which is no layer of the network",
    )


def test_a_loss_beside_a_network_without_a_prefix() -> None:
    placed = place([*HEADED, "criterion.weight"])
    assert tuple(placed.names) == HEADED
    assert placed.notes == ("left out criterion, which is no layer of the network",)


def test_a_loss_inside_the_member() -> None:
    placed = place([*under("net."), "net.criterion.weight"])
    assert tuple(placed.names.values()) == HEADED
    assert "left out net.criterion" in placed.notes[0]


def test_a_normalisation_before_the_network_is_the_contracts() -> None:
    placed = place([*under("1."), "0.mean", "0.std"])
    assert tuple(placed.names.values()) == HEADED
    assert placed.notes[0].endswith(
        "left out 0, which is no layer of the network; if 0.mean, 0.std normalise pixels, the input contract must say the same"
    )


@pytest.mark.parametrize("beside", ["neck.0.weight", "decoder.bias", "model.decoder.weight", "adapter.up.in_proj_weight"])
def test_other_layers_keep_every_name_as_it_is(beside: str) -> None:
    names = [*under("model.net."), beside]
    placed = place(names)
    assert placed.names == {name: name for name in names}
    assert placed.notes == ()
    assert placed.doubt == f"holds a network under 'model.net.', beside layers that are not its own: {beside}"


@pytest.mark.parametrize("head", ["head.weight", "model.head.weight", "model.classifier.0.weight"])
def test_a_head_belongs_to_the_network_beside_it(head: str) -> None:
    placed = place([*under("model.backbone.", NETWORK), head])
    assert tuple(placed.names.values()) == (*NETWORK, head.removeprefix("model."))
    assert placed.notes[0].endswith("stood beside it")


def test_two_heads_of_one_name() -> None:
    names = [*under("backbone."), "head.weight"]
    placed = place(names)
    assert placed.names == {name: name for name in names}
    assert placed.doubt == "holds a network under 'backbone.', and a head inside and beside it"


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("online_model.", "ema_model."),
        ("student.backbone.", "teacher.backbone."),
        ("model.", "model.ema."),
        ("net.q.", "net.averaged_q."),
        ("", "swa."),
    ],
)
def test_an_average_and_a_plain_copy(plain: str, average: str) -> None:
    names = [*under(plain), *under(average), "initted", "step"]
    for prefer, root, other, word in (
        (None, average, plain, "averaged"),
        ("ema", average, plain, "averaged"),
        ("plain", plain, average, "plain"),
    ):
        placed = place(names, prefer)
        assert placed.averaged
        chosen = {name: new for name, new in placed.names.items() if new in HEADED}
        assert chosen == {root + name: name for name in HEADED}
        assert f"took these {word} weights, not those under {other!r}" in placed.notes[0]


def test_heads_of_the_other_network_go_with_it() -> None:
    sides = ("student", "teacher")
    names = [name for side in sides for name in (*under(f"{side}.backbone.", NETWORK), f"{side}.dino_head.mlp.0.weight")]
    placed = place(names)
    assert list(placed.names) == names[4:]
    assert list(placed.names.values()) == [*NETWORK, "dino_head.mlp.0.weight"]


@pytest.mark.parametrize("roots", [("a.", "b."), ("ema.", "teacher."), ("a.", "b.", "ema.")])
def test_networks_that_nothing_tells_apart(roots: tuple[str, ...]) -> None:
    names = [name for root in roots for name in under(root)]
    placed = place(names)
    assert placed.names == {name: name for name in names}
    assert "whole networks, under 'a.'" in placed.doubt or "two whole networks, under 'ema.' and 'teacher.'" in placed.doubt


def test_words_inside_other_words_are_no_average() -> None:
    assert place([*under("schema."), *under("b.")]).doubt
