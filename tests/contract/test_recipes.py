"""Every recipe loads, says what it is, and those that need nothing of the reader's own run."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

import vitdeploy as vd
from vitdeploy.backends.targets import settle_recipe
from vitdeploy.recipe import Recipe

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.toml") if "[model]" in path.read_text())
WHOLE = ("ci", "openvino")
"""Those that run as they are, beside the demo, which `make demo` and the README run."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_first_comment_gives_the_command(path) -> None:
    settle_recipe(Recipe.load(path))
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].strip("# ").startswith(f"vitdeploy build recipes/{path.name} -o runs/{path.stem}")


def test_every_recipe_stands_on_the_page() -> None:
    assert set(re.findall(r"`recipes/([\w.]+)`", (FOLDER / "README.md").read_text())) >= {path.name for path in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_recipe_that_needs_nothing_else_runs_and_passes(name, tmp_path) -> None:
    recipe = Recipe.load(FOLDER / f"{name}.toml")
    brief = {"bench": recipe.bench and replace(recipe.bench, rounds=2, seconds=0.05, batches=(1,))}
    quantize = replace(recipe.quantize, limit=64, verify=False)
    recipe = replace(recipe, validate=replace(recipe.validate, limit=400), quantize=quantize, **brief)
    report = vd.build(recipe, tmp_path / "out")
    assert report.passed
    rows = {row.subject for part in report.parts for row in part.rows}
    assert any(subject.startswith(("quantize / ", "compile / ")) for subject in rows), rows
