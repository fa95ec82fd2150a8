"""Changes to nodes and tensors, a field at a time: what a careless or hostile writer could have written in their place."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

Model = onnx.ModelProto
Dice = random.Random
MUTATIONS: dict[str, Callable[[Model, Dice], None]] = {}
NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, -(1 << 31), (1 << 31) - 1, 1 << 32, 1 << 62, -(1 << 63), (1 << 63) - 1)
FLOATS = (0.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("nan"))
_OPERATORS = """
Add Mul Sub Div Pow MatMul Gemm Conv ConvInteger MatMulInteger Reshape Transpose Gather GatherND Split Slice Pad Tile Expand
Concat Squeeze Unsqueeze Flatten Shape Identity Cast Softmax LogSoftmax LayerNormalization RMSNormalization
InstanceNormalization BatchNormalization Gelu Erf Relu Clip Where ReduceMean ReduceSum ReduceMax TopK ArgMax Einsum Resize
QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearMatMul QLinearConv Attention RotaryEmbedding Dropout Constant
ConstantOfShape Range NonZero OneHot CumSum If Loop Scan LSTM MaxPool AveragePool GlobalAveragePool ScatterND Trilu Size Mod
Equal Not SpaceToDepth DepthToSpace NoSuchOperator
"""
OPERATORS = tuple(_OPERATORS.split())
_CONTRIB = """
MatMulNBits Attention MultiHeadAttention QAttention SkipLayerNormalization FastGelu BiasGelu FusedMatMul QGemm QLinearAdd
QLinearSoftmax DynamicQuantizeMatMul MatMulIntegerToFloat QuantizeLinear DequantizeLinear FusedConv PackedAttention
GroupQueryAttention EmbedLayerNormalization GatherBlockQuantized FusedGemm
"""
CONTRIB = tuple(_CONTRIB.split())


def mutation(function: Callable[[Model, Dice], None]) -> Callable[[Model, Dice], None]:
    MUTATIONS[function.__name__] = function
    return function


def node_of(model: Model, dice: Dice) -> onnx.NodeProto:
    return dice.choice(model.graph.node)


def values_of(model: Model) -> list[str]:
    graph = model.graph
    outputs = [name for node in graph.node for name in node.output]
    return outputs + [each.name for each in graph.initializer] + [each.name for each in graph.input]


def array_of(tensor: TensorProto) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor).copy()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError, onnx.checker.ValidationError) as exc:
        raise IndexError from exc  # changed before, so that it has no numbers any more


def replace(tensor: TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


# inputs and outputs of nodes


@mutation
def input_dropped(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    del node.input[dice.randrange(len(node.input))]


@mutation
def input_emptied(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.input[dice.choice((-1, dice.randrange(len(node.input))))] = ""


@mutation
def input_added(model: Model, dice: Dice) -> None:
    node_of(model, dice).input.extend([dice.choice(("", dice.choice(values_of(model))))] * dice.choice((1, 1, 2, 5)))


@mutation
def input_retargeted(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.input[dice.randrange(len(node.input))] = dice.choice(values_of(model))


@mutation
def weight_retargeted(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.input[dice.randrange(len(node.input))] = dice.choice(model.graph.initializer).name


@mutation
def input_repeated(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.input.append(dice.choice(node.input))


@mutation
def inputs_swapped(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    inputs = list(node.input)
    dice.shuffle(inputs)
    del node.input[:]
    node.input.extend(inputs)


@mutation
def input_undefined(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.input[dice.randrange(len(node.input))] = dice.choice(("nobody", "\x1b[31m::error::", "n" * 300))


@mutation
def output_renamed(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.output[dice.randrange(len(node.output))] = dice.choice(("", "other", dice.choice(values_of(model))))


@mutation
def output_added(model: Model, dice: Dice) -> None:
    node_of(model, dice).output.extend(dice.choice((["more"], ["", "more"], ["more", "most"], [""])))


@mutation
def output_dropped(model: Model, dice: Dice) -> None:
    del node_of(model, dice).output[-1]


# attributes


def attribute_of(model: Model, dice: Dice) -> tuple[onnx.NodeProto, AttributeProto]:
    node = dice.choice([node for node in model.graph.node if node.attribute])
    return node, dice.choice(node.attribute)


@mutation
def attribute_removed(model: Model, dice: Dice) -> None:
    node, attribute = attribute_of(model, dice)
    node.attribute.remove(attribute)


@mutation
def attribute_changed(model: Model, dice: Dice) -> None:
    _, attribute = attribute_of(model, dice)
    if attribute.type == AttributeProto.INT:
        attribute.i = dice.choice((*NUMBERS, attribute.i + 1, attribute.i - 1, -attribute.i))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = dice.choice(FLOATS)
    elif attribute.type == AttributeProto.INTS:
        attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice(NUMBERS)


@mutation
def attribute_resized(model: Model, dice: Dice) -> None:
    attribute = dice.choice([each for node in model.graph.node for each in node.attribute if each.ints])
    numbers = list(attribute.ints)
    del attribute.ints[:]
    attribute.ints.extend(
        dice.choice((numbers[:-1], [*numbers, 1], [], numbers * 2, numbers[::-1], numbers[:1] * len(numbers), numbers * 20))
    )


@mutation
def attribute_of_another_type(model: Model, dice: Dice) -> None:
    _, attribute = attribute_of(model, dice)
    other = dice.choice((1, 1.5, "text", [1, 2], [0.5], ["a"], numpy_helper.from_array(np.ones(2, np.float32), "t")))
    changed = helper.make_attribute(attribute.name, other)
    attribute.CopyFrom(changed)
    if dice.random() < 0.3:
        attribute.type = dice.randrange(0, 16)


@mutation
def attribute_invented(model: Model, dice: Dice) -> None:
    name = dice.choice(("axis", "axes", "to", "perm", "epsilon", "alpha", "group", "keepdims", "num_outputs", "mode"))
    value = dice.choice((*NUMBERS[:8], 0.5, "linear", [0, 1], [1, 1, 1, 1]))
    node_of(model, dice).attribute.append(helper.make_attribute(name, value))


@mutation
def attribute_renamed(model: Model, dice: Dice) -> None:
    attribute_of(model, dice)[1].name = dice.choice(("axis", "other", "axes", ""))


# tensors


@mutation
def sizes_regrouped(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    count = int(np.prod(tensor.dims))
    sizes = dice.choice(([count], [1, count], [count, 1], list(tensor.dims)[::-1], [1, *tensor.dims], [*tensor.dims, 1]))
    del tensor.dims[:]
    tensor.dims.extend(sizes)


@mutation
def size_changed(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    tensor.dims[dice.randrange(len(tensor.dims))] = dice.choice(NUMBERS)


@mutation
def tensor_cut(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    array = array_of(tensor)
    replace(tensor, array[: dice.randrange(array.shape[0])] if array.ndim else array[None])


@mutation
def data_cut(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    tensor.raw_data = tensor.raw_data[: dice.randrange(len(tensor.raw_data))]


@mutation
def tensor_of_another_type(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    kinds = (np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_, np.int16, np.uint16)
    with np.errstate(all="ignore"):
        replace(tensor, array_of(tensor).astype(dice.choice(kinds)))


@mutation
def tensor_type_relabelled(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    same = {1: (6, 12), 2: (3, 9, 17, 18, 19, 20, 24), 3: (2, 9, 17, 19), 7: (11, 13), 10: (16, 4, 5)}
    tensor.data_type = dice.choice((*same.get(tensor.data_type, ()), dice.randrange(0, 30)))


@mutation
def tensor_of_scalar(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    replace(tensor, array_of(tensor).reshape(-1)[:1].reshape(dice.choice(((), (1,), (1, 1)))))


@mutation
def small_bytes(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    array = array_of(tensor).astype(np.float32)
    kinds = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN, TensorProto.BFLOAT16, TensorProto.FLOAT4E2M1)
    name, values = tensor.name, np.clip(np.nan_to_num(array), 0, 6).reshape(-1)
    tensor.CopyFrom(helper.make_tensor(name, dice.choice(kinds), array.shape, values.tolist()))


@mutation
def numbers_changed(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    array = array_of(tensor)
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        flat[dice.randrange(flat.size)] = np.array(dice.choice(FLOATS)).astype(array.dtype)
    replace(tensor, array)


@mutation
def shape_changed(model: Model, dice: Dice) -> None:
    tensor = dice.choice([each for each in model.graph.initializer if each.data_type == TensorProto.INT64])
    array = array_of(tensor)
    flat = array.reshape(-1)
    flat[dice.randrange(flat.size)] = dice.choice(NUMBERS)
    replace(tensor, array)


@mutation
def tensor_removed(model: Model, dice: Dice) -> None:
    model.graph.initializer.remove(dice.choice(model.graph.initializer))


@mutation
def tensor_made_an_input(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if dice.random() < 0.5:
        model.graph.initializer.remove(tensor)


@mutation
def tensor_made_a_constant(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    model.graph.initializer.remove(tensor)


@mutation
def external_invented(model: Model, dice: Dice) -> None:
    tensor = dice.choice(model.graph.initializer)
    places = ("model.data", "../model.data", "/dev/zero", "/etc/passwd", "a\0b", "", "*/_ORT_MEM_ADDR_/*", "mutant.onnx", ".")
    for key, value in (
        ("location", dice.choice(places)),
        ("offset", dice.choice(("0", "-4096", str(1 << 63), "1e3", "4096"))),
        ("length", dice.choice(("16", str(1 << 40), "-1", ""))),
    ):
        if dice.random() < 0.8:
            tensor.external_data.add(key=key, value=value)
    tensor.data_location = dice.choice((0, 1, 1))
    if dice.random() < 0.5:
        tensor.ClearField("raw_data")
