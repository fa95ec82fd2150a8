"""Figures of memory as people read them."""

from __future__ import annotations

from vitdeploy.machine import machine_mib


def format_size(mib: float) -> str:
    """As people write it: ``312 MiB``, ``7.1 GiB``."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def format_use(peak: float, cap: int | None = None) -> str:
    """``7.1 GiB of 7.4 GiB``.

    Args:
        peak: What was used, in MiB.
        cap: What might be used, in MiB, where that is less than the machine has.
    """
    return f"{format_size(peak)} of {format_size(usable_mib(cap))}"


def usable_mib(cap: int | None) -> float:
    """What a process with that limit can use, in MiB."""
    return machine_mib() if cap is None else min(machine_mib(), cap)
