"""The one reader: what the onnx package reads, once a file, and again when the file changes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.seeds import FORMS, seed
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.child import open_in_child
from vitdeploy.errors import InputError
from vitdeploy.onnxfile import check, reader, rules
from vitdeploy.onnxfile.model import DTYPES, Graph, Model, Node, Port, Tensor
from vitdeploy.onnxfile.nodes import read_nodes
from vitdeploy.onnxfile.reader import read
from vitdeploy.onnxfile.summary import read_graph
from vitdeploy.proof import golden


def agree(model: Model, truth: onnx.ModelProto) -> None:
    """Everything that the reader tells is what the onnx package tells."""
    assert (model.version, model.producer) == (truth.ir_version, f"{truth.producer_name} {truth.producer_version}".strip())
    assert model.opsets == [(opset.domain, opset.version) for opset in truth.opset_import]
    assert model.metadata == {entry.key: entry.value for entry in truth.metadata_props}
    agree_graph(model.main, truth.graph)
    assert len(model.functions) == len(truth.functions)
    for function, true in zip(model.functions, truth.functions, strict=True):
        assert function.key == (true.domain, true.name, true.overload)
        assert [port.name for port in function.inputs] == list(true.input)
        assert [port.name for port in function.outputs] == list(true.output)
        agree_nodes(function.nodes, true.node)


def agree_graph(graph: Graph, truth: onnx.GraphProto) -> None:
    assert graph.name == truth.name
    for ports, values in ((graph.inputs, truth.input), (graph.outputs, truth.output), (graph.values, truth.value_info)):
        assert ports == [port(value) for value in values]
    assert graph.initializers == [tensor.name for tensor in truth.initializer]
    for tensor in truth.initializer:
        agree_tensor(graph.tensors[tensor.name], tensor)
    small = [each for each in truth.initializer if each.data_type == TensorProto.INT64 and len(each.dims) < 2]
    for tensor in small:
        if not tensor.data_location and max(tensor.dims, default=1) <= 64:
            assert graph.constants[tensor.name] == tuple(numpy_helper.to_array(tensor).ravel())
    agree_nodes(graph.nodes, truth.node)


def agree_nodes(nodes: list[Node], truth: object) -> None:
    for node, true in zip(nodes, truth, strict=True):
        assert node.key == (true.domain, true.op_type, true.overload)
        assert node.name == (true.name or next(iter(true.output), ""))
        assert (node.inputs, node.outputs) == (tuple(true.input), tuple(true.output))
        assert node.attributes == [each.name for each in true.attribute]
        assert node.types == {each.name: each.type for each in true.attribute}
        assert node.numbers == {each.name: each.i for each in true.attribute if each.type == onnx.AttributeProto.INT}
        lists = {each.name: list(each.ints) for each in true.attribute if each.type == onnx.AttributeProto.INTS}
        assert lists == {name: node.integers[name] for name in lists}
        graphs = [graph for each in true.attribute for graph in (*([each.g] if each.HasField("g") else ()), *each.graphs)]
        for graph, body in zip(node.graphs, graphs, strict=True):
            agree_graph(graph, body)


def agree_tensor(tensor: Tensor, truth: TensorProto) -> None:
    assert (tensor.name, tensor.kind, tuple(tensor.sizes)) == (truth.name, truth.data_type, tuple(truth.dims))
    assert tensor.outside == truth.data_location
    assert {entry.key: entry.value for entry in tensor.external} == {entry.key: entry.value for entry in truth.external_data}
    if not tensor.outside:
        assert tensor.bytes == numpy_helper.to_array(truth).nbytes


def port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in tensor.shape.dim)
    return Port(value.name, DTYPES.get(tensor.elem_type, ""), axes if tensor.HasField("shape") else None)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_onnx_reads_it(form: str, tmp_path: Path) -> None:
    truth = onnx.ModelProto.FromString(seed(form))
    truth = onnx.shape_inference.infer_shapes(truth)
    assert truth.graph.value_info
    onnx.save(truth, tmp_path / "a.onnx")
    agree(read(tmp_path / "a.onnx"), truth)
    onnx.save(truth, tmp_path / "b.onnx", save_as_external_data=True, location="weights.data", size_threshold=64)
    agree(read(tmp_path / "b.onnx"), onnx.load(tmp_path / "b.onnx", load_external_data=False))


@pytest.mark.parametrize("fixture", ["tiny_artifact", "tiny_static", "tiny_headless", "tiny_bytes"])
def test_our_exports_are_read_as_onnx_reads_them(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture).model
    agree(read(path), onnx.load(path))
    assert read(path).producer.startswith("pytorch")


def test_graphs_in_graphs_functions_and_constants(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.ones((), np.float32), "s")
    deep = helper.make_graph([helper.make_node("Erf", ["x"], ["e"])], "deep", [], [])
    bodies = [helper.make_graph([helper.make_node("If", ["x"], ["z"], then_branch=deep)], name, [], [], [scale]) for name in "ab"]
    nodes = [
        helper.make_node("Constant", [], ["sizes"], value_ints=[1, -2, 3]),
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.arange(-1, 3), "")),
        helper.make_node("Own", ["x", "", "x"], ["y"], domain="mine", flag=-7, bodies=bodies, list=[4, 5]),
    ]
    function = helper.make_function(
        "mine", "Own", ["a"], ["b"], [helper.make_node("Erf", ["a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, None]) for name in "xy"]
    truth = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:]), functions=[function])
    helper.set_model_props(truth, {"key": "text", "empty": "", "long": "t" * 100_000})
    onnx.save(truth, tmp_path / "a.onnx")
    model = read(tmp_path / "a.onnx")
    agree(model, truth)
    assert model.main.constants == {"sizes": (1, -2, 3), "axes": (-1, 0, 1, 2)}
    assert [graph.depth for graph in model.graphs] == [0, 1, 1, 2, 2]


def test_every_cut_is_an_error(tiny_artifact: Artifact, tmp_path: Path) -> None:
    """However a download was cut, it is said so; nothing else escapes."""
    raw = tiny_artifact.model.read_bytes()
    for length in (1, 2, 3, 5, 9, 20, 100, len(raw) // 2, len(raw) - 1):
        path = tmp_path / "cut.onnx"
        path.write_bytes(raw[:length])
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.code in ("VD3005", "VD3011")


def test_graphs_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_NODES", 20)
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node("Own", [], [], domain="mine", bodies=[body] * 20)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [])), tmp_path / "a.onnx")
    with pytest.raises(InputError, match="holds more than 20 graphs") as caught:
        read(tmp_path / "a.onnx")
    assert caught.value.code == "VD3027"


# once a file


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often a file was walked, and how often the rules were gone through."""
    seen = {"walked": 0, "checked": 0}

    def walk(*args: object, _read=reader.read_stream) -> Model:
        seen["walked"] += 1
        return _read(*args)

    def enforce(model: Model, _enforce=rules.enforce) -> None:
        seen["checked"] += 1
        _enforce(model)

    monkeypatch.setattr(reader, "read_stream", walk)
    monkeypatch.setattr(rules, "enforce", enforce)
    monkeypatch.setattr(reader, "_kept", {})
    check._enforce.cache_clear()
    yield seen
    check._enforce.cache_clear()


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, so that no test has to wait."""
    monkeypatch.setattr(reader, "SETTLED_NS", -(1 << 62))


@pytest.mark.usefixtures("settled")
def test_a_file_is_walked_and_checked_once_for_all_steps(tiny_artifact: Artifact, counts: dict[str, int]) -> None:
    artifact = Artifact.open(tiny_artifact.folder)
    Artifact.open(tiny_artifact.model)
    with closing(open_in_child("onnxruntime", artifact, OpenConfig())) as runner:
        golden.of(runner, artifact)
    golden.make(artifact)
    read_graph(artifact.model)
    read_nodes(artifact.model)
    assert check.sanitize(artifact.model, tiny_artifact.folder / "never") == (artifact.model, ())
    assert counts == {"walked": 1, "checked": 1}


def test_opening_walks_once_even_what_was_written_a_moment_ago(tmp_path: Path, counts: dict[str, int]) -> None:
    (tmp_path / "a.onnx").write_bytes(seed("fp32"))
    Artifact.open(tmp_path / "a.onnx")
    assert counts == {"walked": 1, "checked": 1}


def other(raw: bytes) -> bytes:
    """A model of the same size that reads what nothing makes."""
    return raw.replace(b"positions", b"p0sitions", 1)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("way", ["in place", "in its place"])
def test_a_file_that_changed_is_checked_again(way: str, tmp_path: Path, counts: dict[str, int]) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(seed("fp32"))
    os.utime(path, ns=(0, 0))
    check.check_file(path)
    time.sleep(0.05)  # some ticks of the clock
    new = path if way == "in place" else tmp_path / "b.onnx"
    new.write_bytes(other(seed("fp32")))
    os.utime(new, ns=(0, 0))  # as if its time had not changed
    new.replace(path)
    with pytest.raises(InputError, match="which nothing makes"):
        check.check_file(path)
    assert counts == {"walked": 2, "checked": 2}


def test_what_was_written_a_moment_ago_is_never_taken_for_known(
    tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the clock a file may change twice, and tell no difference."""
    path, tick = tmp_path / "a.onnx", time.time_ns()
    monkeypatch.setattr(reader, "_identify", lambda _: (0, 0, 0, tick, tick))
    for turn in range(6):
        path.write_bytes((seed("fp32"), other(seed("fp32")))[turn % 2])
        if turn % 2:
            with pytest.raises(InputError, match="which nothing makes"):
                check.check_file(path)
        else:
            check.check_file(path)
    assert counts["walked"] == 6


@pytest.mark.usefixtures("settled")
def test_few_files_stay_in_memory(tmp_path: Path) -> None:
    for number in range(3 * reader.MOST_KEPT):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(seed("fp32"))
        assert read(path) is read(path)
        assert len(reader._kept) <= reader.MOST_KEPT
