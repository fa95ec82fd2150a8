"""Settings as OpenVINO calls them: which device, what it is asked for, and what it says that it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitdeploy.backends.base import OpenConfig, count_threads
from vitdeploy.errors import MachineError, UsageError, nearest

PRECISION, HINT, THREADS, STREAMS = "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS"
AUTO = "AUTO"
"""The device that chooses among the others; it takes their properties, and answers for them only one by one."""
_KNOWN = ("cpu", "gpu", "npu", "auto")


def find_device(core: Any, name: str) -> str:  # noqa: ANN401 (openvino.Core, which has no types)
    """OpenVINO's name of a device that is here.

    Args:
        core: Knows the devices.
        name: ``cpu``, ``gpu``, ``gpu.1``, ``npu``, ``auto``.

    Raises:
        UsageError: VD2011, no device has that name.
        MachineError: VD4010, it is not on this machine, or its driver is missing.
    """
    if name.partition(".")[0] not in _KNOWN:
        message = f"the backend 'openvino' runs on {', '.join(map(repr, _KNOWN))}, not on {name!r}"
        raise UsageError("VD2011", message, fix=nearest(name, _KNOWN) or "leave the device out")
    here = [str(each) for each in core.available_devices]
    wanted = name.upper()
    if wanted != AUTO and wanted not in here and not any(each.startswith(f"{wanted}.") for each in here):
        message = f"openvino finds no device {name!r} here; it finds {', '.join(each.lower() for each in here) or 'none'}"
        raise MachineError("VD4010", message, fix="leave the device out, or install its driver")
    return wanted


def choose_properties(core: Any, target: str, config: OpenConfig) -> dict[str, object]:  # noqa: ANN401 (openvino.Core)
    """Properties to compile with.

    Args:
        core: Knows which properties a device has.
        target: What `find_device` returned.
        config: Its precision is given; what else is left open gets its usual value where the device has such a property.

    Raises:
        UsageError: VD2011, a setting was given that the device does not have.
    """
    hint = config.hint or "latency"
    asked = {PRECISION: config.precision or "f32", HINT: hint.upper(), THREADS: config.threads, STREAMS: config.streams}
    usual = {THREADS: count_threads(config), STREAMS: 1 if hint == "latency" else None}
    has = None if target == AUTO else set(core.get_property(target, "SUPPORTED_PROPERTIES"))
    properties = {}
    for name, value in asked.items():
        if has is None or name in has:
            properties[name] = usual.get(name) if value is None else value
        elif value is not None and name != PRECISION:  # the precision is asked back in any case
            raise UsageError("VD2011", f"openvino has no {name} on {target.lower()!r}", fix="leave the setting out")
    return {name: value for name, value in properties.items() if value is not None}


def read_properties(compiled: Any) -> dict[str, str | int]:  # noqa: ANN401 (openvino.CompiledModel)
    """The same properties of a compiled model, as it answers; those that it does not tell are left out."""
    devices = [str(name) for name in compiled.get_property("EXECUTION_DEVICES")]
    answers: Any = compiled.get_property
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    if PRECISION not in known and "DEVICE_PROPERTIES" in known:  # AUTO
        tables = compiled.get_property("DEVICE_PROPERTIES")
        table: dict[str, object] = next((tables[name] for name in devices if name in tables), {})
        answers, known = table.get, set(table)
    properties = {name: answers(name) for name in (PRECISION, HINT, THREADS, STREAMS) if name in known}
    if PRECISION in properties:
        properties[PRECISION] = properties[PRECISION].get_type_name()
    if HINT in properties:  # a word or an enum, by device
        properties[HINT] = str(properties[HINT]).rpartition(".")[2]
    return {**properties, "devices": ", ".join(devices)}


def check_precision(asked: Mapping[str, object], actual: Mapping[str, str | int], target: str) -> None:
    """Refuse a device that computes in another precision than the one asked for: it takes the nearest that it has.

    Raises:
        UsageError: VD2011.
    """
    if actual.get(PRECISION) != asked.get(PRECISION):
        where = f"this {target}" if target in ("CPU", "GPU", "NPU") else target.lower()
        message = f"openvino computes in {actual.get(PRECISION)!r} on {where}, not in {asked.get(PRECISION)!r}"
        raise UsageError("VD2011", message, fix="leave the precision out" if target == "CPU" else "give the one that it has")


def check_counts(config: OpenConfig, actual: Mapping[str, str | int]) -> None:
    """Refuse threads or streams that the device cuts down.

    Args:
        config: Those that were given are looked at.
        actual: What `read_properties` returned.

    Raises:
        UsageError: VD2011.
    """
    for name, count, words in ((THREADS, config.threads, "threads"), (STREAMS, config.streams, "streams")):
        if count is not None and actual.get(name) != count:
            message = f"openvino uses {actual.get(name)} {words} here, not {count}"
            raise UsageError("VD2011", message, fix=f"ask for {actual.get(name)}, or leave {words} out")
