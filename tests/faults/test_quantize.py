"""What goes wrong before or while a model is quantized: one clean error with its code, and nothing written."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.conftest import TINY
from tests.quant.fashion import edited
from tests.quant.in_process import quantize
from vitdeploy.artifact import RECORD, Artifact, Record
from vitdeploy.backends.targets import settle_target
from vitdeploy.data import synthetic
from vitdeploy.errors import InputError, MachineError, UsageError, VitdeployError
from vitdeploy.quant.halves import HALVES
from vitdeploy.quant.pictures import open_pictures
from vitdeploy.recipe import QuantizeConfig


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(synthetic.pixels(20, TINY.input, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


def config(folder, **settings) -> QuantizeConfig:
    given = {"calibration": None if folder is None else str(folder), "threads": 1, "verify": False}
    return QuantizeConfig(**given | settings)


def refused(artifact: Artifact, options: QuantizeConfig, out: Path, code: str, *words: str) -> VitdeployError:
    """One line, the code, the words; and the place where the result would be is as it was."""
    out.parent.mkdir(exist_ok=True)
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(VitdeployError) as caught:
        quantize(artifact, options, out)
    line = str(caught.value)
    assert caught.value.code == code, line
    assert "\n" not in line
    for word in words:
        assert word in line
    assert sorted(path.name for path in out.parent.iterdir()) == before
    return caught.value


# Calibration images


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_no_images(tiny_artifact, target, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, code in ((tmp_path / "empty", "VD3101"), (tmp_path / "missing", "VD3001")):
        error = refused(tiny_artifact, config(folder, target=target), tmp_path / "out", code, str(folder))
        assert isinstance(error, InputError)


def test_a_folder_of_something_else(tiny_artifact, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    refused(tiny_artifact, config(tmp_path / "texts"), tmp_path / "out", "VD3101")


def test_damaged_images_are_counted_then_refused(tiny_artifact, pictures, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(pictures, folder)
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:100])
    refused(tiny_artifact, config(folder), tmp_path / "out", "VD3104", "003.png")
    quantized = quantize(tiny_artifact, config(folder, max_bad=1), tmp_path / "out")
    assert quantized.record.proof.census["onnxruntime"].executed["gemms"] == 9


def test_grey_images_for_a_colour_model_are_made_colour_as_everywhere(tiny_artifact, tmp_path):
    """Files are converted, as `predict` and `validate` convert them."""
    folder = tmp_path / "grey"
    folder.mkdir()
    for index, pixels in enumerate(synthetic.pixels(8, TINY.input)):
        Image.fromarray(pixels[..., 0]).save(folder / f"{index}.png")
    assert quantize(tiny_artifact, config(folder), tmp_path / "out").record.precision == "int8"


def idx(folder: Path, count: int = 12, size: tuple[int, int] = (16, 24)) -> Path:
    """Grey images as an IDX file."""
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)
    header = struct.pack(">IIII", 0x803, count, *size)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def test_images_of_another_channel_count_that_can_not_be_converted(tiny_artifact, tmp_path):
    """A model of five channels has no images; and what no contract allows is refused before anything is run."""
    spec = msgspec.structs.replace(
        tiny_artifact.spec,
        input=msgspec.structs.replace(tiny_artifact.spec.input, channels=5, mean=(0.5,) * 5, std=(0.5,) * 5),
    )
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec, weights=None))
    refused(other, config(idx(tmp_path / "images")), tmp_path / "out", "VD3107")


def test_a_contract_that_is_not_the_models(tiny_artifact, pictures, tmp_path):
    """Images prepared for another size than the graph takes."""
    spec = msgspec.structs.replace(tiny_artifact.spec, input=msgspec.structs.replace(tiny_artifact.spec.input, height=24))
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec, weights=None))
    refused(other, config(pictures), tmp_path / "out", "VD3107")


def test_one_image_is_enough_and_few_are_noted(tiny_artifact, pictures, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(pictures / "000.png", folder)
    quantized = quantize(tiny_artifact, config(folder, verify=False), tmp_path / "out")
    assert quantized.record.proof.calibration.images == 1
    assert any("only 1 image set" in note for note in quantized.record.proof.notes)


# Models


@pytest.mark.parametrize("precision", ["int8", "fp16", "int8-weight-only"])
def test_quantized_already(tiny_artifact, pictures, precision, tmp_path):
    made = quantize(tiny_artifact, config(pictures, precision=precision), tmp_path / "made")
    before = (made.folder / RECORD).read_bytes()
    for again in ("int8", "fp16"):
        refused(
            Artifact.open(made.folder), config(pictures, precision=again), tmp_path / "out", "VD3024", f"is {precision} already"
        )
    if precision != "fp16":  # without its record the file itself tells
        bare = Artifact(made.folder, Record(spec=made.spec, made_by="import"))
        refused(bare, config(pictures), tmp_path / "out", "VD3024", "quantized operators")
    assert (made.folder / RECORD).read_bytes() == before


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_file_of_half_precision(tiny_artifact, pictures, precision, tmp_path):
    made = quantize(tiny_artifact, config(pictures, precision="fp16"), tmp_path / "made")
    bare = Artifact(made.folder, Record(spec=made.spec, made_by="import"))
    refused(bare, config(pictures, precision=precision), tmp_path / "out", "VD3024")


def perceptron(folder: Path) -> Artifact:
    """Two layers, no attention."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=size).astype(np.float32) for size in ((1152, 16), (16, 12))]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixels"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "first"], ["hidden"], name="fc1"),
            helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
            helper.make_node("MatMul", ["active", "second"], ["logits"], name="fc2"),
        ],
        "perceptron",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 16, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 12])],
        [numpy_helper.from_array(array, name) for array, name in zip(weights, ("first", "second"), strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), folder / "model.onnx")
    return Artifact(folder, Record(spec=TINY, made_by="import"))


