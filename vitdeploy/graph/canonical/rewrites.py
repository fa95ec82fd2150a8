"""One form for every ViT: an ONNX file of any exporter is rewritten into the operators that our own export uses.

All rewrites are exact: a canonical graph computes what the original computes, to the rounding of its operators. Each has a
name, is counted, and can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import onnx_ir as ir

from vitdeploy.errors import UsageError, nearest
from vitdeploy.graph.canonical.activations import fuse_gelu, split_gelu
from vitdeploy.graph.canonical.attention import gather_scale, lead_probabilities, split_attention
from vitdeploy.graph.canonical.constants import fold_constants, order_operands, remove_dead, strip_inputs
from vitdeploy.graph.canonical.einsums import split_einsum
from vitdeploy.graph.canonical.masks import drop_masks
from vitdeploy.graph.canonical.matmuls import lead_batch, split_gemm, split_matmul, unflatten
from vitdeploy.graph.canonical.norms import fuse_layer_norm, split_root_norm, split_skip_norm
from vitdeploy.graph.canonical.opsets import TARGET, check_opset, convert, inline_functions, leave_domains
from vitdeploy.graph.canonical.pointwise import sink_channels, split_pointwise
from vitdeploy.graph.canonical.shapes import infer_shapes, remove_moves, settle_shapes, turn_softmax
from vitdeploy.graph.canonical.tokens import add_tokens
from vitdeploy.graph.canonical.turns import sink_turns
from vitdeploy.graph.editor import Editor

_ROUNDS = 100
"""How often constants and shapes may make each other known."""


class Rewrite(NamedTuple):
    """One application of a rewrite.

    Attributes:
        name: One of `NAMES`.
        nodes: Names of the nodes it made or changed; of the node or initializer itself where it took one away; none where
            only the number of the operator set is another.
    """

    name: str
    nodes: tuple[str, ...]


_Step = Callable[[Editor], Iterator[tuple[str, ...]]]
_SETTLE: tuple[tuple[str, _Step], ...] = (
    ("dead", remove_dead),
    ("constants", fold_constants),
    ("shapes", settle_shapes),
    ("tokens", add_tokens),
)
"""They make each other possible, so they are repeated until nothing changes."""
_SPLIT: tuple[tuple[str, _Step], ...] = (
    ("attention", split_attention),
    ("fused-matmul", split_matmul),
    ("einsum", split_einsum),
    ("skip-norm", split_skip_norm),
    ("root-norm", split_root_norm),
    ("fused-gelu", split_gelu),
)
_LOWER: tuple[tuple[str, _Step], ...] = (("opset", convert), ("empty-inputs", strip_inputs))
_FUSE: tuple[tuple[str, _Step], ...] = (
    ("operands", order_operands),
    ("gemm", split_gemm),
    ("flat-linear", unflatten),
    ("batch-first", lead_batch),
    ("turns", sink_turns),
    ("pointwise", split_pointwise),
    ("channels-last", sink_channels),
    ("layer-norm", fuse_layer_norm),
    ("gelu", fuse_gelu),
    ("masks", drop_masks),
    ("scale", gather_scale),
    ("probabilities", lead_probabilities),
    ("softmax", turn_softmax),
    ("moves", remove_moves),
)

NAMES: tuple[str, ...] = ("functions", *(name for steps in (_SETTLE, _SPLIT, _LOWER, _FUSE) for name, _ in steps))
"""All rewrites.

