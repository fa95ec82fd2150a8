"""On a real GPU with a real TensorRT: what everywhere else runs against a fake. Run by ``make test-gpu``.

Not executed so far: no machine with both was at hand.
"""

import ctypes
from contextlib import closing

import numpy as np
import pytest

from tests.backends.tensorrt import graphs
from vitdeploy.artifact import Artifact, Record, seal
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.tensorrt import cuda as device
from vitdeploy.data import images
from vitdeploy.errors import InputError, VitdeployError
from vitdeploy.recipe import CompileConfig

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda():
    """The first CUDA device."""
    search = device.find()
    if search.cuda is None:
        pytest.skip(f"no CUDA device: {search.reason}")
    search.cuda.use(0)
    return search.cuda


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test touches the user's own key and caches."""
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request, cuda):
    """A backend that can run on this GPU."""
    try:
        return table.load(request.param)
    except VitdeployError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture(params=["fp32", "fp16"])
def compiled(request, engine, tiny_artifact, tmp_path):
    """The tiny ViT, built on this GPU for 1 to 8 images."""
    source = tiny_artifact if request.param == "fp32" else graphs.fp16(tiny_artifact, tmp_path / "fp16")
    folder = tmp_path / "engine"
    folder.mkdir()
    made = engine.compile(source, CompileConfig(backend=engine.name, usual_batch=2, largest_batch=8), folder)
    record = Record(
        kind=engine.name, precision=source.record.precision, entry=made.entry, spec=source.spec, made_by="compile"
    )  # fmt: skip
    return Artifact(folder, seal(folder, record))


def test_memory_goes_there_and_back(cuda):
    size = 1 << 22
    there, host, stream = cuda.allocate(size), cuda.allocate_pinned(size), cuda.stream()
    content = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    ctypes.memmove(host, content, size)
    cuda.upload(there, host, size, stream)
    cuda.wait(stream)
    ctypes.memset(host, 0, size)
    cuda.download(host, there, size, stream)
    cuda.wait(stream)
    assert ctypes.string_at(host, size) == content
    assert there % 256 == 0
    for give_back, what in ((cuda.free, there), (cuda.free_pinned, host), (cuda.destroy_stream, stream)):
        give_back(what)


def test_a_captured_copy_is_replayed(cuda):
    host, there, stream = cuda.allocate_pinned(4), cuda.allocate(4), cuda.stream()
    cuda.begin_capture(stream)
    cuda.upload(there, host, 4, stream)
    graph = cuda.end_capture(stream)
    for value in (1, 2):
        ctypes.memset(host, value, 4)
        cuda.launch(graph, stream)
        cuda.wait(stream)
        ctypes.memset(host, 0, 4)
        cuda.download(host, there, 4, stream)
        cuda.wait(stream)
        assert ctypes.string_at(host, 4) == bytes([value]) * 4
    cuda.begin_capture(stream)
    cuda.abandon_capture(stream)
    cuda.wait(stream)
    for give_back, what in (
        (cuda.destroy_graph, graph), (cuda.free, there), (cuda.free_pinned, host), (cuda.destroy_stream, stream)
    ):  # fmt: skip
        give_back(what)


def test_the_device_is_described(cuda):
    described = cuda.describe(0)
    assert described.name not in ("", "unknown")
    assert float(described.capability) >= 5
    assert 0 < cuda.memory().free <= cuda.memory().total
    assert cuda.versions().driver != "0.0"


def test_running_out_of_memory_is_one_error(cuda):
    with pytest.raises(VitdeployError) as caught:
        cuda.allocate(1 << 50)
    assert caught.value.code == "VD4006"
    cuda.free(cuda.allocate(16))  # and the device goes on


@pytest.mark.parametrize("graph", [True, False])
def test_engines_compute_the_original(compiled, engine, tiny_artifact, tiny_pixels, graph):
    tensor = images.to_tensor(tiny_pixels, tiny_artifact.spec.input)
    with closing(table.load("pytorch").open(tiny_artifact, OpenConfig(threads=1))) as reference:
        truth = reference.run(tensor)["logits"]
    tolerance = (1e-3 if compiled.record.precision == "fp32" else 2e-2) * truth.std()
    with closing(engine.open(compiled, OpenConfig(graph=graph))) as runner:
        for count in (1, 2, 7, 2, 1):  # plain and replayed, in several orders
            for _ in range(2):
                rows = runner.run(tensor[:count])["logits"]
                np.testing.assert_allclose(rows, truth[:count], atol=tolerance)
        assert runner.settings["graph"] is graph
        assert runner.compute_ms > 0


def test_replays_are_the_plain_runs_bit_for_bit(compiled, engine, tiny_artifact, tiny_pixels):
    tensor = images.to_tensor(tiny_pixels, tiny_artifact.spec.input)
    with closing(engine.open(compiled, OpenConfig(graph=False))) as runner:
        plain = runner.run(tensor)["logits"]
    with closing(engine.open(compiled, OpenConfig(graph=True))) as runner:
        for _ in range(3):
            np.testing.assert_array_equal(runner.run(tensor)["logits"], plain)


def test_a_batch_beyond_the_profile_is_refused(compiled, engine, tiny_artifact, tiny_pixels):
    tensor = images.to_tensor(np.concatenate([tiny_pixels, tiny_pixels]), tiny_artifact.spec.input)
    with closing(engine.open(compiled, OpenConfig())) as runner, pytest.raises(InputError, match="1 to 8"):
        runner.run(tensor)


def test_the_engine_tells_what_it_runs(compiled, engine):
    with closing(engine.open(compiled, OpenConfig())) as runner:
        kernels = runner.kernels()
    products = [kernel for kernel in kernels if kernel.role != "other"]
    assert "blocks.0.attn.qkv/MatMul" in {kernel.name for kernel in products}
    assert {kernel.precision for kernel in products} <= {"fp16", "fp32"}


def test_memory_is_given_back(compiled, engine, cuda):
    def once():
        with closing(engine.open(compiled, OpenConfig())) as runner:
            runner.run(np.zeros((8, 3, 16, 24), np.float32))
        return cuda.memory().free

    first = once()  # what the libraries keep for good is there now
    assert first - min(once() for _ in range(5)) < 64 << 20
