"""Five thousand changed ViTs through everything that reads a model: each is refused in one typed line, or repaired, or runs.

Every graph is inspected and checked in this process, which must survive, and what passes is opened and run in ONNX Runtime
and in OpenVINO, through the plain backends, in isolated children. A crash of an engine is a typed outcome; an exception that
is none of ours is a failure.

``VITDEPLOY_FUZZ=FIRST:COUNT`` looks at other numbers: for hunting, the numbers of CI are always the same.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from tests.fuzz.crashers import CRASHERS
from tests.fuzz.engines import ENDED, ENGINES, SECONDS, attempt, engines
from tests.fuzz.mutants import MUTATIONS, mutant
from tests.fuzz.seeds import FORMS, seed
from vitdeploy import isolate
from vitdeploy import jsonfile as rendered
from vitdeploy.codes import CODES
from vitdeploy.errors import MachineError, VitdeployError
from vitdeploy.onnxfile import check
from vitdeploy.verbs.inspector import inspect

FIRST, COUNT = (int(part) for part in os.environ.get("VITDEPLOY_FUZZ", "0:5000").split(":"))
LANES = 2


class Outcome(NamedTuple):
    """What became of a graph, in four places; "" where it did not come to that."""

    what: str
    inspected: str
    checked: str
    onnxruntime: str = ""
    openvino: str = ""


def inspected(path: Path) -> str:
    try:
        rendered.encode(inspect(path))
    except VitdeployError as exc:
        return exc.code
    return "told"


def passed(folder: Path, number: int, running: tuple) -> Outcome:
    """One graph, all the way."""
    raw, what = mutant(number)
    path = folder / "mutant.onnx"
    path.write_bytes(raw)
    told = inspected(path)
    shutil.rmtree(folder / "new", ignore_errors=True)
    try:
        shown, notes = check.sanitize(path, folder / "new")
    except VitdeployError as exc:
        return Outcome(what, told, exc.code)
    return Outcome(what, told, "repaired" if notes else "sound", *(engine.attempt(shown) for engine in running))


@pytest.fixture(scope="module", params=[COUNT // 50, pytest.param(COUNT, marks=pytest.mark.slow)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of the first graphs or of all; half of them a thread, whose engines are processes of their own."""

    def lane(numbers: range) -> list[Outcome]:
        folder = tmp_path_factory.mktemp("lane")
        with engines() as running:
            return [passed(folder, number, running) for number in numbers]

    with ThreadPoolExecutor(LANES) as pool:
        lanes = pool.map(lane, [range(FIRST + n, FIRST + request.param, LANES) for n in range(LANES)])
        outcomes = [outcome for part in lanes for outcome in part]
    for place in Outcome._fields[1:]:
        print(place, dict(Counter(getattr(outcome, place)[:6] for outcome in outcomes)))
    return outcomes


def test_all_went_through(outcomes: list[Outcome]) -> None:
    assert len(outcomes) in (COUNT, COUNT // 50)


def test_every_outcome_is_typed(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.inspected == "told" or outcome.inspected in CODES, outcome
        assert outcome.checked in ("sound", "repaired") or outcome.checked in CODES, outcome
        for end in (outcome.onnxruntime, outcome.openvino):
            assert end in ("", "ran") or end[:6] in CODES, f"{outcome.what}: {end}"


def test_the_engines_were_really_reached(outcomes: list[Outcome]) -> None:
    """A check that refused everything would make the rest vacuous."""
    shown = [outcome for outcome in outcomes if outcome.checked in ("sound", "repaired")]
    assert len(shown) > 0.45 * len(outcomes)
    for engine in ENGINES:
        assert sum(getattr(outcome, engine) == "ran" for outcome in shown) > 0.1 * len(outcomes)
        assert sum(getattr(outcome, engine) == "VD4004" for outcome in shown) > 0.1 * len(outcomes)


def test_what_is_shown_to_an_engine_hardly_ever_ends_it(outcomes: list[Outcome]) -> None:
    """Without the check one in a hundred does: a new kind of crash belongs into `crashers.py`."""
    ended = [outcome for outcome in outcomes if {outcome.onnxruntime[:6], outcome.openvino[:6]} & set(ENDED)]
    print(*ended, sep="\n")
    assert len(ended) <= max(2, len(outcomes) // 1000), ended


def test_mutants_are_found_again() -> None:
    assert all(mutant(number) == mutant(number) for number in range(0, 60, 7))
    whats = " ".join(mutant(number)[1] for number in range(600))
    assert all(change.__name__ in whats for change in MUTATIONS)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_the_seeds_run_in_both_engines(form: str, engine: str, tmp_path: Path) -> None:
    (tmp_path / "seed.onnx").write_bytes(seed(form))
    onnx.checker.check_model(onnx.load(tmp_path / "seed.onnx"), full_check=form != "nbits")
    assert attempt([engine, str(tmp_path / "seed.onnx")]) == "ran"


def isolated(engine: str, path: Path) -> str:
    """As every verb of vitdeploy shows a model to an engine."""
    return isolate.run("tests.fuzz.engines:attempt", [engine, str(path)], seconds=SECONDS, what=engine)


@pytest.mark.parametrize("name", CRASHERS)
def test_crashers_are_fenced_off(name: str, tmp_path: Path) -> None:
    write, engine, fence = CRASHERS[name]
    path = tmp_path / "model.onnx"
    write(path)
    try:
        shown, notes = check.sanitize(path, tmp_path / "new")
    except VitdeployError as exc:
        assert exc.code == fence
        assert "\n" not in str(exc)
    else:
        assert (bool(notes), fence) == (True, "repaired")
        assert isolated(engine, shown) == "ran"


@pytest.mark.parametrize("name", CRASHERS)
def test_crashers_end_only_the_child(name: str, tmp_path: Path) -> None:
    """Shown to the engine as they are: it dies, and says so in one line, or has learned to refuse them."""
    write, engine, _ = CRASHERS[name]
    path = tmp_path / "model.onnx"
    write(path)
    try:
        assert isolated(engine, path) == "VD4004"
    except MachineError as exc:
        assert exc.code == "VD4007"
        assert f"{engine} was ended by SIG" in exc.message
        assert "\n" not in str(exc)
