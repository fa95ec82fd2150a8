"""Each rewrite on graphs made by hand: what it must find, what it must leave, what must be refused."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.graph import foreign
from tests.graph.foreign import Sketch, check, counts, names_of, rewritten, run, same, sketched
from vitdeploy.errors import InputError
from vitdeploy.graph.canonical.rewrites import Rewrite, canonicalise


@pytest.mark.parametrize("form", ["packed", "multi-head"])
def test_fused_operators_of_onnx_runtime(form):
    before = foreign.contrib(form)
    after, done = rewritten(before)
    check(before, after, (6, 16))
    counted = counts(after)
    assert {node.domain for node in after.graph.node} == {""}
    assert [each.domain for each in after.opset_import] == [""]
    assert counted["Softmax"] == 2 and counted["Gelu"] == 2 and counted["LayerNormalization"] == 5
    assert names_of(done) >= {"attention", "skip-norm", "fused-gelu", "opset"}
    assert rewritten(after)[1] == []


@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
def test_a_skip_norm_may_give_its_sum_or_not(outputs):
    """Its second and third output are for training: a file may name them and never read them."""
    sketch = Sketch(17, com_microsoft=1)
    weights = [sketch.weight(16) for _ in range(2)]
    norm = sketch.add("SkipLayerNormalization", "x", "x", *weights, outputs=outputs, domain="com.microsoft")
    counted, done = sketched(sketch, norm if outputs == 1 else norm[0])
    assert counted["LayerNormalization"] == counted["Add"] == 1 and "skip-norm" in names_of(done)


@pytest.mark.parametrize(("operator", "expected"), [("FastGelu", "Gelu"), ("QuickGelu", "Sigmoid"), ("Gelu", "Gelu")])
def test_other_gelus_of_onnx_runtime(operator, expected):
    sketch = Sketch(14, com_microsoft=1)
    counted, done = sketched(sketch, sketch.add(operator, "x", domain="com.microsoft"))
    assert counted[expected] == 1 and names_of(done) >= {"fused-gelu", "opset"}


@pytest.mark.parametrize(("first", "second", "alpha"), [(0, 1, 0.25), (1, 0, 1.0), (0, 0, 3.0)])
def test_fused_matmul_of_onnx_runtime(first, second, alpha):
    sketch = Sketch(14, com_microsoft=1)
    product = sketch.add("FusedMatMul", "x", "x" if first + second else sketch.weight(16, 8), domain="com.microsoft",
                         transA=first, transB=second, alpha=alpha)  # fmt: skip
    counted, done = sketched(sketch, sketch.add("Softmax", product, axis=-1))
    assert counted["MatMul"] == 1 and counted["Transpose"] == first + second and counted["Mul"] == (alpha != 1)
    assert names_of(done) >= {"fused-matmul", "opset"}


def test_what_onnx_runtime_saves_of_an_export(tmp_path):
    """Its optimiser fuses GELU, LayerNorm and the scale of attention into operators of its own."""
    before = foreign.script("ViTForImageClassification", 14)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(before.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert counts(optimised)["BiasGelu"] == 2 and counts(optimised)["FusedMatMul"] == 2
    after, _ = rewritten(optimised)
    plain, _ = rewritten(before)
    check(before, after)
    assert counts(after) == counts(plain)


def erf_gelus():
    """All ways to multiply x, 1/2 and 1 + erf(x / sqrt 2)."""
    for order in itertools.permutations(("x", "half", "sum")):
        for divide, left in itertools.product((False, True), repeat=2):
            yield order, divide, left


@pytest.mark.parametrize(("order", "divide", "left"), list(erf_gelus()))
def test_every_order_of_the_erf_gelu(order, divide, left):
    sketch = Sketch(17)
    root = sketch.constant(np.float32(2**0.5 if divide else 0.5**0.5))
    one, half = sketch.constant(np.float32(1)), sketch.constant(np.array([0.5], np.float32))
    erf = sketch.add("Erf", sketch.add("Div" if divide else "Mul", "x", root))
    parts = {"x": "x", "half": half, "sum": sketch.add("Add", *((erf, one) if left else (one, erf)))}
    first = sketch.add("Mul", parts[order[0]], parts[order[1]])
    counted, _ = sketched(sketch, sketch.add("Mul", *((first, parts[order[2]]) if left else (parts[order[2]], first))))
    assert counted == {"Gelu": 1}


@pytest.mark.parametrize("cube", ["Pow", "Mul", "factored"])
def test_the_tanh_gelu(cube):
    sketch = Sketch(14)

    def number(value):
        return sketch.constant(np.float32(value))

    root = number((2 / np.pi) ** 0.5)
    if cube == "factored":
        square = sketch.add("Mul", sketch.add("Mul", "x", "x"), number(0.044715))
        inner = sketch.add("Mul", sketch.add("Mul", "x", root), sketch.add("Add", number(1), square))
    else:
        power = sketch.add("Pow", "x", number(3)) if cube == "Pow" else sketch.add("Mul", sketch.add("Mul", "x", "x"), "x")
        inner = sketch.add("Mul", root, sketch.add("Add", "x", sketch.add("Mul", number(0.044715), power)))
    total = sketch.add("Add", number(1), sketch.add("Tanh", inner))
    proto = sketch.model(sketch.add("Mul", sketch.add("Mul", number(0.5), "x"), total))
    after, _ = rewritten(proto)
    check(proto, after, (6, 16))
    assert counts(after) == {"Gelu": 1}
    assert after.graph.node[0].attribute[0].s == b"tanh"


@pytest.mark.parametrize("change", ["constant", "input", "used"])
def test_what_only_looks_like_gelu_stays(change):
    sketch = Sketch(17)
    shifted = sketch.add("Add", "x", sketch.constant(np.float32(0.1)))
    root = sketch.constant(np.float32(0.71 if change == "constant" else 0.5**0.5))
    erf = sketch.add("Erf", sketch.add("Mul", shifted, root))
    total = sketch.add("Add", erf, sketch.constant(np.float32(1)))
    product = sketch.add("Mul", "x" if change == "input" else shifted, total)
    result = sketch.add("Mul", product, sketch.constant(np.float32(0.5)))
    counted, _ = sketched(sketch, *((result, total) if change == "used" else (result,)))
    assert counted["Gelu"] == 0 and counted["Erf"] == 1


def layer_norm(sketch: Sketch, root: str, square: str, *, twice: bool = False, axis: int = -1, swap: bool = False) -> str:
    """A LayerNorm without weight and bias, in parts."""
    axes = {"axes": [axis]} if sketch.opset < 18 else {}
    inputs = () if axes else (sketch.constant(np.array([axis], np.int64)),)
    mean = sketch.add("ReduceMean", "x", *inputs, **axes)
    centred = sketch.add("Sub", "x", mean)
    again = sketch.add("Sub", "x", mean) if twice else centred
    power = sketch.add("Mul", again, again) if square == "Mul" else sketch.add("Pow", again, sketch.constant(np.float32(2)))
    variance = sketch.add("ReduceMean", power, *inputs, **axes)
    epsilon = sketch.constant(np.float32(1e-5))
    shifted = sketch.add("Add", *((epsilon, variance) if swap else (variance, epsilon)))
    if root == "Div":
        return sketch.add("Div", centred, sketch.add("Sqrt", shifted))
    if root == "Pow":
        inverse = sketch.add("Pow", shifted, sketch.constant(np.float32(-0.5)))
    elif root == "Reciprocal":
        inverse = sketch.add("Reciprocal", sketch.add("Sqrt", shifted))
    else:
        inverse = sketch.add("Div", sketch.constant(np.float32(1)), sketch.add("Sqrt", shifted))
    return sketch.add("Mul", *((inverse, centred) if swap else (centred, inverse)))


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("root", ["Div", "Reciprocal", "Pow", "Inverse"])
@pytest.mark.parametrize(("square", "twice", "swap"), [("Pow", False, False), ("Mul", True, True)])
def test_every_way_to_write_layer_norm(opset, root, square, twice, swap):
    sketch = Sketch(opset)
    norm = layer_norm(sketch, root, square, twice=twice, swap=swap, axis=2 if swap else -1)
    weight, bias = sketch.weight(16), sketch.weight(1, 1, 16)
    scaled = sketch.add("Mul", *((weight, norm) if swap else (norm, weight)))
    counted, done = sketched(sketch, sketch.add("Add", *((bias, scaled) if swap else (scaled, bias))))
    assert counted == {"LayerNormalization": 1}
    assert [rewrite.name for rewrite in done].count("layer-norm") == 1


def test_layer_norm_without_weight_and_bias():
    sketch = Sketch(14)
    counted, _ = sketched(sketch, layer_norm(sketch, "Div", "Pow"))
    assert counted == {"LayerNormalization": 1}


def test_layer_norm_over_another_axis_stays():
    sketch = Sketch(14)
    counted, _ = sketched(sketch, sketch.add("Mul", layer_norm(sketch, "Div", "Pow", axis=1), sketch.weight(16)))
    assert counted["LayerNormalization"] == 0 and counted["ReduceMean"] == 2


@pytest.mark.parametrize(("turned", "alpha", "beta"), [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.5, 2.0), (0, 3.0, 0.25)])
def test_gemm_between_two_reshapes_is_one_linear_layer(turned, alpha, beta):
    sketch = Sketch(17)
    flat = sketch.add("Reshape", "x", sketch.constant(np.array([-1, 16], np.int64)))
    weight, bias = sketch.weight(*((8, 16) if turned else (16, 8))), sketch.weight(8)
    gemm = sketch.add("Gemm", flat, weight, bias, transB=turned, alpha=alpha, beta=beta)
    counted, _ = sketched(sketch, sketch.add("Reshape", gemm, sketch.constant(np.array([-1, 6, 8], np.int64))))
    assert counted == {"MatMul": 1, "Add": 1}


def test_gemm_without_bias_and_with_a_bias_for_each_row():
    sketch = Sketch(17, (2, 16))
    first = sketch.add("Gemm", "x", sketch.weight(16, 16))
    second = sketch.add("Gemm", first, sketch.weight(16, 16), sketch.weight(2, 16))  # no linear layer: left as it is
    proto = sketch.model(second)
    after, _ = rewritten(proto)
    assert counts(after) == {"MatMul": 1, "Gemm": 1}
    feed = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    same(run(proto, feed), run(after, feed))


def test_a_weight_that_two_layers_share_stays_shared():
    sketch = Sketch(17, ("batch", 16))
    weight = sketch.weight(16, 16)
    first = sketch.add("Gemm", "x", weight, transB=1)
    turned = sketch.add("Transpose", weight, perm=[1, 0])
    proto = sketch.model(sketch.add("MatMul", sketch.add("Gemm", first, weight, transB=1), turned))
    after, _ = rewritten(proto)
    check(proto, after, (16,))
    assert counts(after) == {"MatMul": 3}
    assert len(after.graph.initializer) == 2  # one for both Gemms, one for the Transpose


def test_tokens_last_behind_the_patches_are_padded_too():
    sketch = Sketch()
    batch = sketch.add("Shape", "x", start=0, end=1)
    shape = sketch.add("Concat", batch, sketch.constant(np.array([2, 16], np.int64)), axis=0)
    tokens = sketch.add("Expand", sketch.weight(1, 2, 16), shape)
    counted, _ = sketched(sketch, sketch.add("Concat", "x", tokens, axis=1))
    assert counted == {"Pad": 1, "Add": 1}


def attention(opset: int = 23, rank: int = 4, mask=None, heads: int = 2, **attributes) -> onnx.ModelProto:
    """Opset 23's operator between linear layers."""
    sketch = Sketch(opset)
    parts = [sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(3)]
    if rank == 4:
        shape = sketch.constant(np.array([0, 0, heads, -1], np.int64))
        parts = [sketch.add("Transpose", sketch.add("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts]
    else:
        attributes |= {"q_num_heads": heads, "kv_num_heads": heads}
    masks = () if mask is None else (sketch.constant(mask),)
    return sketch.model(sketch.add("Attention", *parts, *masks, **attributes))


CORNER = np.tril(np.ones((6, 6), bool))


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({}, 0),
        ({"rank": 3}, 0),
        ({"rank": 3, "scale": 0.3, "opset": 24}, 0),
        ({"mask": np.random.default_rng(1).standard_normal((2, 6, 6)).astype(np.float32)}, 1),
        ({"mask": CORNER}, 1),
        ({"mask": np.ones((1, 1, 6, 6), bool)}, 0),
        ({"mask": np.zeros((6, 6), np.float32), "rank": 3}, 0),
    ],
)
def test_fused_attention_of_onnx(options, added):
    proto = attention(**options)
    after, done = rewritten(proto)
    counted = counts(after)
    assert counted["MatMul"] == 5 and counted["Softmax"] == 1 and counted["Mul"] == 1 and counted["Add"] == added
    check(proto, after, (6, 16))
    assert [rewrite.name for rewrite in done].count("attention") == 1


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 5.0}])
def test_attention_that_no_vit_has_is_refused(attributes):
    with pytest.raises(InputError, match="Attention") as caught:
        rewritten(attention(**attributes))
    assert caught.value.code == "VD3025" and "Attention_0" in str(caught.value)


