"""The ctypes layer against a library of our own with CUDA's names, and against NVIDIA's real one where no driver is."""

import ctypes
import subprocess
import sys

import pytest

from tests.backends.tensorrt import wheels
from vitdeploy.backends.tensorrt import cuda as module
from vitdeploy.backends.tensorrt.cuda import LibCudart
from vitdeploy.errors import MachineError

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
int failing = 0, last = 0, flags = -1, mode = -1, live = 0, devices = 2, driver = 12080, graphs = 0;
static int status(void) { if (failing) last = failing; return failing; }
static int make(void **at) { int s = status(); if (!s) { *at = malloc(64); live++; } return s; }
static int drop(void *at) { int s = status(); if (!s) { free(at); live--; } return s; }
int cudaRuntimeGetVersion(int *v) { *v = 12060; return status(); }
int cudaDriverGetVersion(int *v) { *v = driver; return 0; }
int cudaGetDeviceCount(int *n) { *n = devices; return status(); }
int cudaSetDevice(int n) { return n < devices ? status() : (last = 101); }
int cudaSetDeviceFlags(unsigned f) { flags = f; return status(); }
int cudaDeviceGetAttribute(int *v, int attribute, int device) {
  *v = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? device : -1; return status(); }
int cudaMemGetInfo(size_t *f, size_t *t) { *f = (size_t)5 << 32; *t = (size_t)6 << 32; return status(); }
int cudaMalloc(void **at, size_t n) { int s = status(); if (!s) { *at = malloc(n); live++; } return s; }
int cudaFree(void *at) { return drop(at); }
int cudaMallocHost(void **at, size_t n) { return cudaMalloc(at, n); }
int cudaFreeHost(void *at) { return drop(at); }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  if (kind != 1 && kind != 2) return 21; if (!stream) return 400; memcpy(to, from, n); return status(); }
int cudaStreamCreateWithFlags(void **s, unsigned f) { flags = f; return make(s); }
int cudaStreamSynchronize(void *s) { return s ? status() : 400; }
int cudaStreamDestroy(void *s) { return drop(s); }
int cudaStreamBeginCapture(void *s, int m) { mode = m; return status(); }
int cudaStreamEndCapture(void *s, void **g) { *g = 0; graphs++; return make(g); }
int cudaGraphInstantiateWithFlags(void **e, void *g, unsigned long long f) { return g && !f ? make(e) : 1; }
int cudaGraphDestroy(void *g) { graphs--; return drop(g); }
int cudaGraphLaunch(void *e, void *s) { return e && s ? status() : 400; }
int cudaGraphExecDestroy(void *e) { return drop(e); }
int cudaEventCreateWithFlags(void **e, unsigned f) { return f ? 1 : make(e); }
int cudaEventRecord(void *e, void *s) { return e && s ? status() : 400; }
int cudaEventElapsedTime(float *ms, void *a, void *b) { *ms = 2.5f; return a && b ? status() : 400; }
int cudaEventDestroy(void *e) { return drop(e); }
int cudaGetLastError(void) { int was = last; last = 0; return was; }
const char *cudaGetErrorName(int e) { return e == 2 ? "cudaErrorMemoryAllocation" : "cudaErrorOfSomeKind"; }
const char *cudaGetErrorString(int e) { return e == 2 ? "out of memory" : "something else"; }
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cudart")
    (folder / "cudart.c").write_text(SOURCE)
    path = folder / "libcudart.so.12"
    subprocess.run([wheels.compiler(), "-shared", "-fPIC", "-o", path, folder / "cudart.c"], check=True)
    return path


class Stub(LibCudart):
    def __init__(self, path):
        super().__init__(str(path))
        self.library = ctypes.CDLL(str(path))

    def __getitem__(self, name):
        return ctypes.c_int.in_dll(self.library, name).value

    def __setitem__(self, name, value):
        ctypes.c_int.in_dll(self.library, name).value = value


DEFAULTS = {"failing": 0, "last": 0, "flags": -1, "mode": -1, "live": 0, "devices": 2, "driver": 12080, "graphs": 0}


@pytest.fixture
def cuda(built):
    stub = Stub(built)
    for name, value in DEFAULTS.items():
        stub[name] = value
    return stub


def test_memory_goes_there_and_back_at_whole_addresses(cuda):
    size = 1 << 20
    device, host, stream = cuda.allocate(size), cuda.allocate_pinned(size), cuda.stream()
    assert device > 1 << 32  # not cut to 32 bits
    assert host > 1 << 32
    ctypes.memset(host, 7, size)
    cuda.upload(device, host, size, stream)
    ctypes.memset(host, 0, size)
    cuda.download(host, device, size, stream)
    cuda.wait(stream)
    assert ctypes.string_at(host, size) == b"\x07" * size
    cuda.free(device), cuda.free_pinned(host), cuda.destroy_stream(stream)
    assert cuda["live"] == 0


def test_streams_do_not_wait_for_the_default_one(cuda):
    cuda.stream()
    assert cuda["flags"] == 1


def test_events_take_time(cuda):
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    cuda.record(start, stream), cuda.record(end, stream)
    assert cuda.time_between(start, end) == 2.5
    for event in (start, end):
        cuda.destroy_event(event)


def test_graphs_leave_nothing_but_what_is_launched(cuda):
    stream = cuda.stream()
    cuda.begin_capture(stream)
    assert cuda["mode"] == 1  # other threads may allocate meanwhile
    graph = cuda.end_capture(stream)
    assert cuda["graphs"] == 0
    cuda.launch(graph, stream)
    cuda.destroy_graph(graph), cuda.destroy_stream(stream)
    assert cuda["live"] == 0


