"""The command line and the library are the same list of verbs, and every public name says what it is."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import typer

import vitdeploy
from vitdeploy.cli import shell
from vitdeploy.cli.commands import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(vitdeploy.__file__).parent
ONLY_LOOK = {"models", "explain", "doctor", "schema", "report"}


def commands() -> dict[str, object]:
    return {info.name: info for info in app.registered_commands}


def test_commands_are_the_verbs_and_those_that_only_look():
    assert set(commands()) == set(vitdeploy.VERBS) | ONLY_LOOK


def test_every_command_has_a_group_examples_and_the_shared_options():
    for name, info in commands().items():
        assert info.rich_help_panel in shell.GROUPS, name
        assert f"vitdeploy {name}" in info.help, name
        names = inspect.signature(info.callback).parameters
        assert {"json", "quiet", "verbose", "debug"} <= set(names), name


@pytest.mark.parametrize("name", [name for name in vitdeploy.__all__ if name not in ("VERBS", "__version__", "VARIANTS")])
def test_public_name_resolves_and_has_a_docstring(name):
    if name == "export":
        pytest.importorskip("onnx_ir")
    value = getattr(vitdeploy, name)
    assert inspect.getdoc(value)
    assert "Args:" in inspect.getdoc(value) or not inspect.isfunction(value)


def test_every_option_says_what_it_is():
    for name, command in typer.main.get_command(app).commands.items():
        for option in command.params:
            assert option.help, f"{name}: {option.name}"


def test_dir_lists_the_public_names_and_others_do_not_exist():
    assert set(vitdeploy.__all__) <= set(dir(vitdeploy))
    with pytest.raises(AttributeError, match="nonsense"):
        vitdeploy.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(vitdeploy.__all__) - {"VERBS", "__version__"}


def test_version_is_the_packages():
    project = ROOT.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its sources")
    assert tomllib.loads(project.read_text())["project"]["version"] == vitdeploy.__version__


def test_commands_are_short():
    tree = ast.parse((ROOT / "cli" / "commands.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in commands():
            assert node.end_lineno - node.body[0].lineno + 1 <= 15, node.name  # the signature: as many options as it has


def test_docstrings_stand_on_public_functions_and_classes():
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) or not path.read_text().strip() or path.name == "__main__.py", path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_no_module_is_named_like_a_catch_all():
    forbidden = re.compile(r"(^|_)(utils?|helpers?|common|core|manager|base_.*)$")
    assert [path for path in ROOT.rglob("*.py") if forbidden.search(path.stem)] == []
