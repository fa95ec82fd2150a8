"""Promises of building: NVIDIA's real parser and compiler (TensorRT-RTX) take what we write, on a machine without a GPU.

What this does not show: that an engine runs, what it computes, or how fast; and anything of TensorRT itself, which can't be
installed here.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.backends.tensorrt import graphs
from tests.backends.tensorrt.graphs import fp16, linear, whole, written
from tests.conftest import TINY
from vitdeploy import isolate
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.tensorrt import builder, library, rules, timings
from vitdeploy.backends.tensorrt.backend import PLAN, SHEET, SOURCE, TensorRtRtx
from vitdeploy.backends.tensorrt.device import Device
from vitdeploy.backends.tensorrt.key import EngineKey
from vitdeploy.backends.tensorrt.place import Place, look_around
from vitdeploy.errors import InputError, MachineError, TrustError, UsageError
from vitdeploy.recipe import CompileConfig, QuantizeConfig
from vitdeploy.verbs.quantizer import quantize

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: nothing is compiled")

GPU = Place(Device("Orin", "8.7", True), "CUDA 12.6", "12.6", 8 << 30)
NO_GPU = Place(reason="there is no NVIDIA driver")
WAYS = {
    "fp32": lambda source, folder: source,
    "fp16": fp16,
    "int8": lambda source, folder: written(linear(source), folder),
    "int8 with attention": lambda source, folder: written(whole(source), folder),
    "fp8": lambda source, folder: written(whole(source).fp8(), folder),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test touches the user's own key and caches."""
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def config(**settings) -> CompileConfig:
    return CompileConfig(**{"backend": "tensorrt-rtx"} | settings)


def compiled(source: Artifact, folder: Path, **settings) -> Artifact:
    folder.mkdir(parents=True)
    made = TensorRtRtx().compile(source, config(**settings), folder)
    record = Record(kind="tensorrt-rtx", entry=made.entry, spec=source.spec, made_by="compile")
    return Artifact(folder, record)


# What compiles


@pytest.mark.sampled(4)
@pytest.mark.parametrize("batch", ["dynamic", "fixed"])
@pytest.mark.parametrize("way", WAYS)
def test_every_precision_compiles_and_nothing_is_objected_to(way, batch, tiny_artifact, tiny_static, tmp_path):
    source = WAYS[way](tiny_artifact if batch == "dynamic" else tiny_static, tmp_path / "source")
    assert rules.check(source.model, rules.Target(rtx=True)) == ()
    built = builder.build(rtx, source.model, config(), NO_GPU)
    assert len(built.plan) == built.facts["plan_bytes"] > 100_000
    assert built.notes == ()
    assert built.facts["warnings"] == []
    assert (built.facts["typing"], built.facts["tf32"], built.facts["flags"]) == ("strong", False, [])
    expected = [[size, 3, 16, 24] for size in (1, 1, 8)]
    assert built.facts["profile"] == ({"pixels": expected} if batch == "dynamic" else {})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_quantize_writes_for_tensorrt_compiles(precision, tiny_artifact, tmp_path):
    options = QuantizeConfig(precision=precision, target="tensorrt", calibration="random", threads=1, verify=False, limit=8)
    source = quantize(tiny_artifact, options, tmp_path / "quantized")
    (tmp_path / "engine").mkdir()
    made = TensorRtRtx().compile(source, config(), tmp_path / "engine")
    assert made.notes == ()
    assert (tmp_path / "engine" / PLAN).stat().st_size > 100_000


@pytest.mark.slow
def test_pixels_in_bytes_must_be_cast_first(tiny_bytes, tmp_path):
    assert rules.check(tiny_bytes.model, rules.Target(rtx=True)) == ()
    assert builder.build(rtx, tiny_bytes.model, config(), NO_GPU).notes == ()
    model = onnx.load(tiny_bytes.model)
    cast, transpose = model.graph.node[:2]
    assert (cast.op_type, transpose.op_type) == ("Cast", "Transpose")
    last = transpose.output[0]
    transpose.input[0], transpose.output[0], cast.input[0], cast.output[0] = cast.input[0], "moved", "moved", last
    ordered = [transpose, cast, *model.graph.node[2:]]
    model.graph.ClearField("node")
    model.graph.ClearField("value_info")
    model.graph.node.extend(ordered)
    other = tmp_path / "model.onnx"
    onnx.save(model, other)
    with pytest.raises(InputError, match="takes bytes") as refused:
        rules.check(other, rules.Target(rtx=True))
    assert "--input uint8-nchw" in refused.value.fix
    with pytest.raises(MachineError, match="UInt8"):  # the rule is needed
        builder.build(rtx, other, config(), NO_GPU)


