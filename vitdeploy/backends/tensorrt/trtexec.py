"""NVIDIA's ``trtexec`` where the Python bindings are missing: its command line for each major version, and its JSON read back.

Version 11 turned the measurement's defaults around: CUDA graph and busy waiting are on and transfers are left out, where version
10 had all three the other way. Every command here says all three, so that numbers of both compare.

Executed so far: the reader, on files of the form that the sources of ``trtexec`` write; ``trtexec`` itself never.

Source: NVIDIA TensorRT documentation, "Command-Line Programs" and "Migrating trtexec Usage from TensorRT 10.x to 11.x"; the
output of ``--exportTimes`` and ``--exportProfile`` in samples/common/sampleReporting.cpp of github.com/NVIDIA/TensorRT.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from vitdeploy.backends.tensorrt import inspection
from vitdeploy.errors import InputError, UsageError

LARGEST = 256 << 20
"""Bytes of a JSON file that is read; a run of a minute writes some 20 MiB."""
_FIX = "run trtexec again"
_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
_MAJORS = (10, 11)
_PERCENTILES = (50, 90, 99)


class Shapes(NamedTuple):
    """Sizes that one dynamic input may have.

    Attributes:
        name: The input.
        smallest: Of the optimisation profile, batch first.
        usual: What kernels are chosen for, and what is measured.
        largest: Of the profile.
    """

    name: str
    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to build and how to measure.

    Attributes:
        engine: Where to write the engine; with ``build`` off, where it is.
        build: Build from the ONNX file; off, measure an engine that is there.
        measure: Run the engine after building it.
        shapes: Of inputs with a dynamic batch.
        weakly_typed: Version 10 only: let the builder choose among FP16 and INT8 beside the file's own types.
        tf32: Let FP32 products be computed in TF32.
        effort: The builder's optimisation level, 0 to 5.
        workspace_mib: Scratch memory that a kernel may use, in MiB; None is all there is.
        timing_cache: File with the timings of earlier builds.
        graph: Replay a CUDA graph.
        spin: Wait in a busy loop.
        transfers: Count copies to and from the device in the latency.
        warmup_ms: Time to run before measuring, in milliseconds.
        seconds: Time to measure.
        times: Where to write every run's times.
        layers: Where to write what the engine is made of.
        profile: Where to write each layer's time, of a run of its own.
    """

    engine: Path
    build: bool = True
    measure: bool = True
    shapes: tuple[Shapes, ...] = ()
    weakly_typed: bool = False
    tf32: bool = False
    effort: int = 3
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    graph: bool = True
    spin: bool = True
    transfers: bool = False
    warmup_ms: int = 500
    seconds: int = 10
    times: Path | None = None
    layers: Path | None = None
    profile: Path | None = None


class Times(NamedTuple):
    """A part of the runs, in milliseconds.

    Attributes:
        median: The half of runs took no longer.
        p90: So did 90 of 100.
        p99: So did 99 of 100.
        mean: Their mean.
    """

    median: float
    p90: float
    p99: float
    mean: float


class Timing(NamedTuple):
    """What ``--exportTimes`` wrote.

    Attributes:
        runs: How many were measured.
        compute: On the device alone.
        upload: Host to device; zeros where transfers were left out.
        download: Device to host, likewise.
        latency: All three.
    """

    runs: int
    compute: Times
    upload: Times
    download: Times
    latency: Times


class LayerTime(NamedTuple):
    """A line of what ``--exportProfile`` wrote.

    Attributes:
        name: The engine's name of the layer.
        mean_ms: Mean time of a run, in milliseconds.
        share: Of the whole time, 0 to 1.
    """

    name: str
    mean_ms: float
    share: float


def find() -> Path | None:
    """Where ``trtexec`` is: in JetPack's and the Debian packages' folder, or on the path."""
    for place in (*_PLACES, shutil.which("trtexec")):
        if place and Path(place).is_file() and os.access(place, os.X_OK):
            return Path(place)
    return None


def command(version: tuple[int, ...], onnx: Path, options: Options) -> list[str]:
    """The command line, to be run without a shell.

    Args:
        version: TensorRT's, ``(10, 3, 0)``.
        onnx: The model; not needed to measure an engine that is there.
        options: What to do.

    Returns:
        ``trtexec``, with its path where `find` finds it, and its arguments.

    Raises:
        UsageError: VD2011, this version has no such setting, or is none of 10 and 11.
    """
    major = version[0] if version else 0
    if major not in _MAJORS:
        raise UsageError("VD2011", f"no trtexec of TensorRT {major or '?'} is known", fix="use TensorRT 10 or 11")
    if options.weakly_typed and major > 10:
        raise UsageError("VD2011", "TensorRT 11 builds only what is typed in the file", fix="quantize with --precision fp16")
    if not options.build and not options.measure:
        raise UsageError("VD2011", "neither build nor measure was asked for", fix="ask for one of them")
    found = find()
    parts = [str(found) if found else "trtexec"]
    parts += _build(major, onnx, options) if options.build else [f"--loadEngine={options.engine}", *_measured_shapes(options)]
    parts += _measure(major, options) if options.measure else ["--skipInference"]
    if options.layers is not None:
        parts += ["--profilingVerbosity=detailed", f"--exportLayerInfo={options.layers}"]
    return parts


