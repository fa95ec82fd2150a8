"""What a spec derives and how it travels; what it refuses stands in faults/test_bad_specs.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.checkpoints.cases import CASES, contract, spec
from vitdeploy.recipe import read_spec
from vitdeploy.spec import InputContract, ModelSpec


@pytest.mark.parametrize("name", CASES)
def test_a_spec_survives_json(name: str) -> None:
    assert msgspec.json.decode(msgspec.json.encode(CASES[name]), type=ModelSpec) == CASES[name]


def test_a_spec_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\npatch = [8, 16]\nwidth = 48\nheads = 3\n[input]\nheight = 32\nwidth = 48\n')
    assert read_spec(path) == ModelSpec(name="mine", patch=(8, 16), width=48, heads=3, input=InputContract(height=32, width=48))


def test_the_default_is_vit_base() -> None:
    model = ModelSpec(name="default")
    assert (model.grid, model.patches, model.prefix, model.tokens, model.positions) == ((14, 14), 196, 1, 197, 197)
    assert (model.head_size, model.inner, model.mlp_size, model.pooled_size, model.output) == (64, 768, 3072, 768, "logits")


@pytest.mark.parametrize(
    ("changes", "prefix", "positions"),
    [
        ({}, 1, 17),
        ({"position_prefix": False}, 1, 16),
        ({"class_token": False, "pool": "mean"}, 0, 16),
        ({"distillation_token": True}, 2, 18),
        ({"registers": 4}, 5, 17),
        ({"registers": 4, "distillation_token": True, "position_prefix": False}, 6, 16),
    ],
)
def test_tokens_and_positions(changes: dict[str, object], prefix: int, positions: int) -> None:
    model = spec(**changes)
    assert (model.prefix, model.tokens, model.positions) == (prefix, prefix + 16, positions)


def test_rectangles() -> None:
    model = spec(input=contract(24, 40), patch=(6, 10))
    assert (model.grid, model.patches) == ((4, 4), 16)


def test_heads_need_not_fill_the_width() -> None:
    assert spec(head_width=12).inner == 48
    assert spec(heads=5, head_width=32).inner == 160  # 5 does not divide 32, but need not


def test_outputs() -> None:
    heads = {"none": "pooled", "linear": "logits", "mlp": "logits", "projection": "embedding"}
    for head, output in heads.items():
        model = spec(head=head, classes=5 if head != "none" else 0)
        assert (model.output, model.classifies) == (output, output == "logits")
    assert spec(classes=1).classifies
    assert spec(head="distilled", distillation_token=True).output == "logits"
    assert spec(pool="cls+mean").pooled_size == 64


def test_resized_keeps_the_share_of_the_crop() -> None:
    model = ModelSpec(name="m", input=InputContract(resize_to=256))
    assert model.change_size(448, 448).input.resize_to == 512
    assert model.change_size(448, 224).input.resize_to == 512
    assert model.change_size(448, 224).grid == (28, 14)
    assert InputContract().change_size(96, 64).shorter == 96


def test_specs_are_hashable_values() -> None:
    assert len({spec(), spec(), spec(width=64)}) == 2