def test_one_batch_or_a_range(tiny_artifact):
    one = builder.build(rtx, tiny_artifact.model, config(batch=3), NO_GPU)
    assert one.facts["profile"] == {"pixels": [[3, 3, 16, 24]] * 3}
    several = builder.build(rtx, tiny_artifact.model, config(usual_batch=4, largest_batch=16), NO_GPU)
    assert several.facts["profile"] == {"pixels": [[size, 3, 16, 24] for size in (1, 4, 16)]}


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("fp32", ("8.0",)),
        ("fp16", ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")),
        ("int8 with attention", ("7.5", "8.9")),
        ("fp8", ("8.9", "12.0")),
    ],
)
def test_several_compute_capabilities(way, wanted, tiny_static, tmp_path):
    source = WAYS[way](tiny_static, tmp_path / "source")
    capabilities = tuple(tuple(map(int, text.split("."))) for text in wanted)
    rules.check(source.model, rules.Target(rtx=True, capabilities=capabilities))
    built = builder.build(rtx, source.model, config(architectures=(*wanted, wanted[0])), NO_GPU)
    assert built.facts["architectures"] == list(wanted)


@pytest.mark.parametrize(("way", "lowest"), [("fp32", "7.5"), ("fp8", "8.6")])
def test_a_capability_without_the_arithmetic_is_refused_by_us_first(way, lowest, tiny_static, tmp_path):
    source = WAYS[way](tiny_static, tmp_path / "source")
    with pytest.raises(InputError, match=f"has {lowest}") as refused:
        compiled(source, tmp_path / "engine", architectures=("8.9", lowest))
    assert refused.value.code == "VD3026"
    with pytest.raises(MachineError) as theirs:  # the rule is needed: their compiler fails, later
        builder.build(rtx, source.model, config(architectures=("8.9", lowest)), NO_GPU)
    assert theirs.value.code == "VD4011"


def test_effort_and_memory_are_what_was_asked(tiny_static):
    facts = builder.build(rtx, tiny_static.model, config(effort=1, workspace_mib=64), NO_GPU).facts
    assert (facts["effort"], facts["workspace_mib"], facts["tactic_dram_mib"]) == (1, 64, None)
    facts = builder.build(rtx, tiny_static.model, config(), Place(free=8 << 30)).facts
    assert (facts["workspace_mib"], facts["tactic_dram_mib"]) == (4096, 6144)


def test_weights_beside_the_file_are_found_and_come_along(tiny_static, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.load(tiny_static.model)
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert (source / "weights.bin").stat().st_size > 10_000
    engine = compiled(Artifact(source, Record(spec=TINY, made_by="import")), tmp_path / "engine")
    assert sorted(path.name for path in engine.folder.iterdir()) == sorted((PLAN, SOURCE, SHEET, "weights.bin"))
    assert (engine.folder / "weights.bin").read_bytes() == (source / "weights.bin").read_bytes()
    (engine.folder / "weights.bin").write_bytes(b"\0" * 20_000)
    with pytest.raises(TrustError, match="another ONNX file"):
        TensorRtRtx().open(engine, OpenConfig())


# Batches and settings that are refused


def test_a_batch_that_the_file_does_not_take(tiny_static):
    with pytest.raises(UsageError, match="the file takes batch 4, not 3") as refused:
        builder.build(rtx, tiny_static.model, config(batch=3), NO_GPU)
    assert refused.value.code == "VD2011"
    builder.build(rtx, tiny_static.model, config(batch=4), NO_GPU)


def test_an_image_size_that_varies(tmp_path):
    file = graphs.single(tmp_path, [helper.make_node("Relu", ["pixels"], ["y"], "relu")], {}, shape=("n", 3, "height", 8))
    with pytest.raises(InputError, match="'pixels' has the size n x 3 x height x 8") as refused:
        builder.build(rtx, file, config(), NO_GPU)
    assert refused.value.code == "VD3026"


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"device": "cpu"}, "VD2011"),
        ({"device": "cuda:x"}, "VD2011"),
        ({"precision": "f16"}, "VD2011"),
        ({"threads": 1}, "VD2011"),
        ({"streams": 2}, "VD2011"),
        ({"hint": "throughput"}, "VD2011"),
        ({"weakly_typed": True}, "VD2011"),
        ({"compatible": True}, "VD2011"),
        ({"architectures": ("9.0",)}, "VD2011"),
        ({"architectures": ("sm89",)}, "VD2003"),
    ],
)
def test_settings_that_rtx_does_not_have(settings, code, tiny_static):
    with pytest.raises(UsageError) as refused:
        builder.build(rtx, tiny_static.model, config(**settings), NO_GPU)
    assert refused.value.code == code


