"""An engine in a child process: the same runner from outside; what kills the engine is one error, and the same ever after."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vitdeploy import isolate
from vitdeploy.artifact import Artifact
from vitdeploy.backends import child, table
from vitdeploy.backends.base import Kernel, OpenConfig, run_any
from vitdeploy.data import images
from vitdeploy.errors import InputError, MachineError, TrustError, UsageError, VitdeployError
from vitdeploy.record import CompileProof

ENGINES = ("onnxruntime", "openvino")
ONE = OpenConfig(threads=1)


class Odd:
    """An engine that does what the device's name says, when its second part says."""

    name = "odd"

    def open(self, artifact, config):
        self.when, _, self.what = (config.device or "").partition(" ")
        self.happen("open")
        self.settings = {"backend": "odd", "version": "1.0", "model": str(artifact.model), "current": str(Path.cwd())}
        self.batch = None
        return self

    def run(self, tensor):
        self.happen("run")
        known = {"object": np.array([None]), "text": np.array(["a"]), "bfloat": np.zeros(1, "V2")}
        outputs = {
            "logits": np.asfortranarray(tensor.reshape(len(tensor), -1)[:, :6].reshape(-1, 2, 3)),
            "half": np.ones((2, 3), np.float16),
            "none": np.zeros((0, 4), np.float32),
            "scalar": np.array(7, np.int64),
            "flags": np.array([True, False]),
        }
        return outputs | ({self.what: known[self.what]} if self.what in known else {})

    def kernels(self):
        self.happen("kernels")
        wrong = (
            Kernel("a", "MatMul", "gemm", "nonsense") if self.what == "nonsense" else Kernel("a", "MatMul", "gemm", "int8", True)
        )
        return (Kernel("", "Softmax", "other", "fp32"), wrong)

    def close(self):
        pass

    def happen(self, when):
        if when != self.when:
            return
        if self.what.startswith("SIG"):
            print("terminate called after throwing an instance of 'std::out_of_range'", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.Signals[self.what])
        elif self.what == "exit":
            os._exit(3)
        elif self.what == "hang":
            time.sleep(60)
        elif self.what == "MemoryError":
            raise MemoryError
        elif self.what == "trust":
            raise TrustError("VD7004", "foreign", file="engine.plan", fix="build it here")
        elif self.what == "bad_alloc":
            raise MachineError("VD4004", "odd: std::bad_alloc", file="model.onnx")
        elif self.what == "KeyError":
            raise KeyError("theirs")


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    monkeypatch.setitem(table.TABLE, "odd", table.Engine("odd", f"{__name__}:Odd", "unittest", "onnxruntime"))


def opened(artifact, does="", seconds=60.0):
    return child.open_in_child("odd", artifact, OpenConfig(device=does or None), seconds)


def tensor_of(artifact, pixels):
    return images.to_tensor(pixels, artifact.spec.input)


# The same from outside


def named(kernel):
    """OpenVINO numbers layers that it makes itself through all models of a process."""
    return kernel._replace(name="") if kernel.role == "other" else kernel


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("which", ["tiny_artifact", "tiny_static", "tiny_bytes"])
def test_a_child_runner_is_the_runner(name, which, request, tiny_pixels):
    artifact = request.getfixturevalue(which)
    tensor = tensor_of(artifact, tiny_pixels)
    with (
        closing(table.load(name).open(artifact, ONE)) as plain,
        closing(child.open_in_child(name, artifact, ONE)) as there,
    ):
        assert there.settings == plain.settings
        assert there.batch == plain.batch
        expected, results = run_any(plain, tensor), run_any(there, tensor)
        assert list(results) == list(expected)
        for key, rows in expected.items():
            assert results[key].dtype == rows.dtype
            np.testing.assert_array_equal(results[key], rows)
        assert [named(kernel) for kernel in there.kernels()] == [named(kernel) for kernel in plain.kernels()]


