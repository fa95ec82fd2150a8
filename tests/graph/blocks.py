"""One block made by hand, in milliseconds: an attention around which the stream goes, and whatever reads it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tests.graph import vits
from tests.graph.foreign import Sketch

TOKENS, WIDTH, HEADS = 6, 16, 2
Reader = Callable[[Sketch, str], str | tuple[str, ...]]


def numbers(sketch: Sketch, *values: int) -> str:
    return sketch.constant(np.array(values, np.int64))


def branch(sketch: Sketch, stream: str, bias: str | None = None, *, plain: bool = True) -> str:
    """LayerNorm, attention and projection; ``plain`` has no biases, no factors, and a norm without weights of its own."""
    weights = (sketch.constant(np.ones(WIDTH, np.float32)),) if plain else (sketch.weight(WIDTH), sketch.weight(WIDTH))
    norm = sketch.add("LayerNormalization", stream, *weights, axis=-1)
    order = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    shape = numbers(sketch, 0, TOKENS, HEADS, WIDTH // HEADS)
    linears = [sketch.add("MatMul", norm, sketch.weight(WIDTH, WIDTH)) for _ in range(3)]
    linears = linears if plain else [sketch.add("Add", linear, sketch.weight(WIDTH)) for linear in linears]
    query, key, value = (
        sketch.add("Transpose", sketch.add("Reshape", linear, shape), perm=axes)
        for linear, axes in zip(linears, order, strict=True)
    )
    query = query if plain else sketch.add("Mul", query, sketch.constant(np.float32(0.35)))
    scores = sketch.add("MatMul", query, key)
    scores = scores if bias is None else sketch.add("Add", scores, bias)
    context = sketch.add("MatMul", sketch.add("Softmax", scores, axis=-1), value)
    merged = sketch.add("Reshape", sketch.add("Transpose", context, perm=[0, 2, 1, 3]), numbers(sketch, 0, TOKENS, WIDTH))
    out = sketch.add("Add", sketch.add("MatMul", merged, sketch.weight(WIDTH, WIDTH)), sketch.weight(WIDTH))
    return out if plain else sketch.add("Mul", out, sketch.weight(WIDTH))


def block(read: Reader, bias: tuple[int, ...] = (), *, plain: bool = True) -> ir.Model:
    """x plus positions, one attention around it, and whatever reads the sum."""
    sketch = Sketch(20, ("batch", TOKENS, WIDTH))
    stream = sketch.add("Add", "x", sketch.weight(1, TOKENS, WIDTH))
    stream = sketch.add("Add", stream, branch(sketch, stream, sketch.weight(*bias) if bias else None, plain=plain))
    ends = read(sketch, stream)
    return vits.canonical(sketch.model(*((ends,) if isinstance(ends, str) else ends)))
