"""What a spec derives and how it travels; what it refuses stands in faults/test_bad_specs.py."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.checkpoints.cases import CASES, contract, spec
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputContract, ModelSpec, read_spec


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
        assert model.output_size == {"none": 32}.get(head, 5)
    assert spec(output_name="output0").output == "output0"
    assert spec(head="distilled", distillation_token=True).output == "logits"
    assert spec(pool="cls+mean").pooled_size == 64


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "single_label"),
        ({"problem": "multi_label"}, "multi_label"),
        ({"problem": "multi_label", "classes": 1}, "multi_label"),
        ({"problem": "regression"}, "regression"),
        ({"classes": 1}, "regression"),  # it chooses among nothing
        ({"head": "projection", "classes": 1}, "embedding"),
        ({"head": "none", "classes": 0}, "embedding"),
    ],
)
def test_what_the_main_output_is(fields, task) -> None:
    model = spec(**fields)
    assert (model.task, model.classifies) == (task, task == "single_label")


def test_numbers_taken_for_something_else() -> None:
    linear = spec(labels=("a", "b"), classes=2)
    assert linear.change_task("multi_label") == msgspec.structs.replace(linear, problem="multi_label")
    embedding = linear.change_task("embedding")
    assert (embedding.head, embedding.labels, embedding.classes) == ("projection", (), 2)
    assert embedding.change_task("regression").task == "regression"
    headless = spec(head="none", classes=0)
    assert headless.change_task("embedding") == headless
    for head, task in (("mlp", "embedding"), ("none", "regression")):
        with pytest.raises(UsageError) as caught:
            spec(head=head, classes=2 if head == "mlp" else 0).change_task(task)
        assert caught.value.code == "VD2006"


def test_resized_keeps_the_share_of_the_crop() -> None:
    model = ModelSpec(name="m", input=InputContract(resize_to=256))
    assert model.change_size(448, 448).input.resize_to == 512
    assert model.change_size(448, 224).input.resize_to == 512
    assert model.change_size(448, 224).grid == (28, 14)
    assert InputContract().change_size(96, 64).shorter == 96


def test_specs_are_hashable_values() -> None:
    assert len({spec(), spec(), spec(width=64)}) == 2
