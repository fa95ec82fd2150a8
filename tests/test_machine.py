"""What the machine tells of itself, from the system's own texts and from none."""

import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vitdeploy import machine

X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) @ 2.80GHz
flags\t\t: fpu sse4_1 avx2 fma avx512f avx512_vnni

processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nModel\t\t: Raspberry Pi 5\n"


@pytest.fixture
def texts(monkeypatch):
    """Texts of the system by path; a path that is not in them can't be read."""
    held: dict[str, str] = {}
    monkeypatch.setattr(machine, "_read", lambda path: held.get(path, "").strip())
    return held


@pytest.mark.parametrize(
    ("architecture", "text", "name", "sets", "telling"),
    [
        (
            "x86_64",
            X86,
            "Intel(R) Xeon(R) @ 2.80GHz",
            "x86_64 sse4_1 avx2 fma avx512f avx512_vnni",
            {"avx2", "avx512f", "avx512_vnni"},
        ),
        ("aarch64", ARM, "Raspberry Pi 5", "aarch64 asimd asimddp", {"neon", "dotprod"}),
        ("riscv64", "hart : 0\nisa : rv64imafdc\n", "riscv64", "riscv64", set()),
        ("x86_64", "", "x86_64", "x86_64", set()),
    ],
)
def test_the_processor(texts, monkeypatch, architecture, text, name, sets, telling):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "processor", lambda: "")
    texts["/proc/cpuinfo"] = text
    assert machine.cpu_name() == name
    assert machine.instruction_sets() == sets
    named = machine.read_instruction_sets()
    assert {name for name, there in named.items() if there} == telling
    assert bool(named) == bool(telling)  # not knowing is not the same as having none


def test_cores_that_this_process_may_use():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from vitdeploy import machine; "
    code += "print(machine.logical_cores(), machine.physical_cores())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1 1\n"


def test_two_threads_of_a_core_count_once(texts, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert (machine.logical_cores(), machine.physical_cores()) == (4, 4)  # the system tells of no siblings
    texts |= {f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n // 2 * 2}-{n // 2 * 2 + 1}" for n in range(4)}
    assert (machine.logical_cores(), machine.physical_cores()) == (4, 2)


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None), ("", None), ("100000", None)])
def test_a_containers_share_of_the_cores(texts, text, cores):
    texts["/sys/fs/cgroup/cpu.max"] = text
    assert machine.quota_cores() == cores


