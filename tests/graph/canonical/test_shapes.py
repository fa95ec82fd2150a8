"""Sizes by name, shapes that become constants, and axes: the last one is not the second one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper, parser

from tests.graph.foreign import Sketch, check, counts, names_of, rewritten, run, sketched
from vitdeploy.errors import InputError
from vitdeploy.graph.canonical.shapes import infer_shapes, is_last_axis, is_same, settle_shapes
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.query import constant, sizes


def parsed(inputs: str, body: str, **constants: Any) -> ir.Model:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 20]>\nagraph ({inputs}) => (float[] y) {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    for place, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{place}"
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("n, 6, 16", ["n", 96], [-1, 96]),
        ("n, t, 16", ["n", "t", 2, 8], [0, 0, 2, 8]),
        ("n, 6, 16", ["n", 3, -1, 4], [-1, 3, 8, 4]),
        ("n, t, 16", ["n", "t", 2, -1], [0, 0, 2, 8]),
        ("n, t, 16", ["t", "n", -1], [-1, 0, 16]),
    ],
    ids=["joined", "two sizes that vary", "a rest worked out", "a rest beside two that vary", "exchanged"],
)
def test_a_shape_put_together_at_run_time_is_written_down(source, target, expected) -> None:
    """`target` holds sizes of the input by name, and numbers; "exchanged" can't be: two sizes are not in their places."""
    names = [size.strip() for size in source.split(",")]
    lines, constants, parts = ["whole = Shape(x)"], {}, []
    for place, size in enumerate(target):
        constants[f"c{place}"] = np.array([names.index(size) if isinstance(size, str) else size])
        parts.append(f"p{place}")
        lines.append(f"p{place} = {f'Gather(whole, c{place})' if isinstance(size, str) else f'Identity(c{place})'}")
    lines += [f"shape = Concat<axis = 0>({', '.join(parts)})", "y = Reshape(x, shape)"]
    model = parsed(f"float[{source}] x", "\n".join(lines), **constants)
    done = list(settle_shapes(Editor(model)))
    written = constant(model.graph[-1].inputs[1])
    if target == ["t", "n", -1]:
        assert written is None
    else:
        assert written is not None and written.tolist() == expected and (str(model.graph[-1].name),) in done


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("n", 6), ("n", 6), True),
        (("n", 6), ("n", 7), False),
        (("n", 6), ("m", 6), True),
        (("n", "t"), ("m", "t"), True),
        (("n", "t"), ("m", "s"), False),
        ((None, 6), (None, 6), True),
        ((None, 6), (3, 6), True),
        (("n", None), ("m", 6), False),
        (("n", 6), ("n", 6, 1), False),
        (("n", 0), ("m", 0), False),
        (None, ("n",), False),
        (("n",), None, False),
    ],
)
def test_shapes_of_as_many_elements_are_equal_when_one_size_at_most_is_open(first, second, same) -> None:
    assert is_same(first, second) == same


def test_a_new_name_of_a_size_that_is_known_is_the_known_one() -> None:
    model = parsed(
        "float[n, 6, 16] x, float[n, 6, 16] other",
        """flat = Reshape(x, rows)
        double = Reshape(x, halves)
        back = Reshape(double, whole)
        sum = Add(back, x)
        joined = Concat<axis = 1>(back, back)
        y = Relu(joined)""",
        rows=[-1, 96], halves=[-1, 48], whole=[-1, 6, 16],
    )  # fmt: skip
    named = {name: sizes(value_of(model, name)) for name in ("flat", "back", "sum", "joined")}
    assert named == {"flat": ("n", 96), "back": ("n", 6, 16), "sum": ("n", 6, 16), "joined": ("n", 12, 16)}
    assert sizes(value_of(model, "double"))[0] != "n"  # twice as many


def test_sizes_of_two_inputs_stay_two() -> None:
    model = parsed("float[n, 4] x, float[m, 4] other", "y = Add(x, other)")
    assert [sizes(value) for value in model.graph.inputs] == [("n", 4), ("m", 4)]


# Axes


def node_on(shape: tuple[int | str, ...] | None) -> ir.Node:
    return ir.node("Softmax", [ir.Value(name="x", shape=None if shape is None else ir.Shape(shape))])


@pytest.mark.parametrize(
    ("shape", "axis", "last"),
    [
        (("n", 6, 6), -1, True), (("n", 6, 6), 2, True), (("n", 6, 6), 1, False), (("n", 6, 6), -2, False), (("n", 6), 1, True),
        (("n", 2, 6, 6), 3, True), (("n", 2, 6, 6), 1, False), (("n", 2, 6, 6), 2, False), (None, -1, True), (None, 1, False),
    ],
)  # fmt: skip
def test_which_axis_is_the_last(shape, axis, last) -> None:
    assert is_last_axis(node_on(shape), axis) == last


@pytest.mark.parametrize(("axis", "written"), [(2, -1), (1, 1), (-2, -2)])
def test_the_last_axis_of_a_softmax_is_minus_one_and_another_stays(axis, written) -> None:
    sketch = Sketch(shape=("batch", 6, 6))
    proto = sketch.model(sketch.add("Softmax", sketch.add("Mul", "x", sketch.weight(6)), axis=axis))
    after, done = rewritten(proto)
    check(proto, after, (6, 6))
    assert after.graph.node[-1].attribute[0].i == written and ("softmax" in names_of(done)) == (axis == 2)