def test_refitting_needs_a_gpu(tiny_static):
    with pytest.raises(MachineError, match="there is no NVIDIA driver") as refused:
        builder.build(rtx, tiny_static.model, config(refit=True), NO_GPU)
    assert refused.value.code == "VD4010"


@pytest.mark.parametrize(
    ("version", "place", "settings", "code"),
    [
        ("10.3.0", NO_GPU, {}, "VD4010"),
        ("11.4.0.106", NO_GPU, {}, "VD4010"),
        ("11.4.0.106", GPU, {"weakly_typed": True}, "VD2011"),
        ("10.3.0", GPU, {"architectures": ("8.7",)}, "VD2011"),
        ("10.3.0", GPU, {"weakly_typed": True, "refit": True, "compatible": True}, ""),
        ("11.4.0.106", GPU, {"refit": True, "compatible": True, "device": "cuda:1"}, ""),
    ],
)
def test_what_each_version_of_tensorrt_has(version, place, settings, code):
    module = SimpleNamespace(__name__="tensorrt", __version__=version)  # no more of it is looked at
    options = CompileConfig(backend="tensorrt", **settings)
    if not code:
        builder.require_supported(module, options, place)
        return
    with pytest.raises((UsageError, MachineError)) as refused:
        builder.require_supported(module, options, place)
    assert refused.value.code == code


# What NVIDIA says becomes one line


def test_parser_errors_are_one_line_with_code_operator_node_and_text(tmp_path):
    node = helper.make_node("BitShift", ["pixels", "pixels"], ["y"], "shift", direction="LEFT")
    file = graphs.single(tmp_path, [node], {}, dtype=TensorProto.UINT8)
    with pytest.raises(MachineError) as refused:
        builder.build(rtx, file, config(), NO_GPU)
    said = str(refused.value)
    assert refused.value.code == "VD4011"
    assert "\n" not in said
    for part in ("the parser refused it", "UNSUPPORTED_NODE at BitShift 'shift'"):
        assert part in said


def test_builder_errors_are_the_first_that_the_log_has(tmp_path):
    file = graphs.attention(tmp_path, TensorProto.FLOAT)
    with pytest.raises(MachineError, match="not supported by a dedicated kernel") as refused:
        builder.build(rtx, file, config(), NO_GPU)
    assert refused.value.code == "VD4011"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "code", "fix"),
    [
        ("Error Code 2: OutOfMemory (no further information)", "VD4006", "workspace"),
        ("[resizingAllocator.cpp] Requested amount of GPU memory: CUDA out of memory", "VD4006", "workspace"),
        ("std::bad_alloc", "VD4006", "workspace"),
        ("Unable to load library: libnvinfer_builder_resource_sm86.so.10.16.2", "VD4010", "sm_86"),
        ("Unable to load library: libnvinfer_lean.so.1", "VD4010", "lean"),
        ("Cuda Runtime (cudaError 35: CUDA driver version is insufficient)", "VD4010", "driver"),
        ("Error Code 10: Internal Error (Could not find any implementation for node x)", "VD4011", ""),
    ],
)
def test_reasons_that_are_known_have_a_remedy(said, code, fix):
    error = builder.failure("the builder failed", said, Path("model.onnx"))
    assert error.code == code
    assert fix in error.fix
    assert said in error.message


def test_a_damaged_file_never_reaches_the_parser(tmp_path, tiny_static):
    (tmp_path / "model.onnx").write_bytes(tiny_static.model.read_bytes()[:-1000])
    with pytest.raises(InputError) as refused:
        builder.build(rtx, tmp_path / "model.onnx", config(), NO_GPU)
    assert refused.value.code == "VD3011"


# The artifact


def test_an_engine_has_its_source_its_key_and_its_seal(tiny_static, tmp_path):
    engine = compiled(tiny_static, tmp_path / "engine", effort=2)
    sheet = json.loads((engine.folder / SHEET).read_bytes())
    assert (engine.folder / SOURCE).read_bytes() == tiny_static.model.read_bytes()
    assert sheet["key"]["tensorrt"] == rtx.__version__
    assert sheet["key"]["options"]["effort"] == 2
    assert sheet["key"]["device"] == "", "an engine of TensorRT-RTX is of no device"
    assert sheet["facts"]["plan_sha256"] == hashlib.sha256(engine.model.read_bytes()).hexdigest()
    assert len(sheet["seal"]["tag"]) == 64


