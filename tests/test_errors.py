"""The seam to other libraries: what each is known to raise becomes one line of ours, everything else stays our mistake."""

import errno
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vitdeploy.errors import FOREIGN, LOADING, SEAMS, MachineError, find_seam, first_line, library, nearest


def fail_torch(_: Path) -> None:
    import torch

    torch.ones(2) @ torch.ones(3)


def fail_torch_onnx(_: Path) -> None:
    import torch

    class Branch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    torch.onnx.export(Branch(), (torch.ones(2),), dynamo=True, verbose=False)


def fail_safetensors(path: Path) -> None:
    import safetensors

    safetensors.safe_open(path, "np")


def fail_onnx(path: Path) -> None:
    import onnx_ir

    onnx_ir.load(path)


def fail_onnxruntime(path: Path) -> None:
    import onnxruntime

    onnxruntime.InferenceSession(str(path))


def fail_openvino(path: Path) -> None:
    import openvino

    openvino.Core().read_model(path)


def fail_tensorrt(_: Path) -> None:
    kind = type("Refusal", (Exception,), {"__module__": "tensorrt_rtx.tensorrt_rtx"})  # as its bindings define them
    raise kind("no engine")


def fail_numpy(_: Path) -> None:
    np.linalg.cholesky(-np.eye(2))


def fail_file_system(path: Path) -> None:
    path.mkdir()


def fail_starting_a_child_process(path: Path) -> None:
    subprocess.Popen([str(path / "nothing")])


def fail_of_memory(_: Path) -> None:
    np.empty(1 << 50)


LIBRARIES = (*SEAMS, "onnxruntime", "openvino", "tensorrt")


@pytest.fixture
def nonsense(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07junkjunk")
    return path


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.filterwarnings("ignore")
def test_a_real_error_of_each_library_is_one_line(name: str, nonsense: Path) -> None:
    cause = globals()[f"fail_{name.replace('.', '_').replace(' ', '_')}"]
    with pytest.raises(MachineError, match=f"VD4004.*{name}: ") as caught, library(name, nonsense):
        cause(nonsense)
    assert caught.value.file == str(nonsense)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, AssertionError, IndexError, RecursionError])
@pytest.mark.parametrize("name", LIBRARIES)
def test_mistakes_of_ours_pass_through(name: str, kind: type[Exception]) -> None:
    planted = kind("planted")
    if isinstance(planted, find_seam(name).plain):  # Python counts a recursion among the RuntimeErrors
        return
    with pytest.raises(kind) as caught, library(name):
        raise planted
    assert caught.value is planted


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_full_machine_is_told_as_such_everywhere(name: str) -> None:
    with pytest.raises(MachineError, match=f"VD4006.*{name} ran out of memory"), library(name):
        fail_of_memory(Path())
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with pytest.raises(MachineError, match=r"VD4002.*x\.bin"), library(name):
            raise OSError(number, "full", "x.bin")


def test_our_errors_are_not_wrapped() -> None:
    error = MachineError("VD4010", "no such device")
    with pytest.raises(MachineError) as caught, library("torch"):
        raise error
    assert caught.value is error


def test_foreign_code_may_raise_anything_but_an_interrupt() -> None:
    with pytest.raises(MachineError, match=r"VD4004.*the user's module: 'planted'"), library("the user's module", seam=FOREIGN):
        raise KeyError("planted")
    with pytest.raises(KeyboardInterrupt), library("the user's module", seam=FOREIGN):
        raise KeyboardInterrupt


def test_an_engine_that_can_not_be_loaded() -> None:
    with pytest.raises(MachineError, match=r"VD4004.*engine: libcuda\.so"), library("engine", seam=LOADING):
        raise ImportError("libcuda.so: cannot open shared object file")
    with pytest.raises(AttributeError), library("engine", seam=LOADING):
        raise AttributeError("planted")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Exception from src/a.cpp:1:\nException from src/b.cpp:22:\nit is full\n", "it is full"),
        (
            "Exception from src/core.cpp:132:\nCheck 'false' failed at src/unconverted.cpp:151:\n"
            "FrontEnd API failed with OpConversionFailure:\nModel wasn't fully converted. Failed operations detailed log:\n"
            "-- Conv-20 with a message:\nWhile validating ONNX node '<Node(Conv): y>': Check 'a' failed at src/conv.hpp:307:\n"
            "While validating node 'opset1::Convolution':\nchannel count (3) does not match (5).\n\nSummary:\n-- Conv-20\n",
            "channel count (3) does not match (5).",
        ),
        (
            "Model wasn't fully converted.\nSummary:\n-- No conversion rule found for operations: DeformConv-20",
            "-- No conversion rule found for operations: DeformConv-20",
        ),
        ("[CPU] node 'y' Check 'n <= 1' failed at src/reshape.cpp:77:\n[cpu]reshape: conflicts", "[cpu]reshape: conflicts"),
        ("Check 'x' failed at src/a.cpp:3:\n", "Check 'x' failed at src/a.cpp:3:"),
        ("a plain message\nand more", "a plain message"),
        ("", "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something(text, line):
    """Of what engines say: OpenVINO's texts begin with places in its own source."""
    assert first_line(RuntimeError(text)) == line


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("gqu", "gpu"),
        ("opst", "opset"),
        ("vit_tiny", "vit_tiny_patch16"),
        ("opset.more", "opset"),
        ("cat", ""),
        ("something", ""),
        ("vit", ""),
    ],
)
def test_only_what_is_near_is_suggested(word, meant):
    assert nearest(word, ["gpu", "opset", "vit_tiny_patch16", "vit_tiny_patch16_224"]) == (meant and f"did you mean {meant!r}?")
