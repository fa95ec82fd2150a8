"""OpenVINO compiled: the model in its own form computes the same, and a kept engine is used only where it fits."""

import hashlib
from functools import partial
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from tests.backends.compiled import compile_all, compiled, copied, quantize_each, run_in, tensor, with_run, write_run
from vitdeploy.artifact import Artifact
from vitdeploy.backends import cache, table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.openvino import settings
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.recipe import CompileConfig

KINDS = ("fp32", "int8", "int8 attention", "weights", "static", "bytes", "fp16")
openvino = pytest.importorskip("vitdeploy.backends.openvino.backend")


@pytest.fixture(scope="module")
def half(tiny_artifact, tmp_path_factory):
    from vitdeploy.recipe import QuantizeConfig
    from vitdeploy.verbs.quantizer import quantize

    config = QuantizeConfig(precision="fp16", target="portable", verify=False, threads=1)
    return quantize(tiny_artifact, config, tmp_path_factory.mktemp("half") / "out")


@pytest.fixture(scope="module")
def sources(tiny_artifact, tiny_static, tiny_bytes, half, tmp_path_factory):
    """ONNX artifacts of every kind."""
    return {
        "fp32": tiny_artifact,
        "static": tiny_static,
        "bytes": tiny_bytes,
        "fp16": half,
        **quantize_each(tiny_artifact, partial(tmp_path_factory.mktemp, "quantized")),
    }


@pytest.fixture(scope="module")
def engines(sources, tmp_path_factory):
    """The same, compiled."""
    return compile_all(sources, tmp_path_factory.mktemp("engines"), "openvino")


@pytest.fixture(scope="module")
def engine(engines):
    return engines["fp32"]


opened, outputs = run_in("openvino")


# The model in OpenVINO's own form


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blob", [True, False], ids=["kept engine", "model"])
def test_it_computes_the_same_bits(sources, engines, kind, blob, tmp_path):
    engine = engines[kind]
    if not blob:
        engine = copied(engine, tmp_path / "copy")
        (engine.folder / "model.blob").unlink()
    results, settings = outputs(engine)
    assert settings.get("blob") == ("yes" if blob else None)
    expected, _ = outputs(sources[kind], threads=1)
    assert results.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(results[name], rows)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blob", [True, False], ids=["kept engine", "model"])
def test_it_runs_the_same_kernels(sources, engines, kind, blob, tmp_path):
    with opened(sources[kind], threads=1) as runner:
        expected = [kernel for kernel in runner.kernels() if kernel.role != "other"]
    engine = engines[kind]
    if not blob:
        engine = copied(engine, tmp_path / "copy")
        (engine.folder / "model.blob").unlink()
    with opened(engine) as runner:
        assert runner.settings.get("blob") == ("yes" if blob else None)
        ran = [kernel for kernel in runner.kernels() if kernel.role != "other"]
    assert sorted(ran) == sorted(expected)
    assert len(ran) >= 14


def test_the_contract_is_inside(engine):
    assert "tiny" in (engine.folder / "model.xml").read_text()
    spec = msgspec.structs.replace(engine.spec, input=msgspec.structs.replace(engine.spec.input, mean=(0.1, 0.2, 0.3)))
    edited = Artifact(engine.folder, msgspec.structs.replace(engine.record, spec=spec))
    with pytest.raises(InputError, match="another spec") as caught:
        outputs(edited)
    assert caught.value.code == "VD3010"


def test_half_precision_stays_half(sources, engines):
    sizes = {kind: (engines[kind].folder / "model.bin").stat().st_size for kind in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_the_artifact_is_whole(engine):
    again = Artifact.open(engine.folder)
    assert set(again.record.files) == {"model.xml", "model.bin", "model.blob", "cache.json"}
    assert again.engine == "openvino"


# A fixed batch


def test_a_frozen_batch(tiny_artifact, tmp_path):
    engine = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1, batch=3)
    with opened(engine) as runner:
        assert runner.batch == 3
        assert runner.settings["blob"] == "yes"
        with pytest.raises(InputError, match=r"\[3, 3, 16, 24\]"):
            runner.run(tensor(engine, 4))
        rows = runner.run(tensor(engine, 3))["logits"]
    np.testing.assert_allclose(rows, outputs(tiny_artifact, 3)[0]["logits"], atol=1e-5)