def test_the_same_engine_has_the_same_key(tiny_static, tmp_path):
    digests = set()
    for name, effort in (("one", 2), ("two", 2), ("three", 3)):
        sheet = json.loads((compiled(tiny_static, tmp_path / name, effort=effort).folder / SHEET).read_bytes())
        digests.add(msgspec.convert(sheet["key"], EngineKey).digest)
    assert len(digests) == 2


def test_opening_asks_for_the_origin_first_and_for_the_device_then(tiny_static, tmp_path):
    if look_around().device is not None:
        pytest.skip("there is a GPU here; tests marked gpu open engines on it")
    engine = compiled(tiny_static, tmp_path / "engine")
    with pytest.raises(MachineError, match="no CUDA device: ") as refused:
        TensorRtRtx().open(engine, OpenConfig())
    assert refused.value.code == "VD4010"
    raw = bytearray(engine.model.read_bytes())
    raw[len(raw) // 2] ^= 1
    engine.model.write_bytes(raw)
    with pytest.raises(TrustError, match="changed after it was built here") as tampered:
        TensorRtRtx().open(engine, OpenConfig())
    assert tampered.value.code == "VD7004"
    assert "vitdeploy compile" in tampered.value.fix


def test_an_edited_key_is_a_tampered_engine(tiny_static, tmp_path):
    engine = compiled(tiny_static, tmp_path / "engine")
    sheet = json.loads((engine.folder / SHEET).read_bytes())
    sheet["key"]["options"]["effort"] = 5
    (engine.folder / SHEET).write_text(json.dumps(sheet))
    with pytest.raises(TrustError, match="changed after"):
        TensorRtRtx().open(engine, OpenConfig())


def test_an_engine_of_another_user_or_machine(tiny_static, tmp_path, monkeypatch):
    engine = compiled(tiny_static, tmp_path / "engine")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(TrustError, match="not built by this user on this machine"):
        TensorRtRtx().open(engine, OpenConfig())


def test_an_engine_of_another_version(tiny_static, tmp_path, monkeypatch):
    engine = compiled(tiny_static, tmp_path / "engine")
    backend = TensorRtRtx()
    newer = SimpleNamespace(__name__="tensorrt_rtx", __version__="99.1")
    monkeypatch.setattr(backend, "_module", newer)
    with pytest.raises(TrustError, match=f"built with TensorRT {rtx.__version__}, here is 99.1"):
        backend.open(engine, OpenConfig())


def test_a_file_that_is_no_engine(tiny_static, tmp_path):
    with pytest.raises(UsageError, match="has to be compiled before") as refused:
        TensorRtRtx().open(tiny_static, OpenConfig())
    assert refused.value.code == "VD2013"
    engine = compiled(tiny_static, tmp_path / "engine")
    with pytest.raises(UsageError, match="already") as again:
        TensorRtRtx().compile(engine, config(), tmp_path)
    assert again.value.code == "VD2013"
    other = msgspec.structs.replace(
        tiny_static.record, made_by="quantize", config=QuantizeConfig(target="openvino", calibration="random")
    )
    with pytest.raises(UsageError, match="was quantized for openvino"):
        TensorRtRtx().compile(Artifact(tiny_static.folder, other), config(), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b'{"schema_version": 1, "key": 3}', None])
def test_a_damaged_sheet(damage, tiny_static, tmp_path):
    engine = compiled(tiny_static, tmp_path / "engine")
    if damage is None:
        (engine.folder / SHEET).unlink()
    else:
        (engine.folder / SHEET).write_bytes(damage)
    with pytest.raises(InputError) as refused:
        TensorRtRtx().open(engine, OpenConfig())
    assert refused.value.code == "VD3010"


def test_nothing_is_left_to_choose_by_measuring():
    assert TensorRtRtx().candidates(config()) == ()


# Processes


def in_child(argument: dict[str, str]) -> dict[str, object]:
    made = TensorRtRtx().compile(Artifact.open(Path(argument["source"])), config(), Path(argument["folder"]))
    return msgspec.to_builtins(made)


