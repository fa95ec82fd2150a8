"""ViTs and single operators as TensorRT likes them, and as it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from tests.backends.qdq import SCALE, Quantizer
from vitdeploy.artifact import Artifact, Record
from vitdeploy.graph.half.convert import to_half

INT8 = "s8"
TOKENS, WIDTH = 7, 16


class Placed(Quantizer):
    """Symmetric Q/DQ right where TensorRT wants them, in int8 or FP8."""

    def fp8(self) -> Placed:
        """The codes of everything that is quantized become E4M3, as large as before."""
        for name, array in list(self.arrays.items()):
            if array.dtype == np.int8:
                wide = array.astype(np.float32)
                self.arrays[name] = ir.tensor(wide.astype(ir.DataType.FLOAT8E4M3FN.numpy())).numpy()
        return self


def halved(artifact: Artifact, keep: tuple[str, ...] = ()) -> Artifact:
    """The file in FP16, in place."""
    model = ir.load(artifact.model)
    to_half(model, keep=keep)
    ir.save(model, artifact.model)
    return artifact


def written(quantizer: Quantizer, folder: Path, *, half: bool = True) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    artifact = quantizer.write(folder)
    return halved(artifact) if half else artifact


def fp16(source: Artifact, folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(source.model.read_bytes())
    return halved(Artifact(folder, Record(spec=source.spec, made_by="test", precision="fp16")))


def linear(source: Artifact) -> Placed:
    """Linear layers in int8."""
    return Placed(source).static(INT8, bias="float")


def whole(source: Artifact) -> Placed:
    """Linear layers and attention: the fifth place is the input of the projection."""
    return linear(source).products(q=INT8, k=INT8, p=INT8, v=INT8)


def single(
    folder: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray | onnx.TensorProto],
    *,
    dtype: int = TensorProto.FLOAT16,
    opset: int = 21,
    shape: tuple[int, ...] = (1, TOKENS, WIDTH),
    inputs: tuple[str, ...] = ("pixels",),
) -> Path:
    """A file of a few nodes from ``pixels`` to ``y``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [
        each if isinstance(each, onnx.TensorProto) else numpy_helper.from_array(each, name) for name, each in constants.items()
    ]
    ports = [helper.make_tensor_value_info(name, dtype, shape) for name in inputs]
    out = helper.make_tensor_value_info("y", dtype, shape)
    graph = helper.make_graph(nodes, "g", ports, [out], tensors)
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def product(
    folder: Path,
    zero: np.ndarray | onnx.TensorProto | None,
    *,
    scale: np.ndarray | None = None,
    axis: int = -1,
    **attributes: int,
) -> Path:
    """FP16 pixels through Q/DQ times an int8 weight."""
    weight = np.random.default_rng(0).integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
    ends = ["s"] + ([] if zero is None else ["z"])
    nodes = [
        helper.make_node("QuantizeLinear", ["pixels", *ends], ["q"], "Q", axis=axis, **attributes),
        helper.make_node("DequantizeLinear", ["q", *ends], ["dq"], "DQ", axis=axis),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], "WDQ", axis=1),
        helper.make_node("MatMul", ["dq", "wd"], ["y"], "product"),
    ]
    scale = np.array(SCALE, np.float16) if scale is None else scale
    constants = {"s": scale, "w": weight, "ws": np.full(WIDTH, 0.01, np.float16)} | ({} if zero is None else {"z": zero})
    return single(folder, nodes, constants)


def layer_norm(folder: Path, dtype: int = TensorProto.FLOAT16) -> Path:
    """A LayerNormalization in eight nodes, as exporters before opset 17 write it."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], "mean"),
        helper.make_node("Sub", ["pixels", "mean"], ["off"], "off"),
        helper.make_node("Pow", ["off", "two"], ["square"], "square"),
        helper.make_node("ReduceMean", ["square", "axes"], ["variance"], "variance"),
        helper.make_node("Add", ["variance", "epsilon"], ["more"], "more"),
        helper.make_node("Sqrt", ["more"], ["deviation"], "deviation"),
        helper.make_node("Div", ["off", "deviation"], ["y"], "div"),
    ]
    constants = {"axes": np.array([-1]), "two": np.array(2, kind), "epsilon": np.array(1e-5, kind)}
    return single(folder, nodes, constants, dtype=dtype, opset=20)


def attention(folder: Path, dtype: int) -> Path:
    """Opset 23's own operator."""
    node = helper.make_node("Attention", ["pixels", "k", "v"], ["y"], "attend")
    return single(folder, [node], {}, dtype=dtype, opset=23, shape=(1, 2, TOKENS, 16), inputs=("pixels", "k", "v"))
