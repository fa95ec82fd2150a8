"""One contract for all backends: whatever holds for one engine holds for the others."""

import subprocess
import sys

import numpy as np
import pytest

from tests.backends import fake_engine
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig, run_any
from vitdeploy.data import images
from vitdeploy.errors import InputError, MachineError, UsageError

ENGINES = ("onnxruntime", "openvino")
ALL = ("pytorch", *ENGINES)


@pytest.fixture(params=(*ALL, fake_engine.ROW.name))
def name(request, monkeypatch):
    monkeypatch.setitem(table.TABLE, fake_engine.ROW.name, fake_engine.ROW)
    return request.param


@pytest.fixture
def runner(name, tiny_artifact):
    opened = table.load(name).open(tiny_artifact, OpenConfig(threads=1))
    yield opened
    opened.close()


@pytest.fixture
def tensor(tiny_artifact, tiny_pixels):
    return images.to_tensor(tiny_pixels, tiny_artifact.spec.input)


def test_main_output_is_float32_rows(runner, tensor):
    logits = runner.run(tensor)["logits"]
    assert logits.dtype == np.float32
    assert logits.shape == (len(tensor), 12)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rows_do_not_depend_on_the_batch(runner, tensor, count):
    together, alone = runner.run(tensor[:count])["logits"], runner.run(tensor[count - 1 : count])["logits"]
    np.testing.assert_allclose(together[-1:], alone, atol=1e-5)


def test_outputs_are_the_callers(runner, tensor):
    first = runner.run(tensor)["logits"]
    kept = first.copy()
    runner.run(tensor[::-1])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0.0  # writable


def test_input_is_borrowed_not_changed(runner, tensor):
    before = tensor.copy()
    tensor.setflags(write=False)
    runner.run(tensor)
    np.testing.assert_array_equal(tensor, before)


def test_runs_repeat_bit_for_bit(runner, tensor):
    np.testing.assert_array_equal(runner.run(tensor)["logits"], runner.run(tensor)["logits"])


def test_any_memory_order_is_taken(runner, tensor):
    strided = np.asfortranarray(tensor)
    np.testing.assert_array_equal(runner.run(strided)["logits"], runner.run(tensor)["logits"])


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.astype(np.float64), "float64 [7, 3, 16, 24]"),
        (lambda t: (t * 0).astype(np.uint8), "uint8 [7, 3, 16, 24]"),
        (lambda t: t[:, :1], "float32 [7, 1, 16, 24]"),
        (lambda t: t.transpose(0, 1, 3, 2), "float32 [7, 3, 24, 16]"),
        (lambda t: t.transpose(0, 2, 3, 1), "float32 [7, 16, 24, 3]"),
        (lambda t: t[0], "float32 [3, 16, 24]"),
        (lambda t: t[:0], "float32 [0, 3, 16, 24]"),
        (lambda t: t.sum(), "float32 []"),
    ],
    ids=["float64", "uint8", "grey", "turned", "nhwc", "one image", "none", "scalar"],
)
def test_wrong_tensor_is_named(runner, tensor, change, found):
    with pytest.raises(InputError) as caught:
        runner.run(change(tensor))
    assert caught.value.code == "VD3107"
    assert found in caught.value.message
    assert "float32 [N, 3, 16, 24]" in caught.value.message


def test_settings_say_what_the_numbers_depend_on(runner, name):
    assert runner.settings["backend"] == name
    assert runner.settings["threads"] == 1
    assert runner.settings["device"] == "cpu"
    assert runner.settings["precision"] == "fp32"
    assert runner.settings["version"][0].isdigit()


def test_a_profile_is_of_this_model(runner, name, tensor):
    """Its parts are of this model, and the runner stays what it was."""
    before = runner.run(tensor[:2])["logits"]
    run_ms, spent = runner.profile(tensor[:2], 3)
    assert all(each.ms >= 0 and each.kind for each in spent)
    assert run_ms > 0 and sum(each.ms for each in spent) > 0
    if name != fake_engine.ROW.name:
        assert any(each.name.startswith("blocks.1") for each in spent)
    np.testing.assert_array_equal(runner.run(tensor[:2])["logits"], before)