@pytest.mark.parametrize("precision", ["int8", "int8-weight-only"])
def test_no_vit_in_the_graph(pictures, precision, tmp_path):
    error = refused(perceptron(tmp_path / "mlp"), config(pictures, precision=precision), tmp_path / "out", "VD3023")
    assert "attention" in str(error) or "Softmax" in str(error), "what was looked for"


@pytest.mark.parametrize("version", [7, 99])
def test_an_operator_set_that_can_not_be_edited(tiny_artifact, pictures, version, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    source = edited(tiny_artifact, tmp_path / "source", change)
    refused(source, config(pictures), tmp_path / "out", "VD3025", str(version))


def test_an_operator_of_one_vendor(tiny_artifact, pictures, tmp_path):
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Gelu")
        node.domain, node.op_type = "org.example", "OurGelu"
        model.opset_import.append(helper.make_opsetid("org.example", 1))

    source = edited(tiny_artifact, tmp_path / "source", change)
    refused(source, config(pictures), tmp_path / "out", "VD7005", "OurGelu")


def poisoned(artifact: Artifact, folder: Path) -> Artifact:
    """One weight of the second block is not a number."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "blocks.1.mlp.fc1.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[3, 4] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edited(artifact, folder, change)


def test_an_activation_that_is_no_number_names_tensor_and_image(tiny_artifact, pictures, tmp_path):
    source = poisoned(tiny_artifact, tmp_path / "source")
    for precision in ("int8", "fp16"):
        refused(source, config(pictures, precision=precision), tmp_path / "out", "VD3110", "'logits' is nan", ".png'")


def dazzled(artifact: Artifact, folder: Path) -> Artifact:
    """Beyond float32 on an image with a white pixel in every channel, and as it was on others."""

    def change(model: onnx.ModelProto) -> None:
        gelu = next(node for node in model.graph.node if node.name == "blocks.0.mlp/Gelu")
        nodes = list(model.graph.node)
        place = nodes.index(gelu)
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.9, np.float32), "bright"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 1]), "column"))
        for node in reversed(
            (
                helper.make_node("ReduceMax", ["pixels", "axes"], ["row"], keepdims=0, name="row"),
                helper.make_node("Reshape", ["row", "column"], ["brightest"], name="brightest"),
                helper.make_node("Greater", ["brightest", "bright"], ["too bright"], name="too bright"),
                helper.make_node("Cast", ["too bright"], ["flag"], to=TensorProto.FLOAT, name="flag"),
                helper.make_node("Sub", ["one", "flag"], ["rest"], name="rest"),
                helper.make_node("Div", [gelu.output[0], "rest"], ["divided"], name="divided"),
            )
        ):
            model.graph.node.insert(place + 1, node)
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
        taker = next(node for node in nodes[place + 1 :] if gelu.output[0] in node.input and node.op_type == "MatMul")
        taker.input[0] = "divided"

    return edited(artifact, folder, change)


def write_greys(folder: Path, count: int, white: int) -> Path:
    """Grey images and a white one."""
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((16, 24, 3), 128 if index != white else 255, np.uint8)).save(folder / f"{index:02}.png")
    return folder


def test_an_overflow_on_one_image_only_names_that_image(tiny_artifact, tmp_path):
    """The first images of the folder are not the one."""
    source, folder = dazzled(tiny_artifact, tmp_path / "source"), write_greys(tmp_path / "images", 6, 4)
    error = refused(source, config(folder), tmp_path / "out", "VD3110", "'04.png'")
    assert "blocks.0.mlp" in str(error) or "divided" in str(error)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("settings", [{}, {"verify": True}, {"precision": "fp16"}, {"target": "tensorrt"}])
def test_an_overflow_on_an_image_that_sets_no_range_names_it_too(tiny_artifact, settings, tmp_path):
    """The last of twenty is one of the five that are held back."""
    source, folder = dazzled(tiny_artifact, tmp_path / "source"), write_greys(tmp_path / "images", 20, 19)
    assert "19.png" in [name for _, names in open_pictures(source, config(folder)).part("held") for name in names]
    refused(source, config(folder, **settings), tmp_path / "out", "VD3110", "the output 'logits' is nan or infinite", "'19.png'")


def test_a_large_folder_is_not_read_to_its_end_for_that(tiny_artifact, tmp_path):
    """Images are drawn from it: nobody is told that all of them were seen."""
    source, folder = dazzled(tiny_artifact, tmp_path / "source"), write_greys(tmp_path / "images", 40, 39)
    options = config(folder, limit=16, verify_images=4)
    assert not open_pictures(source, options).whole
    quantize(source, options, tmp_path / "out")


# Options


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "VD2010"),
        ({"precision": "int8", "target": "tensorrt"}, "VD2010"),
        ({"calibration": "a", "statistics": "b"}, "VD2010"),
        ({"precision": "bf16"}, "VD2011"),
        ({"precision": "bf16", "target": "tensorrt"}, "VD2011"),
        ({"precision": "int8-dynamic", "target": "tensorrt"}, "VD2011"),
        ({"precision": "int8-weight-only", "target": "portable"}, "VD2011"),
        ({"calibration": "a", "keep_fp32": ("softmax",)}, "VD2011"),
        ({"calibration": "a", "limit": 0}, "VD2003"),
        ({"calibration": "a", "threads": 0}, "VD2003"),
        ({"calibration": "a", "verify_images": 0}, "VD2003"),
        ({"calibration": "a", "max_bad": -1}, "VD2003"),
        ({"calibration": "a", "seed": -1}, "VD2003"),
    ],
)
def test_options_that_mean_nothing(settings, code):
    with pytest.raises(UsageError) as caught:
        settle_target(QuantizeConfig(**settings))
    assert caught.value.code == code
    assert caught.value.fix


def test_a_place_that_can_not_be_written(tiny_artifact, pictures, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    refused(tiny_artifact, config(pictures), tmp_path / "mine", "VD2008")
    (tmp_path / "file").write_text("x")
    refused(tiny_artifact, config(pictures), tmp_path / "file", "VD2008")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


# Statistics


def test_statistics_that_are_damaged_or_gone(tiny_artifact, pictures, tmp_path):
    folder = tmp_path / "statistics"
    quantize(tiny_artifact, config(pictures, save_statistics=str(folder)), tmp_path / "made")
    first = folder / HALVES[0]
    whole = first.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"PK\x03\x04 no archive"):
        first.write_bytes(damage)
        error = refused(tiny_artifact, config(None, statistics=str(folder)), tmp_path / "out", "VD3109" if damage else "VD3002")
        assert str(folder) in str(error)
    first.unlink()
    refused(tiny_artifact, config(None, statistics=str(folder)), tmp_path / "out", "VD3001")
    refused(tiny_artifact, config(None, statistics=str(tmp_path / "none")), tmp_path / "out", "VD3001")


# Engines


def test_an_engine_that_does_not_run_what_was_planned(tiny_artifact, pictures, tmp_path, monkeypatch):
    """Whatever the reason: the model is not accepted, and the layers are named."""
    from vitdeploy.backends.onnxruntime import backend

    genuine = backend.OnnxRuntimeRunner.kernels

    def one_in_float(self):
        return tuple(
            kernel._replace(precision="fp32", fallback=True) if kernel.name == "blocks.1.mlp.fc1/MatMul" else kernel
            for kernel in genuine(self)
        )

    monkeypatch.setattr(backend.OnnxRuntimeRunner, "kernels", one_in_float)
    error = refused(tiny_artifact, config(pictures), tmp_path / "out", "VD4009", "1 of 9", "blocks.1.mlp.fc1/MatMul")
    assert isinstance(error, MachineError)


def test_a_rewrite_that_changes_the_function_is_caught(tiny_artifact, pictures, tmp_path, monkeypatch):
    """Should one ever be wrong for some model, nothing is made of it."""
    from vitdeploy.graph.exact import fold

    genuine = fold.fold_norm_affine

    def wrong(editor, site):
        done = genuine(editor, site)
        site.linears[0].write(editor, site.linears[0].weight * 1.1)
        return done

    monkeypatch.setattr(fold, "fold_norm_affine", wrong)
    refused(tiny_artifact, config(pictures), tmp_path / "out", "VD4003", "--skip")
