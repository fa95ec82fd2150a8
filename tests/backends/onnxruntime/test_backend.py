"""ONNX Runtime compiled: the optimised graph computes the same, and is used only where it fits; devices are never guessed."""

import gc
import json
import weakref
from functools import partial

import msgspec
import numpy as np
import onnx
import pytest

from tests.backends.compiled import compile_all, compiled, copied, quantize_each, run_in, tensor, with_run, write_run
from tests.backends.qdq import Quantizer
from vitdeploy import machine
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import cache, table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.onnxruntime import backend
from vitdeploy.errors import InputError, MachineError, TrustError, UsageError
from vitdeploy.onnxfile.nodes import read_nodes
from vitdeploy.recipe import CompileConfig

KINDS = ("fp32", "int8", "int8 attention", "weights", "at run time", "static", "bytes")


@pytest.fixture(scope="module")
def sources(tiny_artifact, tiny_static, tiny_bytes, tmp_path_factory):
    """ONNX artifacts of every kind."""
    return {
        "fp32": tiny_artifact,
        "static": tiny_static,
        "bytes": tiny_bytes,
        **quantize_each(tiny_artifact, partial(tmp_path_factory.mktemp, "quantized")),
        "at run time": Quantizer(tiny_artifact).at_run_time().write(tmp_path_factory.mktemp("quantized")),
    }


@pytest.fixture(scope="module")
def engines(sources, tmp_path_factory):
    """The same, compiled."""
    return compile_all(sources, tmp_path_factory.mktemp("engines"), "onnxruntime")


@pytest.fixture(scope="module")
def engine(engines):
    return engines["fp32"]


opened, outputs = run_in("onnxruntime")


# The optimised graph


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [None, "onnxruntime 1.30.0"], ids=["optimised", "source"])
def test_it_computes_the_same_bits(sources, engines, kind, version, tmp_path):
    engine = engines[kind] if version is None else restamped(engines[kind], tmp_path, **{"made by": version})
    results, settings = outputs(engine)
    assert settings["optimised"] == ("yes" if version is None else f"no: made by {version}")
    expected, _ = outputs(sources[kind], threads=1)
    assert results.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(results[name], rows)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fits", [True, False], ids=["optimised", "source"])
def test_it_runs_the_same_kernels(sources, engines, kind, fits, tmp_path):
    with opened(sources[kind], threads=1) as runner:
        expected = runner.kernels()
    with opened(engines[kind] if fits else restamped(engines[kind], tmp_path, **{"made by": "?"})) as runner:
        assert (runner.settings["optimised"] == "yes") == fits
        assert sorted(runner.kernels()) == sorted(expected)  # independent nodes may change places
    assert len([kernel for kernel in expected if kernel.role != "other"]) == 14


def test_the_graph_was_optimised(engine):
    kept, source = (read_nodes(engine.folder / name) for name in ("optimised.onnx", "model.onnx"))
    assert len(kept.all) < len(source.all)
    assert "com.microsoft::BiasGelu" in {node.operator for node in kept.all}


def test_the_artifact_is_whole(engine, tiny_artifact):
    again = Artifact.open(engine.folder)  # compares the contract inside the optimised graph with the record's, too
    assert set(again.record.files) == {"optimised.onnx", "optimised.bin", "model.onnx", "cache.json"}
    assert again.engine == "onnxruntime"
    assert (engine.folder / "model.onnx").read_bytes() == tiny_artifact.model.read_bytes()


def test_weights_lie_beside_the_graph(engine):
    assert (engine.folder / "optimised.bin").stat().st_size > 0.8 * (engine.folder / "model.onnx").stat().st_size


# Where it does not fit