@pytest.mark.parametrize(("text", "limit"), [("1073741824\n", 1024.0), ("max\n", None), ("", None)])
def test_a_containers_share_of_the_memory(texts, monkeypatch, text, limit):
    monkeypatch.setattr(machine, "physical_mib", lambda: 4096.0)
    texts["/sys/fs/cgroup/memory.max"] = text
    assert machine.limit_mib() == limit
    texts["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = texts.pop("/sys/fs/cgroup/memory.max")  # version 1
    assert machine.limit_mib() == limit
    assert machine.machine_mib() == (limit or 4096.0)
    texts["/sys/fs/cgroup/memory.max"] = str(1 << 50)  # more than there is
    assert machine.machine_mib() == 4096.0


def test_memory_that_is_available(texts):
    assert machine.available_mib() is None
    texts["/proc/meminfo"] = "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n"
    assert machine.available_mib() == 8.0
    for odd in ("MemAvailable:\n", "MemAvailable: many kB", "MemTotal: 1 kB"):
        texts["/proc/meminfo"] = odd
        assert machine.available_mib() is None


def test_this_machine_has_memory_and_uses_less():
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024
    assert machine.physical_mib() == pytest.approx(total, rel=0.02)
    assert 5 < machine.peak_mib() < total


def test_the_peak_of_another_process_and_of_one_that_is_gone():
    code = "held = bytearray(b'1') * (100 << 20); print(flush=True); del held; input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert 100 < machine.peak_mib(other.pid) < 200
        other.stdin.close()
    assert machine.peak_mib(other.pid) == 0


def test_without_proc_the_kernels_account_is_taken(texts):
    assert machine.peak_mib() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert machine.peak_mib(1) == 0


def test_load_and_governor(texts, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 2.0, 1.0))
    assert machine.load() == 3.5
    assert machine.governor() == ""
    texts["/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] = "performance\n"
    assert machine.governor() == "performance"


def write_tree(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


def test_counters_of_packages_and_of_nothing_below_them(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_POWERCAP", str(tmp_path))
    assert machine.energy_counters() == {}
    for zone in ("intel-rapl:0", "intel-rapl:0:0"):
        write_tree(tmp_path, {f"{zone}/energy_uj": 12345, f"{zone}/max_energy_range_uj": 999999})
    (tmp_path / "intel-rapl:1").mkdir()  # one that only root may read
    assert machine.energy_counters() == {"intel-rapl:0": machine.Counter(12345, 999999)}


def write_rail(root, sensor, rail, number=1, name="ina3221"):
    label, millivolts, milliamperes = rail
    channel = {f"in{number}_label": label, f"in{number}_input": millivolts, f"curr{number}_input": milliamperes, "name": name}
    write_tree(root, {f"{sensor}/{file}": content for file, content in channel.items()})


def test_power_of_a_board_is_its_supplys(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_HWMON", str(tmp_path))
    assert machine.power_w() is None
    write_rail(tmp_path, "hwmon0", ("x", 1000, 1000), name="coretemp")
    assert machine.power_w() is None
    write_rail(tmp_path, "hwmon1", ("VDD_GPU_SOC", 19000, 500))
    write_rail(tmp_path, "hwmon1", ("VDD_CPU_CV", 19000, 100), number=2)
    assert machine.power_w() == pytest.approx(9.5 + 1.9)  # no rail of the whole board: the sum
    write_rail(tmp_path, "hwmon2", ("VDD_IN", 5000, 3000))
    assert machine.power_w() == pytest.approx(15)


def test_conditions_are_those_that_the_system_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPUS", str(tmp_path))
    monkeypatch.setattr(machine, "_THERMAL", str(tmp_path))
    assert set(machine.read_conditions()) == {"load"}
    write_tree(tmp_path, {f"cpu{number}/cpufreq/scaling_cur_freq": khz for number, khz in enumerate((2000000, 3000000))})
    write_tree(
        tmp_path, {"cpu0/thermal_throttle/core_throttle_count": 7, "thermal_zone0/temp": -5000, "thermal_zone1/temp": 61500}
    )
    told = machine.read_conditions()
    assert (told["frequency_mhz"], told["temperature_c"], told["throttled"]) == (2500, 61.5, 7)


def test_free_memory_is_within_a_containers_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_GROUP", str(tmp_path))
    monkeypatch.setattr(machine, "available_mib", lambda: 900.0)
    assert machine.free_mib() == 900
    write_tree(tmp_path, {"memory.max": 512 * 2**20, "memory.current": 112 * 2**20})
    assert machine.free_mib() == 400
    monkeypatch.setattr(machine, "available_mib", lambda: None)
    assert machine.free_mib() is None


@pytest.mark.parametrize(("quota", "threads"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("16 1", 8)])
def test_threads_are_cores_or_what_a_quota_leaves(tmp_path, monkeypatch, quota, threads):
    monkeypatch.setattr(machine, "_GROUP", str(tmp_path))
    monkeypatch.setattr(machine, "logical_cores", lambda: 8)
    write_tree(tmp_path, {"cpu.max": quota})
    assert machine.usable_threads() == threads


def test_a_limit_that_no_machine_has_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_GROUP", str(tmp_path))
    write_tree(tmp_path, {"memory/memory.limit_in_bytes": 0x7FFFFFFFFFFFF000, "memory/memory.usage_in_bytes": 2**30})
    assert machine.limit_mib() is None
    write_tree(tmp_path, {"memory/memory.limit_in_bytes": 3 * 2**30})
    monkeypatch.setattr(machine, "available_mib", lambda: 9000.0)
    assert (machine.limit_mib(), machine.free_mib()) == (3072, 2048)
