"""Promises of `quantize`: what each target and precision gets, honest records, the same bytes, nothing half-written."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image

import vitdeploy
from tests.backends.test_kernels import needs_bf16, needs_vnni
from tests.conftest import TINY, write_artifact
from tests.quant.fashion import edited
from tests.quant.in_process import quantize
from vitdeploy.artifact import RECORD, Artifact
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.backends.table import load
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.measure.parity import Parity
from vitdeploy.quant.halves import HALVES
from vitdeploy.quant.layout import choose_layout
from vitdeploy.recipe import QuantizeConfig, ValidateConfig
from vitdeploy.record import Calibration

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 images."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, pixels in enumerate(synthetic.pixels(40, TINY.input, seed=5)):
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def config(pictures):
    """INT8 from the images, nothing measured."""

    def make(**settings):
        given = {"calibration": str(pictures), "threads": 1, "verify": False}
        return QuantizeConfig(**given | settings)

    return make


def logits(artifact, engine="onnxruntime", *, seed=9):
    """Of 48 images that calibration has not seen."""
    contract = artifact.spec.input
    tensor = images.to_tensor(synthetic.pixels(48, contract, seed=seed), contract)
    with closing(load(engine).open(artifact, OpenConfig(threads=1))) as runner:
        return run_any(runner, tensor)[artifact.spec.output]


def apart(source, found, engine="onnxruntime"):
    """Largest difference, in standard deviations of the source's output."""
    expected, got = logits(source), logits(found, engine)
    return float(np.abs(expected - got).max() / expected.std())


def ratio(source, found, engine="onnxruntime"):
    """Signal to quantization noise in dB."""
    parity = Parity("regression")
    parity.add(logits(source), logits(found, engine))
    return parity.metrics()["sqnr"].value


def constants(artifact):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(artifact.model).graph.initializer}


def nodes(artifact, kind):
    return [node for node in onnx.load(artifact.model).graph.node if node.op_type == kind]


def opset(artifact):
    return next(each.version for each in onnx.load(artifact.model).opset_import if each.domain in ("", "ai.onnx"))


# Targets


@pytest.mark.sampled(3)
@pytest.mark.parametrize("batch", ["dynamic", "fixed"])
@pytest.mark.parametrize("target", [*ENGINES, "portable"])
def test_int8_runs_as_planned_on_every_engine_of_the_target(tiny_artifact, tiny_static, config, target, batch, tmp_path):
    source = tiny_static if batch == "fixed" else tiny_artifact
    quantized = quantize(source, config(target=target), tmp_path / "out")
    engines = ENGINES if target == "portable" else (target,)
    assert tuple(quantized.record.proof.census) == engines
    for engine in engines:
        counted = quantized.record.proof.census[engine]
        assert counted.planned == counted.executed
        assert counted.planned["gemms"] == (10 if target == "openvino" else 9)  # OpenVINO: the patch embedding too
        assert ratio(source, quantized, engine) > 25
    onnx.checker.check_model(onnx.load(quantized.model), full_check=target != "onnxruntime")


@pytest.mark.parametrize("target", [*ENGINES, "portable"])
def test_bytes_with_channels_last_run_as_planned(tiny_bytes, config, target, tmp_path):
    quantized = quantize(tiny_bytes, config(target=target, limit=32), tmp_path / "out")
    for engine in ENGINES if target == "portable" else (target,):
        counted = quantized.record.proof.census[engine]
        assert counted.planned == counted.executed
        assert counted.planned["gemms"] == (10 if target == "openvino" else 9)
        assert ratio(tiny_bytes, quantized, engine) > 25