def test_attention_with_fewer_keys_than_heads_is_refused():
    sketch = Sketch(23)
    parts = [sketch.add("MatMul", "x", sketch.weight(16, width)) for width in (16, 8, 8)]
    with pytest.raises(InputError, match="another number of keys"):
        rewritten(sketch.model(sketch.add("Attention", *parts, q_num_heads=4, kv_num_heads=2)))


@pytest.mark.parametrize(("query", "key", "after"), [("Mul", "Mul", ""), ("Div", "", "Mul"), ("", "", "Div"), ("", "Div", "Div")])
def test_all_scales_become_one(query, key, after):
    sketch = Sketch(20)
    left, right = (sketch.add("MatMul", "x", sketch.weight(16, 16)) for _ in range(2))

    def scaled(value, operator, number):
        return sketch.add(operator, value, sketch.constant(np.float32(number))) if operator else value

    turned = sketch.add("Transpose", scaled(right, key, 0.7), perm=[0, 2, 1])
    scores = scaled(sketch.add("MatMul", scaled(left, query, 1.3), turned), after, 1.9)
    masked = sketch.add("Add", scores, sketch.weight(6, 6))
    weights = sketch.add("Softmax", masked, axis=2)
    counted, done = sketched(sketch, sketch.add("MatMul", weights, "x"))
    assert counted["Mul"] == 1 and counted["Div"] == 0
    assert names_of(done) >= {"scale", "softmax"}