def test_a_frozen_int8_model_stays_int8(sources, tmp_path):
    engine = compiled(sources["int8 attention"], tmp_path / "out", "openvino", threads=1, batch=2)
    with opened(engine) as runner:
        ran = {kernel.name for kernel in runner.kernels() if kernel.precision == "int8"}
    with opened(sources["int8 attention"], threads=1) as runner:
        assert ran == {kernel.name for kernel in runner.kernels() if kernel.precision == "int8"}


def test_another_batch_than_the_files_is_refused(tiny_static, tmp_path):
    with pytest.raises(UsageError, match="batches of 4 only") as caught:
        compiled(tiny_static, tmp_path / "out", "openvino", batch=3)
    assert caught.value.code == "VD2011"
    assert compiled(tiny_static, tmp_path / "four", "openvino", batch=4).record.entry == "model.xml"


# The kept engine


def replaced(engine, folder, **changed):
    """The engine with another stamp."""
    import json

    copy = copied(engine, folder / "copy")
    path = copy.folder / cache.NAME
    found = json.loads(path.read_text())
    assert set(found) >= set(changed)
    path.write_text(json.dumps(found | changed))
    return copy


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"made by": "openvino 2026.3.0"}, "no: made by openvino 2026.3.0"),
        ({"made for": "Another CPU, x86_64 avx2"}, "no: made for Another CPU"),
        ({"made with": "INFERENCE_PRECISION_HINT bf16"}, "no: made with INFERENCE_PRECISION_HINT bf16"),
        ({"made of": "0" * 64}, "no: made of 0000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_engine_that_does_not_fit_is_left_alone(engine, changed, said, tmp_path):
    results, settings = outputs(replaced(engine, tmp_path, **changed))
    assert settings["blob"].startswith(said)
    np.testing.assert_array_equal(results["logits"], outputs(engine)[0]["logits"])


def test_a_stamp_tells_both_files_the_spec_and_the_settings(engine, tmp_path, monkeypatch):
    """What the kept engine was made of: of sealed files the record's digests, of others their own."""
    core = SimpleNamespace(get_property=lambda place, name: f"{place} {name}")
    monkeypatch.setattr(openvino.machine, "instruction_sets", lambda: "avx2")
    asked = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 2}
    (tmp_path / "model.xml").write_bytes(b"graph")
    (tmp_path / "model.bin").write_bytes(b"weights")

    def stamp(files, spec=engine.spec):
        record = msgspec.structs.replace(engine.record, entry="model.xml", files=files, spec=spec)
        return openvino._stamp(core, "CPU", asked, Artifact(tmp_path, record))

    graph, weights = (hashlib.sha256(raw).hexdigest() for raw in (b"graph", b"weights"))
    spec = hashlib.sha256(msgspec.json.encode(engine.spec)).hexdigest()
    assert stamp({}) == {
        "made by": f"openvino {openvino.openvino.__version__}",
        "made for": "CPU FULL_DEVICE_NAME, avx2",
        "made with": "NUM_STREAMS 1, INFERENCE_NUM_THREADS 2",
        "made of": f"{graph} {weights} {spec}",
    }
    assert stamp({"model.xml": "ab", "model.bin": "cd"})["made of"] == f"ab cd {spec}"
    assert stamp({}, msgspec.structs.replace(engine.spec, name="another"))["made of"].startswith(f"{graph} {weights} ")
    assert stamp({}, msgspec.structs.replace(engine.spec, name="another")) != stamp({})
    (tmp_path / "model.bin").unlink()
    assert stamp({})["made of"] == f"{graph} {spec}"


