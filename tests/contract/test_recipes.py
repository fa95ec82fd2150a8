"""Every recipe loads, says what it is, and those that need nothing of the reader's own run."""

import re
from pathlib import Path

import pytest
from msgspec.structs import replace
from safetensors.torch import save_file

import vitdeploy as vd
from tests.contract.test_calibration import recipe as load_script
from vitdeploy.backends.targets import settle_recipe
from vitdeploy.recipe import Recipe
from vitdeploy.verbs.exporter import export
from vitdeploy.verbs.permission import load_permitted

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.toml") if "[model]" in path.read_text())
WHOLE = ("ci", "openvino", "module", "mapping")
"""Those that run as they are, beside the demo, which `make demo` and the README run."""
CODE = {"module": f"{FOLDER}/own_vit.py:build"}
"""What the command line must name beside a recipe that imports code."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_first_comment_gives_the_command(path) -> None:
    settle_recipe(Recipe.load(path))
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].strip("# ").startswith(f"vitdeploy build recipes/{path.name} -o runs/{path.stem}")
    assert ("--module recipes/own_vit.py:build" in lines[1]) == (path.stem in CODE)


def test_every_recipe_stands_on_the_page() -> None:
    assert set(re.findall(r"`recipes/([\w.]+)`", (FOLDER / "README.md").read_text())) >= {path.name for path in RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_recipe_that_needs_nothing_else_runs_and_passes(name, tmp_path, monkeypatch) -> None:
    recipe = load_permitted(FOLDER / f"{name}.toml", CODE.get(name))
    if name == "mapping":  # its first comment's second line
        script = load_script("own_vit")
        save_file(script.read_weights(), tmp_path / "own_vit.safetensors")
        recipe = replace(recipe, model=replace(recipe.model, weights=str(tmp_path / "own_vit.safetensors")))
        assert Path(Recipe.load(FOLDER / "mapping.toml").model.weights).resolve() == script.CHECKPOINT
    brief = {"bench": recipe.bench and replace(recipe.bench, rounds=2, seconds=0.05, batches=(1,))}
    quantize = replace(recipe.quantize, limit=64, verify=False)
    recipe = replace(recipe, validate=replace(recipe.validate, limit=400), quantize=quantize, **brief)
    report = vd.build(recipe, tmp_path / "out")
    assert report.passed
    rows = {row.subject for part in report.parts for row in part.rows}
    if name == "module":  # what the code gave travels along; it is not imported a second time
        assert {part.reference for whole in report.parts for part in (whole, *whole.parts)} >= {"pytorch (recorded)"}
    assert any(subject.startswith(("quantize / ", "compile / ")) for subject in rows), rows


@pytest.mark.slow
def test_the_mapping_is_the_function_of_the_code_that_it_came_from(tmp_path) -> None:
    """The line that the mapping's recipe names."""
    script = load_script("own_vit")
    save_file(script.read_weights(), tmp_path / "own_vit.safetensors")
    model = vd.ModelConfig(source=str(FOLDER / "own_vit_mapping.toml"), weights=str(tmp_path / "own_vit.safetensors"))
    made = export(model, vd.ExportConfig(prove_batches=(1, 2)), tmp_path / "out", against=CODE["module"])
    assert made.record.unproven == ""
