"""A small inserter of QuantizeLinear and DequantizeLinear: right ways and wrong ones, to see what an engine makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from vitdeploy.artifact import Artifact, Record

SCALE = 0.05
"""Of every activation: which kernel runs does not depend on it."""
ZERO = {"u8": np.uint8(128), "u8 from 0": np.uint8(0), "s8": np.int8(0)}
"""What an activation can be quantized to, with its zero point."""


class Quantizer:
    """An exported ViT that is quantized step by step; each step returns the object."""

    def __init__(self, artifact: Artifact) -> None:
        self.source = artifact
        self.model = onnx.load(artifact.model)
        self.nodes = list(self.model.graph.node)
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self.gemms = tuple(node.name for node in self._linears())
        self.attention = tuple(node.name for node in self._bmms())

    def static(self, act: str = "u8", bias: str = "int32", zeros: bool = True) -> Quantizer:
        """Inputs and weights of all linear layers of the blocks; an int32 bias or a float one; zero points of weights or none."""
        for node in self._linears():
            scales = self._dequantized_weight(node, zeros=zeros)
            node.input[0] = self._through(node.input[0], act)
            if bias == "int32":
                self._integer_bias(node, scales)
        return self

    def weights_only(self) -> Quantizer:
        """Weights of all linear layers of the blocks, and nothing else."""
        for node in self._linears():
            self._dequantized_weight(node)
        return self

    def products(
        self, q: str | None = "s8", k: str | None = "s8", p: str | None = "u8 from 0", v: str | None = "s8"
    ) -> Quantizer:
        """Queries, keys, probabilities and values, right before the products; None leaves one in float."""
        for node in self._bmms():
            for side, act in enumerate((p, v) if self._maker(node.input[0]).op_type == "Softmax" else (q, k)):
                if act is not None:
                    node.input[side] = self._through(node.input[side], act)
        return self

    def packed(self) -> Quantizer:
        """Queries, keys and values together before they are split, and probabilities."""
        for node in [node for node in self.nodes if node.op_type == "Split"]:
            node.input[0] = self._through(node.input[0], "s8")
        return self.products(q=None, k=None, v=None)

    def unpacked(self) -> Quantizer:
        """Three products in the place of one for queries, keys and values, as other exporters write them."""
        for node in [node for node in self._linears() if "qkv" in node.name]:
            (add,) = self._users(node.output[0])
            (split,) = self._users(add.output[0])
            weights, biases = (np.split(self.arrays[name], 3, -1) for name in (node.input[1], add.input[1]))
            for letter, weight, bias, output in zip("qkv", weights, biases, split.output, strict=True):
                name = node.name.replace("qkv", letter)
                factors = [node.input[0], self._constant(f"{letter}.{node.input[1]}", weight)]
                self._before(node, "MatMul", factors, [f"{name}_out"], name)
                self._before(
                    node, "Add", [f"{name}_out", self._constant(f"{letter}.{add.input[1]}", bias)], [output], f"{name}/Add"
                )
            self.nodes = [other for other in self.nodes if not any(other is gone for gone in (node, add, split))]
        self.gemms = tuple(node.name for node in self._linears())
        return self

    def at_run_time(self) -> Quantizer:
        """DynamicQuantizeLinear and MatMulInteger, as `onnxruntime.quantization.quantize_dynamic` writes them."""
        for node in self._linears():
            weight, scale = self._integers(node.input[1], axis=None)
            names = [f"{node.name}/{part}" for part in ("q", "scale", "zero", "integers", "floats", "scales")]
            self._before(node, "DynamicQuantizeLinear", [node.input[0]], names[:3], f"{node.name}/Q")
            self._before(node, "MatMulInteger", [names[0], weight, names[2]], [names[3]], f"{node.name}/Integer")
            self._before(node, "Cast", [names[3]], [names[4]], f"{node.name}/Cast", to=onnx.TensorProto.FLOAT)
            self._before(node, "Mul", [names[1], scale], [names[5]], f"{node.name}/Scales")
            self._before(node, "Mul", [names[4], names[5]], [node.output[0]], f"{node.name}/Mul")
            self.nodes = [other for other in self.nodes if other is not node]
        self.gemms = tuple(f"{name}/Integer" for name in self.gemms)
        return self

    def write(self, folder: Path, precision: str = "int8") -> Artifact:
        """The model in a folder of its own."""
        used = {name for node in self.nodes for name in node.input}
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.arrays.items() if name in used)
        onnx.checker.check_model(self.model)
        onnx.save(self.model, folder / "model.onnx")
        return Artifact(folder, Record(spec=self.source.spec, made_by="test", precision=precision))

    def _linears(self) -> list[onnx.NodeProto]:
        return [node for node in self._matmuls(lambda weight: weight in self.arrays) if node.input[1] != "head.weight"]

    def _bmms(self) -> list[onnx.NodeProto]:
        return self._matmuls(lambda factor: factor not in self.arrays and not factor.endswith("weight/dq"))

    def _matmuls(self, wanted: Callable[[str], bool]) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == "MatMul" and wanted(node.input[1])]

    def _maker(self, value: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if value in node.output)

    def _users(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if value in node.input]

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.arrays[name] = np.asarray(array)
        return name

    def _before(
        self, node: onnx.NodeProto, kind: str, inputs: Iterable[str], outputs: list[str], name: str, **attributes: int
    ) -> None:
        at = next(index for index, other in enumerate(self.nodes) if other is node)
        self.nodes.insert(at, helper.make_node(kind, list(inputs), outputs, name, **attributes))

    def _integers(self, name: str, axis: int | None = 0) -> tuple[str, ...]:
        array = self.arrays[name]
        scale = (np.abs(array).max(axis) / 127).astype(np.float32)
        return self._constant(f"{name}/q", np.round(array / scale).astype(np.int8)), self._constant(f"{name}/scale", scale)

    def _dequantized_weight(self, node: onnx.NodeProto, zeros: bool = True) -> np.ndarray:
        name = node.input[1]
        parts = self._integers(name)
        if zeros:
            parts += (self._constant(f"{name}/zero", np.zeros(self.arrays[parts[1]].shape, np.int8)),)
        self._before(node, "DequantizeLinear", parts, [f"{name}/dq"], f"{name}/DQ", axis=1)
        node.input[1] = f"{name}/dq"
        return self.arrays[parts[1]]

    def _integer_bias(self, node: onnx.NodeProto, scales: np.ndarray) -> None:
        (add,) = self._users(node.output[0])
        name, step = add.input[1], (scales * np.float32(SCALE)).astype(np.float32)
        parts = (
            self._constant(f"{name}/q", np.round(self.arrays[name] / step).astype(np.int32)),
            self._constant(f"{name}/scale", step),
        )
        self._before(add, "DequantizeLinear", parts, [f"{name}/dq"], f"{name}/DQ", axis=0)
        add.input[1] = f"{name}/dq"

    def _through(self, value: str, act: str) -> str:
        name = f"{value}/{act}"
        if not any(f"{name}/dq" in node.output for node in self.nodes):
            user = self._users(value)[0]
            scale = self._constant(f"{name}/scale", np.float32(1 / 255 if act == "u8 from 0" else SCALE))
            zero = self._constant(f"{name}/zero", ZERO[act])
            self._before(user, "QuantizeLinear", [value, scale, zero], [f"{name}/q"], f"{name}/Q")
            self._before(user, "DequantizeLinear", [f"{name}/q", scale, zero], [f"{name}/dq"], f"{name}/DQ")
        return f"{name}/dq"
