"""Every code that is raised is explained, every code that is explained is raised, and its digit is its class's exit status."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import vitdeploy
from vitdeploy import errors
from vitdeploy.codes import CODES

ROOT = Path(vitdeploy.__file__).parent
KINDS = (errors.UsageError, errors.InputError, errors.MachineError, errors.DeviceError, errors.TrustError)
CLASSES = {kind.__name__: kind for kind in KINDS}
CODE = re.compile(r"\bVD\d{4}\b")


def raised() -> list[tuple[str, str, str]]:
    """Where, class, code of every error that is made with both written out."""
    calls = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and CODE.fullmatch(str(first.value)):
                    calls.append((f"{path.name}:{node.lineno}", node.func.id, first.value))
    return calls


def test_something_is_found():
    assert len(raised()) > 50


def test_every_code_in_the_sources_is_explained():
    for path in sorted(ROOT.rglob("*.py")):
        unknown = set(CODE.findall(path.read_text())) - set(CODES)
        assert not unknown, f"{path.name}: {unknown}"


def test_every_explained_code_is_raised():
    text = "".join(path.read_text() for path in ROOT.rglob("*.py") if path.parent.name != "codes")
    assert {code for code in CODES if f'"{code}"' not in text} == set()


@pytest.mark.parametrize(("where", "kind", "code"), raised())
def test_first_digit_is_the_exit_status(where, kind, code):
    assert int(code[2]) == CLASSES[kind].exit_code, where


def test_errors_cross_processes_whole():
    error = errors.InputError("VD3003", "is a pointer", file="a.onnx", fix="run: git lfs pull")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.InputError
    assert again.record() == error.record()


def test_hostile_names_can_not_move_the_cursor():
    line = str(errors.InputError("VD3001", "x\x1b[2J", file="a\r\nerror\x07.onnx", fix="::error::\u202e"))
    assert line.isprintable()
