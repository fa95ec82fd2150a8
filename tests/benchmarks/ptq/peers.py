"""Each quantizer of the benchmark as one function, and a process of its own to measure it in.

    python peers.py METHOD MODEL.onnx CALIBRATION.npy IMAGES_FOLDER OUT_FOLDER       (prints one line of JSON)

The child's Python may be another installation that holds the peers, so nothing of vitdeploy is imported here at the top. Every
peer gets what its own documentation recommends for a transformer on a CPU, the same images in the same order, and images come
from disk one at a time, so that peak memory is the quantizer's. What is timed is the call, not the imports.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """What a quantizer is given.

    Attributes:
        model: FP32 ONNX file, in its artifact's folder.
        calibration: float32 [n, C, H, W] in a .npy file.
        files: Folder of the same images as files.
        out: Folder to write into; exists.
    """

    model: Path
    calibration: Path
    files: Path
    out: Path

    def images(self) -> Iterator[NDArray[np.float32]]:
        """float32 [1, C, H, W], one after the other; the file is mapped anew for each, so that its pages are not kept."""
        for index in range(len(np.load(self.calibration, mmap_mode="r"))):
            yield np.array(np.load(self.calibration, mmap_mode="r")[index : index + 1])


@dataclass(frozen=True)
class Method:
    """A quantizer.

    Attributes:
        title: For tables.
        engine: Where its result runs.
        needs: Modules that must be installed.
        make: Quantizes and gives the file to open.
    """

    title: str
    engine: str
    needs: tuple[str, ...]
    make: Callable[[Job], Path]


def _prepared(job: Job) -> Path:
    """ONNX Runtime's own preparation, as its documentation asks: symbolic shapes, optimisation, ONNX shapes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = job.out / "prepared.onnx"
    quant_pre_process(str(job.model), str(out))
    return out


def _static(job: Job, **settings: Any) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = job.images()

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": image}

    out, prepared = job.out / "model.onnx", _prepared(job)
    quantize_static(str(prepared), str(out), Reader(), **settings)
    prepared.unlink()
    return out


def _static_default(job: Job) -> Path:
    return _static(job)


def _static_gemm(job: Job, method: str = "MinMax", **extra: Any) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantType

    return _static(
        job,
        op_types_to_quantize=["MatMul", "Gemm"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        calibrate_method=CalibrationMethod[method],
        extra_options=extra,
    )


_INPUTS_ONLY: dict[str, Any] = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}


def _static_inputs(job: Job) -> Path:
    return _static_gemm(job, **_INPUTS_ONLY)


def _static_entropy(job: Job) -> Path:
    return _static_gemm(job, "Entropy", **_INPUTS_ONLY)


def _static_percentile(job: Job) -> Path:
    return _static_gemm(job, "Percentile", **_INPUTS_ONLY)


def _dynamic(job: Job, **settings: Any) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    out, prepared = job.out / "model.onnx", _prepared(job)
    quantize_dynamic(str(prepared), str(out), **settings)
    prepared.unlink()
    return out


def _dynamic_channels(job: Job) -> Path:
    return _dynamic(job, per_channel=True)


def _nncf(job: Job, model: Any, key: str | int, alpha: float | None) -> Any:
    import nncf

    count = len(np.load(job.calibration, mmap_mode="r"))
    settings: dict[str, Any] = {}
    if alpha is not None:
        smooth = nncf.AdvancedSmoothQuantParameters(matmul=alpha)
        settings["advanced_parameters"] = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=smooth)
    data = _Images(job)
    return nncf.quantize(
        model,
        nncf.Dataset(data, lambda image: {key: image}),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=count,
        **settings,
    )


