"""`validate --layers`: healthy files have no break, and a planted fault is named with its layer and its cause."""

from __future__ import annotations

import random
from contextlib import closing

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.quant.fashion import ROOT, config, demo, pixels
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import UsageError
from vitdeploy.proof.breaks import LEAST_DB
from vitdeploy.recipe import QuantizeConfig, ValidateConfig
from vitdeploy.verbs import tracer
from vitdeploy.verbs.quantizer import quantize
from vitdeploy.verbs.tracer import choose_inside, cut_batches, open_original, open_tapped, trace
from vitdeploy.verbs.validator import validate

PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYERS = [f"blocks.{block}.{part}" for block in range(4) for part in PARTS]
WHOLE = [layer for layer in LAYERS if layer != "blocks.3.attn.qkv"]
"""In a quantized file the last block's q, k and v are layers of their own: only the class token asks there."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Artifact]:
    """The demo's model, exported and converted."""
    folder = tmp_path_factory.mktemp("layers")
    made = {"fp32": demo(folder / "fp32")}
    made["int8"] = quantize(made["fp32"], config(target="onnxruntime"), folder / "int8")
    made["portable"] = quantize(made["fp32"], config(target="portable"), folder / "portable")
    made["fp16"] = quantize(made["fp32"], QuantizeConfig(precision="fp16", verify=False), folder / "fp16")
    return made


@pytest.fixture(scope="module")
def reference(files):
    tapped = open_original(files["fp32"], OpenConfig(threads=1))
    with closing(tapped.runner):
        yield tapped


@pytest.fixture
def run(reference, tmp_path, monkeypatch):
    """Trace a file in this process: child processes are not what is tested."""
    from vitdeploy.backends.table import load

    monkeypatch.setattr(tracer, "open_in_child", lambda name, artifact, config: load(name).open(artifact, config))
    count = iter(range(100))

    def start(artifact: Artifact, engine: str = "onnxruntime", against=None, images: int = 8):
        folder = tmp_path / f"run {next(count)}"
        folder.mkdir()
        candidate = open_tapped(artifact, engine, folder, OpenConfig(threads=1))
        with closing(candidate.runner):
            return trace(candidate, against or reference, artifact, cut_batches([pixels("evaluation", images)]))

    return start


def plant(artifact: Artifact, folder, change) -> Artifact:
    """The file alone, with a fault."""
    model = onnx.load(artifact.model)
    change({each.name: each for each in model.graph.initializer})
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return Artifact(folder, msgspec.structs.replace(artifact.record, entry="model.onnx", files={}, weights=None))


def change_values(name: str, change):
    def edit(initializers) -> None:
        values = numpy_helper.to_array(initializers[name])
        initializers[name].CopyFrom(numpy_helper.from_array(change(values.astype(np.float64)).astype(values.dtype), name))

    return edit


FAULTS = {
    "wrong scale": ("int8", WHOLE, lambda layer: change_values(f"{layer}.weight.scale", lambda x: 1.5 * x), "a wrong scale"),
    "dropped bias": ("fp32", LAYERS, lambda layer: change_values(f"{layer}.bias", np.zeros_like), "a bias is missing or wrong"),
    "overflow": (
        "fp16",
        WHOLE,
        lambda layer: change_values(f"{layer}.weight", lambda x: 6e4 * np.sign(x)),
        "FP16 overflow, FP16 holds no more than 65,504",
    ),
}


@pytest.mark.slow
class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_it_is_found_by_name_in_20_of_20_random_layers(self, files, run, tmp_path, fault) -> None:
        kind, layers, edit, cause = FAULTS[fault]
        generator, wrong = random.Random(fault), []
        for number in range(20):
            layer = generator.choice(layers)
            (said,) = run(plant(files[kind], tmp_path / f"{number}", edit(layer))).notes
            if not said.startswith(f"WARNING: {layer} is the first that breaks") or cause not in said:
                wrong.append((layer, said))
        assert wrong == []

    @pytest.mark.parametrize(
        ("kind", "engine", "points"),
        [
            ("fp32", "onnxruntime", 24),
            ("fp32", "openvino", 24),
            ("fp16", "onnxruntime", 23),
            ("int8", "onnxruntime", 19),
            ("portable", "openvino", 19),
        ],
    )
    def test_a_healthy_file_has_no_break_and_room_to_the_limit(self, files, run, kind, engine, points) -> None:
        report = run(files[kind], engine)
        assert report.notes[0].startswith(f"No layer breaks: {points} points")
        assert len(report.rows) == points
        limit = LEAST_DB[files[kind].record.precision]
        assert min(row.metrics["layer_sqnr"].value for row in report.rows) > limit + 15

    def test_a_file_made_elsewhere_is_matched_by_structure(self, files, run, tmp_path) -> None:
        """Names are gone: softmaxes and what norms read, in the order of the graph, beside the FP32 source."""

        def rename(model: onnx.ModelProto) -> onnx.ModelProto:
            for number, node in enumerate(model.graph.node):
                node.name = f"n{number}"
            return model

        def make(name: str, artifact: Artifact) -> Artifact:
            (tmp_path / name).mkdir()
            beside = {"save_as_external_data": True, "location": "tensors.bin", "size_threshold": 256} if name == "source" else {}
            onnx.save(rename(onnx.load(artifact.model)), tmp_path / name / "model.onnx", **beside)
            return Artifact(tmp_path / name, Record(spec=artifact.spec, made_by="import", precision=artifact.record.precision))

        source, spoiled = (
            make("source", files["fp32"]),
            plant(files["fp32"], tmp_path / "fault", FAULTS["dropped bias"][2]("blocks.2.mlp.fc1")),
        )
        (tmp_path / "tapped").mkdir()
        against = open_tapped(source, "onnxruntime", tmp_path / "tapped", OpenConfig(threads=1))
        with closing(against.runner):
            healthy = run(make("same", files["fp32"]), against=against)
            broken = run(make("spoiled", spoiled), against=against)
        assert healthy.notes[0].startswith("No layer breaks: 13 points")
        assert [row.subject for row in healthy.rows][:3] == ["stream.0", "softmax.0", "stream.1"]
        assert broken.notes[0].startswith("WARNING: stream.6 is the first that breaks")  # what the third block gives

    def test_validate_has_a_table_an_engine_and_says_it(self, files, tmp_path) -> None:
        images = str(ROOT / "calibration/fashion-mnist")
        given = ValidateConfig(data=images, split="evaluation", limit=40, layers=True, backends=("onnxruntime",))
        report = validate(files["fp32"], given)
        (layers,) = report.parts
        assert (layers.title, layers.reference, layers.settings["images"]) == ("layers in onnxruntime", "pytorch", 16)
        assert layers.notes[0].startswith("No layer breaks: 24 points")
        assert report.passed


def test_what_has_no_original_says_what_to_name(bare_artifact) -> None:
    with pytest.raises(UsageError, match="nothing to compare layers with"):
        choose_inside(bare_artifact, None, OpenConfig())
    with pytest.raises(UsageError, match="the inside of the code a:make is not known"):
        choose_inside(bare_artifact, "a:make", OpenConfig())


def test_images_are_cut_to_a_few_in_small_batches() -> None:
    parts = cut_batches([np.zeros((7, 1)), np.zeros((20, 1)), np.zeros((5, 1))])
    assert [len(part) for part in parts] == [4, 3, 4, 4, 1]
