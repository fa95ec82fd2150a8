"""The runner against a fake engine on a fake device: order, sizes, lifetimes, types. No GPU is involved."""

import json
from contextlib import closing

import msgspec
import numpy as np
import pytest

from tests.backends.tensorrt import fake_device
from tests.backends.tensorrt.fake_device import FakeCuda, FakeEngine
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends.base import Kernel, OpenConfig, Spent
from vitdeploy.backends.tensorrt import runner as runners
from vitdeploy.backends.tensorrt.buffers import Port
from vitdeploy.backends.tensorrt.runner import TensorRtRunner
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.spec import InputContract, ModelSpec

SPEC = ModelSpec(
    name="tiny", input=InputContract(height=4, width=6, channels=3, resize="stretch"), patch=(2, 2), width=8, depth=1, heads=2,
    classes=5,
)  # fmt: skip
IMAGE = (3, 4, 6)
DEPTH = 72
IN, OUT = Port("pixels", "FLOAT", (-1, *IMAGE)), Port("logits", "FLOAT", (-1, 5))


def engine(cuda, input=IN, outputs=(OUT,), sizes=(1, 2, 8), broken=""):
    return FakeEngine(cuda, input, outputs, [(size, *input.shape[1:]) for size in sizes], broken)


@pytest.fixture
def artifact(tmp_path):
    return Artifact(tmp_path, Record(kind="tensorrt", precision="int8", entry="model.plan", spec=SPEC, made_by="compile"))


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def start(cuda, artifact):
    """Open an engine; whatever a test leaves open is closed, and then nothing may be allocated."""
    opened = []

    def open_(made=None, config=None, plan=b"plan", artifact=artifact, **module):
        runner = TensorRtRunner(fake_device.module(made or engine(cuda), **module), plan, artifact, config or OpenConfig(), cuda)
        opened.append(runner)
        return runner

    yield open_
    for runner in opened:
        runner.close()
    assert cuda.live == {}


def pixels(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *IMAGE)).astype(np.float32)


def expected(tensor, port=OUT):
    return tensor.reshape(len(tensor), -1).astype(np.float32) @ FakeEngine.weights(port, DEPTH)


