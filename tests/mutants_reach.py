"""Which tests reach which line of the package: recorded once for a folder of tests, and read for sources that have changed since.

What a shared fixture or a cached helper of the tests runs counts for every test that uses it, and what a child process runs
counts for the test that started it.
"""

from __future__ import annotations

import ast
import difflib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ARTIFACTS = "fixture::tiny"
"""What the exports of the shared tiny artifacts reach."""
_INTERPRETER = """#!/bin/sh
export COVERAGE_PROCESS_START='{folder}/coveragerc' MUTANTS_CONTEXT="$(cat '{folder}/context')"
if [ "$1" = -I ] && [ "$2" = -c ]; then
  code=$3; shift 3
  exec '{python}' -I -c 'import sys; sys.path.insert(0, "{folder}"); import saves; del sys.path[0]
'"$code" "$@"
fi
exec '{python}' "$@"
"""
_SAVES = """
import socket, coverage
def saving(send):
    def call(*arguments, **options):
        running = coverage.Coverage.current()
        if running is not None:
            running.save()
        return send(*arguments, **options)
    return call
for name in ("sendall", "sendmsg", "send"):
    setattr(socket.socket, name, saving(getattr(socket.socket, name)))
"""
"""Our children are killed once they have answered: they save what they ran before each answer."""


def package(root: Path) -> dict[str, str]:
    """Path to text of every module of the package."""
    return {str(path.relative_to(root)): path.read_text() for path in sorted((root / "vitdeploy").rglob("*.py"))}


class Recorder:
    """A pytest plugin that names what runs, for the process itself and, in a file, for its children."""

    def __init__(self, coverage: Any, folder: Path) -> None:
        self.coverage, self.file = coverage, folder / "context"
        self.names = ["import"]
        self.uses: dict[str, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()
        functools.cache = self.cache
        functools.lru_cache = self.lru_cache

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        self.names.append(name)
        self._tell()
        try:
            yield
        finally:
            self.names.pop()
            self._tell()

    def _tell(self) -> None:
        self.coverage.switch_context(self.names[-1])
        self.file.write_text(self.names[-1])

    def lru_cache(self, maxsize: Any = 128, typed: bool = False) -> Any:
        return self.cache(maxsize) if callable(maxsize) else self.cache

    def cache(self, function: Callable[..., Any]) -> Any:
        """`functools.cache` for tests' helpers, whose first caller is not the only one that uses what they give."""
        if not function.__module__.startswith("tests"):
            return _lru_cache(maxsize=None)(function)
        name = f"helper::{function.__module__}.{function.__qualname__}"

        def fill(*arguments: object, **options: object) -> object:
            with self.named(name):
                return function(*arguments, **options)

        filled = _lru_cache(maxsize=None)(fill)

        @functools.wraps(function)
        def call(*arguments: object, **options: object) -> object:
            self.uses[self.names[-1]].add(name)
            return filled(*arguments, **options)

        call.cache_clear = filled.cache_clear
        return call

    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for fixture in definitions:
                if fixture.scope != "function":
                    self.uses[item.nodeid].add(_fixture(fixture))
        with self.named(item.nodeid):
            yield

    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        with self.named(_fixture(fixturedef)):
            yield

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def map(self) -> dict[str, object]:
        tests = {name: round(seconds, 3) for name, seconds in self.seconds.items() if name not in self.failed}
        return {"tests": tests, "uses": {name: sorted(used) for name, used in self.uses.items()}}


def _fixture(definition: Any) -> str:
    if definition.argname.startswith("tiny_") and definition.baseid in ("", "tests"):
        return ARTIFACTS
    return f"fixture::{definition.baseid}::{definition.argname}"


_lru_cache = functools.lru_cache


def record(tests: str, folder: Path) -> None:
    """Run a folder or file of tests under coverage and store under `folder` what each reaches. In a process of its own."""
    import coverage
    import pytest

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "coveragerc").write_text(
        f"[run]\ndata_file = {folder}/data\nparallel = true\nsource_dirs = {ROOT}/vitdeploy\ncontext = ${{MUTANTS_CONTEXT}}\n"
        "patch = _exit\ndisable_warnings = no-data-collected, module-not-imported, module-not-measured\n"
    )
    (folder / "saves.py").write_text(_SAVES)
    (folder / "python").write_text(_INTERPRETER.format(folder=folder, python=sys.executable))
    (folder / "python").chmod(0o755)
    (folder / "context").write_text("import")
    sources = package(ROOT)
    measured = coverage.Coverage(
        data_file=str(folder / "data"), data_suffix=True, config_file=False, source_dirs=[f"{ROOT}/vitdeploy"]
    )
    measured.start()
    recorder = Recorder(measured, folder)
    for name in ("pytest_runtest_protocol", "pytest_fixture_setup"):
        setattr(Recorder, name, pytest.hookimpl(wrapper=False, hookwrapper=True)(getattr(Recorder, name)))
    sys.executable = str(folder / "python")
    pytest.main(["-q", "-p", "no:cacheprovider", "--tb=no", "-m", "not gpu", *tests.split()], plugins=[recorder])
    measured.stop()
    measured.save()
    data = coverage.CoverageData(str(folder / "lines"))
    for part in sorted(folder.glob("data.*")):
        try:
            other = coverage.CoverageData(str(part))
            other.read()
            data.update(other)
        except coverage.exceptions.DataError:  # its process was killed while it wrote
            pass
        part.unlink()
    data.write()
    (folder / "map.json").write_text(json.dumps(recorder.map() | {"sources": sources, "texts": _texts(tests)}))


