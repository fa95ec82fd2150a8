"""Graphs for the tests of FP16, and what checks and runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from tests.checkpoints.cases import CASES, shaken
from vitdeploy.graph.half.convert import HalfResult
from vitdeploy.graph.half.ranges import choose_tensors, tap
from vitdeploy.recipe import ExportConfig
from vitdeploy.verbs.exporter import trace


def to_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(data))


def run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In ONNX Runtime, which computes in FP32 where it has no FP16 kernel."""
    session = onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_in_half(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Operator by operator in the types of the file, sums of norms included: the worst engine that may exist."""
    evaluator = ReferenceEvaluator(ir.to_proto(model))
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def ranges_of(model: ir.Model, *batches: Mapping[str, np.ndarray]) -> dict[str, float]:
    taps, largest = tap(model), Counter[str]()
    for feeds in batches:
        for name, number in run(taps.model, feeds).items():
            if name in taps.outputs:
                assert number.shape == () and number.dtype == np.float32
                largest[taps.outputs[name]] = max(largest[taps.outputs[name]], float(number))
    return dict(largest)


def check(model: ir.Model, result: HalfResult) -> None:
    """Strongly typed by every schema, no Cast too many, and as the result says."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    types |= {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    half = 0
    for node in proto.graph.node:
        if node.domain not in opsets or not onnx.defs.has(node.op_type, node.domain):
            assert all(types.get(name) != onnx.TensorProto.FLOAT16 for name in (*node.input, *node.output))
            continue
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
        bound: dict[str, int] = {}
        for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for place, name in enumerate(names):
                if not name or node.op_type in ("If", "Loop"):
                    continue
                parameter = formals[min(place, len(formals) - 1)].type_str
                assert bound.setdefault(parameter, types[name]) == types[name], (node.name, parameter)
        half += onnx.TensorProto.FLOAT16 in bound.values()
        if node.name in result.kept and node.op_type != "Cast":
            assert onnx.TensorProto.FLOAT16 not in bound.values(), node.name
    made = {output: node for node in proto.graph.node for output in node.output}
    casts = [node for node in proto.graph.node if node.op_type == "Cast"]
    targets = [(node.input[0], node.attribute[0].i) for node in casts]
    assert len(targets) == len(set(targets)), "two Casts of one tensor to one type"
    assert not [node.name for node in casts if node.input[0] in made and made[node.input[0]].op_type == "Cast"], "back to back"
    assert abs(half - result.half - result.casts) <= len(casts) - result.casts  # a Cast to integers may read either type
    assert len({node.name for node in proto.graph.node}) == len(proto.graph.node)
    assert msgspec.json.decode(msgspec.json.encode(result), type=HalfResult) == result


def close(results: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], name: str) -> None:
    assert results[name].dtype == truth[name].dtype == np.float32
    assert np.isfinite(results[name]).all()
    assert truth[name].std() > 1e-3
    assert np.abs(results[name] - truth[name]).max() <= 1e-2 * truth[name].std()


@lru_cache
def exported(name: str) -> bytes:
    spec = CASES[name]
    return to_bytes(trace(shaken(spec), spec, ExportConfig()))


def list_chosen(model: ir.Model) -> list[str]:
    return [str(value.name) for value in choose_tensors(model)]


def feeds_of(model: ir.Model, seed: int = 0, batch: int = 3) -> dict[str, np.ndarray]:
    (pixels,) = model.graph.inputs
    assert pixels.shape is not None
    shape = (batch, *(int(size) for size in list(pixels.shape)[1:]))
    random = np.random.default_rng(seed)
    if pixels.dtype == ir.DataType.UINT8:
        return {str(pixels.name): random.integers(0, 256, shape, np.uint8)}
    return {str(pixels.name): random.standard_normal(shape).astype(np.float32)}


def parsed(text: str, opset: int = 20, **constants: np.ndarray) -> ir.Model:
    """A graph in ONNX's text form, its tensors typed by inference, with constants beside it."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "mine" : 1]>\n{text}')
    for name, array in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for place, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{place}"
    return ir.from_proto(proto)


NORM = """agraph (float[n, 7, 16] x) => (float[n, 7, 5] y) {
    two = Constant<value_float = 2.0>()
    epsilon = Constant<value = float {1e-6}>()
    axis = Constant<value = int64[1] {-1}>()
    wide = MatMul(x, w0)
    mean = ReduceMean<AXES>(wideAXIS)
    centred = Sub(wide, mean)
    SQUARE
    variance = ReduceMean<AXES>(squareAXIS)
    shifted = Add(variance, epsilon)
    deviation = Sqrt(shifted)
    normal = Div(centred, deviation)
    scaled = Mul(normal, gamma)
    moved = Add(scaled, beta)
    root = Constant<value_float = 1.4142135>()
    one = Constant<value_float = 1.0>()
    half = Constant<value_float = 0.5>()
    first = MatMul(moved, w1)
    ratio = Div(first, root)
    curve = Erf(ratio)
    upper = Add(curve, one)
    product = Mul(first, upper)
    gelu = Mul(product, half)
    y = MatMul(gelu, w2)
}"""


QDQ = """agraph (float[n, 7, 16] x) => (float[n, 7, 12] y) {
    h = Mul(x, two)
    q = QuantizeLinear(h, s, z)
    d = DequantizeLinear(q, s, z)
    dw = DequantizeLinear<axis = 1>(w, sw, zw)
    m = MatMul(d, dw)
    y = Add(m, b)
}"""


def quantized(opset: int, smallest: float = 1e-3) -> ir.Model:
    random = np.random.default_rng(0)
    scales = np.linspace(0.01, 0.02, 12).astype(np.float32)
    scales[3] = smallest
    return parsed(
        QDQ,
        opset,
        two=np.array(0.5, np.float32),
        s=np.array(0.02, np.float32),
        z=np.array(120, np.uint8),
        w=random.integers(-127, 128, (16, 12), np.int8),
        sw=scales,
        zw=np.zeros(12, np.int8),
        b=random.standard_normal(12).astype(np.float32),
    )
