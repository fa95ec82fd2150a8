"""The tool that plants mistakes: which it makes, which it does not, and that its result is the one that is shown."""

import json
from pathlib import Path

from tests.mutants import EQUIVALENT, ROOT, STORED, Mutant, Plan, table, tomllib
from tests.mutants_edits import compiles, edits
from tests.mutants_reach import Reach, _aligned

LEFT_ALONE = '''
"""A docstring."""
from typing import Literal
__all__ = ["a", "b"]
Kind = Literal["x", "y"]
def refuse(name: "int", width: dict[str, int]) -> "str | None":
    """Another."""
    raise ValueError(f"{name} is not {2 + 2}")
'''
CHANGED = """
def patches(x, kh, kw=3):
    if kh < 1 and not kw:
        return x
    rows = sorted(unfold(x, kh, kw, step=0.5), key=len)
    rows["size"] = rows[-1] * 2
    return rows
"""
MUTATIONS = {
    ("3", "4"), ("3", "2"), ("kh < 1 and not kw", "False"), ("kh < 1 and not kw", "(kh < 1 or not kw)"),
    ("kh < 1 and not kw", "(kh < 1)"), ("kh < 1", "(kh <= 1)"), ("1", "2"), ("1", "0"), ("not kw", "(kw)"),
    ("sorted(unfold(x, kh, kw, step=0.5), key=len)", "sorted(unfold(x, kh, kw, step=0.5))"),
    ("unfold(x, kh, kw, step=0.5)", "unfold(x, kh, kw)"), ("unfold(x, kh, kw, step=0.5)", "unfold(kh, x, kw, step=0.5)"),
    ("unfold(x, kh, kw, step=0.5)", "unfold(x, kw, kh, step=0.5)"), ("0.5", "5.0"), ("0.5", "0.05"),
    ('rows["size"] = rows[-1] * 2', "pass"), ("-1", "(-2)"), ("rows[-1] * 2", "(rows[-1] / 2)"), ("2", "3"), ("2", "1"),
}  # fmt: skip


def test_words_and_types_are_left_alone():
    assert edits(LEFT_ALONE) == []


def test_each_kind_of_mistake():
    made = edits(CHANGED)
    assert {(edit.before, edit.after) for edit in made} == MUTATIONS
    for edit in made:
        mutant = edit.apply(CHANGED)
        assert mutant != CHANGED
        assert mutant.count("\n") == CHANGED.count("\n")
        assert compiles(mutant)


def test_what_was_recorded_for_a_line_is_found_when_lines_move():
    assert _aligned("a\nb\nc", "new\na\nb\nother\nc") == [(2, 1), (3, 2), (5, 3)]


class Recording(Reach):
    """Tests of `files.py`, of which one has other cases now than when it was recorded."""

    def __init__(self, fresh: set[str]) -> None:
        self.seconds, self.fresh = {"tests/test_files.py::test_a[1]": 0.1, "tests/test_files.py::test_b": 0.1}, fresh
        self._parts = [
            ({"sources": {"vitdeploy/files.py": "def f():\n    return 1"}, "uses": {}, "tests": self.seconds}, None, {})
        ]


def test_a_line_that_is_newer_than_the_recording_is_not_said_to_be_reached_by_nothing():
    source = "def f():\n    return 2"
    assert Recording(set()).contexts("vitdeploy/files.py", {2}, source) is None
    assert Recording(set()).contexts("vitdeploy/files.py", {1}, source) == set()


def test_all_cases_of_a_test_that_has_changed_are_run():
    plan = Plan([])
    plan.reach = Recording({"tests/test_files.py::test_a"})
    edit = next(edit for edit in edits("def f():\n    return 2") if edit.before == "2")
    stages, _ = plan.stages(Mutant("files", "vitdeploy/files.py", "return 2", edit), "def f():\n    return 2")
    assert stages == [["tests/test_files.py::test_a", "tests/test_files.py::test_b"]]


def test_the_table_of_the_readme_is_that_of_the_stored_result():
    stored = json.loads(STORED.read_text())
    assert f"<!-- mutants -->\n{table(stored)}\n<!-- mutants end -->" in (ROOT / "tests" / "README.md").read_text()


def test_equivalent_mutants_stand_in_the_sources_and_have_a_reason():
    for entry in tomllib.loads(EQUIVALENT.read_text()).get("mutant", []):
        lines = [line.strip() for line in (ROOT / Path(entry["file"])).read_text().splitlines()]
        assert entry["line"] in lines, entry
        assert " -> " in entry["mutation"]
        assert len(entry["why"].split()) >= 4, entry