def test_outputs_are_the_callers_and_the_input_is_borrowed(tiny_artifact, tiny_pixels):
    tensor = tensor_of(tiny_artifact, tiny_pixels)
    tensor.setflags(write=False)
    with closing(child.open_in_child("onnxruntime", tiny_artifact, ONE)) as runner:
        first = runner.run(tensor)["logits"]
        kept = first.copy()
        np.testing.assert_array_equal(runner.run(np.asfortranarray(tensor))["logits"], kept)
        runner.run(tensor[::-1])
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable


@pytest.mark.parametrize("change", [lambda t: t.astype(np.float64), lambda t: t[:0], lambda t: t[0], lambda t: t.astype(object)])
def test_a_tensor_that_does_not_fit_is_refused_here_and_nothing_breaks(change, tiny_artifact, tiny_pixels):
    tensor = tensor_of(tiny_artifact, tiny_pixels)
    with closing(opened(tiny_artifact)) as runner:
        with pytest.raises(InputError) as caught:
            runner.run(change(tensor))
        assert caught.value.code == "VD3107"
        assert len(runner.run(tensor)["logits"]) == 7


def test_arrays_of_every_kind_come_back(tiny_artifact, tiny_pixels):
    tensor = tensor_of(tiny_artifact, tiny_pixels)
    with closing(opened(tiny_artifact)) as runner:
        results = runner.run(tensor)
        np.testing.assert_array_equal(results["logits"], tensor.reshape(7, -1)[:, :6].reshape(-1, 2, 3))
        types = {name: (str(array.dtype), array.shape) for name, array in results.items() if name != "logits"}
        assert types == {
            "half": ("float16", (2, 3)),
            "none": ("float32", (0, 4)),
            "scalar": ("int64", ()),
            "flags": ("bool", (2,)),
        }
        assert results["scalar"] == 7
        assert runner.kernels() == (Kernel("", "Softmax", "other", "fp32"), Kernel("a", "MatMul", "gemm", "int8", True))


def test_paths_stay_as_they_were_written(tiny_artifact, monkeypatch):
    monkeypatch.chdir(tiny_artifact.folder.parent)
    relative = Artifact(Path(tiny_artifact.folder.name), tiny_artifact.record)
    with closing(opened(relative)) as runner:
        assert runner.settings["model"] == f"{tiny_artifact.folder.name}/model.onnx"
        assert runner.settings["current"] == str(tiny_artifact.folder.parent)
    missing = Artifact(Path("nowhere"), tiny_artifact.record)
    with pytest.raises(VitdeployError) as caught:
        child.open_in_child("onnxruntime", missing, ONE)
    assert caught.value.file == "nowhere/model.onnx"


def test_the_engine_is_not_imported_here(tiny_artifact):
    code = (
        "import sys, numpy as np; from pathlib import Path; from vitdeploy.artifact import Artifact\n"
        "from vitdeploy.backends import child; from vitdeploy.backends.base import OpenConfig\n"
        "from vitdeploy.data import images, synthetic\n"
        f"artifact = Artifact.open(Path({str(tiny_artifact.folder)!r}))\n"
        "runner = child.open_in_child('onnxruntime', artifact, OpenConfig(threads=1))\n"
        "pixels = synthetic.pixels(1, artifact.spec.input)\n"
        "print(runner.run(images.to_tensor(pixels, artifact.spec.input))['logits'].shape, 'onnxruntime' in sys.modules)\n"
    )  # without a main guard, and without closing
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(1, 12) False\n", "")


# What goes wrong there


