"""Class token and registers without reading the batch size at run time.

Joining constant tokens, expanded to the batch, to the patches is the same as padding the patches with zeros and adding a
table that holds the tokens. That is how our own export does it: no node depends on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.editor import Editor
from vitdeploy.graph.evaluate import follow
from vitdeploy.graph.query import Array, constant, integer, maker, maker_name, only_user, other, sizes

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def add_tokens(editor: Editor) -> Iterator[tuple[str, ...]]:
    """Write the Concat of constant tokens and patches as a Pad and an Add; positions that come next go into the same table.

    Yields:
        The Pad and the Add.
    """
    joins = [node for node in editor.graph if node.op_type == "Concat" and node.domain == ""]
    known = follow(editor.graph) if joins else {}
    for node in joins:
        if any(value is None for value in node.inputs):
            continue
        tokens = [_read_tokens(value, known) for value in node.inputs]
        moving = [place for place, each in enumerate(tokens) if each is None]
        patches = node.inputs[moving[0]] if len(moving) == 1 else None
        shape = sizes(patches)
        if (
            patches is None
            or patches.dtype not in _FLOATS
            or shape is None
            or len(shape) != 3
            or integer(node, "axis", 0) not in (1, -2)
        ):
            continue
        table = _make_table(tokens, shape[1:])
        if table is not None:
            yield _pad(editor, node, patches, table, sum(each.shape[1] for each in tokens[: moving[0]] if each is not None))


def _read_tokens(value: ir.Value | None, known: dict[ir.Value, Array]) -> Array | None:
    """Tokens that are the same for every image, float [1, k, width]; None for anything else."""
    expand = maker(value, "Expand")
    numbers = constant(value if expand is None else expand.inputs[0])
    if numbers is None or numbers.ndim > 3:
        return None
    numbers = numbers.reshape((1,) * (3 - numbers.ndim) + numbers.shape)
    if (numbers != numbers[:1]).any():
        return None
    if expand is None:
        return numbers[:1]
    shape = expand.inputs[1]
    target = tuple(known[shape]) if shape is not None and shape in known else sizes(value)
    if target is None or len(target) != 3 or not isinstance(target[1], int) or not isinstance(target[2], int):
        return None
    shape_of_all = np.broadcast_shapes(numbers.shape[1:], (int(target[1]), int(target[2])))
    return np.broadcast_to(numbers[:1], (1, *shape_of_all))


def _make_table(tokens: Sequence[Array | None], patches: Sequence[int | str | None]) -> Array | None:
    """The tokens in their places, float [1, all, width], with zeros where the patches are."""
    count, width = patches
    fixed = [array for array in tokens if array is not None]
    if not fixed or not isinstance(count, int) or any(array.shape[2] != width for array in fixed):
        return None
    empty = np.zeros((1, count, fixed[0].shape[2]), fixed[0].dtype)
    return np.concatenate([empty if array is None else array for array in tokens], axis=1)


def _pad(editor: Editor, node: ir.Node, patches: ir.Value, table: Array, before: int) -> tuple[str, ...]:
    shape = sizes(patches)
    assert shape is not None and isinstance(shape[1], int)
    after = table.shape[1] - before - shape[1]
    pads = editor.constant(f"{node.name}.pads", np.array([0, before, 0, 0, after, 0], np.int64))
    padded = editor.add(node, "Pad", [patches, pads], mode="constant")
    add = only_user(node.outputs[0], "Add")
    table_of = None if add is None else other(add, node.outputs[0])
    positions = constant(table_of)
    if (
        add is not None
        and table_of is not None
        and positions is not None
        and positions.ndim in (2, 3)
        and positions.shape[-2:] == table.shape[1:]
    ):
        place = list(add.inputs).index(table_of)
        editor.rewire(add, place, editor.constant(str(table_of.name), table + positions))
        editor.replace(node.outputs[0], padded)
        added = add.outputs[0]
    else:
        added = editor.add(node, "Add", [padded, editor.constant(f"{node.name}.tokens", table)])
        editor.replace(node.outputs[0], added)
    return tuple(maker_name(value) for value in (padded, added))
