"""Does a test notice? Plant realistic mistakes in the package one at a time, and run the tests that reach them.

    python tests/mutants.py --room graph --sample 20 --seed 1     try a sample; several rooms may be given
    python tests/mutants.py --room vitdeploy/graph/exact/fold.py        one file
    python tests/mutants.py --room graph --store                  and keep the result in tests/mutants.json
    python tests/mutants.py --table                               the table of tests/README.md

What is known is not run again: a mutant that was killed while its file is the same, a survivor while the tests are too. Which
tests reach a line is recorded the first time (minutes) and kept in ~/.cache/vitdeploy-mutants; `--record` forgets it.
A mutant that changes nothing is written into tests/equivalent_mutants.toml, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.mutants_edits import Edit, compiles, edits
from tests.mutants_reach import ARTIFACTS, ROOT, Reach, strip_cases

ROOMS = ("graph", "quant", "proof", "measure", "backends", "isolate", "data", "files")
RECORDED = (
    *("tests/graph", "tests/quant", "tests/proof", "tests/measure", "tests/backends", "tests/isolate", "tests/data"),
    *(
        "tests/onnxfile",
        "tests/verbs",
        "tests/faults",
        "tests/cli",
        "tests/render",
        "tests/files",
        "tests/artifact",
    ),
)
"""Tests that could notice. Those that load checkpoints of other libraries are left out: they cost minutes a mutant."""
CACHE = Path(os.environ.get("VITDEPLOY_MUTANTS", Path.home() / ".cache" / "vitdeploy-mutants"))
STORED = ROOT / "tests" / "mutants.json"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.toml"
NEAR_S, FAR_S = 150.0, 60.0
"""Seconds that the tests of the room itself, and those elsewhere, may take together for a mutant."""


class Mutant(NamedTuple):
    """One mistake in one file."""

    room: str
    file: str
    text: str  # of the line, stripped
    edit: Edit

    @property
    def mutation(self) -> str:
        return f"{_short(self.edit.before)} -> {_short(self.edit.after)}"


def _short(text: str) -> str:
    return " ".join(text.split())


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _files(room: str) -> list[str]:
    for path in (ROOT / room, ROOT / "vitdeploy" / room, ROOT / "vitdeploy" / f"{room}.py"):
        if path.exists():
            return [str(file.relative_to(ROOT)) for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    sys.exit(f"{room}: no such room or file")


def sample(room: str, count: int, seed: int) -> list[Mutant]:
    """`count` mutants on different lines: by the text of the lines, so that other edits leave the choice as it is."""
    equivalent = {
        (entry["file"], entry["line"], entry["mutation"]) for entry in tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    }
    by_line: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    sources = {file: (ROOT / file).read_text() for file in _files(room)}
    seen: Counter[str] = Counter()
    rank: dict[tuple[str, int], str] = {}
    for file, source in sources.items():
        lines = [line.strip() for line in source.splitlines()]
        for edit in edits(source):
            mutant = Mutant(room, file, lines[edit.line - 1], edit)
            if (file, mutant.text, mutant.mutation) not in equivalent:
                by_line[file, edit.line].append(mutant)
        for number, text in enumerate(lines, start=1):
            seen[f"{file} {text}"] += 1
            rank[file, number] = _digest(str(seed), file, text, str(seen[f"{file} {text}"]))
    chosen: list[Mutant] = []
    for place in sorted(by_line, key=rank.__getitem__):
        for mutant in sorted(by_line[place], key=lambda mutant: _digest(str(seed), mutant.mutation)):
            if compiles(mutant.edit.apply(sources[mutant.file])):
                chosen.append(mutant)
                break
        if len(chosen) == count:
            break
    return chosen


class Plan:
    """Which tests are to notice a mutant, in which order."""

    def __init__(self, tests: list[str]) -> None:
        self.reach = Reach(CACHE, [name for name in tests if (ROOT / name).exists()])
        self._users: dict[str, list[tuple[str, set[int]]]] = defaultdict(list)
        for path in sorted((ROOT / "vitdeploy").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    names = {leaf.attr if isinstance(leaf, ast.Attribute) else leaf.id for leaf in ast.walk(node)
                             if isinstance(leaf, (ast.Name, ast.Attribute))}  # fmt: skip
                    for name in names:
                        self._users[name].append((str(path.relative_to(ROOT)), _body(node)))

    def places(self, mutant: Mutant, tree: ast.Module) -> list[tuple[str, set[int]]]:
        """Files and lines of which a test must reach one: the statement, or whoever uses a constant or field."""
        line = mutant.edit.line
        inner: ast.stmt | None = None
        function: ast.FunctionDef | None = None
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
                inner = node
                function = node if isinstance(node, ast.FunctionDef) else function
        assert inner is not None
        if function is inner:
            return [(mutant.file, _body(function))]
        if function is not None:
            return [(mutant.file, _header(inner))]
        targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target] if isinstance(inner, ast.AnnAssign) else []
        names = [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
        everything = [(mutant.file, _body(node)) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        return [place for name in names for place in self._users.get(name, [])] or everything

    def stages(self, mutant: Mutant, source: str) -> tuple[list[list[str]], bool]:
        """Lists of tests to run one after the other, and whether the shared artifacts may be taken from the shelf."""
        contexts: set[str] = set()
        unknown = False
        for file, lines in self.places(mutant, ast.parse(source)):
            reached = self.reach.contexts(file, lines, source if file == mutant.file else (ROOT / file).read_text())
            unknown = unknown or reached is None
            contexts |= reached or set()
        module = mutant.file.removeprefix("vitdeploy/").removesuffix(".py")
        folder, _, name = module.rpartition("/")
        own = f"tests/{folder}/test_{name}.py" if folder else f"tests/test_{name}.py"
        room = f"tests/{module.split('/')[0]}/" if folder else own
        tests = self.reach.tests(contexts)
        if unknown:
            tests |= {test for test in self.reach.seconds if test.startswith(own)} or {
                test for test in self.reach.seconds if test.startswith(f"tests/{folder}/")
            }
        near = [test for test in tests if test.startswith(room)]
        far = [test for test in tests if not test.startswith(room)]
        fresh = sorted(name for name in self.reach.fresh if name.startswith(room))  # all cases of a changed test, old and new
        near = [test for test in near if strip_cases(test) not in self.reach.fresh]
        seconds = self.reach.seconds
        per_file: dict[str, float] = defaultdict(float)
        for test in (*near, *far):
            per_file[test.split("::")[0]] += seconds[test]

        def order(test: str) -> tuple[bool, float, str, float]:
            file = test.split("::")[0]
            return (file != own, per_file[file], file, seconds[test])

        stages = [fresh + _within(sorted(near, key=order), seconds, NEAR_S)]
        stages.append(_within(sorted(far, key=order), seconds, FAR_S))
        return [stage for stage in stages if stage], not unknown and ARTIFACTS not in contexts


def _body(node: ast.FunctionDef) -> set[int]:
    return set(range(node.body[0].lineno, (node.end_lineno or 0) + 1))


def _header(node: ast.stmt) -> set[int]:
    """Of a compound statement the lines before its body, of another all lines."""
    body = getattr(node, "body", None)
    return set(range(node.lineno, max(node.lineno + 1, body[0].lineno) if body else (node.end_lineno or 0) + 1))


def _within(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """The first of them, but for those that the budget has no room for."""
    kept, spent = [], 0.0
    for test in tests:
        if spent + seconds[test] <= budget or not kept:
            kept.append(test)
            spent += seconds[test]
    return kept


class Worker:
    """A process that has imported the heavy libraries and forks for each job, in a copy of the tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}
        environment.pop("VITDEPLOY_TEST_ARTIFACTS", None)
        command = [sys.executable, str(folder / "tests" / "mutants_worker.py")]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **job: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Run:
    """Mutants against tests, a worker a thread."""

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan, self.log = plan, log
        self.lock = threading.Lock()
        self.sound: dict[str, bool] = {}
        shelf = _digest(*((ROOT / name).read_text() for name in ("tests/conftest.py", *_files("vitdeploy"))))
        self.shelf = str(CACHE / f"artifacts-{shelf}")

    def judge(self, mutant: Mutant, worker: Worker) -> dict[str, Any]:
        source = (ROOT / mutant.file).read_text()
        stages, shelf = self.plan.stages(mutant, source)
        status, by, seconds = "survived" if stages else "not reached", "", 0.0
        for stage in stages:
            limit = 30 + 2 * sum(self.plan.reach.seconds.get(test, 2.0) for test in stage)
            while True:
                order = [test for test in stage if self.sound.get(test, True)]
                job = {"file": mutant.file, "source": mutant.edit.apply(source), "shelf": self.shelf if shelf else ""}
                answer = worker.ask(**job, order=order, limit=limit)
                seconds += answer["seconds"]
                killer = answer["by"]
                if not killer or answer["late"] or self._is_sound(killer, order, worker):
                    break
            if answer["late"]:
                status = "time"
            elif killer or answer["code"] not in (0, 5):
                status, by = "killed", killer
            if status in ("time", "killed"):
                break
        return {"status": status, "by": by, "seconds": round(seconds, 1), "ran": sum(map(len, stages))}

    def _is_sound(self, test: str, order: list[str], worker: Worker) -> bool:
        """Whether the test passes here without the mutant: else it says nothing."""
        key = test if test in self.plan.reach.seconds or test in self.plan.reach.fresh else test.split("[")[0]
        if key not in self.sound:
            asked = [test] if "::" in test else order[:1]
            self.sound[key] = worker.ask(file="", source="", shelf=self.shelf, order=asked, limit=200)["code"] == 0
            if not self.sound[key]:
                print(f"{test} fails without any mutant and is left out", flush=True)
        return self.sound[key] or key not in order

    def serve(self, worker: Worker, jobs: queue.SimpleQueue[Mutant], keep: Callable[[Mutant, dict[str, Any]], None]) -> None:
        while True:
            try:
                mutant = jobs.get_nowait()
            except queue.Empty:
                return
            verdict = self.judge(mutant, worker)
            with self.lock:
                keep(mutant, verdict)


