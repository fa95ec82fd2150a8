"""The lowest version of the IR: what a file says is what its contents need, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.onnxfile import check, versions
from vitdeploy.onnxfile.reader import read

NEWEST = 13


def model(opset: int = 17, element: int = TensorProto.FLOAT, **more: object) -> onnx.ModelProto:
    """One Identity."""
    value = helper.make_tensor_value_info("x", element, [1]), helper.make_tensor_value_info("y", element, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value[0]], [value[1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=NEWEST, **more)


def lowest(proto: onnx.ModelProto, folder: Path) -> int:
    (folder / "a.onnx").write_bytes(proto.SerializeToString())
    return versions.find_lowest(read(folder / "a.onnx"))


@pytest.mark.parametrize("opset", range(9, 27))
def test_an_operator_set_needs_the_version_of_its_release(opset: int, tmp_path: Path) -> None:
    assert lowest(model(opset), tmp_path) == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def test_weights_that_are_no_inputs_need_version_4(tmp_path: Path) -> None:
    assert lowest(model(7), tmp_path) == 4


@pytest.mark.parametrize(
    ("element", "version"),
    [
        (TensorProto.FLOAT16, 8),
        (TensorProto.BFLOAT16, 8),
        (TensorProto.FLOAT8E4M3FN, 9),
        (TensorProto.INT4, 10),
        (TensorProto.FLOAT4E2M1, 11),
        (TensorProto.FLOAT8E8M0, 12),
        (TensorProto.INT2, 13),
    ],
)
@pytest.mark.parametrize("where", ["port", "weight", "cast", "inside"])
def test_an_element_type_needs_the_version_that_brought_it(element: int, version: int, where: str, tmp_path: Path) -> None:
    proto = model(17, element if where == "port" else TensorProto.FLOAT)
    if where == "weight":
        proto.graph.initializer.append(TensorProto(name="w", data_type=element, dims=[2], raw_data=bytes(4)))
    elif where == "inside":
        proto.graph.value_info.append(helper.make_tensor_value_info("z", element, [1]))
    elif where == "cast":
        proto.graph.node.append(helper.make_node("Cast", ["x"], ["z"], to=element))
    assert lowest(proto, tmp_path) == version


def test_functions_need_version_8_and_overloads_10(tmp_path: Path) -> None:
    body, imports = [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 13)]
    function = helper.make_function("mine", "F", ["a"], ["b"], body, imports)
    assert lowest(model(13), tmp_path) == 7
    assert lowest(model(13, functions=[function]), tmp_path) == 8
    function.overload = "second"
    assert lowest(model(13, functions=[function]), tmp_path) == 10


def test_what_is_newer_than_the_table_keeps_its_version(tmp_path: Path) -> None:
    assert lowest(model(29), tmp_path) == NEWEST
    assert lowest(model(17, 99), tmp_path) == NEWEST


@pytest.mark.parametrize("said", [3, 9, NEWEST])
def test_a_written_file_says_what_it_needs_and_is_else_the_same(said: int, tmp_path: Path) -> None:
    proto = model(20)
    proto.ir_version = said
    path = tmp_path / "a.onnx"
    path.write_bytes(proto.SerializeToString())
    versions.settle(path)
    proto.ir_version = 9
    assert onnx.load(path) == proto


def weighty(folder: Path, location: str = "w.data") -> tuple[Path, onnx.ModelProto]:
    """A model whose large weight lies beside it."""
    proto = model(17)
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w"))
    path = folder / "source" / "a.onnx"
    path.parent.mkdir()
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0)
    return path, proto


def test_a_file_of_a_version_that_it_does_not_need_is_repaired(tmp_path: Path) -> None:
    path, proto = weighty(tmp_path)
    shown, notes = check.sanitize(path, tmp_path / "new")
    why = "nothing in the file needs more than 8, and older engines refuse it"
    assert notes == (f"version {NEWEST} of the IR repaired: {why}",)
    again = onnx.load(shown)
    assert again.ir_version == 8
    assert (numpy_helper.to_array(again.graph.initializer[0]) == np.arange(1000)).all()
    assert again.graph.node == proto.graph.node
    assert check.sanitize(shown, tmp_path / "third") == (shown, ())


def test_a_file_that_needs_its_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(model(17, TensorProto.INT2).SerializeToString())
    assert check.sanitize(path, tmp_path / "new") == (path, ())


def test_the_last_of_two_versions_counts_and_is_the_one_that_is_lowered(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(model(17).SerializeToString() + onnx.ModelProto(ir_version=12).SerializeToString())
    shown, _ = check.sanitize(path, tmp_path / "new")
    assert onnx.load(shown).ir_version == 8


def test_a_copy_has_its_data_and_the_lowest_version_also_where_no_repair_was_needed(tmp_path: Path) -> None:
    path, proto = weighty(tmp_path, "deep.bin")
    proto.ir_version = 10
    onnx.save(proto, path, save_as_external_data=True, location="deep.bin", size_threshold=0)
    assert check.sanitize(path, tmp_path / "new") == (path, ())
    check.copy(path, tmp_path / "out" / "model.onnx")
    again = onnx.load(tmp_path / "out" / "model.onnx")
    assert again.ir_version == 8
    assert (numpy_helper.to_array(again.graph.initializer[0]) == np.arange(1000)).all()
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["deep.bin", "model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx", "engine.json", "./engine.json"])
def test_data_under_a_name_that_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    path, _ = weighty(tmp_path, name)
    with pytest.raises(check.InputError, match="keeps data in a file named") as caught:
        check.copy(path, tmp_path / "out" / "model.onnx", taken=("engine.json",))
    assert caught.value.code == "VD3026"
    assert not (tmp_path / "out").exists()
