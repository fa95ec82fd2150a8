"""Every fact about this machine, once: cores, instruction sets, memory, limits, load.

What the system does not tell is "" or None.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import resource

_CPUINFO, _MEMINFO = "/proc/cpuinfo", "/proc/meminfo"
_CPUS = "/sys/devices/system/cpu"
_POWERCAP, _HWMON, _THERMAL = "/sys/class/powercap", "/sys/class/hwmon", "/sys/class/thermal"
_GROUP = "/sys/fs/cgroup"
"""Control groups, version 2, as a container sees its own."""
_UNLIMITED = 1 << 62
"""Bytes from which a limit is none."""
_UNIT = 1 << 20 if sys.platform == "darwin" else 1024
"""``ru_maxrss`` is in bytes there, in KiB elsewhere."""
_SETS = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"),
)
"""Instruction sets, as Linux names them, by which engines choose their kernels."""
_TELLING = {
    "x86_64": {name: name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")},
    "aarch64": {"neon": "asimd", "fp16": "asimdhp", "dotprod": "asimddp", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve"},
}
"""Those that decide how fast (and in INT8 how exactly) a ViT runs: architecture, name for people, Linux's name."""


MOST_THREADS = 4096
"""More than any machine that is deployed to has cores; at tens of thousands engines end the process, not the run."""


def logical_cores() -> int:
    """Threads of the CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once. All threads, where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return logical_cores()
    cores = {_read(f"{_CPUS}/cpu{number}/topology/thread_siblings_list") for number in os.sched_getaffinity(0)}
    return logical_cores() if "" in cores else len(cores)


def quota_cores() -> float | None:
    """Cores' worth of time that a container may use; None without a limit."""
    quota, period, *_ = [*_read(f"{_GROUP}/cpu.max").split(), "", ""]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def read_identity() -> str:
    """What tells this machine from others: the system's number and, where it has one, the board's; "" where none is told.

    Source:
        machine-id(5) of systemd; ``serial-number`` of the devicetree specification, which Jetson boards have.
    """
    return " ".join(filter(None, (_read("/etc/machine-id"), _read("/proc/device-tree/serial-number").strip("\0"))))


def load() -> float:
    """Processes that ran or waited to run, on average in the last minute."""
    return os.getloadavg()[0]


def cpu_name() -> str:
    """The processor's name, else its architecture."""
    return _cpu_field("model name", "Model") or platform.processor() or platform.machine()


def governor() -> str:
    """Frequency governor of the first core."""
    return _read(f"{_CPUS}/cpu0/cpufreq/scaling_governor")


def power_mode() -> str:
    """What limits clocks and power, as far as the system tells: frequency governor, platform profile, mode of a Jetson."""
    told = (governor(), _read("/sys/firmware/acpi/platform_profile"), _read("/var/lib/nvpmodel/status"))
    return ", ".join(text for text in told if text)


class Counter(NamedTuple):
    """A counter of energy.

    Attributes:
        microjoules: What it shows.
        range: Where it starts again from 0.
    """

    microjoules: int
    range: int


def energy_counters() -> dict[str, Counter]:
    """Energy of each processor package, by name; nothing where the system has no such counter, or lets only root read it.

    Source: the kernel's Documentation/power/powercap: ``energy_uj`` and ``max_energy_range_uj`` of the zones ``intel-rapl:N``,
        which AMD's processors have too.
    """
    counters = {}
    for zone in sorted(Path(_POWERCAP).glob("intel-rapl:[0-9]")):  # packages; what lies below is part of them
        shown, wraps = _read(f"{zone}/energy_uj"), _read(f"{zone}/max_energy_range_uj")
        if shown.isdigit() and wraps.isdigit():
            counters[zone.name] = Counter(int(shown), int(wraps))
    return counters


def power_w() -> float | None:
    """Power that the board draws now, in watts, by the sensors of a Jetson; None where there are none.

    Source: NVIDIA, Jetson Linux Developer Guide, Power and thermal: an INA3221 whose channel ``VDD_IN`` (on Orin AGX the sum of
        all channels) is the board's supply; the kernel's Documentation/hwmon/ina3221: ``inN_input`` in mV, ``currN_input`` in mA.
    """
    rails: dict[str, float] = {}
    for sensor in sorted(Path(_HWMON).glob("hwmon*")):
        if _read(f"{sensor}/name") == "ina3221":
            for number in (1, 2, 3):
                label = _read(f"{sensor}/in{number}_label")
                volts, amperes = _read(f"{sensor}/in{number}_input"), _read(f"{sensor}/curr{number}_input")
                if label and volts.isdigit() and amperes.isdigit():
                    rails[label] = int(volts) * int(amperes) / 1e6
    if not rails:
        return None
    return rails["VDD_IN"] if "VDD_IN" in rails else sum(rails.values())


