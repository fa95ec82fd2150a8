"""Shapes: of every value of a graph, and the ones that a graph computes at run time although they are known.

An exporter that traced ``x.reshape(B, N, 3, heads, -1)`` leaves a dozen nodes that read sizes and put them together. Where
all sizes but one are known, the constant with -1 for that one is the same shape: the number of elements allows no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.evaluate import follow, is_settled
from vitdeploy.graph.query import Array, constant, integer, maker, sizes

Sizes = tuple[int | str | None, ...]
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min"))


def infer_shapes(model: ir.Model) -> None:
    """Infer type and shape of every value from the inputs alone, in place.

    What the file says of values in between is not believed: tools that made a batch dynamic often left it as it was.
    Weights are not serialised, so a model of any size will do.
    """
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    order = list(model.graph.initializers)
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for name in order:  # as they were: the pass registers them anew
        model.graph.initializers[name] = model.graph.initializers.pop(name)
    _Names(model.graph).unify()


class _Names:
    """Which names of sizes mean the same size: ONNX's inference gives a new one to every -1."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.same: dict[str, str] = {}
        self.multiples: dict[str, tuple[Fraction, str]] = {}
        self.products: dict[tuple[Fraction, str], str] = {}
        self.kept = {name for value in graph.inputs for name in sizes(value) or () if isinstance(name, str)}

    def unify(self) -> None:
        """Find equal sizes in the order of the graph, and write one name for each."""
        for node in self.graph:
            if node.domain == "":
                self._read(node)
        for node in self.graph:
            for value in node.outputs:
                shape = sizes(value)
                if shape is not None and any(isinstance(size, str) and size in self.same for size in shape):
                    value.shape = ir.Shape(self.name_sizes(shape))

    def name_sizes(self, shape: Sizes) -> list[int | str | None]:
        """A shape with the name that stands for each of its sizes."""
        return [self._find(size) if isinstance(size, str) else size for size in shape]

    def _find(self, name: str) -> str:
        while name in self.same:
            name = self.same[name]
        return name

    def _join(self, first: int | str | None, second: int | str | None) -> None:
        if not isinstance(first, str) or not isinstance(second, str):
            return
        first, second = self._find(first), self._find(second)
        if first != second and not (first in self.kept and second in self.kept):
            new, old = (first, second) if first in self.kept or second not in self.kept else (second, first)
            self.same[old] = new
            if old in self.multiples:
                self.multiples.setdefault(new, self.multiples[old])

    def _read(self, node: ir.Node) -> None:
        output = sizes(node.outputs[0])
        shapes = [sizes(value) for value in node.inputs]
        if output is None or not shapes or shapes[0] is None:
            return
        if node.op_type == "Reshape":
            self._read_reshape(self.name_sizes(shapes[0]), self.name_sizes(output))
        elif node.op_type == "Concat":
            axis = integer(node, "axis", 0) % max(len(output), 1)
            for shape in shapes:
                for place, pair in enumerate(zip(output, shape or (), strict=False)):
                    if place != axis:
                        self._join(*pair)
        elif node.op_type in _BROADCAST or node.op_type == "MatMul":
            last = 2 if node.op_type == "MatMul" else 0
            self._read_broadcast([self.name_sizes(shape) for shape in shapes if shape is not None], self.name_sizes(output), last)

    def _read_reshape(self, before: list[int | str | None], after: list[int | str | None]) -> None:
        """One unknown size on each side: the second is so many times the first as the known ones leave over."""
        unknown = [[size for size in shape if not isinstance(size, int)] for shape in (before, after)]
        first, second = ((each[0] if len(each) == 1 else None) for each in unknown)
        if first is None or second is None or not _count_elements(before) or not _count_elements(after):
            return
        times, base = self.multiples.get(first, (Fraction(1), first))
        times *= Fraction(_count_elements(before), _count_elements(after))
        if times == 1:
            self._join(base, second)
        else:
            self.multiples[second] = (times, base)
            self._join(self.products.setdefault((times, base), second), second)

    def _read_broadcast(self, shapes: list[list[int | str | None]], output: list[int | str | None], last: int) -> None:
        """A size of the result is the one that all operands have, those of size 1 left out."""
        for place in range(-len(output), -last):
            operands = {shape[place] for shape in shapes if len(shape) >= -place and shape[place] != 1}
            if len(operands) == 1:
                self._join(output[place], operands.pop())


