"""What an engine is built for: batch sizes of its inputs, and the GPUs of TensorRT-RTX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError, UsageError
from vitdeploy.onnxfile.summary import OnnxGraph
from vitdeploy.recipe import CompileConfig

Sizes = tuple[int, ...]


def make_profile(graph: OnnxGraph, config: CompileConfig, onnx: Path) -> dict[str, tuple[Sizes, Sizes, Sizes]]:
    """Least, usual and largest size of each input whose batch may vary.

    Args:
        graph: What the file takes.
        config: Its ``batch``, or ``usual_batch`` and ``largest_batch``.
        onnx: The file, for messages.

    Returns:
        Name of the input to its three shapes; empty for a fixed batch.

    Raises:
        UsageError: VD2011, the file takes another batch than the config's.
        InputError: VD3026, something else than the batch varies, or the shape is not known.
    """
    one = config.batch
    batches = (one, one, one) if one is not None else (1, config.usual_batch, config.largest_batch)
    shapes = {}
    for port in graph.inputs:
        if not port.shape or not all(isinstance(size, int) for size in port.shape[1:]):
            sizes = "unknown" if port.shape is None else " x ".join(str(size) or "?" for size in port.shape)
            message = f"the input {port.name!r} has the size {sizes}; only the batch, its first axis, may vary"
            raise InputError("VD3026", message, file=onnx, fix="export it with a fixed image size")
        first, rest = port.shape[0], tuple(int(size) for size in port.shape[1:])
        if not isinstance(first, int):
            least, usual, most = ((batch, *rest) for batch in batches)
            shapes[port.name] = (least, usual, most)
        elif config.batch not in (None, first):
            message = f"the file takes batch {first}, not {config.batch}"
            raise UsageError("VD2011", message, file=onnx, fix="leave the batch out, or export with a dynamic batch")
    return shapes


def read_capability(text: str) -> tuple[int, int]:
    """A compute capability in numbers: ``8.9`` is (8, 9).

    Raises:
        UsageError: VD2003, it is none.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
    if match is None:
        raise UsageError("VD2003", f"{text!r} is no compute capability", fix="write it as NVIDIA does, for example 8.9")
    return int(match[1]), int(match[2])


def find_capabilities(trt: Any, architectures: tuple[str, ...]) -> dict[str, object]:  # noqa: ANN401 (a library without types)
    """TensorRT-RTX's own values for compute capabilities, each once.

    Args:
        trt: The module ``tensorrt_rtx``.
        architectures: ``8.9`` and the like.

    Raises:
        UsageError: VD2003, no compute capability; VD2011, one that this version does not compile for.
    """
    known = {match[1]: member for name, member in trt.ComputeCapability.__members__.items() if (match := _SM.fullmatch(name))}
    members = {}
    for text in architectures:
        major, minor = read_capability(text)
        member = known.get(f"{major}{minor}")
        if member is None:
            listed = ", ".join(f"{digits[:-1]}.{digits[-1]}" for digits in known)
            message = f"TensorRT-RTX {trt.__version__} does not compile for compute capability {text}"
            raise UsageError("VD2011", message, fix=f"choose from: {listed}")
        members[f"{major}.{minor}"] = member
    return members


_SM = re.compile(r"SM(\d{2,3})")
