"""The sizes that an engine is built for, without TensorRT."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vitdeploy.backends.tensorrt.profile import find_capabilities, make_profile, read_capability
from vitdeploy.errors import InputError, UsageError
from vitdeploy.recipe import CompileConfig

FILE = Path("model.onnx")


def config(**settings):
    return CompileConfig(backend="tensorrt", **settings)


def graph(*shapes):
    return SimpleNamespace(inputs=[SimpleNamespace(name=f"in{index}", shape=shape) for index, shape in enumerate(shapes)])


def test_least_usual_and_largest_are_three_sizes():
    profile = make_profile(graph(("N", 3, 8, 9), (4, 5), ("N", 7)), config(usual_batch=4, largest_batch=16), FILE)
    assert profile == {"in0": ((1, 3, 8, 9), (4, 3, 8, 9), (16, 3, 8, 9)), "in2": ((1, 7), (4, 7), (16, 7))}


def test_one_batch_is_all_three():
    assert make_profile(graph(("N", 3)), config(batch=5), FILE) == {"in0": ((5, 3),) * 3}


def test_a_fixed_batch_needs_none_and_takes_no_other():
    assert make_profile(graph((4, 3)), config(), FILE) == make_profile(graph((4, 3)), config(batch=4), FILE) == {}
    with pytest.raises(UsageError, match="batch 4, not 2") as caught:
        make_profile(graph((4, 3)), config(batch=2), FILE)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize(
    ("shape", "said"), [(None, "size unknown"), (("N", 3, "H", 9), "N x 3 x H x 9"), ((1, ""), "1 x \\?"), ((), "size ;")]
)
def test_nothing_but_the_batch_may_vary(shape, said):
    with pytest.raises(InputError, match=said) as caught:
        make_profile(graph(shape), config(), FILE)
    assert (caught.value.code, caught.value.file) == ("VD3026", "model.onnx")


@pytest.mark.parametrize(("text", "numbers"), [("8.9", (8, 9)), ("12.0", (12, 0)), ("7.5", (7, 5))])
def test_capabilities_are_two_numbers(text, numbers):
    assert read_capability(text) == numbers


@pytest.mark.parametrize("text", ["", "8", "89", "8.", ".9", "8.10", "100.0", "8.9 ", "sm_89"])
def test_what_is_no_capability(text):
    with pytest.raises(UsageError) as caught:
        read_capability(text)
    assert caught.value.code == "VD2003"


def test_the_librarys_own_capabilities():
    members = {"NONE": 0, "CURRENT": 1, "SM75": 2, "SM89": 3, "SM120": 4}
    trt = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members), __version__="1.2")
    assert find_capabilities(trt, ("12.0", "7.5", "12.0")) == {"12.0": 4, "7.5": 2}
    with pytest.raises(UsageError, match=r"1\.2 does not compile for compute capability 8\.0") as caught:
        find_capabilities(trt, ("8.0",))
    assert (caught.value.code, caught.value.fix) == ("VD2011", "choose from: 7.5, 8.9, 12.0")
