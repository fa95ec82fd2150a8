"""Every spec that is refused: with its code, exit status 2, the numbers and the way out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.cases import contract, spec
from vitdeploy.errors import UsageError
from vitdeploy.spec import InputContract, ModelSpec, read_spec

NAN, INFINITY = float("nan"), float("inf")

SPECS: list[tuple[dict[str, Any], str, str]] = [
    # code, what the one line says
    ({"input": contract(35, 32)}, "VD2004", "image height 35 is not a multiple of the patch 8; use 32"),
    ({"input": contract(32, 30)}, "VD2004", "image width 30 is not a multiple of the patch 8; use 32"),
    ({"input": contract(3, 32)}, "VD2004", "image height 3 .*; use 8"),
    ({"heads": 5}, "VD2005", "5 heads do not divide the width 32; use 4 heads, or give head_width"),
    ({"heads": 100}, "VD2005", "100 heads .*; use 32 heads"),
    ({"heads": 5, "head_width": 8, "pool": "map"}, "VD2005", "5 heads do not divide the width 32; use 4 heads$"),
    ({"width": 0}, "VD2003", "size below 1"),
    ({"depth": 0}, "VD2003", "size below 1"),
    ({"heads": 0}, "VD2003", "size below 1"),
    ({"heads": -4}, "VD2003", "size below 1"),
    ({"patch": (0, 8)}, "VD2003", "size below 1"),
    ({"patch": (8, -8)}, "VD2003", "size below 1"),
    ({"head_width": 0}, "VD2003", "size below 1"),
    ({"mlp_width": 0}, "VD2003", "size below 1"),
    ({"head": "mlp", "head_mlp_width": 0}, "VD2003", "size below 1"),
    ({"registers": -1}, "VD2003", "-1 registers"),
    ({"norm_eps": 0.0}, "VD2003", "norm_eps 0.0"),
    ({"norm_eps": NAN}, "VD2003", "norm_eps nan"),
    ({"rotary": "eva02", "width": 24}, "VD2006", "head size divisible by 4, this one is 6"),
    ({"rotary": "dinov3", "head_width": 10}, "VD2006", "head size divisible by 4, this one is 10"),
    ({"position": "sincos2d", "width": 30, "heads": 3}, "VD2006", "width divisible by 4, this one is 30"),
    ({"position": "sinusoidal", "width": 15, "heads": 3}, "VD2006", "even width, this one is 15"),
    ({"class_token": False}, "VD2006", "pool 'cls' needs a class token; set class_token = true, or pool = 'mean'"),
    ({"class_token": False, "pool": "cls+mean"}, "VD2006", "pool 'cls\\+mean' needs a class token; set"),
    ({"class_token": False, "distillation_token": True, "pool": "mean"}, "VD2006", "distillation token .*; set class_token"),
    ({"mlp": "linear", "mlp_norm": True, "mlp_width": None}, "VD2006", "mlp_norm needs an MLP with a hidden layer"),
    ({"head": "none"}, "VD2006", "head is 'none' but classes is 5; set head = 'none' and classes = 0 together"),
    ({"classes": 0}, "VD2006", "head is 'linear' but classes is 0; set"),
    ({"classes": -1}, "VD2003", "classes is -1"),
    ({"head": "projection", "problem": "regression"}, "VD2006", "problem is 'regression', but head = 'projection' gives an emb"),
    ({"head": "distilled"}, "VD2006", "distilled head needs a distillation token"),
    ({"head": "distilled", "distillation_token": True, "pool": "mean"}, "VD2006", "distilled head .* pool = 'cls'"),
    ({"labels": ("cat", "dog")}, "VD2003", "2 labels for 5 classes"),
    ({"head": "projection", "labels": tuple("abcde")}, "VD2006", "5 labels, but a projection gives an embedding"),
    ({"head": "projection", "classes": 0}, "VD2006", "head is 'projection' but classes is 0"),
]

CONTRACTS: list[tuple[dict[str, Any], str]] = [
    ({"height": 0}, "input is 3 x 0 x 224; all must be positive"),
    ({"width": -1}, "all must be positive"),
    ({"channels": 0}, "all must be positive"),
    ({"channels": 1}, "1 channels, but 3 means and 3 standard deviations"),
    ({"mean": (0.5,)}, "3 channels, but 1 means"),
    ({"std": (0.5, 0.5)}, "3 means and 2 standard deviations"),
    ({"std": (0.5, 0.0, 0.5)}, "all must be positive"),
    ({"std": (0.5, NAN, 0.5)}, "all must be positive"),
    ({"std": (0.5, INFINITY, 0.5)}, "all must be positive"),
    ({"mean": (0.5, NAN, 0.5)}, "all must be finite"),
    ({"resize_to": 200}, "resize_to is 200, smaller than the crop 224 x 224; raise resize_to, or leave it out"),
    ({"resize_to": 0}, "resize_to is 0, smaller"),
    ({"height": 96, "width": 256, "resize_to": 128}, "smaller than the crop 96 x 256"),
]


def check(error: UsageError, code: str, says: str) -> None:
    line = str(error)
    assert error.code == code
    assert error.exit_code == 2
    assert "\n" not in line
    assert re.search(says, line), line


@pytest.mark.parametrize(("changes", "code", "says"), SPECS, ids=str)
def test_bad_spec(changes: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec(**changes)
    check(caught.value, code, says)


@pytest.mark.parametrize(("changes", "says"), CONTRACTS, ids=str)
def test_bad_contract(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        InputContract(**changes)
    check(caught.value, "VD2003", says)


def test_resizing_to_a_size_that_the_patch_does_not_divide() -> None:
    with pytest.raises(UsageError) as caught:
        spec().change_size(36, 32)
    check(caught.value, "VD2004", "use 32|use 40")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ('name = "m"\nwidht = 48\n', "VD2002", "line 2: unknown key 'widht'; did you mean 'width'"),
        ('name = "m"\n[input]\nheigth = 32\n', "VD2002", "line 3: unknown key 'input.heigth'; did you mean 'height'"),
        ('name = "m"\nwidth = "wide"\n', "VD2003", "width"),
        ('name = "m"\npool = "average"\n', "VD2003", "average"),
        ('name = "m"\nheads = 5\n', "VD2005", "5 heads do not divide the width 768"),
        ("width = 48\n", "VD2003", "name"),
        ("name = \n", "VD2007", "not valid TOML"),
    ],
)
def test_bad_spec_file(tmp_path: Path, text: str, code: str, says: str) -> None:
    path = tmp_path / "model.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_spec(path)
    check(caught.value, code, says)
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**12 + 1},
        {"depth": 10**9},
        {"registers": 10**9},
        {"norm_eps": float("inf")},
        {"norm_eps": float("nan")},
        {"layer_scale": float("nan")},
        {"rotary_grid": (0, -3)},
        {"network": "module", "patch": (0, 0)},
    ],
    ids=str,
)
def test_sizes_that_no_network_has_are_refused_at_once(change) -> None:
    with pytest.raises(UsageError) as caught:
        ModelSpec(name="x", **change)
    assert caught.value.code == "VD2003"
