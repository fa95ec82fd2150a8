"""A recipe's file imports code only where the caller names the same code."""

import sys
from pathlib import Path

import pytest

from vitdeploy.cli.commands import main
from vitdeploy.errors import TrustError, UsageError
from vitdeploy.verbs.builder import build
from vitdeploy.verbs.permission import load_permitted, locate_code

JOB = "[model]\nmodule = true\nsource = '{}'\n"


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    """A recipe whose code leaves a trace where it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "theirs.py").write_text("import pathlib\npathlib.Path('trace').touch()\n")
    path = tmp_path / "job" / "recipe.toml"
    path.write_text(JOB.format("theirs.py:build"))
    return path


@pytest.mark.parametrize("named", [None, "theirs.py:build", "job/theirs.py:other", "job/other.py:build", "theirs:build"])
def test_other_code_is_not_what_was_named(job, named) -> None:
    for run in (lambda: load_permitted(job, named), lambda: build(job, "out", module=named)):
        with pytest.raises(TrustError, match=r"would import and run .*theirs.py:build; read that code") as caught:
            run()
        assert caught.value.code == "VD7009"
    assert not Path("trace").exists() and not Path("out").exists() and "theirs" not in sys.modules


def test_the_command_line_says_so_too(job, capsys) -> None:
    assert main(["build", str(job), "-o", "out"]) == 7
    assert "error[VD7009]" in capsys.readouterr().err
    assert main(["build", "vit_tiny_patch16_224", "--module", "job/theirs.py:build", "-o", "out"]) == 2
    assert not Path("trace").exists() and not Path("out").exists()


@pytest.mark.parametrize("named", ["job/theirs.py:build", "./job/../job/theirs.py:build"])
def test_the_same_code_is_permitted_wherever_one_stands(job, named) -> None:
    assert load_permitted(job, named).model.source == str(job.parent / "theirs.py:build")
    assert load_permitted(job, str(job.parent / "theirs.py:build")).model.module


def test_a_package_is_named_as_it_is(job) -> None:
    job.write_text(JOB.format("package.file:build"))
    assert load_permitted(job, "package.file:build").model.source == "package.file:build" == locate_code("package.file:build")
    with pytest.raises(TrustError):
        load_permitted(job, "package.file:other")


def test_a_recipe_that_runs_no_code_is_told(job) -> None:
    job.write_text("[model]\nsource = 'vit_tiny_patch16_224'\n")
    assert not load_permitted(job).model.module
    with pytest.raises(UsageError, match="imports no code") as caught:
        load_permitted(job, "job/theirs.py:build")
    assert caught.value.code == "VD2010"


def test_no_recipe_trusts_a_pickle(job, capsys) -> None:
    """Whoever wrote the recipe may have written the pickle, too."""
    job.write_text(f"[model]\nsource = 'vit_tiny_patch16_224'\nweights = 'w.pt'\ntrust_pickle = '{'0' * 64}'\n")
    with pytest.raises(TrustError, match="would run the code in a pickle") as caught:
        build(job, "out")
    assert caught.value.code == "VD7009"
    assert main(["build", str(job), "-o", "out"]) == 7
    assert "--trust-pickle" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main(["inspect", str(job)]) == 0
