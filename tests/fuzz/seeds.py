"""Tiny ViTs of one block and width 16 in every form that vitdeploy writes, made node by node: what the fuzzer starts from."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitdeploy.artifact import METADATA_SPEC
from vitdeploy.spec import InputContract, ModelSpec

WIDTH, HEADS, HIDDEN, PATCH, SIDE, CLASSES = 16, 2, 32, 8, 16, 4
TOKENS = (SIDE // PATCH) ** 2
SPEC = ModelSpec(
    name="fuzz", network="module", input=InputContract(height=SIDE, width=SIDE, channels=3, resize="stretch"), classes=CLASSES
)
FORMS = ("fp32", "fp16", "int8-u8", "int8-s8", "nbits", "attention")


class _Vit:
    """Builds one form of the network."""

    def __init__(self, form: str) -> None:
        self.form, self.random = form, np.random.default_rng(0)
        self.dtype = np.float16 if form == "fp16" else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, array) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        return self.constant(name, (self.random.standard_normal(shape) / 4).astype(self.dtype))

    def add(self, operator: str, name: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes) -> str:
        names = [f"{name}/{operator}_out{place or ''}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, f"{name}/{operator}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def norm(self, name: str, value: str) -> str:
        scale, bias = self.weight(f"{name}.weight", WIDTH), self.weight(f"{name}.bias", WIDTH)
        return self.add("LayerNormalization", name, value, scale, bias, axis=-1, epsilon=1e-6)

    def reshape(self, name: str, value: str, *shape: int) -> str:
        return self.add("Reshape", name, value, self.constant(f"{name}.shape", np.array(shape, np.int64)), allowzero=0)

    def linear(self, name: str, value: str, rows: int, columns: int) -> str:
        if self.form == "nbits":
            packed = self.constant(f"{name}.weight", self.random.integers(0, 256, (columns, rows // 16, 8)).astype(np.uint8))
            scales = self.constant(f"{name}.scales", np.full(columns * (rows // 16), 0.1, np.float32))
            sizes = {"K": rows, "N": columns, "bits": 4, "block_size": 16, "accuracy_level": 4}
            product = self.add("MatMulNBits", name, value, packed, scales, domain="com.microsoft", **sizes)
        elif self.form.startswith("int8"):
            value = self.quantized(name, value)
            codes = self.constant(f"{name}.codes", self.random.integers(-127, 128, (rows, columns)).astype(np.int8))
            parts = (
                self.constant(f"{name}.scales", np.full(columns, 0.01, np.float32)),
                self.constant(f"{name}.zeros", np.zeros(columns, np.int8)),
            )
            product = self.add("MatMul", name, value, self.add("DequantizeLinear", f"{name}.w", codes, *parts, axis=1))
        else:
            product = self.add("MatMul", name, value, self.weight(f"{name}.weight", rows, columns))
        return self.add("Add", name, product, self.weight(f"{name}.bias", columns))

    def quantized(self, name: str, value: str) -> str:
        zero = np.uint8(128) if self.form == "int8-u8" else np.int8(0)
        parts = self.constant(f"{name}.step", np.float32(0.05)), self.constant(f"{name}.zero", zero)
        return self.add("DequantizeLinear", name, self.add("QuantizeLinear", name, value, *parts), *parts)

    def heads(self, name: str, value: str, perm: list[int]) -> str:
        return self.add("Transpose", name, self.reshape(name, value, 0, TOKENS, HEADS, WIDTH // HEADS), perm=perm)

    def attention(self, value: str) -> str:
        packed = self.linear("blocks.0.attn.qkv", value, WIDTH, 3 * WIDTH)
        q, k, v = self.add("Split", "blocks.0.attn.qkv", packed, outputs=3, axis=-1, num_outputs=3)
        if self.form == "attention":
            context = self.add("Attention", "blocks.0.attn", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS)
        else:
            q, v = (self.heads(f"blocks.0.attn.{name}", part, [0, 2, 1, 3]) for name, part in (("q", q), ("v", v)))
            scores = self.add("MatMul", "blocks.0.attn.scores", q, self.heads("blocks.0.attn.k", k, [0, 2, 3, 1]))
            shares = self.add("Softmax", "blocks.0.attn", scores, axis=-1)
            context = self.add("MatMul", "blocks.0.attn.context", shares, v)
            context = self.add("Transpose", "blocks.0.attn.back", context, perm=[0, 2, 1, 3])
            context = self.reshape("blocks.0.attn.back", context, 0, TOKENS, WIDTH)
        return self.linear("blocks.0.attn.proj", context, WIDTH, WIDTH)

    def model(self) -> onnx.ModelProto:
        half = self.form == "fp16"
        value = self.add("Cast", "pixels", "pixels", to=TensorProto.FLOAT16) if half else "pixels"
        kernel = self.weight("patch_embed.weight", WIDTH, 3, PATCH, PATCH)
        value = self.add("Conv", "patch_embed", value, kernel, kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH])
        value = self.add("Transpose", "patch_embed", self.reshape("patch_embed", value, 0, WIDTH, TOKENS), perm=[0, 2, 1])
        value = self.add("Add", "positions", value, self.weight("positions", 1, TOKENS, WIDTH))
        value = self.add("Add", "blocks.0.attn", value, self.attention(self.norm("blocks.0.norm1", value)))
        hidden = self.linear("blocks.0.mlp.fc1", self.norm("blocks.0.norm2", value), WIDTH, HIDDEN)
        hidden = self.linear("blocks.0.mlp.fc2", self.add("Gelu", "blocks.0.mlp", hidden), HIDDEN, WIDTH)
        value = self.add("Add", "blocks.0.mlp", value, hidden)
        value = self.add("Gather", "token", value, self.constant("token.index", np.int64(0)), axis=1)
        value = self.norm("norm", value)
        head = self.weight("head.weight", CLASSES, WIDTH), self.weight("head.bias", CLASSES)
        value = self.add("Gemm", "head", value, *head, transB=1)
        self.add("Cast" if half else "Identity", "logits", value, **({"to": TensorProto.FLOAT} if half else {}))
        self.nodes[-1].output[0] = "logits"
        return self._wrapped()

    def _wrapped(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.weights,
        )
        imports = [helper.make_opsetid("", 23 if self.form == "attention" else 20)]
        if self.form == "nbits":
            imports.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=11 if self.form == "attention" else 9)
        import msgspec

        model.metadata_props.add(key=METADATA_SPEC, value=msgspec.json.encode(SPEC).decode())
        return model


@functools.cache
def seed(form: str) -> bytes:
    """One of `FORMS`, serialised."""
    return _Vit(form).model().SerializeToString()
