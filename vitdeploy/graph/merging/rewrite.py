"""Merge tokens in a recognised ViT: behind the attention of chosen blocks fewer tokens go on.

It is another function than the graph's, with no training: what is alike is taken for one. Everything that computes in between
keeps its weights; only sizes change, and each attention behind adds the logarithm of how many patches a token stands for.

Source: Bolya et al. 2023 (ToMe), arXiv:2210.09461.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.canonical.shapes import infer_shapes
from vitdeploy.graph.editor import Editor
from vitdeploy.graph.merging.matching import Merge, Writer, write_merge
from vitdeploy.graph.query import constant, find_first, integer, only_user, sizes, whole
from vitdeploy.graph.structure import Attention, Structure

_OPSET = 18
"""Operator set from which reductions take their axes as an input."""


def merge_tokens(editor: Editor, structure: Structure, counts: Sequence[int], protected: int) -> list[str]:
    """Write token merging into a graph, in place; the names of the sums behind which tokens are merged.

    Args:
        editor: Of the graph.
        structure: Its blocks.
        counts: Tokens that are merged behind each attention; the last is 0.
        protected: Tokens at the start that stay as they are: class, distillation, registers.

    Raises:
        UsageError: VD2011, tokens of this graph can't be merged; nothing was changed then.
    """
    blocks = list_blocks(structure)
    sums = {index: _find_sum(blocks[index]) for index, count in enumerate(counts) if count}
    if not sums:
        return []
    if editor.opset < _OPSET:
        raise _refuse(f"its operator set is {editor.opset}, {_OPSET} is needed")
    first = min(sums)
    tokens = count_tokens(blocks[first])
    _check_behind(sums[first].outputs[0], tokens, protected, [attention.softmax for attention in blocks])
    known: tuple[ir.Value, ir.Value] | None = None
    for index, attention in enumerate(blocks[first:], first):
        if known is not None:
            _weigh(editor, attention, known[1])
        if index in sums:
            merge = Merge(tokens, protected, counts[index])
            known = _merge_behind(editor, sums[index], attention, None if known is None else known[0], merge)
            _resize(editor, _list_behind(sums[index].outputs[0]), tokens, tokens - counts[index])
            tokens -= counts[index]
    infer_shapes(editor.model)
    return [str(node.name) for node in sums.values()]


def list_blocks(structure: Structure) -> list[Attention]:
    """The attentions of blocks: a pool's, whose query is a constant, is none."""
    return [attention for attention in structure.attentions if attention.linears[0] is not None]


def count_protected(model: ir.Model, structure: Structure) -> int | None:
    """Tokens that are no patches of the first convolution's grid; None where the graph does not show it."""
    conv = next((node for node in model.graph if node.op_type == "Conv"), None)
    shape = None if conv is None else sizes(conv.outputs[0])
    sides = [] if shape is None else [size for size in shape[2:] if isinstance(size, int)]
    if len(sides) != 2 or not structure.attentions:
        return None
    count = count_tokens(structure.attentions[0]) - sides[0] * sides[1]
    return count if count >= 0 else None


def _refuse(why: str) -> UsageError:
    return UsageError("VD2011", f"tokens can't be merged: {why}", fix="leave out --merge-tokens")


def count_tokens(attention: Attention) -> int:
    """T, of an attention between all tokens whose heads have an axis of their own.

    Raises:
        UsageError: VD2011, it is another one.
    """
    shape = sizes(attention.scores.outputs[0])
    if shape is None or len(shape) != 4 or shape[-1] != shape[-2] or not isinstance(shape[-1], int):
        raise _refuse(f"the scores of {attention.name!r} are {_write_shape(shape)}, not [N, heads, T, T]")
    return shape[-1]


def _write_shape(shape: Sequence[object] | None) -> str:
    return "of unknown shape" if shape is None else f"[{', '.join(map(str, shape))}]"


def _find_sum(attention: Attention) -> ir.Node:
    """The sum of the residual stream and what the attention gives."""
    projection = attention.projection
    value = None if projection is None else projection.output
    for _ in range(4):
        node = None if value is None else only_user(value)
        if node is None:
            break
        others = [part for part in node.inputs if part is not value]
        if node.op_type == "Add" and len(others) == 1 and constant(others[0]) is None:
            return node
        if node.op_type not in ("Mul", "Add") or len(others) != 1:
            break
        value = node.outputs[0]
    raise _refuse(f"behind {attention.name!r} there is no sum with the residual stream")


def _list_behind(value: ir.Value) -> list[ir.Node]:
    """Every node that depends on a value, in the order of the graph."""
    queue, seen = [value], set[ir.Node]()
    while queue:
        for use in queue.pop().uses():
            if use.node not in seen:
                seen.add(use.node)
                queue += use.node.outputs
    first = next(iter(seen), None)
    return [] if first is None or first.graph is None else [node for node in first.graph if node in seen]