@pytest.mark.slow
@needs_vnni
def test_openvino_multiplies_attention_in_int8(tiny_artifact, config, tmp_path):
    quantized = quantize(tiny_artifact, config(target="openvino", attention=True), tmp_path / "out")
    assert quantized.record.proof.census["openvino"].executed == {"gemms": 10, "dynamic": 0, "attention": 4}
    kept, inside = constants(quantized), []
    for node in nodes(quantized, "QuantizeLinear"):
        if kept[node.input[2]].dtype == np.int8 or "Softmax" in node.name:
            assert int(kept[node.input[2]]) == 0, "the fused attention takes zero point 0 only"
            inside.append(node.name)
    assert len(inside) >= 4
    plain = quantize(tiny_artifact, config(target="openvino"), tmp_path / "plain")
    assert plain.record.proof.census["openvino"].executed == {"gemms": 10, "dynamic": 0, "attention": 0}
    assert ratio(tiny_artifact, plain, "openvino") > ratio(tiny_artifact, quantized, "openvino") > 20


def test_portable_is_symmetric_and_runs_in_both(tiny_artifact, config, tmp_path):
    quantized = quantize(tiny_artifact, config(target="portable"), tmp_path / "out")
    kept = constants(quantized)
    zeros = [array for name, array in kept.items() if name.endswith(".zero")]
    assert zeros
    assert not any(array.any() for array in zeros)
    assert {array.dtype for array in zeros} <= {np.dtype(np.int8), np.dtype(np.int32)}
    one, other = (logits(quantized, engine) for engine in ENGINES)
    assert np.abs(one - other).max() < 0.05 * one.std()
    assert {entry.domain for entry in onnx.load(quantized.model).opset_import} <= {"", "ai.onnx"}


def test_tensorrt_gets_symmetric_int8_and_fp16(tiny_artifact, config, tmp_path):
    """No TensorRT runs here: its rules for a file are checked, and that ONNX Runtime computes the same from it."""
    quantized = quantize(tiny_artifact, config(target="tensorrt"), tmp_path / "out")
    model = onnx.load(quantized.model)
    kept = constants(quantized)
    assert opset(quantized) <= 20
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    zeros = [array for name, array in kept.items() if name.endswith(".zero")]
    assert zeros
    assert {array.dtype for array in zeros} == {np.dtype(np.int8)}
    assert not any(array.any() for array in zeros)
    assert TensorProto.INT32 not in {tensor.data_type for tensor in model.graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gelu", "Softmax")]
    assert len(products) >= 15
    assert {types[node.output[0]] for node in products} == {TensorProto.FLOAT16}
    assert [types[value.name] for value in model.graph.output] == [TensorProto.FLOAT]
    assert quantized.record.proof.census == {}
    assert "not run here" in quantized.record.proof.verdict
    onnx.checker.check_model(model, full_check=True)
    assert ratio(tiny_artifact, quantized) > 20


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"symmetric": False, "signed": False, "attention": False, "codes": 127}),
        ({"target": "openvino"}, {"symmetric": False, "attention": False, "integer_bias": False}),
        ({"target": "openvino", "attention": True}, {"attention": True}),
        ({"target": "portable"}, {"symmetric": True, "attention": False, "integer_bias": True, "pixels": None}),
        ({"target": "tensorrt"}, {"symmetric": True, "integer_bias": False}),
        ({"isa": "avx2"}, {"codes": 63}),
        ({"isa": "avx512-vnni"}, {"codes": 127}),
        ({"isa": "amx", "target": "openvino"}, {"codes": 127}),
        ({"isa": "neon-dotprod"}, {"signed": True, "symmetric": False, "codes": 127}),
    ],
)
def test_the_layout_follows_the_target_not_this_machine(config, settings, expected):
    layout = choose_layout(config(**settings), TINY.input, fixed=True)
    assert {name: getattr(layout, name) for name in expected} == expected


# Other precisions


