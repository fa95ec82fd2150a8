"""A converter is a table: their name, our name, what must be done to the numbers. No code with branches.

In a pattern ``{i}`` stands for a number, ``{kind}`` for ``weight`` or ``bias`` and ``{any}`` for anything. Every tensor of a
checkpoint ends in one of three places: renamed, left out for a stated reason, or kept under its own name, which `native.fill`
then refuses by name. Nothing is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vitdeploy.errors import InputError

State = dict[str, Tensor]

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "transpose": lambda x: x.T,  # [in, out] -> [out, in]: JAX's Dense, CLIP's projection
    "kernel": lambda x: x.permute(3, 2, 0, 1),  # [H, W, in, out] -> [out, in, H, W]: JAX's Conv
    "heads in": lambda x: x.flatten(1).T,  # [D, h, d] -> [h d, D]: JAX's query, key, value
    "heads out": lambda x: x.flatten(0, 1).T,  # [h, d, D] -> [D, h d]: JAX's output projection
    "flatten": lambda x: x.flatten(),  # [h, d] -> [h d]: JAX's biases
    "token": lambda x: x.reshape(1, -1, x.shape[-1]),  # [D], [n, D] or [1, n, D] -> [1, n, D]
}
"""Name to what is done to the numbers; all are views or rearrangements, none computes."""


class Rule(NamedTuple):
    """One line of a converter.

    Attributes:
        theirs: Pattern of the checkpoint's name.
        ours: Our name with the same placeholders; several names share the tensor out along its first axis, in `shares`;
            None leaves the tensor out, among several names that part of it.
        change: A key of `CHANGES`.
        why: For what is left out: why the network does not need it.
        shares: How many parts of the whole each of several names gets.
    """

    theirs: str
    ours: str | tuple[str | None, ...] | None
    change: str = ""
    why: str = ""
    shares: tuple[int, ...] = ()


class Converted(NamedTuple):
    """What a table made of a state dict.

    Attributes:
        state: Tensors by our names, and what no rule knew by its own name.
        left_out: Their name to why, in the checkpoint's order.
        unknown: Names that no rule knew.
    """

    state: State
    left_out: dict[str, str]
    unknown: tuple[str, ...]


def convert(state: State, rules: Sequence[Rule]) -> Converted:
    """Rename a state dict; the first rule that matches a name decides.

    Args:
        state: Tensors by their names; not changed.
        rules: The table.

    Raises:
        InputError: VD3009, two tensors would get one name, or a tensor can't be shared out.
    """
    made: State = {}
    left_out: dict[str, str] = {}
    unknown = []
    for name, tensor in state.items():
        rule, groups = _match(name, rules)
        if rule is None:
            unknown.append(name)
            _put(made, name, tensor)
        elif rule.ours is None:
            left_out[name] = rule.why
        elif isinstance(rule.ours, str):
            _put(made, rule.ours.format(**groups), CHANGES[rule.change](tensor))
        else:
            if not tensor.ndim or len(tensor) % sum(rule.shares):
                message = f"has the tensor {name!r} of shape {list(tensor.shape)}, which is not {len(rule.ours)} parts in one"
                raise InputError("VD3009", message)
            changed = CHANGES[rule.change](tensor)
            unit = len(changed) // sum(rule.shares)
            parts = torch.split(changed, [share * unit for share in rule.shares])
            for ours, part in zip(rule.ours, parts, strict=True):
                if ours is not None:
                    _put(made, ours.format(**groups), part)
            if None in rule.ours:
                left_out[f"{name} (in part)"] = rule.why
    return Converted({name: tensor.contiguous() for name, tensor in made.items()}, left_out, tuple(unknown))


def has_matches(names: Sequence[str], *patterns: str) -> bool:
    """Whether every pattern matches at least one name."""
    return all(any(_compile(pattern).fullmatch(name) for name in names) for pattern in patterns)


def count(names: Sequence[str], pattern: str) -> int:
    """One more than the largest ``{i}`` among names that match: the depth of a stack of blocks; 0 without any."""
    places = (_compile(pattern).fullmatch(name) for name in names)
    return max((int(match["i"]) + 1 for match in places if match), default=0)


def _match(name: str, rules: Sequence[Rule]) -> tuple[Rule | None, dict[str, str]]:
    for rule in rules:
        if match := _compile(rule.theirs).fullmatch(name):
            return rule, match.groupdict()
    return None, {}


def _put(made: State, name: str, tensor: Tensor) -> None:
    if name in made:
        raise InputError("VD3009", f"has two tensors that are both {name!r}", fix="keep one of them")
    made[name] = tensor


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    kinds = {"i": r"(?P<i>\d+)", "j": r"(?P<j>\d+)", "kind": "(?P<kind>weight|bias)", "any": "(?P<any>.+)"}
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(kinds[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)))