def read_times(path: Path) -> Timing:
    """Read what ``--exportTimes`` wrote.

    Raises:
        InputError: VD3001 unreadable; VD3005 not such a file; VD3002 no run in it.
    """
    runs = _read(path)
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        raise _unlike(path, "no list of runs")
    if not runs:
        raise InputError("VD3002", "holds no run", file=path, fix=_FIX)
    columns = {key: _times([_number(run, key, path) for run in runs]) for key in ("computeMs", "h2dMs", "d2hMs", "latencyMs")}
    return Timing(len(runs), *columns.values())


def read_profile(path: Path) -> tuple[LayerTime, ...]:
    """Read what ``--exportProfile`` wrote: layers in order of execution.

    Raises:
        InputError: VD3001 unreadable; VD3005 not such a file.
    """
    lines = _read(path)
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise _unlike(path, "no list of layers")
    named = [line for line in lines if "name" in line]  # the first line only counts the runs
    return tuple(
        LayerTime(str(line["name"]), _number(line, "averageMs", path), _number(line, "percentage", path) / 100) for line in named
    )


def read_layers(path: Path) -> tuple[inspection.Layer, ...]:
    """Read what ``--exportLayerInfo`` wrote, the engine inspector's own JSON.

    Raises:
        InputError: VD3001 unreadable.
        MachineError: VD4004, it is no such document.
    """
    return inspection.layers(_text(path))


def _build(major: int, onnx: Path, options: Options) -> list[str]:
    parts = [f"--onnx={onnx}", f"--saveEngine={options.engine}", f"--builderOptimizationLevel={options.effort}"]
    if major == 10:  # version 11 builds nothing but strongly typed networks
        parts += ["--fp16", "--int8"] if options.weakly_typed else ["--stronglyTyped"]
    if not options.tf32:
        parts.append("--noTF32")
    if options.workspace_mib is not None:
        parts.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.timing_cache is not None:
        parts.append(f"--timingCacheFile={options.timing_cache}")
    for flag, field in (("minShapes", "smallest"), ("optShapes", "usual"), ("maxShapes", "largest")):
        if options.shapes:
            parts.append(f"--{flag}=" + ",".join(_sizes(each.name, getattr(each, field)) for each in options.shapes))
    return parts


def _measured_shapes(options: Options) -> list[str]:
    if not options.shapes:
        return []
    return ["--shapes=" + ",".join(_sizes(each.name, each.usual) for each in options.shapes)]


def _measure(major: int, options: Options) -> list[str]:
    """How to measure, whatever this version's defaults are."""
    on = {"--useCudaGraph": options.graph, "--useSpinWait": options.spin, "--noDataTransfers": not options.transfers}
    off = {"--noCudaGraph": not options.graph, "--noSpinWait": not options.spin, "--includeDataTransfers": options.transfers}
    parts = [flag for flag, wanted in (on if major == 10 else off).items() if wanted]
    parts += [f"--warmUp={options.warmup_ms}", f"--duration={options.seconds}"]
    if options.times is not None:
        parts.append(f"--exportTimes={options.times}")
    if options.profile is not None:  # a run of its own, as taking each layer's time slows them all
        parts += ["--separateProfileRun", f"--exportProfile={options.profile}"]
    return parts


def _sizes(name: str, sizes: tuple[int, ...]) -> str:
    quoted = f"'{name}'" if any(mark in name for mark in ":,") else name  # trtexec's own quotes, not the shell's
    return f"{quoted}:{'x'.join(map(str, sizes))}"


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise _unlike(path, f"larger than {LARGEST >> 20} MiB")
        return path.read_bytes().decode(errors="replace")
    except OSError as exc:
        raise InputError("VD3001", f"can't be read: {exc.strerror}", file=path) from exc


def _read(path: Path) -> Any:  # noqa: ANN401 (any JSON)
    try:
        return json.loads(_text(path), strict=False)  # names of layers are written without escaping control characters
    except (ValueError, RecursionError) as exc:
        raise _unlike(path, f"no JSON: {exc}") from exc


def _number(line: dict[str, Any], key: str, path: Path) -> float:
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _unlike(path, f"{key} is {value!r}")
    return float(value)


def _times(values: list[float]) -> Times:
    median, p90, p99 = (float(value) for value in np.percentile(values, _PERCENTILES))
    return Times(median, p90, p99, float(np.mean(values)))


def _unlike(path: Path, what: str) -> InputError:
    return InputError("VD3005", f"is not what trtexec writes: {what}", file=path, fix=_FIX)
