"""Bad ONNX files: every one is refused in one line with its code, before any engine or the onnx package sees it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.seeds import seed
from vitdeploy.errors import VitdeployError
from vitdeploy.onnxfile import check, external, reader, rules

Change = Callable[[onnx.ModelProto], object]


def refused(path: Path, code: str, *says: str) -> VitdeployError:
    with pytest.raises(VitdeployError) as caught:
        check.check_file(path)
    assert caught.value.code == code, caught.value
    assert caught.value.file == str(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    for text in says:
        assert text in caught.value.message
    with pytest.raises(VitdeployError, match=r".") as again:
        check.sanitize(path, path.parent / "new")
    assert again.value.code == code
    assert not (path.parent / "new").exists()
    return caught.value


def changed(path: Path, change: Change, form: str = "fp32") -> Path:
    model = onnx.ModelProto.FromString(seed(form))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def whole(path: Path) -> onnx.ModelProto:
    """The ViT with large tensors in ``w.data``, as it lies on disk."""
    model = onnx.ModelProto.FromString(seed("fp32"))
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=1024)
    return onnx.load(path, load_external_data=False)


def outside(model: onnx.ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)


def say(tensor: TensorProto, **entries: str) -> None:
    for key, value in entries.items():
        said = [entry for entry in tensor.external_data if entry.key == key]
        (said[0] if said else tensor.external_data.add(key=key)).value = value


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "VD3002"),
        (b"version https://git-lfs.github.com/spec/v1\n", "VD3003"),
        (b"<!doctype html><html>", "VD3004"),
        (b"PK\x03\x04", "VD3005"),
        (bytes(range(1, 256)), "VD3005"),
        (b"\x08\x0a\x3a\x7f", "VD3011"),
        (b"\x08\x0a\x12\x01a", "VD3011"),
        (seed("fp32")[: len(seed("fp32")) // 2], "VD3011"),
        (b"\x08\x0a" + random.Random(0).randbytes(400), "VD3011"),
    ],
    ids=["empty", "lfs", "html", "zip", "random", "header", "no graph", "half", "noise"],
)
def test_files_of_another_kind(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    refused(path, code)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "a.onnx", "VD3001")


# data beside the model


@pytest.mark.parametrize(
    "location",
    ["../w.data", "/etc/passwd", "/dev/zero", "", "a/../../w.data", "..", "..\\w.data", "*/_ORT_MEM_ADDR_/*", "w\0.data"],
)
def test_data_elsewhere(location: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.onnx"
    model = whole(path)
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    say(outside(model), location=location)
    path.write_bytes(model.SerializeToString())
    refused(path, "VD7001", "its external data")


def test_links_that_lead_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.onnx"
    model, data = whole(path), tmp_path / "in" / "w.data"
    data.rename(tmp_path / "secret")
    data.symlink_to("../secret")
    refused(path, "VD7001", "is a link that leads out")
    data.unlink()
    (tmp_path / "away").mkdir()
    (tmp_path / "secret").rename(tmp_path / "away" / "w.data")
    (tmp_path / "in" / "parts").symlink_to(tmp_path / "away")
    for tensor in model.graph.initializer:
        if tensor.external_data:
            say(tensor, location="parts/w.data")
    path.write_bytes(model.SerializeToString())
    refused(path, "VD7001", "is a link that leads out")


def test_a_loop_of_links_a_pipe_and_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    whole(path)
    data = tmp_path / "w.data"
    data.unlink()
    data.symlink_to("w.data")
    refused(path, "VD7001", "loop")
    data.unlink()
    os.mkfifo(data)
    refused(path, "VD7001", "is not a plain file")
    data.unlink()
    data.mkdir()
    refused(path, "VD7001", "is not a plain file")


def test_a_false_cache(tmp_path: Path) -> None:
    """A folder called ``snapshots`` opens no door to anything but the blobs beside it."""
    folder = tmp_path / "snapshots" / "x"
    folder.mkdir(parents=True)
    path = folder / "a.onnx"
    whole(path)
    (folder / "w.data").rename(tmp_path / "secret")
    (folder / "w.data").symlink_to(tmp_path / "secret")
    refused(path, "VD7001")
    (tmp_path / "blobs").symlink_to(tmp_path)
    (folder / "w.data").unlink()
    (folder / "w.data").symlink_to(tmp_path / "blobs" / "secret")
    refused(path, "VD7001")


def test_data_missing_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    whole(path)
    size = (tmp_path / "w.data").stat().st_size
    os.truncate(tmp_path / "w.data", size - 1)
    refused(path, "VD3027", f"holds {size - 1:,} bytes", f"needs {size:,}")
    (tmp_path / "w.data").unlink()
    refused(path, "VD3027", "'w.data' is missing", f"({size:,} bytes)")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": "-4096"}, "the offset '-4096', which is impossible"),
        ({"offset": str(1 << 63)}, "which is impossible"),
        ({"offset": "9" * 18}, "needs 1,000,000,000,000,0"),
        ({"offset": "1e3"}, "which is impossible"),
        ({"offset": " 0"}, "which is impossible"),
        ({"offset": "٣"}, "which is impossible"),
        ({"length": str(1 << 40)}, "is said to be 1,099,511,627,776"),
        ({"length": "-1"}, "which is impossible"),
        ({"length": "0"}, "is said to be 0"),
        ({"offset": "1"}, "shares a part of its bytes"),
        ({"basepath": "elsewhere"}, "has external data in the folder 'elsewhere'"),
        ({"prepacked_0": "x"}, "a location, offset and length are known"),
        ({"location": "a.onnx"}, "names itself as its external data"),
    ],
)
def test_impossible_places(entries: dict[str, str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = whole(path)
    say(outside(model), **entries)
    path.write_bytes(model.SerializeToString())
    refused(path, "VD3027", says)


def test_the_same_key_twice_and_data_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = whole(path)
    outside(model).external_data.add(key="offset", value="0")
    path.write_bytes(model.SerializeToString())
    refused(path, "VD3027", "says 'location'")
    model = whole(path)
    outside(model).raw_data = b"1234"
    path.write_bytes(model.SerializeToString())
    refused(path, "VD3027", "both inside and beside")


def test_the_same_bytes_over_and_over(tmp_path: Path) -> None:
    """Tied weights may share; a bomb may not."""
    path = tmp_path / "a.onnx"
    model = whole(path)
    for turn in range(200):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(outside(model))
        tensor.name = f"again{turn}"
        path.write_bytes(model.SerializeToString())
        if turn == 1:
            assert check.check_file(path).repairs == ()
    refused(path, "VD3027", "bytes are made of 'w.data', which holds")
    assert external.MOST_REUSE < 200


def test_another_spelling_is_the_same_file(tmp_path: Path) -> None:
    """Use over and over does not hide behind ``./``, or behind a link."""
    path = tmp_path / "a.onnx"
    model = whole(path)
    (tmp_path / "link.data").symlink_to("w.data")
    for turn in range(60):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(outside(model))
        tensor.name = f"again{turn}"
        say(tensor, location="./" * turn + ("w.data", "link.data")[turn % 2])
        if turn == 1:
            path.write_bytes(model.SerializeToString())
            assert list(check.check_file(path).beside) == ["w.data", "./link.data"]
    path.write_bytes(model.SerializeToString())
    refused(path, "VD3027", "bytes are made of", "which holds")


def test_a_shared_part_in_another_spelling(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model = whole(path)
    say(outside(model), location="./w.data", offset="1")
    path.write_bytes(model.SerializeToString())
    refused(path, "VD3027", "shares a part of its bytes")


# tensors and graphs


def weight(model: onnx.ModelProto, name: str = "head.weight") -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def resized(*sizes: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        del weight(model).dims[:]
        weight(model).dims.extend(sizes)

    return change


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(each for each in model.graph.node if each.op_type == operator)


def nest(depth: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        body = helper.make_graph([], "body", [], [])
        for _ in range(depth):
            body = helper.make_graph([helper.make_node("If", ["head.bias"], [], then_branch=body)], "body", [], [])
        model.graph.node[0].attribute.append(helper.make_attribute("body", body))

    return change


def functions(count: int, calls: int, loop: bool = False) -> Change:
    """Each calls the next one many times: written out, they are calls ** count nodes."""

    def change(model: onnx.ModelProto) -> None:
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
        for n in range(count):
            last = n == count - 1
            name, domain = ("Identity", "") if last and not loop else (f"F{(n + 1) % count}", "mine")
            body = [helper.make_node(name, ["x"], [f"y{turn}"], domain=domain) for turn in range(calls)]
            model.functions.append(helper.make_function("mine", f"F{n}", ["x"], ["y0"], body, imports))
        model.graph.node.append(helper.make_node("F0", ["pixels"], ["called"], domain="mine"))

    return change


IMPOSSIBLE: dict[str, tuple[Change, str]] = {
    "negative size": (resized(-1, 16), "has a negative size: -1 x 16"),
    "size of 2^62": (resized(1 << 62), "is impossibly large"),
    "sizes that overflow": (resized(1 << 32, 1 << 32), "is impossibly large"),
    "no numbers": (resized(0, 16), "holds no numbers: 0 x 16"),
    "another size": (resized(5, 16), "is 5 x 16 of float32, 320 bytes, but holds 256"),
    "element type": (lambda m: setattr(weight(m), "data_type", 99), "has the element type 99"),
    "no element type": (lambda m: weight(m).ClearField("data_type"), "has the element type 0"),
    "data twice": (lambda m: weight(m).float_data.extend([1.0]), "holds its data 2 times"),
    "data of another type": (
        lambda m: (weight(m).ClearField("raw_data"), weight(m).int64_data.extend([1] * 64)), "in a field of another type",
    ),
    "data elsewhere": (lambda m: weight(m).MergeFromString(b"\x70\x02"), "has its data in place 2"),
    "IR version": (lambda m: setattr(m, "ir_version", 0), "version 0 of the IR"),
    "operator set": (lambda m: setattr(m.opset_import[0], "version", -1), "version -1 of the operator set ''"),
    "no operator": (lambda m: setattr(m.graph.node[3], "op_type", ""), "does not say its operator"),
    "undefined": (lambda m: node(m, "Gemm").input.__setitem__(0, "nobody"), "the Gemm 'head/Gemm' reads 'nobody'"),
    "undefined output": (lambda m: setattr(m.graph.output[0], "name", "nobody"), "its output 'nobody' is made by nothing"),
    "made twice": (lambda m: m.graph.node.append(node(m, "Conv")), "makes 'patch_embed/Conv_out', which exists already"),
    "made of a weight": (lambda m: node(m, "Gelu").output.__setitem__(0, "head.bias"), "makes 'head.bias', which exists"),
    "two weights of a name": (lambda m: m.graph.initializer.append(weight(m)), "two initializers have the name 'head.weight'"),
    "two inputs of a name": (lambda m: m.graph.input.append(m.graph.input[0]), "two inputs have the name 'pixels'"),
    "loop": (lambda m: node(m, "Transpose").input.__setitem__(0, "logits"), "its graph has a loop"),
    "own output": (lambda m: node(m, "Gelu").input.__setitem__(0, node(m, "Gelu").output[0]), "waits for its own output"),
    "no inputs": (lambda m: m.graph.ClearField("input"), "its graph has no inputs"),
    "no axes": (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "does not say its axes"),
    "attribute twice": (lambda m: node(m, "Gemm").attribute.append(node(m, "Gemm").attribute[0]), "attribute 'transB' twice"),
    "nesting": (nest(25), f"more than {rules.DEEPEST} deep"),
    "function of ONNX": (
        lambda m: m.functions.append(helper.make_function("", "Gelu", ["a"], ["a"], [], [])), "in the place of ONNX's operator",
    ),
    "function that calls itself": (functions(3, 1, loop=True), "calls itself"),
    "functions that explode": (functions(12, 10), "written out, are 1,"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_graphs(name: str, tmp_path: Path) -> None:
    change, says = IMPOSSIBLE[name]
    refused(changed(tmp_path / "a.onnx", change), "VD3027", says)


def test_a_reader_would_merge_two_values_of_one_attribute(tmp_path: Path) -> None:
    one = helper.make_attribute("value", numpy_helper.from_array(np.ones(2, np.float32), "t")).SerializeToString()
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "u").SerializeToString()
    raw = one + bytes([5 << 3 | 2, len(tensor)]) + tensor
    node = b"\x12\x01c\x22\x08Constant" + bytes([5 << 3 | 2, len(raw)]) + raw
    graph = bytes([1 << 3 | 2, len(node)]) + node
    path = tmp_path / "a.onnx"
    path.write_bytes(b"\x08\x0a" + bytes([7 << 3 | 2]) + bytes([len(graph)]) + graph)
    refused(path, "VD3027", "holds two values in the place of one")


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("Gelu", "com.evil"),
        ("PyOp", "com.microsoft"),
        ("EPContext", "com.microsoft"),
        ("Gelu", "ai.onnx.contrib"),
        ("Gelu", "pkg.onnxscript.torch_lib"),
        ("TRTEngine", "trt.plugins"),
        ("Gelu", "\x1b[31m::error::"),
    ],
)
def test_foreign_operators(operator: str, domain: str, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        gelu = node(model, "Gelu")
        gelu.op_type, gelu.domain = operator, domain

    error = refused(changed(tmp_path / "a.onnx", change), "VD7005", "'blocks.0.mlp/Gelu'", operator)
    assert error.exit_code == 7
    assert "\x1b" not in str(error)


def test_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_NODES", 20)
    path = changed(tmp_path / "a.onnx", lambda m: None)
    refused(path, "VD3027", "holds more than 20")
    monkeypatch.undo()
    monkeypatch.setattr(rules, "MOST_EXPANDED", 20)
    refused(path, "VD3027", "written out")
    monkeypatch.undo()
    monkeypatch.setattr(check, "LARGEST", 1000)
    refused(path, "VD3027", "protobuf ends at 1,000")