def restamped(engine, folder, **changed):
    copy = copied(engine, folder / "copy")
    path = copy.folder / cache.NAME
    stamp = json.loads(path.read_text())
    assert set(stamp) >= set(changed)
    path.write_text(json.dumps(stamp | changed))
    return copy


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"made by": "onnxruntime 1.30.0"}, "no: made by onnxruntime 1.30.0"),
        ({"made for": "aarch64 asimd asimddp"}, "no: made for aarch64 asimd asimddp"),
        ({"made with": "all optimisations, CPUExecutionProvider, batch 7"}, "no: made with all optimisations"),
    ],
    ids=["version", "processor", "batch"],
)
def test_a_graph_that_does_not_fit_is_left_alone(engine, changed, said, tmp_path):
    results, settings = outputs(restamped(engine, tmp_path, **changed))
    assert settings["optimised"].startswith(said)
    np.testing.assert_array_equal(results["logits"], outputs(engine)[0]["logits"])


def test_another_processor_optimises_anew(engine, monkeypatch):
    monkeypatch.setattr(machine, "instruction_sets", lambda: "riscv64")
    assert outputs(engine)[1]["optimised"].startswith("no: made for ")


@pytest.mark.parametrize("stamped", [b"{", b"\xff", b"[]", b'{"made by": 1}', b" " * 70_000, None])
def test_a_damaged_stamp_is_no_error(engine, stamped, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    path = copy.folder / cache.NAME
    path.unlink() if stamped is None else path.write_bytes(stamped)
    assert outputs(copy)[1]["optimised"] == f"no: {'it has no stamp' if stamped is None else 'its stamp is damaged'}"


@pytest.mark.parametrize("name", ["optimised.onnx", "optimised.bin"])
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_a_cut_graph_is_left_alone(engine, name, keep, tmp_path):
    copy = copied(engine, tmp_path / "copy")
    path = copy.folder / name
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw))])
    results, settings = outputs(copy)
    assert settings["optimised"].startswith("no: onnxruntime: ")
    np.testing.assert_array_equal(results["logits"], outputs(engine)[0]["logits"])


# A fixed batch


@pytest.mark.parametrize("kind", ["fp32", "int8"])
@pytest.mark.parametrize("fits", [True, False], ids=["optimised", "source"])
def test_a_frozen_batch(sources, kind, fits, tmp_path):
    engine = compiled(sources[kind], tmp_path / "out", "onnxruntime", threads=1, batch=3)
    engine = engine if fits else restamped(engine, tmp_path, **{"made by": "?"})
    with opened(engine) as runner:
        assert runner.batch == 3
        assert (runner.settings["optimised"] == "yes") == fits
        with pytest.raises(InputError, match=r"\[3, 3, 16, 24\]"):
            runner.run(tensor(engine, 4))
        rows = runner.run(tensor(engine, 3))["logits"]
        products = [kernel for kernel in runner.kernels() if kernel.role == "gemm"]
    assert {kernel.kind for kernel in products} == ({"Gemm"} if kind == "fp32" else {"QGemm", "Gemm"})  # of a known shape
    assert sum(kernel.precision == "int8" for kernel in products) == (0 if kind == "fp32" else 8)
    expected = outputs(sources[kind], 3)[0]["logits"]
    np.testing.assert_allclose(rows, expected, atol=1e-5 if kind == "fp32" else 0.05)


def test_another_batch_than_the_files_is_refused(tiny_static, tmp_path):
    with pytest.raises(UsageError, match="batches of 4 only") as caught:
        compiled(tiny_static, tmp_path / "out", "onnxruntime", batch=3)
    assert caught.value.code == "VD2011"
    with opened(compiled(tiny_static, tmp_path / "four", "onnxruntime", batch=4)) as runner:
        assert (runner.batch, runner.settings["optimised"]) == (4, "yes")


def test_a_batch_axis_without_a_name_is_refused(tiny_artifact, tmp_path):
    model = onnx.load(tiny_artifact.model)
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="without a name") as caught:
        compiled(Artifact(tmp_path, Record(spec=tiny_artifact.spec, made_by="test")), tmp_path / "out", "onnxruntime", batch=2)
    assert caught.value.code == "VD2011"


# Data files beside the source