def test_a_mask_that_hides_something_stays_and_so_does_its_guard():
    sketch = Sketch(20)
    product = sketch.add("MatMul", "x", sketch.add("Transpose", "x", perm=[0, 2, 1]))
    hidden = np.where(CORNER, 0, -np.inf).astype(np.float32)
    softmax = sketch.add("Softmax", sketch.add("Add", product, sketch.constant(hidden)))
    guarded = sketch.add("Where", sketch.add("IsNaN", softmax), sketch.constant(np.float32(0)), softmax)
    counted, _ = sketched(sketch, sketch.add("MatMul", guarded, "x"))
    assert counted["Where"] == 1 and counted["Add"] == 1


def filled(hidden: np.ndarray, level: float, *, swap: bool = False, expand: bool = False) -> tuple[Sketch, str]:
    """Attention whose scores are filled in where something is hidden."""
    sketch = Sketch(20)
    scores = sketch.add("MatMul", "x", sketch.add("Transpose", "x", perm=[0, 2, 1]))
    mask = sketch.constant(~hidden if swap else hidden)
    if expand:
        batch = sketch.add("Shape", "x", start=0, end=1)
        shape = sketch.add("Concat", batch, sketch.constant(np.array(hidden.shape, np.int64)), axis=0)
        mask = sketch.add("Expand", mask, shape)
    parts = (sketch.constant(np.float32(level)), scores)
    masked = sketch.add("Where", mask, *(reversed(parts) if swap else parts))
    return sketch, sketch.add("MatMul", sketch.add("Softmax", masked), "x")