@pytest.mark.parametrize(
    "stamped", [b"{", b"\xff", b"[]", b'{"made by": 1}', None], ids=["cut", "bytes", "list", "number", "none"]
)
def test_a_damaged_stamp_is_no_error(engine, stamped, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    path = copy.folder / cache.NAME
    path.unlink() if stamped is None else path.write_bytes(stamped)
    settings = outputs(copy)[1]
    assert settings["blob"] in ("no: its stamp is damaged", "no: it has no stamp")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_cut_engine_is_left_alone(engine, keep, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    blob = copy.folder / "model.blob"
    raw = blob.read_bytes()
    blob.write_bytes(raw[: int(keep * len(raw))])
    results, settings = outputs(copy)
    assert settings["blob"].startswith("no: openvino: " if keep else "no: ")
    np.testing.assert_array_equal(results["logits"], outputs(engine)[0]["logits"])


def test_something_else_in_its_place_is_left_alone(engine, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    (copy.folder / "model.blob").write_bytes(b"not an engine" * 1000)
    assert outputs(copy)[1]["blob"].startswith("no: openvino: ")


def test_other_settings_are_compiled_for(engine):
    settings = outputs(engine, threads=2)[1]
    assert settings["threads"] == 2 or settings["blob"] == "yes"  # on a machine with one core two become one
    many = outputs(engine, hint="throughput")[1]
    assert many["blob"].startswith("no: made with")
    assert many["streams"] >= 1  # the engine's own choice is told, since the numbers depend on it
    assert "streams" not in settings


def test_the_kept_engine_outlives_its_artifact(engine, tmp_path):
    """Its file is mapped: replacing the folder, as every verb does, must not take the ground away."""
    import shutil

    copy = copied(engine, tmp_path / "copy")
    with opened(copy) as runner:
        shutil.rmtree(copy.folder)
        np.testing.assert_array_equal(runner.run(tensor(engine))["logits"], outputs(engine)[0]["logits"])


def test_the_kept_engine_is_not_written_to(engine, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    before = (copy.folder / "model.blob").read_bytes()
    (copy.folder / "model.blob").chmod(0o400)
    outputs(copy)
    assert (copy.folder / "model.blob").read_bytes() == before


# Settings


def test_the_artifact_brings_its_settings(tiny_artifact, engine, tmp_path):
    assert outputs(engine)[1]["threads"] == 1
    assert engine.record.proof.run.precision == "f32"
    assert engine.record.proof.facts["settings"]["INFERENCE_PRECISION_HINT"] == "f32"
    made = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1, hint="throughput", streams=1)
    settings = outputs(made)[1]
    assert (settings["hint"], settings["streams"], settings["blob"]) == ("throughput", 1, "yes")
    assert "hint" not in outputs(made, hint="latency")[1]


def test_bfloat16_is_what_runs_or_an_error(tiny_artifact, tmp_path):
    backend = table.load("openvino")
    has = "bf16" in [candidate.precision for candidate in backend.candidates(CompileConfig(backend="openvino"))]
    if not has:
        with pytest.raises(UsageError, match="not in 'bf16'") as caught:
            compiled(tiny_artifact, tmp_path / "out", "openvino", precision="bf16")
        assert caught.value.code == "VD2011"
        return
    made = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1, precision="bf16")
    with opened(made) as runner:
        assert (runner.settings["precision"], runner.settings["blob"]) == ("bf16", "yes")
        assert {kernel.precision for kernel in runner.kernels() if kernel.role == "gemm"} == {"bf16"}
    assert outputs(made, precision="f32")[1]["precision"] == "fp32"


def test_an_artifact_made_for_bfloat16_says_so(tiny_artifact, tmp_path):
    made_for = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, precision="bf16"))
    try:
        made = compiled(made_for, tmp_path / "out", "openvino", threads=1)
    except UsageError as refused:
        assert "not in 'bf16'" in refused.message
        return
    assert made.record.proof.run.precision == "bf16"


@pytest.mark.parametrize(("setting", "words"), [({"threads": 4096}, "threads"), ({"streams": 4096}, "streams")])
def test_more_than_the_machine_has_is_refused(tiny_artifact, setting, words, tmp_path):
    with pytest.raises(UsageError, match=f"{words} here, not 4096") as caught:
        compiled(tiny_artifact, tmp_path / "out", "openvino", hint="throughput", **setting)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize(
    "setting", [{"effort": 5}, {"workspace_mib": 64}, {"refit": True}, {"usual_batch": 2}, {"weakly_typed": True}]
)
def test_settings_of_tensorrt_are_refused(tiny_artifact, setting, tmp_path):
    with pytest.raises(UsageError, match=f"no setting '{next(iter(setting))}'") as caught:
        compiled(tiny_artifact, tmp_path / "out", "openvino", **setting)
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("run", [{"threads": "many"}, {"precision": "f8"}], ids=["threads", "precision"])
def test_damaged_settings_in_the_record(engine, run, tmp_path):
    with pytest.raises(InputError, match=rf"proof\.run\.{next(iter(run))}") as caught:
        Artifact.open(write_run(engine, tmp_path / "damaged", **run))
    assert caught.value.code == "VD3010"


