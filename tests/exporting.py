"""What torch's exporter does again and again for the same answer is done once in a test process: two thirds of its time."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import torch

from vitdeploy.models.vit import VisionTransformer
from vitdeploy.verbs.exporter import Program

LARGEST = 4_000_000
"""Bytes of parameters up to which a traced network is kept."""


def keep_operators() -> None:
    """Read torch's table of ONNX operators once: it does so at every export, a quarter of the time of a tiny one."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)

    def copy(opset_version: int) -> ONNXRegistry:
        table = read(opset_version)
        fresh = ONNXRegistry()
        fresh._opset_version = table.opset_version
        fresh.functions = {target: list(ways) for target, ways in table.functions.items()}
        return fresh

    ONNXRegistry.from_torchlib = staticmethod(copy)


def keep_traces(folder: Path) -> None:
    """Give a copy of the graph when one of our own small networks is traced again with the same numbers and the same options.

    Everything around the trace is done each time: loading, freezing, naming, writing, proving.

    Args:
        folder: Where the graphs are kept, for this process and others that run the same tests.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trace = torch.onnx.export

    @functools.wraps(trace)
    def once(program: Any, examples: Any, *args: Any, **options: Any) -> Any:
        if args or not _is_small(program):
            return trace(program, examples, *args, **options)
        kept = folder / f"{_digest(program, examples, options)}.onnx"
        if kept.is_file():
            return SimpleNamespace(model=ir.from_proto(onnx.load(kept)))
        made = trace(program, examples, **options)
        writing = kept.with_suffix(f".{os.getpid()}")
        writing.write_bytes(ir.to_proto(made.model).SerializeToString())
        writing.replace(kept)
        return made

    torch.onnx.export = once


def _is_small(program: object) -> bool:
    """Whether it is a network whose function its spec and numbers say; code of anybody's does more."""
    if not isinstance(program, Program) or not isinstance(program.model, VisionTransformer):
        return False
    return sum(parameter.nbytes for parameter in program.parameters()) <= LARGEST


def _digest(program: Program, examples: tuple[torch.Tensor, ...], options: dict[str, Any]) -> str:
    stream = io.BytesIO()
    numbers = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    for name, tensor in numbers.items():
        stream.write(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        np.save(stream, tensor.detach().numpy())
    spec = msgspec.to_builtins(program.model.spec)
    spec |= {  # words are in no graph
        "name": "",
        "labels": (),
        "input": [spec["input"][side] for side in ("height", "width", "channels")],
    }
    stream.write(msgspec.json.encode(spec, order="sorted"))
    inputs = [(tuple(example.shape), example.dtype) for example in examples]
    stream.write(repr((program, program.tensor, program.names, program.scaled, inputs, sorted(options.items()))).encode())
    return hashlib.sha256(stream.getbuffer()).hexdigest()
