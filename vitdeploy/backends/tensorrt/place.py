"""Where an engine is built: the GPU, if there is one, its driver, and the memory that a build may use.

On this project's machines without a GPU only the answer "no device" was executed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vitdeploy import machine
from vitdeploy.backends.tensorrt import cuda
from vitdeploy.backends.tensorrt.device import Device
from vitdeploy.errors import UsageError


class Place(NamedTuple):
    """This machine.

    Attributes:
        device: Its GPU, or None.
        driver: Version of the driver and of the CUDA that it knows; "" without a device.
        runtime: Version of the CUDA runtime; "" without a device.
        free: Memory that is free for a build, in bytes; None when unknown.
        reason: Why there is no device; "" when there is one.
    """

    device: Device | None = None
    driver: str = ""
    runtime: str = ""
    free: int | None = None
    reason: str = ""


def read_ordinal(device: str | None) -> int:
    """A device's number: 0 for None and ``cuda``, 1 for ``cuda:1``.

    Raises:
        UsageError: VD2011, another device.
    """
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device or "cuda")
    if match is None:
        raise UsageError("VD2011", f"TensorRT runs on 'cuda', not on {device!r}", fix="leave the device out")
    return int(match[1] or 0)


def look_around(number: int = 0) -> Place:
    """Look at this machine.

    Args:
        number: Of the device, see `read_ordinal`.

    Raises:
        UsageError: VD2011, there are fewer devices.
        MachineError: VD4010, VD4006 or VD4004, a device is there and can't be used.
    """
    search = cuda.find()
    if search.cuda is None:
        return Place(reason=search.reason)
    if number >= (count := search.cuda.count()):
        raise UsageError("VD2011", f"there is no cuda:{number}, the last one is cuda:{count - 1}", fix="leave the device out")
    search.cuda.use(number)
    device, versions = search.cuda.describe(number), search.cuda.versions()
    free = search.cuda.memory().free
    if device.integrated:  # the GPU's figure leaves out what the kernel would give back from its caches
        free = int((machine.available_mib() or 0) * 2**20) or free
    release = _read(Path("/sys/module/nvidia/version")).strip()
    driver = f"{release} (CUDA {versions.driver})" if release else f"CUDA {versions.driver}"
    return Place(device, driver, versions.runtime, free)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # another system, or a container that hides it: not knowing is an answer here
        return ""