def test_closing_twice_is_allowed(name, tiny_artifact):
    opened = table.load(name).open(tiny_artifact, OpenConfig(threads=1))
    opened.close()
    opened.close()


def test_another_device_is_refused(name, tiny_artifact):
    with pytest.raises(UsageError, match="'vulkan'") as caught:
        table.load(name).open(tiny_artifact, OpenConfig(device="vulkan"))
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("openvino", {"spin": True}),
        ("openvino", {"arena": False}),
        ("openvino", {"graph": False}),
        ("onnxruntime", {"streams": 2}),
        ("onnxruntime", {"hint": "throughput"}),
        ("onnxruntime", {"graph": True}),
    ],
)
def test_a_setting_of_another_engine_is_refused(name, setting, tiny_artifact):
    with pytest.raises(UsageError, match=f"no setting '{next(iter(setting))}'") as caught:
        table.load(name).open(tiny_artifact, OpenConfig(**setting))
    assert caught.value.code == "VD2011"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_artifact_of_another_engine_is_refused(engine, tiny_artifact):
    import msgspec

    from vitdeploy.artifact import Artifact

    other = next(name for name in ENGINES if name != engine)
    foreign = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, kind=other))
    with pytest.raises(UsageError, match=f"compiled for {other}") as caught:
        table.load(engine).open(foreign, OpenConfig())
    assert caught.value.code == "VD2013"


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_from_several_threads(engine, tiny_artifact, tensor):
    """A second call waits for a free request; no output is mixed with another's."""
    from concurrent.futures import ThreadPoolExecutor

    opened = table.load(engine).open(tiny_artifact, OpenConfig(threads=1))
    alone = [opened.run(tensor[row : row + 1])["logits"] for row in range(len(tensor))]
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: opened.run(tensor[row : row + 1])["logits"], list(range(len(tensor))) * 5))
    for index, logits in enumerate(rows):
        np.testing.assert_array_equal(logits, alone[index % len(tensor)])


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_compute_the_original(engine, tiny_artifact, tensor):
    options = OpenConfig(threads=1)
    rows, truth = (table.load(each).open(tiny_artifact, options).run(tensor)["logits"] for each in (engine, "pytorch"))
    assert truth.std() > 0.01
    np.testing.assert_allclose(rows, truth, atol=1e-4 * truth.std())


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_batch(engine, tiny_static, tensor):
    opened = table.load(engine).open(tiny_static, OpenConfig(threads=1))
    assert opened.batch == 4
    with pytest.raises(InputError, match=r"\[4, 3, 16, 24\]") as caught:
        opened.run(tensor)
    assert caught.value.code == "VD3107"
    assert "use batch 4" in caught.value.fix
    assert len(opened.run(tensor[:4])["logits"]) == 4


