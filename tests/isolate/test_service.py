"""The child's side of the limits: what the parent said, in the kernel's units, and never above what it may have."""

from __future__ import annotations

import resource

import pytest

from vitdeploy import machine
from vitdeploy.isolate import service

Bounds = dict[int, tuple[int, int]]
UNLIMITED = resource.RLIM_INFINITY


def applied(monkeypatch: pytest.MonkeyPatch, start: dict[str, object], most: int = UNLIMITED) -> Bounds:
    """Soft and hard limits that a child sets which may have so much of everything."""
    bounds: Bounds = {}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: bounds.update({kind: pair}))
    monkeypatch.setattr(machine, "logical_cores", lambda: 3)
    service._apply_limits(start)
    return bounds


def test_limits_in_the_units_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert applied(monkeypatch, {"memory_mib": 5, "file_mib": 2, "cpu_s": 1.5}) == {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_FSIZE: (2 * 2**20,) * 2,
        resource.RLIMIT_CPU: (2 * 3 + 1, 2 * 3 + 1 + 5),  # of all cores together, and a moment to say so
        resource.RLIMIT_AS: (5 * 2**20,) * 2,
    }


def test_without_a_limit_none_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = applied(monkeypatch, {"memory_mib": None, "file_mib": 2, "cpu_s": None})
    assert set(bounds) == {resource.RLIMIT_CORE, resource.RLIMIT_FSIZE}


def test_a_limit_that_stands_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = applied(monkeypatch, {"memory_mib": 5, "file_mib": 2, "cpu_s": 1.0}, most=6)
    assert bounds[resource.RLIMIT_FSIZE] == bounds[resource.RLIMIT_AS] == (6, 6)
    assert bounds[resource.RLIMIT_CPU] == (4, 6)


def test_progress_that_nobody_hears_is_said_to_nobody() -> None:
    assert not service.is_child()
    service.report_progress("step", 0, 1)
