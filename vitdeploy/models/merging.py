"""Token merging in PyTorch: what `graph.merging` writes into a file, for a network that is compared with it.

Behind the attention of a block the tokens, but for the protected ones at the start, are dealt into two sets, every other one.
Each token of the first finds the most alike of the second, by the cosine of its keys (their mean over the heads); those that are
most alike become one, a mean weighted by how many patches each stands for, whose logarithm later attentions add to their scores.

Source: Bolya et al. 2023 (ToMe), arXiv:2210.09461, sections 3.1 to 3.3 and algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitdeploy.models.vit import Block, VisionTransformer
from vitdeploy.schedule import LEAST_LENGTH


class Sizes:
    """How many patches each token of the batch that is run stands for.

    Attributes:
        value: [B, T], or None while nothing is merged.
    """

    value: Tensor | None = None


class MergingBlock(nn.Module):
    """A block that merges tokens behind its attention.

    Args:
        block: The block.
        count: r, how many tokens become part of others.
        protected: Tokens at the start that stay as they are.
        sizes: Shared by all blocks of a network, or None for the first block, which sees every patch.
        behind: The same, for the blocks behind.
    """

    def __init__(self, block: Block, count: int, protected: int, sizes: Sizes | None, behind: Sizes) -> None:
        super().__init__()
        self.block, self.count, self.protected, self.sizes, self.behind = block, count, protected, sizes, behind

    def forward(self, x: Tensor, turn: None, added: None) -> Tensor:  # [B, T, D]
        attention, normed = self.block.attn, self.block.norm1(x)
        sizes = None if self.sizes is None else self.sizes.value
        bias = None if sizes is None else sizes.log()[:, None, None]  # [B, 1, 1, T]
        x = x + self.block.keep(self.block.ls1(attention(normed, None, bias)))
        if self.count:
            key = functional.linear(normed, attention.qkv.weight, attention.bias()).chunk(3, -1)[1]  # [B, T, h d]
            key = attention.k_norm(key.unflatten(-1, (attention.heads, attention.size)))  # [B, T, h, d]
            x, sizes = merge(x, sizes, key.mean(2), self.count, self.protected)
        self.behind.value = sizes
        return x + self.block.keep(self.block.ls2(self.block.mlp(self.block.norm2(x))))


def merge(x: Tensor, sizes: Tensor | None, keys: Tensor, count: int, protected: int) -> tuple[Tensor, Tensor]:
    """Merge tokens.

    Args:
        x: Tokens, [B, T, D].
        sizes: What each stands for, [B, T]; None is one patch each.
        keys: What they are matched by, [B, T, d].
        count: r.
        protected: Tokens at the start that stay as they are.

    Returns:
        [B, T - r, D]: the protected tokens, those of the first set that are left, those of the second; and their sizes.
    """
    sizes = x.new_ones(x.shape[:2]) if sizes is None else sizes
    unit = (keys / keys.norm(dim=-1, keepdim=True).clamp_min(LEAST_LENGTH))[:, protected:]
    alike, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)  # [B, A] each
    order = alike.sort(stable=True, dim=-1, descending=True).indices
    merged, left = order[:, :count], order[:, count:]
    into = partner.gather(1, merged)  # [B, r]

    def gather(part: Tensor, rows: Tensor) -> Tensor:
        return part.gather(1, rows[..., None].expand(-1, -1, part.shape[-1]))

    def regroup(part: Tensor) -> Tensor:  # [B, T, n]
        first, second = part[:, protected::2], part[:, protected + 1 :: 2]
        second = second.scatter_add(1, into[..., None].expand(-1, -1, part.shape[-1]), gather(first, merged))
        return torch.cat((part[:, :protected], gather(first, left), second), 1)

    whole = regroup(sizes[..., None])
    return regroup(x * sizes[..., None]) / whole, whole[..., 0]


def merge_tokens(net: VisionTransformer, counts: Sequence[int]) -> VisionTransformer:
    """A copy of a network that merges tokens; the original is untouched.

    Args:
        net: Without rotary or relative positions, which a merged token has none of.
        counts: One a block.
    """
    merged, sizes = copy.deepcopy(net), Sizes()
    blocks = [
        MergingBlock(cast(Block, block), count, net.spec.prefix, sizes if index else None, sizes)
        for index, (block, count) in enumerate(zip(merged.blocks, counts, strict=True))
    ]
    merged.blocks = nn.ModuleList(blocks)
    return merged
