"""No engine's name stands in the package outside of `backends/`: a new engine is one folder and one row of the table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import vitdeploy
from vitdeploy.backends.table import TABLE, Engine

ROOT = Path(vitdeploy.__file__).parent
ROWS: tuple[Engine, ...] = tuple(TABLE.values())
_WORDS = sorted({word for row in ROWS for word in (row.name, row.package)} - {"torch"})
NAMES = re.compile(rf"(?<![\w/-])({'|'.join(map(re.escape, _WORDS))})(?![\w-])")
"""Names and packages as code writes them. Proper names in sentences (ONNX Runtime, TensorRT) are prose."""
EXAMPLES = re.compile(r"^vitdeploy [a-z]+ ")
"""Examples of commands, in help."""


def list_texts(tree: ast.AST):
    """Every text in a module but docstrings, with its line."""
    prose = set()
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None),):
            for each in body if isinstance(body, list) else ():
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                    prose.add(each.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.lineno, node.value


def list_names(path: Path):
    """``file:line: text`` of every text that names an engine."""
    for line, text in list_texts(ast.parse(path.read_text())):
        if NAMES.search(text) and not EXAMPLES.match(text):
            yield f"{path.relative_to(ROOT.parent)}:{line}: {text[:80]!r}"


def test_names_of_engines_stand_in_backends_alone():
    outside = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in ("backends", "codes")]
    assert len(outside) > 100
    named = [each for path in outside for each in list_names(path)]
    assert not named, "\n".join(named)


def test_the_search_finds_a_name(tmp_path):
    path = ROOT / "invented.py"
    tree = ast.parse('"""openvino"""\nif name == "openvino":\n    run(f"pip install vitdeploy[{x}] tensorrt-rtx")\n')
    assert [line for line, text in list_texts(tree) if NAMES.search(text)] == [2, 3]
    assert not path.exists()
