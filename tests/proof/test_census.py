"""Comparing a plan with kernels: pure bookkeeping, no engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.backends.base import Kernel
from vitdeploy.errors import MachineError
from vitdeploy.proof.census import Plan, census, require

INTEGER = ("int8", "int8-dynamic")


def gemm(name, precision="int8", *, kind="QGemm", fallback=False):
    return Kernel(name, kind, "gemm", precision, fallback)


def test_all_as_planned():
    found = census(
        Plan(gemms=("a", "b"), dynamic=("c",), attention=("s",)),
        [
            gemm("a"),
            gemm("b"),
            gemm("c", "int8-dynamic"),
            Kernel("s", "QLinearMatMul", "attention", "int8"),
            gemm("head", "fp32"),
        ],
        "onnxruntime",
    )
    assert found.planned == found.executed == {"gemms": 2, "dynamic": 1, "attention": 1}
    assert found.missing == found.fallbacks == found.reasons == ()
    assert list(found.counts.items()) == [("gemm/int8", 2), ("attention/int8", 1), ("gemm/fp32", 1), ("gemm/int8-dynamic", 1)]
    require(found)


def test_missing_are_named_in_the_plans_order():
    found = census(Plan(gemms=("d", "a", "b"), attention=("s",)), [gemm("a"), gemm("b", "fp32"), gemm("d", "bf16")], "openvino")
    assert found.missing == ("d", "b", "s")
    assert found.executed == {"gemms": 1, "dynamic": 0, "attention": 0}


def test_error_names_three_and_counts_all():
    names = tuple("abcdef")
    wrong = Kernel("", "Gemm", "gemm", "fp32", True, "it needs an int32 bias")
    found = census(Plan(gemms=names), [wrong._replace(name=name) for name in names[1:]], "onnxruntime")
    with pytest.raises(MachineError) as caught:
        require(found)
    assert caught.value.code == "VD4009"
    assert caught.value.message.startswith("onnxruntime: 6 of 6 layers planned for 8 bits do not run in them: a, b, c, ... (")
    assert "no kernel of that name" in caught.value.message
    assert "int32" in caught.value.message
    assert "--backend onnxruntime" in caught.value.fix


def test_float_on_quantized_inputs_is_told_even_when_not_planned():
    found = census(Plan(), [gemm("a", "fp32", kind="MatMul", fallback=True)], "onnxruntime")
    assert (found.missing, found.fallbacks) == ((), ("a",))
    require(found)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (gemm("a", "fp32", fallback=True)._replace(reason="it needs an int32 bias"), "it needs an int32 bias"),
        (gemm("a", "fp32", fallback=True), "does not recognise"),
        (gemm("a", "fp32"), "not quantized in the file"),
        (gemm("b"), "no kernel of that name"),
    ],
)
@pytest.mark.parametrize("part", ["gemms", "dynamic", "attention"])
def test_likely_cause(kernel, part, words):
    (reason,) = census(Plan(**{part: ("a",)}), [kernel], "openvino").reasons
    assert words in reason


def test_nameless_kernels_answer_for_nodes_without_one():
    kernels = [gemm(""), gemm("", "int8-dynamic"), gemm("", "fp32"), gemm("c", "fp32")]
    found = census(Plan(gemms=("a", "b", "c", "d"), attention=("s",)), kernels, "openvino")
    assert found.missing == ("c", "d", "s")  # c is known to be float, a and b are taken for the two, s has another role


def test_one_of_two_kernels_of_a_name_in_float_is_not_int8():
    assert census(Plan(gemms=("a",)), [gemm("a"), gemm("a", "fp32")], "onnxruntime").missing == ("a",)


def test_what_is_no_product_does_not_count():
    found = census(Plan(gemms=("a",)), [Kernel("a", "QuantizeLinear", "other", "int8")], "onnxruntime")
    assert found.counts == {}
    assert found.missing == ("a",)


names = st.lists(st.sampled_from("abcdefgh"), unique=True).map(tuple)
kernels = st.builds(
    Kernel,
    name=st.sampled_from(["", *"abcdefgh"]),
    kind=st.sampled_from(["MatMul", "Gemm", "QGemm"]),
    role=st.sampled_from(["gemm", "attention", "conv", "other"]),
    precision=st.sampled_from(["int8", "int8-dynamic", "fp32", "bf16", "other"]),
    fallback=st.booleans(),
)


@given(names, st.lists(kernels))
def test_every_planned_node_is_executed_or_missing(planned, ran):
    half = len(planned) // 2
    found = census(Plan(gemms=planned[:half], attention=planned[half:]), ran, "openvino")
    assert sum(found.executed.values()) + len(found.missing) == sum(found.planned.values()) == len(planned)
    assert set(found.missing) <= set(planned)
    assert bool(found.missing) == bool(found.reasons)
    assert sum(found.counts.values()) == sum(kernel.role != "other" for kernel in ran)


@given(names, st.lists(kernels))
def test_more_int8_kernels_than_there_are_never_count(planned, ran):
    found = census(Plan(gemms=planned), ran, "openvino")
    products = [kernel for kernel in ran if kernel.role != "other"]
    assert found.executed["gemms"] <= sum(kernel.precision in INTEGER for kernel in products)