def test_a_child_process_compiles(tiny_static, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    argument = {"source": str(tiny_static.folder), "folder": str(tmp_path / "engine")}
    (tmp_path / "engine").mkdir()
    answer = isolate.run("tests.backends.tensorrt.test_builder:in_child", argument, seconds=120)
    assert answer["entry"] == PLAN
    assert answer["facts"]["layers"] > 50


def test_an_interpreter_that_has_compiled_ends_well(tiny_static):
    """The library is told to log into Python until the process is gone."""
    code = (
        "import sys; from pathlib import Path\n"
        "from vitdeploy.backends.tensorrt.backend import builder, library\n"
        "from vitdeploy.backends.tensorrt.place import Place\n"
        "from vitdeploy.recipe import CompileConfig\n"
        "trt, config = library.load('tensorrt-rtx'), CompileConfig(backend='tensorrt-rtx')\n"
        f"assert builder.build(trt, Path({str(tiny_static.model)!r}), config, Place()).plan"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_needs_neither_onnx_nor_torch_nor_an_engine():
    """What a Jetson has: numpy and msgspec."""
    banned = ("onnx", "onnx_ir", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "rich", "typer")
    modules = ("builder", "rules", "key", "profile", "place", "timings", "attention", "library")
    imports = "\n".join(f"import vitdeploy.backends.tensorrt.{name}" for name in modules)
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r}))\n{imports}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_module_says_where_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MachineError, match="tensorrt") as refused:
        library.load("tensorrt")
    assert refused.value.code == "VD4001"
    assert "--system-site-packages" in refused.value.fix


def test_an_old_module_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__name__="tensorrt", __version__="8.6.1"))
    with pytest.raises(MachineError, match=r"TensorRT 8\.6\.1 is installed, 10\.3 or later"):
        library.load("tensorrt")


# Small parts


def test_one_log_hears_every_builder_of_the_process(tiny_static):
    """The library keeps the first logger it was given: a second one would hear nothing."""
    log = library.log(rtx)
    assert library.log(rtx) is log
    keeper = rtx.Builder(log.native)  # while this lives, the library ignores other loggers
    with log.listening() as one, log.listening() as two:
        builder.build(rtx, tiny_static.model, config(), NO_GPU)
    assert one == two
    assert any("Engine generation completed" in message.text for message in one)
    assert not [message for message in one if message.severity == "warning"]
    before = len(one)
    builder.build(rtx, tiny_static.model, config(), NO_GPU)
    assert len(one) == before, "it hears nothing after its block"
    del keeper


def test_a_logger_never_raises(caplog):
    log = library.log(rtx)
    with log.listening() as said:
        log.take(object(), b"\xff")
        log.take(SimpleNamespace(value=99), "far")
        log.take(SimpleNamespace(value=0), "internal")
        log.take(SimpleNamespace(value=4), "verbose")
    assert [message.severity for message in said] == ["info", "info", "error"]


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_timing_cache_is_written_and_read(tiny_static, tmp_path):
    """The calls, with the real classes. TensorRT-RTX keeps no timings in it, and `compile` gives it none."""
    cache = tmp_path / "deep" / "timing.cache"
    first = builder.build(rtx, tiny_static.model, config(), NO_GPU, cache)
    assert cache.is_file()
    assert first.notes == ()
    assert builder.build(rtx, tiny_static.model, config(), NO_GPU, cache).notes == ()
    (tmp_path / "file").write_bytes(b"")
    (note,) = builder.build(rtx, tiny_static.model, config(), NO_GPU, tmp_path / "file" / "timing.cache").notes
    assert "the timing cache was not kept" in note


def test_timings_belong_to_a_device_driver_and_version_not_to_a_model(tmp_path, monkeypatch):
    key = EngineKey(
        backend="tensorrt", device="Orin", capability="8.7", driver="CUDA 12.6", cuda="12.6", tensorrt="10.3.0", onnx="a"
    )
    file = timings.timing_cache(key)
    assert file.is_relative_to(tmp_path / "XDG_CACHE_HOME" / "vitdeploy")
    assert timings.timing_cache(msgspec.structs.replace(key, onnx="b", options={"effort": 5})) == file
    for change in ({"device": "Thor"}, {"driver": "CUDA 13.0"}, {"cuda": "13.0"}, {"tensorrt": "10.7.0"}, {"capability": "11.0"}):
        assert timings.timing_cache(msgspec.structs.replace(key, **change)) != file
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert timings.timing_cache(key).is_relative_to(Path.home() / ".cache")


def test_arrays_of_the_fixtures_are_fp8(tiny_static, tmp_path):
    """The FP8 fixture would prove nothing if it held int8."""
    model = onnx.load(written(whole(tiny_static).fp8(), tmp_path / "fp8").model)
    kinds = [tensor.data_type for tensor in model.graph.initializer]
    assert TensorProto.INT8 not in kinds
    assert kinds.count(TensorProto.FLOAT8E4M3FN) > 20
    assert np.dtype(np.float16) in {helper.tensor_dtype_to_np_dtype(kind) for kind in kinds}
