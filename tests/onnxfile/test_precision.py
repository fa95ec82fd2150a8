"""The precision of files that have no record: as other tools write them, and as they come out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from tests.backends.test_floors import FORMS
from tests.fuzz.seeds import SIDE, seed
from vitdeploy.artifact import Artifact
from vitdeploy.onnxfile.precision import read_precision
from vitdeploy.onnxfile.reader import read
from vitdeploy.recipe import QuantizeConfig
from vitdeploy.verbs.quantizer import quantize


class Images(quantization.CalibrationDataReader):
    """Two random images."""

    def __init__(self) -> None:
        self.left = [np.random.default_rng(seed).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32) for seed in range(2)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"pixels": self.left.pop()} if self.left else None


def quantize_elsewhere(out: Path, how: str) -> Path:
    """A small ViT, by onnxruntime's own quantizer."""
    source = out.with_name("float.onnx")
    source.write_bytes(seed("fp32"))
    if how == "dynamic":
        quantization.quantize_dynamic(source, out)
    else:
        quantization.quantize_static(source, out, Images(), quant_format=quantization.QuantFormat[how])
    return out


@pytest.mark.parametrize(("how", "precision"), [("QDQ", "int8"), ("QOperator", "int8"), ("dynamic", "int8-dynamic")])
def test_what_onnxruntime_quantizes(how: str, precision: str, tmp_path) -> None:
    assert read_precision(read(quantize_elsewhere(tmp_path / "a.onnx", how))) == precision


def product(kind: int, *, bits: int | None = None, operator: str = "", halves: int = 0) -> bytes:
    """A product with a weight of some type: behind a DequantizeLinear, inside a MatMulNBits, or as it is."""
    weight = TensorProto(name="w", data_type=kind, dims=[64], raw_data=bytes(128))
    constants = [weight, numpy_helper.from_array(np.ones(8, np.float32), "s")]
    constants.append(numpy_helper.from_array(np.ones(halves, np.float16), "h"))
    nodes = [helper.make_node(operator, ["w", "s"], ["d"])] if operator else []
    if bits is not None:
        size = {"K": 8, "N": 8, "bits": bits, "block_size": 16} if bits else {"K": 8, "N": 8, "block_size": 16}
        nodes.append(helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **size))
    graph = helper.make_graph(nodes, "g", [], [], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()


@pytest.mark.parametrize(
    ("raw", "precision"),
    [
        (product(TensorProto.FLOAT), "fp32"),
        (product(TensorProto.FLOAT, halves=71), "fp32"),
        (product(TensorProto.FLOAT, halves=73), "fp16"),
        (product(TensorProto.FLOAT16), "fp16"),
        (product(TensorProto.BFLOAT16), "bf16"),
        (product(TensorProto.INT8, operator="DequantizeLinear"), "int8-weight-only"),
        (product(TensorProto.INT4, operator="DequantizeLinear"), "int4-weight-only"),
        (product(TensorProto.FLOAT8E4M3FN, operator="DequantizeLinear"), "fp8"),
        (product(TensorProto.FLOAT8E5M2, operator="DequantizeLinear"), "fp8"),
        (product(TensorProto.UINT8, bits=8), "int8-weight-only"),
        (product(TensorProto.UINT8, bits=4), "int4-weight-only"),
        (product(TensorProto.UINT8, bits=0), "int4-weight-only"),  # the default of the operator
        (product(TensorProto.UINT8, operator="ConvInteger"), "int8-dynamic"),
        (product(TensorProto.UINT8, operator="QLinearMatMul"), "int8"),
    ],
)
def test_what_weights_and_operators_say(raw: bytes, precision: str, tmp_path) -> None:
    (tmp_path / "a.onnx").write_bytes(raw)
    assert read_precision(read(tmp_path / "a.onnx")) == precision


def test_an_export_is_fp32(tiny_artifact, tiny_bytes) -> None:
    for artifact in (tiny_artifact, tiny_bytes):
        assert Artifact.open(artifact.model).record.precision == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [(target, each) for target, them in FORMS.items() for each in them if each != "bf16"]
)
def test_our_own_files_without_their_record(target: str, precision: str, tiny_artifact, tmp_path) -> None:
    config = QuantizeConfig(precision=precision, target=target, calibration="random", limit=8, verify=False)
    made = quantize(tiny_artifact, config, tmp_path / "out")
    same = target == "openvino" and precision == "int8-dynamic"  # the engine decides: the file is that of the weights alone
    assert Artifact.open(made.model).record.precision == ("int8-weight-only" if same else precision)
