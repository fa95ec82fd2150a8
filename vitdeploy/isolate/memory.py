"""Memory figures: what a process has used, and what the machine has."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import resource

_UNIT = 1 << 20 if sys.platform == "darwin" else 1024
"""``ru_maxrss`` is in bytes there, in KiB elsewhere."""


def machine_mib() -> float:
    """Memory of this machine, or what its container may use of it, in MiB."""
    allowed = ""
    with suppress(OSError):  # another system, or one with older control groups
        allowed = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    return min(physical_mib(), int(allowed) / 2**20) if allowed.isdigit() else physical_mib()


def physical_mib() -> float:
    """Memory that is built into this machine, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def peak_mib(pid: int | None = None) -> float:
    """Largest resident memory of a process so far, in MiB.

    Args:
        pid: Its number, or None for this process.

    Returns:
        0 for another process where the system does not say.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if pid is not None:
        return 0.0
    import resource  # Unix only

    return counted_mib(resource.getrusage(resource.RUSAGE_SELF))


def counted_mib(usage: resource.struct_rusage) -> float:
    """Peak of memory in the kernel's account of a process, in MiB: its parent's, where that was larger when it started."""
    return usage.ru_maxrss / _UNIT


def size(mib: float) -> str:
    """As people write it: ``312 MiB``, ``7.1 GiB``."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def used(peak: float, cap: int | None = None) -> str:
    """``7.1 GiB of 7.4 GiB``.

    Args:
        peak: What was used, in MiB.
        cap: What might be used, in MiB, where that is less than the machine has.
    """
    return f"{size(peak)} of {size(most_mib(cap))}"


def most_mib(cap: int | None) -> float:
    """What a process with that limit can use, in MiB."""
    return machine_mib() if cap is None else min(machine_mib(), cap)
