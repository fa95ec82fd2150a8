"""What this machine can do: processor, limits, packages, and which backends really run.

A package that is installed is not yet an engine that works: wheels for another processor, a broken library path or a missing
weight loader show only when a model is opened. So each backend opens and runs a tiny one, in a child process of its own,
where even an illegal instruction is an answer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from vitdeploy import isolate, machine
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.child import share_table, take_table
from vitdeploy.errors import VitdeployError, first_line
from vitdeploy.progress import Progress, silent
from vitdeploy.report import Machine, this_machine
from vitdeploy.spec import InputContract, ModelSpec
from vitdeploy.verbs.fitter import Fit, try_fit

SCHEMA = 1
PACKAGES = ("numpy", "pillow", "msgspec", "torch", "safetensors", "onnx", "onnxscript")
"""What is looked for beside the engines' own packages."""
_PATIENCE_S = 120
_SPEC = ModelSpec(
    name="probe",
    input=InputContract(height=2, width=2, channels=1, resize="none", mean=(0.0,), std=(1.0,)),
    patch=(1, 1),
    width=4,
    depth=1,
    heads=1,
    classes=4,
)


class BackendState(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an engine runs here.

    Attributes:
        name: The backend.
        installed: Whether its package is there.
        usable: Whether it opened a model and ran it; for one that opens only what it has compiled, whether its device is there.
        detail: Its version and device, or why it does not run.
    """

    name: str
    installed: bool
    usable: bool
    detail: str


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about this machine.

    Attributes:
        schema_version: Version of this record.
        machine: Processor, memory, system.
        instruction_sets: Name to whether the processor has it; empty where the system does not say.
        governor: Frequency governor of the first core, or "" where the system does not say.
        quota_cores: Cores' worth of time that a container may use, or None without a limit.
        memory_limit_gib: What a container may use, or None without a limit.
        memory_free_gib: What a new process can have, or None where the system does not say.
        threads: How many run at a time: cores, or what a quota leaves of them.
        disk_free_gib: Free space in the current folder.
        packages: Package to version, or None when it is not installed.
        backends: The engines.
        fits: How a model runs in each engine, where one was named.
        findings: What is to be minded here, each with what to do.
    """

    schema_version: int = SCHEMA
    machine: Machine
    instruction_sets: dict[str, bool]
    governor: str
    quota_cores: float | None
    memory_limit_gib: float | None
    memory_free_gib: float | None
    threads: int
    disk_free_gib: float
    packages: dict[str, str | None]
    backends: tuple[BackendState, ...]
    fits: tuple[Fit, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def unusable(self) -> tuple[str, ...]:
        """Names of the backends that do not run."""
        return tuple(state.name for state in self.backends if not state.usable)


def examine(names: Sequence[str] = (), model: Artifact | None = None, *, progress: Progress = silent) -> Checkup:
    """Look at this machine and try backends.

    Args:
        names: Backends to try; empty means all.
        model: One that is run in each of them.
        progress: Hears of each backend.

    Raises:
        UsageError: VD2009, no backend has that name; as `try_fit`.
    """
    for name in names:
        table.find_engine(name)
    chosen, states = tuple(dict.fromkeys(names)) or tuple(table.TABLE), []
    for done, name in enumerate(chosen):
        progress(f"doctor: {name}", done, len(chosen))
        states.append(_state(name))
    progress("doctor", len(chosen), len(chosen))
    fits = () if model is None else try_fit(model, names, progress=progress)
    limit, free = machine.limit_mib(), machine.free_mib()
    return Checkup(
        machine=this_machine(),
        instruction_sets=machine.read_instruction_sets(),
        governor=machine.governor(),
        quota_cores=machine.quota_cores(),
        memory_limit_gib=None if limit is None else round(limit / 1024, 1),
        memory_free_gib=None if free is None else round(free / 1024, 1),
        threads=machine.usable_threads(),
        disk_free_gib=round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        packages={name: _version(name) for name in (*PACKAGES, *table.list_packages())},
        backends=tuple(states),
        fits=fits,
        findings=tuple(_list_findings()),
    )


def _list_findings() -> Iterator[str]:
    """What makes engines slow or numbers doubtful here, and what to do about it."""
    threads, cores = machine.usable_threads(), machine.logical_cores()
    if threads < cores:
        yield f"a quota leaves {threads} of {cores} cores: engines start one thread a core and wait; give --threads {threads}"
    if (governor := machine.governor()) == "powersave":
        yield f"the frequency governor is {governor}: latencies vary; set it to performance while you measure"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _state(name: str) -> BackendState:
    if not table.is_installed(name):
        return BackendState(name=name, installed=False, usable=False, detail=f"not installed; {table.TABLE[name].fix}")
    usable, detail = _try(name)
    return BackendState(name=name, installed=True, usable=usable, detail=detail)


def _try(name: str) -> tuple[bool, str]:
    """Whether the backend ran in a child process, and its version or what went wrong."""
    try:
        answer = isolate.run(f"{__name__}:probe", [name, share_table()], seconds=_PATIENCE_S, what=name, smaller="")
        return bool(answer["usable"]), str(answer["detail"])
    except VitdeployError as exc:
        return False, exc.message
    except isolate.ChildCrash as exc:  # an engine that breaks in a way of its own is what a doctor is for
        return False, str(exc)


def probe(argument: tuple[str, list[Any]]) -> dict[str, object]:
    """Try a backend: the part that runs in a child process, and writes into its current folder.

    Args:
        argument: The backend's name, and the table as `share_table` gives it.

    Returns:
        ``usable`` and ``detail``, as `BackendState` has them.
    """
    name, rows = argument
    take_table(rows)
    try:
        usable, detail = _device(name) if table.TABLE[name].compiled_only else _open(name)
    except VitdeployError as exc:
        usable, detail = False, exc.message
    except ImportError as exc:  # there, but broken: a wrong wheel, a missing system library
        usable, detail = False, first_line(exc)
    return {"usable": usable, "detail": detail}


def _open(name: str) -> tuple[bool, str]:
    import numpy as np

    from vitdeploy.backends.base import OpenConfig

    artifact = _tiny(Path.cwd(), weights=name == table.REFERENCE)
    with closing(table.load(name).open(artifact, OpenConfig(threads=1))) as runner:
        shape = runner.run(np.ones((1, 1, 2, 2), np.float32))["logits"].shape
        return shape == (1, _SPEC.classes), str(runner.settings.get("version", ""))


def _device(name: str) -> tuple[bool, str]:
    """An engine that opens only what it has compiled: whether it can be loaded, and has a device to run on."""
    engine = table.load(name)
    version = _version(table.TABLE[name].package) or ""
    device = getattr(engine, "device", None)
    if not callable(device):
        return False, f"{version}: loads; whether its device is here is not known"
    try:
        return True, f"{version} on {device()}"
    except VitdeployError as exc:
        return False, f"{version}: loads, but can't run here: {exc.message}"


def _tiny(folder: Path, *, weights: bool) -> Artifact:
    """A model of a few numbers: an ONNX file that flattens 2 x 2 pixels to 4 logits, and a ViT of that shape."""
    (folder / "model.onnx").write_bytes(_onnx())
    if weights:
        from vitdeploy.models.vit import build

        state = {key: value.numpy() for key, value in build(_SPEC).state_dict().items()}
        header, raw = {}, b""
        for key, value in state.items():
            end = len(raw) + value.nbytes
            header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(raw), end]}
            raw += value.tobytes()
        text = json.dumps(header).encode()
        (folder / "weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    return Artifact(folder, Record(spec=_SPEC, made_by="doctor", weights="weights.safetensors" if weights else None))


def _onnx() -> bytes:
    """The smallest ONNX file that is worth running, without the onnx package.

    Source: onnx.proto3 (ModelProto, GraphProto, NodeProto, ValueInfoProto).
    """

    def put(field: int, value: int | bytes | str) -> bytes:  # every length and number here is below 128: one byte each
        if isinstance(value, int):
            return bytes((field << 3, value))
        raw = value.encode() if isinstance(value, str) else value
        return bytes((field << 3 | 2, len(raw))) + raw

    def tensor(name: str, *sizes: int) -> bytes:
        shape = put(1, put(2, "N")) + b"".join(put(1, put(1, size)) for size in sizes)
        return put(1, name) + put(2, put(1, put(1, 1) + put(2, shape)))

    node = put(1, "pixels") + put(2, "logits") + put(4, "Flatten")
    graph = put(1, node) + put(2, "probe") + put(11, tensor("pixels", 1, 2, 2)) + put(12, tensor("logits", 4))
    return put(1, 8) + put(7, graph) + put(8, put(2, 18))
