"""Foreign ONNX files before an engine: what passes is untouched, what is repaired is the same model, what is refused is told."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.seeds import FORMS, seed
from vitdeploy import files
from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.onnxfile import check, operators

REPOSITORY = Path(__file__).parents[2]


def save(model: onnx.ModelProto, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, **options)
    return path


def vit(form: str = "fp32") -> onnx.ModelProto:
    return onnx.ModelProto.FromString(seed(form))


def beside(path: Path, size_threshold: int = 1024) -> Path:
    """The FP32 ViT with its larger tensors in ``weights.data``."""
    return save(vit(), path, save_as_external_data=True, location="weights.data", size_threshold=size_threshold)


def loaded(path: Path) -> onnx.ModelProto:
    """A model with its data inside, as if it had always been there."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    return model


def norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "LayerNormalization"]


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_model_is_left_alone(form: str, tmp_path: Path) -> None:
    path = save(vit(form), tmp_path / "a.onnx")
    assert check.sanitize(path, tmp_path / "new") == (path, ())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("fixture", ["tiny_artifact", "tiny_static", "tiny_bytes", "tiny_embedding"])
def test_our_exports_pass(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(fixture).model
    assert check.sanitize(model, tmp_path / "new") == (model, ())


def test_plain_external_data_is_left_alone(tmp_path: Path) -> None:
    path = beside(tmp_path / "a.onnx")
    assert check.sanitize(path, tmp_path / "new") == (path, ())
    assert {name: each.file for name, each in check.check_file(path).beside.items()} == {
        "weights.data": tmp_path / "weights.data"
    }


def test_the_crash_of_onnxruntime_is_repaired(tmp_path: Path) -> None:
    model = vit()
    for node in norms(model)[:2]:
        node.input[2] = ""
    path = save(model, tmp_path / "a.onnx")
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert notes == ("2 LayerNormalization with empty last inputs repaired: it would crash ONNX Runtime",)
    assert shown == tmp_path / "new" / "a.onnx"
    for node in norms(model)[:2]:
        del node.input[2]
    assert onnx.load(shown) == model
    assert check.sanitize(shown, tmp_path / "again") == (shown, ())
    pixels = np.zeros((1, 3, 16, 16), np.float32)
    assert onnxruntime.InferenceSession(shown).run(None, {"pixels": pixels})[0].shape == (1, 4)


def test_equal_files_give_equal_copies(tmp_path: Path) -> None:
    model = vit()
    norms(model)[0].input[2] = ""
    path = save(model, tmp_path / "a.onnx")
    digests = {files.sha256(check.sanitize(path, tmp_path / name)[0]) for name in ("one", "two")}
    assert len(digests) == 1


# a repaired file is the same model, for graphs of any shape


def names(prefix: str) -> st.SearchStrategy[str]:
    return st.integers(0, 400).map(lambda length: prefix * length)


@st.composite
def node(draw: st.DrawFn, number: int, depth: int) -> onnx.NodeProto:
    """A node of a function's own operator: any inputs, empty ones too, and maybe graphs inside."""
    inputs = draw(st.lists(st.sampled_from(("", "x", "", "w")), max_size=6))
    made = helper.make_node("Mine", inputs, [f"v{depth}_{number}"], draw(names("n")), domain="mine")
    if depth < 2 and draw(st.booleans()):
        count = draw(st.integers(0, 3))
        inner = [draw(node(index, depth + 1)) for index in range(count)]
        tensors = [numpy_helper.from_array(np.arange(draw(st.integers(1, 90)), dtype=np.float32), "inner")]
        body = helper.make_graph(inner, draw(names("b")), [], [], tensors)
        made.attribute.append(helper.make_attribute("body", body))
        made.attribute.append(helper.make_attribute("list", [body, body]))
    if draw(st.booleans()):
        made.attribute.append(helper.make_attribute("text", "t" * draw(st.integers(0, 300))))
    return made


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    nodes = [draw(node(number, 0)) for number in range(draw(st.integers(0, 4)))]
    bodies = [draw(node(number, 3)) for number in range(draw(st.integers(0, 3)))]
    for body in bodies:
        body.domain, body.op_type = "", "Relu"
        body.input.insert(0, "x")
        body.input[:] = ["x" if name == "w" else name for name in body.input]
    weight = numpy_helper.from_array(
        draw(st.binary(min_size=1, max_size=300)) and np.zeros(draw(st.integers(1, 80)), np.int8), "w"
    )
    function = helper.make_function("mine", "Mine", ["x"], [], bodies, [helper.make_opsetid("", 20)])
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    graph = helper.make_graph(nodes, "g", ports, [], [weight], doc_string=draw(names("d")))
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=9)


