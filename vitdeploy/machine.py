"""The CPU, as far as an engine's settings and its cached files depend on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_DEVICES = Path("/sys/devices/system/cpu")
_INFORMATION = Path("/proc/cpuinfo")
_SETS = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"),
)
"""Instruction sets, as Linux names them, by which engines choose their kernels."""


def logical_cores() -> int:
    """Threads of the CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once. All threads, where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return logical_cores()
    cores = set()
    for number in os.sched_getaffinity(0):
        try:
            cores.add((_DEVICES / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            return logical_cores()
    return len(cores)


def instruction_sets() -> str:
    """Architecture and the instruction sets that matter, as one text: ``x86_64 avx avx2 ...``. Equal texts, equal kernels."""
    try:
        lines = _INFORMATION.read_text().splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}".strip()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join([platform.machine(), *(name for name in _SETS if name in flags)])
