"""What is read from a path that somebody names goes through `vitdeploy.files`, which never waits for a pipe or reads a device."""

import ast
from pathlib import Path

import vitdeploy

ROOT = Path(vitdeploy.__file__).parent
OWN = {
    "backends/tensorrt/key.py": "this user's secret, opened with rules of its own",
    "backends/tensorrt/place.py": "/proc and /sys",
    "bundle/archive.py": "what was just written into a folder of ours",
    "data/sources.py": "with its line ends, after a look at what it is",
    "isolate/process.py": "the log of a child of ours",
    "measure/latency.py": "engines, not files",
    "measure/profiles.py": "engines, not files",
    "machine.py": "/proc and /sys",
}
"""Modules that read other files by themselves, and which."""


def list_reads(path: Path) -> list[str]:
    """Calls that read a file: ``x.read_bytes()``, ``x.read_text()``, ``x.open("r...")``, ``open(x)``."""
    reads = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        modes = [each.value for each in node.args if isinstance(each, ast.Constant)] + ["r"] * (not node.args)
        if isinstance(node.func, ast.Attribute):
            ours = isinstance(node.func.value, ast.Name) and node.func.value.id == "files"
            whole = node.func.attr in ("read_bytes", "read_text") and not ours
            piece = node.func.attr == "open" and any(mode in ("r", "rb") for mode in modes)
        else:
            whole = isinstance(node.func, ast.Name) and node.func.id == "open" and not any("w" in str(mode) for mode in modes)
            piece = False
        if whole or piece:
            reads.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return reads


def test_files_are_opened_in_one_place() -> None:
    modules = [path for path in ROOT.rglob("*.py") if path.parent.name != "files"]
    reads = {str(path.relative_to(ROOT)): list_reads(path) for path in modules}
    assert [place for name, places in reads.items() if name not in OWN for place in places] == []
    assert [name for name in OWN if not reads[name]] == []
