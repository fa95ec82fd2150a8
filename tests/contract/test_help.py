"""The help of every command, word by word. After a wanted change: VITDEPLOY_UPDATE=1 pytest tests/contract/test_help.py."""

import os
from pathlib import Path

import pytest
import typer

from vitdeploy.cli.commands import app, main

FOLDER = Path(__file__).parent / "help"
TYPER = FOLDER / "typer-version.txt"
UPDATE = bool(os.environ.get("VITDEPLOY_UPDATE"))
COMMANDS = ["", *(info.name for info in app.registered_commands)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_committed(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    assert main([*([command] if command else []), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    path = FOLDER / f"{command or 'vitdeploy'}.txt"
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        path.write_text(out)
        TYPER.write_text(f"{typer.__version__}\n")
    if TYPER.read_text().strip() != typer.__version__:
        pytest.skip(f"written with typer {TYPER.read_text().strip()}, which words options in its own way")
    assert out == path.read_text()


def test_no_snapshot_is_left_of_a_command_that_went():
    assert {path.stem for path in FOLDER.glob("*.txt")} - {TYPER.stem} == {name or "vitdeploy" for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_come_before_options(command, capsys):
    main([*([command] if command else []), "--help"])
    out = capsys.readouterr().out
    assert 0 < out.index("Examples:") < out.index("Options:")