@pytest.mark.parametrize("level", [-1e9, -np.inf, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize(
    ("hidden", "expand", "added"), [(~CORNER, False, 1), (~CORNER[None], False, 1), (CORNER & False, True, 0)]
)
def test_scores_that_a_mask_fills_in_are_added_to(hidden, expand, added, level, swap):
    counted, done = sketched(*filled(hidden, level, swap=swap, expand=expand))
    assert counted["Where"] == 0 and counted["Add"] == added
    assert "masks" in names_of(done)


@pytest.mark.parametrize(
    ("hidden", "level"), [(~CORNER, -2.0), (~CORNER, 0.0), (CORNER | True, -1e9), (CORNER.T & CORNER, 1e9), (CORNER, -1e9)],
    ids=["not low", "zero", "everything", "high", "a row without a key"],
)  # fmt: skip
def test_a_mask_that_fills_in_otherwise_stays(hidden, level):
    counted, _ = sketched(*filled(hidden, level))
    assert counted["Where"] == 1 and counted["Add"] == 0


def test_transposes_in_a_row_are_one_or_none():
    sketch = Sketch(20, ("batch", 2, 3, 4))
    first = sketch.add("Transpose", sketch.add("Transpose", "x", perm=[0, 2, 1, 3]), perm=[0, 2, 1, 3])
    second = sketch.add("Transpose", sketch.add("Transpose", "x", perm=[0, 3, 1, 2]), perm=[1, 0, 2, 3])
    counted, _ = sketched(sketch, sketch.add("Relu", first), second)
    assert counted == {"Relu": 1, "Transpose": 1}


def test_copies_go():
    sketch = Sketch(14)
    cast = sketch.add("Cast", sketch.add("Identity", "x"), to=TensorProto.FLOAT)
    dropped = sketch.add("Dropout", cast, sketch.constant(np.float32(0.5)))
    counted, _ = sketched(sketch, sketch.add("Relu", dropped), sketch.add("Identity", "x"))
    assert counted == {"Relu": 1, "Identity": 1}  # an output must not be an input


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("place", [0, -1])
def test_a_part_without_numbers_goes(others, place):
    """The register tokens of a model that has none."""
    sketch = Sketch()
    parts = ["x", *(sketch.add("Neg", "x") for _ in range(others))]
    parts.insert(
        place % (len(parts) + 1), sketch.add("Slice", "x", *(sketch.constant(np.array([end], np.int64)) for end in (2, 2, 1)))
    )
    counted, done = sketched(sketch, sketch.add("Relu", sketch.add("Concat", *parts, axis=1)))
    assert counted["Concat"] == others and counted["Slice"] == 0 and "constants" in names_of(done)


def test_what_nobody_needs_goes():
    sketch = Sketch(20)
    sketch.add("MatMul", "x", sketch.weight(16, 4))
    sketch.weight(3)
    proto = sketch.model(sketch.add("Relu", "x"))
    after, done = rewritten(proto)
    assert counts(after) == {"Relu": 1} and not after.graph.initializer
    assert [rewrite.name for rewrite in done] == ["dead", "dead"]


def test_empty_inputs_at_the_end_go():
    sketch = Sketch(20)
    norm = sketch.add("LayerNormalization", "x", sketch.weight(16), "", axis=-1)
    model = ir.from_proto(sketch.model(norm))
    done = canonicalise(model)
    assert [rewrite.name for rewrite in done] == ["empty-inputs"]
    assert len(next(iter(model.graph)).inputs) == 2
    feed = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32)
    same(ReferenceEvaluator(sketch.model(norm)).run(None, {"x": feed}), run(ir.to_proto(model), feed))


def test_functions_are_written_out():
    sketch = Sketch(18, mine=1)
    body = [helper.make_node("Mul", ["a", "a"], ["b"], name="square"), helper.make_node("Add", ["b", "a"], ["c"])]
    sketch.functions.append(helper.make_function("mine", "Poly", ["a"], ["c"], body, [helper.make_opsetid("", 18)]))
    proto = sketch.model(sketch.add("Poly", sketch.add("Poly", "x", domain="mine"), domain="mine"))
    after, done = rewritten(proto)
    assert counts(after) == {"Mul": 2, "Add": 2} and not after.functions
    assert len({node.name for node in after.graph.node}) == 4
    assert done[0] == Rewrite("functions", ("mine::Poly",))
    check(proto, after, (6, 16))


def branches(condition: str) -> onnx.ModelProto:
    sketch = Sketch(17)
    weight = sketch.weight(16)

    def branch(operator):
        node = helper.make_node(operator, ["x", weight], [operator])
        return helper.make_graph([node], operator, [], [helper.make_tensor_value_info(operator, TensorProto.FLOAT, None)])

    if condition == "constant":
        test = sketch.add("Greater", sketch.add("Size", weight), sketch.constant(np.int64(3)))
    else:
        test = sketch.add("Greater", sketch.add("ReduceMax", "x", keepdims=0), sketch.constant(np.float32(0)))
    chosen = sketch.add("If", test, then_branch=branch("Mul"), else_branch=branch("Add"))
    return sketch.model(sketch.add("Relu", chosen))


def test_a_branch_that_is_always_taken_is_taken():
    before = branches("constant")
    after, _ = rewritten(before)
    assert counts(after) == {"Mul": 1, "Relu": 1}
    check(before, after, (6, 16))


def test_a_branch_that_depends_on_the_image_is_refused():
    with pytest.raises(InputError, match="holds a graph of its own") as caught:
        rewritten(branches("computed"))
    assert caught.value.code == "VD3025"


@pytest.mark.parametrize(
    ("opset", "operator", "attributes"),
    [
        (13, "ReduceMax", {"axes": [1], "keepdims": 0}),
        (17, "ReduceL2", {"axes": [-1]}),
        (18, "ReduceSumSquare", {}),
        (24, "Swish", {"alpha": 1.5}),
        (23, "RMSNormalization", {"epsilon": 1e-3}),
        (22, "Elu", {}),
        (24, "Cast", {"to": TensorProto.DOUBLE, "round_mode": "up", "saturate": 1}),
    ],
)
def test_operators_mean_the_same_in_operator_set_20(opset, operator, attributes):
    sketch = Sketch(opset)
    inputs = ("x", sketch.weight(16)) if operator == "RMSNormalization" else ("x",)
    name = sketch.add(operator, *inputs, **attributes)
    proto = sketch.model(name, kind=attributes.get("to", TensorProto.FLOAT))
    after, _ = rewritten(proto)
    assert after.opset_import[0].version == 20
    feed = np.random.default_rng(0).standard_normal((3, 6, 16)).astype(np.float32)
    same(ReferenceEvaluator(proto).run(None, {"x": feed}), ReferenceEvaluator(after).run(None, {"x": feed}), 1e-6)


def test_a_split_into_equal_parts():
    sketch = Sketch(13)
    parts = sketch.add("Split", "x", outputs=4, axis=2)
    counted, _ = sketched(sketch, sketch.add("Concat", *reversed(parts), axis=2))
    assert counted == {"Split": 1, "Concat": 1}


@pytest.mark.parametrize(
    ("opset", "operator", "domain", "said"),
    [
        (16, "GridSample", "", "means something else"),
        (23, "RotaryEmbedding", "", "does not exist"),
        (20, "Mystery", "com.example", "com.example.Mystery"),
    ],
)
def test_operators_that_can_not_be_edited_are_refused_by_name(opset, operator, domain, said):
    sketch = Sketch(opset, ("batch", 2, 6, 16), com_example=1)
    sketch.nodes.append(helper.make_node("Relu", ["x"], ["start"], name="start"))
    inputs = {"GridSample": ("start", sketch.weight(1, 3, 3, 2)), "RotaryEmbedding": ("start", *(sketch.weight(1, 6, 8),) * 2)}
    name = sketch.add(operator, *inputs.get(operator, ("start",)), domain=domain, name="odd one")
    with pytest.raises(InputError, match=said) as caught:
        rewritten(sketch.model(name))
    assert caught.value.code == "VD3025" and "odd one" in str(caught.value) and operator in str(caught.value)


@pytest.mark.parametrize(("opset", "shape"), [(21, ("batch", 6, 8, 4)), (25, ("batch", 6, 5)), (22, ("batch", 6, "rows", 4))])
def test_a_group_normalization_by_channels_is_written_out(opset, shape):
    """Up to operator set 20 its factors are those of groups."""
    sketch = Sketch(opset, shape)
    normal = "x"
    for groups in (3, 1):
        normal = sketch.add("GroupNormalization", normal, sketch.weight(6), sketch.weight(6), num_groups=groups, epsilon=1e-3)
    before = sketch.model(sketch.add("Relu", normal))
    after, _ = rewritten(before)
    check(before, after, tuple(5 if isinstance(size, str) else size for size in shape[1:]))
    assert "GroupNormalization" not in counts(after) and after.opset_import[0].version == 20


@pytest.mark.parametrize("opset", [12, 26])
def test_an_operator_set_that_is_not_read_is_refused(opset):
    sketch = Sketch(opset)
    with pytest.raises(InputError, match=f"operator set {opset}") as caught:
        canonicalise(ir.from_proto(sketch.model(sketch.add("Relu", "x"))))
    assert caught.value.code == "VD3025"


@pytest.mark.parametrize(
    ("steps", "guarded"),
    [
        ([], False),
        ([("Mul", 0.5)], False),
        ([("Mul", 0.5), ("Add", np.ones((6, 6)))], False),
        ([("Div", 2.0), ("Add", np.full((6, 6), -3.0))], False),
        ([("Add", np.where(CORNER, 0, -np.inf)), ("Mul", 0.5)], True),
        ([("Add", np.where(CORNER, 0, np.nan))], True),
        ([("Mul", np.ones(6))], True),
        ([("Sqrt", None)], True),
    ],
)
def test_a_guard_against_nan_goes_where_scores_are_finite(steps, guarded):
    sketch = Sketch(20)
    turned = sketch.add("Transpose", sketch.add("Abs", "x"), perm=[0, 2, 1])
    scores = sketch.add("MatMul", sketch.add("Abs", "x"), turned)
    for operator, numbers in steps:
        operands = () if numbers is None else (sketch.constant(np.asarray(numbers, np.float32)),)
        scores = sketch.add(operator, scores, *operands)
    softmax = sketch.add("Softmax", scores)
    test, zero = sketch.add("IsNaN", softmax), sketch.constant(np.float32(0))
    counted, _ = sketched(sketch, sketch.add("MatMul", sketch.add("Where", test, zero, softmax), "x"))
    assert counted["Where"] == counted["IsNaN"] == guarded


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_that_takes_the_tokens_first_takes_the_batch_first(bias):
    sketch = Sketch(17)
    product = sketch.add("MatMul", sketch.add("Transpose", "x", perm=[1, 0, 2]), sketch.weight(16, 8))
    product = sketch.add("Add", product, sketch.weight(8)) if bias else product
    counted, done = sketched(sketch, sketch.add("Relu", sketch.add("Transpose", product, perm=[1, 0, 2])))
    assert counted == {"MatMul": 1, "Relu": 1} | ({"Add": 1} if bias else {})
    assert "batch-first" in names_of(done)