def beside(artifact, folder, location):
    """The model with its weights in a file of their own."""
    model = onnx.load(artifact.model)
    folder.mkdir()
    onnx.save(model, folder / "vit.onnx", save_as_external_data=True, location=location, size_threshold=1024)
    return Artifact(folder, Record(spec=artifact.spec, entry="vit.onnx", made_by="test"))


def test_data_files_come_along(tiny_artifact, engine, tmp_path):
    source = beside(tiny_artifact, tmp_path / "source", "vit.data")
    made = compiled(source, tmp_path / "out", "onnxruntime", threads=1)
    assert "vit.data" in made.record.files
    for each in (made, restamped(made, tmp_path, **{"made by": "?"})):
        np.testing.assert_array_equal(outputs(each)[0]["logits"], outputs(engine)[0]["logits"])


@pytest.mark.parametrize("name", ["optimised.bin", "cache.json", "artifact.json"])
def test_a_data_file_with_a_taken_name_is_refused(tiny_artifact, name, tmp_path):
    with pytest.raises(InputError, match="keeps data in a file named") as caught:
        compiled(beside(tiny_artifact, tmp_path / "source", name), tmp_path / "out", "onnxruntime")
    assert caught.value.code == "VD3026"


def test_a_data_file_elsewhere_is_refused(tiny_artifact, tmp_path):
    source = beside(tiny_artifact, tmp_path / "source", "vit.data")
    model = onnx.load(source.model, load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = "../vit.data"
    source.model.write_bytes(model.SerializeToString())
    (source.folder / "vit.data").rename(tmp_path / "vit.data")
    with pytest.raises(TrustError) as caught:
        compiled(source, tmp_path / "out", "onnxruntime")
    assert caught.value.code == "VD7001"


# Settings


def test_settings_reach_the_session(tiny_artifact, monkeypatch):
    seen = []
    genuine = backend.onnxruntime.InferenceSession

    def session(model, options, **more):
        seen.append(options)
        return genuine(model, options, **more)

    monkeypatch.setattr(backend.onnxruntime, "InferenceSession", session)
    settings = outputs(tiny_artifact, threads=1, spin=False, arena=False)[1]
    assert (settings["spin"], settings["arena"]) == (False, False)
    (options,) = seen
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.enable_cpu_mem_arena is False
    assert not {"spin", "arena", "optimised"} & set(outputs(tiny_artifact)[1])
    assert seen[1].enable_cpu_mem_arena is True


def test_a_closed_runner_holds_no_session(tiny_artifact):
    """Its arena and weights are given back though the runner itself is still referred to."""
    runner = backend.OnnxRuntime().open(tiny_artifact, OpenConfig(threads=1))
    session = weakref.ref(runner._session)
    runner.close()
    gc.collect()
    assert session() is None


def test_the_artifact_brings_its_settings(engine):
    assert outputs(engine)[1]["threads"] == 1
    tuned = with_run(engine, spin=False, arena=False)
    settings = outputs(tuned)[1]
    assert (settings["spin"], settings["arena"], settings["optimised"]) == (False, False, "yes")
    assert outputs(tuned, spin=True)[1]["spin"] is True
    assert outputs(engine, threads=2)[1]["threads"] == 2


@pytest.mark.parametrize("run", [{"threads": "many"}, {"spin": 3}], ids=["threads", "spin"])
def test_damaged_settings_in_the_record(engine, run, tmp_path):
    with pytest.raises(InputError, match=rf"proof\.run\.{next(iter(run))}") as caught:
        Artifact.open(write_run(engine, tmp_path / "damaged", **run))
    assert caught.value.code == "VD3010"


def test_a_setting_in_the_record_that_it_does_not_have(engine):
    with pytest.raises(UsageError, match="no setting 'graph'") as caught:
        outputs(with_run(engine, graph=True))
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("setting", [{"hint": "throughput"}, {"streams": 2}, {"effort": 5}, {"architectures": ("8.9",)}])
def test_settings_of_other_engines_are_refused(tiny_artifact, setting, tmp_path):
    with pytest.raises(UsageError, match=f"no setting '{next(iter(setting))}'") as caught:
        compiled(tiny_artifact, tmp_path / "out", "onnxruntime", **setting)
    assert caught.value.code == "VD2011"


def test_every_candidate_opens(engine):
    listed = table.load("onnxruntime").candidates(CompileConfig(backend="onnxruntime"))
    assert listed[0] == OpenConfig(device="cpu")
    assert 3 <= len(listed) <= 8
    assert len(set(map(str, listed))) == len(listed)
    assert {candidate.spin for candidate in listed} == {None, False}
    expected = outputs(engine)[0]["logits"]
    for candidate in listed:
        logits, settings = outputs(engine, **msgspec.structs.asdict(candidate))
        assert settings["optimised"] == "yes"
        np.testing.assert_allclose(logits["logits"], expected, atol=1e-5)


def test_candidates_keep_the_threads_that_were_given(monkeypatch):
    monkeypatch.setattr(machine, "physical_cores", lambda: 3)
    monkeypatch.setattr(machine, "logical_cores", lambda: 6)
    backend = table.load("onnxruntime")
    assert {each.threads for each in backend.candidates(CompileConfig(backend="onnxruntime", threads=1))} == {1}
    assert {each.threads for each in backend.candidates(CompileConfig(backend="onnxruntime"))} == {None, 3}


# Devices


@pytest.mark.parametrize(("device", "provider"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")])
def test_a_provider_that_the_build_lacks(tiny_artifact, device, provider, tmp_path):
    if provider in backend.onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {provider}")
    for attempt in (
        lambda: outputs(tiny_artifact, device=device),
        lambda: compiled(tiny_artifact, tmp_path / "out", "onnxruntime", device=device),
    ):
        with pytest.raises(MachineError, match=f"no {provider}; it has .*CPUExecutionProvider") as caught:
            attempt()
        assert caught.value.code == "VD4010"


@pytest.fixture
def other_build(monkeypatch):
    """A build that has CUDA and TensorRT; what its sessions then use is the test's choice."""
    calls = []

    class Session:
        used: tuple[str, ...] = ()

        def __init__(self, model, options, providers, **more):
            calls.append((providers, more))

        def get_providers(self):
            return list(self.used)

        def get_inputs(self):
            return [type("Port", (), {"shape": ["batch", 3, 16, 24], "name": "pixels"})]

        def get_outputs(self):
            return []

    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(backend.onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(backend.onnxruntime, "InferenceSession", Session)
    return Session, calls


@pytest.mark.parametrize(("device", "count"), [("cpu", 1), ("cuda", 2), ("tensorrt", 3)])
def test_providers_are_asked_for_in_order(tiny_artifact, other_build, device, count):
    session, calls = other_build
    order = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")[-count:]
    session.used = order
    with opened(tiny_artifact, device=device) as runner:
        assert runner.settings["device"] == device
    providers, more = calls[0]
    assert tuple(name for name, _ in providers) == order
    assert dict(providers).get("CUDAExecutionProvider", {"use_tf32": "0"}) == {"use_tf32": "0"}
    assert more == {"enable_fallback": 0}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_falling_back_to_the_cpu_is_an_error(tiny_artifact, other_build, device):
    session, _ = other_build
    session.used = ("CPUExecutionProvider",)
    with pytest.raises(MachineError, match="uses CPUExecutionProvider instead of") as caught:
        outputs(tiny_artifact, device=device)
    assert caught.value.code == "VD4010"


def test_other_devices_keep_settings_only(tiny_artifact, other_build, tmp_path):
    session, _ = other_build
    session.used = ("CUDAExecutionProvider", "CPUExecutionProvider")
    made = compiled(tiny_artifact, tmp_path / "out", "onnxruntime", device="cuda", threads=1)
    assert set(made.record.files) == {"model.onnx"}
    with opened(made) as runner:
        assert runner.settings["device"] == "cuda"
        assert "optimised" not in runner.settings
