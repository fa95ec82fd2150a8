"""All ways to read what a block gives: which of them allow the last block to be cut down, and who gets a turned stream back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph import vits
from tests.graph.blocks import HEADS, TOKENS, WIDTH, Reader, block, branch, numbers
from tests.graph.foreign import Sketch
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.exact import fold
from vitdeploy.graph.exact.class_token import keep_class_token
from vitdeploy.graph.exact.rotate import make_rotation, rotate_stream
from vitdeploy.graph.structure import recognise


def first(sketch: Sketch, value: str, *index: int) -> str:
    return sketch.add("Gather", value, numbers(sketch, *index) if index else sketch.constant(np.int64(0)), axis=1)


def cut(sketch: Sketch, value: str, start: int, end: int, axis: int, step: int = 1) -> str:
    return sketch.add("Slice", value, *(numbers(sketch, each) for each in (start, end, axis, step)))


def halves(sketch: Sketch, value: str, axis: int) -> str:
    one, two = sketch.add("Split", value, outputs=2, axis=axis, num_outputs=2)
    return sketch.add("Mul", sketch.add("Sigmoid", one), two)


def norm_over(sketch: Sketch, value: str, axis: int) -> str:
    return sketch.add("LayerNormalization", value, sketch.weight(*((WIDTH,) if axis in (-1, 2) else (TOKENS, WIDTH))), axis=axis)


CUT: dict[str, tuple[Reader, int]] = {
    "the first": (lambda sketch, value: first(sketch, value), 1),
    "the first as a list": (lambda sketch, value: first(sketch, value, 0), 1),
    "the first two": (lambda sketch, value: first(sketch, value, 0, 1), 2),
    "the third, which is half of all": (lambda sketch, value: first(sketch, value, 2), 3),
    "a slice": (lambda sketch, value: cut(sketch, value, 0, 1, 1), 1),
    "a slice from the second": (lambda sketch, value: cut(sketch, value, 1, 2, 1), 2),
    "two readers": (lambda sketch, value: (first(sketch, value, 1), first(sketch, value, 0)), 2),
    "behind a norm": (lambda sketch, value: first(sketch, norm_over(sketch, value, -1), 0), 1),
    "behind a norm of axis 2": (lambda sketch, value: first(sketch, norm_over(sketch, value, 2), 0), 1),
    "behind a gate": (lambda sketch, value: first(sketch, halves(sketch, value, -1), 0), 1),
    "behind a gate of axis 2": (lambda sketch, value: first(sketch, halves(sketch, value, 2), 0), 1),
    "some channels": (lambda sketch, value: first(sketch, cut(sketch, value, 2, 5, 2), 0), 1),
    "some channels of the last axis": (lambda sketch, value: first(sketch, cut(sketch, value, 2, 5, -1), 0), 1),
    "behind a layer": (lambda sketch, value: first(sketch, sketch.add("MatMul", value, sketch.weight(WIDTH, 4)), 0), 1),
    "a table of channels": (lambda sketch, value: first(sketch, sketch.add("Mul", value, sketch.weight(WIDTH)), 0), 1),
}
WHOLE: dict[str, Reader] = {
    "one channel of all tokens": lambda sketch, value: sketch.add("Gather", value, numbers(sketch, 0), axis=2),
    "one channel by the last axis": lambda sketch, value: sketch.add("Gather", value, numbers(sketch, 0), axis=-1),
    "the last by -1": lambda sketch, value: first(sketch, value, -1),
    "the fourth, past the half": lambda sketch, value: first(sketch, value, 3),
    "all": lambda sketch, value: sketch.add("Relu", value),
    "a slice of channels": lambda sketch, value: cut(sketch, value, 0, 1, -1),
    "every second": lambda sketch, value: cut(sketch, value, 0, 3, 1, 2),
    "the last by a slice": lambda sketch, value: cut(sketch, value, -1, 9, 1),
    "all by a slice": lambda sketch, value: cut(sketch, value, 0, TOKENS, 1),
    "a norm over tokens": lambda sketch, value: first(sketch, norm_over(sketch, value, 1), 0),
    "tokens in halves": lambda sketch, value: first(sketch, halves(sketch, value, 1), 0),
    "a table of tokens": lambda sketch, value: first(sketch, sketch.add("Add", value, sketch.weight(TOKENS, WIDTH)), 0),
    "a mean": lambda sketch, value: sketch.add("ReduceMean", value, numbers(sketch, 1)),
    "the first and all": lambda sketch, value: (first(sketch, value), sketch.add("Relu", value)),
    "a softmax": lambda sketch, value: first(sketch, sketch.add("Softmax", value, axis=1), 0),
    "mixed by the input": lambda sketch, value: first(sketch, sketch.add("Add", sketch.add("Relu", value), "x"), 0),
    "a product of itself": lambda sketch, value: first(sketch, sketch.add(
        "MatMul", value, sketch.add("Transpose", value, perm=[0, 2, 1])), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_reading_few_tokens_from_the_start_cuts_the_block(name) -> None:
    read, count = CUT[name]
    model = block(read)
    before = ir.to_proto(model)
    assert keep_class_token(Editor(model), recognise(model))
    vits.same(before, model)
    scores = recognise(model).attentions[0].scores.outputs[0].shape
    assert scores is not None and list(scores)[1:] == [HEADS, count, TOKENS]


@pytest.mark.parametrize("packed", [False, True])
def test_weights_biases_and_factors_come_along(packed) -> None:
    model = block(lambda sketch, value: first(sketch, value), plain=False)
    before, structure = ir.to_proto(model), recognise(model)
    fold.fold_query_scale(Editor(model), structure)
    fold.fold_layer_scale(Editor(model), structure)
    if packed:
        fold.pack_qkv(Editor(model), structure)
    assert keep_class_token(Editor(model), recognise(model))
    vits.same(before, model)


@pytest.mark.parametrize("name", WHOLE)
def test_reading_otherwise_leaves_it_to_the_byte(name) -> None:
    model = block(WHOLE[name])
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert keep_class_token(Editor(model), recognise(model)) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bias", [(TOKENS, TOKENS), (1, 1, TOKENS), (1, HEADS, TOKENS, TOKENS), (1, 1, 1, TOKENS), (TOKENS,)])
def test_a_bias_of_the_scores_is_cut_with_them(bias) -> None:
    model = block(lambda sketch, value: first(sketch, value), bias)
    before = ir.to_proto(model)
    assert keep_class_token(Editor(model), recognise(model))
    vits.same(before, model)


@pytest.mark.parametrize(
    ("read", "turned"),
    [
        (lambda sketch, value: first(sketch, value, 0), 1),
        (lambda sketch, value: cut(sketch, value, 0, 1, 1), 1),
        (lambda sketch, value: cut(sketch, value, 2, 5, -1), 1),
        (lambda sketch, value: sketch.add("Gather", value, numbers(sketch, 0), axis=-1), 1),
        (lambda sketch, value: sketch.add("Relu", sketch.add("Transpose", value, perm=[0, 2, 1])), 1),
        (lambda sketch, value: sketch.add("Relu", sketch.add("Concat", value, value, axis=-1)), 1),
        (lambda sketch, value: sketch.add("Relu", sketch.add("Concat", value, value, axis=1)), 1),
        (lambda sketch, value: sketch.add("Relu", sketch.add("Add", value, sketch.weight(WIDTH))), 1),
    ],
    ids=["token", "tokens", "channels", "channel", "transposed", "side by side", "one after the other", "table"],
)
def test_who_reads_the_turned_stream_gets_it_turned_back(read, turned) -> None:
    """Of 16 channels, x enters without weights to turn: one product there, and one before what reads."""
    sketch = Sketch(20, ("batch", TOKENS, WIDTH))
    stream = sketch.add("MatMul", "x", sketch.weight(WIDTH, WIDTH))
    stream = sketch.add("Add", stream, branch(sketch, stream))
    proto = sketch.model(sketch.add("Neg", read(sketch, stream)))
    model = vits.canonical(proto)
    count = vits.operators(model)["MatMul"]
    assert rotate_stream(Editor(model), recognise(model), make_rotation(WIDTH))
    assert vits.operators(model)["MatMul"] == count + turned
    vits.same(proto, model)


REVERSED = list(range(WIDTH))[::-1]


@pytest.mark.parametrize(
    ("read", "moves"),
    [
        (lambda sketch, value: first(sketch, value, 0), True),
        (lambda sketch, value: sketch.add("Gather", value, numbers(sketch, 1, 0), axis=-2), True),
        (lambda sketch, value: cut(sketch, value, 0, 2, 1), True),
        (lambda sketch, value: cut(sketch, value, 0, 2, -2), True),
        (lambda sketch, value: sketch.add("Gather", value, numbers(sketch, *REVERSED), axis=-1), False),
        (lambda sketch, value: sketch.add("Gather", value, numbers(sketch, *REVERSED), axis=2), False),
        (lambda sketch, value: cut(sketch, value, -1, -99, 2, -1), False),
        (lambda sketch, value: cut(sketch, value, -1, -99, -1, -1), False),
    ],
    ids=["token", "tokens from behind", "slice", "slice from behind", "channels", "channels by place", "reversed", "from behind"],
)
def test_the_stream_is_turned_back_behind_what_moves_tokens_and_before_what_moves_channels(read, moves) -> None:
    sketch = Sketch(20, ("batch", TOKENS, WIDTH))
    stream = sketch.add("MatMul", "x", sketch.weight(WIDTH, WIDTH))
    part = read(sketch, sketch.add("Add", stream, branch(sketch, stream)))
    proto = sketch.model(sketch.add("Neg", part))
    model = vits.canonical(proto)
    end = next(node for node in model.graph if node.op_type in ("Gather", "Slice"))
    assert rotate_stream(Editor(model), recognise(model), make_rotation(WIDTH))
    user = next(iter(end.outputs[0].uses())).node
    assert (user.op_type == "MatMul") == moves
    vits.same(proto, model)
