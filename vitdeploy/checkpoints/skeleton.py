"""Which dictionaries a pickle would build, and where tensors stand in them: followed opcode by opcode, nothing of it run.

It serves one sentence: the line that saves the weights of *this* file alone. So what is no dictionary is a lump of its parts.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

Name = tuple[str, ...]

MOST_PARTS = 200_000
DEEPEST = 32  # keys that lead to a tensor: a dictionary that holds itself has no end
_BROKEN = (ValueError, EOFError, LookupError, struct.error, OverflowError, TypeError, AttributeError)


class _Lump:
    """A value on the pickle machine's stack: a text, or what was made of other values."""

    def __init__(self, text: str | None = None, parts: list[_Lump] | None = None) -> None:
        self.text, self.parts = text, parts or []
        self.items: dict[str, _Lump] = {}

    @property
    def is_tensor(self) -> bool:
        """Whether it is what torch rebuilds a tensor or parameter with, called."""
        return any((part.text or "").startswith("torch._utils._rebuild_") for part in self.parts)


def list_tensors(raw: bytes, pickles: int = 1) -> list[Name]:
    """The keys that lead to each tensor in what a pickle would build; none when the bytes are no pickle.

    Args:
        raw: The pickle.
        pickles: Which of the pickles that follow each other in ``raw`` holds the object, from 1.
    """
    stream, top = BytesIO(raw), _Lump()
    try:
        for _ in range(pickles):
            top = _build(stream)
    except _BROKEN:
        return []
    return list(_walk(top))


def _walk(top: _Lump) -> Iterator[Name]:
    stack: list[tuple[Name, _Lump]] = [((), top)]
    for _ in range(MOST_PARTS):
        if not stack:
            return
        name, lump = stack.pop()
        if lump.is_tensor:
            yield name
        elif len(name) < DEEPEST:
            stack += [((*name, key), item) for key, item in reversed(lump.items.items())]


def _build(stream: BytesIO) -> _Lump:
    stack: list[_Lump | None] = []  # None is a mark
    memo: dict[Any, _Lump] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "MARK":
            stack.append(None)
        elif name == "STOP":
            break
        elif name == "MEMOIZE":
            memo[len(memo)] = _last(stack)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = _last(stack)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("SETITEM", "SETITEMS"):
            operands = _take(stack, 2 if name == "SETITEM" else None)
            for key, value in zip(operands[::2], operands[1::2], strict=True):
                if key.text is not None:
                    _last(stack).items[key.text] = value
        elif name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD"):
            _last(stack).parts.extend(_take(stack, 1 if name in ("APPEND", "BUILD") else None))
        elif name not in ("PROTO", "FRAME"):
            _reduce(stack, opcode, argument)
    return _last(stack)


def _reduce(stack: list[_Lump | None], opcode: Any, argument: object) -> None:  # noqa: ANN401 (of pickletools, untyped)
    """Any other opcode: its operands become the parts of each of its results."""
    before = opcode.stack_before
    marked = pickletools.markobject in before
    parts = _take(stack, None) if marked else _take(stack, len(before))
    if marked:
        parts = _take(stack, before.index(pickletools.markobject)) + parts
    if opcode.name in ("GLOBAL", "INST"):
        argument = ".".join(str(argument).split(" ", 1))
    elif opcode.name == "STACK_GLOBAL":
        argument = ".".join(part.text or "" for part in parts)
    made = _Lump(argument if isinstance(argument, str) else None, parts)
    if opcode.name == "DICT":
        made.items = {key.text: value for key, value in zip(parts[::2], parts[1::2], strict=True) if key.text is not None}
    stack.extend(made for _ in opcode.stack_after)


def _take(stack: list[_Lump | None], count: int | None) -> list[_Lump]:
    """The newest values, oldest first: so many, or down to the mark, which goes too."""
    if count is None:
        start = next((place for place in range(len(stack) - 1, -1, -1) if stack[place] is None), -1)
    else:
        start = len(stack) - count
    if start < 0:
        raise ValueError("the stack is empty")
    taken = [lump for lump in stack[start:] if lump is not None]
    del stack[start:]
    return taken


def _last(stack: list[_Lump | None]) -> _Lump:
    if not stack or stack[-1] is None:
        raise ValueError("the stack is empty")
    return stack[-1]