def _known(log: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in map(json.loads, log.read_text().splitlines())} if log.is_file() else {}


def run(rooms: list[str], count: int, seed: int, workers: int, tests: list[str]) -> list[dict[str, Any]]:
    """Every sampled mutant's verdict."""
    mutants = [mutant for room in rooms for mutant in sample(room, count, seed)]
    texts = _digest(*(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py"))))
    keys = {mutant: _digest(mutant.file, (ROOT / mutant.file).read_text(), str(mutant.edit)) for mutant in mutants}
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / "results.jsonl"
    known = {key: row for key, row in _known(log).items() if row["status"] in ("killed", "time") or row["tests"] == texts}
    rows: list[dict[str, Any]] = [known[keys[mutant]] | {"room": mutant.room} for mutant in mutants if keys[mutant] in known]
    jobs: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        if keys[mutant] not in known:
            jobs.put(mutant)
    print(f"{len(mutants)} mutants, {len(rows)} known", flush=True)
    if jobs.empty():
        return rows

    def keep(mutant: Mutant, verdict: dict[str, Any]) -> None:
        facts = {
            "room": mutant.room,
            "file": mutant.file,
            "line": mutant.edit.line,
            "text": mutant.text,
            "kind": mutant.edit.kind,
        }
        row = facts | {"mutation": mutant.mutation, "key": keys[mutant], "tests": texts} | verdict
        rows.append(row)
        with log.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(
            f"{len(rows):4} {row['status']:11} {row['seconds']:5.1f} s  {mutant.file}:{row['line']}  {row['mutation']}",
            flush=True,
        )

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trial = Run(Plan(tests), log)
        crew = [Worker(Path(folder) / str(number)) for number in range(min(workers, jobs.qsize()))]
        crew[0].ask(file="", source="", shelf=trial.shelf, order=[], limit=300)  # fills the shelf
        threads = [threading.Thread(target=trial.serve, args=(worker, jobs, keep)) for worker in crew]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in crew:
            worker.process.terminate()
            worker.process.wait()
    return rows


def store(rows: list[dict[str, Any]], count: int, seed: int) -> None:
    """Keep the verdicts of these rooms in tests/mutants.json; those of other rooms stay."""
    stored = json.loads(STORED.read_text()) if STORED.is_file() else {}
    for room in dict.fromkeys(row["room"] for row in rows):
        mine = sorted((row for row in rows if row["room"] == room), key=lambda row: (row["file"], row["line"]))
        survivors = [{name: row[name] for name in ("file", "line", "text", "mutation", "status")}
                     for row in mine if row["status"] in ("survived", "not reached")]  # fmt: skip
        counts = Counter(row["status"] for row in mine)
        stored[room] = {"sample": count, "seed": seed, "mutants": len(mine), "killed": counts["killed"], "time": counts["time"]}
        stored[room] |= {"survivors": survivors}
    ordered = {room: stored[room] for room in (*ROOMS, *stored) if room in stored}
    STORED.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")


def table(stored: dict[str, Any]) -> str:
    """Markdown: share of survivors by room, then the survivors."""
    lines = ["| room | mutants | killed | by time | survive | share |", "|---|---:|---:|---:|---:|---:|"]
    for room, counts in stored.items():
        alive = len(counts["survivors"])
        shares = f"{alive} | {100 * alive / counts['mutants']:.0f} %"
        lines.append(f"| `{room}` | {counts['mutants']} | {counts['killed']} | {counts['time']} | {shares} |")
    survivors = [row for counts in stored.values() for row in counts["survivors"]]
    if survivors:
        lines += ["", "| survivor | line | mutation |", "|---|---|---|"]
        for row in survivors:
            cells = (row["text"], row["mutation"])
            code = " | ".join("`` " + cell.replace("|", "\\|") + " ``" for cell in cells)
            lines.append(f"| {row['file'].removeprefix('vitdeploy/')} | {code} |")
    return "\n".join(lines)


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", nargs="+", default=list(ROOMS), help="rooms or files of the package")
    parser.add_argument("--sample", type=int, default=25, help="mutants a room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tests", nargs="+", default=list(RECORDED), help="folders and files of the tests that may notice")
    parser.add_argument("--store", action="store_true", help="keep the result in tests/mutants.json")
    parser.add_argument("--record", action="store_true", help="record anew which tests reach which line")
    parser.add_argument("--table", action="store_true", help="print the table of what is stored")
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(STORED.read_text())))
        return
    if given.record:
        for tests in given.tests:
            shutil.rmtree(CACHE / tests.replace("/", "+"), ignore_errors=True)
    rows = run(given.room, given.sample, given.seed, given.workers, given.tests)
    for row in sorted(rows, key=lambda row: (row["file"], row["line"])):
        if row["status"] in ("survived", "not reached"):
            print(f"\n{row['file']}:{row['line']}  {row['kind']}, {row['status']}\n    {row['text']}\n    {row['mutation']}")
    for room in given.room:
        mine = [row for row in rows if row["room"] == room]
        alive = sum(row["status"] in ("survived", "not reached") for row in mine)
        print(f"{room}: {alive} of {len(mine)} survive ({100 * alive / max(1, len(mine)):.0f} %)")
    if given.store:
        store(rows, given.sample, given.seed)


if __name__ == "__main__":
    main()
