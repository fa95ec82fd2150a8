"""A trained model in the form that is exported: the same function, its constants computed once.

Nothing here changes the function; each step says why it is exact. The steps exist because a graph that computes a constant
at run time (a bias concatenated with zeros, a class token expanded over the batch) is slower, and its shape arithmetic
is what freezes a "dynamic" batch in other exporters.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from vitdeploy.models.positions import pairs_to_halves
from vitdeploy.models.vit import Attention, AttentionPool, RelativeBias, VisionTransformer


@torch.no_grad()
def freeze(model: VisionTransformer) -> VisionTransformer:
    """A copy of ``model`` for export, in evaluation mode; the original is untouched.

    * the token table (prefix tokens and positions) becomes one buffer;
    * a missing key bias becomes zeros in the packed bias: x + 0 = x;
    * EVA-02's neighbouring pairs become halves, by permuting rows of the query and key projections (and qk-norm) alike:
      a scalar product does not depend on the order of its terms;
    * 1/sqrt(d), or what the spec says, goes into the query projection, or into the query norm where there is one:
      (s a) b = s (a b);
    * relative positions become one constant a table, [1, h, T, T];
    * attention becomes matmul, softmax, matmul.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    table = frozen.token_table()
    frozen.register_buffer("table", table)
    frozen.token_table = lambda: cast(Tensor, frozen.table)  # type: ignore[method-assign]
    for module in frozen.modules():
        if isinstance(module, Attention) and not module.decomposed:  # a frozen model stays as it is
            _freeze_attention(module)
        elif isinstance(module, AttentionPool):
            module.register_buffer("constant", module.query())
            module.query = partial(_get_constant, module)  # type: ignore[method-assign]
        elif isinstance(module, RelativeBias) and not hasattr(module, "constant"):
            module.register_buffer("constant", module.gather())
            del module.relative_position_bias_table
            module.gather = partial(_get_constant, module)  # type: ignore[method-assign]
    return frozen


@torch.no_grad()
def absorb_normalisation(model: VisionTransformer) -> None:
    """Let the patch embedding take raw pixels in [0, 255], in place: W ((x/255 - mean) / std) + b = W' x + b'.

    Exact, because the embedding is linear and cuts whole patches without padding: W' = W / (255 std) channel by channel,
    b' = b - sum over channel and patch of W mean / std. Only a frozen copy is ever changed.
    """
    contract, proj = model.spec.input, model.patch_embed.proj
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (contract.mean, contract.std))  # [C, 1, 1]
    weight = proj.weight.double().reshape(model.spec.width, contract.channels, *model.spec.patch)  # [D, C, P_h, P_w]
    shift = (weight * mean / std).sum((1, 2, 3))  # [D]
    bias = -shift if proj.bias is None else proj.bias.double() - shift
    proj.weight.copy_((weight / (255 * std)).reshape(proj.weight.shape))
    proj.bias = nn.Parameter(bias.float(), requires_grad=False)


def _get_constant(module: AttentionPool | RelativeBias) -> Tensor:
    return cast(Tensor, module.constant)


def _freeze_attention(module: Attention) -> None:
    order = pairs_to_halves(module.size) if module.interleaved else torch.arange(module.size)
    norms = [layer for layer in (module.q_norm, module.k_norm) if isinstance(layer, nn.LayerNorm)]
    for layer, scale in zip(norms, (module.scale, 1.0), strict=False):  # none, or two
        layer.weight.copy_(layer.weight[order] * scale)
        layer.bias.copy_(layer.bias[order] * scale)
    scale = 1.0 if norms else module.scale
    bias = module.bias()
    packed = nn.Linear(module.qkv.in_features, module.qkv.out_features, bias=bias is not None)
    packed.weight.copy_(_turn_packed(module.qkv.weight, module, order, scale))
    if bias is not None:
        packed.bias.copy_(_turn_packed(bias, module, order, scale))
    for name in ("q_bias", "v_bias"):
        if hasattr(module, name):
            delattr(module, name)
    module.qkv, module.interleaved, module.decomposed = packed.requires_grad_(False), False, True


def _turn_packed(packed: Tensor, module: Attention, order: Tensor, scale: float) -> Tensor:
    """Rows of a packed projection [3 h d, ...] with queries scaled, queries and keys in the new order of channels."""
    query, key, value = packed.unflatten(0, (3, module.heads, module.size))  # [h, d, ...] each
    return torch.cat([part.flatten(0, 1) for part in (query[:, order] * scale, key[:, order], value)])
