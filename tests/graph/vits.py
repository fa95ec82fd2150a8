"""Small ViTs of every kind as canonical graphs, and what every rewrite of one must keep."""

from __future__ import annotations

import collections
import functools
import io
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import torch

from tests.checkpoints.cases import CASES, shaken
from tests.graph import foreign
from vitdeploy.graph.canonical.rewrites import canonicalise
from vitdeploy.recipe import ExportConfig
from vitdeploy.spec import ModelSpec
from vitdeploy.verbs.exporter import Program, trace

FOREIGN = (
    ("timm-unfused", 13),
    ("timm", 17),
    ("timm-registers", 17),
    ("torchvision", 17),
    ("ViTForImageClassification", 17),
    ("Dinov2ForImageClassification", 17),
    ("CLIPVisionModel", 17),
    ("DINOv3ViTModel", 17),
)
"""Networks of other people, and the operator set they are exported with by TorchScript's exporter."""


@functools.cache
def quick(name: str, **options) -> onnx.ModelProto:
    """A case of `tests.checkpoints.cases` through TorchScript's exporter, twenty times as fast as our own.

    Args:
        name: The case.
        options: Of `ExportConfig`.
    """
    spec, config = _spec(name, **options), ExportConfig(**options)
    program, file = Program(shaken(spec), spec, config).eval(), io.BytesIO()
    size = (config.batch or 2, spec.input.channels, spec.input.height, spec.input.width)
    example = torch.zeros(size)
    if config.input == "uint8-nhwc":
        example = torch.zeros((size[0], *size[2:], size[1]), dtype=torch.uint8)
    axes = None if config.batch else {name: {0: "batch"} for name in ("pixels", *program.names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program, (example,), file, dynamo=False, opset_version=17, dynamic_axes=axes,
            input_names=["pixels"], output_names=list(program.names),
        )  # fmt: skip
    return onnx.load_model_from_string(file.getvalue())


@functools.cache
def exported(name: str, **options) -> onnx.ModelProto:
    """The same through our own exporter."""
    spec = _spec(name, **options)
    return ir.to_proto(trace(shaken(spec), spec, ExportConfig(**options)))


def _spec(name: str, **options) -> ModelSpec:
    import msgspec

    spec = CASES[name]
    return msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, tensor=options.get("input", "float32-nchw")))


def canonical(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    canonicalise(model)
    return model


def feed(proto: onnx.ModelProto, batch: int) -> np.ndarray:
    """Random pixels; a fixed batch stays what it is."""
    kind = proto.graph.input[0].type.tensor_type
    shape = [size.dim_value or batch for size in kind.shape.dim]
    random = np.random.default_rng(batch)
    if kind.elem_type == onnx.TensorProto.UINT8:
        return random.integers(0, 256, shape).astype(np.uint8)
    return random.standard_normal(shape).astype(np.float32)


def same(before: onnx.ModelProto, after: onnx.ModelProto | ir.Model, limit: float = 1e-5) -> onnx.ModelProto:
    """Outputs are equal at batch 1 and 3, to a share of their standard deviation; the graph, which must be sound."""
    after = sound(after) if isinstance(after, ir.Model) else after
    assert [each.name for each in after.graph.output] == [each.name for each in before.graph.output]
    assert [each.name for each in after.graph.input] == [each.name for each in before.graph.input]
    for batch in (1, 3):
        pixels = feed(before, batch)
        for one, two in zip(foreign.run(before, pixels), foreign.run(after, pixels), strict=True):
            assert one.shape == two.shape and one.dtype == two.dtype
            if one.dtype == np.float32:
                assert one.std() > 1e-4 and np.abs(one - two).max() <= limit * one.std()
            else:
                assert (one == two).all()
    return after


def sound(model: ir.Model) -> onnx.ModelProto:
    """The graph as a file would hold it: shapes and types as declared, names unique, nothing that nobody uses."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    names = [node.name for node in proto.graph.node]
    assert all(names) and len(set(names)) == len(names)
    used = {name for node in proto.graph.node for name in node.input} | {each.name for each in proto.graph.output}
    assert {each.name for each in proto.graph.initializer} <= used
    assert all(set(node.output) & used for node in proto.graph.node)
    assert all(
        value.shape is not None and value.type is not None for node in model.graph for value in node.outputs if value.name in used
    )
    return proto


def products(proto: onnx.ModelProto, batch: int = 1) -> int:
    """Multiplications of all matrix products, by the declared shapes."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    shapes = {each.name: [size.dim_value or batch for size in each.type.tensor_type.shape.dim] for each in values}
    shapes |= {each.name: list(each.dims) for each in inferred.initializer}
    nodes = [node for node in inferred.node if node.op_type == "MatMul"]
    return sum(int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1] for node in nodes)


def operators(model: ir.Model) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph)


def peek(model: ir.Model, *values: ir.Value, batch: int = 3) -> list[np.ndarray]:
    """What a graph computes inside."""
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in values)
    known = len(model.graph.outputs)
    return foreign.run(proto, feed(proto, batch))[known:]
