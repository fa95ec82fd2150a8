"""What nodes with constant inputs compute, in NumPy, and what is known of shapes that a graph computes at run time.

A table of our own, not ONNX's reference: it never holds a weight twice, and the operators that move numbers work on arrays
of names as well, which is how the shape ``[N, 197, 3, 12, 64]`` comes out of a dozen nodes that compute it.

Source: ONNX operator definitions, github.com/onnx/onnx/blob/main/docs/Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.query import Array, constant, integer, sizes, whole

LARGEST = 1 << 24
"""Elements of a result that may be larger than everything it is computed from."""
_SMALL = 64
"""Elements of an integer tensor that is followed as a shape."""
_FLOATS = frozenset("f")


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array] | None:
    """The outputs of a node, or None for an operator that is not in the table.

    Args:
        node: An operator of opset 13 or later.
        inputs: Its inputs; None for one that is left out.
    """
    operation = _MOVES.get(node.op_type) or _ARITHMETIC.get(node.op_type)
    if operation is None or node.domain != "" or not inputs or inputs[0] is None:
        return None
    try:
        return [np.asarray(array) for array in operation(node, inputs)]
    except (
        ValueError,
        IndexError,
        TypeError,
        ZeroDivisionError,
        MemoryError,
    ):  # not what the operator takes: the engine will say so
        return None


def _require(inputs: Sequence[Array | None], index: int) -> Array:
    array = inputs[index] if index < len(inputs) else None
    if array is None:
        raise ValueError("an input that must be there is left out")
    return array


def _read_numbers(node: ir.Node, name: str, inputs: Sequence[Array | None], index: int) -> list[int] | None:
    """Whole numbers of an attribute, or of an input."""
    numbers = whole(node, name)
    if numbers is None and index < len(inputs) and inputs[index] is not None:
        numbers = tuple(int(each) for each in _require(inputs, index).reshape(-1))
    return None if numbers is None else list(numbers)


def _check_size(shape: Sequence[int], source: Array) -> list[int]:
    if int(np.prod(shape, dtype=np.float64)) > max(LARGEST, source.size):
        raise MemoryError("a constant that is larger than it should be")
    return [int(size) for size in shape]


def _reshape(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source = _require(inputs, 0)
    target = [int(size) for size in _require(inputs, 1)]
    copies = not integer(node, "allowzero", 0)
    return [source.reshape([source.shape[place] if size == 0 and copies else size for place, size in enumerate(target)])]


def _squeeze(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    axes = _read_numbers(node, "axes", inputs, 1)
    return [np.squeeze(_require(inputs, 0), None if axes is None else tuple(axes))]


def _unsqueeze(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    axes = _read_numbers(node, "axes", inputs, 1)
    if axes is None:
        raise ValueError("no axes")
    return [np.expand_dims(_require(inputs, 0), tuple(axes))]


def _concat(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.concatenate([_require(inputs, place) for place in range(len(inputs))], integer(node, "axis", 0))]


def _gather(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.take(_require(inputs, 0), _require(inputs, 1).astype(np.int64), integer(node, "axis", 0))]


def _slice(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source = _require(inputs, 0)
    starts, ends = _read_numbers(node, "starts", inputs, 1), _read_numbers(node, "ends", inputs, 2)
    if starts is None or ends is None:
        raise ValueError("no bounds")
    axes = _read_numbers(node, "axes", inputs, 3) or list(range(len(starts)))
    steps = _read_numbers(node, "steps", inputs, 4) or [1] * len(starts)
    index = [slice(None)] * source.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        last = None if step < 0 and end < -source.shape[axis] else end  # backwards through the first element
        index[axis] = slice(start, last, step)
    return [source[tuple(index)]]


def _split(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source, axis, parts = _require(inputs, 0), integer(node, "axis", 0), len(node.outputs)
    lengths = _read_numbers(node, "split", inputs, 1)
    if lengths is None:
        step = -(-source.shape[axis] // parts)  # the last part is the smaller one
        return list(np.split(source, [step * place for place in range(1, parts)], axis))
    return list(np.split(source, np.cumsum(lengths)[:-1], axis))


def _expand(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source = _require(inputs, 0)
    shape = np.broadcast_shapes(source.shape, tuple(int(size) for size in _require(inputs, 1)))
    return [np.ascontiguousarray(np.broadcast_to(source, _check_size(shape, source)))]


def _transpose(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    return [np.ascontiguousarray(np.transpose(_require(inputs, 0), whole(node, "perm")))]


def _flatten(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source, axis = _require(inputs, 0), integer(node, "axis", 1)
    return [source.reshape(math.prod(source.shape[:axis]), -1)]


def _tile(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    source, repeats = _require(inputs, 0), [int(each) for each in _require(inputs, 1)]
    _check_size([size * each for size, each in zip(source.shape, repeats, strict=True)], source)
    return [np.tile(source, repeats)]


def _cast(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    return [_require(inputs, 0).astype(ir.DataType(integer(node, "to", 1)).numpy())]


def _constant_of_shape(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    shape = _require(inputs, 0)
    filled = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    return [np.full(_check_size([int(size) for size in shape], shape), filled.reshape(()), filled.dtype)]


def _range(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    start, end, step = (_require(inputs, place).reshape(()).item() for place in range(3))
    _check_size([max(0, math.ceil((end - start) / step))], _require(inputs, 0))
    return [np.arange(start, end, step, dtype=_require(inputs, 0).dtype)]


def _shape_of(node: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
    shape = _require(inputs, 0).shape
    return [np.array(shape[_read_window(node, len(shape))], np.int64)]


def _read_window(node: ir.Node, rank: int) -> slice:
    """Which sizes a Shape gives."""
    return slice(integer(node, "start", 0), integer(node, "end", rank))


def _divide(first: Array, second: Array) -> Array:
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    if not np.all(second):
        raise ValueError("division by zero")
    return np.asarray(np.trunc(first / second)).astype(first.dtype)  # ONNX's integers truncate, Python's floor


def _elementwise(function: Callable[..., Any], kinds: frozenset[str] | None = None) -> Callable[..., list[Array]]:
    """An operator of as many inputs as the function has; ``kinds`` of numbers (NumPy's letters) that it takes."""

    def operation(_: ir.Node, inputs: Sequence[Array | None]) -> list[Array]:
        arrays = [_require(inputs, place) for place in range(len(inputs))]
        if kinds is not None and arrays[0].dtype.kind not in kinds:
            raise TypeError(arrays[0].dtype)
        _check_size(np.broadcast_shapes(*(array.shape for array in arrays)), max(arrays, key=lambda array: array.size))
        with np.errstate(all="ignore"):
            return [np.asarray(function(*arrays))]

    return operation


_MOVES: dict[str, Callable[[ir.Node, Sequence[Array | None]], list[Array]]] = {
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Transpose": _transpose,
    "Tile": _tile,
    "Flatten": _flatten,
    "Identity": lambda _, inputs: [_require(inputs, 0)],
}
"""They only move numbers, so they move names of sizes as well."""
_ARITHMETIC: dict[str, Callable[[ir.Node, Sequence[Array | None]], list[Array]]] = {
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Shape": _shape_of,
    "Size": lambda _, inputs: [np.array(_require(inputs, 0).size, np.int64)],
    "Add": _elementwise(np.add),
    "Sub": _elementwise(np.subtract),
    "Mul": _elementwise(np.multiply),
    "Div": _elementwise(_divide),
    "Pow": _elementwise(lambda base, exponent: np.power(base, exponent.astype(base.dtype)), _FLOATS),
    "Sqrt": _elementwise(np.sqrt, _FLOATS),
    "Reciprocal": _elementwise(lambda source: (1 / source).astype(source.dtype), _FLOATS),
    "Exp": _elementwise(np.exp, _FLOATS),
    "Log": _elementwise(np.log, _FLOATS),
    "Sin": _elementwise(np.sin, _FLOATS),
    "Cos": _elementwise(np.cos, _FLOATS),
    "Tanh": _elementwise(np.tanh, _FLOATS),
    "Relu": _elementwise(lambda source: np.maximum(source, source.dtype.type(0))),
    "Sigmoid": _elementwise(lambda source: (1 / (1 + np.exp(-source))).astype(source.dtype), _FLOATS),
    "Sign": _elementwise(np.sign),
    "Max": _elementwise(lambda *sources: reduce(np.maximum, sources)),
    "Min": _elementwise(lambda *sources: reduce(np.minimum, sources)),
    "Neg": _elementwise(np.negative),
    "Abs": _elementwise(np.abs),
    "Floor": _elementwise(np.floor, _FLOATS),
    "Ceil": _elementwise(np.ceil, _FLOATS),
    "Mod": _elementwise(lambda first, second: np.mod(first, second), frozenset("iu")),
    "Equal": _elementwise(np.equal),
    "Greater": _elementwise(np.greater),
    "GreaterOrEqual": _elementwise(np.greater_equal),
    "Less": _elementwise(np.less),
    "LessOrEqual": _elementwise(np.less_equal),
    "Not": _elementwise(np.logical_not),
    "And": _elementwise(np.logical_and),
    "Or": _elementwise(np.logical_or),
    "Where": _elementwise(np.where),
    "MatMul": lambda _, inputs: [np.matmul(_require(inputs, 0), _require(inputs, 1))],
}


def follow(graph: ir.Graph) -> dict[ir.Value, Array]:
    """What is known of the whole numbers that a graph computes from shapes.

    Returns:
        Value to an array of Python objects: a number, the name of a size that varies, or None where nothing is known.
    """
    known: dict[ir.Value, Array] = {}
    for node in graph:
        if node.domain != "":
            continue
        results = _follow(node, [_read_elements(value, known) for value in node.inputs])
        if results is not None:
            known.update((value, array) for value, array in zip(node.outputs, results, strict=False) if array.size <= _SMALL)
    return known


def _read_elements(value: ir.Value | None, known: dict[ir.Value, Array]) -> Array | None:
    if value is None or value in known:
        return None if value is None else known[value]
    if value.const_value is None or value.producer() is not None or value.const_value.size > _SMALL:
        return None
    numbers = constant(value)
    return None if numbers is None or numbers.dtype.kind not in "iub" else numbers.astype(object)


def _follow(node: ir.Node, inputs: list[Array | None]) -> list[Array] | None:
    if node.op_type == "Shape":
        shape = sizes(node.inputs[0])
        if shape is None:
            return None
        named = [f"{node.name}[{axis}]" if size is None else size for axis, size in enumerate(shape)]
        return [_as_objects(named[_read_window(node, len(shape))])]
    present = [array for array in inputs if array is not None]
    if not present or len(present) != sum(value is not None for value in node.inputs):
        return None
    if node.op_type == "Cast":
        return [present[0]] if integer(node, "to", 1) in (ir.DataType.INT64, ir.DataType.INT32) else None
    if node.op_type in _SYMBOLIC:
        return [_symbolic(node.op_type, present)]
    data = len(inputs) if node.op_type == "Concat" else 1
    arguments = [array if array is None or place < data else _as_numbers(array) for place, array in enumerate(inputs)]
    if node.op_type == "ConstantOfShape":
        arguments = [_as_numbers(present[0])]
    elif node.op_type not in _MOVES:
        return None
    if any(array is None and value is not None for array, value in zip(arguments, node.inputs, strict=True)):
        return None
    results = evaluate(node, arguments)
    return None if results is None else [array.astype(object) for array in results]


def _as_objects(elements: Sequence[object]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def is_settled(elements: Array) -> bool:
    """Whether every element is a number."""
    return all(isinstance(each, (int, bool)) for each in elements.flat)


def _as_numbers(elements: Array) -> Array | None:
    return elements.astype(np.int64) if is_settled(elements) else None


def _symbolic(operator: str, inputs: list[Array]) -> Array:
    function = np.frompyfunc(_SYMBOLIC[operator], len(inputs), 1)
    return np.asarray(function(*inputs), dtype=object)


def _plus(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    return first if second == 0 else second if first == 0 else None


def _minus(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first - second
    return first if second == 0 else None


def _times(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first * second
    return first if second == 1 else second if first == 1 else None


def _over(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int) and second != 0:
        return int(first / second)
    return first if second == 1 else None


def _equal(first: object, second: object) -> object:
    """A size that varies is never negative, which is all that is known of it."""
    if first is None or second is None:
        return None
    if first == second:
        return True
    both = isinstance(first, int) and isinstance(second, int)
    return False if both or _is_negative(first) or _is_negative(second) else None


def _is_negative(element: object) -> bool:
    return isinstance(element, int) and element < 0


def _where(condition: object, first: object, second: object) -> object:
    return None if condition is None else first if condition else second


_SYMBOLIC: dict[str, Callable[..., object]] = {
    "Add": _plus,
    "Sub": _minus,
    "Mul": _times,
    "Div": _over,
    "Equal": _equal,
    "Where": _where,
}