def read_conditions() -> dict[str, float]:
    """What moves while a benchmark runs, as far as the system tells.

    ``load``; ``frequency_mhz``, the mean of the cores; ``temperature_c`` of the hottest zone; ``throttled``, how often heat has
    slowed the first core since the system started.

    Source: the kernel's Documentation/ABI: ``scaling_cur_freq`` in kHz, ``thermal_zone*/temp`` in millidegrees Celsius,
        ``thermal_throttle/core_throttle_count``.
    """
    speeds = [_read(str(path)) for path in Path(_CPUS).glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    heats = [_read(str(path)) for path in Path(_THERMAL).glob("thermal_zone*/temp")]
    throttled = _read(f"{_CPUS}/cpu0/thermal_throttle/core_throttle_count")
    known = {"load": round(load(), 2)}
    if frequencies := [int(speed) / 1000 for speed in speeds if speed.isdigit()]:
        known["frequency_mhz"] = round(sum(frequencies) / len(frequencies))
    if temperatures := [int(heat) / 1000 for heat in heats if heat.lstrip("-").isdigit()]:
        known["temperature_c"] = max(temperatures)
    if throttled.isdigit():
        known["throttled"] = int(throttled)
    return known


def instruction_sets() -> str:
    """Architecture and the instruction sets that matter, as one text: ``x86_64 avx avx2 ...``. Equal texts, equal kernels."""
    flags = _cpu_field("flags", "Features").split()
    return " ".join([platform.machine(), *(name for name in _SETS if name in flags)])


def read_instruction_sets() -> dict[str, bool]:
    """Those that decide how fast a ViT runs, and whether this processor has them; empty where the system does not say."""
    flags = _cpu_field("flags", "Features").split()
    return {name: flag in flags for name, flag in _TELLING.get(platform.machine(), {}).items()} if flags else {}


def physical_mib() -> float:
    """Memory that is built into this machine, in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


def limit_mib() -> float | None:
    """Memory that a container may use, in MiB; None without a limit, which version 1 writes as a number that no machine has."""
    allowed = _read(f"{_GROUP}/memory.max") or _read(f"{_GROUP}/memory/memory.limit_in_bytes")  # version 2, or 1
    return int(allowed) / 2**20 if allowed.isdigit() and int(allowed) < _UNLIMITED else None


def machine_mib() -> float:
    """Memory of this machine, or what its container may use of it, in MiB."""
    limit = limit_mib()
    return physical_mib() if limit is None else min(physical_mib(), limit)


def available_mib() -> float | None:
    """Memory that can be had without swapping, in MiB."""
    return _kib_field(_MEMINFO, "MemAvailable")


def free_mib() -> float | None:
    """Memory that a new process can have without swapping, in MiB, within what its container may use."""
    free, limit = available_mib(), limit_mib()
    used = _read(f"{_GROUP}/memory.current") or _read(f"{_GROUP}/memory/memory.usage_in_bytes")
    left = [] if limit is None or not used.isdigit() else [limit - int(used) / 2**20]
    return min([free, *left]) if free is not None else None


def usable_threads() -> int:
    """Threads that run at a time here: the cores of this process, or what a container's quota leaves of them, at least one."""
    quota = quota_cores()
    return logical_cores() if quota is None else max(1, min(logical_cores(), int(quota)))


def peak_mib(pid: int | None = None) -> float:
    """Largest resident memory of a process so far, in MiB.

    Args:
        pid: Its number, or None for this process.

    Returns:
        0 for another process where the system does not say.
    """
    peak = _kib_field(f"/proc/{pid or 'self'}/status", "VmHWM")
    if peak is not None or pid is not None:
        return peak or 0.0
    import resource  # Unix only

    return to_mib(resource.getrusage(resource.RUSAGE_SELF))


def own_mib(pid: int) -> float:
    """Memory that a process holds now, without files that it maps, in MiB; 0 where the system does not say."""
    return _kib_field(f"/proc/{pid}/status", "RssAnon") or 0.0


def to_mib(usage: resource.struct_rusage) -> float:
    """Peak of memory in the kernel's account of a process, in MiB: its parent's, where that was larger when it started."""
    return usage.ru_maxrss / _UNIT


def _cpu_field(*starts: str) -> str:
    """The first field of ``/proc/cpuinfo`` whose name starts so: all cores are alike in what is read here."""
    lines = (line for line in _read(_CPUINFO).splitlines() if line.startswith(starts))
    return next(lines, "").partition(":")[2].strip()


def _kib_field(path: str, name: str) -> float | None:
    for line in _read(path).splitlines():
        field, _, rest = line.partition(":")
        if field == name and rest.split()[:1] and rest.split()[0].isdigit():
            return int(rest.split()[0]) / 1024
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:  # another system, a container that hides it, or a process that is gone
        return ""


def find_versions(*libraries: str) -> dict[str, str]:
    """Version of vitdeploy and of each library; what is not installed is left out."""
    versions = {}
    for name in ("vitdeploy", *libraries):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
