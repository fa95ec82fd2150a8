"""The command line of NVIDIA's ``trtexec`` that builds what `compile` would build: for machines without the Python bindings.

What it builds is NVIDIA's to run and to measure: vitdeploy loads only engines that it has built itself.

Executed so far: the command line, by a stand-in; ``trtexec`` itself never.

Source: NVIDIA TensorRT documentation, "Command-Line Programs" and "Migrating trtexec Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.backends.settings import require_only
from vitdeploy.backends.table import require_fit
from vitdeploy.backends.tensorrt.builder import WEAK_FLAGS
from vitdeploy.backends.tensorrt.place import read_ordinal
from vitdeploy.backends.tensorrt.profile import make_profile
from vitdeploy.errors import UsageError
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.recipe import CompileConfig

_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")
_MAJORS = (10, 11)
_TAKES = (
    *("backend", "device", "batch", "usual_batch", "largest_batch", "workspace_mib", "effort"),
    *("weakly_typed", "compatible", "refit", "rebuilds", "seconds"),
)


def write_command(artifact: Artifact, config: CompileConfig, out: Path) -> list[str]:
    """The program with its path, where it is found, and its arguments; to be run without a shell.

    For the version that is installed here; for version 10, which knows the most, where none is.

    Args:
        artifact: An ONNX artifact.
        config: As for `compile`.
        out: Folder of the engine; it is not made.

    Raises:
        UsageError: VD2011, a setting that trtexec or its version does not have, or a batch that the file does not take; VD2013,
            the artifact is an engine.
        InputError: VD3026, something else than the batch varies.
    """
    major = _find_major()
    require_only(config.backend, config, _TAKES)
    if artifact.record.kind != "onnx":
        require_fit(config.backend, artifact)
        raise UsageError("VD2013", "is an engine already", file=artifact.model, fix="give the ONNX artifact")
    if config.weakly_typed and major > 10:
        raise UsageError("VD2011", "TensorRT 11 builds only what is typed in the file", fix="quantize with --precision fp16")
    graph = read_graph(artifact.model)
    parts = [find_program(), f"--onnx={artifact.model}", f"--saveEngine={out / 'model.plan'}", "--skipInference"]
    parts += [f"--builderOptimizationLevel={config.effort}", "--profilingVerbosity=detailed", "--noTF32"]
    if config.weakly_typed:
        parts += [f"--{flag.lower()}" for dtype, flag in WEAK_FLAGS.items() if dtype in graph.elements]
    elif major == 10:  # version 11 builds nothing but strongly typed networks
        parts.append("--stronglyTyped")
    parts += [flag for flag, wanted in (("--versionCompatible", config.compatible), ("--refit", config.refit)) if wanted]
    if config.workspace_mib is not None:
        parts.append(f"--memPoolSize=workspace:{config.workspace_mib}M")
    if config.device is not None:
        parts.append(f"--device={read_ordinal(config.device)}")
    shapes = make_profile(graph, config, artifact.model)
    for place, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
        if shapes:
            parts.append(f"--{flag}=" + ",".join(_write_sizes(name, three[place]) for name, three in shapes.items()))
    return parts


def find_program() -> str:
    """Where ``trtexec`` is: in JetPack's and the Debian packages' folder, or on the path; its bare name where it is not here."""
    for place in (*_PLACES, shutil.which("trtexec")):
        if place and Path(place).is_file() and os.access(place, os.X_OK):
            return place
    return "trtexec"


def _find_major() -> int:
    try:
        major = int(metadata.version("tensorrt").partition(".")[0])
    except metadata.PackageNotFoundError:
        return _MAJORS[0]
    if major not in _MAJORS:
        raise UsageError("VD2011", f"no trtexec of TensorRT {major} is known", fix="use TensorRT 10 or 11")
    return major


def _write_sizes(name: str, sizes: tuple[int, ...]) -> str:
    quoted = f"'{name}'" if any(mark in name for mark in ":,") else name  # trtexec's own quotes, not the shell's
    return f"{quoted}:{'x'.join(map(str, sizes))}"
