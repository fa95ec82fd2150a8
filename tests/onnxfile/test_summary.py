"""The graph as the onnx package reads it, from headers alone; hostile files end in VD3011 and nothing else."""

from __future__ import annotations

import collections
import random
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.onnxfile import wire
from vitdeploy.onnxfile.model import DTYPES, Port
from vitdeploy.onnxfile.summary import OnnxGraph, list_files, read_graph
from vitdeploy.onnxfile.wire import encode_field as message
from vitdeploy.onnxfile.wire import encode_varint


def by_onnx(path: Path) -> OnnxGraph:
    """The same facts as the onnx package tells them."""
    model = onnx.load(path, load_external_data=False)
    operators: collections.Counter[str] = collections.Counter()
    elements: collections.Counter[str] = collections.Counter()
    tensors, subgraphs, external = 0, 0, []

    def see_tensor(tensor: TensorProto) -> None:
        nonlocal tensors
        tensors += 1
        elements[DTYPES[tensor.data_type]] += int(np.prod(tensor.dims, dtype=np.int64))
        external.extend(entry.value for entry in tensor.external_data if entry.key == "location")

    def see_node(node: onnx.NodeProto) -> None:
        nonlocal subgraphs
        operators[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                see_tensor(tensor)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                subgraphs += 1
                see_graph(graph)

    def see_graph(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            see_tensor(tensor)
        for node in graph.node:
            see_node(node)

    def port(value: onnx.ValueInfoProto) -> Port:
        tensor = value.type.tensor_type
        axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim)
        return Port(value.name, DTYPES.get(tensor.elem_type, ""), axes if tensor.HasField("shape") else None)

    see_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            see_node(node)
    names = {tensor.name for tensor in model.graph.initializer}
    return OnnxGraph(
        name=model.graph.name,
        inputs=tuple(port(value) for value in model.graph.input if value.name not in names),
        outputs=tuple(port(value) for value in model.graph.output),
        operators=dict(operators),
        elements=dict(elements),
        parameters=sum(n for kind, n in elements.items() if kind not in ("int64", "bool", "string")),
        tensors=tensors,
        external=tuple(dict.fromkeys(external)),
        subgraphs=subgraphs,
        functions=len(model.functions),
    )


def same(path: Path) -> OnnxGraph:
    graph = read_graph(path)
    assert msgspec.structs.replace(graph, external=()) == msgspec.structs.replace(by_onnx(path), external=())
    assert set(graph.external) == set(by_onnx(path).external)
    assert list(graph.operators.values()) == sorted(graph.operators.values(), reverse=True)
    assert msgspec.json.decode(msgspec.json.encode(graph), type=OnnxGraph) == graph
    return graph


@pytest.mark.parametrize("fixture", ["tiny_artifact", "tiny_static", "tiny_headless", "tiny_bytes"])
def test_our_exports(fixture: str, request: pytest.FixtureRequest) -> None:
    artifact = request.getfixturevalue(fixture)
    graph = same(artifact.model)
    assert graph.dynamic_batch == (fixture != "tiny_static")
    assert not graph.quantization
    assert not graph.external
    assert graph.inputs[0].name == "pixels"
    assert graph.outputs[0].name == artifact.spec.output


def build(tmp_path: Path, nodes: list[onnx.NodeProto], initializers: list[TensorProto], **options: object) -> Path:
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, None])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", ports, out, initializers)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, **options), path)
    return path


def everything(tmp_path: Path) -> Path:
    """Q/DQ, another domain, a sub-graph, a constant, a function, packed sizes and half precision."""
    weight = numpy_helper.from_array(np.zeros((4, 5), np.int8), "w")
    half = numpy_helper.from_array(np.zeros((2, 3, 4), np.float16), "h")
    scale = numpy_helper.from_array(np.ones((), np.float32), "s")
    inner = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "inner", [], [], [scale])
    constant = numpy_helper.from_array(np.arange(7), "")
    opset = helper.make_opsetid("", 20)
    function = helper.make_function("mine", "F", ["a"], ["b"], [helper.make_node("Erf", ["a"], ["b"])], [opset])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["dw"]),
        helper.make_node("MatMulInteger", ["x", "w"], ["m"]),
        helper.make_node("QLinearAdd", ["x"], ["q"], domain="com.microsoft"),
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("If", ["x"], ["i"], then_branch=inner, else_branch=inner),
        helper.make_node("F", ["x"], ["y"], domain="mine"),
    ]
    return build(tmp_path, nodes, [weight, half, scale], functions=[function])


def test_everything_at_once(tmp_path: Path) -> None:
    graph = same(everything(tmp_path))
    assert graph.quantization == {"DequantizeLinear": 1, "MatMulInteger": 1, "com.microsoft::QLinearAdd": 1}
    assert (graph.subgraphs, graph.functions, graph.nodes) == (2, 1, 9)
    assert graph.elements == {"float16": 24, "int8": 20, "int64": 7, "float32": 3}
    assert graph.parameters == 47
    assert graph.inputs == (Port("x", "float32", ("batch", 3, "")),)
    assert graph.outputs == (Port("y", "float32", None),)