def _count_elements(shape: list[int | str | None]) -> int:
    return math.prod(size for size in shape if isinstance(size, int))


def is_same(first: Sizes | None, second: Sizes | None) -> bool:
    """Whether two shapes of as many elements are proven equal: all sizes are, but for one at most, which then must be."""
    if first is None or second is None or len(first) != len(second):
        return False
    open_places = 0
    for one, two in zip(first, second, strict=True):
        if isinstance(one, int) and isinstance(two, int):
            if one != two:
                return False
        elif one is None or one != two:
            open_places += 1
    return open_places <= 1 and 0 not in (*first, *second)


def settle_shapes(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write shapes that are computed at run time, and known all the same, as constants.

    Args:
        editor: Of a graph whose shapes are inferred.

    Yields:
        Names of the nodes that were changed, or that a constant replaced.
    """
    known = follow(editor.graph)
    for node in list(editor.graph):
        if node.graph is None:
            continue
        if node.op_type == "Reshape" and node.domain == "":
            if _settle_reshape(editor, node, known):
                yield (str(node.name),)
        elif any(value in known and _is_replaceable(value) and is_settled(known[value]) for value in node.outputs):
            yield from _replace_all(editor, node, known)


def _settle_reshape(editor: Editor, node: ir.Node, known: dict[ir.Value, Array]) -> bool:
    """Give a Reshape its shape as a constant, with numbers wherever they are known."""
    value = node.inputs[1]
    if value is None:
        return False
    numbers = constant(value)
    target = _find_target(node, known.get(value) if numbers is None else numbers.astype(object))
    if target is None or (numbers is not None and target == numbers.tolist()):
        return False
    node.attributes.pop("allowzero", None)
    editor.rewire(node, 1, editor.constant(f"{node.name}.shape", np.array(target, np.int64)))
    return True


def _is_replaceable(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL) and not value.is_graph_output()


def _replace_all(editor: Editor, node: ir.Node, known: dict[ir.Value, Array]) -> Iterator[tuple[str, ...]]:
    """Outputs of which every number is known become constants."""
    name, done = str(node.name), False
    for value in node.outputs:
        if value in known and _is_replaceable(value) and is_settled(known[value]) and value.uses():
            assert value.dtype is not None
            done |= editor.freeze(value, known[value].astype(value.dtype.numpy()))
    if done:
        yield (name,)


def _find_target(node: ir.Node, elements: Array | None) -> list[int] | None:
    """The shape that a Reshape is given, as numbers; 0 copies a size, one -1 is what is left."""
    source, output = sizes(node.inputs[0]), sizes(node.outputs[0])
    if elements is None or elements.ndim != 1 or len(elements) == 0:
        return None
    wanted = list(elements)
    if source is not None:
        wanted = _resolve(source, wanted)
    if output is not None and len(output) == len(wanted):
        wanted = [size if isinstance(size, int) else each for size, each in zip(output, wanted, strict=True)]
    if 0 in wanted:
        return None
    numbers = [each if isinstance(each, int) else -1 for each in wanted]
    if numbers.count(-1) > 1 and source is not None:  # sizes that stay in their places are copied
        kept = [place < len(source) and isinstance(each, str) and source[place] == each for place, each in enumerate(wanted)]
        numbers = [0 if keep else each for keep, each in zip(kept, numbers, strict=True)]
    if numbers.count(-1) > 1 or (0 in list(elements) and (source is None or integer(node, "allowzero", 0))):
        return None
    return numbers


def _resolve(source: Sizes, wanted: list[int | str | None]) -> list[int | str | None]:
    """Work out a -1 where all else that the two shapes do not share is known; sizes that are copied get their names."""
    wanted = [source[place] if each == 0 and place < len(source) else each for place, each in enumerate(wanted)]
    if wanted.count(-1) != 1 or None in wanted:
        return wanted
    left, right = list(source), [each for each in wanted if each != -1]
    for name in [each for each in right if isinstance(each, str)]:
        if name in left:
            left.remove(name)
            right.remove(name)
    if any(not isinstance(each, int) for each in (*left, *right)):
        return wanted
    elements, divisor = _count_elements(left), _count_elements(right)
    if divisor == 0 or elements % divisor:
        return wanted
    return [elements // divisor if each == -1 else each for each in wanted]


def remove_moves(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Leave out Reshapes to the shape that is there, and merge Transposes that follow each other.

    Yields:
        The node that was changed or left out.
    """
    for node in list(editor.graph):
        source = node.inputs[0] if node.graph is not None and node.domain == "" and node.inputs else None
        if source is None:
            continue
        name = str(node.name)
        if node.op_type == "Reshape":
            idle = is_same(sizes(source), sizes(node.outputs[0])) and editor.replace(node.outputs[0], source)
            if idle or _merge_turned(editor, node):
                yield (name,)
        elif node.op_type == "Transpose" and _merge_transposes(editor, node):
            yield (name,)


def _merge_transposes(editor: Editor, node: ir.Node) -> bool:
    """Transpose after Transpose is one, or none."""
    if _turn_before(editor, node):
        return True
    above = maker(node.inputs[0], "Transpose")
    axes = _read_permutation(node)
    source = node.inputs[0]
    if axes is not None and above is not None and (before := _read_permutation(above)) is not None:
        axes, source = tuple(before[axis] for axis in axes), above.inputs[0]
    if axes is None or source is None:
        return False
    if axes == tuple(range(len(axes))):
        return editor.replace(node.outputs[0], source)
    if source is node.inputs[0]:
        return False
    node.attributes["perm"] = ir.AttrInt64s("perm", axes)
    editor.rewire(node, 0, source)
    return True


def _turn_before(editor: Editor, node: ir.Node) -> bool:
    """Transpose, Reshape that joins the last axes, Transpose of the others: both Transposes in one, then the Reshape."""
    join = maker(node.inputs[0], "Reshape")
    if join is None or join.inputs[0] is None or maker(join.inputs[0], "Transpose") is None:
        return False
    source, joined, axes = sizes(join.inputs[0]), sizes(join.outputs[0]), _read_permutation(node)
    if source is None or joined is None or axes is None or len(source) <= len(joined) or axes[-1] != len(joined) - 1:
        return False
    last = len(joined) - 1
    known = [size for size in source[:last] if size is not None]
    target = [joined[axis] for axis in axes]
    if len(known) != last or joined[:last] != source[:last] or sum(not isinstance(size, int) for size in target) > 1:
        return False
    if not all(isinstance(size, int) for size in source[last:]) or 0 in target:
        return False
    turned = editor.add(node, "Transpose", [join.inputs[0]], perm=(*axes[:-1], *range(last, len(source))))
    numbers = np.array([size if isinstance(size, int) else -1 for size in target], np.int64)
    return editor.replace(node.outputs[0], editor.add(node, "Reshape", [turned, editor.constant(f"{node.name}.shape", numbers)]))


def _read_permutation(node: ir.Node) -> tuple[int, ...] | None:
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    shape = sizes(node.inputs[0])
    return None if shape is None else tuple(reversed(range(len(shape))))


def _merge_turned(editor: Editor, node: ir.Node) -> bool:
    """``[a, b, c, d] -> [a b, c, d] -> [a b, d, c] -> [a, b, d, c]`` is one Transpose: how SDPA is exported before opset 23."""
    turn = maker(node.inputs[0], "Transpose")
    flat = None if turn is None else maker(turn.inputs[0], "Reshape")
    if turn is None or flat is None or _read_permutation(turn) != (0, 2, 1):
        return False
    source, middle, result = sizes(flat.inputs[0]), sizes(flat.outputs[0]), sizes(node.outputs[0])
    if source is None or middle is None or result is None or len(source) != 4 or len(middle) != 3:
        return False
    known = all(isinstance(size, int) for size in source[1:])
    if not known or middle[1:] != source[2:] or not is_same(result, (*source[:2], source[3], source[2])):
        return False
    assert flat.inputs[0] is not None
    return editor.replace(node.outputs[0], editor.add(node, "Transpose", [flat.inputs[0]], perm=(0, 1, 3, 2)))


def is_last_axis(node: ir.Node, axis: int) -> bool:
    """Whether an axis is the last one of a node's first input."""
    shape = sizes(node.inputs[0])
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def turn_softmax(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write the last axis of a Softmax as -1.

    Yields:
        The node that was changed.
    """
    for node in editor.graph:
        if node.op_type == "Softmax" and node.domain == "":
            axis = integer(node, "axis", -1)
            if axis != -1 and is_last_axis(node, axis):
                node.attributes["axis"] = ir.AttrInt64("axis", -1)
                yield (str(node.name),)
