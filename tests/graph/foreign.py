"""ViTs as other people export them: small networks of timm, torchvision and transformers through both of torch's exporters."""

from __future__ import annotations

import collections
import functools
import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests import torchvision_shim
from vitdeploy.graph.canonical.rewrites import Rewrite, canonicalise

DEPTH, WIDTH, HEADS, SIDE, PATCH, CLASSES = 2, 32, 2, 32, 8, 5
TOKENS = (SIDE // PATCH) ** 2 + 1
SMALL = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": PATCH,
    "num_labels": CLASSES,
}


class Plain(nn.Module):
    """A transformers model that returns its tensor instead of a dictionary."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels):
        outputs = self.inner(pixels)
        return outputs.logits if "logits" in outputs else outputs.last_hidden_state


@functools.cache
def network(name: str) -> nn.Module:
    """A small network with random weights, every vector of them too.

    Args:
        name: ``timm``, ``timm-unfused``, ``timm-registers``, ``torchvision``, or a class of transformers, with ``-eager``
            behind it for attention that is not fused.
    """
    torchvision_shim.declare()
    torch.manual_seed(3)
    if name.startswith("timm"):
        net = _timm(name)
    elif name == "torchvision":
        import torchvision

        net = torchvision.models.VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, 48, num_classes=CLASSES)
    else:
        net = _transformers(name)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def _timm(name: str) -> nn.Module:
    import timm.layers
    from timm.models.vision_transformer import VisionTransformer

    timm.layers.set_fused_attn(name != "timm-unfused")
    options = {"reg_tokens": 4, "no_embed_class": True, "global_pool": "avg"} if name == "timm-registers" else {}
    net = VisionTransformer(
        SIDE, PATCH, num_classes=CLASSES, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, init_values=0.1, **options
    )
    timm.layers.set_fused_attn(True)
    return net


def _transformers(name: str) -> nn.Module:
    import transformers

    kind, _, eager = name.partition("-")
    configuration = {"ViT": "ViTConfig", "Dinov2": "Dinov2Config", "CLIP": "CLIPVisionConfig", "DINOv3": "DINOv3ViTConfig"}
    prefix = next(each for each in ("Dinov2", "DINOv3", "CLIP", "ViT") if kind.startswith(each))
    config = getattr(transformers, configuration[prefix])(**SMALL)
    config._attn_implementation = "eager" if eager else "sdpa"
    return Plain(getattr(transformers, kind)(config))


WINDOW_SIDE = 64


@functools.cache
def _windowed(name: str, options: tuple[tuple[str, object], ...]) -> nn.Module:
    torchvision_shim.declare()
    torch.manual_seed(3)
    if "_" in name:
        import timm

        net = timm.create_model(name, num_classes=CLASSES, img_size=WINDOW_SIDE, **dict(options))
    else:
        import transformers

        sizes = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
        config = getattr(transformers, f"{name}Config")(image_size=WINDOW_SIDE, num_labels=CLASSES, **sizes)
        net = Plain(getattr(transformers, f"{name}ForImageClassification")(config))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.eval()


def windowed(name: str, options: dict[str, object]) -> nn.Module:
    """A small network of windows with random weights: an architecture of timm with options, or ``Swin``, ``Swinv2``."""
    return _windowed(name, tuple(options.items()))


@functools.cache
def dynamo(name: str, opset: int) -> onnx.ModelProto:
    """Exported by ``torch.onnx.export(dynamo=True)``, dynamic batch."""
    return export_dynamo(network(name), opset)


@functools.cache
def script(name: str, opset: int, batch: int | None = None) -> onnx.ModelProto:
    """Exported by the TorchScript exporter, which optimum uses; ``batch`` is the one size, or None for any."""
    return export_script(network(name), opset, batch)


def export_dynamo(net: nn.Module, opset: int, batch: int | None = None, *, side: int = SIDE) -> onnx.ModelProto:
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    levels = [(logging.getLogger(each), logging.getLogger(each).level) for each in ("torch.onnx", "onnxscript")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        try:
            exported = torch.onnx.export(
                net, (torch.zeros(batch or 2, 3, side, side),), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                input_names=["pixels"], output_names=["logits"], verbose=False,
            )  # fmt: skip
        finally:
            for logger, level in levels:
                logger.setLevel(level)
    return exported.model_proto


def export_script(net: nn.Module, opset: int, batch: int | None = None, *, side: int = SIDE) -> onnx.ModelProto:
    file = io.BytesIO()
    axes = {"pixels": {0: "batch"}, "logits": {0: "batch"}} if batch is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(batch or 2, 3, side, side),), file, dynamo=False, opset_version=opset, dynamic_axes=axes,
            input_names=["pixels"], output_names=["logits"],
        )  # fmt: skip
    return onnx.load_model_from_string(file.getvalue())


class Sketch:
    """Builds a graph by hand, node by node, with random weights."""

    def __init__(self, opset: int = 20, shape: Sequence[int | str] = ("batch", 6, 16), **domains: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.opset, self.shape, self.domains = opset, shape, domains
        self.random = np.random.default_rng(0)

    def constant(self, array) -> str:
        """An initializer."""
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        """An initializer of random numbers."""
        return self.constant((self.random.standard_normal(shape) / 3).astype(np.float32))

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes) -> str | list[str]:
        """A node; its output, or outputs."""
        names = [f"v{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def model(self, *outputs: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """The model, from ``x`` to the outputs."""
        graph = helper.make_graph(
            self.nodes,
            "sketch",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            self.weights,
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(name.replace("_", "."), version) for name, version in self.domains.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=self.functions)


def contrib(form: str) -> onnx.ModelProto:
    """Two blocks as ONNX Runtime's own optimiser writes them, opset 17.

    Args:
        form: ``packed`` with com.microsoft's Attention, which holds the weights; ``multi-head`` with its MultiHeadAttention.
    """
    sketch, width = Sketch(17, com_microsoft=1), 16
    x, norm = "x", sketch.add("LayerNormalization", "x", sketch.weight(width), sketch.weight(width), axis=-1)
    for block in range(2):
        context = _fused_attention(sketch, form, norm, width)
        project = sketch.add("MatMul", context, sketch.weight(width, width))
        weights = [sketch.weight(width) for _ in range(3)]
        norm, _, _, x = sketch.add(
            "SkipLayerNormalization", x, project, *weights, outputs=4, domain="com.microsoft", epsilon=1e-6
        )
        hidden = sketch.add("MatMul", norm, sketch.weight(width, 24))
        if block:
            act = sketch.add("Gelu", sketch.add("Add", hidden, sketch.weight(24)), domain="com.microsoft")
        else:
            act = sketch.add("BiasGelu", hidden, sketch.weight(24), domain="com.microsoft")
        out = sketch.add("MatMul", act, sketch.weight(24, width))
        norm, _, _, x = sketch.add("SkipLayerNormalization", x, out, *weights, outputs=4, domain="com.microsoft", epsilon=1e-6)
    return sketch.model(norm)


def _fused_attention(sketch: Sketch, form: str, value: str, width: int) -> str:
    if form == "packed":
        weights = sketch.weight(width, 3 * width), sketch.weight(3 * width)
        return sketch.add("Attention", value, *weights, num_heads=2, domain="com.microsoft")
    parts = [sketch.add("MatMul", value, sketch.weight(width, width)) for _ in range(3)]
    return sketch.add("MultiHeadAttention", *parts, sketch.weight(3 * width), num_heads=2, domain="com.microsoft")


def rewritten(proto: onnx.ModelProto, *skip: str) -> tuple[onnx.ModelProto, list[Rewrite]]:
    model = ir.from_proto(proto)
    done = canonicalise(model, skip=skip)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    return result, done


def counts(proto: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in proto.graph.node)


def run(proto: onnx.ModelProto, feed: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def same(first: list[np.ndarray], second: list[np.ndarray], limit: float = 1e-5) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.shape == two.shape and one.dtype == two.dtype
        assert np.isfinite(one).all() and np.abs(one).max() > 1e-3
        assert np.abs(one - two).max() <= limit * np.abs(one).max()


def check(before: onnx.ModelProto, after: onnx.ModelProto, shape: tuple[int, ...] = (3, SIDE, SIDE), batches=(1, 3)) -> None:
    for batch in batches:
        feed = np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)
        same(run(before, feed), run(after, feed))


def sketched(sketch: Sketch, *outputs: str, skip: tuple[str, ...] = ()) -> tuple[collections.Counter[str], list[Rewrite]]:
    """Canonicalise a hand-made graph, compare, and check that a second time changes nothing."""
    proto = sketch.model(*outputs)
    result, done = rewritten(proto, *skip)
    check(proto, result, tuple(sketch.shape[1:]))
    assert skip or rewritten(result)[1] == []
    return counts(result), done


def names_of(done: list[Rewrite]) -> set[str]:
    return {rewrite.name for rewrite in done}