- ``functions``: functions of the model's own are written out.
- ``dead``: nodes and initializers that no output needs go; nodes come in the order of computation.
- ``constants``: what depends on no input is computed now; copies, casts to the same type and dropouts go.
- ``shapes``: shapes computed at run time, though known but for one size, become constants.
- ``tokens``: class token and registers are added to the padded patches.
- ``attention``: fused attention is written as MatMul, Softmax, MatMul.
- ``fused-matmul``: com.microsoft's FusedMatMul is written as MatMul, Transpose and Mul.
- ``einsum``: Einsum of two operands is written as MatMul between moves.
- ``skip-norm``: com.microsoft's SkipLayerNormalization is written as Add and LayerNormalization.
- ``root-norm``: RMSNormalization is written in parts.
- ``fused-gelu``: com.microsoft's kinds of GELU, and Swish, are written in ONNX's operators.
- ``opset``: the operator set becomes 20.
- ``empty-inputs``: empty inputs at the end go.
- ``operands``: constants come second in Add and Mul.
- ``gemm``: Gemm is written as MatMul and Add.
- ``flat-linear``: linear layers take their input as it is, not flattened to two axes.
- ``batch-first``: linear layers take the batch before the tokens.
- ``turns``: what treats each token alone comes before the Transpose that puts the tokens before the batch.
- ``pointwise``: convolutions of 1 x 1 pixels are written as MatMul and Add, on channels that come last.
- ``channels-last``: what treats each pixel alone comes before the Transpose that puts the channels second.
- ``layer-norm``: one LayerNormalization for its nine parts.
- ``gelu``: one Gelu for its five parts.
- ``masks``: attention masks that hide nothing go; one that fills scores in is added to them.
- ``scale``: one multiplication of q for all that scale the attention scores.
- ``probabilities``: they come first in their product with the values.
- ``softmax``: the last axis is -1.
- ``moves``: Reshapes that change nothing go, Transposes in a row become one.
"""


def canonicalise(model: ir.Model, *, skip: Collection[str] = ()) -> list[Rewrite]:
    """Rewrite a graph into the operators and forms of our own export, in place.

    Args:
        model: Any ViT; its weights are not loaded but where they are computed with.
        skip: Rewrites to leave out, of `NAMES`.

    Returns:
        What was done, in the order of doing; empty for a graph that is canonical.

    Raises:
        UsageError: VD2003, a name in ``skip`` that is none.
        InputError: VD3025, an operator set or an operator that can't be edited.
    """
    for name in skip:
        if name not in NAMES:
            raise UsageError("VD2003", f"there is no rewrite {name!r}", fix=nearest(name, NAMES) or f"one of {', '.join(NAMES)}")
    check_opset(model)
    _plain_inputs(model)
    editor = Editor(model, model.graph.opset_imports[""] if "opset" in skip else TARGET)
    done: list[Rewrite] = []

    def run(steps: tuple[tuple[str, _Step], ...]) -> int:
        before = len(done)
        for name, step in steps:
            if name not in skip:
                done.extend(Rewrite(name, nodes) for nodes in step(editor))
                editor.check_interface(name)
        return len(done) - before

    run((("functions", inline_functions),))
    _settle(model, run)
    upwards = model.graph.opset_imports[""] < TARGET
    if upwards:  # what is split next is written in operators that are new there
        run(_LOWER)
        _settle(model, run)
    while run(_SPLIT):  # behind an operator of one engine's own no shape is known
        _settle(model, run)
    if not upwards:
        run(_LOWER)
        _settle(model, run)
    if "opset" not in skip:
        leave_domains(model)
    for _ in range(_ROUNDS):  # one may make room for another
        if not run(_FUSE):
            break
        _settle(model, run)
    editor.restore_names()
    return done


def _settle(model: ir.Model, run: Callable[[tuple[tuple[str, _Step], ...]], int]) -> None:
    """Infer shapes, compute constants and write known shapes down until nothing more is known."""
    for _ in range(_ROUNDS):
        infer_shapes(model)
        if not run(_SETTLE):
            return


def _plain_inputs(model: ir.Model) -> None:
    """Initializers that old writers list among the inputs are constants: nobody feeds them."""
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    if len(inputs) != len(model.graph.inputs):
        model.graph.inputs.clear()
        model.graph.inputs.extend(inputs)
