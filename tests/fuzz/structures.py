"""Changes to the structure of a graph: nodes, ports, versions, graphs inside graphs."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from tests.fuzz.mutations import CONTRIB, NUMBERS, OPERATORS, Dice, Model, mutation, node_of, values_of


@mutation
def operator_swapped(model: Model, dice: Dice) -> None:
    node_of(model, dice).op_type = dice.choice(OPERATORS)


@mutation
def operator_swapped_bare(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.op_type = dice.choice(OPERATORS)
    del node.attribute[:]


@mutation
def operator_of_contrib(model: Model, dice: Dice) -> None:
    node = node_of(model, dice)
    node.op_type, node.domain = dice.choice(CONTRIB), "com.microsoft"
    if dice.random() < 0.7:
        node.attribute.extend([helper.make_attribute("num_heads", dice.choice((0, 1, 2, 3)))])
    if all(each.domain != "com.microsoft" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@mutation
def domain_changed(model: Model, dice: Dice) -> None:
    node_of(model, dice).domain = dice.choice(("com.microsoft", "ai.onnx", "ai.onnx.ml", "com.evil", "pkg.onnxscript.torch_lib"))


@mutation
def node_deleted(model: Model, dice: Dice) -> None:
    model.graph.node.remove(node_of(model, dice))


@mutation
def node_repeated(model: Model, dice: Dice) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(node_of(model, dice))
    if dice.random() < 0.7:
        for place, name in enumerate(copy.output):
            copy.output[place] = f"{name}/copy"
    model.graph.node.append(copy)


@mutation
def nodes_shuffled(model: Model, dice: Dice) -> None:
    nodes = list(model.graph.node)
    dice.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@mutation
def node_inserted(model: Model, dice: Dice) -> None:
    user = node_of(model, dice)
    place = dice.randrange(len(user.input))
    operator = dice.choice(("Identity", "Relu", "Transpose", "Neg", "Sqrt", "Shape", "Flatten", "Softmax", "Cast", "Erf", "Not"))
    options = {"to": dice.choice((1, 6, 7, 9, 10, 11, 16, 17))} if operator == "Cast" else {}
    new = helper.make_node(operator, [user.input[place]], [f"{user.input[place]}/new"], **options)
    user.input[place] = new.output[0]
    index = next(index for index, node in enumerate(model.graph.node) if node is user or node == user)
    model.graph.node.insert(index, new)


@mutation
def quantized_again(model: Model, dice: Dice) -> None:
    user = node_of(model, dice)
    place, kind = dice.randrange(len(user.input)), dice.choice((TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16))
    name = f"{user.input[place]}/{len(model.graph.node)}"
    scale = dice.choice((0.1, 0.0, -1.0, float("nan"), 1e-40))
    sizes = dice.choice(((), (1,), (16,)))
    count = sizes[0] if sizes else 1
    model.graph.initializer.append(helper.make_tensor(f"{name}/scale", TensorProto.FLOAT, sizes, [scale] * count))
    model.graph.initializer.append(helper.make_tensor(f"{name}/zero", kind, sizes, [3] * count))
    parts = [f"{name}/scale", f"{name}/zero"]
    options = {"axis": dice.choice((-1, 0, 1, 2, 9))}
    nodes = [
        helper.make_node("QuantizeLinear", [user.input[place], *parts], [f"{name}/q"], **options),
        helper.make_node("DequantizeLinear", [f"{name}/q", *parts], [f"{name}/dq"], **options),
    ]
    user.input[place] = f"{name}/dq"
    nodes = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@mutation
def port_changed(model: Model, dice: Dice) -> None:
    port = dice.choice((*model.graph.input, *model.graph.output))
    kind = port.type.tensor_type
    choice = dice.randrange(6)
    if choice == 0:
        kind.elem_type = dice.choice((0, 2, 7, 8, 9, 10, 11, 16, 99))
    elif choice == 1:
        kind.ClearField("shape")
    elif choice == 2:
        kind.shape.dim[dice.randrange(len(kind.shape.dim))].dim_value = dice.choice(NUMBERS)
    elif choice == 3:
        del kind.shape.dim[dice.randrange(len(kind.shape.dim))]
    elif choice == 4:
        kind.shape.dim[dice.randrange(len(kind.shape.dim))].dim_param = dice.choice(("batch", "other", ""))
    else:
        port.ClearField("type")


@mutation
def output_retargeted(model: Model, dice: Dice) -> None:
    model.graph.output[0].name = dice.choice(values_of(model))


@mutation
def outputs_added(model: Model, dice: Dice) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name=dice.choice(values_of(model))))


@mutation
def port_removed(model: Model, dice: Dice) -> None:
    del dice.choice((model.graph.input, model.graph.output))[-1]


@mutation
def shape_declared(model: Model, dice: Dice) -> None:
    sizes = dice.choice(([1], ["batch", 4, 16], [2, 4, 16], [-1, 0], [1 << 40], [2, 3, 4, 5, 6, 7, 8]))
    name, kind = dice.choice(values_of(model)), dice.choice((1, 1, 1, 7, 10, 3))
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, sizes))


@mutation
def versions_changed(model: Model, dice: Dice) -> None:
    if dice.random() < 0.6:
        model.opset_import[0].version = dice.choice((*range(1, 30), 0, -1, 1 << 40))
    elif dice.random() < 0.5:
        model.ir_version = dice.choice((0, 1, 3, 7, 12, 13, 14, 99, -1, 1 << 40))
    else:
        del model.opset_import[dice.randrange(len(model.opset_import))]


@mutation
def nested(model: Model, dice: Dice) -> None:
    """A node becomes the body of an If, of an If, of an If."""
    node = node_of(model, dice)
    inner, outputs = onnx.NodeProto(), list(node.output)
    inner.CopyFrom(node)
    model.graph.initializer.append(helper.make_tensor(f"yes{len(model.graph.initializer)}", TensorProto.BOOL, [], [True]))
    condition = model.graph.initializer[-1].name
    for depth in range(dice.choice((1, 1, 2, 5, 40))):
        names = [f"{name}/{depth}" for name in outputs]
        for place, name in enumerate(names):
            inner.output[place] = name
        body = helper.make_graph([inner], "body", [], [onnx.ValueInfoProto(name=name) for name in names])
        inner = helper.make_node("If", [condition], outputs, then_branch=body, else_branch=body)
        if len(inner.SerializeToString()) > 100_000:
            break
    for place, name in enumerate(outputs):
        inner.output[place] = name
    node.CopyFrom(inner)


@mutation
def made_a_function(model: Model, dice: Dice) -> None:
    """A node becomes a call of a function that holds it, or calls itself."""
    node = node_of(model, dice)
    inputs = [f"i{place}" for place in range(len(node.input))]
    outputs = [f"o{place}" for place in range(len(node.output))]
    body = onnx.NodeProto()
    body.CopyFrom(node)
    del body.input[:], body.output[:]
    body.input.extend(inputs)
    body.output.extend(outputs)
    name = f"F{len(model.functions)}"
    if dice.random() < 0.15:
        body.op_type, body.domain = name, "mine"
    domain = dice.choice(("mine", "mine", "pkg.onnxscript.torch_lib", ""))
    model.functions.append(helper.make_function(domain, name, inputs, outputs, [body], list(model.opset_import)))
    node.op_type, node.domain = name, domain
    del node.attribute[:]
    if all(each.domain != domain for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, 1))


@mutation
def looped(model: Model, dice: Dice) -> None:
    """A node waits for one of those that come after it."""
    node = node_of(model, dice)
    node.input[dice.randrange(len(node.input))] = dice.choice(model.graph.node[-1].output)


@mutation
def names_changed(model: Model, dice: Dice) -> None:
    node_of(model, dice).name = dice.choice(
        ("", "\x1b[2J", "::error::x", "<script>", "n" * 5000, "ü" * 9, model.graph.node[0].name)
    )