def _check_behind(start: ir.Value, tokens: int, protected: int, softmaxes: Sequence[ir.Node]) -> None:
    """Refuse what would mix merged tokens with others, or knows them by their place.

    Args:
        start: The first tensor that will have fewer tokens.
        tokens: How many it has.
        protected: How many of them, from the start, will still be there.
        softmaxes: Those of attentions, which will know how many patches a token stands for.
    """
    nodes = _list_behind(start)
    inside = {start, *(value for node in nodes for value in node.outputs)}
    for node in nodes:
        if any(value.is_graph_output() and _has_row_a_token(value, tokens) for value in node.outputs):
            raise _refuse(f"the output {node.outputs[0].name!r} has a row for each")
        for index, part in enumerate(node.inputs):
            table = constant(part)
            if part is not None and table is None and part not in inside:
                raise _refuse(f"{node.name!r} reads tokens from before the first merge, too")
            weight = node.op_type in ("MatMul", "Gemm", "Conv") and index == 1
            if table is not None and not weight and tokens in table.shape[:-1]:
                raise _refuse(f"{node.name!r} treats each in its own way, as relative or rotary positions do")
        if node.op_type == "Softmax" and node not in softmaxes and tokens in (sizes(node.outputs[0]) or ()):
            raise _refuse(f"{node.name!r} looks at them in another way than the attentions of blocks")
        if _takes_others(node, tokens, protected):
            raise _refuse(f"{node.name!r} takes more of them than those at the start, one by one or together")


def _has_row_a_token(value: ir.Value, tokens: int) -> bool:
    shape = sizes(value)
    return shape is not None and len(shape) > 2 and shape[1] == tokens


def _takes_others(node: ir.Node, tokens: int, protected: int) -> bool:
    """Whether a node picks or sums tokens that may be merged, by their place."""
    shape = sizes(node.inputs[0])
    if shape is None or tokens not in shape[:-1]:
        return False
    if node.op_type in ("Gather", "Split"):
        axis = integer(node, "axis", 0) % len(shape)
        index = constant(node.inputs[1]) if node.op_type == "Gather" else None
        early = index is not None and bool(index.size) and index.min() >= 0 and index.max() < protected
        return shape[axis] == tokens and not early
    if node.op_type == "Slice":
        axes, starts, ends = (whole(node, name, at) for name, at in (("axes", 3), ("starts", 1), ("ends", 2)))
        if axes is None or starts is None or ends is None:
            return True
        cuts = zip(axes, starts, ends, strict=True)
        return any(shape[axis] == tokens and axis % len(shape) < len(shape) - 1 and not 0 <= start < end <= protected
                   for axis, start, end in cuts)  # fmt: skip
    if node.op_type.startswith("Reduce"):
        axes = whole(node, "axes", 1)
        return axes is None or any(shape[axis] == tokens and axis % len(shape) < len(shape) - 1 for axis in axes)
    return node.op_type.startswith("Global")


def _weigh(editor: Editor, attention: Attention, bias: ir.Value) -> None:
    """Add the logarithm of the keys' sizes to the scores of an attention."""
    scores = attention.softmax.inputs[0]
    assert scores is not None
    write = Writer(editor, attention.softmax, f"{_stem(attention.softmax)}.sizes")
    attention.softmax.replace_input_with(0, write.give("Add", scores, bias))


def _merge_behind(
    editor: Editor, sum_: ir.Node, attention: Attention, known: ir.Value | None, merge: Merge
) -> tuple[ir.Value, ir.Value]:
    """Merge what a sum gives, for all that uses it.

    Returns:
        The sizes behind, float [N, T - r], and their logarithm as scores take it, float [N, 1, 1, T - r].
    """
    x, keys = sum_.outputs[0], attention.scores.inputs[1]
    assert keys is not None
    uses = [(use.node, use.idx) for use in x.uses()]
    write = Writer(editor, find_first(node for node, _ in uses), f"{_stem(sum_)}.merge")
    merged, behind = write_merge(write, x, keys, known, merge)
    for node, index in uses:
        node.replace_input_with(index, merged)
    return behind, write.widen(write.give("Log", behind), 1, 2)


def _stem(node: ir.Node) -> str:
    return str(node.name).rpartition("/")[0] or str(node.name)


def _resize(editor: Editor, nodes: Iterable[ir.Node], tokens: int, after: int) -> None:
    """Write the new number of tokens into the shapes that Reshape and Expand take; it is never the last axis."""
    for node in nodes:
        shape = constant(node.inputs[1]) if node.op_type in ("Reshape", "Expand") else None
        places = [] if shape is None else [at for at in range(shape.size - 1) if shape[at] == tokens]
        if shape is not None and places:
            place = 1 if 1 in places else places[0]  # not heads of the same number
            editor.own(node, 1, np.where(np.arange(shape.size) == place, after, shape))