class _Images:
    """The images as something that can be gone through more than once, as NNCF does."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return self.job.images()


def _nncf_onnx(job: Job, alpha: float | None = None) -> Path:
    import onnx

    out = job.out / "model.onnx"
    onnx.save(_nncf(job, onnx.load(job.model), "pixels", alpha), out)
    return out


def _nncf_openvino(job: Job, alpha: float | None = None) -> Path:
    import openvino

    model = openvino.Core().read_model(job.model)
    out = job.out / "model.xml"
    openvino.save_model(_nncf(job, model, 0, alpha), out, compress_to_fp16=False)
    return out


def _nncf_onnx_gentle(job: Job) -> Path:
    return _nncf_onnx(job, 0.6)


def _nncf_openvino_gentle(job: Job) -> Path:
    return _nncf_openvino(job, 0.6)


def _modelopt(job: Job, method: str = "entropy") -> Path:
    from modelopt.onnx.quantization import quantize

    out = job.out / "model.onnx"
    quantize(
        str(job.model),
        quantize_mode="int8",
        calibration_data={"pixels": np.load(job.calibration)},
        calibration_method=method,
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul", "Gemm"],
        high_precision_dtype="fp32",  # ONNX Runtime's CPU kernels have no float16
        output_path=str(out),
    )
    return out


def _modelopt_max(job: Job) -> Path:
    return _modelopt(job, "max")


def _ours(job: Job, precision: str, target: str) -> Path:
    """The one place where the benchmark calls our own quantizer; what no peer does, the comparison afterwards, is left out."""
    import vitdeploy

    config = vitdeploy.QuantizeConfig(precision=precision, target=target, calibration=str(job.files), verify=False)
    return vitdeploy.quantize(vitdeploy.Artifact.open(job.model.parent), config, job.out / "artifact").model


def _own(precision: str, target: str) -> Method:
    def make(job: Job) -> Path:
        return _ours(job, precision, target)

    return Method(f"vitdeploy {precision}", target, ("vitdeploy",), make)


_ORT, _OV = "onnxruntime", "openvino"
_ORT_TOOLS = ("onnxruntime.quantization",)
OWN = {
    "ours": _own("int8", _ORT),
    "ours-dynamic": _own("int8-dynamic", _ORT),
    "ours-fp16": _own("fp16", _ORT),
    "ours-openvino": _own("int8", _OV),
    "ours-openvino-fp16": _own("fp16", _OV),
}
"""Ours; each is what a user gets who gives nothing but a precision, a target and images, all of which set the ranges."""
PEERS = {
    "ort-static": Method("ORT static, defaults", _ORT, _ORT_TOOLS, _static_default),
    "ort-gemm": Method("ORT static, MatMul u8/s8", _ORT, _ORT_TOOLS, _static_gemm),
    "ort-inputs": Method("ORT static, GEMM inputs u8/s8", _ORT, _ORT_TOOLS, _static_inputs),
    "ort-percentile": Method("ORT static, GEMM inputs, Percentile", _ORT, _ORT_TOOLS, _static_percentile),
    "ort-entropy": Method("ORT static, GEMM inputs, Entropy", _ORT, _ORT_TOOLS, _static_entropy),
    "ort-dynamic": Method("ORT dynamic, defaults", _ORT, _ORT_TOOLS, _dynamic),
    "ort-dynamic-pc": Method("ORT dynamic, per channel", _ORT, _ORT_TOOLS, _dynamic_channels),
    "nncf-onnx": Method("NNCF (ONNX), transformer", _ORT, ("nncf", "onnx"), _nncf_onnx),
    "nncf-onnx-0.6": Method("NNCF (ONNX), alpha 0.6", _ORT, ("nncf", "onnx"), _nncf_onnx_gentle),
    "modelopt": Method("ModelOpt, MatMul, entropy", _ORT, ("modelopt.onnx.quantization",), _modelopt),
    "modelopt-max": Method("ModelOpt, MatMul, max", _ORT, ("modelopt.onnx.quantization",), _modelopt_max),
    "nncf": Method("NNCF, transformer", _OV, ("nncf", _OV), _nncf_openvino),
    "nncf-0.6": Method("NNCF, alpha 0.6", _OV, ("nncf", _OV), _nncf_openvino_gentle),
}
"""The others, by the name that `--methods` takes. Alpha 0.6 is what Optimum-Intel sets for CLIP instead of NNCF's 0.95."""

METHODS = OWN | PEERS
LIBRARIES = ("vitdeploy", "onnxruntime", "onnx", "openvino", "nncf", "nvidia-modelopt", "numpy")


def absent(needs: tuple[str, ...]) -> list[str]:
    """Those of the modules that this Python can't import."""
    return [name for name in needs if importlib.util.find_spec(name.partition(".")[0]) is None]


def peak_mib() -> float:
    """Peak resident memory in MiB, of this process or of the largest child that has ended: ours quantizes in one."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return max(children, int(line.split()[1]) / 1024)
    raise OSError("no VmHWM in /proc/self/status")


def installed() -> dict[str, str]:
    """Library to version."""
    present = {}
    for name in LIBRARIES:
        try:
            present[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return present


def quieten(home: str) -> None:
    """Let no library report home, or write to the user's folder instead of ``home``."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    os.environ["NNCF_CI"] = "1"
    os.environ["HOME"] = home


def main(arguments: list[str]) -> None:
    """Quantize as asked and print ``{"file", "seconds", "peak_mib", "before_mib", "versions"}``, or ``{"missing"}``."""
    name, *paths = arguments
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print progress
    with tempfile.TemporaryDirectory() as home:
        quieten(home)
        os.write(answer, json.dumps(run(METHODS[name], Job(*map(Path, paths)))).encode())


def run(method: Method, job: Job) -> dict[str, Any]:
    """Quantize and measure; see `main`."""
    if missing := absent(method.needs):
        return {"missing": missing}
    for needed in method.needs:
        importlib.import_module(needed)
    before = peak_mib()
    start = time.perf_counter()
    file = method.make(job)
    seconds = time.perf_counter() - start
    return {
        "file": str(file.relative_to(job.out)),
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "before_mib": before,
        "versions": installed(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