def strip(nodes) -> int:
    """Removes trailing empty inputs, as onnx sees them; how many nodes had some."""
    count = 0
    for each in nodes:
        before = len(each.input)
        while len(each.input) > 1 and not each.input[-1]:
            del each.input[-1]
        count += len(each.input) < before
        for attribute in each.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                count += strip(graph.node)
    return count


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models())
def test_only_those_inputs_are_stripped(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    shutil.rmtree(tmp_path / "new", ignore_errors=True)
    shown, notes = check.sanitize(path, tmp_path / "new")
    count = strip(model.graph.node) + sum(strip(function.node) for function in model.functions)
    assert sum(int(note.split()[0]) for note in notes) == count
    assert onnx.ModelProto.FromString(shown.read_bytes()) == model
    assert check.check_file(shown).repairs == ()


# data beside the model


def test_small_tensors_come_inside(tmp_path: Path) -> None:
    path = beside(tmp_path / "a.onnx", 0)
    with pytest.raises(Exception, match=r"[Ss]hape"):  # what onnxruntime makes of it
        onnxruntime.InferenceSession(path)
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert notes == ("19 small tensors beside the model repaired: engines need shapes inside of it",)
    assert loaded(shown) == vit()
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["a.onnx", "weights.data"]
    onnxruntime.InferenceSession(shown)
    kept = [tensor for tensor in onnx.load(shown, load_external_data=False).graph.initializer if tensor.data_location == 1]
    assert {tensor.name for tensor in kept} < {tensor.name for tensor in vit().graph.initializer}
    assert all(len(numpy_helper.to_array(tensor, str(shown.parent)).tobytes()) >= check.TINY for tensor in kept)


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard link", "symbolic link"])
def test_links_are_copied(link, tmp_path: Path) -> None:
    path = beside(tmp_path / "a.onnx")
    (tmp_path / "weights.data").rename(tmp_path / "blob")
    link(tmp_path / "blob", tmp_path / "weights.data")
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert notes == ("external data weights.data behind links repaired: engines disagree on them",)
    copy = tmp_path / "new" / "weights.data"
    assert not copy.is_symlink() and copy.stat().st_nlink == 1
    assert loaded(shown) == vit()
    assert shown.read_bytes() == path.read_bytes()


def cache(tmp_path: Path) -> Path:
    """A model as the Hugging Face cache lays it out."""
    repository = tmp_path / "models--org--vit"
    snapshot = repository / "snapshots" / "abc" / "onnx"
    beside(tmp_path / "flat" / "model.onnx")
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", "weights.data"):
        (tmp_path / "flat" / name).rename(repository / "blobs" / f"sha-{name}")
        (snapshot / name).symlink_to(Path("../../../blobs") / f"sha-{name}")
    return snapshot / "model.onnx"


def test_the_cache_of_hugging_face_is_copied(tmp_path: Path) -> None:
    path = cache(tmp_path)
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert notes == ("external data weights.data behind links repaired: engines disagree on them",)
    assert loaded(shown) == vit()


def test_a_link_to_the_model_alone(tmp_path: Path) -> None:
    beside(tmp_path / "there" / "a.onnx")
    (tmp_path / "here.onnx").symlink_to(tmp_path / "there" / "a.onnx")
    shown, notes = check.sanitize(tmp_path / "here.onnx", tmp_path / "new")
    assert len(notes) == 1
    assert loaded(shown) == vit()


def test_folders_of_data(tmp_path: Path) -> None:
    path = save(vit(), tmp_path / "a.onnx")
    (tmp_path / "parts").mkdir()
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="parts/w.data", size_threshold=1024)
    assert check.check_file(path).repairs == ()
    os.link(tmp_path / "parts" / "w.data", tmp_path / "other")
    shown, _ = check.sanitize(path, tmp_path / "new")
    assert (tmp_path / "new" / "parts" / "w.data").is_file()
    assert loaded(shown) == vit()


def placed(path: Path) -> tuple[onnx.ModelProto, list[TensorProto]]:
    """The ViT with all data in ``weights.data``, and its tensors there that stay there."""
    model = onnx.load(beside(path), load_external_data=False)
    return model, [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]


