"""What no engine is shown: impossible tensors, graphs that are no graphs.

Source: onnx.proto3 of ONNX for the field that holds each element type, and docs/IR.md for names, scopes and functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from vitdeploy.onnxfile import operators
from vitdeploy.onnxfile.model import BITS, DTYPES, ONNX, Graph, Key, Model, Node, Tensor
from vitdeploy.onnxfile.reader import refuse
from vitdeploy.onnxfile.wire import decode_signed

STRING = 8
RAW = 9
"""Field number of raw data in TensorProto."""
MOST_BYTES = 1 << 40
"""Bytes of one tensor."""
DEEPEST = 4
"""Graphs inside graphs; OpenVINO takes twice as long for each, and protobuf gives up at about 30."""
NEWEST = 1000
"""Versions of IR and operator sets beyond this are damage."""
MOST_EXPANDED = 1_000_000
"""Nodes when every function is written out where it is called."""

_FIELDS = {1: (4, 1), 14: (4, 2), 8: (6, 1), 7: (7, 1), 11: (10, 1), 15: (10, 2), 12: (11, 1), 13: (11, 1)}
"""Element type to the field of its numbers when they are not raw, and entries a number; all others are in field 5."""
_CARRY = frozenset(("Concat", "Expand", "Identity", "Cast", "Shape"))
"""Operators that engines run on a tensor without numbers."""
_PACKED = {21: 2, 22: 2, 23: 2, 25: 4, 26: 4}
"""Element types of less than a byte: how many share an entry of field 5."""


def enforce(model: Model) -> None:
    """Refuse what would crash or mislead an engine, or run foreign code.

    Raises:
        InputError: VD3027.
        TrustError: VD7005, an operator of an unknown domain, or one that loads code.
    """
    _check_versions(model)
    _check_nesting(model)
    _check_functions(model)
    operators.enforce(model)
    computed = {name for node in model.nodes if node.type not in _CARRY for name in node.inputs}
    for tensor in model.tensors:
        _check_empty(model, tensor, computed)
        _check_tensor(model, tensor)
    _check_names(model)


def _check_versions(model: Model) -> None:
    versions = [("IR", model.version), *((f"operator set {domain!r}", version) for domain, version in model.opsets)]
    for what, version in versions:
        if not 1 <= version <= NEWEST:
            raise refuse(model.path, f"asks for version {decode_signed(version)} of the {what}, which can't exist")


def _check_nesting(model: Model) -> None:
    """Graphs do not lie too deep, and nothing is said twice that protobuf would merge, because readers disagree on it."""
    if any(graph.depth > DEEPEST for graph in model.graphs):
        raise refuse(model.path, f"holds graphs inside graphs, more than {DEEPEST} deep")
    merged = next((node for node in model.nodes if node.merged is not None), None)
    if merged is not None:
        message = f"{merged.title} has an attribute {merged.merged!r} that holds two values in the place of one"
        raise refuse(model.path, message)


def _check_functions(model: Model) -> None:
    """No function stands for an operator of ONNX, comes twice, calls itself, or grows beyond all measure."""
    bodies: dict[Key, Graph] = {}
    for function in model.functions:
        if function.domain in ONNX or function.key in bodies:
            how = "has two functions" if function.key in bodies else "has a function in the place of ONNX's operator"
            raise refuse(model.path, f"{how} {function.name!r}")
        bodies[function.key] = function
    calls = {key: Counter(node.key for node in _walk(body.nodes)) for key, body in bodies.items()}
    sizes = dict[Key, int]()
    try:
        for key in TopologicalSorter({key: times.keys() & calls.keys() for key, times in calls.items()}).static_order():
            sizes[key] = sum(times * sizes.get(called, 1) for called, times in calls[key].items())
    except CycleError as exc:
        raise refuse(model.path, f"its function {exc.args[1][0][1]!r} calls itself") from None
    total = sum(sizes.get(node.key, 1) for node in _walk(model.main.nodes))
    if total > MOST_EXPANDED:
        raise refuse(model.path, f"its functions, written out, are {total:,} nodes")


def _walk(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes, and those of the graphs inside of them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in node.graphs:
            waiting += graph.nodes


def _check_tensor(model: Model, tensor: Tensor) -> None:
    sizes = " x ".join(str(decode_signed(size)) for size in tensor.sizes)
    if tensor.kind not in BITS and tensor.kind != STRING:
        raise refuse(model.path, f"{tensor.where} has the element type {tensor.kind}, which does not exist")
    if any(size >> 63 for size in tensor.sizes):
        raise refuse(model.path, f"{tensor.where} has a negative size: {sizes}")
    if tensor.count * BITS.get(tensor.kind, 8) > 8 * MOST_BYTES:
        raise refuse(model.path, f"{tensor.where} is impossibly large: {sizes}")
    if tensor.outside not in (0, 1):
        raise refuse(model.path, f"{tensor.where} has its data in place {tensor.outside}, which does not exist")
    if tensor.outside:
        if any(tensor.stored.values()):
            raise refuse(model.path, f"{tensor.where} has data both inside and beside the model")
        return
    _check_stored(model, tensor, sizes)


def _check_empty(model: Model, tensor: Tensor, computed: set[str]) -> None:
    """A tensor without numbers may be put beside others (a model's register tokens, of which it has none), not computed with."""
    if 0 in tensor.sizes and len(tensor.sizes) > 1 and (not tensor.name or tensor.name in computed):
        raise refuse(model.path, f"{tensor.where} holds no numbers: {' x '.join(map(str, tensor.sizes))}")


def _check_stored(model: Model, tensor: Tensor, sizes: str) -> None:
    """The data inside the file is as long as the sizes say, and in the field that its type has."""
    held = {number: entries for number, entries in tensor.stored.items() if entries}
    if len(held) > 1:
        raise refuse(model.path, f"{tensor.where} holds its data {len(held)} times")
    number, entries = next(iter(held.items()), (RAW, 0))
    count, dtype = tensor.count, DTYPES[tensor.kind]
    if not held and count == 0:
        return
    usual, times = _FIELDS.get(tensor.kind, (5, 1))
    if number == RAW and tensor.kind != STRING:
        need, unit = tensor.bytes, "bytes"
    elif number == usual:
        need, unit = -(-count * times // _PACKED.get(tensor.kind, 1)), "entries"
    else:
        raise refuse(model.path, f"{tensor.where} holds {dtype} in a field of another type")
    if entries != need:
        shape = f"{sizes} of {dtype}" if sizes else f"one {dtype}"
        raise refuse(model.path, f"{tensor.where} is {shape}, {need:,} {unit}, but holds {entries:,}")


def _check_names(model: Model) -> None:
    """In every graph each name is made once, all that is read is made, and nothing waits for itself."""
    _check_ports(model)
    waiting: list[tuple[Graph, tuple[frozenset[str], ...]]] = [(graph, ()) for graph in (model.main, *model.functions)]
    while waiting:
        graph, outer = waiting.pop()
        known = (_collect_made(model, graph), *outer)  # no union: each of many graphs inside one would copy its names
        for node in graph.nodes:
            for name in node.inputs:
                if name and not any(name in scope for scope in known):
                    raise refuse(model.path, f"{node.title} reads {name!r}, which nothing makes")
            waiting += [(inner, known) for inner in node.graphs]
        for port in graph.outputs:
            if not any(port.name in scope for scope in known):
                raise refuse(model.path, f"its output {port.name!r} is made by nothing")
        _check_order(model, graph)


def _check_ports(model: Model) -> None:
    """The model takes something, and says how many axes it has."""
    if not model.main.taken:
        raise refuse(model.path, "its graph has no inputs")
    for port in model.main.taken:
        if not port.shape:
            message = f"its input {port.name!r} does not say its axes, so it can't be an image"
            raise refuse(model.path, message, "export the model again")


def _collect_made(model: Model, graph: Graph) -> frozenset[str]:
    """Names of inputs, initializers and outputs of nodes; old writers list initializers among the inputs."""
    made, taken = set(graph.initializers), [port.name for port in graph.inputs]
    for names, what in ((graph.initializers, "initializers"), (taken, "inputs")):
        again = next((name for name, times in Counter(names).items() if times > 1), None)
        if again is not None:
            raise refuse(model.path, f"two {what} have the name {again!r}")
    made.update(taken)
    for node in graph.nodes:
        for name in node.outputs:
            if name in made:
                raise refuse(model.path, f"{node.title} makes {name!r}, which exists already")
            if name:
                made.add(name)
    return frozenset(made - {""})


def _check_order(model: Model, graph: Graph) -> None:
    """Nodes can be brought into an order in which each reads what is made; the file's own order does not matter."""
    makers = {name: index for index, node in enumerate(graph.nodes) for name in node.outputs if name}
    needs = {index: {makers[name] for name in _collect_read(node) if name in makers} for index, node in enumerate(graph.nodes)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as exc:
        stuck = graph.nodes[exc.args[1][0]]
        raise refuse(model.path, f"its graph has a loop: {stuck.title} waits for its own output") from None


def _collect_read(node: Node) -> set[str]:
    """All names that a node reads, and those that graphs inside of it read from outside; what they make is theirs alone.

    Recurses as deep as graphs lie inside graphs, which has a cap.
    """
    names = set(node.inputs)
    for graph in node.graphs:
        own = {*graph.initializers, *(port.name for port in graph.inputs)}.union(*(inner.outputs for inner in graph.nodes))
        names |= {port.name for port in graph.outputs}.union(*map(_collect_read, graph.nodes)) - own
    return names


def count_trailing(node: Node) -> int:
    """How many empty names end a node's inputs: each says that an optional input is absent, as leaving it out does.

    Loop is left alone: it must have two inputs, and both may be absent.
    """
    if node.type == "Loop":
        return 0
    count = 0
    while count < len(node.inputs) - 1 and not node.inputs[-1 - count]:
        count += 1
    return count