def _texts(tests: str) -> dict[str, str]:
    """Digest of every test function in these files and folders."""
    digests = {}
    for place in tests.split():
        path = ROOT / place
        for file in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                    text = ast.dump(node)
                    digests[f"{file.relative_to(ROOT)}::{node.name}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Two runs never record at once."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Reach:
    """The recordings of several folders of tests, read for the sources of now."""

    def __init__(self, cache: Path, folders: list[str]) -> None:
        import coverage

        self.seconds: dict[str, float] = {}
        self._parts = []
        self.fresh: set[str] = set()
        """Tests, without their parameters, that are not those that were recorded."""
        for tests in folders:
            folder = cache / tests.replace("/", "+")
            if not (folder / "map.json").is_file():
                with _alone(cache):
                    command = [sys.executable, __file__, tests, str(folder)]
                    print(f"recording what {tests} reaches", flush=True)
                    environment = os.environ | {"PYTHONPATH": str(ROOT)}
                    if not (folder / "map.json").is_file():  # nor did another run while this one waited
                        subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            known = json.loads((folder / "map.json").read_text())
            data = coverage.CoverageData(str(folder / "lines"))
            data.read()
            names = {Path(name).as_posix().rpartition("/vitdeploy/")[2]: name for name in data.measured_files()}
            self._parts.append((known, data, names))
            now = _texts(tests)
            self.seconds |= {test: seconds for test, seconds in known["tests"].items() if strip_cases(test) in now}
            self.fresh |= {name for name, digest in now.items() if known["texts"].get(name) != digest}

    def contexts(self, file: str, lines: set[int], source: str) -> set[str] | None:
        """Tests, fixtures and helpers that reach any of these lines of a file as it is now. None when the lines are new."""
        reached: set[str] = set()
        known_lines = False
        for known, data, names in self._parts:
            there = {old for new, old in _aligned(known["sources"].get(file, ""), source) if new in lines}
            known_lines = known_lines or bool(there)
            if file.removeprefix("vitdeploy/") not in names:  # nothing of it was run
                continue
            by_line = _by_line(data, names[file.removeprefix("vitdeploy/")])
            for line in there:
                reached.update(by_line.get(line, ()))
        return reached if known_lines else None

    def tests(self, contexts: set[str]) -> set[str]:
        """The tests that are, or use, these."""
        reached = set()
        for known, _, _ in self._parts:
            uses = known["uses"]

            @functools.cache
            def closure(name: str, uses: dict[str, list[str]] = uses) -> frozenset[str]:  # fixtures and helpers use no tests
                inner = [closure(other) for other in uses.get(name, ()) if other != name]
                return frozenset({name}).union(*inner)

            reached |= {test for test in known["tests"] if test in self.seconds and not contexts.isdisjoint(closure(test))}
        return reached


@functools.cache
def _aligned(before: str, now: str) -> list[tuple[int, int]]:
    """(line now, line before) of the lines that both texts have."""
    matcher = difflib.SequenceMatcher(None, before.splitlines(), now.splitlines(), autojunk=False)
    return [(b + i + 1, a + i + 1) for a, b, size in matcher.get_matching_blocks() for i in range(size)]


_LINES: dict[tuple[int, str], dict[int, list[str]]] = {}


def _by_line(data: Any, name: str) -> dict[int, list[str]]:
    key = (id(data), name)
    if key not in _LINES:
        _LINES[key] = data.contexts_by_lineno(name)
    return _LINES[key]


def strip_cases(test: str) -> str:
    """Without parameters and class: as `_texts` names it."""
    file, _, name = test.partition("::")
    return f"{file}::{name.split('[')[0].split('::')[-1]}"


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]))
