"""Heads that a network keeps apart, put together: layers stacked in order, or one head's weights laid along a diagonal.

A head that takes all channels is some rows of the projection here. One that takes only its own channels (those were reshaped to
heads before it) is a block on the diagonal of a projection of all: the zeros beside it change no sum, so that this is exact.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from vitdeploy.errors import InputError
from vitdeploy.spec import ModelSpec

BLOCKS = "blocks"
"""The change that lays what one head has along the diagonal."""
_PART = re.compile(r"(?P<whole>.+)\[(?P<number>\d+)\]")
_PROJECTION = re.compile(r".*\.attn\.(q|k|v|qkv)\.weight")


def split_name(ours: str) -> tuple[str, int | None]:
    """Our name without the number of a part in brackets behind it, and the number; None where there is none."""
    match = _PART.fullmatch(ours)
    return (ours, None) if match is None else (match["whole"], int(match["number"]))


def join(ours: str, parts: dict[int, Tensor], mapping: Path) -> Tensor:
    """Parts in the order of their numbers, one tensor for each head.

    Args:
        ours: Our name of the whole.
        parts: By number: ``[d, K]`` or ``[d]`` each.
        mapping: For messages.

    Returns:
        Stacked along the first axis: [h d, K] or [h d].

    Raises:
        InputError: VD3009, a number is missing, the shapes differ, or each part packs q, k and v.
    """
    numbers = sorted(parts)
    if ".attn.qkv." in ours:
        message = f"stacks {ours!r}, in which all queries come before all keys: parts of each head would be in the wrong order"
        raise InputError("VD3009", message, file=mapping, fix="stack attn.q, attn.k and attn.v, each on its own")
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        given = ", ".join(str(number) for number in numbers[:8])
        message = f"stacks {ours!r} of the parts {given}, some are missing"
        raise InputError("VD3009", message, file=mapping, fix="number the parts from 0 or 1 on, without a gap")
    shapes = {tuple(part.shape) for part in parts.values()}
    if len(shapes) > 1:
        message = f"stacks {ours!r} of parts of different shapes: {', '.join(str(list(shape)) for shape in sorted(shapes)[:4])}"
        raise InputError("VD3009", message, file=mapping, fix="stack tensors of one shape, one for each head")
    return torch.stack([parts[number] for number in numbers]).flatten(0, 1)


def lay_blocks(ours: str, tensor: Tensor, spec: ModelSpec, mapping: Path) -> Tensor:
    """What each head does with its own channels as one projection of all.

    Args:
        ours: Our name; one that ends in ``bias`` is a bias.
        tensor: Weights [h, d, d], [h d, d] or [d, d] (the same for all heads), as [out, in]; biases [h, d], [h d] or [d].
        spec: Says h and d.
        mapping: For messages.

    Returns:
        [h d, h d], or [h d].

    Raises:
        InputError: VD3009, the tensor has none of these shapes.
    """
    heads, size = spec.heads, spec.head_size
    one = (size,) if ours.endswith("bias") else (size, size)
    for shape in ((heads, *one), (heads * size, *one[1:]), one):
        if tuple(tensor.shape) == shape:
            each = tensor.expand(heads, *one) if shape == one else tensor.reshape(heads, *one)
            if len(one) == 1:
                return each.flatten()
            whole, diagonal = tensor.new_zeros(heads, size, heads, size), torch.arange(heads)
            whole[diagonal, :, diagonal] = each
            return whole.reshape(heads * size, heads * size)
    message = f"lays {ours!r} of shape {list(tensor.shape)} in blocks; {heads} heads of {size} channels have {[heads, *one]}"
    raise InputError("VD3009", message, file=mapping, fix=f"map a tensor of shape {[heads, *one]} or {list(one)}")


def check_heads(ours: str, tensor: Tensor, spec: ModelSpec, mapping: Path) -> None:
    """Refuse weights of single heads that are given for a projection of all channels, and say what maps them.

    Raises:
        InputError: VD3009, they are such weights.
    """
    size = spec.head_size
    if not _PROJECTION.fullmatch(ours) or tensor.ndim < 2 or size == spec.width or tensor.shape[-1] != size:
        return
    message = (
        f"gives {ours!r} the shape {list(tensor.shape)}: weights of a head for its own {size} channels, not for all {spec.width}"
    )
    fix = f"add under [change]: '.*\\.attn\\.[qkv]\\.(weight|bias)' = \"{BLOCKS}\""
    raise InputError("VD3009", message, file=mapping, fix=fix)
