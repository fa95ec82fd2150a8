"""Models that end an engine by a signal, and what vitdeploy makes of it instead.

Found by mutation with onnxruntime 1.31.1 and openvino 2026.4.1; newer engines may have learned to refuse some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.seeds import CLASSES, SIDE, seed


class Crasher(NamedTuple):
    """A model.

    Attributes:
        write: Writes it to a path, with the files that it needs.
        engine: Who dies of it.
        fence: ``repaired``, or the code of its refusal.
    """

    write: Callable[[Path], None]
    engine: str
    fence: str


CRASHERS: dict[str, Crasher] = {}


def crasher(engine: str, fence: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(write: Callable[[Path], None]) -> Callable[[Path], None]:
        CRASHERS[write.__name__] = Crasher(write, engine, fence)
        return write

    return keep


def build(path: Path, nodes: list[onnx.NodeProto], opset: int = 20, **weights: object) -> onnx.ModelProto:
    """The nodes between ``pixels`` and ``logits``."""
    graph = helper.make_graph(
        nodes,
        "crasher",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return model


def vit(form: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(seed(form))


def reshape(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "Reshape")


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@crasher("onnxruntime", "repaired")
def norm_with_an_empty_bias(path: Path) -> None:
    """Valid ONNX: a bias that is left out by an empty name. SIGSEGV in an optimiser."""
    nodes = [
        helper.make_node("Add", ["pixels", "bias"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", ""], ["norm"], axis=-1),
        helper.make_node("MatMul", ["norm", "weight"], ["logits"]),
    ]
    build(path, nodes, bias=weight(SIDE), scale=weight(SIDE), weight=weight(SIDE, CLASSES))


@crasher("onnxruntime", "VD3027")
def split_into_more_parts(path: Path) -> None:
    """Three parts by the attribute, four outputs. SIGABRT in shape inference."""
    split = helper.make_node("Split", ["pixels"], ["logits", "b", "c", "d"], axis=1, num_outputs=3)
    build(path, [split])


@crasher("openvino", "VD3027")
def reshape_to_nothing(path: Path) -> None:
    """A size of 0 that `allowzero` makes a real zero, in a whole ViT. SIGFPE."""
    model = vit("fp32")
    reshape(model).attribute[0].i = 1
    path.write_bytes(model.SerializeToString())


@crasher("openvino", "VD3027")
def reshape_by_a_fraction(path: Path) -> None:
    """The same with an attribute of the wrong type, which counts as true."""
    model = vit("fp32")
    reshape(model).attribute[0].CopyFrom(helper.make_attribute("allowzero", 1.5))
    path.write_bytes(model.SerializeToString())


@crasher("openvino", "VD3027")
def activations_of_four_bits(path: Path) -> None:
    """The zero point of one QuantizeLinear and its DequantizeLinear is uint4. Memory is overwritten: SIGABRT."""
    model = vit("int8-s8")
    (zero,) = [tensor for tensor in model.graph.initializer if tensor.name == "blocks.0.mlp.fc2.zero"]
    zero.CopyFrom(helper.make_tensor(zero.name, TensorProto.UINT4, [], [0]))
    path.write_bytes(model.SerializeToString())


@crasher("openvino", "VD3027")
def convolution_of_one_input(path: Path) -> None:
    """The second is read though it is not there. SIGSEGV."""
    build(path, [helper.make_node("Conv", ["pixels"], ["logits"], kernel_shape=[8, 8])])


@crasher("openvino", "VD3027")
def pad_of_one_input(path: Path) -> None:
    """The same for an input that was an attribute until operator set 11."""
    build(path, [helper.make_node("Pad", ["pixels"], ["logits"])])


@crasher("openvino", "VD3027")
def attention_of_one_input(path: Path) -> None:
    """The same among contributed operators."""
    build(path, [helper.make_node("Attention", ["pixels"], ["logits"], domain="com.microsoft", num_heads=2)])


@crasher("openvino", "VD7001")
def external_data_at_an_address(path: Path) -> None:
    """ONNX Runtime's own mark for data in memory, in a file: an address of the process is read. SIGSEGV, or what lies there."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[SIDE, CLASSES], data_location=1)
    for key, value in (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", str(SIDE * CLASSES * 4))):
        tensor.external_data.add(key=key, value=value)
    model = build(path, [helper.make_node("MatMul", ["pixels", "weight"], ["logits"])])
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())


@crasher("onnxruntime", "VD3027")
def attention_without_bias(path: Path) -> None:
    """Allowed by its schema, and read nevertheless. SIGSEGV, in OpenVINO too."""
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["tokens"]),
        helper.make_node("Attention", ["tokens", "weight"], ["logits"], domain="com.microsoft", num_heads=2),
    ]
    build(path, nodes, shape=np.array([0, 3 * SIDE, SIDE]), weight=weight(SIDE, 3 * SIDE))