def test_external_data_is_not_needed(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    path = build(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.data", size_threshold=0)
    (tmp_path / "model.data").unlink()
    graph = same(path)
    assert graph.external == ("model.data",)
    assert graph.parameters == 4096


def test_initializers_among_the_inputs(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((3,), np.float32), "w")
    path = build(tmp_path, [helper.make_node("Add", ["x", "w"], ["y"])], [weight])
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    onnx.save(model, path)
    assert [port.name for port in same(path).inputs] == ["x"]


HEAD = b"\x08\x0a"  # ir_version 10
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no graph": (HEAD + b"\x12\x01a", "holds 0 graphs"),
    "two graphs": (HEAD + message(7, b"") * 2, "holds 2 graphs"),
    "length past the end": (HEAD + b"\x3a\x7f\x00", "reaches past the end"),
    "length of 64 bits": (HEAD + b"\x3a" + b"\xff" * 9 + b"\x01", "reaches past the end"),
    "endless number": (HEAD + b"\x3a" + b"\xff" * 12, "too long"),
    "cut number": (HEAD + b"\x3a\xff", "cut off"),
    "inner length past the outer": (HEAD + message(7, b"\x0a\x7f"), "reaches past the end"),
    "group": (HEAD + message(7, b"\x0b"), "unknown wire type 3"),
    "long name": (HEAD + message(7, message(2, b"n" * 5000)), "a name of 5,000 bytes"),
    "name that is no text": (HEAD + message(7, message(1, message(4, b"\xff\xfe"))), "utf-8"),
    "impossible sizes": (HEAD + message(7, message(5, b"\x08" + encode_varint(1 << 62) + b"\x10\x01")), "impossible"),
    "negative size": (HEAD + message(7, message(5, b"\x08" + b"\xff" * 9 + b"\x01")), "impossible"),
    "axes": (HEAD + message(7, message(5, b"\x08\x01" * 65)), "more than 64 axes"),
    "packed axes": (HEAD + message(7, message(5, message(1, b"\x01" * 700))), "more than 64 axes"),
    "axes of an input": (HEAD + message(7, message(11, message(2, message(1, message(2, message(1, b"") * 65))))), "64 axes"),
    "operators": (
        HEAD + message(7, b"".join(message(1, message(4, str(n).encode())) for n in range(10_001))), "names of one kind",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    content, says = HOSTILE[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_graph(path)
    assert caught.value.code == "VD3011"


def test_too_many_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_FIELDS", 1000)
    path = tmp_path / "model.onnx"
    path.write_bytes(HEAD + message(7, b"\x18\x00" * 1001))
    with pytest.raises(InputError, match="more than 1,000 fields"):
        read_graph(path)


def test_deep_nesting_costs_no_stack(tmp_path: Path) -> None:
    inside = b""
    for _ in range(20_000):
        graph = message(1, message(5, message(6, inside)))
        if len(graph) > 1_000_000:
            break
        inside = graph
    path = tmp_path / "model.onnx"
    path.write_bytes(HEAD + message(7, inside))
    assert read_graph(path).subgraphs > 5000


def test_numbers_in_the_place_of_messages_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = b"\x08\x01\x28\x01\x10\x01" + message(11, b"\x0a\x01?\x10\x01") + message(5, b"\x40\x01\x68\x01")
    path.write_bytes(HEAD + message(7, graph))
    graph = read_graph(path)
    assert graph.inputs == (Port("?", "", None),)
    assert graph.tensors == 1


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_graph(tmp_path / "a.onnx")
    assert caught.value.code == "VD3002"


@pytest.mark.parametrize("turns", [300, pytest.param(1500, marks=pytest.mark.slow)])
def test_changed_and_cut_bytes_never_escape(tmp_path: Path, turns: int) -> None:
    source = everything(tmp_path).read_bytes()
    dice, path, ends = random.Random(0), tmp_path / "m.onnx", collections.Counter[str]()
    begin = time.monotonic()
    for turn in range(turns):
        raw = bytearray(source)
        if turn % 3 == 0:
            del raw[dice.randrange(len(raw)) :]
        for _ in range(dice.randrange(1, 6)):
            if raw:
                raw[dice.randrange(len(raw))] = dice.choice((0, 1, 8, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        path.write_bytes(bytes(raw))
        try:
            msgspec.json.encode(read_graph(path))
            ends["read"] += 1
        except VitdeployError as exc:
            ends[exc.code] += 1
    assert ends["read"] > turns / 30
    assert ends["VD3011"] > turns / 3
    assert time.monotonic() - begin < 60


def test_all_files_of_a_model_are_listed_whatever_their_names(tmp_path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    external_data_helper.set_external_data(tensor, "parts/weights of it.bin")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    path = tmp_path / "net.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([node], "g", [x], [y], [tensor])).SerializeToString())
    (tmp_path / "net.onnx.notes").write_text("of somebody")
    assert list_files(path) == (path, tmp_path / "parts" / "weights of it.bin")