def test_one_file_in_two_spellings(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model, tensors = placed(path)
    location = next(entry for entry in tensors[0].external_data if entry.key == "location")
    location.value = "././weights.data"
    norms(model)[0].input[2] = ""
    path.write_bytes(model.SerializeToString())
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert len(notes) == 1
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["a.onnx", "weights.data"]
    again = loaded(shown)
    del norms(model)[0].input[2]
    assert list(again.graph.node) == list(model.graph.node)
    assert list(again.graph.initializer) == list(vit().graph.initializer)


@pytest.mark.parametrize("base", ["", "."])
def test_a_base_path_that_says_nothing_is_cut(base: str, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model, tensors = placed(path)
    whole = model.SerializeToString()
    for tensor in tensors:
        tensor.external_data.add(key="basepath", value=base)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match="model format error"):  # what onnxruntime makes of it
        onnxruntime.InferenceSession(path)
    shown, notes = check.sanitize(path, tmp_path / "new")
    assert notes[0].startswith(f"{len(tensors)} tensor") and "base path" in notes[0]
    assert onnx.load(shown, load_external_data=False) == onnx.ModelProto.FromString(whole)
    onnxruntime.InferenceSession(shown)


def test_small_tensors_with_a_base_path_come_inside(tmp_path: Path) -> None:
    path = beside(tmp_path / "a.onnx", 0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data.add(key="basepath")
    path.write_bytes(model.SerializeToString())
    shown, _ = check.sanitize(path, tmp_path / "new")
    assert loaded(shown) == vit()
    onnxruntime.InferenceSession(shown)


def test_empty_raw_data_beside_external_data(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    model, tensors = placed(path)
    tensors[0].raw_data = b""
    assert tensors[0].HasField("raw_data")
    path.write_bytes(model.SerializeToString())
    assert check.sanitize(path, tmp_path / "new") == (path, ())
    onnxruntime.InferenceSession(path)


def test_weights_are_not_read_into_memory(tmp_path: Path) -> None:
    """A hole of two gigabytes as a weight, inside 600 MiB of address space."""
    model = vit()
    norms(model)[0].input[2] = ""
    tensor = model.graph.initializer.add(name="big", data_type=TensorProto.FLOAT, dims=[1 << 29], data_location=1)
    tensor.external_data.add(key="location", value="big.data")
    path = save(model, tmp_path / "a.onnx")
    with (tmp_path / "big.data").open("wb") as stream:
        stream.truncate(1 << 31)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n"
        "from pathlib import Path; from vitdeploy.onnxfile import check; print(check.check_file(Path(sys.argv[1])).repairs)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert "LayerNormalization" in done.stdout, done.stderr


def test_without_onnx(tmp_path: Path) -> None:
    model = vit()
    norms(model)[0].input[2] = ""
    path = save(model, tmp_path / "a.onnx")
    code = (
        "import sys\nfor name in ('onnx', 'torch', 'onnxruntime', 'openvino', 'numpy'): sys.modules[name] = None\n"
        "from pathlib import Path; from vitdeploy.onnxfile import check\n"
        "print(check.sanitize(Path(sys.argv[1]), Path(sys.argv[2]))[1])"
    )
    command = [sys.executable, "-c", code, path, tmp_path / "new"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert "1 LayerNormalization" in done.stdout, done.stderr


# operators


def test_the_table_of_inputs_is_that_of_the_libraries() -> None:
    """For every operator that onnx or onnxruntime knows: as many as any version needs. One is known to need more than it says."""
    import onnxruntime.capi.onnxruntime_pybind11_state as state

    least: dict[tuple[str, str], int] = {}
    for schema in (*onnx.defs.get_all_schemas_with_history(), *state.get_all_operator_schema()):
        leading = 0
        for place, formal in enumerate(schema.inputs):
            kind = str(formal.option).rpartition(".")[2]
            if kind != "Single" and not (kind == "Variadic" and place < schema.min_input):
                break
            leading += 1
        key = schema.domain, schema.name
        if not schema.domain and not onnx.defs.has(schema.name):
            continue  # onnxruntime's own, from before contributed operators had a domain
        least[key] = min(least.get(key, 99), leading)
    least["com.microsoft", "Attention"] += 1
    for (domain, name), count in least.items():
        if domain in operators.KNOWN and name not in operators.FOREIGN:
            assert operators.NEEDS.get((domain, name), 1) <= count, (domain, name)
    assert {key: count for key, count in operators.NEEDS.items() if key in least} == {
        key: least[key] for key in operators.NEEDS if key in least
    }
    assert set(operators.NEEDS) <= set(least)
    for name, (version, count) in operators.SINCE.items():
        for schema in onnx.defs.get_all_schemas_with_history():
            if schema.name == name and not schema.domain:
                assert (schema.min_input >= count) == (schema.since_version >= version), schema


def test_functions_of_the_model_are_its_own(tmp_path: Path) -> None:
    model = vit()
    gelu = next(each for each in model.graph.node if each.op_type == "Gelu")
    body = helper.make_node("Gelu", ["a"], ["b"])
    model.functions.append(helper.make_function("pkg.onnxscript.torch_lib", "G", ["a"], ["b"], [body], list(model.opset_import)))
    gelu.op_type, gelu.domain = "G", "pkg.onnxscript.torch_lib"
    model.opset_import.append(helper.make_opsetid("pkg.onnxscript.torch_lib", 1))
    path = save(model, tmp_path / "a.onnx")
    assert check.sanitize(path, tmp_path / "new") == (path, ())
    del model.functions[:]
    with pytest.raises(VitdeployError) as caught:
        check.check_file(save(model, tmp_path / "a.onnx"))
    assert caught.value.code == "VD7005"
    assert "asks for G of the domain 'pkg.onnxscript.torch_lib'" in caught.value.message
    assert "blocks.0.mlp/Gelu" in caught.value.message


def overloaded(*overloads: str) -> onnx.ModelProto:
    """The ViT whose Gelu is a call of a function's first overload."""
    model = vit()
    gelu = next(each for each in model.graph.node if each.op_type == "Gelu")
    for overload in overloads:
        body = helper.make_node("Gelu", ["a"], ["b"])
        function = helper.make_function("mine", "G", ["a"], ["b"], [body], list(model.opset_import), overload=overload)
        model.functions.append(function)
    gelu.op_type, gelu.domain, gelu.overload = "G", "mine", overloads[0]
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.ir_version = 10
    return model


def test_overloads_of_a_function(tmp_path: Path) -> None:
    path = save(overloaded("one", "two", ""), tmp_path / "a.onnx")
    assert check.check_file(path).repairs == ()
    model = overloaded("one", "two")
    next(each for each in model.graph.node if each.op_type == "G").overload = "three"
    with pytest.raises(VitdeployError) as caught:
        check.check_file(save(model, path))
    assert caught.value.code == "VD7005"
    with pytest.raises(InputError, match="two functions 'G'"):
        check.check_file(save(overloaded("one", "one"), path))


def functions_first(model: onnx.ModelProto) -> bytes:
    """The model as a writer may also write it: functions before the main graph."""
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    functions = onnx.ModelProto(ir_version=model.ir_version, functions=model.functions)
    del rest.functions[:]
    return functions.SerializeToString() + rest.SerializeToString()


def test_functions_before_the_main_graph(tmp_path: Path) -> None:
    """A graph inside of a function is not taken for the main graph."""
    model = overloaded("")
    made = helper.make_node("Gelu", ["a"], ["inside"])
    body = helper.make_graph([made], "body", [], [onnx.ValueInfoProto(name="inside")])
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    branches = helper.make_node("If", ["yes"], ["b"], then_branch=body, else_branch=body)
    del model.functions[0].node[:]
    model.functions[0].node.extend([yes, branches])
    path = tmp_path / "a.onnx"
    path.write_bytes(functions_first(model))
    assert onnx.load(path) == model
    assert check.check_file(path).repairs == ()
    model.graph.node[3].input[0] = "nobody"
    path.write_bytes(functions_first(model))
    with pytest.raises(InputError, match="reads 'nobody', which nothing makes"):
        check.check_file(path)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "packed"])
def test_long_lists_of_sizes_are_not_taken_for_none(raw: bool, tmp_path: Path) -> None:
    """Three hundred parts of two hundred: more bytes than are read, fewer entries than that."""
    model = vit()
    model.graph.node.append(helper.make_node("Split", ["wide", "sizes"], [f"part{number}" for number in range(300)], axis=0))
    wide = numpy_helper.from_array(np.zeros(60_000, np.int8), "wide")
    sizes = numpy_helper.from_array(np.full(300, 200), "sizes")
    if not raw:
        sizes = helper.make_tensor("sizes", TensorProto.INT64, [300], [200] * 300)
    model.graph.initializer.extend([wide, sizes])
    path = save(model, tmp_path / "a.onnx")
    assert check.check_file(path).repairs == ()
    onnxruntime.InferenceSession(path)


def test_the_order_of_nodes_does_not_matter(tmp_path: Path) -> None:
    model = vit()
    nodes = list(model.graph.node)
    random.Random(0).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString())
    assert check.check_file(path).repairs == ()


def test_names_of_inner_graphs_are_their_own(tmp_path: Path) -> None:
    """A branch may call its output as the If does."""
    model = vit()
    gelu = next(each for each in model.graph.node if each.op_type == "Gelu")
    inner, output = onnx.NodeProto(), gelu.output[0]
    inner.CopyFrom(gelu)
    body = helper.make_graph([inner], "body", [], [onnx.ValueInfoProto(name=output)])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    gelu.CopyFrom(helper.make_node("If", ["yes"], [output], then_branch=body, else_branch=body))
    assert check.check_file(save(model, tmp_path / "a.onnx")).repairs == ()


def test_inner_graphs_read_from_outside(tmp_path: Path) -> None:
    model = vit()
    gelu = next(each for each in model.graph.node if each.op_type == "Gelu")
    inner, outputs = onnx.NodeProto(), list(gelu.output)
    inner.CopyFrom(gelu)
    inner.output[0] = "inside"
    body = helper.make_graph([inner], "body", [], [onnx.ValueInfoProto(name="inside")])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    gelu.CopyFrom(helper.make_node("If", ["yes"], outputs, then_branch=body, else_branch=body))
    assert check.check_file(save(model, tmp_path / "a.onnx")).repairs == ()
    inner.input[0] = "nobody"
    body.node[0].CopyFrom(inner)
    gelu.CopyFrom(helper.make_node("If", ["yes"], outputs, then_branch=body, else_branch=body))
    with pytest.raises(InputError, match="reads 'nobody', which nothing makes"):
        check.check_file(save(model, tmp_path / "a.onnx"))
    inner.input[0] = outputs[0]  # what the If makes
    body.node[0].CopyFrom(inner)
    gelu.CopyFrom(helper.make_node("If", ["yes"], outputs, then_branch=body, else_branch=body))
    with pytest.raises(InputError, match="loop"):
        check.check_file(save(model, tmp_path / "a.onnx"))


TYPES = [
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64),
    *(TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E5M2),
    *(TensorProto.COMPLEX64, TensorProto.STRING, TensorProto.FLOAT4E2M1),
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("raw", [False, True])
def test_tensors_of_every_type(kind: int, raw: bool, tmp_path: Path) -> None:
    """As onnx writes them: in fields of their type or raw; odd counts of small numbers, many numbers, none."""
    model = vit()
    for name, sizes in (("some", (3, 5)), ("scalar", ()), ("none", (0,))):
        count = int(np.prod(sizes))
        values = [b"a"] * count if kind == TensorProto.STRING else [1] * count
        tensor = helper.make_tensor(name, kind, sizes, values)
        if raw and kind != TensorProto.STRING:  # text is never raw
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor), name)
        model.graph.initializer.append(tensor)
    path = save(model, tmp_path / "a.onnx")
    assert check.check_file(path).repairs == ()
    del model.graph.initializer[-3].dims[:]
    model.graph.initializer[-3].dims.extend([3, 6])
    with pytest.raises(InputError, match="the initializer 'some' is 3 x 6 of") as caught:
        check.check_file(save(model, path))
    assert caught.value.code == "VD3027"


@pytest.mark.parametrize("operator", ["Concat", "Expand", "Cast", "Add", "MatMul"])
def test_a_tensor_without_numbers_may_be_put_beside_others_and_not_computed_with(tmp_path: Path, operator: str) -> None:
    """As the register tokens of a model that has none are."""
    nothing = numpy_helper.from_array(np.zeros((1, 0, 4), np.float32), "registers")
    shape = numpy_helper.from_array(np.array([2, 0, 4]), "shape")
    attributes = {"Concat": {"axis": 1}, "Cast": {"to": TensorProto.FLOAT}}.get(operator, {})
    others = {"Concat": ["x"], "Expand": ["shape"], "Cast": []}.get(operator, ["x"])
    node = helper.make_node(operator, ["registers", *others], ["y"], **attributes)
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph([node], "g", [x], [y], [nothing, shape] if operator == "Expand" else [nothing])
    path = save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    if operator in ("Concat", "Expand", "Cast"):
        check.check_file(path)
    else:
        with pytest.raises(InputError, match="'registers' holds no numbers: 1 x 0 x 4"):
            check.check_file(path)
