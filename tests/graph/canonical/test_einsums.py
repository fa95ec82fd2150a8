"""Einsum becomes MatMul between moves, or stays where it is something else."""

from __future__ import annotations

import pytest

from tests.graph.foreign import Sketch, check, names_of, rewritten, sketched

TOKENS, WIDTH = 6, 16


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("bnd,de->bne", (WIDTH, 5)),
        ("bnd,ed->bne", (5, WIDTH)),
        ("bnd,dhe->bnhe", (WIDTH, 2, 4)),
        ("bnd,hde->bnhe", (2, WIDTH, 4)),
        ("bnd,de->ben", (WIDTH, 5)),
        ("bnd,nde->be", (TOKENS, WIDTH, 5)),
        (" bnd , de -> bne ", (WIDTH, 5)),
    ],
)
def test_a_layer_is_one_product(equation, shape, swap) -> None:
    sketch = Sketch()
    operands = ["x", sketch.weight(*shape)]
    if swap:
        inputs, arrow, result = equation.partition("->")
        equation, operands = ",".join(reversed(inputs.split(","))) + arrow + result, operands[::-1]
    counted, done = sketched(sketch, sketch.add("Einsum", *operands, equation=equation))
    assert counted["Einsum"] == 0 and counted["MatMul"] == 1 and "einsum" in names_of(done)


@pytest.mark.parametrize(("bias", "comes"), [((2, 4), True), ((1, 1, 2, 4), True), ((4,), False), ((2, 1), False)])
def test_a_bias_comes_along_where_it_has_a_number_a_column(bias, comes) -> None:
    sketch = Sketch()
    heads = sketch.add("Einsum", "x", sketch.weight(WIDTH, 2, 4), equation="bnd,dhe->bnhe")
    before = sketch.model(sketch.add("Add", heads, sketch.weight(*bias)))
    after, _ = rewritten(before)
    check(before, after, (TOKENS, WIDTH))
    order = ["MatMul", "Add", "Reshape"] if comes else ["MatMul", "Reshape", "Add"]
    assert [node.op_type for node in after.graph.node] == order


def test_a_sum_that_something_else_reads_before_the_bias_keeps_its_place() -> None:
    sketch = Sketch()
    heads = sketch.add("Einsum", "x", sketch.weight(WIDTH, 2, 4), equation="bnd,dhe->bnhe")
    counted, _ = sketched(sketch, heads, sketch.add("Add", heads, sketch.weight(2, 4)))
    assert counted["Einsum"] == 0


@pytest.mark.parametrize("scores", ["bnhe,bmhe->bhnm", "bnhe,bmhe->bnhm"])
def test_attention_of_einsums(scores) -> None:
    """The way of Flax: [D, heads, d] weights, products over labels, the projection over two axes."""
    sketch = Sketch()
    parts = [sketch.add("Einsum", "x", sketch.weight(WIDTH, 2, 4), equation="bnd,dhe->bnhe") for _ in range(3)]
    shares = sketch.add("Softmax", sketch.add("Einsum", *parts[:2], equation=scores), axis=-1)
    context = sketch.add("Einsum", shares, parts[2], equation=f"{scores[-4:]},bmhe->bnhe")
    counted, done = sketched(sketch, sketch.add("Einsum", context, sketch.weight(2, 4, WIDTH), equation="bnhe,hed->bnd"))
    assert counted["Einsum"] == 0 and counted["MatMul"] == 6 and "einsum" in names_of(done)


@pytest.mark.parametrize("equation", ["bnd,bnd->bnd", "bnd,bmd->b", "bnd,bmd", "...d,...d->...", "bnn,bmd->bnmd", "bnd,bnd->b"])
def test_what_is_no_product_of_matrices_stays(equation) -> None:
    sketch = Sketch(shape=("batch", 6, 6)) if equation == "bnn,bmd->bnmd" else Sketch()
    counted, _ = sketched(sketch, sketch.add("Einsum", "x", sketch.add("Neg", "x"), equation=equation))
    assert counted["Einsum"] == 1
