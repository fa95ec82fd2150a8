"""Operators in NumPy give what ONNX's own reference gives, and nothing where they can't; sizes that vary keep their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator

from vitdeploy.graph import evaluate as module
from vitdeploy.graph.evaluate import evaluate, follow, is_settled

TABLE = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.5
COUNTS = np.arange(24, dtype=np.int64).reshape(2, 3, 4) - 11
POSITIVE = np.linspace(0.1, 3, 6, dtype=np.float32).reshape(2, 3)
BOOLS = np.array([[True, False, True], [False, False, True]])
FLOATS = (np.linspace(-2, 3, 6, dtype=np.float32).reshape(2, 3), np.array([0.5, -1.5, 2], np.float32))
INTEGERS = (np.array([[-7, 7, 5], [-8, 3, 0]]), np.array([2, -2, 3]))


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Reshape", [TABLE, numbers(0, -1)], {}),
    ("Reshape", [TABLE, numbers(4, 0, 2)], {}),
    ("Reshape", [TABLE[:0], numbers(0, 6)], {"allowzero": 1}),
    ("Squeeze", [TABLE[None, :, :1]], {}),
    ("Squeeze", [TABLE[None, :, :1], numbers(2)], {}),
    ("Squeeze", [TABLE[None, :, :1], numbers(-2, 0)], {}),
    ("Unsqueeze", [TABLE, numbers(0, -1)], {}),
    ("Concat", [TABLE, TABLE + 1, TABLE[:1]], {"axis": 0}),
    ("Concat", [TABLE, TABLE[:, :2]], {"axis": 1}),
    ("Concat", [TABLE, TABLE[..., :1]], {"axis": -1}),
    ("Gather", [TABLE, numbers(1, 0, -1)], {}),
    ("Gather", [TABLE, np.array(2)], {"axis": 1}),
    ("Gather", [TABLE, np.array([[2], [0]], np.int32)], {"axis": -1}),
    ("Slice", [TABLE, numbers(1), numbers(3), numbers(2)], {}),
    ("Slice", [TABLE, numbers(0, 1), numbers(1, 9)], {}),
    ("Slice", [TABLE, numbers(0, -3), numbers(9, -1), numbers(-1, 1), numbers(2, 1)], {}),
    ("Slice", [TABLE, numbers(-1), numbers(-99), numbers(2), numbers(-2)], {}),
    ("Slice", [TABLE, numbers(3), numbers(0), numbers(2), numbers(-1)], {}),
    ("Slice", [TABLE, numbers(3), numbers(-4), numbers(2), numbers(-1)], {}),
    ("Split", [TABLE, numbers(1, 3)], {"axis": 2, "outputs": 2}),
    ("Split", [TABLE], {"axis": 1, "outputs": 3, "num_outputs": 3}),
    ("Split", [TABLE], {"axis": -1, "outputs": 3, "num_outputs": 3}),
    ("Split", [TABLE], {"outputs": 2, "num_outputs": 2}),
    ("Expand", [TABLE[:, :1], numbers(3, 1)], {}),
    ("Expand", [TABLE, numbers(5, 1, 1, 1)], {}),
    ("Transpose", [TABLE], {}),
    ("Transpose", [TABLE], {"perm": [1, 2, 0]}),
    ("Tile", [TABLE, numbers(2, 1, 3)], {}),
    ("Flatten", [TABLE], {}),
    ("Flatten", [TABLE], {"axis": 0}),
    ("Flatten", [TABLE], {"axis": 2}),
    ("Flatten", [TABLE], {"axis": -1}),
    ("Identity", [TABLE], {}),
    ("Cast", [TABLE], {"to": onnx.TensorProto.INT32}),
    ("Cast", [COUNTS], {"to": onnx.TensorProto.FLOAT16}),
    ("Cast", [COUNTS], {"to": onnx.TensorProto.BOOL}),
    ("ConstantOfShape", [numbers(2, 3)], {}),
    ("ConstantOfShape", [numbers(4)], {"value": helper.make_tensor("value", onnx.TensorProto.INT64, [1], [7])}),
    ("Range", [np.array(2), np.array(9), np.array(3)], {}),
    ("Range", [np.array(1, np.float32), np.array(-2, np.float32), np.array(-0.75, np.float32)], {}),
    ("Range", [np.array(5), np.array(2), np.array(1)], {}),
    ("Shape", [TABLE], {}),
    ("Shape", [TABLE], {"start": 1}),
    ("Shape", [TABLE], {"start": -2, "end": -1}),
    ("Shape", [TABLE], {"end": 2}),
    ("Size", [TABLE], {}),
    *((name, [*FLOATS], {}) for name in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual")),
    *((name, [*FLOATS], {}) for name in ("Less", "LessOrEqual")),
    *((name, [*INTEGERS], {}) for name in ("Add", "Sub", "Mul", "Div", "Mod", "Equal", "GreaterOrEqual", "LessOrEqual")),
    *((name, [POSITIVE, POSITIVE[::-1]], {}) for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")),
    ("Greater", [POSITIVE, POSITIVE], {}),
    *((name, [TABLE], {}) for name in ("Relu", "Sigmoid", "Sign")),
    *((name, [COUNTS], {}) for name in ("Relu", "Sign")),
    *((name, inputs, {}) for name in ("Max", "Min") for inputs in ([*FLOATS, POSITIVE], [*INTEGERS], [TABLE])),
    ("GreaterOrEqual", [POSITIVE, POSITIVE], {}),
    ("Less", [POSITIVE, POSITIVE], {}),
    ("LessOrEqual", [POSITIVE, POSITIVE], {}),
    ("Pow", [POSITIVE, np.array([3, -0.5, 2], np.float32)], {}),
    ("Pow", [POSITIVE, np.array(3)], {}),
    *((name, [POSITIVE], {}) for name in ("Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tanh", "Sigmoid")),
    *((name, [FLOATS[0]], {}) for name in ("Neg", "Abs", "Floor", "Ceil", "Reciprocal", "Exp", "Sin", "Cos", "Tanh", "Sigmoid")),
    ("Relu", [FLOATS[0]], {}),
    ("Relu", [COUNTS], {}),
    ("Neg", [COUNTS], {}),
    ("Abs", [COUNTS], {}),
    ("Not", [BOOLS], {}),
    ("And", [BOOLS, BOOLS[::-1]], {}),
    ("Or", [BOOLS, BOOLS[::-1]], {}),
    ("Where", [BOOLS, FLOATS[0], FLOATS[1]], {}),
    ("MatMul", [TABLE, TABLE.transpose(0, 2, 1)], {}),
]  # fmt: skip


def make(operator: str, inputs: int, *, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    names = [f"y{place}" for place in range(outputs)]
    return helper.make_node(operator, [f"x{place}" for place in range(inputs)], names, name="node", **attributes)


@pytest.mark.parametrize(("operator", "inputs", "attributes"), CASES, ids=[f"{case[0]}-{at}" for at, case in enumerate(CASES)])
def test_operators_compute_what_the_reference_does(operator, inputs, attributes) -> None:
    proto = make(operator, len(inputs), **attributes)
    fed = [helper.make_tensor_value_info(f"x{at}", helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
           for at, each in enumerate(inputs)]  # fmt: skip
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.output]
    whole = helper.make_model(helper.make_graph([proto], "one", fed, made), opset_imports=[helper.make_opsetid("", 20)])
    expected = ReferenceEvaluator(whole).run(None, {f"x{at}": each for at, each in enumerate(inputs)})
    results = evaluate(ir.from_proto(proto), inputs)
    assert results is not None and len(results) == len(expected)
    for result, one in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (one.dtype, one.shape)
        np.testing.assert_allclose(result, one, rtol=1e-6 if one.dtype.kind == "f" else 0)


def test_no_operator_is_left_out_of_the_comparison() -> None:
    assert {case[0] for case in CASES} == {*module._MOVES, *module._ARITHMETIC}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Softmax", [TABLE], {}),
        ("Add", [], {}),
        ("Add", [None, TABLE], {}),
        ("Add", [TABLE, None], {}),
        ("Add", [TABLE, TABLE[:, :2]], {}),
        ("Reshape", [TABLE], {}),
        ("Reshape", [TABLE, numbers(5, -1)], {}),
        ("Reshape", [TABLE, numbers(2, 3, 4, 0)], {}),
        ("Unsqueeze", [TABLE], {}),
        ("Slice", [TABLE, numbers(0)], {}),
        ("Slice", [TABLE, numbers(0), None, numbers(0)], {}),
        ("Gather", [TABLE, numbers(2)], {}),
        ("Div", [INTEGERS[0], numbers(1, 0, 1)], {}),
        ("Range", [np.array(0), np.array(3), np.array(0)], {}),
        ("Pow", [INTEGERS[0], INTEGERS[1]], {}),
        ("Sqrt", [COUNTS], {}),
        ("Mod", [*FLOATS], {}),
        ("Neg", [TABLE], {"domain": "elsewhere"}),
    ],
)
def test_what_an_operator_does_not_take_gives_nothing(operator, inputs, attributes) -> None:
    assert evaluate(ir.from_proto(make(operator, len(inputs), **attributes)), inputs) is None


@pytest.mark.parametrize(("operator", "attributes"), [("ConstantOfShape", {}), ("Expand", {}), ("Tile", {})])
def test_constants_that_would_fill_the_memory_are_not_computed(operator, attributes, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 24)
    for side, allowed in ((24, True), (25, False)):
        inputs = [numbers(side)] if operator == "ConstantOfShape" else [np.zeros(1, np.float32), numbers(side)]
        assert (evaluate(ir.from_proto(make(operator, len(inputs), **attributes)), inputs) is not None) == allowed
    grid = [np.arange(5), np.arange(5)[:, None]]
    assert evaluate(ir.from_proto(make("Add", 2)), grid) is None  # 25 sums of 5 and 5 numbers
    assert evaluate(ir.from_proto(make("Range", 3)), [np.array(0), np.array(25), np.array(1)]) is None
    assert evaluate(ir.from_proto(make("Add", 2)), [np.ones(100), np.ones(100)]) is not None  # no larger than what there is


def settle(body: str, **constants: Any) -> dict[str, list[Any]]:
    """What is followed of a graph with whole numbers as initializers."""
    text = f'<ir_version: 8, opset_import: ["" : 20]>\nagraph (float[n, 6, t, 16] x, int64[2] fed) => (float[k] out) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    known = follow(ir.from_proto(proto).graph)
    return {str(value.name): array.tolist() for value, array in known.items()}


def test_sizes_are_followed_by_name_through_what_moves_them() -> None:
    known = settle(
        """whole = Shape(x)
        part = Shape<start = 1, end = 3>(x)
        first = Gather(whole, none)
        pair = Unsqueeze(first, none)
        ends = Slice(whole, starts, stops)
        joined = Concat<axis = 0>(pair, three, ends)
        wide = Cast<to = 7>(joined)
        lost = Cast<to = 1>(joined)
        filled = ConstantOfShape<value = int64[1] {-1}>(two)
        unread = Gather(fed, none)
        root = Sqrt(joined)""",
        none=0, starts=[2], stops=[4], three=[3], two=[2],
    )  # fmt: skip
    assert known == {
        "whole": ["n", 6, "t", 16], "part": [6, "t"], "first": "n", "pair": ["n"], "ends": ["t", 16],
        "joined": ["n", 3, "t", 16], "wide": ["n", 3, "t", 16], "filled": [-1, -1],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "second", "expected"),
    [
        ("Add", 2, [None, 8, None, 18]),
        ("Add", 0, ["n", 6, "t", 16]),
        ("Sub", 2, [None, 4, None, 14]),
        ("Sub", 0, ["n", 6, "t", 16]),
        ("Mul", 3, [None, 18, None, 48]),
        ("Mul", 1, ["n", 6, "t", 16]),
        ("Div", 4, [None, 1, None, 4]),
        ("Div", -4, [None, -1, None, -4]),
        ("Div", 1, ["n", 6, "t", 16]),
        ("Div", 0, [None, None, None, None]),
        ("Equal", 6, [None, True, None, False]),
        ("Equal", 0, [None, False, None, False]),
        ("Equal", -1, [False, False, False, False]),
    ],
)
def test_arithmetic_of_sizes_knows_what_is_known(operator, second, expected) -> None:
    assert settle(f"whole = Shape(x)\n done = {operator}(whole, second)", second=[second])["done"] == expected


@pytest.mark.parametrize(
    ("operator", "first", "expected"),
    [
        ("Add", 0, ["n", 6, "t", 16]),
        ("Mul", 1, ["n", 6, "t", 16]),
        ("Sub", 0, [None, -6, None, -16]),
        ("Div", 1, [None, 0, None, 0]),
        ("Equal", -1, [False, False, False, False]),
    ],
)
def test_arithmetic_with_a_number_first(operator, first, expected) -> None:
    assert settle(f"whole = Shape(x)\n done = {operator}(first, whole)", first=[first])["done"] == expected


def test_a_size_equals_itself_and_chooses() -> None:
    known = settle(
        """whole = Shape(x)
        same = Equal(whole, whole)
        six = Equal(whole, number)
        chosen = Where(six, whole, other)
        taken = Where(same, whole, other)
        left = Where(never, whole, other)
        unknown = Add(whole, number)
        lost = Equal(unknown, whole)""",
        number=[6], other=[9], never=[False],
    )  # fmt: skip
    assert known["same"] == [True] * 4 and known["taken"] == ["n", 6, "t", 16] and known["left"] == [9] * 4
    assert known["six"] == [None, True, None, False] and known["chosen"] == [None, 6, None, 9]
    assert known["lost"] == [None, False, None, False]


def test_what_is_large_or_not_whole_is_not_followed() -> None:
    known = settle(
        """whole = Shape(x)
        small = Tile(whole, sixteen)
        large = Tile(small, two)
        moved = Identity(table)
        long = Identity(many)
        kept = Identity(few)""",
        sixteen=[16], two=[2], table=np.ones(3, np.float32), many=np.arange(65), few=np.arange(64),
    )  # fmt: skip
    assert set(known) == {"whole", "small", "kept"}
    assert known["small"] == ["n", 6, "t", 16] * 16


def test_a_shape_that_varies_is_settled_only_when_every_size_is_a_number() -> None:
    def elements(*each: object) -> np.ndarray:
        array = np.empty(len(each), dtype=object)
        array[:] = each
        return array

    assert is_settled(elements(3, True)) and not is_settled(elements(3, "n")) and not is_settled(elements(None))
