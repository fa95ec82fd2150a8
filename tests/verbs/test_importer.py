"""Files of others: the main output is found, named and kept, whatever it is called and wherever it stands."""

import json
from contextlib import closing

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import vitdeploy
from tests.elsewhere import Elsewhere, write_contract, write_photos
from tests.quant.in_process import quantize
from vitdeploy.backends.base import OpenConfig, run_main
from vitdeploy.backends.table import load
from vitdeploy.cli.commands import main
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, UsageError
from vitdeploy.proof import golden
from vitdeploy.recipe import CompileConfig, QuantizeConfig
from vitdeploy.verbs.importer import Outputs, open_foreign

TOKENS = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", 7, 32])


@pytest.fixture(scope="module")
def contract(tiny_spec, tmp_path_factory):
    return write_contract(tmp_path_factory.mktemp("contract") / "contract.json", tiny_spec.input)


@pytest.fixture(scope="module")
def photos(tiny_spec, tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", tiny_spec.input)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "theirs.onnx"


def stream(model: onnx.ModelProto) -> str:
    """A value [batch, 7, 32] inside: what the first LayerNormalization reads."""
    return next(node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization")


def with_tokens(artifact) -> tuple[Elsewhere, tuple]:
    """The same file with the tokens of a block as its first output."""
    theirs = Elsewhere(artifact)
    inside = stream(theirs.model)
    theirs.model.graph.node.append(helper.make_node("Identity", [inside], ["hidden"], name="/hidden"))
    return theirs, (TOKENS,)


def outputs(artifact, engine="onnxruntime"):
    tensor = images.to_tensor(synthetic.pixels(3, artifact.spec.input, seed=5), artifact.spec.input)
    with closing(load(engine).open(artifact, OpenConfig(threads=1))) as runner:
        return runner.run(tensor), run_main(runner, tensor, artifact.spec)


def test_the_one_output_has_any_name(tiny_artifact, file, contract):
    artifact = open_foreign(Elsewhere(tiny_artifact).write(file, "output0", 12), contract)
    assert (artifact.spec.output, artifact.spec.classes, artifact.spec.task) == ("output0", 12, "single_label")
    assert artifact.record.origin.notes == ()
    assert np.array_equal(outputs(artifact)[1], outputs(tiny_artifact)[1])


def test_the_first_vector_is_the_main_output_and_it_is_said(tiny_artifact, file, contract):
    theirs, extra = with_tokens(tiny_artifact)
    artifact = open_foreign(theirs.write(file, "scores", 12, extra=extra), contract)
    assert artifact.spec.output == "scores"
    assert artifact.record.origin.notes == ("the main output is 'scores'; say --output for another",)


def test_a_named_output_is_the_main_one_whatever_its_shape(tiny_artifact, file, contract):
    theirs, extra = with_tokens(tiny_artifact)
    artifact = open_foreign(theirs.write(file, "scores", 12, extra=extra), contract, Outputs("hidden"))
    assert (artifact.spec.output, artifact.spec.task, artifact.spec.output_size) == ("hidden", "embedding", 7 * 32)
    assert "it has 7 x 32 numbers for an image" in artifact.record.origin.notes[0]
    assert outputs(artifact)[1].shape == (3, 224)


def test_shapes_that_the_file_does_not_declare_are_found_by_a_run(tiny_artifact, file, contract):
    theirs, extra = with_tokens(tiny_artifact)
    artifact = open_foreign(theirs.write(file, "scores", 12, extra=extra, undeclared=True), contract)
    assert (artifact.spec.output, artifact.spec.classes) == ("scores", 12)


def test_a_file_whose_shapes_say_enough_is_not_run(tiny_artifact, file, contract, monkeypatch):
    monkeypatch.setattr(golden, "open_first", lambda *_: pytest.fail("it was run"))
    theirs, extra = with_tokens(tiny_artifact)
    assert open_foreign(theirs.write(file, "scores", 12, extra=extra), contract).spec.output == "scores"


@pytest.mark.parametrize("sizes", [(1, 12), (12, 1, 1)], ids=str)
def test_axes_of_one_element_are_flattened(tiny_artifact, file, contract, sizes):
    theirs = Elsewhere(tiny_artifact).add("Reshape", np.array([-1, *sizes]))
    artifact = open_foreign(theirs.write(file, "scores", *sizes), contract)
    assert artifact.spec.classes == 12
    every, one = outputs(artifact)
    assert every["scores"].shape == (3, *sizes)
    assert one.shape == (3, 12)


def test_integers_are_never_the_main_output(tiny_artifact, file, contract):
    theirs = Elsewhere(tiny_artifact)
    theirs.model.graph.node.append(helper.make_node("ArgMax", [theirs.last], ["class"], axis=1, keepdims=1))
    best = helper.make_tensor_value_info("class", TensorProto.INT64, ["batch", 1])
    path = theirs.write(file, "scores", 12, extra=(best,))
    assert open_foreign(path, contract).spec.output == "scores"
    with pytest.raises(UsageError, match=r"class \(int64\).*no floating-point") as caught:
        model = onnx.load(path)
        del model.graph.output[1]
        onnx.save(model, path)
        open_foreign(path, contract)
    assert caught.value.code == "VD2010"


def test_an_output_that_is_not_there_is_named_with_the_nearest(tiny_artifact, file, contract):
    path = Elsewhere(tiny_artifact).write(file, "scores", 12)
    with pytest.raises(UsageError, match="has no output 'score'") as caught:
        open_foreign(path, contract, Outputs("score"))
    assert (caught.value.code, "'scores'" in str(caught.value)) == ("VD2003", True)


def test_two_images_as_input_are_refused(tiny_artifact, file, contract):
    theirs = Elsewhere(tiny_artifact)
    theirs.model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    with pytest.raises(InputError, match="2 inputs"):
        open_foreign(theirs.write(file, "scores", 12), contract)


# What the output is


def root(theirs: Elsewhere) -> Elsewhere:
    """Length 1, written with a square root."""
    vector = theirs.last
    length = theirs.add("ReduceSumSquare", np.array([1]), keepdims=1).add("Sqrt").last
    theirs.model.graph.node.append(helper.make_node("Div", [vector, length], ["unit"]))
    theirs.last = "unit"
    return theirs


def shares(theirs: Elsewhere) -> Elsewhere:
    """A sum of 1, which is no length."""
    powers = theirs.add("Exp").last
    total = theirs.add("ReduceSum", np.array([1]), keepdims=1).last
    theirs.model.graph.node.append(helper.make_node("Div", [powers, total], ["shares"]))
    theirs.last = "shares"
    return theirs


@pytest.mark.parametrize(
    ("end", "name", "task", "probabilities"),
    [
        (lambda each: each.normalise(), "out", "embedding", False),
        (root, "out", "embedding", False),
        (lambda each: each.add("LpNormalization", axis=1), "out", "embedding", False),
        (shares, "out", "single_label", False),
        (lambda each: each.add("Softmax", axis=1), "out", "single_label", True),
        (lambda each: each.add("Sigmoid"), "out", "multi_label", True),
        (lambda each: each, "image_embeds", "embedding", False),
        (lambda each: each, "pooler_output", "embedding", False),
        (lambda each: each, "pooled_logits", "single_label", False),
    ],
)  # fmt: skip
def test_what_an_output_is_shows_in_its_last_operators_and_its_name(
    tiny_artifact, file, contract, end, name, task, probabilities
):
    artifact = open_foreign(end(Elsewhere(tiny_artifact)).write(file, name, 12), contract)
    assert (artifact.spec.task, artifact.spec.probabilities) == (task, probabilities)
    assert bool(artifact.record.origin.notes) == (task != "single_label")


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression", "embedding"])
def test_what_is_said_goes_before_any_guess(tiny_artifact, file, contract, task):
    path = Elsewhere(tiny_artifact).normalise().write(file, "features", 12)
    artifact = open_foreign(path, contract, Outputs(task=task))
    assert (artifact.spec.task, artifact.record.origin.notes) == (task, ())
    text = contract.read_text()
    written = path.with_name("said" + contract.suffix)
    if contract.suffix == ".toml":
        written.write_text(f'task = "{task}"\n{text}')
    else:
        written.write_text(json.dumps(json.loads(text) | {"task": task}))
    assert open_foreign(path, written).spec == artifact.spec
    assert open_foreign(path, written, Outputs(task="embedding")).spec.task == "embedding"  # typed, it counts


# Through the line


@pytest.mark.sampled(3)
@pytest.mark.parametrize("precision", ["int8", "fp16", "int8-dynamic", "int8-weight-only"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "portable"])
def test_every_file_keeps_the_names_of_its_input_and_outputs(tiny_artifact, file, contract, photos, tmp_path, target, precision):
    if precision.startswith("int8-") and target == "portable":
        pytest.skip("no portable form of it")
    theirs, extra = with_tokens(tiny_artifact)
    source = open_foreign(theirs.write(file, "scores", 12, extra=extra), contract)
    config = QuantizeConfig(calibration=str(photos), precision=precision, target=target, threads=1, verify=False)
    made = quantize(source, config, tmp_path / "out")
    graph = onnx.load(made.model, load_external_data=False).graph
    assert [each.name for each in graph.input] == ["image"]
    assert [each.name for each in graph.output] == ["hidden", "scores"]
    (expected, main), (got, small) = outputs(source), outputs(made, "onnxruntime" if target == "portable" else target)
    assert set(got) == set(expected) == {"hidden", "scores"}
    assert np.abs(small - main).max() < 0.2 * main.std()
    assert golden.read(made).output.shape == (golden.IMAGES, 12)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_keeps_the_names_too(tiny_artifact, file, contract, tmp_path, engine):
    theirs, extra = with_tokens(tiny_artifact)
    source = open_foreign(theirs.write(file, "scores", 12, extra=extra), contract)
    made = vitdeploy.compile(source, CompileConfig(backend=engine, threads=1), tmp_path / "out")
    every, _ = outputs(made, engine)
    assert list(every) == ["hidden", "scores"]
    assert made.record.proof.notes == ("the main output is 'scores'; say --output for another",)


@pytest.mark.sampled(12)
@pytest.mark.parametrize("target", ["portable", "onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize("activation", ["Relu", "Gelu", "Tanh"])
def test_a_head_of_two_layers(tiny_artifact, file, contract, photos, tmp_path, activation, target):
    theirs = Elsewhere(tiny_artifact).layer(12).add(activation).layer(5, seed=1)
    source = open_foreign(theirs.write(file, "output0", 5), contract)
    config = QuantizeConfig(calibration=str(photos), target=target, threads=1, verify=False)
    made = quantize(source, config, tmp_path / "out")
    assert [each.name for each in onnx.load(made.model, load_external_data=False).graph.output] == ["output0"]
    if target != "tensorrt":
        main, small = outputs(source)[1], outputs(made, "onnxruntime" if target == "portable" else target)[1]
        assert (small - main).std() < 0.15 * main.std()


def test_the_command_line_names_output_and_task(tiny_artifact, file, contract, tmp_path, capsys):
    theirs, extra = with_tokens(tiny_artifact)
    path = theirs.write(file, "scores", 12, extra=extra)
    common = ["compile", str(path), "--backend", "onnxruntime", "--contract", str(contract), "--output", "hidden"]
    assert main([*common, "--task", "embedding", "-o", str(tmp_path / "out")]) == 0
    assert "hidden, 224 numbers of an embedding" in capsys.readouterr().out
    assert (
        main(["compile", str(tiny_artifact.folder), "--backend", "onnxruntime", "--output", "x", "-o", str(tmp_path / "b")]) == 2
    )
    assert "--output is for an .onnx made elsewhere" in capsys.readouterr().err