def test_a_capture_that_failed_is_forgotten(cuda):
    stream = cuda.stream()
    cuda.begin_capture(stream)
    cuda["failing"] = 901
    cuda.abandon_capture(stream)
    assert cuda["last"] == 0


def test_devices_are_described(cuda):
    assert cuda.count() == 2
    assert cuda.describe(1)[1:] == ("8.7", True)
    assert cuda.describe(0).integrated is False
    assert cuda.versions() == ("12.6", "12.8")
    assert cuda.memory() == (5 << 32, 6 << 32)


@pytest.mark.parametrize(("spin", "flag"), [(True, 1), (False, 4)])
def test_waiting_is_set(cuda, spin, flag):
    cuda.schedule(spin)
    assert cuda["flags"] == flag


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (2, "VD4006", r"cudaMalloc failed: out of memory \(cudaErrorMemoryAllocation, 2\)"),
        (35, "VD4010", "too old"),
        (100, "VD4010", "no CUDA device"),
        (803, "VD4010", "803"),
        (700, "VD4004", "something else"),
    ],
)
def test_errors_are_named(cuda, status, code, said):
    cuda["failing"] = status
    with pytest.raises(MachineError, match=said) as caught:
        cuda.allocate(8)
    assert caught.value.code == code
    assert cuda["last"] == 0, "the next library would take it for its own"


CALLS = {
    "count": (), "use": (0,), "schedule": (True,), "memory": (), "allocate": (8,), "allocate_pinned": (8,), "stream": (),
    "event": (), "free": (0,), "free_pinned": (0,), "destroy_stream": (0,), "destroy_event": (0,), "destroy_graph": (0,),
    "begin_capture": (1,), "end_capture": (1,), "launch": (1, 1), "record": (1, 1), "time_between": (1, 1), "wait": (1,),
    "describe": (0,), "versions": (),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_call_is_checked(cuda, name):
    cuda["failing"] = 999
    with pytest.raises(MachineError, match="999"):
        getattr(cuda, name)(*CALLS[name])


@pytest.mark.parametrize("name", ["upload", "download"])
def test_every_copy_is_checked(cuda, name):
    block = ctypes.create_string_buffer(8)
    cuda["failing"] = 999
    with pytest.raises(MachineError, match="cudaMemcpyAsync"):
        getattr(cuda, name)(ctypes.addressof(block), ctypes.addressof(block), 8, 1)


def test_a_library_with_a_device_is_found(cuda, built, monkeypatch):
    monkeypatch.setattr(module, "_candidates", lambda: iter([str(built)]))
    assert module.find().cuda.path == str(built)
    assert module.require().count() == 2


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"driver": 0}, "no NVIDIA driver"), ({"devices": 0}, "no CUDA device"), ({"failing": 35}, "too old")],
)
def test_no_device_has_a_reason(cuda, built, monkeypatch, state, reason):
    for name, value in state.items():
        cuda[name] = value
    monkeypatch.setattr(module, "_candidates", lambda: iter([str(built)]))
    search = module.find()
    assert search.cuda is None
    assert reason in search.reason
    with pytest.raises(MachineError, match=reason) as caught:
        module.require()
    assert caught.value.code == "VD4010"


def test_a_runner_without_a_device_says_why(built, cuda, monkeypatch, tmp_path):
    from vitdeploy.backends.base import OpenConfig
    from vitdeploy.backends.tensorrt.runner import TensorRtRunner

    cuda["driver"] = 0
    monkeypatch.setattr(module, "_candidates", lambda: iter([str(built)]))
    with pytest.raises(MachineError, match="no NVIDIA driver") as caught:
        TensorRtRunner(None, b"plan", None, OpenConfig())
    assert caught.value.code == "VD4010"


def test_no_library_has_a_reason(monkeypatch):
    monkeypatch.setattr(module, "LIBRARIES", ("libcudart_of_nobody.so.12",))
    assert module.find().reason == "libcudart_of_nobody.so.12 not found"


def test_a_library_of_something_else_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "a.c").write_text("int a;")
    other, text = tmp_path / "libcudart.so.12", tmp_path / "libcudart.so.13"
    subprocess.run([wheels.compiler(), "-shared", "-fPIC", "-o", other, tmp_path / "a.c"], check=True)
    text.write_text("no library")
    for path, reason in ((other, "has no cudaRuntimeGetVersion"), (text, "can't be loaded")):
        monkeypatch.setattr(module, "_candidates", lambda path=path: iter([str(path)]))
        assert reason in module.find().reason


def test_packages_of_pip_are_looked_through(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert str(folder / "libcudart.so.12") in list(module._candidates())


REAL = {"nvidia-cuda-runtime-cu12==12.6.77": "12.6", "nvidia-cuda-runtime==13.0.96": "13.0"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("requirement", REAL)
def test_nvidias_own_library_has_every_function(requirement):
    """The real libcudart of CUDA 12 (JetPack 6) and 13 (JetPack 7), in a process of its own."""
    path = next(wheels.unpacked(requirement).rglob("libcudart.so.1?"))
    code = (
        "import sys; from vitdeploy.backends.tensorrt.cuda import LibCudart; from vitdeploy.errors import MachineError\n"
        "cuda = LibCudart(sys.argv[1]); print(cuda.versions().runtime)\n"
        "try: print(cuda.count())\n"
        "except MachineError as error: print(error.code)"
    )
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == REAL[requirement]
    assert said[1] == "VD4010" or int(said[1]) > 0
