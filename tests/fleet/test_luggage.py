"""What travels: the agent is of the standard library alone, and old enough a Python runs it."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vitdeploy
from tests.pythons import find_python
from vitdeploy.fleet.luggage import pack_agent, pack_runtime

OWN = Path(vitdeploy.__file__).parent


def read_modules(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def list_imports(tree: ast.AST, *, whole: bool) -> set[str]:
    """Modules that are imported where the module is; with ``whole`` inside its functions too."""
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for part in ast.walk(node)}
    typed = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for part in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in typed or (node in inner and not whole):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_agent_imports_the_standard_library_and_what_it_brings():
    modules = read_modules(pack_agent())
    assert len(modules) < 25
    brought = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in modules}
    for name, text in modules.items():
        own = "fleet/agent" in name
        for imported in list_imports(ast.parse(text), whole=own):
            top = imported.partition(".")[0]
            if top == "vitdeploy":
                assert imported in brought or imported.rpartition(".")[0] in brought, f"{name} imports {imported}"
            else:
                assert top in sys.stdlib_module_names, f"{name} imports {imported}"


def test_what_travels_is_the_same_for_the_same_sources():
    assert pack_agent() == pack_agent.__wrapped__()
    assert pack_runtime() == pack_runtime.__wrapped__()
    assert set(read_modules(pack_agent())) <= set(read_modules(pack_runtime()))
    texts = read_modules(pack_runtime())
    assert texts["vitdeploy/verbs/health.py"] == (OWN / "verbs/health.py").read_text()
    assert len(pack_agent()) < 60_000


@pytest.mark.parametrize(
    "version", ["3.10", pytest.param("3.12", marks=pytest.mark.slow), pytest.param("3.13", marks=pytest.mark.slow)]
)
def test_other_pythons_run_the_agent(version, tmp_path):
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    (tmp_path / "agent.pyz").write_bytes(pack_agent())
    command = [python, "-I", "-S", str(tmp_path / "agent.pyz"), "status"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"current": null' in done.stdout
