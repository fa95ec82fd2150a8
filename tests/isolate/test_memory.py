"""Figures of memory: the unit, the rounding, and which limit counts."""

from __future__ import annotations

import pytest

from vitdeploy.isolate import memory


@pytest.mark.parametrize(
    ("mib", "text"), [(0.4, "0 MiB"), (312.0, "312 MiB"), (1023.0, "1023 MiB"), (1024.0, "1.0 GiB"), (7270.4, "7.1 GiB")]
)
def test_sizes_as_people_write_them(mib: float, text: str) -> None:
    assert memory.format_size(mib) == text


@pytest.mark.parametrize(("cap", "usable", "text"), [(None, 2048, "2.0 GiB"), (512, 512, "512 MiB"), (4096, 2048, "2.0 GiB")])
def test_the_lesser_of_machine_and_limit_counts(cap: int | None, usable: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_mib", lambda: 2048.0)
    assert memory.usable_mib(cap) == usable
    assert memory.format_use(100.0, cap) == f"100 MiB of {text}"