@pytest.mark.parametrize("count", [1, 4, 5, 7])
@pytest.mark.parametrize("engine", ENGINES)
def test_any_number_runs_on_a_fixed_batch(engine, tiny_static, tiny_artifact, tensor, count):
    static = table.load(engine).open(tiny_static, OpenConfig(threads=1))
    dynamic = table.load(engine).open(tiny_artifact, OpenConfig(threads=1))
    assert dynamic.batch is None
    rows = run_any(static, tensor[:count])["logits"]
    np.testing.assert_allclose(rows, dynamic.run(tensor[:count])["logits"], atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_model_is_one_error(engine, tiny_artifact, tmp_path):
    from vitdeploy.artifact import Artifact, Record

    raw = tiny_artifact.model.read_bytes()
    (tmp_path / "model.onnx").write_bytes(raw[: len(raw) // 2])
    damaged = Artifact(tmp_path, Record(spec=tiny_artifact.spec, made_by="test"))
    with pytest.raises(MachineError) as caught:
        table.load(engine).open(damaged, OpenConfig(threads=1))
    assert caught.value.code == "VD4004"
    assert caught.value.__cause__ is not None
    assert engine in caught.value.message


@pytest.mark.parametrize("engine", ENGINES)
def test_bare_file_opens(engine, bare_artifact, tensor):
    assert len(table.load(engine).open(bare_artifact, OpenConfig(threads=1)).run(tensor)["logits"]) == 7


def test_bare_file_has_no_original(bare_artifact):
    with pytest.raises(InputError, match="PyTorch original") as caught:
        table.load("pytorch").open(bare_artifact, OpenConfig())
    assert caught.value.code == "VD3010"
    assert caught.value.fix


@pytest.mark.parametrize("kind", ["uint8-nchw", "uint8-nhwc"])
def test_original_takes_bytes_when_the_file_does(kind, tiny_artifact, tiny_pixels, tensor):
    import msgspec

    from vitdeploy.artifact import Artifact

    spec = msgspec.structs.replace(tiny_artifact.spec, input=msgspec.structs.replace(tiny_artifact.spec.input, tensor=kind))
    raw = Artifact(tiny_artifact.folder, msgspec.structs.replace(tiny_artifact.record, spec=spec))
    pytorch = table.load("pytorch")
    rows = pytorch.open(raw, OpenConfig(threads=1)).run(images.to_tensor(tiny_pixels, spec.input))["logits"]
    np.testing.assert_array_equal(rows, pytorch.open(tiny_artifact, OpenConfig(threads=1)).run(tensor)["logits"])


def test_unknown_backend_suggests_one():
    with pytest.raises(UsageError, match="onxruntime") as caught:
        table.load("onxruntime")
    assert caught.value.code == "VD2009"
    assert "onnxruntime" in caught.value.fix


def test_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "vitdeploy.backends.openvino.backend", raising=False)
    with pytest.raises(MachineError) as caught:
        table.load("openvino")
    assert caught.value.code == "VD4001"
    assert "vitdeploy[openvino]" in caught.value.fix


def test_engine_that_does_not_load_is_one_error(monkeypatch):
    def broken(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(table.importlib, "import_module", broken)
    with pytest.raises(MachineError, match="onnxruntime: libgomp") as caught:
        table.load("onnxruntime")
    assert caught.value.code == "VD4004"


def _fresh(code: str, **environment: str) -> str:
    import os

    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


def test_the_table_imports_no_engine():
    code = (
        "import sys; from vitdeploy.backends.table import list_openers; print(list_openers());"
        "print([n for n in ('torch', 'onnxruntime', 'openvino', 'onnx') if n in sys.modules])"
    )
    assert _fresh(code).splitlines() == [str(ALL), "[]"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_brings_no_torch(engine):
    code = f"import sys; from vitdeploy.backends.table import load; load('{engine}'); print('torch' in sys.modules)"
    assert _fresh(code) == "False\n"


def test_openvino_tells_nobody(tmp_path):
    """Importing openvino would send an event and write ~/intel; through vitdeploy it does neither."""
    code = (
        "import socket, sys, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.getaddrinfo = socket.create_connection = urllib.request.urlopen = refuse\n"
        "from vitdeploy.backends.table import load; load('openvino')\n"
        "print('openvino_telemetry' in sys.modules)"
    )
    assert _fresh(code, HOME=str(tmp_path), CI="") == "False\n"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_after_openvino_is_an_interrupt(tiny_artifact) -> None:
    """Compiling leaves a small signal stack that is freed with the model; a signal on it would be a segmentation fault."""
    pytest.importorskip("openvino")
    code = """
import ctypes, sys
from contextlib import closing
from pathlib import Path
from vitdeploy.artifact import Artifact
from vitdeploy.backends.table import load
from vitdeploy.backends.base import OpenConfig
from vitdeploy.backends.openvino.backend import _SignalStack
def flags():
    now = _SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now)) == 0
    return now.flags, now.size
before = flags()
with closing(load("openvino").open(Artifact.open(Path(sys.argv[1])), OpenConfig())):
    assert flags() == before, flags()
"""
    subprocess.run([sys.executable, "-c", code, str(tiny_artifact.folder)], check=True)
