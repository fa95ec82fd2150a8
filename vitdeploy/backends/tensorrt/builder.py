"""From an ONNX file to an engine, with TensorRT 10.3 to 11.4 and TensorRT-RTX alike.

The file's own types are the only source of precision: the network is strongly typed, no precision flag is set and nothing is
calibrated. Version 11 knows nothing else; on version 10 the older way remains, as a choice that is recorded.

Executed so far: TensorRT-RTX 1.7.1 on machines without a GPU, and nothing of TensorRT itself. Weak typing, version
compatibility and refitting never ran. The timing cache ran with TensorRT-RTX, where its calls do nothing. Limits from free memory
were set and never bound. Every name used here is in the bindings of 10.3, 10.7, 10.13, 10.16 and 11.4.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy import files
from vitdeploy.backends.tensorrt import library
from vitdeploy.backends.tensorrt.library import Message
from vitdeploy.backends.tensorrt.place import Place, read_ordinal
from vitdeploy.backends.tensorrt.profile import find_capabilities, make_profile
from vitdeploy.errors import MachineError, UsageError, VitdeployError
from vitdeploy.errors import library as seam
from vitdeploy.machine import peak_mib
from vitdeploy.onnxfile.summary import OnnxGraph, read_graph
from vitdeploy.recipe import CompileConfig

TYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32",
    "INT64": "int64", "BOOL": "bool", "FP8": "float8e4m3fn",
}  # fmt: skip
"""TensorRT's name of an element type to ONNX's."""
WEAK_FLAGS = {"float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "float8e4m3fn": "FP8"}
"""Element type in the file to the flag that lets a weakly typed network use it."""
_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|MemoryAllocation|bad_alloc|MEM_ALLOC|cannot allocate", re.IGNORECASE)
_SKIPPED = re.compile(r"insufficient to use tactic|Skipping tactic", re.IGNORECASE)
_NOISE = re.compile(r"^(ModelImporter|WeightsContext|onnx\w+)\.cpp:\d+:\s*(---|While parsing)")
_KNOWN = (
    (
        re.compile(r"builder_resource"),
        "VD4010",
        "install the whole TensorRT of this version: it lacks what it builds with for this GPU (an Orin uses that of sm_86)",
    ),
    (re.compile(r"nvinfer_lean"), "VD4010", "install the lean runtime of the same version, or leave out --compatible"),
    (re.compile(r"cudaError 35|driver version is insufficient"), "VD4010", "install an NVIDIA driver that is new enough"),
)
"""What the log says to the code and the remedy."""
_CONSEQUENCE = re.compile(r"\[checkMacros\.cpp")
"""Begins what the parser adds to an error when there is no driver."""
_LESS_MEMORY = "use a smaller --workspace or --effort, and end what else uses memory"
_LONGEST = 400
_SHOWN = 3
_WARNINGS = 20


class Built(NamedTuple):
    """An engine.

    Attributes:
        plan: Its bytes.
        facts: What it was built with and what the builder said, for the record.
        notes: What people should know.
    """

    plan: bytes
    facts: dict[str, object]
    notes: tuple[str, ...] = ()


def require_supported(trt: Any, config: CompileConfig, place: Place) -> None:  # noqa: ANN401 (a library without types)
    """Refuse settings that this module or machine does not have, before any work.

    Raises:
        UsageError: VD2011, naming the setting.
        MachineError: VD4010, there is no GPU, and it is needed.
    """
    read_ordinal(config.device)
    rtx, major = library.is_rtx(trt), (library.version(trt) or (0,))[0]
    engine = "TensorRT-RTX" if rtx else f"TensorRT {major}"
    wrong = {
        f"precision {config.precision!r}: it computes in the types of the file": config.precision is not None,
        "threads: the work is on the GPU": config.threads is not None,
        "streams: a runner has one": config.streams is not None,
        "hint 'throughput': a runner runs one batch at a time": config.hint != "latency",
        "architectures: it builds for the GPU that it is on": bool(config.architectures) and not rtx,
        "weakly_typed: only TensorRT 10 has it": config.weakly_typed and (rtx or major > 10),
        "compatible: there is no lean runtime of it": config.compatible and rtx,
    }
    for said, refused in wrong.items():
        if refused:
            raise UsageError("VD2011", f"{engine} has no setting {said}", fix="leave it out")
    if place.device is None and (config.refit or not rtx):
        what = "an engine that can be refitted is built" if rtx else f"{engine} builds"
        message = f"{what} only where a GPU is: {place.reason or 'no CUDA device'}"
        raise MachineError("VD4010", message, fix="run this on the machine with the GPU, or leave --refit out" if rtx else "")


def build(trt: Any, onnx: Path, config: CompileConfig, place: Place, cache: Path | None = None) -> Built:  # noqa: ANN401
    """Build an engine.

    Args:
        trt: The module, ``tensorrt`` or ``tensorrt_rtx``.
        onnx: The file, which `rules.check` has passed; data beside it is found.
        config: How.
        place: Where.
        cache: File with the timings of earlier builds, read and written; None without, as always for TensorRT-RTX.

    Raises:
        UsageError: VD2011, a setting that this module does not have, or a batch that the file does not take.
        MachineError: VD4011, the parser or the builder refused it, with the first thing that it said; VD4006, out of
            memory; VD4010, something of the installation is missing; VD4004, the library failed.
    """
    require_supported(trt, config, place)
    graph = read_graph(onnx)
    log = library.log(trt)
    start = time.monotonic()
    with log.listening() as said, seam("TensorRT", onnx):
        work = _Work(trt, log.native, onnx, config)
        work.parse(said)
        work.require_types(graph)
        facts = work.configure(graph, place)
        notes = work.use_cache(cache)
        plan = work.build(said)
        notes += work.keep_cache(cache)
    skipped = sum(bool(_SKIPPED.search(message.text)) for message in said)
    if skipped:
        notes += (f"{skipped} kernels were not tried for want of memory: the engine may be slower; {_LESS_MEMORY}",)
    facts |= {
        "seconds": round(time.monotonic() - start, 2),
        "peak_host_mib": round(peak_mib()),
        "plan_bytes": len(plan),
        "skipped_tactics": skipped,
        "warnings": _distinct(message.text for message in said if message.severity == "warning"),
        "said": [message.text for message in said if message.text.startswith(("Total ", "Max Scratch", "[MemUsageStats]"))],
    }
    return Built(plan, facts, notes)


class _Work:
    """One build; everything native lives until its end, because the parser owns the weights.

    Args:
        trt: The module.
        native: Its logger.
        onnx: The file.
        config: How.
    """

    def __init__(self, trt: Any, native: Any, onnx: Path, config: CompileConfig) -> None:  # noqa: ANN401
        self.trt, self.onnx, self.config = trt, onnx, config
        self.builder = trt.Builder(native)
        creation = trt.NetworkDefinitionCreationFlag
        typed = hasattr(creation, "STRONGLY_TYPED") and not config.weakly_typed
        self.network = self.builder.create_network(1 << int(creation.STRONGLY_TYPED) if typed else 0)
        self.parser = trt.OnnxParser(self.network, native)
        self.options = self.builder.create_builder_config()
        self.cache: Any = None

    def parse(self, said: list[Message]) -> None:
        """Read the file into the network."""
        if self.parser.parse_from_file(str(self.onnx)):
            return
        errors = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
        parts = [_parser_error(error) for error in errors]
        message = "; ".join(parts[:_SHOWN]) + (f" (and {len(parts) - _SHOWN} more)" if len(parts) > _SHOWN else "")
        raise self._failure("the parser refused it", message or _first_error(said))

    def require_types(self, graph: OnnxGraph) -> None:
        """Refuse a network that has other inputs or outputs than the file."""
        network = self.network
        types = {
            tensor.name: TYPES.get(_name(tensor.dtype), _name(tensor.dtype))
            for tensor in (
                *(network.get_input(index) for index in range(network.num_inputs)),
                *(network.get_output(index) for index in range(network.num_outputs)),
            )
        }
        for port in (*graph.inputs, *graph.outputs):
            if types.get(port.name) != port.dtype:
                got = types.get(port.name, "nothing")
                raise self._failure("the network is another", f"{port.name!r} is {got}, in the file it is {port.dtype}")

    def configure(self, graph: OnnxGraph, place: Place) -> dict[str, object]:
        """Set every option; what was set, for the record."""
        trt, config, options = self.trt, self.config, self.options
        options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else nobody can tell what the engine runs
        options.builder_optimization_level = config.effort
        flags = {
            "VERSION_COMPATIBLE": config.compatible,
            "REFIT": config.refit,
            "TF32": False,  # on by default; 10 bits of mantissa are not the FP32 that the file says
        }
        if config.weakly_typed:
            flags |= {flag: True for dtype, flag in WEAK_FLAGS.items() if dtype in graph.elements}
        for name, wanted in flags.items():
            (options.set_flag if wanted else options.clear_flag)(getattr(trt.BuilderFlag, name))
        return {
            "tensorrt": str(trt.__version__),
            "typing": "weak" if config.weakly_typed else "strong",
            "flags": sorted(name for name, wanted in flags.items() if wanted),
            "tf32": bool(options.get_flag(trt.BuilderFlag.TF32)),
            "effort": int(options.builder_optimization_level),
            "layers": int(self.network.num_layers),
            "profile": self._profile(graph),
            "architectures": self._architectures(),
            **self._memory(place),
        }

    def use_cache(self, cache: Path | None) -> tuple[str, ...]:
        """Attach timings of earlier builds, or new ones where there are none that fit."""
        if cache is None:
            return ()
        old = files.read_bytes(cache) if cache.is_file() else b""
        self.cache = self.options.create_timing_cache(old)
        if self.cache is not None and self.options.set_timing_cache(self.cache, False):  # False: never another device's
            return ()
        self.cache = self.options.create_timing_cache(b"")
        if self.cache is None or not self.options.set_timing_cache(self.cache, False):
            self.cache = None
            return ("the builder took no timing cache: builds take longer, and may choose other kernels each time",)
        return ("the timing cache was damaged or of another device, and was begun anew",) if old else ()

    def keep_cache(self, cache: Path | None) -> tuple[str, ...]:
        """Write the timings for the next build; not being able to costs time only."""
        if cache is None or self.cache is None:
            return ()
        try:
            files.write(cache, bytes(memoryview(self.cache.serialize())))
        except VitdeployError as error:
            return (f"the timing cache was not kept: {error.message}",)
        return ()

    def build(self, said: list[Message]) -> bytes:
        """The engine."""
        plan = self.builder.build_serialized_network(self.network, self.options)
        if plan is None:
            raise self._failure("the builder failed", _first_error(said))
        return bytes(memoryview(plan))

    def _profile(self, graph: OnnxGraph) -> dict[str, list[list[int]]]:
        """The sizes that inputs with a dynamic batch may have."""
        shapes = make_profile(graph, self.config, self.onnx)
        if shapes:
            chosen = self.builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                chosen.set_shape(name, least, usual, most)
            if self.options.add_optimization_profile(chosen) < 0:
                raise self._failure("the builder refused the batch sizes", str(shapes))
        return {name: [list(sizes) for sizes in three] for name, three in shapes.items()}

    def _architectures(self) -> list[str]:
        """Of TensorRT-RTX: the GPUs to compile for."""
        if not self.config.architectures:
            return []
        wanted = find_capabilities(self.trt, self.config.architectures)
        self.options.num_compute_capabilities = len(wanted)
        for index, capability in enumerate(wanted.values()):
            if not self.options.set_compute_capability(capability, index):
                raise self._failure("the builder refused an architecture", list(wanted)[index])
        return list(wanted)

    def _memory(self, place: Place) -> dict[str, int | None]:
        """Limits on scratch memory and on what a kernel may use while it is tried."""
        pools = self.trt.MemoryPoolType
        workspace = None if place.free is None else place.free // 2
        workspace = self.config.workspace_mib << 20 if self.config.workspace_mib is not None else workspace
        tactic = None if place.free is None else place.free * 3 // 4  # the rest is for the host: on a Jetson both share it
        if workspace is not None:
            self.options.set_memory_pool_limit(pools.WORKSPACE, workspace)
        if tactic is not None and hasattr(pools, "TACTIC_DRAM"):
            self.options.set_memory_pool_limit(pools.TACTIC_DRAM, tactic)
        mib = {"workspace_mib": workspace, "tactic_dram_mib": tactic}
        return {name: None if size is None else size >> 20 for name, size in mib.items()}

    def _failure(self, what: str, said: str) -> MachineError:
        return failure(what, said, self.onnx)


def failure(what: str, said: str, onnx: Path) -> MachineError:
    """The error for what the library said.

    Args:
        what: What went wrong, in our words.
        said: The library's words.
        onnx: The file.
    """
    if _MEMORY.search(said):
        return MachineError("VD4006", f"TensorRT ran out of memory: {said}", file=onnx, fix=_LESS_MEMORY)
    for pattern, code, fix in _KNOWN:
        if pattern.search(said):
            return MachineError(code, f"TensorRT: {said}", file=onnx, fix=fix)
    return MachineError("VD4011", f"TensorRT: {what}: {said}", file=onnx)


def _parser_error(error: Any) -> str:  # noqa: ANN401
    """One of the parser's errors: its code, where, and what it says, without the consequences that follow."""
    operator, node = error.node_operator(), error.node_name()
    where = f"{operator} {node!r}" if operator else "the file"
    return f"{_name(error.code())} at {where}: {_line(_CONSEQUENCE.split(error.desc(), maxsplit=1)[0])}"


def _first_error(said: list[Message]) -> str:
    errors = [message.text for message in said if message.severity == "error" and not _NOISE.match(message.text)]
    memory = [text for text in errors if _MEMORY.search(text)]  # said after its consequences
    return _line((memory or errors or ["it gave no reason"])[0])


def _line(text: str) -> str:
    """Text of several lines as one, cut."""
    return " ".join(text.split())[:_LONGEST]


def _name(member: object) -> str:
    return str(getattr(member, "name", member))


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(_line(text) for text in texts))[:_WARNINGS]