@pytest.mark.parametrize("run", [{"threads": 0}, {"threads": -3}, {"streams": 0}])
def test_senseless_settings_in_the_record(engine, run):
    with pytest.raises(UsageError, match=f"is {next(iter(run.values()))}") as caught:
        outputs(with_run(engine, **run))
    assert caught.value.code == "VD2003"


def test_every_candidate_opens(engine):
    listed = table.load("openvino").candidates(CompileConfig(backend="openvino"))
    assert listed[0] == OpenConfig(device="cpu", precision="f32", hint="latency")
    assert 1 <= len(listed) <= 8
    assert len(set(map(str, listed))) == len(listed)
    for candidate in listed:
        with opened(engine, **msgspec.structs.asdict(candidate)) as runner:
            assert runner.settings["precision"] == openvino.PRECISIONS[candidate.precision]


def test_candidates_keep_what_was_given():
    config = CompileConfig(backend="openvino", threads=1, precision="f32", streams=1)
    (listed,) = table.load("openvino").candidates(config)
    assert listed == OpenConfig(threads=1, device="cpu", precision="f32", hint="latency", streams=1)


# Devices


def test_auto_takes_what_there_is(tiny_artifact, tmp_path):
    engine = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1, device="auto")
    assert not (engine.folder / "model.blob").exists()  # it can't be given away
    results, settings = outputs(engine)
    assert settings["device"].startswith("auto (")
    assert settings["precision"] == "fp32"
    np.testing.assert_allclose(results["logits"], outputs(tiny_artifact, threads=1)[0]["logits"], atol=1e-5)


def test_a_device_that_is_not_here_is_named(tiny_artifact, tmp_path):
    with pytest.raises(MachineError, match="no device 'npu' here; it finds cpu") as caught:
        compiled(tiny_artifact, tmp_path / "out", "openvino", device="npu")
    assert caught.value.code == "VD4010"
    with pytest.raises(MachineError, match=r"'gpu\.7'") as caught:
        outputs(tiny_artifact, device="gpu.7")
    assert caught.value.code == "VD4010"


class Core:
    """Devices and their properties, as another machine would have them."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device, name):
        assert name == "SUPPORTED_PROPERTIES"
        return {"INFERENCE_PRECISION_HINT": "RW", "PERFORMANCE_HINT": "RW", "NUM_STREAMS": "RW"}


def test_names_of_devices():
    assert [settings.find_device(Core(), name) for name in ("cpu", "gpu", "gpu.1", "auto")] == ["CPU", "GPU", "GPU.1", "AUTO"]
    with pytest.raises(MachineError, match=r"finds cpu, gpu\.0, gpu\.1"):
        settings.find_device(Core(), "gpu.2")
    with pytest.raises(UsageError, match="'gqu'") as caught:
        settings.find_device(Core(), "gqu")
    assert "'gpu'" in caught.value.fix


def test_properties_that_a_device_lacks():
    usual = settings.choose_properties(Core(), "GPU", OpenConfig())
    assert usual == {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    with pytest.raises(UsageError, match="INFERENCE_NUM_THREADS") as caught:
        settings.choose_properties(Core(), "GPU", OpenConfig(threads=2))
    assert caught.value.code == "VD2011"


def test_looking_and_compiling_keep_the_signal_stack(tiny_artifact, tmp_path):
    """As opening does: Ctrl-C must stay an interrupt."""
    import ctypes

    def stack():
        now = openvino._SignalStack()
        if ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) != 0:
            pytest.skip("no sigaltstack")
        return now.memory, now.flags, now.size

    before = stack()
    engine = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1)
    assert stack() == before
    table.load("openvino").candidates(CompileConfig(backend="openvino"))
    assert stack() == before
    with opened(engine) as runner:
        assert stack() == before
        runner.kernels()
        assert stack() == before


def test_arithmetic_in_half_is_stored_in_half_or_refused(tiny_artifact, engine, tmp_path):
    try:
        made = compiled(tiny_artifact, tmp_path / "out", "openvino", threads=1, precision="f16")
    except UsageError as refused:
        assert (refused.code, "not in 'f16'" in refused.message) == ("VD2011", True)
        return
    half, whole = ((each.folder / "model.bin").stat().st_size for each in (made, engine))
    assert half < 0.6 * whole
