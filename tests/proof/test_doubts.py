"""What makes latencies doubtful is said, and nothing else."""

from __future__ import annotations

import pytest

from vitdeploy.measure.latency import Measured
from vitdeploy.proof import doubts
from vitdeploy.proof.doubts import list_changes, list_doubts, list_ties
from vitdeploy.recipe import BenchConfig
from vitdeploy.report import Metric, Row

QUIET = Measured((), {("steady", 1): 0.09}, rounds=5, load=0.9)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(doubts.machine, "logical_cores", lambda: 2)


def test_a_quiet_machine_leaves_no_doubt():
    assert list_doubts(QUIET, BenchConfig(threads=2)) == ()


@pytest.mark.parametrize(
    ("more", "threads", "said"),
    [
        ({"load": 3.1}, 2, "WARNING: the machine was busy: load 3.1 on 2 cores before the first run"),
        ({}, 8, "WARNING: 8 threads were asked for, this process may use 2 cores"),
        ({"variation": {("steady", 4): 0.01, ("jumpy", 4): 0.47}}, 2, "WARNING: jumpy at batch 4: round medians vary by 47 %"),
        ({"rounds": 4}, 2, "4 rounds are too few for intervals; 5 or more give them"),
    ],
)
def test_each_doubt_is_one_line(more, threads, said):
    (line,) = list_doubts(QUIET._replace(**more), BenchConfig(threads=threads))
    assert line.startswith(said)


def time(name: str, value: float, low: float | None, high: float | None) -> Row:
    metrics = {"batch": Metric(4, "count"), "speedup": Metric(value, "ratio", low, high)}
    return Row(name, metrics, {"reference": "pytorch"})


def test_a_difference_that_the_interval_does_not_show_is_none():
    rows = (
        time("pytorch", 1.0, 1.0, 1.0),
        time("tied", 1.05, 0.98, 1.12),
        time("faster", 1.05, 1.01, 1.1),
        time("slower", 0.9, 0.85, 0.99),
        time("brief", 1.0, None, None),
    )
    expected = "tied at batch 4: no difference from pytorch: the interval of the speed-up holds 1"
    assert list_ties(QUIET._replace(rows=rows)) == (expected,)


def test_a_machine_that_heat_has_slowed_is_told() -> None:
    assert list_changes({"load": 1.0}, {"load": 9.0}) == ()
    assert list_changes({"throttled": 3, "frequency_mhz": 3000}, {"throttled": 3, "frequency_mhz": 2800}) == ()
    hot, slow = list_changes({"throttled": 3, "frequency_mhz": 3000}, {"throttled": 5, "frequency_mhz": 2000})
    assert hot == "WARNING: heat slowed the processor 2 times while it was measured"
    assert slow == "WARNING: the processor's clock fell: 3,000 MHz before, 2,000 MHz after"