@pytest.mark.parametrize("axis", [1, -2])
def test_scores_that_are_no_probabilities_of_keys_keep_their_factors(axis) -> None:
    sketch = Sketch()
    product = sketch.add("MatMul", "x", sketch.add("Transpose", "x", perm=[0, 2, 1]))
    scaled = sketch.add("Mul", product, sketch.constant(np.float32(0.3)))
    counted, done = sketched(sketch, sketch.add("MatMul", sketch.add("Softmax", scaled, axis=axis), "x"))
    assert counted["Mul"] == 1 and "scale" not in names_of(done)


def test_a_root_norm_over_two_axes_is_refused_and_over_the_last_by_its_place_is_not() -> None:
    for axis, fits in ((2, True), (-1, True), (1, False), (-2, False)):
        sketch = Sketch(23)
        proto = sketch.model(sketch.add("RMSNormalization", "x", sketch.weight(*((16,) if fits else (6, 16))), axis=axis))
        if fits:
            assert counts(rewritten(proto)[0]) == {"Mul": 2, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1}
        else:
            with pytest.raises(InputError, match="RMSNormalization"):
                rewritten(proto)


@pytest.mark.parametrize("axis", [2, -1, 0])
def test_tokens_joined_along_another_axis_are_not_padded(axis) -> None:
    """Six tokens of 16 numbers fit along each axis."""
    sketch = Sketch(shape=(1, 6, 16))
    proto = sketch.model(sketch.add("Concat", sketch.weight(1, 6, 16), "x", axis=axis))
    after, _ = rewritten(proto)
    assert counts(after) == {"Concat": 1}
    check(proto, after, (6, 16), (1,))


@pytest.mark.parametrize("axis", [1, -2])
def test_tokens_joined_along_their_own_axis_are(axis) -> None:
    sketch = Sketch(shape=(1, 6, 16))
    proto = sketch.model(sketch.add("Concat", sketch.weight(1, 2, 16), "x", sketch.weight(1, 3, 16), axis=axis))
    after, _ = rewritten(proto)
    assert counts(after) == {"Pad": 1, "Add": 1}
    check(proto, after, (6, 16), (1,))


@pytest.mark.parametrize("shape", [(1, 8, 16), (8, 16), (1, 1, 16)])
def test_positions_of_all_tokens_go_into_the_table(shape) -> None:
    sketch = Sketch(shape=(1, 6, 16))
    joined = sketch.add("Concat", sketch.weight(1, 2, 16), "x", axis=1)
    proto = sketch.model(sketch.add("Relu", sketch.add("Add", joined, sketch.weight(*shape))))
    after, _ = rewritten(proto)
    assert counts(after) == {"Pad": 1, "Add": 1 + (shape[-2] == 1), "Relu": 1}
    check(proto, after, (6, 16), (1,))


# Moves


def test_transposes_in_a_row_are_said_to_be_changed() -> None:
    sketch = Sketch(shape=("batch", 2, 3, 4))
    turned = sketch.add("Transpose", sketch.add("Transpose", "x", perm=[0, 3, 1, 2]), perm=[1, 0, 2, 3])
    counted, done = sketched(sketch, turned)
    assert counted == {"Transpose": 1} and [each.nodes for each in done if each.name == "moves"] == [("Transpose_1",)]


def test_transposes_without_an_order_turn_all_axes() -> None:
    sketch = Sketch(shape=(2, 3, 4))
    proto = sketch.model(sketch.add("Relu", sketch.add("Transpose", sketch.add("Transpose", "x"), perm=[2, 0, 1])))
    after, _ = rewritten(proto)
    (turn,) = [node for node in after.graph.node if node.op_type == "Transpose"]
    assert list(turn.attribute[0].ints) == [0, 2, 1]
    check(proto, after, (3, 4), (2,))


@pytest.mark.parametrize("order", [[0, 2, 1], [1, 0, 2]])
def test_a_transpose_of_joined_axes_is_one_with_the_one_before(order) -> None:
    """[a, b, c, d] turned, c and d joined, turned again: where the joined axes stay last, one Transpose does it."""
    sketch = Sketch(shape=(2, 3, 4, 5))
    joined = sketch.add("Reshape", sketch.add("Transpose", "x", perm=[0, 2, 1, 3]), sketch.constant(np.array([2, 4, 15])))
    proto = sketch.model(sketch.add("Neg", sketch.add("Transpose", joined, perm=order)))
    after, _ = rewritten(proto)
    assert counts(after)["Transpose"] == (2 if order[-1] == 1 else 1)
    check(proto, after, (3, 4, 5), (2,))


def test_a_branch_brings_its_own_constants_under_names_that_are_free() -> None:
    """Both graphs have a constant called c0."""
    sketch = Sketch(17)
    weight = sketch.weight(16)
    branches = {}
    for name, operator in (("then_branch", "Mul"), ("else_branch", "Add")):
        own = numpy_helper.from_array(np.full(16, 3, np.float32), weight)
        node = onnx.helper.make_node(operator, ["x", weight], ["r"], name="Relu_0")
        branches[name] = onnx.helper.make_graph(
            [node], name, [], [onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT, None)], [own]
        )
    chosen = sketch.add("If", sketch.constant(np.array(True)), **branches)
    proto = sketch.model(sketch.add("Add", sketch.add("Relu", chosen), weight))
    after, _ = rewritten(proto)
    assert counts(after) == {"Mul": 1, "Relu": 1, "Add": 1}
    feed = np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)
    expected = np.maximum(3 * feed, 0) + numpy_helper.to_array(sketch.weights[0])
    np.testing.assert_allclose(run(after, feed)[0], expected, rtol=1e-6)