@pytest.mark.sampled(4)
@pytest.mark.parametrize("when", ["open", "run", "kernels"])
@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("SIGSEGV", "VD4007", "odd was ended by SIGSEGV"),
        ("SIGABRT", "VD4007", "odd was ended by SIGABRT"),
        ("SIGKILL", "VD4007", "odd was ended by SIGKILL"),
        ("exit", "VD4007", "odd ended with status 3"),
        ("hang", "VD4008", "odd was killed: it took longer than 2 s"),
    ],
)
def test_a_death_names_engine_signal_memory_and_model_and_is_final(when, what, code, says, tiny_artifact, tiny_pixels):
    tensor = tensor_of(tiny_artifact, tiny_pixels)
    if when == "open":
        with pytest.raises(MachineError) as caught:
            opened(tiny_artifact, f"open {what}", 2 if what == "hang" else 60)
        errors = [caught.value]
    else:
        with closing(opened(tiny_artifact, f"{when} {what}")) as runner:
            runner._seconds = 2 if what == "hang" else 60
            errors = []
            for call in {"run": (lambda: runner.run(tensor), runner.kernels), "kernels": (runner.kernels, runner.kernels)}[when]:
                with pytest.raises(MachineError) as caught:
                    call()
                errors.append(caught.value)
        runner.close()  # once more is allowed
    first = errors[0]
    assert all(error.record() == first.record() for error in errors)
    assert first.code == code
    assert first.message.startswith(says)
    assert first.file == str(tiny_artifact.model)
    assert first.fix
    if what.startswith("SIG"):
        assert "it said last: terminate called" in first.message
    if what == "hang":
        assert re.search(r"it had used \d+ MiB of", first.message)


@pytest.mark.parametrize(
    ("what", "kind", "code", "says"),
    [
        ("trust", TrustError, "VD7004", "foreign"),
        ("MemoryError", MachineError, "VD4006", "out of memory: it had used"),
        ("bad_alloc", MachineError, "VD4006", "had used"),
    ],
)
def test_errors_cross_as_themselves_and_the_engine_lives_on(what, kind, code, says, tiny_artifact, tiny_pixels):
    with pytest.raises(kind, match=says) as caught:
        opened(tiny_artifact, f"open {what}")
    assert caught.value.code == code
    with closing(opened(tiny_artifact, f"run {what}")) as runner:
        for _ in range(2):
            with pytest.raises(kind, match=says):
                runner.run(tensor_of(tiny_artifact, tiny_pixels))
        assert len(runner.kernels()) == 2


@pytest.mark.parametrize("what", ["object", "text", "bfloat"])
def test_outputs_of_no_known_type_are_refused(what, tiny_artifact, tiny_pixels):
    with closing(opened(tiny_artifact, f"never {what}")) as runner, pytest.raises(MachineError):
        runner.run(tensor_of(tiny_artifact, tiny_pixels))


def test_kernels_are_checked(tiny_artifact):
    with closing(opened(tiny_artifact, "never nonsense")) as runner, pytest.raises(MachineError, match="makes no sense"):
        runner.kernels()


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"dtype": "float32", "shape": [2, 2]}, 15),
        ({"dtype": "float32", "shape": [-2, -2]}, 16),
        ({"dtype": "float32", "shape": [True, 4]}, 16),
        ({"dtype": "float32", "shape": [1.0, 4]}, 16),
        ({"dtype": "float32", "shape": [1] * 9 + [4]}, 16),
        ({"dtype": "object", "shape": [2]}, 16),
        ({"dtype": "float32", "shape": "22"}, 16),
        ({"shape": [4]}, 16),
        ({"dtype": ["float32"], "shape": [4]}, 16),
        (3, 16),
    ],
)
def test_arrays_are_checked(header, size):
    with pytest.raises((ValueError, TypeError, KeyError)):
        child._array(header, bytearray(size))


