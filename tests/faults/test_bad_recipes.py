"""Recipes as people mistype them: the key, the line and the nearest right name are in the message; exit 2, nothing written."""

import re
from pathlib import Path

import pytest

from vitdeploy.cli.commands import main
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import Recipe
from vitdeploy.spec import read_spec
from vitdeploy.verbs.inspector import inspect

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = '[model]\nsource = "vit_tiny_patch16_224"\n'


def load(tmp_path, text: str | bytes) -> Recipe:
    path = tmp_path / "job.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Recipe.load(path)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (GOOD + "\n[export]\nopsett = 20\n", "VD2002", r"line 5: unknown key 'export\.opsett'; did you mean 'opset'\?"),
        (GOOD + "\n[bnch]\n", "VD2002", r"line 4: unknown key 'bnch'; did you mean 'bench'\?"),
        ("[model]\nsuorce = 'x'\n", "VD2002", r"line 2: unknown key 'model\.suorce'; did you mean 'source'\?"),
        (GOOD + "[bench]\nrounds = 3\n# rounds\nzzzz = 1\n", "VD2002", r"line 6: unknown key 'bench\.zzzz'; known keys: "),
        (GOOD + "export.opsets = 20\n", "VD2002", r"unknown key"),
        (GOOD + '[export]\nopset = "20"\n', "VD2003", r"Expected `int`, got `str`.*export\.opset"),
        (GOOD + '[export]\ninput = "uint8"\n', "VD2003", r"Invalid enum value 'uint8'.*export\.input"),
        (GOOD + "[export]\nopset = true\n", "VD2003", r"got `bool`"),
        (GOOD + "[export]\nimage_size = [224]\n", "VD2003", r"length 2"),
        (GOOD + "[bench]\nbatches = 1\n", "VD2003", r"Expected `array`, got `int`"),
        ("[export]\nopset = 20\n", "VD2003", r"missing required field `model`"),
        ("[model]\nseed = 1\n", "VD2003", r"missing required field `source`"),
        ("model = 3\n", "VD2003", r"Expected `object`, got `int`"),
        ("", "VD2003", r"missing required field `model`"),
        (GOOD + "[export]\nopset = 17\n", "VD2011", r"opset 17 is not supported; use 18 to 22"),
        (GOOD + "[export]\nbatch = 0\n", "VD2011", r"batch is 0"),
        (GOOD + "[export]\ntop_k = -1\n", "VD2011", r"top-k is -1"),
        (GOOD + "[export]\nprove_batches = []\n", "VD2011", r"prove_batches"),
        (GOOD + "[export]\ntolerance = nan\n", "VD2003", r"tolerance is nan"),
        (GOOD + "[validate]\nlimit = 0\n", "VD2003", r"limit is 0"),
        (GOOD + "[bench]\nseconds = nan\n", "VD2003", r"seconds is nan"),
        (GOOD + "[bench]\nbatches = [0]\n", "VD2003", r"batches is 0; use 1 or more"),
        ("[model\nsource = 1\n", "VD2007", r"is not valid TOML: .*line 1"),
        (GOOD + GOOD, "VD2007", r"is not valid TOML"),
        (b"[model]\nsource = '\xff'\n", "VD2007", r"UTF-8"),
        (b"\x80\x02", "VD2007", r"UTF-8"),
    ],
)
def test_mistake_is_named(tmp_path, text, code, words):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    assert caught.value.code == code
    assert caught.value.file == str(tmp_path / "job.toml")
    assert re.search(words, str(caught.value)), str(caught.value)


def test_missing_recipe(tmp_path):
    with pytest.raises(InputError) as caught:
        Recipe.load(tmp_path / "none.toml")
    assert caught.value.code == "VD3001"


def test_a_mistyped_recipe_ends_build_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(GOOD + "[validate]\nlimits = 3\n")
    assert main(["build", "job.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "did you mean 'limit'?" in err
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


def test_a_recipe_takes_no_second_source_of_settings(tmp_path, capsys):
    (tmp_path / "job.toml").write_text(GOOD)
    assert main(["build", str(tmp_path / "job.toml"), "--data", "x", "--limit", "3"]) == 2
    assert "--data, --limit was given too" in capsys.readouterr().err


def test_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "w.safetensors").touch()
    recipe = load(tmp_path, GOOD + 'weights = "w.safetensors"\n[validate]\ndata = "elsewhere"\n')
    assert recipe.model.weights == str(tmp_path / "w.safetensors")
    assert recipe.model.source == "vit_tiny_patch16_224"
    assert recipe.validate.data == str(tmp_path / "elsewhere")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_of_the_project_loads(path):
    kind = inspect(path).kind  # what is read by name beside a recipe is a mapping or a contract
    assert kind in ("recipe", "spec", "mapping", "contract")
    if kind == "spec":
        assert read_spec(path).name
    elif kind == "recipe":
        assert Recipe.load(path).model.source
