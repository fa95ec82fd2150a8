"""Energy: counters that start again, power that is sampled, and nothing where nothing tells it."""

import time

import pytest

from vitdeploy import machine
from vitdeploy.machine import Counter
from vitdeploy.measure import energy
from vitdeploy.measure.energy import Meter, Sample, integrate


def read_in_turn(monkeypatch, *readings):
    left = list(readings)
    monkeypatch.setattr(machine, "energy_counters", lambda: left.pop(0))


def measure() -> float | None:
    meter = Meter()
    meter.start()
    return meter.stop()


def test_counters_of_all_packages_add_up_and_may_start_again(monkeypatch):
    before = {"a": Counter(1_000_000, 9_000_000), "b": Counter(8_500_000, 9_000_000)}
    after = {"a": Counter(3_000_000, 9_000_000), "b": Counter(500_000, 9_000_000)}
    read_in_turn(monkeypatch, before, after)
    assert measure() == pytest.approx(2 + 1)


def test_a_counter_that_went_tells_nothing(monkeypatch):
    read_in_turn(monkeypatch, {"a": Counter(1, 9), "b": Counter(1, 9)}, {"a": Counter(2, 9)})
    assert measure() is None


def test_without_a_meter_there_is_no_number(monkeypatch):
    read_in_turn(monkeypatch, {}, {})
    monkeypatch.setattr(machine, "power_w", lambda: None)
    assert measure() is None


def test_power_between_samples_is_the_mean_of_both():
    assert integrate([Sample(0.0, 10.0), Sample(2.0, 20.0), Sample(3.0, 0.0)]) == 30 + 10
    assert integrate([Sample(0.0, 10.0)]) is None


def test_a_boards_power_is_sampled_while_a_subject_runs(monkeypatch):
    monkeypatch.setattr(machine, "energy_counters", dict)
    monkeypatch.setattr(machine, "power_w", lambda: 5.0)
    monkeypatch.setattr(energy, "PERIOD_S", 0.005)
    meter, begun = Meter(), time.perf_counter()
    meter.start()
    time.sleep(0.05)
    joules = meter.stop()
    assert 0 < joules <= 5.0 * (time.perf_counter() - begun)