@pytest.mark.parametrize("calibrated", [True, False])
def test_fp16(tiny_artifact, pictures, calibrated, tmp_path):
    given = {"calibration": str(pictures)} if calibrated else {}
    quantized = quantize(tiny_artifact, QuantizeConfig(precision="fp16", threads=1, verify=False, **given), tmp_path / "out")
    assert apart(tiny_artifact, quantized) < 1e-2
    done = quantized.record.proof.fp16
    assert done.half > 20
    assert len(done.overflow) == 0
    assert any("LayerNorm" in note for note in quantized.record.proof.notes) is not calibrated
    assert quantized.model.stat().st_size < 0.7 * tiny_artifact.model.stat().st_size
    halves = [name for name, array in constants(quantized).items() if array.dtype == np.float16]
    assert any("weight" in name for name in halves)


def test_fp16_keeps_what_would_overflow(tiny_artifact, config, tmp_path):
    """Values of some 200,000 behind the first block's GELU: in FP16 they would be infinite, and the logits not numbers."""

    def larger(model):
        for tensor in model.graph.initializer:
            factor = {"blocks.0.mlp.fc1.weight": 3e4, "blocks.0.mlp.fc1.bias": 3e4, "blocks.0.mlp.fc2.weight": 1 / 3e4}
            if tensor.name in factor:
                array = numpy_helper.to_array(tensor) * np.float32(factor[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    source = edited(tiny_artifact, tmp_path / "source", larger)
    quantized = quantize(source, config(precision="fp16"), tmp_path / "out")
    overflow = quantized.record.proof.fp16.overflow
    assert any("mlp" in each.node or "mlp" in each.tensor for each in overflow)
    assert all(each.max_abs > 65504 / 2 for each in overflow)
    assert apart(source, quantized) < 1e-2


def test_fp16_keeps_what_is_named(tiny_artifact, config, tmp_path):
    quantized = quantize(tiny_artifact, config(precision="fp16", keep_fp32=("softmax", "head")), tmp_path / "out")
    model = onnx.load(quantized.model)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    assert {types[node.output[0]] for node in model.graph.node if node.op_type == "Softmax"} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in {types[node.output[0]] for node in model.graph.node if node.op_type == "Gelu"}
    with pytest.raises(UsageError, match="VD2003"):
        quantize(tiny_artifact, config(precision="fp16", keep_fp32=("softmaxes",)), tmp_path / "other")


@needs_bf16
def test_bf16_is_a_hint_and_changes_nothing(tiny_artifact, tmp_path):
    quantized = quantize(
        tiny_artifact, QuantizeConfig(precision="bf16", target="openvino", verify=False, threads=1), tmp_path / "out"
    )
    for name, array in constants(tiny_artifact).items():
        np.testing.assert_array_equal(constants(quantized)[name], array)
    with closing(load("openvino").open(quantized, OpenConfig(threads=1))) as runner:
        assert runner.settings["precision"] == "bf16"
    assert 0 < apart(tiny_artifact, quantized, "openvino") < 0.2


@needs_vnni
@pytest.mark.parametrize("target", ENGINES)
@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-weight-only"])
def test_weights_alone_need_no_images(tiny_artifact, precision, target, tmp_path):
    quantized = quantize(
        tiny_artifact, QuantizeConfig(precision=precision, target=target, verify=False, threads=1), tmp_path / "out"
    )
    counted = quantized.record.proof.census[target]
    assert counted.executed == counted.planned == {"gemms": 0, "dynamic": 9, "attention": 0}
    assert ratio(tiny_artifact, quantized, target) > 30
    kinds = {node.op_type for node in onnx.load(quantized.model).graph.node}
    assert ("DynamicQuantizeLinear" in kinds) == (precision == "int8-dynamic" and target == "onnxruntime")


# The artifact


@pytest.mark.parametrize("precision", ["int8", "fp16", "int8-weight-only"])
def test_the_artifact_is_whole_and_says_what_it_is(tiny_artifact, config, precision, tmp_path):
    made = quantize(tiny_artifact, config(precision=precision), tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out")
    assert sorted(path.name for path in artifact.folder.iterdir()) == [RECORD, "golden.npz", "model.onnx"]
    record = artifact.record
    assert (record.precision, record.made_by, record.parent) == (precision, "quantize", tiny_artifact.id)
    assert (record.spec, record.origin) == (tiny_artifact.spec, tiny_artifact.record.origin)
    assert record.config.precision == precision
    assert record.config.limit == 256
    assert record.proof.rewrites and record.proof.census
    assert record.proof.rewritten < 1e-4
    assert {"onnxruntime", "numpy", "vitdeploy"} <= set(record.tools)
    assert artifact.weights.samefile(tiny_artifact.weights)
    assert artifact.id == made.id != tiny_artifact.id
    assert msgspec.json.encode(artifact.record) == msgspec.json.encode(made.record)
    metadata = {entry.key: entry.value for entry in onnx.load(artifact.model).metadata_props}
    assert metadata["vitdeploy.parent"] == tiny_artifact.id
    assert Artifact.open(artifact.model).spec == tiny_artifact.spec


def test_calibration_is_recorded(tiny_artifact, config, pictures, tmp_path):
    record = quantize(tiny_artifact, config(limit=24), tmp_path / "out").record
    assert record.proof.calibration.source == pictures.name
    assert record.proof.calibration.images == 24
    assert len(record.proof.calibration.digest) >= 16
    assert len(record.proof.sites) == 8
    assert all(math.isfinite(site.scale) for site in record.proof.sites)


def test_random_pixels_are_recorded_as_such(tiny_artifact, config, tmp_path):
    record = quantize(tiny_artifact, config(calibration="random"), tmp_path / "out").record
    assert record.proof.calibration == Calibration(source="random", images=64)


def test_validate_compares_it_with_the_pytorch_original(tiny_artifact, config, pictures, tmp_path):
    quantized = quantize(tiny_artifact, config(), tmp_path / "out")
    report = vitdeploy.validate(
        Artifact.open(quantized.folder), ValidateConfig(data=str(pictures), threads=1, backends=("onnxruntime",))
    )
    assert report.reference == "pytorch"
    row = report.rows[1]
    assert (row.subject, row.metrics["images"].value) == ("onnxruntime", 40)
    assert 25 < row.metrics["sqnr"].value < 80, "close to the original, and not the same"


@pytest.mark.slow
def test_the_same_bytes_again(tiny_artifact, config, tmp_path):
    """In another process too, whose strings hash differently."""
    first = quantize(tiny_artifact, config(lane_db=60.0), tmp_path / "first")
    second = quantize(tiny_artifact, config(lane_db=60.0), tmp_path / "second")
    assert first.model.read_bytes() == second.model.read_bytes()
    code = (
        "import sys; from pathlib import Path; import msgspec; from vitdeploy import Artifact, QuantizeConfig, quantize\n"
        "quantize(Artifact.open(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=QuantizeConfig), Path(sys.argv[3]))"
    )
    arguments = [str(tiny_artifact.folder), msgspec.json.encode(config(lane_db=60.0)).decode(), str(tmp_path / "third")]
    environment = {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1", "PATH": ""}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}  # which kernels it takes
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment, timeout=120)
    assert (tmp_path / "third" / RECORD).read_bytes() == (first.folder / RECORD).read_bytes()
    assert Artifact.open(tmp_path / "third").id == first.id


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.mark.parametrize("stage", ["quantize: rewrite", "calibrate", "quantize: round", "moments", "quantize"])
def test_an_interruption_leaves_nothing(tiny_artifact, config, stage, tmp_path):
    def stop(what, done, total):
        if what == stage or (stage == "moments" and what.startswith(stage)):
            raise Stop

    with pytest.raises(Stop):
        quantize(tiny_artifact, config(), tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seen", [1, 3, 20])
def test_an_interrupted_calibration_is_gone_on_with_and_gives_the_same_bytes(tiny_artifact, config, seen, tmp_path):
    whole = quantize(tiny_artifact, config(), tmp_path / "whole")
    heard, cache = [], tmp_path / "cache"

    def stop(what, done, total):
        heard.append(what)
        if heard.count("calibrate") == seen or (seen == 20 and what == "quantize: equalize"):
            raise Stop

    with pytest.raises(Stop):
        quantize(tiny_artifact, config(), tmp_path / "out", cache=cache, progress=stop)
    assert list(cache.rglob("*.npz"))
    heard.clear()
    again = quantize(tiny_artifact, config(), tmp_path / "out", cache=cache, progress=lambda what, *_: heard.append(what))
    assert any(what.startswith("calibrate: goes on after") for what in heard)
    assert again.model.read_bytes() == whole.model.read_bytes()
    assert again.record == whole.record
    assert not list(cache.rglob("*.npz")), "done: nothing is kept"


def test_what_was_kept_for_another_calibration_is_not_used(tiny_artifact, config, tmp_path):
    cache, heard = tmp_path / "cache", []

    def stop(what, done, total):
        if what == "quantize: equalize":
            raise Stop

    with pytest.raises(Stop):
        quantize(tiny_artifact, config(), tmp_path / "out", cache=cache, progress=stop)
    other = config(seed=1, limit=20)
    quantize(tiny_artifact, other, tmp_path / "out", cache=cache, progress=lambda what, *_: heard.append(what))
    assert not any("goes on" in what for what in heard)


@pytest.mark.slow
def test_the_file_is_the_same_whether_or_not_it_is_verified(tiny_artifact, config, tmp_path):
    """The same images are held back, and set no range."""
    one, other = (quantize(tiny_artifact, config(verify=verify), tmp_path / str(verify)) for verify in (True, False))
    assert one.model.read_bytes() == other.model.read_bytes()
    assert one.record.proof.calibration == other.record.proof.calibration
    assert one.record.proof.calibration.images == 30


def test_an_older_artifact_stays_until_the_new_one_is_whole(tiny_artifact, config, tmp_path):
    older = quantize(tiny_artifact, config(precision="int8-weight-only"), tmp_path / "out")

    def stop(what, done, total):
        if what.startswith("moments"):
            raise Stop

    with pytest.raises(Stop):
        quantize(tiny_artifact, config(), tmp_path / "out", progress=stop)
    assert Artifact.open(tmp_path / "out").id == older.id
    newer = quantize(tiny_artifact, config(), tmp_path / "out")
    assert Artifact.open(tmp_path / "out").id == newer.id != older.id
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_source_is_not_touched(tiny_artifact, config, tmp_path):
    before = {path.name: path.read_bytes() for path in tiny_artifact.folder.iterdir()}
    quantize(tiny_artifact, config(), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in tiny_artifact.folder.iterdir()} == before


@pytest.mark.slow
def test_models_that_take_bytes_or_give_no_classes(tiny_bytes, tiny_headless, tiny_embedding, config, tmp_path):
    for source in (tiny_bytes, tiny_headless, tiny_embedding):
        quantized = quantize(source, config(limit=32), tmp_path / source.folder.name)
        assert ratio(source, quantized) > 25
        assert [value.name for value in onnx.load(quantized.model).graph.output] == [
            value.name for value in onnx.load(source.model).graph.output
        ]


def test_the_original_comes_along_when_asked_for(tiny_artifact, config, tmp_path):
    made = quantize(tiny_artifact, config(precision="fp16", keep_original=True), tmp_path / "out")
    assert made.record.files[made.record.weights] == tiny_artifact.record.files[tiny_artifact.record.weights]


def test_a_bare_file_has_no_original_to_bring_along(bare_artifact, config, tmp_path):
    quantized = quantize(bare_artifact, config(limit=32), tmp_path / "out")
    assert quantized.record.weights is None
    assert Artifact.open(quantized.folder).record.parent == bare_artifact.id


@pytest.mark.slow
@pytest.mark.parametrize("opset_", [18, 22])
def test_other_operator_sets(config, opset_, tmp_path):
    from vitdeploy.recipe import ExportConfig

    source = write_artifact(tmp_path / "fp32", TINY, ExportConfig(opset=opset_, prove_batches=(1, 3)))
    quantized = quantize(source, config(target="portable", limit=32), tmp_path / "out")
    assert ratio(source, quantized) > 25


# Statistics


@pytest.fixture(scope="module")
def saved(tiny_artifact, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    made = quantize(tiny_artifact, config(save_statistics=str(folder / "statistics")), folder / "out")
    return folder / "statistics", made


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "portable", "tensorrt"])
def test_statistics_serve_without_images_for_other_targets_too(tiny_artifact, config, saved, target, tmp_path):
    folder, made = saved
    assert sorted(path.name for path in folder.iterdir()) == sorted(HALVES)
    quantized = quantize(tiny_artifact, config(calibration=None, statistics=str(folder), target=target), tmp_path / "out")
    assert quantized.record.proof.calibration == Calibration(source="statistics", folder=str(folder))
    assert ratio(tiny_artifact, quantized, "openvino" if target == "openvino" else "onnxruntime") > 20
    if target == "onnxruntime":
        ours, theirs = (quantized.record.proof.sites, made.record.proof.sites)
        assert [row.chosen for row in ours] == [row.chosen for row in theirs]
        assert [row.scale for row in ours] == [row.scale for row in theirs]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["model", "contract", "rewrites"])
def test_statistics_of_something_else_are_refused(tiny_artifact, tiny_headless, config, saved, kind, tmp_path):
    source = tiny_artifact
    if kind == "model":
        source = tiny_headless
    elif kind == "contract":
        other = msgspec.structs.replace(source.spec.input, mean=(0.1, 0.2, 0.3))
        source = Artifact(
            source.folder, msgspec.structs.replace(source.record, spec=msgspec.structs.replace(source.spec, input=other))
        )
    skip = ("rotation",) if kind == "rewrites" else ()
    with pytest.raises(InputError, match=r"VD3109.*--data") as caught:
        quantize(source, config(calibration=None, statistics=str(saved[0]), skip=skip), tmp_path / "out")
    assert caught.value.file == str(saved[0])
    assert list(tmp_path.iterdir()) == []


# What is worth it


def test_the_verdict_and_its_numbers_are_recorded(tiny_artifact, config, tmp_path):
    """On images held back from the ranges, against PyTorch; the numbers behind the sentence are all there."""
    artifact = Artifact.open(quantize(tiny_artifact, config(verify=True, limit=30), tmp_path / "out").folder)
    worth = artifact.record.proof.worth
    assert (worth.engine, worth.reference, worth.images, worth.held_back) == ("onnxruntime", "pytorch", 10, True)
    assert artifact.record.proof.calibration.images == 30
    assert artifact.record.proof.verdict == worth.verdict
    assert worth.verdict.startswith("INT8: ")
    assert set(worth.latency_ms) == {"fp32", "int8"}
    assert min(worth.latency_ms.values()) > 0
    assert set(worth.size_mib) == {"fp32", "int8"}
    assert worth.agreement.low <= worth.agreement.value <= 1
    assert 0 <= worth.divergence.value < 0.5


# In a process of its own


def children():
    """Numbers of this process's own child processes."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc to find the child")
    return [int(number) for task in tasks.iterdir() for number in (task / "children").read_text().split()]


def test_the_steps_of_the_child_are_heard_and_the_result_is_the_same(tiny_artifact, config, tmp_path):
    here, there = [], []
    first = quantize(tiny_artifact, config(), tmp_path / "here", progress=lambda *step: here.append(step))
    second = vitdeploy.quantize(tiny_artifact, config(), tmp_path / "there", progress=lambda *step: there.append(step))
    assert dict.fromkeys(what for what, _, _ in there) == dict.fromkeys(what for what, _, _ in here)
    assert there[-1] == ("quantize", 5, 5)
    assert second.record == first.record
    assert second.folder == tmp_path / "there"
    assert second.id == first.id


@pytest.mark.slow
def test_paths_are_the_callers_and_errors_cross(tiny_artifact, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    shutil.copytree(tiny_artifact.folder, tmp_path / "source")
    settings = QuantizeConfig(calibration=pictures.name, verify=False, threads=1)
    quantized = vitdeploy.quantize(Artifact.open(tmp_path / "source"), settings, tmp_path / "out")
    assert quantized.record.config.calibration == pictures.name
    assert quantized.record.proof.calibration.images == 30
    with pytest.raises(InputError) as caught:
        vitdeploy.quantize(quantized, settings, tmp_path / "again")
    assert caught.value.code == "VD3024"
    assert caught.value.file == str(quantized.model)
    missing = msgspec.structs.replace(settings, calibration="nowhere")
    with pytest.raises(InputError, match="nowhere") as gone:
        vitdeploy.quantize(Artifact.open(tmp_path / "source"), missing, tmp_path / "again")
    assert (gone.value.code, gone.value.file) == ("VD3001", "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("sign", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_is_one_line_and_leaves_the_older_artifact(tiny_artifact, config, sign, tmp_path):
    older = quantize(tiny_artifact, config(precision="int8-weight-only"), tmp_path / "out")

    def strike(what, done, total):
        if what == "calibrate":
            for number in children():
                os.kill(number, sign)

    with pytest.raises(MachineError) as caught:
        vitdeploy.quantize(tiny_artifact, config(), tmp_path / "out", progress=strike)
    assert caught.value.code == "VD4007"
    assert caught.value.message.startswith(f"the process that quantizes was ended by {sign.name}")
    assert caught.value.file == str(tiny_artifact.model)
    assert ("memory" in caught.value.fix) == (sign == signal.SIGKILL)
    assert Artifact.open(tmp_path / "out").id == older.id
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stage", ["quantize: rewrite", "calibrate", "quantize: write"])
def test_an_interruption_ends_the_child_and_leaves_nothing(tiny_artifact, config, stage, tmp_path):
    struck = []

    def stop(what, done, total):
        if what == stage:
            struck.extend(children())
            raise Stop

    with pytest.raises(Stop):
        vitdeploy.quantize(tiny_artifact, config(), tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert struck
    assert not any(Path(f"/proc/{number}").exists() for number in struck)


def test_packages_that_are_missing_are_named_before_anything_is_written(tiny_artifact, config, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MachineError, match=r"'onnx_ir'.*quantize") as caught:
        vitdeploy.quantize(tiny_artifact, config(), tmp_path / "out")
    assert caught.value.code == "VD4001"
    assert list(tmp_path.iterdir()) == []


def test_the_caller_imports_nothing_that_only_the_child_needs():
    code = "import sys, vitdeploy.verbs.quantizer; print({'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.slow
def test_arrays_of_a_program_set_ranges(tiny_artifact, config, pictures, tmp_path):
    """As the same pixels in files do; the record names no file that is gone."""
    contract = tiny_artifact.spec.input
    given = (images.load(path, contract) for path in sorted(pictures.iterdir()))
    settings = config(calibration="given", verify_images=8, limit=24)
    quantized = vitdeploy.quantize(tiny_artifact, settings, tmp_path / "out", calibration=given)
    assert quantized.record.config.calibration == "given"
    assert quantized.record.proof.calibration.source == "given.jsonl"
    assert quantized.record.proof.calibration.images == 24
    assert next(given, None) is not None, "no more were taken than the config asks for"
    assert ratio(tiny_artifact, quantized) > 20


@pytest.mark.parametrize("given", [None, []], ids=["none", "unexpected"])
def test_images_and_the_config_must_agree(tiny_artifact, config, given, tmp_path):
    settings = config(calibration="given" if given is None else "photos")
    with pytest.raises(UsageError, match="images were") as caught:
        vitdeploy.quantize(tiny_artifact, settings, tmp_path / "out", calibration=given)
    assert caught.value.code == "VD2010" and not (tmp_path / "out").exists()
