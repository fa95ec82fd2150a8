"""Mistakes of ours, planted in the parent and in a child of one verb: exit 8 with a crash file, never a library's failure."""

from pathlib import Path

import pytest
import torch

from vitdeploy import isolate
from vitdeploy.checkpoints import pickles
from vitdeploy.cli import commands, shell


def plant(_: object) -> None:
    raise TypeError("planted\nin the child")


def plant_in_parent(*_: object, **__: object) -> None:
    raise TypeError("planted")


def plant_in_child(_: str, argument: object, **limits: object) -> object:
    return isolate_run(f"{__name__}:plant", argument, **limits)


isolate_run = isolate.run


@pytest.mark.parametrize(
    ("planted", "line", "trace"),
    [
        (plant_in_parent, "internal error: TypeError: planted; ", "in plant_in_parent"),
        (plant_in_child, "internal error: ChildCrash: a child process: TypeError: planted; ", "in plant\n"),
    ],
)
def test_a_mistake_is_an_internal_error(planted, line, trace, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "a.pt")
    monkeypatch.setattr(pickles.isolate, "run", planted)
    assert shell.run(commands.app, ["inspect", str(tmp_path / "a.pt")]) == 8
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1
    (crash,) = tmp_path.glob("vitdeploy-crash-*.txt")
    assert trace in crash.read_text()