@pytest.mark.parametrize("graph", [None, True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_numbers_are_the_engines(start, count, graph):
    runner = start(config=OpenConfig(graph=graph))
    for seed in range(3):  # plain, captured, replayed
        results = runner.run(pixels(count, seed))
        assert list(results) == ["logits"]
        assert results["logits"].dtype == np.float32
        np.testing.assert_allclose(results["logits"], expected(pixels(count, seed)), atol=1e-6)


def test_work_is_queued_in_order_and_waited_for(start, cuda):
    runner = start(config=OpenConfig(graph=False))
    cuda.ran.clear()
    runner.run(pixels(2))
    assert cuda.ran == ["upload", "record", "execute", "record", "download", "waited"]


def test_a_replay_is_one_launch_between_the_same_copies(start, cuda):
    runner = start()
    cuda.ran.clear(), cuda.calls.clear()
    runner.run(pixels(2))
    assert cuda.ran == ["upload", "record", "graph execute", "record", "download", "waited"]
    assert "execute" not in cuda.names()


def test_only_the_batch_is_copied(start, cuda):
    runner = start()
    runner.run(pixels(8))
    cuda.calls.clear()
    runner.run(pixels(3))
    copies = [call for call in cuda.calls if call[0] in ("upload", "download")]
    assert copies == [("upload", 3 * DEPTH * 4), ("download", 3 * 5 * 4)]


def test_each_batch_is_captured_once_after_its_first_run(start, cuda):
    made = engine(cuda, sizes=(1, 8, 8))
    runner = start(made)  # runs and captures the usual batch, 8
    for count in (3, 2, 4, 3, 2, 4, 4, 8):
        runner.run(pixels(count))
    assert cuda.names().count("begin_capture") == 4
    assert cuda.names().count("launch") == 5
    assert made.enqueues == 8  # one run and one capture each
    assert runner.settings["graph"] is True


def test_sessions_are_kept_up_to_a_number(start, cuda, monkeypatch):
    monkeypatch.setattr(runners, "SESSIONS", 2)
    runner = start()  # 2
    runner.run(pixels(8))  # room for all: nothing moves any more
    for count in (2, 3, 2, 5):  # 3 goes for 5
        np.testing.assert_allclose(runner.run(pixels(count))["logits"], expected(pixels(count)), atol=1e-6)
    assert sum(kind == "graph" for kind in cuda.live.values()) == 2
    before = cuda.names().count("begin_capture")
    runner.run(pixels(2))
    assert cuda.names().count("begin_capture") == before
    runner.run(pixels(3))
    assert cuda.names().count("begin_capture") == before + 1


def test_buffers_grow_to_the_largest_batch_and_no_further(start, cuda):
    runner = start(engine(cuda, sizes=(1, 1, 6)))

    def room():
        return [call[1] for call in cuda.calls if call[0] == "allocate_pinned"][-2:]

    assert room() == [DEPTH * 4, 5 * 4]
    runner.run(pixels(3))
    assert room() == [4 * DEPTH * 4, 4 * 5 * 4]  # 4: the next power of two
    runner.run(pixels(5))
    assert room() == [6 * DEPTH * 4, 6 * 5 * 4]  # 6: the largest, not 8
    count = len(cuda.calls)
    runner.run(pixels(6))
    assert not [call for call in cuda.calls[count:] if "allocate" in call[0]]
    assert sum(kind == "allocate" for kind in cuda.live.values()) == 3  # input, output, scratch
    np.testing.assert_allclose(runner.run(pixels(1))["logits"], expected(pixels(1)), atol=1e-6)


@pytest.mark.parametrize(("count", "said"), [(9, "1 to 8"), (100, "1 to 8")])
def test_a_batch_beyond_the_profile_names_the_largest(start, count, said):
    runner = start()
    assert runner.batch is None
    with pytest.raises(InputError, match=said) as caught:
        runner.run(pixels(count))
    assert caught.value.code == "VD3107"
    assert "at most 8" in caught.value.fix


def test_a_batch_below_the_profile_names_the_smallest(start, cuda):
    with pytest.raises(InputError, match="2 to 8") as caught:
        start(engine(cuda, sizes=(2, 4, 8))).run(pixels(1))
    assert "at least 2" in caught.value.fix


def test_a_fixed_batch(start, cuda):
    fixed = engine(cuda, Port("pixels", "FLOAT", (4, *IMAGE)), (Port("logits", "FLOAT", (4, 5)),), (4, 4, 4))
    fixed.get_tensor_profile_shape = None  # such an engine has no profile to ask for
    runner = start(fixed)
    assert runner.batch == 4
    np.testing.assert_allclose(runner.run(pixels(4))["logits"], expected(pixels(4)), atol=1e-6)
    with pytest.raises(InputError, match=r"\[4, 3, 4, 6\]"):
        runner.run(pixels(3))


def test_wrong_tensors_are_named(start):
    with pytest.raises(InputError, match=r"float64 \[2, 3, 4, 6\]") as caught:
        start().run(pixels(2).astype(np.float64))
    assert caught.value.code == "VD3107"


@pytest.mark.parametrize("kind", ["FLOAT", "HALF", "BF16"])
def test_float_types_go_in_and_out_as_float32(start, cuda, kind):
    made = engine(cuda, IN._replace(kind=kind), (OUT._replace(kind=kind),))
    rows = start(made).run(pixels(3))["logits"]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(pixels(3)), atol={"FLOAT": 1e-6, "HALF": 2e-3, "BF16": 2e-2}[kind])
    assert kind == "FLOAT" or not np.array_equal(rows, expected(pixels(3)))


def test_bytes_go_in_as_bytes_and_indices_come_out_whole(start, cuda, artifact):
    spec = msgspec.structs.replace(SPEC, input=msgspec.structs.replace(SPEC.input, tensor="uint8-nhwc"))
    raw = Artifact(artifact.folder, msgspec.structs.replace(artifact.record, spec=spec))
    outputs = (OUT, Port("top_k_indices", "INT64", (-1, 2)))
    made = engine(cuda, Port("pixels", "UINT8", (-1, 4, 6, 3)), outputs)
    image = np.random.default_rng(1).integers(0, 256, (2, 4, 6, 3), np.uint8)
    results = start(made, artifact=raw).run(image)
    np.testing.assert_allclose(results["logits"], expected(image), rtol=1e-5)
    assert results["top_k_indices"].dtype == np.int64
    np.testing.assert_array_equal(results["top_k_indices"], expected(image, outputs[1]).astype(np.int64))


def test_outputs_are_the_callers(start):
    runner = start()
    first = runner.run(pixels(2))["logits"]
    kept = first.copy()
    runner.run(pixels(2, seed=9))
    np.testing.assert_array_equal(first, kept)
    first[:] = 0


def test_input_is_borrowed(start):
    tensor = pixels(2)
    tensor.setflags(write=False)
    start().run(tensor)
    np.testing.assert_array_equal(tensor, pixels(2))


def test_compute_time_is_between_the_events(start):
    assert start().compute_ms == 1.5  # one tick of the fake's clock


def test_settings_say_what_the_numbers_depend_on(start):
    runner = start(config=OpenConfig(graph=False, spin=True, device="cuda:0"))
    assert runner.settings == {
        "backend": "tensorrt", "version": "10.13.3.9", "threads": 1, "device": "cuda:0", "device_name": "Fake 0",
        "capability": "8.7", "cuda": "12.6", "driver": "12.8", "precision": "int8", "transfers": True, "spin": True,
        "largest_batch": 8, "graph": False, "graph_refused": "not asked for",
    }  # fmt: skip
    json.dumps(runner.settings)


def test_spin_is_asked_of_the_device_only_when_given(start, cuda):
    start()
    assert "schedule" not in cuda.names()
    start(config=OpenConfig(spin=False))
    assert ("schedule", False) in cuda.calls


def test_rtx_has_its_own_name(start, cuda):
    made = engine(cuda)
    assert start(made, name="fake_tensorrt_rtx").settings["backend"] == "tensorrt-rtx"


@pytest.mark.parametrize("broken", ["begin_capture", "end_capture", "enqueue"])
def test_without_a_graph_it_runs_all_the_same(start, cuda, broken):
    made = engine(cuda, broken="capturing" if broken == "enqueue" else "")
    cuda.fail = {broken: 1}
    runner = start(made)
    np.testing.assert_allclose(runner.run(pixels(2))["logits"], expected(pixels(2)), atol=1e-6)
    assert runner.settings["graph"] is False
    assert runner.settings["graph_refused"]
    assert cuda.capturing is None
    assert cuda.names().count("begin_capture") == 1  # not tried again


@pytest.mark.parametrize("broken", ["begin_capture", "end_capture", "enqueue"])
def test_a_graph_that_was_asked_for_is_insisted_on(start, cuda, broken):
    made = engine(cuda, broken="capturing" if broken == "enqueue" else "")
    cuda.fail = {broken: 1}
    with pytest.raises(MachineError, match="no CUDA graph") as caught:
        start(made, OpenConfig(graph=True))
    assert caught.value.code == "VD4004"
    assert cuda.live == {}
    assert cuda.capturing is None


def test_an_engine_that_says_it_can_not_be_captured_is_believed(start, cuda, monkeypatch):
    monkeypatch.setattr(fake_device.FakeContext, "is_stream_capturable", lambda self, stream: False, raising=False)
    runner = start()
    assert runner.settings["graph"] is False
    assert "begin_capture" not in cuda.names()


STEPS = ("stream", "event", "allocate", "allocate_pinned", "upload", "record", "execute", "download", "wait", "time_between")


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_while_opening_leaves_nothing(cuda, artifact, step, nth):
    cuda.fail = {step: nth}
    made = engine(cuda, sizes=(1, 1, 8))
    try:
        runner = TensorRtRunner(fake_device.module(made), b"plan", artifact, OpenConfig(graph=False), cuda)
    except MachineError as exc:
        assert exc.code in ("VD4004", "VD4006")
        assert "on purpose" in exc.message
    else:  # opening has no such call a second or third time
        runner.close()
    assert cuda.live == {}


@pytest.mark.parametrize("step", ["allocate", "allocate_pinned", "upload", "execute", "download", "end_capture"])
def test_a_failure_while_running_is_not_the_end(start, cuda, step):
    runner = start(engine(cuda, sizes=(1, 1, 8)))
    runner.run(pixels(1))
    cuda.fail = {step: cuda.names().count(step) + 1}
    try:
        runner.run(pixels(5))
    except MachineError as exc:
        assert exc.code in ("VD4004", "VD4006")
    for count in (1, 5, 8):
        np.testing.assert_allclose(runner.run(pixels(count))["logits"], expected(pixels(count)), atol=1e-6)


def test_what_is_given_back_comes_in_order(start, cuda):
    runner = start()
    runner.run(pixels(3))
    cuda.calls.clear()
    runner.close()
    names = list(dict.fromkeys(cuda.names()))
    assert names.index("destroy_graph") < names.index("free") < names.index("destroy_event") < names.index("destroy_stream")
    assert not cuda.contexts
    runner.close()
    assert cuda.live == {}


def test_giving_back_goes_on_after_a_failure(start, cuda):
    runner = start()
    cuda.fail = {"destroy_graph": 1, "free": 1}
    with pytest.raises(MachineError, match="on purpose"):
        runner.close()
    assert cuda.live == {}


def test_a_foreign_plan_is_one_error_with_the_engines_words(start, cuda):
    with pytest.raises(MachineError, match="built by another version") as caught:
        start(plan=b"other")
    assert caught.value.code == "VD4004"
    assert "compile it again" in caught.value.fix
    assert cuda.live == {}


def test_no_context_is_one_error(start, cuda):
    made = engine(cuda)
    made.no_context = True
    with pytest.raises(MachineError, match="no execution context") as caught:
        start(made)
    assert caught.value.code == "VD4004"
    assert cuda.live == {}


def test_a_failed_enqueue_tells_the_engines_words(start, cuda):
    with pytest.raises(MachineError, match="the kernel would not start") as caught:
        start(engine(cuda, broken="always"))
    assert caught.value.code == "VD4004"
    assert cuda.live == {}


@pytest.mark.parametrize(
    ("input", "outputs", "found"),
    [
        (Port("pixels", "FLOAT", (-1, 3, 4, 8)), (OUT,), r"\[-1, 3, 4, 8\]"),
        (Port("pixels", "UINT8", (-1, *IMAGE)), (OUT,), "UINT8"),
        (Port("pixels", "FP8", (-1, *IMAGE)), (OUT,), "FP8"),
        (IN, (Port("embedding", "FLOAT", (-1, 5)),), "embedding"),
        (IN, (OUT, Port("other", "INT4", (-1, 5))), "INT4"),
    ],
)
def test_an_engine_of_something_else_is_refused(start, cuda, input, outputs, found):
    with pytest.raises(MachineError, match=found) as caught:
        start(FakeEngine(cuda, input, outputs, [(n, *input.shape[1:]) for n in (1, 2, 8)]))
    assert caught.value.code == "VD4011"
    assert cuda.live == {}


def test_an_output_that_does_not_follow_the_batch_is_refused(start, cuda):
    with pytest.raises(MachineError, match="logits") as caught:
        start(engine(cuda, outputs=(Port("logits", "FLOAT", (1, 5)),)))
    assert caught.value.code == "VD4011"


@pytest.mark.parametrize("device", ["cpu", "cuda0", "cuda:x", "npu", "cuda:-1", "cuda:1"])
def test_other_devices_are_refused(start, device):
    with pytest.raises(UsageError, match=r"cuda") as caught:
        start(config=OpenConfig(device=device))
    assert caught.value.code == "VD2011"


def test_each_thread_gets_the_device(artifact):
    cuda = FakeCuda(devices=2)
    made = engine(cuda)
    with closing(TensorRtRunner(fake_device.module(made), b"plan", artifact, OpenConfig(device="cuda:1"), cuda)) as runner:
        cuda.current = 0
        runner.run(pixels(2))
        assert cuda.current == 1
        assert runner.settings["device_name"] == "Fake 1"


def test_kernels_come_from_the_inspector(start, cuda):
    made = engine(cuda)
    value = {"Name": "x", "Dimensions": [2, 8], "Format/Datatype": "Int8"}
    made.text = json.dumps({
        "Layers": [{"Name": "fc", "LayerType": "gemm", "Inputs": [value], "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/MatMul]"}]
    })  # fmt: skip
    assert start(made).kernels() == (Kernel("blocks.0.mlp.fc1/MatMul", "gemm", "gemm", "int8"),)


def test_a_profile_is_of_the_engines_layers(start, cuda):
    """By the ONNX node that a layer computes; a context of its own, so that graphs stay what they are."""
    made = engine(cuda)
    made.layer_ms = {"fc": 2.0, "unknown": 0.5}
    made.text = json.dumps({
        "Layers": [{"Name": "fc", "LayerType": "gemm", "Metadata": "[ONNX Layer: blocks.0.mlp.fc1/MatMul]"}]
    })  # fmt: skip
    runner = start(made)
    before = made.enqueues
    profile = runner.profile(pixels(2), 3)
    assert profile == (1.5, (Spent("blocks.0.mlp.fc1/MatMul", "gemm", 2.0), Spent("unknown", "layer", 0.5)))
    assert made.enqueues == before + 4
    np.testing.assert_allclose(runner.run(pixels(2))["logits"], expected(pixels(2)), atol=1e-6)
    with pytest.raises(InputError, match="the engine was built for 1 to 8"):
        runner.profile(pixels(9), 1)
