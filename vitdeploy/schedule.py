"""How many tokens are merged behind which attention: schedules as people write them, and what they come to for a model.

``8`` merges 8 tokens behind the attention of every block but the last, ``6-10:16`` 16 in each of the blocks 6 to 10, counted from
0, ``5:40,7:40`` 40 in two of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from vitdeploy.errors import UsageError

_PART = re.compile(r"(?:(\d{1,4})(?:-(\d{1,4}))?:)?(\d{1,5})")
_EXAMPLES = "write 6-10:16 for 16 tokens in each of the blocks 6 to 10, or 5:40,7:40"

LEAST_LENGTH = 1e-6
"""What a length of keys is taken for at least, in PyTorch and in files, so that keys of zeros have a direction."""


class Step(NamedTuple):
    """A part of a schedule.

    Attributes:
        first: The first block; None for all blocks but the last.
        last: The last one.
        merged: Tokens that each of them merges.
    """

    first: int | None
    last: int | None
    merged: int


def read_schedule(text: str) -> tuple[Step, ...]:
    """The parts of a schedule.

    Raises:
        UsageError: VD2003, it is not written like one.
    """
    steps = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or int(match[3]) < 1:
            raise UsageError("VD2003", f"merge-tokens is {text!r}, which is no schedule", fix=_EXAMPLES)
        first = None if match[1] is None else int(match[1])
        steps.append(Step(first, first if match[2] is None else int(match[2]), int(match[3])))
    return tuple(steps)


def resolve_schedule(text: str, depth: int, tokens: int, protected: int) -> tuple[int, ...]:
    """How many tokens each block of a model merges.

    Args:
        text: The schedule.
        depth: Blocks of the model.
        tokens: T, the length of its sequence.
        protected: Tokens at its start that stay as they are.

    Returns:
        One number a block, 0 for the last: what it would merge, nothing reads.

    Raises:
        UsageError: VD2003, it is no schedule, names blocks that there are not, or more tokens than can be merged at once: half of
            those that are not protected, less one.
    """
    counts = [0] * depth
    for step in read_schedule(text):
        for block in _list_blocks(step, text, depth):
            if counts[block]:
                raise UsageError("VD2003", f"merge-tokens is {text!r}, which names block {block} twice", fix="name each once")
            counts[block] = step.merged
    left = tokens
    for block, count in enumerate(counts):
        most = count_mergeable(left - protected)
        if count > most:
            message = f"merge-tokens is {text!r}; block {block} has {left} tokens, of which at most {most} can be merged"
            raise UsageError("VD2003", message, fix="merge fewer, or in more blocks")
        left -= count
    return tuple(counts)


def count_mergeable(tokens: int) -> int:
    """How many of some tokens one block can merge: one of two sets into the other, and one stays."""
    return max(0, (tokens - 1) // 2)


def _list_blocks(step: Step, text: str, depth: int) -> Iterator[int]:
    first, last = (0, depth - 2) if step.first is None or step.last is None else (step.first, step.last)
    if first > last or last > depth - 2:
        message = f"merge-tokens is {text!r}, the model's blocks that can merge are 0 to {depth - 2}"
        raise UsageError("VD2003", message, fix=_EXAMPLES if depth > 1 else "leave it out: one block merges nothing")
    yield from range(first, last + 1)