def test_a_thread_that_opens_may_end(tiny_artifact, tiny_pixels):
    made = []
    thread = threading.Thread(target=lambda: made.append(opened(tiny_artifact)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with closing(made[0]) as runner:
        assert len(runner.run(tensor_of(tiny_artifact, tiny_pixels))["logits"]) == 7


def test_threads_may_share_a_runner(tiny_artifact, tiny_pixels):
    tensor = tensor_of(tiny_artifact, tiny_pixels)
    with closing(child.open_in_child("onnxruntime", tiny_artifact, ONE)) as runner:
        truth, wrong = [runner.run(tensor[i : i + 1])["logits"] for i in range(7)], []

        def check(index):
            for _ in range(20):
                if not np.array_equal(runner.run(tensor[index : index + 1])["logits"], truth[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=check, args=(index,)) for index in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# Which engine, and which artifact


def test_names_and_packages_are_checked_before_anything_is_started(monkeypatch, tiny_artifact):
    with pytest.raises(UsageError, match="onxruntime") as caught:
        child.open_in_child("onxruntime", tiny_artifact, ONE)
    assert caught.value.code == "VD2009"
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="'openvino', which is not installed") as missing:
        child.open_in_child("openvino", tiny_artifact, ONE)
    assert missing.value.code == "VD4001"
    assert missing.value.fix == "run: pip install 'vitdeploy[openvino]'"
    assert table.list_openers() == table.list_engines() == ()


def test_which_backends_open_onnx_and_which_compile(monkeypatch):
    monkeypatch.setattr(table, "find_spec", lambda name: name)
    monkeypatch.delitem(table.TABLE, "odd")
    assert table.list_openers() == ("pytorch", "onnxruntime", "openvino")
    assert table.list_compilers() == ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")


def test_pytorch_stays_here(tiny_artifact):
    with closing(child.open_in_child("pytorch", tiny_artifact, ONE)) as runner:
        assert type(runner).__module__ == "vitdeploy.backends.pytorch"


def test_a_child_has_no_children_of_its_own(tiny_artifact):
    assert isolate.run(f"{__name__}:open_once_more", str(tiny_artifact.folder), seconds=60) == "OnnxRuntimeRunner"


def open_once_more(folder):
    with closing(child.open_in_child("onnxruntime", Artifact.open(Path(folder)), ONE)) as runner:
        return type(runner).__name__


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("openvino", "onnxruntime", "was compiled for openvino, not for onnxruntime"),
        ("tensorrt", "openvino", "was compiled for tensorrt, not for openvino"),
        ("onnx", "tensorrt", "has to be compiled before tensorrt can run it"),
        ("tensorrt", "tensorrt-rtx", "was compiled for tensorrt, not for tensorrt-rtx"),
    ],
)
def test_an_artifact_of_another_engine_is_refused(kind, name, words, tiny_artifact):
    other = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind=kind))
    with pytest.raises(UsageError, match=words) as caught:
        table.require_fit(name, other)
    assert caught.value.code == "VD2013"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("kind", "name"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", "tensorrt"), ("tensorrt", "pytorch")]
)
def test_an_artifact_of_this_engine_is_not(kind, name, tiny_artifact):
    table.require_fit(name, Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind=kind)))


@pytest.mark.parametrize(
    ("name", "device", "kept", "capped"),
    [
        ("onnxruntime", None, None, True),
        ("openvino", "CPU", None, True),
        ("openvino", "GPU", None, False),
        ("openvino", None, "GPU", False),
        ("onnxruntime", "cuda", None, False),
        ("tensorrt", None, None, False),
        ("tensorrt-rtx", "cpu", None, False),
        ("pytorch", None, None, False),
    ],
)
def test_memory_is_capped_where_no_gpu_may_be_used(name, device, kept, capped, tiny_artifact, monkeypatch):
    """What the child is started with, not only what was computed."""
    started = {}
    monkeypatch.setattr(child, "Child", lambda subject, **limits: started.update(limits))
    monkeypatch.setattr(child, "machine_mib", lambda: 3000.5)
    proof = CompileProof(run=OpenConfig(device=kept)) if kept else None
    artifact = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, proof=proof))
    child.start(name, artifact, OpenConfig(device=device))
    assert started["memory_mib"] == (6000 if capped else None)
    assert started["file_mib"] == child.FILE_MIB == 65536
    assert started["file"] == str(artifact.model)


@pytest.mark.parametrize("version", ["1.2.3", None])
def test_a_child_is_named_and_capped_whether_or_not_its_version_is_known(version, tiny_artifact, monkeypatch):
    def tell(package):
        if version is None:
            raise child.metadata.PackageNotFoundError(package)
        return version

    started = {}
    monkeypatch.setattr(child.metadata, "version", tell)
    monkeypatch.setattr(child, "Child", lambda subject, **limits: started.update(limits))
    monkeypatch.setattr(child, "machine_mib", lambda: 1000.0)
    child.start("openvino", tiny_artifact, ONE)
    assert started["what"] == ("openvino 1.2.3" if version else "openvino")
    assert started["memory_mib"] == 4096  # an engine reserves that much on any machine
